"""The settings page: every setting with prefix, default, label and section."""

from __future__ import annotations

from lib_layerdiffusion.webui import settings
from tests.webui.panel_host import installed, make_modules


def add_settings() -> dict:
    with installed(make_modules()) as modules:
        settings.add()
        return modules["modules.shared"].opts.data_labels


def test_every_setting_is_added_with_its_default():
    added = add_settings()
    assert {name: option.default for name, option in added.items()} == {
        "layerdiffusion_folder": "",
        "layerdiffusion_offline": False,
        "layerdiffusion_endpoint": "",
        "layerdiffusion_go_on": False,
        "layerdiffusion_alpha_check": True,
    }
    assert settings.defaults() == {name.removeprefix("layerdiffusion_"): each.default for name, each in added.items()}


def test_settings_are_in_one_section_with_label_and_explanation():
    for option in add_settings().values():
        assert option.section == ("layerdiffusion", "LayerDiffusion")
        assert len(option.label) > 10
        assert option.comment_after.startswith("<span class='info'>(")
        assert option.label not in option.comment_after


def test_api_clients_cannot_change_folder_server_or_downloads():
    restricted = {name for name, option in add_settings().items() if option.restrict_api}
    assert restricted == {"layerdiffusion_folder", "layerdiffusion_endpoint", "layerdiffusion_offline"}
