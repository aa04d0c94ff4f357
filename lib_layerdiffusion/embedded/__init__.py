"""The small model that is part of the package (`model/`), and the word that names it wherever a model is asked for."""

from __future__ import annotations

from pathlib import Path

from lib_layerdiffusion.hosts import pipelines
from lib_layerdiffusion.refusal import Refusal

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).parent / "model"
GUIDANCE = 3.0  # what its pictures look best with
GIVEN_GUIDANCE = 2.0  # the same where an image is given, which then stays closer to what it was


def model_path(model: str) -> Path:
    """The folder or file that `--model` names, "embedded" among them; Refusal when it can't be a model."""
    if model != EMBEDDED:
        return pipelines.check_path(Path(model))
    if not (EMBEDDED_FOLDER / "model_index.json").is_file():
        raise Refusal(
            f"The embedded model is missing from {EMBEDDED_FOLDER}; install the package again, or name a model with "
            "--model."
        )
    return EMBEDDED_FOLDER


def usual_guidance(model: str) -> float:
    """The guidance that suits what `--model` names."""
    return GUIDANCE if model == EMBEDDED else pipelines.GUIDANCE
