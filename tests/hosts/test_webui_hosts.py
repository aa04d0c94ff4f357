"""Adapters of the WebUIs on small doubles with the attributes that their loaded models have; and which one is taken."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lib_layerdiffusion.hosts import detect, find_capabilities, find_webui_version
from lib_layerdiffusion.hosts.a1111 import A1111Host
from lib_layerdiffusion.hosts.forge import ForgeHost
from lib_layerdiffusion.hosts.ldm_patched import LdmPatchedHost
from lib_layerdiffusion.modes import MODES
from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.weights import WeightStore

SCALE = 0.18215


class Vae(nn.Module):
    """Encodes to the moments of each 8x8 square's mean, decodes to its colours."""

    def __init__(self) -> None:
        super().__init__()
        self.quant_conv = nn.Conv2d(3, 8, 1)
        nn.init.zeros_(self.quant_conv.weight)
        nn.init.zeros_(self.quant_conv.bias)
        with torch.no_grad():
            self.quant_conv.weight[:3, :, 0, 0] = torch.eye(3)

    def process_in(self, latents: torch.Tensor) -> torch.Tensor:
        return latents * SCALE

    def sample(self, pixels: torch.Tensor) -> torch.Tensor:
        """Draw from the posterior with the global random numbers, as all WebUIs do."""
        mean, log_variance = self.quant_conv(nn.functional.avg_pool2d(pixels, 8)).chunk(2, dim=1)
        return mean + (0.5 * log_variance).exp() * torch.randn_like(mean)

    def picture(self, latents: torch.Tensor) -> torch.Tensor:
        return nn.functional.interpolate(latents[:, :3], scale_factor=8)


class PatchedVae:
    """The VAE as Forge and its descendants wrap it: channels last, 0..1."""

    def __init__(self) -> None:
        self.first_stage_model = Vae()

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.first_stage_model.sample(pixels.movedim(-1, 1) * 2 - 1)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return (self.first_stage_model.picture(latents) * 0.5 + 0.5).movedim(1, -1)


class Patcher:
    def __init__(self, unet: nn.Module) -> None:
        latent_format = SimpleNamespace(process_in=lambda latents: latents * SCALE)
        self.model = SimpleNamespace(diffusion_model=unet, latent_format=latent_format)
        self.extra_preserved_memory_during_sampling = 5

    def add_extra_preserved_memory_during_sampling(self, size: int) -> None:
        self.extra_preserved_memory_during_sampling += size


def make_unet(channels: int = 4, width: int = 320) -> nn.Module:
    unet = nn.Module()
    unet.input_blocks = nn.ModuleList([nn.Sequential(nn.Conv2d(channels, width, 3))])
    return unet


def forge_model(channels: int = 4, width: int = 320) -> Any:
    objects = SimpleNamespace(unet=Patcher(make_unet(channels, width)), vae=PatchedVae())
    return SimpleNamespace(forge_objects=objects, is_sd1=True, is_sdxl=False)


def a1111_model(channels: int = 4, width: int = 320) -> Any:
    vae = Vae()
    return SimpleNamespace(
        first_stage_model=vae,
        model=SimpleNamespace(diffusion_model=make_unet(channels, width)),
        scale_factor=SCALE,
        is_sd1=True,
        is_sdxl=False,
        encode_first_stage=vae.sample,
        get_first_stage_encoding=lambda latents: latents * SCALE,
        decode_first_stage=lambda latents: vae.picture(latents / SCALE),
    )


HOSTS: dict[type[Any], Callable[..., Any]] = {
    ForgeHost: forge_model,
    LdmPatchedHost: forge_model,
    A1111Host: a1111_model,
}


@pytest.fixture(autouse=True)
def webui(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The WebUIs' modules that adapters import, and a record of what was asked of them."""
    asked = SimpleNamespace(freed=[])

    def add(name: str, **contents: Any) -> None:
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)

    memory = {
        "get_torch_device": lambda: "cpu",
        "free_memory": lambda size, device: asked.freed.append(size),
        "get_free_memory": lambda device: 123.0 if device == torch.device("cpu") else 0,
    }
    for package in ("backend", "ldm_patched", "ldm_patched.modules", "modules"):
        add(package)
    add("backend.memory_management", **memory)
    add("ldm_patched.modules.model_management", **memory)
    devices = {
        "device": torch.device("cpu"),
        "dtype": torch.float16,
        "torch_gc": lambda: None,
        "without_autocast": nullcontext,
    }
    add("modules.devices", **devices)
    add("modules.lowvram", is_enabled=lambda model: False)
    add("modules.sd_unet", current_unet=None)
    for parent, child in (("backend", "memory_management"), ("ldm_patched.modules", "model_management")):
        setattr(sys.modules[parent], child, sys.modules[f"{parent}.{child}"])
    for child in ("devices", "lowvram", "sd_unet"):
        setattr(sys.modules["modules"], child, sys.modules[f"modules.{child}"])
    return asked


@pytest.fixture(params=list(HOSTS), ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest) -> type[Any]:
    return request.param


