"""Flags that change how a real WebUI computes: for each a server of its own, which has to draw the usual layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.e2e.server import HALF, WebUIServer, is_forge, read, read_flags
from tests.e2e.test_webui import SAME_PICTURE

EXACT = [  # only change rounding; AUTOMATIC1111's, which Forge and its forks accept and ignore
    "--medvram",
    "--lowvram",
    "--opt-split-attention",
    "--opt-sub-quad-attention",
    "--opt-sdp-attention",
    "--opt-channelslast",
]
COARSE = [HALF, f"{HALF} --upcast-sampling"]
EXACT_IN_FORGE = ["--attention-split", "--attention-quad", "--attention-pytorch"]
COARSE_IN_FORGE = ["--unet-in-bf16", "--unet-in-fp8-e4m3fn"]


@pytest.mark.seen("foreground", "flag {flag}")
@pytest.mark.parametrize("flag", [*EXACT, *COARSE, *EXACT_IN_FORGE, *COARSE_IN_FORGE])
def test_flag(webui_places: tuple[Path, Path], tmp_path: Path, flag: str) -> None:
    folder, python = webui_places
    of_forge = flag in [*EXACT_IN_FORGE, *COARSE_IN_FORGE]
    if of_forge != is_forge(folder) or (of_forge and flag not in read_flags(folder)):
        pytest.skip("this WebUI doesn't have that flag")
    flags = flag.split()
    webui = WebUIServer(folder, python, tmp_path, flags)
    try:
        webui.wait()
        before = webui.observe()
        together = webui.ask({"mode": "together"})
        assert [image.mode for image in together.images] == ["RGBA", "RGB", "RGB"]
        assert not before.changes(webui.observe())
    finally:
        webui.stop()
    assert before.model["hooked"] == []
    (made,) = (np.asarray(read(text)) for text in before.layers)
    assert np.ptp(made[..., 3]) > 2, "the alpha is flat"
    if flag in [*EXACT, *EXACT_IN_FORGE]:
        with Image.open(SAME_PICTURE) as image:
            assert abs(made.astype(int) - np.asarray(image)).mean() < 2
