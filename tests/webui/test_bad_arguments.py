"""What API clients can get wrong in `alwayson_scripts`: 422 and a sentence with the cure, and no image is made."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.webui.jobs import decode_image

pytestmark = pytest.mark.slow

DIGITS = "1" + "0" * 420  # of a number that JSON allows and no float holds

# The script's whole entry, as JSON, and what the sentence must name.
ENTRIES = {
    "null": "must be an object with args, not null",
    "true": "not true or false",
    "12.5": "not a number",
    '"foreground"': "not a text",
    "[]": "not a list",
    '[{"args": {}}]': "not a list",
    "{}": "must be an object or a list, not null",
    '{"args": null}': "The args of LayerDiffuse must be an object or a list, not null",
    '{"args": 0}': "not a number",
    '{"args": false}': "not true or false",
    '{"args": "mode=foreground"}': "not a text",
    '{"mode": "foreground"}': "'mode' outside args",
    '{"args": {}, "weight": 1, "views": 2}': "'weight', 'views' outside args",
    '{"args": [true], "kwargs": {}}': "'kwargs' outside args",
    '{"args": [{"views": 1}, {"views": 1}]}': "2 entries and an object among them",
    '{"args": [{"views": 1}, null]}': "one object is read",
    '{"args": [true, {"views": 1}]}': "one object is read",
    '{"args": [' + "null," * 60 + "true]}": "61 entries",
    '{"\\ud83d": 1}': r"'\ud83d' outside args",
}
# Of one object in `args`.
OPTIONS = {
    f'{{"weight": {DIGITS}}}': "weight must be a number from 0 to 2",
    f'{{"start_at": -{DIGITS}}}': "start_at must be a number from 0 to 1",
    f'{{"views": {DIGITS}}}': "views can't be",
    '{"resize_mode": [[]]}': "resize_mode can't be [[]]",
    '{"resize_mode": {"name": "crop"}}': "resize_mode can't be",
    '{"mode": {}}': "mode can't be {}",
    '{"outputs": [["rgba"]]}': "outputs can't be ['rgba']",
    '{"batch_counts": 1}': "batch_counts can't be 1",
    '{"enabled": "off"}': "enabled must be true or false, not 'off'",
    '{"enabled": 1}': "enabled must be true or false, not 1",
    '{"enabled": {"value": false}}': "enabled must be true or false",
    '{"foreground_prompt": "a \\udfff cat"}': "foreground_prompt has half of a character at position 3",
}

DOCUMENTED = re.findall(
    r"^\| `([^`]+)` \| ",
    (Path(__file__).parents[2] / "docs" / "api.md").read_text("utf-8").partition("## What changed for clients")[2],
    re.MULTILINE,
)


def send(webui, entry: str, **fields: str):
    body = {"prompt": '"star"', "seed": "1", "steps": "1", "width": "64", "height": "64"} | fields
    parts = [f'"{name}": {value}' for name, value in body.items()]
    content = "{" + ", ".join([*parts, f'"alwayson_scripts": {{"LayerDiffuse": {entry}}}']) + "}"
    return webui.request("POST", "/sdapi/v1/txt2img", content=content, headers={"Content-Type": "application/json"})


def check_refused(answer, names: str) -> None:
    assert answer.status_code == 422, answer.text
    assert names in answer.json()["detail"]
    assert answer.json()["detail"].endswith(".")
    assert "images" not in answer.json()


@pytest.mark.parametrize(("entry", "names"), ENTRIES.items())
def test_a_wrong_entry_is_refused(webui, entry, names):
    answer = send(webui, entry)
    check_refused(answer, names)
    assert '{"LayerDiffuse": {"args": {"mode": "foreground"}}}' in answer.json()["detail"]


@pytest.mark.parametrize(("options", "names"), OPTIONS.items(), ids=range(len(OPTIONS)))
def test_a_wrong_option_is_refused(webui, options, names):
    check_refused(send(webui, f'{{"args": {options}}}'), names)
    check_refused(send(webui, f'{{"args": [{options}]}}'), names)


def test_what_the_document_says_is_refused_is(webui):
    assert len(DOCUMENTED) == 8
    for entry in DOCUMENTED:
        check_refused(send(webui, entry), "")


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
def test_half_a_character_in_a_prompt_is_refused(webui, name):
    check_refused(send(webui, '{"args": {"views": 1}}', **{name: '"star \\ud800"'}), f"{name} has half of a character")


def test_what_is_right_still_makes_layers_or_none(webui):
    """The positional list keeps its rule: what isn't true makes none."""
    for entry, mode in (
        ('{"args": {"views": 1}}', "RGBA"),
        ('{"args": [{"views": 1}]}', "RGBA"),
        ('{"args": [true]}', "RGBA"),
        ('{"args": {"enabled": false}}', "RGB"),
        ('{"args": [false, "no mode", 7]}', "RGB"),
        ('{"args": []}', "RGB"),
    ):
        answer = send(webui, entry)
        assert answer.status_code == 200, entry
        assert decode_image(answer.json()["images"][0]).mode == mode, entry
        assert json.loads(answer.json()["info"])["seed"] == 1