def test_what_a_loaded_model_tells(kind):
    host = kind(HOSTS[kind](channels=9))
    assert (host.family, host.unet_channels) == ("sd15", 9)
    assert host.scaling_factor == pytest.approx(SCALE)
    assert host.percent_to_timestep(0.0) > host.percent_to_timestep(1.0) == 0
    assert host.parameter_name("input_blocks.0.0.weight") == "input_blocks.0.0.weight"


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_the_published_files_fit_the_published_width(kind, family, tmp_path):
    model, store = HOSTS[kind](), WeightStore([tmp_path])
    model.is_sd1, model.is_sdxl = family == "sd15", family == "sdxl"
    assert {kind(model).why_not(mode.name, store) for mode in MODES} == {""}


def test_a_file_that_can_not_fit_is_told_before_any_download(kind, embedded_model, tmp_path):
    """The embedded model's UNet is narrower, and of its files only that of the foreground mode is there."""
    (tmp_path / "own").mkdir()
    shutil.copy(embedded_model / "layer_model" / "layer_sd15_transparent_attn.safetensors", tmp_path / "own")
    own = WeightStore([tmp_path / "own"])
    width = own.unet_width("layer_sd15_transparent_attn")
    narrow, ordinary = kind(HOSTS[kind](width=width)), kind(HOSTS[kind]())
    assert width != 320
    assert narrow.why_not("foreground", own) == ""
    for mode, file in (
        ("together", "joint"),
        ("foreground_to_background", "fg2bg"),
        ("background_to_foreground", "bg2fg"),
    ):
        assert narrow.why_not(mode, own) == (
            f"The file layer_sd15_{file} is made for a UNet of 320 channels, and this checkpoint's has {width}: "
            "load an ordinary SD1.5 checkpoint, or choose foreground."
        )
        assert ordinary.why_not(mode, own) == ""
    nothing = WeightStore([tmp_path], tmp_path)
    assert narrow.why_not("foreground", nothing).endswith(f"has {width}: load an ordinary SD1.5 checkpoint.")
    wrong = ordinary.why_not("foreground", own)
    assert f"made for a UNet of {width} channels, and this checkpoint's has 320" in wrong

    damaged = tmp_path / "layer_sd15_joint.safetensors"
    damaged.write_bytes(b"not weights")
    assert narrow.why_not("together", nothing) == "", "the damage is told when the file is checked"


def test_encoding_gives_the_mean_and_draws_no_random_numbers(kind):
    host = kind(HOSTS[kind]())
    pixels = torch.rand(2, 3, 16, 24) * 2 - 1
    before = torch.get_rng_state()
    latents = host.encode(pixels)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.allclose(latents[:, :3], nn.functional.avg_pool2d(pixels, 8), atol=1e-5)


def test_decoding_gives_pixels_from_0_to_1(kind):
    host = kind(HOSTS[kind]())
    latents = torch.rand(2, 4, 2, 3) * 2 - 1
    pixels = host.decode(latents)
    assert pixels.shape == (2, 3, 16, 24)
    assert torch.allclose(pixels[:, :, ::8, ::8], latents[:, :3] * 0.5 + 0.5, atol=1e-5)


def test_a_network_is_brought_back_from_the_device_after_an_exception(kind):
    network = nn.Linear(4, 4)
    with pytest.raises(KeyError), kind(HOSTS[kind]()).on_device(network) as device:
        assert device == torch.device("cpu")
        raise KeyError
    assert network.weight.device.type == "cpu"


@pytest.mark.parametrize("kind", [ForgeHost, LdmPatchedHost])
def test_room_is_made_and_kept_free_only_for_a_while(kind, webui):
    model = forge_model()
    host = kind(model)
    for room, wanted in ((0, 2 * 4 * (16 + 4)), (1000, 4 * (16 + 4) + 1000)):
        webui.freed.clear()
        with host.on_device(nn.Linear(4, 4), room):
            assert webui.freed == [wanted]
    assert host.free_memory() == 123
    with pytest.raises(KeyError), host.reserve(100):
        assert model.forge_objects.unet.extra_preserved_memory_during_sampling == 105
        raise KeyError
    assert model.forge_objects.unet.extra_preserved_memory_during_sampling == 5


def test_what_the_unet_computes_in_and_where(monkeypatch):
    """Not what its weights are stored in: that may be float8, or float16 with --precision=full."""
    devices, model = sys.modules["modules.devices"], forge_model()
    a1111, forge, patched = A1111Host(a1111_model()), ForgeHost(model), LdmPatchedHost(model)
    assert {host.device for host in (a1111, forge, patched)} == {torch.device("cpu")}
    assert a1111.precision == torch.float16
    monkeypatch.setattr(devices, "dtype_inference", torch.float32, raising=False)
    assert a1111.precision == torch.float32
    network = model.forge_objects.unet.model
    network.computation_dtype = torch.bfloat16
    assert forge.precision == torch.bfloat16
    network.manual_cast_dtype, network.get_dtype = None, lambda: torch.float16
    assert patched.precision == torch.float16
    network.manual_cast_dtype = torch.float32
    assert patched.precision == torch.float32


