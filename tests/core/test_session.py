"""A Session in a host of a few lines: without diffusers, it injects only around sampling, and always undoes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lib_layerdiffusion.options import LayerOptions
from lib_layerdiffusion.planning import Facts, Plan, plan
from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.session import Session
from lib_layerdiffusion.transparent_vae import Cancelled, TransparentDecoder, TransparentEncoder
from lib_layerdiffusion.weights import WeightStore
from tests import seeded

FIRST_CONV = "input_blocks.0.0"


class SmallUnet(nn.Module):
    """A UNet of one convolution, in the LDM layout."""

    def __init__(self) -> None:
        super().__init__()
        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1)])])

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        return self.get_submodule(FIRST_CONV)(x)


class SmallHost:
    """The Host protocol, as a WebUI with LDM names would fulfil it."""

    name, family, scaling_factor = "a small host", "sdxl", 0.5
    device, precision = torch.device("cpu"), torch.float32

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.unet = SmallUnet()
        self.unet_channels = 4
        self.vae = nn.ModuleDict({"quant_conv": nn.Conv2d(8, 8, 1)})
        self.held: list[nn.Module] = []

    def parameter_name(self, ldm_name: str) -> str | None:
        return ldm_name

    def percent_to_timestep(self, fraction: float) -> float:
        return (1 - fraction) * 999

    def encode(self, pixels: Tensor) -> Tensor:
        return pixels.mean(dim=1, keepdim=True)[..., ::8, ::8].repeat(1, 4, 1, 1)

    def decode(self, latents: Tensor) -> Tensor:
        return latents[:, :3].repeat_interleave(8, dim=2).repeat_interleave(8, dim=3).sigmoid()

    @contextmanager
    def on_device(self, network: nn.Module, room: int = 0) -> Iterator[torch.device]:
        self.held.append(network)
        yield torch.device("cpu")

    def sample(self, latents: Tensor, timestep: float = 500.0) -> Tensor:
        return self.unet(latents, torch.tensor([timestep]))


@pytest.fixture
def host() -> SmallHost:
    return SmallHost()


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> WeightStore:
    folder = tmp_path_factory.mktemp("layer_model")
    for name, channels in (("layer_xl_transparent_conv", 4), ("layer_xl_fg2ble", 8)):
        key = f"diffusion_model.{FIRST_CONV}.weight::diff::0"
        save_file(seeded.state_dict({key: (4, channels, 3, 3)}, 1), folder / f"{name}.safetensors")
    decoder = seeded.fill(TransparentDecoder(widths=(8,) * 7), 1, gain=2)
    save_file(decoder.state_dict(), folder / "vae_transparent_decoder.safetensors")
    encoder = seeded.fill(TransparentEncoder(widths=(8, 8, 8, 8)), 2, gain=2)
    save_file(encoder.state_dict(), folder / "vae_transparent_encoder.safetensors")
    return WeightStore([folder])


def make_plan(mode: str = "foreground_conv", size: tuple[int, int] = (64, 64), batch: int = 1, **options: Any) -> Plan:
    given = LayerOptions.from_dict({"mode": mode, "views": 1, **options})
    return plan(given, Facts("sdxl", *size, batch=batch))


def forwards(host: SmallHost) -> list[Any]:
    """All that an injection can leave on the model."""
    return [
        (list(m._forward_hooks), list(m._forward_pre_hooks), sorted(m.__dict__))
        for m in (*host.unet.modules(), *host.vae.modules())
    ]


@pytest.mark.slow
def test_the_package_imports_nothing_and_the_core_no_host() -> None:
    code = """if True:
        import sys, lib_layerdiffusion
        print("torch" in sys.modules, hasattr(lib_layerdiffusion, "absent"))
        import lib_layerdiffusion.session
        print("diffusers" in sys.modules, "transformers" in sys.modules)
    """
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["False"] * 4


def test_the_model_is_changed_inside_sampling_only(host: SmallHost, store: WeightStore) -> None:
    x = torch.randn(1, 4, 8, 8)
    plain, before = host.sample(x), forwards(host)
    with Session(host, store) as session:
        session.open(make_plan())
        assert forwards(host) == before
        with session.sampling():
            assert not torch.allclose(host.sample(x), plain)
        assert torch.equal(host.sample(x), plain)
        with session.sampling():  # a second pass, as for hires fix
            assert not torch.allclose(host.sample(x), plain)
    assert forwards(host) == before
    assert torch.equal(host.sample(x), plain)


def test_an_exception_in_sampling_undoes_everything(host: SmallHost, store: WeightStore) -> None:
    before = forwards(host)
    with Session(host, store) as session:
        session.open(make_plan(stop_at=0.5))
        with pytest.raises(KeyboardInterrupt), session.sampling():
            raise KeyboardInterrupt
        assert forwards(host) == before


def test_close_in_the_middle_of_sampling_undoes_everything_and_may_come_twice(
    host: SmallHost, store: WeightStore
) -> None:
    before = forwards(host)
    session = Session(host, store)
    session.open(make_plan(stop_at=0.5))
    sampling = session.sampling()
    sampling.__enter__()
    assert forwards(host) != before
    session.close()
    assert forwards(host) == before
    session.close()
    sampling.__exit__(None, None, None)
    assert forwards(host) == before


def test_sampling_again_replaces_an_injection_that_nobody_left(host: SmallHost, store: WeightStore) -> None:
    x = torch.randn(1, 4, 8, 8)
    session = Session(host, store)
    session.open(make_plan())
    lost = session.sampling()
    lost.__enter__()
    once = host.sample(x)
    with session.sampling():
        assert torch.equal(host.sample(x), once)
    session.close()


def test_start_at_and_stop_at_bound_the_effect(host: SmallHost, store: WeightStore) -> None:
    x = torch.randn(1, 4, 8, 8)
    plain = host.sample(x)
    changes = {}
    with Session(host, store) as session:
        session.open(make_plan(start_at=0.2, stop_at=0.6))
        with session.sampling():
            for timestep in (999.0, 850.0, 750.0, 450.0, 350.0, 0.0):
                changes[timestep] = not torch.equal(host.sample(x, timestep), plain)
    assert changes == {999.0: False, 850.0: False, 750.0: True, 450.0: True, 350.0: False, 0.0: False}


def test_conditions_reach_the_unet_at_the_sampled_size(host: SmallHost, store: WeightStore) -> None:
    """The side path of the enlarged first conv sees the encoded condition; an odd size is continued at its edge."""
    image = np.random.default_rng(0).integers(0, 256, (101, 70, 4), dtype=np.uint8)
    delta = store.load("layer_xl_fg2ble")[f"diffusion_model.{FIRST_CONV}.weight::diff::0"]
    plan_ = make_plan("foreground_to_blend", (70, 101), foreground_image=image)
    x = torch.zeros(2, 4, 13, 9)
    plain = host.sample(x)
    with Session(host, store) as session:
        session.open(plan_, {"foreground": image})
        with session.sampling():
            change = host.sample(x) - plain
    padded = np.pad(image, ((0, 3), (0, 2), (0, 0)), mode="edge").astype(np.float32) / 255
    grey = (padded[..., :3] * 2 - 1) * padded[..., 3:]
    condition = host.encode(torch.from_numpy(grey.transpose(2, 0, 1)[None])) * host.scaling_factor
    expected = nn.functional.conv2d(condition, delta[:, 4:], padding=1)
    torch.testing.assert_close(change, expected.expand_as(change), rtol=1e-4, atol=1e-5)


def test_each_set_is_decoded_from_its_own_latents(host: SmallHost, store: WeightStore) -> None:
    latents = torch.randn(3, 4, 8, 8)
    with Session(host, store) as session:
        session.open(make_plan(batch=3))
        session.collect(latents)
        together = session.decode()
        for index, images in enumerate(together):
            session.open(make_plan())
            session.collect(latents[index : index + 1])
            assert np.array_equal(session.decode()[0]["foreground"], images["foreground"])
    assert len({images["foreground"].tobytes() for images in together}) == 3


def test_pixels_that_the_host_decoded_are_used_and_latents_are_in_vae_space(
    host: SmallHost, store: WeightStore
) -> None:
    latents, pixels = torch.randn(1, 4, 8, 8), torch.rand(1, 3, 64, 64)
    with Session(host, store) as session:
        session.open(make_plan())
        session.collect(latents)
        image = session.decode(pixels)[0]["foreground"]
    decoder = TransparentDecoder.from_state_dict(store.load("vae_transparent_decoder"))
    expected = decoder.decode(pixels, latents / host.scaling_factor, views=1)[0] * 255
    assert np.abs(image.astype(float) - expected[[1, 2, 3, 0]].permute(1, 2, 0).numpy()).max() <= 0.501


def test_networks_are_kept_for_the_next_batch_and_dropped_at_close(host: SmallHost, store: WeightStore) -> None:
    session = Session(host, store)
    for _ in range(2):
        session.open(make_plan())
        session.collect(torch.randn(1, 4, 8, 8))
        session.decode()
    assert host.held[0] is host.held[1]
    session.close()
    session.open(make_plan())
    session.collect(torch.randn(1, 4, 8, 8))
    session.decode()
    assert host.held[2] is not host.held[0]


def test_progress_covers_all_images_and_cancels(host: SmallHost, store: WeightStore) -> None:
    seen: list[tuple[int, int]] = []
    with Session(host, store) as session:
        session.open(make_plan(batch=2, views=2))
        session.collect(torch.randn(2, 4, 8, 8))
        session.decode(progress=lambda done, total: seen.append((done, total)))
        assert seen == sorted(seen)
        assert (seen[-1], {total for _, total in seen}) == ((4, 4), {4})
        with pytest.raises(Cancelled):
            session.decode(progress=lambda done, total: done < 3)


SHORT = [  # what torch raises with CUDA, with MPS and with DirectML
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("MPS backend out of memory (MPS allocated: 5.05 GB, max allowed: 6.80 GB)."),
    RuntimeError("Could not allocate tensor with 8 bytes. There is not enough GPU video memory available!"),
]


def run_short_of_memory(monkeypatch: pytest.MonkeyPatch, failures: int, error: Exception) -> list[int | None]:
    """Let the first so many calls of the decoder fail as a full GPU does; yields the tile sizes that are asked for."""
    decode, asked = TransparentDecoder.decode, []

    def run(self: TransparentDecoder, *args: Any, max_pixels: int | None = None, **options: Any) -> Tensor:
        asked.append(max_pixels)
        if len(asked) <= failures:
            raise error
        return decode(self, *args, max_pixels=max_pixels, **options)

    monkeypatch.setattr(TransparentDecoder, "decode", run)
    return asked


@pytest.mark.parametrize("error", SHORT, ids=["cuda", "mps", "directml"])
@pytest.mark.parametrize("failures", [1, 2])
def test_decoding_goes_on_where_memory_is_short(
    host: SmallHost, store: WeightStore, monkeypatch: pytest.MonkeyPatch, failures: int, error: Exception
) -> None:
    with Session(host, store) as session:
        session.open(make_plan())
        session.collect(torch.randn(1, 4, 8, 8))
        (whole,) = session.decode()
        asked = run_short_of_memory(monkeypatch, failures, error)
        (later,) = session.decode()
    assert asked == [None, *[512 * 512] * failures]
    assert np.array_equal(later["foreground"], whole["foreground"])  # one tile is enough for this size
    assert len(host.held) == 2


def test_decoding_says_when_there_is_no_memory_at_all(
    host: SmallHost, store: WeightStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_short_of_memory(monkeypatch, 3, SHORT[0])
    with Session(host, store) as session:
        session.open(make_plan())
        session.collect(torch.randn(1, 4, 8, 8))
        with pytest.raises(Refusal, match="image smaller"):
            session.decode()


def test_another_error_while_decoding_is_no_lack_of_memory(
    host: SmallHost, store: WeightStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = run_short_of_memory(monkeypatch, 3, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with Session(host, store) as session:
        session.open(make_plan())
        session.collect(torch.randn(1, 4, 8, 8))
        with pytest.raises(RuntimeError, match="mat1"):
            session.decode()
    assert asked == [None]


class ReservingHost(SmallHost):
    """A host that manages memory."""

    reserved = 0

    @contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        self.reserved += size
        yield
        self.reserved -= size


def test_memory_is_reserved_during_sampling(store: WeightStore) -> None:
    host = ReservingHost()
    with Session(host, store) as session:
        session.open(make_plan())
        assert host.reserved == 0
        with session.sampling():
            assert host.reserved == 4 * 4 * 4 * 9
        assert host.reserved == 0


def test_what_is_reserved_is_what_the_host_computes_in(store: WeightStore) -> None:
    host = ReservingHost()
    host.precision = torch.float16
    with Session(host, store) as session:
        session.open(make_plan())
        with session.sampling():
            assert host.reserved == 2 * 4 * 4 * 9


def test_a_change_of_the_hosts_precision_is_followed(host: SmallHost, store: WeightStore) -> None:
    """Between jobs on one store, between batches of a session, and between opening and sampling."""
    x, made = torch.randn(1, 4, 8, 8), []
    plain = host.sample(x)
    for precisions in ((torch.float32, torch.bfloat16, torch.float32), (torch.bfloat16,)):
        with Session(host, store) as session:
            for host.precision in precisions:
                session.open(make_plan())
                with session.sampling():
                    made.append(host.sample(x))
            host.precision = torch.float32
            with session.sampling():
                made.append(host.sample(x))
    delta = store.load("layer_xl_transparent_conv")[f"diffusion_model.{FIRST_CONV}.weight::diff::0"]
    single, half = (plain + nn.functional.conv2d(x, d, padding=1) for d in (delta, delta.bfloat16().float()))
    assert not torch.allclose(single, half, atol=1e-4)
    for image, wanted in zip(made, (single, half, single, single, half, single), strict=True):
        assert torch.allclose(image, wanted, atol=1e-6)


def test_on_a_gpu_in_half_precision_the_decoder_computes_in_it_if_it_can(host: SmallHost, store: WeightStore) -> None:
    """These random weights overflow float16."""
    images = []
    with Session(host, store) as session:
        for host.device in (torch.device("cpu"), torch.device("meta")):  # which stands for a GPU
            host.precision = torch.bfloat16
            session.open(make_plan(views=2))
            session.collect(torch.ones(1, 4, 8, 8))
            images.append(session.decode()[0]["foreground"])
    held = [next(network.parameters()).dtype for network in host.held]
    assert held == [torch.float32, torch.float16, torch.float32]
    assert np.array_equal(*images)


def encode(host: SmallHost, moments: Tensor) -> Tensor:
    """What the host's VAE makes of a batch without drawing: mean and log variance after quant_conv."""
    return host.vae["quant_conv"](moments)


