"""The settings of a WebUI: `opts.name`, kept in `opts.data` once they were set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

FIELDS = ("data", "data_labels")


class OptionInfo:
    """One setting: its default, and how a settings page shows it."""

    def __init__(
        self,
        default: Any = None,
        label: str = "",
        component: Any = None,
        component_args: Any = None,
        onchange: Callable[[], None] | None = None,
        section: tuple[str | None, ...] | None = None,
        refresh: Any = None,
        comment_before: str = "",
        comment_after: str = "",
        infotext: str | None = None,
        restrict_api: bool = False,
        category_id: str | None = None,
    ) -> None:
        self.default = default
        self.label = label
        self.component = component
        self.component_args = component_args
        self.onchange = onchange
        self.section = section
        self.refresh = refresh
        self.comment_before = comment_before
        self.comment_after = comment_after
        self.infotext = infotext
        self.restrict_api = restrict_api
        self.category_id = category_id
        self.do_not_save = False

    def info(self, text: str) -> OptionInfo:
        self.comment_after += f"<span class='info'>({text})</span>"
        return self

    def html(self, text: str) -> OptionInfo:
        self.comment_after += text
        return self

    def link(self, label: str, url: str) -> OptionInfo:
        self.comment_before += f"[<a href='{url}' target='_blank'>{label}</a>]"
        return self

    def needs_restart(self) -> OptionInfo:
        return self.info("requires restart")

    def needs_reload_ui(self) -> OptionInfo:
        return self.info("requires Reload UI")


def options_section(section: tuple[str | None, ...], options: dict[str, OptionInfo]) -> dict[str, OptionInfo]:
    """Put settings on one page of the settings."""
    for option in options.values():
        option.section = section
    return options


class Options:
    """All settings. In a fresh installation `data` holds only what extensions added; the rest is at its default."""

    def __init__(self, data_labels: dict[str, OptionInfo]) -> None:
        self.data_labels = data_labels
        self.data: dict[str, Any] = {}

    def __setattr__(self, name: str, value: Any) -> None:
        if name in FIELDS or name not in self.data_labels:
            super().__setattr__(name, value)
        else:
            self.data[name] = value

    def __getattr__(self, name: str) -> Any:
        if name not in FIELDS:
            if name in self.data:
                return self.data[name]
            if name in self.data_labels:
                return self.data_labels[name].default
        raise AttributeError(name)

    def set(self, key: str, value: Any, is_api: bool = False, run_callbacks: bool = True) -> bool:
        """Set a known setting; whether it changed. KeyError for an unknown one."""
        option = self.data_labels[key]
        if self.data.get(key) == value or (is_api and option.restrict_api):
            return False
        setattr(self, key, value)
        if run_callbacks and option.onchange:
            option.onchange()
        return True

    def get_default(self, key: str) -> Any:
        return self.data_labels[key].default if key in self.data_labels else None

    def add_option(self, key: str, info: OptionInfo) -> None:
        """Add a setting; extensions do so in their `on_ui_settings` callback."""
        self.data_labels[key] = info
        self.data.setdefault(key, info.default)


def make_options(outputs: str) -> Options:
    """The WebUI's own settings, with the names and defaults that WebUIs have."""
    defaults: dict[str, Any] = {
        "samples_save": True,
        "samples_format": "png",
        "samples_filename_pattern": "",
        "save_images_add_number": True,
        "save_incomplete_images": False,
        "grid_save": True,
        "grid_format": "png",
        "return_grid": True,
        "grid_only_if_multiple": True,
        "enable_pnginfo": True,
        "save_txt": False,
        "jpeg_quality": 80,
        "webp_lossless": False,
        "save_images_before_highres_fix": False,
        "save_mask": False,
        "return_mask": False,
        "return_mask_composite": False,
        "outdir_txt2img_samples": f"{outputs}/txt2img-images",
        "outdir_img2img_samples": f"{outputs}/img2img-images",
        "outdir_txt2img_grids": f"{outputs}/txt2img-grids",
        "outdir_img2img_grids": f"{outputs}/img2img-grids",
        "sd_model_checkpoint": None,
        "sd_vae_encode_method": "Full",
        "sd_vae_decode_method": "Full",
        "CLIP_stop_at_last_layers": 1,
        "token_merging_ratio": 0.0,
        "token_merging_ratio_hr": 0.0,
        "initial_noise_multiplier": 1.0,
        "img2img_background_color": "#ffffff",
        "overlay_inpaint": True,
        "live_previews_enable": True,
        "infotext_skip_pasting": [],
        "add_version_to_infotext": True,
    }
    return Options({name: OptionInfo(default, name.replace("_", " ")) for name, default in defaults.items()})
