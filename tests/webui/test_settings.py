"""The settings page: every setting with prefix, default, label and section."""

from __future__ import annotations

import asyncio
from pathlib import Path

import gradio as gr

from lib_layerdiffusion.webui import settings
from tests.webui.panel_host import installed, make_modules

REPORT = "layerdiffusion_report"


def add_settings() -> dict:
    with installed(make_modules()) as modules:
        settings.add(lambda: "all is well")
        return modules["modules.shared"].opts.data_labels


def test_every_setting_is_added_with_its_default():
    added = add_settings()
    assert {name: option.default for name, option in added.items() if name != REPORT} == {
        "layerdiffusion_folder": "",
        "layerdiffusion_offline": False,
        "layerdiffusion_endpoint": "",
        "layerdiffusion_go_on": False,
        "layerdiffusion_alpha_check": True,
        "layerdiffusion_grid_background": "checker",
        "layerdiffusion_checkerboard": True,
        "layerdiffusion_save_previews": False,
    }
    assert settings.defaults() == {
        name.removeprefix("layerdiffusion_"): each.default for name, each in added.items() if name != REPORT
    }


def test_settings_are_in_one_section_with_label_and_explanation():
    for option in add_settings().values():
        assert option.section == ("layerdiffusion", "LayerDiffusion")
        assert len(option.label) > 10
        assert option.comment_after.startswith("<span class='info'>(")
        assert option.label not in option.comment_after


def test_every_setting_is_in_the_documents():
    text = (Path(__file__).parents[2] / "docs" / "modes.md").read_text("utf-8")
    rows = [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if line.startswith("| ")]
    for setting in settings.SETTINGS:
        assert setting.label in rows


def test_api_clients_cannot_change_folder_server_or_downloads():
    restricted = {name for name, option in add_settings().items() if option.restrict_api}
    assert restricted == {"layerdiffusion_folder", "layerdiffusion_endpoint", "layerdiffusion_offline"}


def test_a_button_fills_the_report_in_and_nothing_of_it_is_saved():
    option = add_settings()[REPORT]
    assert option.do_not_save
    with gr.Blocks(analytics_enabled=False) as demo:  # as settings pages make a component
        box = option.component(label=option.label, value=option.default, elem_id=f"setting_{REPORT}")
    assert (box.elem_id, box.label, box.value) == (f"setting_{REPORT}", option.label, "")
    (button,) = (block for block in demo.blocks.values() if isinstance(block, gr.Button))
    assert button.elem_id == f"setting_{REPORT}_button"
    state = gr.blocks.SessionState(demo) if hasattr(gr.blocks, "SessionState") else {}
    assert asyncio.run(demo.process_api(0, [], state=state))["data"] == ["all is well"]
