"""The sheet and the animation of all transparent pictures of a WebUI's job, among its pictures and their files."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modules import shared
from PIL import Image

from ..export.whole_job import Made, WholeJob, list_wanted
from ..infotext import mark_preview
from ..options import LayerOptions
from .results import LayerSet, why_no_file

ATTRIBUTE = "layerdiffusion_whole_job"  # of `p`: the pictures of what it was run for before


@dataclass
class Told:
    """What a job's end has to say."""

    failed: list[str] = field(default_factory=list)  # a sentence for each file that couldn't be made
    written: str = ""  # a sentence that names the files
    sheets: list[dict[str, Any]] = field(default_factory=list)  # the JSON of each


def deliver(
    p: Any, sets: Sequence[LayerSet], options: LayerOptions, processed: Any, is_answer: bool, is_shown: bool
) -> Told:
    """Make what is wanted of all pictures, and put it behind the pictures of `processed`.

    is_answer: an API client gets it, also of pictures that aren't saved, and an animation as its whole file in base64.
    is_shown: whether more than the job's pictures may be among them. What runs one `p` several times (Loopback, the
    tab Batch) gets one file of all, when it comes to its last job or a button ends it.
    """
    job = _continue(p)
    saved = [each for each in sets if _find_file(each)]
    for each in saved or ([each for each in sets if each.is_complete] if is_answer else ()):
        if (picture := each.transparent) is not None:
            job.add(picture, _find_file(each))
    if not is_answer and _goes_on(p):
        return Told()
    if not job.pictures:
        return Told([_why_nothing(sets, options, is_answer)])
    made, failed = job.make(options, processed.info)
    for each in made if is_shown else ():
        text = mark_preview(processed.info, each.kind)
        processed.images.append(_show(each, text, is_answer))
        processed.infotexts.append(text)
    files = [file for each in made for file in each.files]
    written = f"Written beside the pictures: {', '.join(file.name for file in files)}." if files else ""
    return Told(failed, written, [each.about for each in made if each.about])


def _continue(p: Any) -> WholeJob:
    """The pictures of earlier jobs with this very `p`, of which scripts also make copies."""
    owner, job = getattr(p, ATTRIBUTE, None) or (None, None)
    if job is None or owner is not p:
        job = WholeJob()
        setattr(p, ATTRIBUTE, (p, job))
    return job


def _goes_on(p: Any) -> bool:
    """Whether the same `p` is going to be run again, as far as the WebUI's count of jobs says.

    Any of its buttons may be the end (Loopback ends by "Skip", too); if not, the next job renews the files.
    """
    state = shared.state
    ends = state.interrupted or state.skipped or getattr(state, "stopping_generation", False)
    return hasattr(p, "init_images") and not ends and state.job_no < state.job_count


def _find_file(each: LayerSet) -> Path | None:
    path = getattr(each.images.get("foreground"), "already_saved_as", None)
    return Path(path) if path else None


def _why_nothing(sets: Sequence[LayerSet], options: LayerOptions, is_answer: bool) -> str:
    names = " and no ".join(list_wanted(options))
    if not is_answer and any(each.is_complete and each.transparent is not None for each in sets):
        return why_no_file(names)
    return f"There is no {names}, since no transparent picture is complete: let the job make one or more."


def _show(made: Made, text: str, is_answer: bool) -> Any:
    """The picture for the page's gallery, which shows its file; an animation for an API client as that file's text."""
    if made.content and is_answer:
        return base64.b64encode(made.content).decode()
    picture = Image.fromarray(made.image)
    picture.info["parameters"] = text
    if made.files:
        picture.already_saved_as = str(made.files[0])  # pyright: ignore[reportAttributeAccessIssue]
    return picture
