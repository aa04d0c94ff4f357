"""Scripts of extensions: loading them, and calling their hooks, each with its own part of the arguments."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from . import errors, paths, shared

AlwaysVisible = object()


class PostSampleArgs:
    """The sampled latents of a batch; after hires fix a list of decoded images with `already_decoded`."""

    def __init__(self, samples: Any) -> None:
        self.samples = samples


class PostprocessImageArgs:
    """One image, and (Forge) its index in the whole job."""

    def __init__(self, image: Any, index: int) -> None:
        self.image = image
        if shared.traits.image_index:
            self.index = index


class PostprocessBatchListArgs:
    """The decoded images of a batch, each [3, H, W], 0..1; a hook may put in others, of other sizes and numbers."""

    def __init__(self, images: list[Any]) -> None:
        self.images = images


class PostProcessMaskOverlayArgs:
    """What inpainting lays over an image; `index` is the image's in its batch."""

    def __init__(self, index: int, mask_for_overlay: Any, overlay_image: Any) -> None:
        self.index = index
        self.mask_for_overlay = mask_for_overlay
        self.overlay_image = overlay_image


class MaskBlendArgs:
    """Latents of inpainting that are put together, at every step and once at the end."""

    def __init__(
        self,
        current_latent: Any,
        nmask: Any,
        init_latent: Any,
        mask: Any,
        blended_latent: Any,
        denoiser: Any = None,
        sigma: Any = None,
    ) -> None:
        self.current_latent = current_latent
        self.nmask = nmask
        self.init_latent = init_latent
        self.mask = mask
        self.blended_latent = blended_latent
        self.denoiser = denoiser
        self.is_final_blend = denoiser is None
        self.sigma = sigma


class Script:
    """What extensions derive from; a hook is called if the class has it."""

    name: str | None = None
    filename: str = ""
    section: str | None = None
    args_from = 0
    args_to = 0
    alwayson = False
    is_txt2img = False
    is_img2img = False
    tabname = ""
    group: Any = None
    create_group = True
    infotext_fields: list[Any] | None = None
    paste_field_names: list[str] | None = None
    api_info: dict[str, Any] | None = None
    controls: list[Any] | None = None
    setup_for_ui_only = False
    sorting_priority: float = 0

    def title(self) -> str:
        raise NotImplementedError

    def ui(self, is_img2img: bool) -> Sequence[Any] | None:
        """Make the controls; called up to three times for each tab."""

    def show(self, is_img2img: bool) -> Any:
        return True

    def run(self, p: Any, *args: Any) -> Any:
        """Make the images, for a script that is chosen from the list."""

    def setup(self, p: Any, *args: Any) -> None: ...

    def elem_id(self, item_id: str) -> str:
        tab = ("img2img_" if self.is_img2img else "txt2img_") if self.show(True) == self.show(False) else ""
        title = re.sub(r"[^a-z_0-9]", "", re.sub(r"\s", "_", self.title().lower()))
        return f"script_{tab}{title}_{item_id}"


class ScriptClassData(NamedTuple):
    """A Script class that was found, and where."""

    script_class: type[Script]
    path: str
    basedir: str
    module: Any


scripts_data: list[ScriptClassData] = []


def basedir() -> str:
    """The folder of the extension that is being loaded."""
    return paths.script_path


