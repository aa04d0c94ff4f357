"""A whole scene: what a user asks for, how an infotext says it, and the passes that it takes on a model; pure.

A background and up to eight foregrounds, each made for the recomposite of what lies beneath it; or a foreground first
and then its surroundings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from itertools import chain, count
from typing import TYPE_CHECKING, Any

from .infotext import PREFIX
from .modes import Role, find_mode
from .options import Checked, as_in_a_generation, option
from .planning import LARGEST_SEED
from .refusal import Refusal

if TYPE_CHECKING:  # the command line's `--help` needs this module without numpy and Pillow
    from .edges import Edges
    from .options import LayerImage

TITLE = "LayerDiffusion scene"  # of the script in a WebUI, by which API clients name it, and pasted infotexts choose it
KEY = f"{PREFIX}scene"  # of the infotext: the options as JSON
MOST_FOREGROUNDS = 8
BACKGROUND = "background"  # name of that layer
NAME_LENGTH = 40  # characters of a prompt that name a layer
SCENE_OUTPUTS: tuple[str, ...] = ("layers", "recomposite", "blend", "psd", "ora")
FIRSTS: tuple[str, ...] = ("auto", "background", "foreground")


@dataclass(frozen=True, eq=False)
class Scene(Checked):
    """What a user can choose for a scene; its prompt is put after each layer's own, as in a generation."""

    background: str = option("", "text", "Background of the scene", "What the background shows.")
    foregrounds: tuple[str, ...] = option(
        (),
        "texts",
        "Foregrounds",
        f"What the foregrounds show, from bottom to top, 1 to {MOST_FOREGROUNDS}; in one text, one on each line.",
    )
    # `option` returns a dataclass field, so nothing mutable is shared.
    background_image: LayerImage = option(None, "image", "Background image", "Instead of making the background.")  # noqa: RUF009
    foreground_image: LayerImage = option(  # noqa: RUF009
        None, "image", "Foreground image", "RGBA, instead of making the first foreground."
    )
    first: str = option(
        "auto",
        "choice",
        "Made first",
        "background, foreground (the background is then made for it), or auto: both together where the model can.",
        choices=FIRSTS,
    )
    match_blend: bool = option(
        False, "switch", "Match the blend", "Take the foreground's colour from the model's blend where alpha allows."
    )
    weight: float = as_in_a_generation("weight")
    views: int = as_in_a_generation("views")
    resize_mode: str = as_in_a_generation("resize_mode")
    outputs: tuple[str, ...] = option(
        ("layers", "recomposite"),
        "choices",
        "Outputs",
        "What is returned: the layers, their recomposite, the model's blends, files (psd, ora).",
        choices=SCENE_OUTPUTS,
    )
    defringe: str = as_in_a_generation("defringe")
    black_point: float = as_in_a_generation("black_point")
    white_point: float = as_in_a_generation("white_point")
    gamma: float = as_in_a_generation("gamma")
    choke: float = as_in_a_generation("choke")
    feather: float = as_in_a_generation("feather")
    threshold: float = as_in_a_generation("threshold")
    controlnet_units: str = option(
        "",
        "text",
        "ControlNet units",
        "Units of each pass, as in 0; 0,1; - for three passes, of which the last has none; empty: all in every pass.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        read_units(self.controlnet_units)
        if len(self.foregrounds) > MOST_FOREGROUNDS:
            raise Refusal(
                f"A scene has at most {MOST_FOREGROUNDS} foregrounds, not {len(self.foregrounds)}: leave some out, or "
                "give its recomposite as background_image of another scene."
            )
        if not self.foregrounds and self.foreground_image is None:
            raise Refusal("A scene needs a foreground: name one or more in foregrounds, or give foreground_image.")
        from .edges import Edges  # here, since it needs numpy, and `--help` doesn't

        Edges.of(self)  # refuses what doesn't go together
        given = {"background": self.background_image, "foreground": self.foreground_image}
        for one, other in (("background", "foreground"), ("foreground", "background")):
            if self.first == one and given[other] is not None and given[one] is None:
                raise Refusal(
                    f"A given {other} is there before the {one}: leave out {other}_image, or choose first {other!r}."
                )
        if all(image is not None for image in given.values()) and len(self.foregrounds) < 2:
            raise Refusal(
                "Background and foreground are both given, so nothing is left to make: leave one image out, or name "
                "further foregrounds (the first one is the given image)."
            )


SCENE_FIELDS: Mapping[str, Field[Any]] = {each.name: each for each in fields(Scene)}


@dataclass(frozen=True)
class Pass:
    """One call of the model. Images have the names under which the plan keeps them."""

    mode: str  # "" is a picture of the model itself, without a layer file
    prompt: str
    seed: int
    makes: Mapping[Role, str]  # the name of each frame
    inputs: Mapping[Role, tuple[str, ...]] = field(default_factory=dict)  # images whose composite is given, from bottom
    prompts: Mapping[Role, str] = field(default_factory=dict)  # put before the prompt, of passes with several frames
    stop_at: float = 1.0
    units: frozenset[int] | None = None  # numbers of a WebUI's ControlNet units that take part; None: all of them

    @property
    def title(self) -> str:
        """What it makes, for the user."""
        return ", ".join(self.makes.values())

    def options(self, scene: Scene, inputs: Mapping[Role, Any]) -> dict[str, Any]:
        """What `LayerOptions` takes for the pass, with the images that it is given."""
        settings = {"mode": self.mode, "stop_at": self.stop_at, "weight": scene.weight, "views": scene.views}
        images = {f"{role}_image": image for role, image in inputs.items()}
        return settings | images | {f"{role}_prompt": text for role, text in self.prompts.items()}


@dataclass(frozen=True)
class ScenePlan:
    """The passes of a scene, and what comes of them."""

    layers: tuple[tuple[str, Role], ...]  # names and roles from bottom to top
    given: Mapping[Role, str]  # the names of the layers whose images are given
    passes: tuple[Pass, ...]
    blends: Mapping[str, tuple[str, ...]]  # the layers that each shows, from bottom to top; the last is new in it
    images: int  # that are sampled in all
    edges: Edges  # what is done to the edges of the foregrounds that are made

    @property
    def modes(self) -> tuple[str, ...]:
        """The layer modes that are needed, each once."""
        return tuple(dict.fromkeys(each.mode for each in self.passes if each.mode))


def plan_scene(scene: Scene, family: str, prompt: str = "", seed: int = 0) -> ScenePlan:
    """The passes for a scene on a base-model family, one with `seed` and each later one with those that follow.

    prompt: put after the layers' own. Refusal when the family has no layer models, or nothing says what to paint.
    """
    find_mode("foreground", family)  # refuses other families
    if not (scene.background or prompt or scene.background_image is not None):
        raise Refusal("A scene needs a background: name it in background, or give background_image or a prompt.")
    return _Planner(scene, family, prompt, seed).plan()


def read_units(text: str) -> tuple[frozenset[int], ...]:
    """The numbers of the ControlNet units of each pass, from such as "0; 0,1; -"; none when the text is empty."""
    if not text.strip():
        return ()
    entries = ["".join(entry.split()) for entry in text.split(";")]
    for entry in entries:
        if not re.fullmatch(r"-|[0-9]{1,3}(,[0-9]{1,3})*", entry):
            raise Refusal(
                f"controlnet_units can't be {text[:60]!r}: write the numbers of each pass's units, - for none, as in "
                "0; 0,1; - for three passes."
            )
    return tuple(frozenset(map(int, entry.split(","))) if entry != "-" else frozenset() for entry in entries)


def describe(scene: Scene) -> dict[str, str]:
    """What to write into an infotext: the script that makes scenes in a WebUI, and what differs from the defaults.

    Images aren't in an infotext, only that one was given.
    """
    values = {
        name: True if name.endswith("_image") else value for name, value in scene.to_dict().items() if value is not None
    }
    text = json.dumps({name: value for name, value in values.items() if value != _defaults()[name]}, ensure_ascii=False)
    # JSON leaves these as they are, and some of the formats that hold infotexts don't.
    text = re.sub("[\x7f-\x9f\u2028\u2029]", lambda found: f"\\u{ord(found[0]):04x}", text)
    return {"Script": TITLE, KEY: text}


def read(params: Mapping[str, str]) -> dict[str, Any]:
    """Each option of a scene by name, from a parsed infotext; absent or unreadable ones are at their default.

    Images are None.
    """
    values: dict[str, Any] = _defaults()
    try:
        found = json.loads(params.get(KEY, "{}"))
        written = {name: value for name, value in found.items() if not name.endswith("_image")}
        values |= Scene.from_dict({"foregrounds": ["any"], **written}).to_dict() if written else {}
    except (Refusal, ValueError, AttributeError):
        return values
    return values | {"foregrounds": written.get("foregrounds", [])}


def _defaults() -> dict[str, Any]:
    values = {name: about.default for name, about in SCENE_FIELDS.items()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


class _Planner:
    """Collects the passes of a scene."""

    def __init__(self, scene: Scene, family: str, prompt: str, seed: int) -> None:
        self.scene, self.family, self.prompt, self.seed = scene, family, prompt, seed
        self.texts = list(scene.foregrounds) or [""]
        self.names = _name_layers(self.texts)
        self.passes: list[Pass] = []
        self.blends: dict[str, tuple[str, ...]] = {}
        self.images = 0  # that the passes so far sample

    def plan(self) -> ScenePlan:
        scene, first = self.scene, self.names[0]
        given: dict[Role, str] = {}
        if scene.background_image is not None:
            given["background"] = BACKGROUND
        if scene.foreground_image is not None:
            given["foreground"] = first
        done = 0  # foregrounds
        match self._choose_first():
            case "together":
                self._add_together()
                done = 1
            case "foreground":
                if "foreground" not in given:
                    self._add("foreground", {"foreground": first}, text=self.texts[0])
                self._add_surroundings()
                done = 1
            case _:
                if "background" not in given:
                    self._add("", {"background": BACKGROUND}, text=scene.background)
                done = int("foreground" in given)
        for index in range(done, len(self.names)):
            self._add_foreground(index)
        layers: list[tuple[str, Role]] = [(BACKGROUND, "background"), *((name, "foreground") for name in self.names)]
        from .edges import Edges

        return ScenePlan(tuple(layers), given, self._share_units(), self.blends, self.images, Edges.of(scene))

    def _share_units(self) -> tuple[Pass, ...]:
        """The passes, each with its ControlNet units."""
        units = read_units(self.scene.controlnet_units)
        if not units:
            return tuple(self.passes)
        if len(units) != len(self.passes):
            named = "; ".join(each.title for each in self.passes)
            raise Refusal(
                f"controlnet_units is for {_count(units)} and the scene has {_count(self.passes)} ({named}): write the "
                "units of each, - for none."
            )
        return tuple(replace(each, units=own) for each, own in zip(self.passes, units, strict=True))

    def _choose_first(self) -> str:
        scene = self.scene
        if scene.background_image is not None:
            return "background"
        if scene.first != "auto":
            return scene.first
        if scene.foreground_image is not None:
            return "foreground"
        return "together" if self.family == "sd15" and len(self.names) == 1 else "background"

    def _add_together(self) -> None:
        (name,), (text,) = self.names, self.texts
        blend = self._name_blend(0)
        makes: dict[Role, str] = {"foreground": name, "background": BACKGROUND, "blend": blend}
        background = self.scene.background
        self._add("together", makes, prompts={"foreground": text, "background": background, "blend": self._whole(0)})

    def _add_surroundings(self) -> None:
        """The background for the first foreground."""
        inputs, blend = {"foreground": (self.names[0],)}, self._name_blend(0)
        background = self.scene.background
        if self.family == "sd15":
            prompts = {"background": background, "blend": self._whole(0)}
            makes: dict[Role, str] = {"background": BACKGROUND, "blend": blend}
            self._add("foreground_to_background", makes, inputs, prompts=prompts)
            return
        self._add("foreground_to_blend", {"blend": blend}, inputs, text=self._whole(0))
        inputs |= {"blend": (blend,)}
        self._add("foreground_blend_to_background", {"background": BACKGROUND}, inputs, text=background)

    def _add_foreground(self, index: int) -> None:
        """A foreground for what lies beneath."""
        name, text = self.names[index], self.texts[index]
        inputs, blend = {"background": (BACKGROUND, *self.names[:index])}, self._name_blend(index)
        if self.family == "sd15":
            prompts = {"foreground": text, "blend": self._whole(index)}
            self._add("background_to_foreground", {"foreground": name, "blend": blend}, inputs, prompts=prompts)
            return
        self._add("background_to_blend", {"blend": blend}, inputs, text=self._whole(index))
        inputs |= {"blend": (blend,)}
        self._add("background_blend_to_foreground", {"foreground": name}, inputs, text=text)

    def _add(
        self,
        mode: str,
        makes: Mapping[Role, str],
        inputs: Mapping[Any, tuple[str, ...]] | None = None,
        text: str = "",
        prompts: Mapping[Any, str] | None = None,
    ) -> None:
        """text: what is put before the prompt of a single frame; prompts: the same for each of several."""
        stop_at = find_mode(mode, self.family).suggested_stop_at if mode else 1.0
        seed = (self.seed + self.images) % (LARGEST_SEED + 1)
        prompt = _join(text, self.prompt)
        self.passes.append(Pass(mode, prompt, seed, dict(makes), dict(inputs or {}), dict(prompts or {}), stop_at))
        self.images += len(makes)

    def _name_blend(self, index: int) -> str:
        name = self.names[index]
        blend = f"blend with {name}"
        self.blends[blend] = (BACKGROUND, *self.names[:index], name)
        return blend

    def _whole(self, index: int) -> str:
        """What the picture shows with this foreground and all beneath it."""
        return _join(*reversed(self.texts[: index + 1]), self.scene.background)


def _name_layers(texts: Sequence[str]) -> list[str]:
    """A layer's name for each prompt: its first words, with a number where another layer has them."""
    names: list[str] = []
    for text in texts:
        plain = re.sub(r"<[^>]*>|:\s*[\d.]+\s*\)|[()\[\]\\]|\bBREAK\b|\bAND\b", " ", text)
        words = next((part for part in re.split(r"[,;\n]", plain) if part.strip()), "foreground")
        printable = "".join(c if c.isprintable() else " " for c in words)
        short = " ".join(printable.split())[:NAME_LENGTH].strip() or "foreground"
        numbered = chain([short], (f"{short} {number}" for number in count(2)))
        names.append(next(name for name in numbered if name not in (BACKGROUND, *names)))
    return names


def _count(passes: Sequence[object]) -> str:
    return f"{len(passes)} pass{'es' if len(passes) > 1 else ''}"


def _join(*texts: str) -> str:
    return ", ".join(text for text in texts if text)