def open_for_encoding(session: Session, size: tuple[int, int] = (64, 64)) -> None:
    given = LayerOptions(mode="foreground_conv")
    session.open(plan(given, Facts("sdxl", *size, batch=2, transparent_input=True)))


def draw_rgba(seed: int, size: tuple[int, int] = (64, 64)) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (*size[::-1], 4), np.uint8)


@torch.inference_mode()
def test_each_image_of_a_batch_is_encoded_with_its_own_transparency(host: SmallHost, store: WeightStore) -> None:
    images, moments = [draw_rgba(1), draw_rgba(2)], torch.randn(4, 8, 8, 8)
    plain = encode(host, moments)
    with Session(host, store) as session:
        open_for_encoding(session)
        wanted = []
        for image, row in zip(images, moments.split(1), strict=False):
            with session.encoding(image):
                wanted.append(encode(host, row))
        with session.encoding_batch(lambda: images):
            singly = [encode(host, row) for row in moments.split(1)]  # as Forge does
        with session.encoding_batch(lambda: images):
            at_once = encode(host, moments)  # as AUTOMATIC1111 does
    assert torch.allclose(torch.cat(singly), at_once, atol=1e-6)
    assert torch.allclose(at_once[:2], torch.cat(wanted), atol=1e-6)
    assert not torch.allclose(at_once[0, :4], at_once[2, :4])  # same offset, another latent
    offset = (at_once[:, :4] - plain[:, :4]) / (0.5 * plain[:, 4:]).exp()
    assert torch.allclose(offset[:2], offset[2:], rtol=1e-3, atol=1e-3)  # repeated for the second set
    assert not torch.allclose(offset[0], offset[1])
    assert torch.equal(encode(host, moments), plain)