def load_script(path: Path) -> None:
    """Run a script file and collect its Script classes. An error in it is logged, and the WebUI starts without it."""
    before = list(sys.path)
    try:
        spec = importlib.util.spec_from_file_location(path.name, path)
        if spec is None or spec.loader is None:
            raise ImportError(path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        scripts_data.extend(
            ScriptClassData(value, str(path), str(path.parent.parent), module)
            for value in vars(module).values()
            if isinstance(value, type) and issubclass(value, Script)
        )
    except Exception:  # noqa: BLE001 - as WebUIs do
        errors.report(f"Error loading script: {path.name}", exc_info=True)
    finally:
        sys.path[:] = before


class ScriptRunner:
    """The scripts of one tab. Their controls' values come as one list, of which each gets its own part."""

    def __init__(self, is_img2img: bool) -> None:
        self.is_img2img = is_img2img
        self.scripts: list[Script] = []
        self.inputs: list[Any] = [None]  # the first is the number of the chosen script
        self.infotext_fields: list[Any] = []
        self.paste_field_names: list[str] = []

    @property
    def alwayson_scripts(self) -> list[Script]:
        return [script for script in self.scripts if script.alwayson]

    @property
    def selectable_scripts(self) -> list[Script]:
        return [script for script in self.scripts if not script.alwayson]

    def initialize_scripts(self, is_img2img: bool) -> None:
        """Make an instance of each class."""
        self.scripts.clear()
        for data in scripts_data:
            self.add(data.script_class(), data.path)

    def add(self, script: Script, path: str = "") -> None:
        """Take a script in, if it wants to be shown in this tab."""
        script.filename = path
        script.is_img2img, script.is_txt2img = self.is_img2img, not self.is_img2img
        script.tabname = "img2img" if self.is_img2img else "txt2img"
        visibility = script.show(self.is_img2img)
        script.alwayson = visibility is AlwaysVisible
        if visibility:
            self.scripts.append(script)

    def create_script_ui(self, script: Script) -> None:
        """Let a script make its controls, and give them their places among the arguments."""
        script.args_from = script.args_to = len(self.inputs)
        try:
            script.controls = list(script.ui(self.is_img2img) or [])
            script.name = script.title().lower()
        except Exception:  # noqa: BLE001 - as WebUIs do
            errors.report(f"Error creating UI for {script.filename}", exc_info=True)
            return
        script.api_info = describe(script)
        self.infotext_fields += script.infotext_fields or []
        self.paste_field_names += script.paste_field_names or []
        self.inputs += script.controls
        script.args_to = len(self.inputs)

    def setup_ui(self) -> list[Any]:
        """Make the controls of all scripts; those of a chosen one are shown, by its `group`."""
        import gradio as gr

        for script in sorted(self.alwayson_scripts, key=lambda script: script.sorting_priority):
            with gr.Group():
                self.create_script_ui(script)
        titles = [script.title() for script in self.selectable_scripts]
        dropdown = gr.Dropdown(
            ["None", *titles], value="None", type="index", label="Script", visible=bool(titles), elem_id="script_list"
        )
        self.inputs[0] = dropdown
        for script in self.selectable_scripts:
            with gr.Group(visible=False) as script.group:
                self.create_script_ui(script)
        groups = [script.group for script in self.selectable_scripts]

        def show(chosen: int | None) -> Any:
            updates = [gr.update(visible=number == chosen) for number in range(1, len(groups) + 1)]
            return updates if len(updates) > 1 else updates[0]

        if groups:
            dropdown.change(show, dropdown, groups, show_progress="hidden", queue=False)
        self.infotext_fields.append((dropdown, lambda params: params.get("Script", "None")))
        return self.inputs

    def default_args(self) -> list[Any]:
        """The arguments of an API request that says nothing; WebUIs make all controls anew to learn their values."""
        import gradio as gr

        values: list[Any] = [0] + [None] * (len(self.inputs) - 1)
        with gr.Blocks():
            for script in self.scripts:
                if script.ui(self.is_img2img):
                    made = script.ui(self.is_img2img) or []
                    values[script.args_from : script.args_to] = [control.value for control in made]
        return values

    def run(self, p: Any, *args: Any) -> Any:
        """Let the chosen script make the images; None if none is chosen."""
        if not args[0]:
            return None
        script = self.selectable_scripts[args[0] - 1]
        return script.run(p, *args[script.args_from : script.args_to])

    def call(self, hook: str, p: Any, *before: Any, **named: Any) -> None:
        """Call a hook of every script that is always on; what one raises is logged, and the job continues."""
        for script in self.alwayson_scripts:
            method = getattr(script, hook, None)
            if method is not None:
                args = p.script_args[script.args_from : script.args_to]
                errors.attempt(f"running {hook}: {script.filename}", method, p, *before, *args, **named)

    # The hooks in the order of a job. After `before` come the script's own arguments, then what is named.

    def setup_scrips(self, p: Any, *, is_ui: bool = True) -> None:
        for script in self.alwayson_scripts:
            if is_ui or not script.setup_for_ui_only:
                script.setup(p, *p.script_args[script.args_from : script.args_to])

    def before_process(self, p: Any) -> None:
        self.call("before_process", p)

    def process(self, p: Any) -> None:
        self.call("process", p)

    def before_process_init_images(self, p: Any, pp: dict[str, Any]) -> None:
        self.call("before_process_init_images", p, pp)

    def before_process_batch(self, p: Any, **named: Any) -> None:
        self.call("before_process_batch", p, **named)

    def after_extra_networks_activate(self, p: Any, **named: Any) -> None:
        self.call("after_extra_networks_activate", p, **named)

    def process_batch(self, p: Any, **named: Any) -> None:
        self.call("process_batch", p, **named)

    def process_before_every_sampling(self, p: Any, **named: Any) -> None:
        self.call("process_before_every_sampling", p, **named)

    def before_hr(self, p: Any) -> None:
        self.call("before_hr", p)

    def on_mask_blend(self, p: Any, mba: MaskBlendArgs) -> None:
        self.call("on_mask_blend", p, mba)

    def post_sample(self, p: Any, ps: PostSampleArgs) -> None:
        self.call("post_sample", p, ps)

    def postprocess_batch(self, p: Any, images: Any, **named: Any) -> None:
        self.call("postprocess_batch", p, images=images, **named)

    def postprocess_batch_list(self, p: Any, pp: PostprocessBatchListArgs, **named: Any) -> None:
        self.call("postprocess_batch_list", p, pp, **named)

    def postprocess_image(self, p: Any, pp: PostprocessImageArgs) -> None:
        self.call("postprocess_image", p, pp)

    def postprocess_maskoverlay(self, p: Any, ppmo: PostProcessMaskOverlayArgs) -> None:
        self.call("postprocess_maskoverlay", p, ppmo)

    def postprocess_image_after_composite(self, p: Any, pp: PostprocessImageArgs) -> None:
        self.call("postprocess_image_after_composite", p, pp)

    def postprocess(self, p: Any, processed: Any) -> None:
        self.call("postprocess", p, processed)


def describe(script: Script) -> dict[str, Any]:
    """A script's controls as `/sdapi/v1/script-info` shows them."""
    args: list[dict[str, Any]] = []
    for control in script.controls or []:
        about = {name: getattr(control, name, None) for name in ("label", "value", "minimum", "maximum", "step")}
        choices = getattr(control, "choices", None)
        about["choices"] = [each[0] if isinstance(each, tuple) else each for each in choices] if choices else None
        args.append(about)
    return {"name": script.name, "is_alwayson": script.alwayson, "is_img2img": script.is_img2img, "args": args}


scripts_txt2img = ScriptRunner(is_img2img=False)
scripts_img2img = ScriptRunner(is_img2img=True)
