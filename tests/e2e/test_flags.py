"""Flags that change how a real WebUI computes: for each a server of its own, which has to draw the usual layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.e2e.server import HALF, WebUIServer, is_forge, read, read_flags
from tests.e2e.test_webui import SAME_PICTURE

EXACT = [  # flags of AUTOMATIC1111, then of Forge and its kin, that change nothing but rounding
    "--medvram",
    "--lowvram",
    "--opt-split-attention",
    "--opt-sub-quad-attention",
    "--opt-sdp-attention",
    "--opt-channelslast",
    "--attention-split",
    "--attention-quad",
    "--attention-pytorch",
]
COARSE = ["--precision=half", "--precision=half --upcast-sampling", "--unet-in-bf16", "--unet-in-fp8-e4m3fn"]


@pytest.mark.seen("foreground", "flag {flag}")
@pytest.mark.parametrize("flag", [*EXACT, *COARSE])
def test_flag(webui_places: tuple[Path, Path], tmp_path: Path, flag: str) -> None:
    folder, python = webui_places
    flags = flag.split()
    if not {each.partition("=")[0] for each in flags} <= read_flags(folder) or (HALF in flags and is_forge(folder)):
        pytest.skip("this WebUI has no such flag")
    webui = WebUIServer(folder, python, tmp_path, flags)
    try:
        webui.wait()
        before = webui.observe()
        together = webui.ask({"mode": "together"})
        assert [image.mode for image in together.images] == ["RGBA", "RGB", "RGB"]
        assert not before.changes(webui.observe())
    finally:
        webui.stop()
    assert before.model["left"] == []
    (made,) = (np.asarray(read(text)) for text in before.layers)
    assert np.ptp(made[..., 3]) > 2, "the alpha holds nothing"
    if flag in EXACT:
        with Image.open(SAME_PICTURE) as image:
            assert abs(made.astype(int) - np.asarray(image)).mean() < 2
