"""The units of the WebUI's own ControlNet among the arguments of its scripts: which there are, and using some of them.

AUTOMATIC1111's extension and the one that is built into Forge are alike in this: a script that is always on, with the
title "ControlNet" and one argument for each unit, an object or, from an API client, a dictionary.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, MutableSequence
from copy import copy
from typing import Any

from ..refusal import Refusal

TITLE = "controlnet"  # in small letters
PARAMETER = re.compile(r"ControlNet (\d+)")  # of an infotext: the settings of a unit


def check(p: Any, wanted: Collection[int]) -> None:
    """Refuse numbers of units that can't take part in the job."""
    units = [p.script_args[place] for place in find_units(p)]
    if not units:
        raise Refusal("This WebUI has no ControlNet: leave controlnet_units empty, or install it.")
    for number in sorted(wanted):
        if number >= len(units):
            there = "unit 0" if len(units) == 1 else f"units 0 to {len(units) - 1}"
            raise Refusal(
                f"There is no ControlNet unit {number}, only {there}: name another in controlnet_units, or allow more "
                "units in the WebUI's settings."
            )
        if not _is_on(units[number]):
            raise Refusal(f"ControlNet unit {number} is switched off: enable it, or leave it out of controlnet_units.")


def find_units(p: Any) -> list[int]:
    """The places of the units among `p.script_args`, by the units' numbers; none without a ControlNet."""
    for script in p.scripts.alwayson_scripts:
        if script.title().casefold() == TITLE:
            places = range(script.args_from, script.args_to)
            return [place for place in places if _is_unit(p.script_args[place])]
    return []


def use(p: Any, args: MutableSequence[Any], wanted: Collection[int]) -> None:
    """Put copies of the units into `args`, with those that aren't wanted switched off; the user's stay as they are."""
    for number, place in enumerate(find_units(p)):
        own = args[place] = copy(args[place])
        if number in wanted:
            continue
        if isinstance(own, dict):
            own["enabled"] = False
        else:
            own.enabled = False


def number_parameters(params: Mapping[str, Any], used: Collection[int]) -> dict[str, Any]:
    """What ControlNet wrote into an infotext, by the numbers that the units have on the page.

    It counts only those that took part, and pasting looks for the page's numbers.
    """
    numbers = dict(enumerate(sorted(used)))
    found = {name: PARAMETER.fullmatch(name) for name in params}
    return {
        f"ControlNet {numbers[int(match[1])]}": params[name]
        for name, match in found.items()
        if match and int(match[1]) in numbers
    }


def _is_unit(value: Any) -> bool:
    return isinstance(value, dict) or hasattr(value, "enabled")


def _is_on(unit: Any) -> bool:
    """Where a dictionary is silent about that, the WebUI decides."""
    return bool(unit.get("enabled", True) if isinstance(unit, dict) else unit.enabled)
