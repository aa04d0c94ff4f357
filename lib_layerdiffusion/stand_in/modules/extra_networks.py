"""Tags in prompts, such as `<lora:name:1>`, that activate what was registered for them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from . import errors

TAG = re.compile(r"<(\w+):([^>]+)>")


class ExtraNetworkParams:
    """A tag's arguments."""

    def __init__(self, items: list[str] | None = None) -> None:
        self.items = items or []
        self.positional = [item for item in self.items if "=" not in item]
        self.named = dict(item.split("=", 1) for item in self.items if "=" in item)


class ExtraNetwork:
    """What a tag's name stands for; extensions derive from it and register an instance."""

    def __init__(self, name: str) -> None:
        self.name = name

    def activate(self, p: Any, params_list: list[ExtraNetworkParams]) -> None:
        raise NotImplementedError

    def deactivate(self, p: Any) -> None:
        raise NotImplementedError


extra_network_registry: dict[str, ExtraNetwork] = {}
NetworkData = dict[str, list[ExtraNetworkParams]]


def register_extra_network(extra_network: ExtraNetwork) -> None:
    extra_network_registry[extra_network.name] = extra_network


def parse_prompt(prompt: str) -> tuple[str, NetworkData]:
    """A prompt without its tags, and what the tags say."""
    found: NetworkData = defaultdict(list)
    for name, arguments in TAG.findall(prompt):
        found[name].append(ExtraNetworkParams(arguments.split(":")))
    return TAG.sub("", prompt), found


def parse_prompts(prompts: Iterable[str]) -> tuple[list[str], NetworkData]:
    """All prompts without their tags; only the first one's tags count, since a batch has one model."""
    parsed = [parse_prompt(prompt) for prompt in prompts]
    return [text for text, _ in parsed], parsed[0][1] if parsed else {}


def activate(p: Any, extra_network_data: NetworkData | None) -> None:
    """Activate every registered network, those without a tag with no arguments."""
    for name, network in extra_network_registry.items():
        given = (extra_network_data or {}).get(name, [])
        errors.attempt(f"activating extra network {name}", network.activate, p, given)
    if p.scripts is not None:
        p.scripts.after_extra_networks_activate(
            p,
            batch_number=p.iteration,
            prompts=p.prompts,
            seeds=p.seeds,
            subseeds=p.subseeds,
            extra_network_data=extra_network_data,
        )


def deactivate(p: Any, extra_network_data: NetworkData | None) -> None:
    for name, network in extra_network_registry.items():
        errors.attempt(f"deactivating extra network {name}", network.deactivate, p)
