"""The extension's section on the WebUI's settings page: one table, from which the options are made and looked up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

PREFIX = "layerdiffusion_"
SECTION = ("layerdiffusion", "LayerDiffusion")
REPORT = "report"  # not a setting, but shown among them
REPORT_LABEL = "Diagnostics"
REPORT_HELP = "to paste into a bug report; it contains names of folders"
REPORT_BUTTON = "Write the report"


@dataclass(frozen=True)
class Setting:
    """One setting; the type of its default decides between a checkbox and a text box."""

    name: str  # without prefix
    default: bool | str
    label: str
    help: str
    private: bool = False  # API clients can't change it, since it names a folder or a server


SETTINGS: tuple[Setting, ...] = (
    Setting("folder", "", "Folder of the weight files", "empty: models/layer_model of this WebUI", private=True),
    Setting(
        "offline",
        False,
        "Never download weight files",
        "a missing file then stops the generation, with a message that says which file to put where",
        private=True,
    ),
    Setting(
        "endpoint",
        "",
        "Mirror to download weight files from",
        "an address that begins with https://; empty: the HF_ENDPOINT variable, or the hub itself",
        private=True,
    ),
    Setting(
        "go_on",
        False,
        "Continue with an ordinary image when layers can't be made",
        "otherwise the generation stops and says why",
    ),
    Setting(
        "alpha_check",
        True,
        "Warn when a transparent image comes out opaque or empty",
        "with the likely cause and what to do about it, below the pictures",
    ),
    Setting(
        "grid_background",
        "checker",
        "Background of transparent pictures on grids",
        "of batches, X/Y/Z plot, Prompt matrix and Loopback: checker, or a colour such as white or #808080",
    ),
    Setting(
        "checkerboard",
        True,
        "Show a checkerboard behind transparent pictures",
        "in the gallery and where a picture is enlarged; the files stay as they are",
    ),
    Setting(
        "save_previews",
        False,
        "Save previews, alpha masks and recomposites, too",
        "next to the transparent picture and under its name, with -checker, -over_black, -alpha and so on added",
    ),
)


def defaults() -> dict[str, Any]:
    """Default of each setting, by name without prefix."""
    return {setting.name: setting.default for setting in SETTINGS}


def add(report: Callable[[], str]) -> None:
    """Put the section on the settings page, with a button for a report; called by the WebUI when it builds that."""
    from modules import shared

    for setting in SETTINGS:
        option = shared.OptionInfo(setting.default, setting.label, section=SECTION, restrict_api=setting.private).info(
            setting.help
        )
        shared.opts.add_option(PREFIX + setting.name, option)
    shown = shared.OptionInfo("", REPORT_LABEL, component=partial(_report_box, report), section=SECTION)
    shown.do_not_save = True  # before it is added, or it gets a value
    shared.opts.add_option(PREFIX + REPORT, shown.info(REPORT_HELP))


def _report_box(report: Callable[[], str], elem_id: str, **settings: Any) -> Any:
    """A text box and the button that fills it, where the settings page wants a component for an option."""
    import gradio as gr

    from .gradio_compat import QUIET

    box = gr.Textbox(elem_id=elem_id, lines=4, max_lines=40, show_copy_button=True, **settings)
    gr.Button(REPORT_BUTTON, elem_id=f"{elem_id}_button").click(report, outputs=[box], **QUIET)
    return box