@torch.inference_mode()
def test_images_that_cannot_carry_transparency_are_refused(host: SmallHost, store: WeightStore) -> None:
    with Session(host, store) as session:
        open_for_encoding(session)
        with pytest.raises(Refusal, match="Tiled VAE"), session.encoding_batch(lambda: [draw_rgba(1)]):
            encode(host, torch.randn(1, 8, 4, 4))
        with pytest.raises(Refusal, match='"Full"'), session.encoding_batch(lambda: [draw_rgba(1)]):
            pass  # a small approximation encoded, and not the VAE
    assert all(not module._forward_hooks for module in host.vae.modules())


def test_a_plan_without_the_modes_file_decodes_only(host: SmallHost, store: WeightStore) -> None:
    given = make_plan()
    with Session(host, store) as session:
        session.open(replace(given, files=tuple(file for file in given.files if file == given.mode.decoder)))
        (image,) = session.decode_transparent(torch.randn(1, 4, 8, 8))
    assert image.shape == (64, 64, 4)


def test_fewer_views_can_be_asked_for(host: SmallHost, store: WeightStore) -> None:
    seen: list[tuple[int, int]] = []
    with Session(host, store) as session:
        session.open(make_plan(views=8))
        session.collect(torch.randn(1, 4, 8, 8))
        session.decode(progress=lambda done, total: seen.append((done, total)), views=1)
    assert seen[-1] == (1, 1)