@pytest.mark.parametrize("kind", list(HOSTS))
def test_no_model_is_refused(kind):
    with pytest.raises(Refusal, match="No checkpoint is loaded"):
        kind(None)


def test_automatic1111_with_another_unet_is_refused():
    sys.modules["modules.sd_unet"].current_unet = object()
    with pytest.raises(Refusal, match='"SD Unet" to "None"'):
        A1111Host(a1111_model())


# -- which WebUI it is


@pytest.fixture
def has(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that modules are there."""
    monkeypatch.setitem(sys.modules, "modules.shared", ModuleType("modules.shared"))

    def pretend(*names: str, hook: bool = True) -> None:
        for name in names:
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        scripts = ModuleType("modules.scripts")
        scripts.Script = type("Script", (), {"process_before_every_sampling": None} if hook else {})
        monkeypatch.setitem(sys.modules, "modules.scripts", scripts)

    return pretend


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (("backend.patcher.base", "modules_forge", "modules.sd_hijack"), ForgeHost),
        (("ldm_patched.modules.model_patcher", "modules_forge", "modules.sd_hijack"), LdmPatchedHost),
        (("modules.sd_hijack",), A1111Host),
    ],
)
def test_a_webui_is_known_by_what_it_has(has, names, wanted):
    has(*names)
    assert detect() is wanted


LAYOUTS: dict[str, tuple[list[str], type[Any]]] = {
    "Forge": (["backend/patcher/base.py", "modules_forge/main_entry.py"], ForgeHost),
    "Forge Neo": (["backend/patcher/base.py", "modules_forge/packages/comfy/lora.py"], ForgeHost),
    "Forge, tag previous": (["ldm_patched/modules/model_patcher.py", "modules_forge/unet_patcher.py"], LdmPatchedHost),
    "Forge Classic": (["ldm_patched/modules/model_patcher.py", "modules_forge/ops.py"], LdmPatchedHost),
    "reForge": (["ldm_patched/modules/weight_adapter/base.py", "ldm_patched/modules/model_patcher.py"], LdmPatchedHost),
    "AUTOMATIC1111": ([], A1111Host),
}


@pytest.mark.parametrize(("files", "wanted"), LAYOUTS.values(), ids=LAYOUTS)
def test_a_webui_is_known_by_its_files(tmp_path, monkeypatch, has, files, wanted):
    """All of them have the modules of AUTOMATIC1111, from which they come; only few of any are imported by then."""
    for name in [*files, "modules/sd_hijack.py", "modules/sd_unet.py"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in [name for name in sys.modules if name.split(".")[0] in ("backend", "ldm_patched")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    has()
    monkeypatch.setattr(sys.modules["modules"], "__path__", [str(tmp_path / "modules")], raising=False)
    known = set(sys.modules)
    try:
        assert detect() is wanted
    finally:
        for name in set(sys.modules) - known:
            del sys.modules[name]


def test_automatic1111_without_the_hook_is_refused(has):
    has("modules.sd_hijack", hook=False)
    with pytest.raises(Refusal, match=r"update AUTOMATIC1111 to 1\.10"):
        detect()


@pytest.mark.parametrize("names", [(), ("modules.sd_hijack", "modules.scripts_manager")])
def test_an_unknown_webui_is_refused_with_those_that_are_known(has, names):
    has(*names)
    with pytest.raises(Refusal, match="reForge"):
        detect()


# -- for a report


def test_what_detection_goes_by_is_listed(has):
    has("modules.sd_hijack", "modules_forge", hook=False)
    assert find_capabilities() == ["modules.sd_hijack", "modules_forge"]
    has("backend.patcher.base")
    assert find_capabilities() == [
        "backend.patcher.base",
        "modules.sd_hijack",
        "modules_forge",
        "process_before_every_sampling",
    ]


def test_a_webui_that_has_nothing_has_no_capabilities(monkeypatch):
    monkeypatch.delitem(sys.modules, "modules.scripts", raising=False)
    assert find_capabilities() == []


@pytest.mark.parametrize(
    ("contents", "version"),
    [
        ({"git_tag": lambda: "v1.10.1", "commit_hash": lambda: "82a973c0"}, "v1.10.1 82a973c0"),
        ({"git_tag": lambda: "classic 1.6"}, "classic 1.6"),
        ({}, "unknown"),
    ],
)
def test_the_webui_s_version_is_what_it_calls_it(monkeypatch, contents, version):
    launcher = ModuleType("modules.launch_utils")
    vars(launcher).update(contents)
    monkeypatch.setitem(sys.modules, "modules.launch_utils", launcher)
    assert find_webui_version() == version


def test_without_a_launcher_the_version_is_unknown(monkeypatch):
    monkeypatch.delitem(sys.modules, "modules.launch_utils", raising=False)
    assert find_webui_version() == "unknown"
