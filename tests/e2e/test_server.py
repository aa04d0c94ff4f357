"""The flags for starting a WebUI, without starting one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.server import choose_flags


def make_checkout(folder: Path, files: dict[str, list[str]]) -> Path:
    for name, flags in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("".join(f'parser.add_argument("{flag}", action="store_true")\n' for flag in flags))
    return folder


@pytest.mark.parametrize(
    ("parser", "device"),
    [
        ("backend/args.py", "--cpu"),
        ("backend/args.py", "--always-cpu"),
        ("ldm_patched/modules/args_parser.py", "--always-cpu"),
    ],
)
def test_only_what_the_parsers_know(tmp_path: Path, parser: str, device: str) -> None:
    known = {
        "modules/cmd_args.py": ["--api", "--server-name", "--no-half", "--no-hashing-at-all"],
        parser: [device],
    }
    flags = choose_flags(make_checkout(tmp_path, known))
    assert flags == ["--server-name=127.0.0.1", "--api", device, "--layerdiffusion-offline"]


def test_a_webui_without_a_single_flag_for_the_processor(tmp_path: Path) -> None:
    known = {"modules/cmd_args.py": ["--api", "--use-cpu", "--no-half", "--precision"]}
    flags = choose_flags(make_checkout(tmp_path, known))
    assert flags == ["--api", "--use-cpu=all", "--no-half", "--precision=full", "--layerdiffusion-offline"]


def test_half_precision_replaces_full(tmp_path: Path) -> None:
    known = {"modules/cmd_args.py": ["--use-cpu", "--no-half", "--precision", "--upcast-sampling"]}
    more = ["--precision=half", "--upcast-sampling"]
    assert choose_flags(make_checkout(tmp_path, known), more) == ["--use-cpu=all", "--layerdiffusion-offline", *more]