def test_wrong_order_and_unserved_requests(host: SmallHost, store: WeightStore, tmp_path: Path) -> None:
    session = Session(host, store)
    with pytest.raises(RuntimeError), session.sampling():
        pass
    session.open(make_plan())
    with pytest.raises(RuntimeError):
        session.decode()
    with pytest.raises(Refusal, match="transparent image"), session.encoding(np.zeros((64, 64, 4), np.uint8)):
        pass
    with pytest.raises(Refusal, match="float32"):
        session.collect(torch.full((1, 4, 8, 8), float("nan")))
    with pytest.raises(Refusal, match="vae_transparent_decoder"):
        Session(host, WeightStore([tmp_path])).open(_only(store, tmp_path))


def _only(store: WeightStore, folder: Path) -> Plan:
    """A plan of which only the first file is in `folder`."""
    given = make_plan()
    path = store.find(given.files[0])
    assert path is not None
    (folder / path.name).symlink_to(path)
    return given


def test_patches_that_do_not_fit_are_refused_at_open(host: SmallHost, store: WeightStore) -> None:
    before = forwards(host)
    host.unet.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(4, 8, 3)])])
    narrow = forwards(host)
    with pytest.raises(Refusal):
        Session(host, store).open(make_plan())
    assert forwards(host) == narrow == before
