"""Training of the transparent encoder and decoder against a frozen autoencoder."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor

from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.train import finetune, transparency
from lib_layerdiffusion.train.dataset import TransparentBatch, read_sprites
from lib_layerdiffusion.train.finetune import FinetuneConfig
from lib_layerdiffusion.train.harmlessness import adjust
from lib_layerdiffusion.train.loader import split
from lib_layerdiffusion.train.run import Average, Run
from lib_layerdiffusion.train.transparency import (
    Batches,
    LatentTransparency,
    TransparencyConfig,
    softness_loss,
    stray_loss,
    write_files,
)
from lib_layerdiffusion.transparent_vae import TransparentDecoder, TransparentEncoder
from tests.train.tiny import TINY_TRANSPARENCY

pytestmark = pytest.mark.slow

ENCODER = "layer_sd15_vae_transparent_encoder.safetensors"
DECODER = "layer_sd15_vae_transparent_decoder.safetensors"


@pytest.fixture
def raw(vae_folder: Path) -> LatentTransparency:
    torch.manual_seed(0)
    return LatentTransparency(TINY_TRANSPARENCY, AutoencoderKL.from_pretrained(vae_folder))


@pytest.fixture
def batch(archive: Path) -> TransparentBatch:
    sprites = [sprite for sprite in read_sprites(archive, 64) if sprite.split == "train"]
    return TransparentBatch.of([sprite.premultiplied for sprite in sprites[1:3]])


def terms(raw: LatentTransparency, batch: TransparentBatch, warmth: float = 1.0) -> dict[str, Tensor]:
    return raw(batch, torch.zeros(2, 4, 8, 8), torch.full((2, 3, 64, 64), 0.3), warmth, view=0)[0]


def losses(raw: LatentTransparency, batch: TransparentBatch) -> Tensor:
    return torch.stack(list(terms(raw, batch).values())).sum()


def test_files_have_the_published_keys_and_the_published_factor(
    raw: LatentTransparency, batch: TransparentBatch, tmp_path: Path
) -> None:
    write_files(raw, tmp_path, TINY_TRANSPARENCY)
    encoder = TransparentEncoder.from_state_dict(load_file(tmp_path / ENCODER))
    decoder = TransparentDecoder.from_state_dict(load_file(tmp_path / DECODER))
    with torch.no_grad():
        mean, adjusted = raw.adjust(batch)
        published_mean, published = adjust(raw.vae[0], encoder, batch)
        assert (adjusted - mean).abs().max() > 0.01
        assert torch.allclose(published - published_mean, adjusted - mean, rtol=1e-4, atol=1e-6)
        picture, output = raw.read(adjusted)
        assert torch.allclose(decoder(picture.clamp(0, 1), adjusted), output, rtol=1e-3, atol=1e-3)


def test_steps_reduce_the_loss_through_both_networks_and_leave_the_autoencoder(
    raw: LatentTransparency, batch: TransparentBatch
) -> None:
    vae = raw.vae[0]
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    optimizer = torch.optim.Adam(raw.parameters(), 3e-3)
    values: list[float] = []
    for _ in range(6):
        loss = losses(raw, batch)
        optimizer.zero_grad()
        loss.backward()
        values.append(loss.item())
        optimizer.step()
    assert values[-1] < 0.9 * values[0]
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in raw.encoder.parameters())
    assert raw.decoder.latent_conv_in.weight.grad.any()
    assert all(value.equal(before[name]) for name, value in vae.state_dict().items())
    assert not any(name.startswith("vae") for name in raw.state_dict())


@pytest.mark.parametrize("term", ["reconstruction", "identity", "guide"])
def test_weights_scale_their_terms(raw: LatentTransparency, batch: TransparentBatch, term: str) -> None:
    with torch.no_grad():
        once = terms(raw, batch)[term]
        weight = getattr(TINY_TRANSPARENCY, f"{term}_weight")
        raw.config = replace(TINY_TRANSPARENCY, **{f"{term}_weight": 3 * weight})
        assert once > 0
        assert torch.allclose(terms(raw, batch)[term], 3 * once)


def test_guide_wants_alpha_in_place_of_one_channels_content(raw: LatentTransparency, batch: TransparentBatch) -> None:
    config = raw.config
    mean, adjusted = torch.randn(2, 2, 4, 8, 8)
    kept = (1 - config.guide_erase) * mean[:, config.guide_channel]
    rows = config.guide_amplitude * (1 - 2 * F.avg_pool2d(batch.alpha, 8)[:, 0]) / raw.vae[0].config.scaling_factor
    adjusted[:, config.guide_channel] = kept + rows
    assert raw.guide(mean, adjusted, batch.alpha) < 1e-6
    adjusted[:, config.guide_channel] = kept - rows
    assert raw.guide(mean, adjusted, batch.alpha) > 0.1


def test_coarse_loss_is_the_error_of_the_heads_in_the_image_s_own_orientation(
    raw: LatentTransparency, batch: TransparentBatch
) -> None:
    with torch.no_grad():
        raw.read(torch.randn(2, 4, 8, 8))
        assert [features.shape[-1] for features in raw.coarse] == [16, 32]
        pooled = [F.avg_pool2d(batch.alpha, 64 // features.shape[-1]) for features in raw.coarse]
        for head in raw.coarse_heads:
            torch.nn.init.zeros_(head.weight)
            torch.nn.init.constant_(head.weight[:, 0], 1.0)
            torch.nn.init.zeros_(head.bias)
        for view in range(8):
            mirrored, quarters = divmod(view, 4)
            raw.coarse = [
                torch.rot90(small.flip(-1) if mirrored else small, quarters, (-2, -1)).expand(-1, 8, -1, -1)
                for small in pooled
            ]
            assert raw.coarse_loss(batch.alpha, view) < 1e-6
            assert raw.coarse_loss(1 - batch.alpha, view) > 0.1


def test_training_goes_on_from_a_decoder(raw: LatentTransparency, vae_folder: Path, tmp_path: Path) -> None:
    write_files(raw, tmp_path, TINY_TRANSPARENCY)
    other = LatentTransparency(TINY_TRANSPARENCY, AutoencoderKL.from_pretrained(vae_folder))
    fresh = other.decoder.latent_conv_in.weight.clone()
    other.start_from(None, tmp_path / DECODER)
    theirs = other.decoder.state_dict()
    different = {name for name, value in raw.decoder.state_dict().items() if not value.equal(theirs[name])}
    assert different == {"latent_conv_in.weight"}
    assert other.decoder.latent_conv_in.weight.equal(fresh)


def test_training_goes_on_from_both(
    raw: LatentTransparency, batch: TransparentBatch, vae_folder: Path, tmp_path: Path
) -> None:
    write_files(raw, tmp_path, TINY_TRANSPARENCY)
    other = LatentTransparency(TINY_TRANSPARENCY, AutoencoderKL.from_pretrained(vae_folder))
    other.start_from(tmp_path / ENCODER, tmp_path / DECODER)
    with torch.no_grad():
        for one, its in zip(raw.adjust(batch), other.adjust(batch), strict=True):
            assert torch.allclose(one, its, atol=1e-5)
    theirs = other.decoder.state_dict()
    assert all(value.equal(theirs[name]) for name, value in raw.decoder.state_dict().items())


def test_the_decoder_alone_learns_when_the_encoder_is_to_stay(
    raw: LatentTransparency, batch: TransparentBatch, vae_folder: Path
) -> None:
    config = replace(TINY_TRANSPARENCY, decoder_only=True)
    alone = LatentTransparency(config, AutoencoderKL.from_pretrained(vae_folder))
    alone.load_state_dict(raw.state_dict())
    both, one = terms(raw, batch), terms(alone, batch)
    assert both.keys() - one.keys() == {"identity", "guide"}
    assert one["reconstruction"].equal(both["reconstruction"])
    torch.stack(list(one.values())).sum().backward()
    assert all(value.grad is None for value in alone.encoder.parameters())
    assert alone.decoder.latent_conv_in.weight.grad is not None


def test_encoder_alone_has_the_guide_as_its_only_term(raw: LatentTransparency, batch: TransparentBatch) -> None:
    noise, backgrounds = torch.zeros(2, 4, 8, 8), torch.full((2, 3, 64, 64), 0.3)
    alone, _ = raw(batch, noise, backgrounds, warmth=0.0, view=None)
    assert list(alone) == ["guide"]
    assert alone["guide"].equal(terms(raw, batch)["guide"])


def test_identity_grows_with_the_warm_up(raw: LatentTransparency, batch: TransparentBatch) -> None:
    with torch.no_grad():
        cold, half, warm = (terms(raw, batch, warmth)["identity"] for warmth in (0.0, 0.5, 1.0))
    assert cold == 0
    assert torch.allclose(half, warm / 2)


def test_agreement_is_of_two_views_and_stray_alpha_of_sampled_latents(
    raw: LatentTransparency, batch: TransparentBatch
) -> None:
    agreeing = LatentTransparency(replace(TINY_TRANSPARENCY, agreement_weight=2.0, stray_weight=3.0), raw.vae[0])
    agreeing.load_state_dict(raw.state_dict())
    noise, backgrounds, sampled = torch.zeros(2, 4, 8, 8), torch.full((2, 3, 64, 64), 0.3), torch.randn(1, 4, 8, 8)
    made, _ = agreeing(batch, noise, backgrounds, warmth=1.0, view=0, sampled=sampled, other_view=3)
    with torch.no_grad():
        given = torch.cat([agreeing.adjust(batch)[1], sampled])
        one, other = (agreeing.read(given, view)[1][:, :1].clamp(0, 1) for view in (0, 3))
        unclipped = agreeing.read(given, 0)[1][2:, :1]
    assert torch.allclose(made.pop("agreement"), 2 * (one - other).abs().mean(), atol=1e-6)
    assert torch.allclose(made.pop("stray"), 3 * stray_loss(unclipped, TINY_TRANSPARENCY.alpha_margin), atol=1e-6)
    assert made.keys() == terms(raw, batch).keys()
    same, _ = agreeing(batch, noise, backgrounds, warmth=1.0, view=0, sampled=sampled, other_view=0)
    assert same["agreement"] == 0


def test_stray_alpha_is_what_lies_apart_from_all_that_is_visible() -> None:
    alpha = torch.zeros(1, 1, 32, 32)
    alpha[..., 10:14, 10:14] = 0.6  # the motif, with a faint rim and a fainter spot apart
    alpha[..., 14, 10:14] = 0.05
    alpha[..., 28, 28] = 0.08
    assert stray_loss(alpha, 0.0).item() == pytest.approx(0.08 / 32**2)
    alpha[..., 28, 28] = 0.3  # what can be seen isn't stray
    assert stray_loss(alpha, 0.0) == 0
    far = 32**2 - 12 * 12 - 8 * 8  # without the squares around motif and spot, which the border cuts off
    assert stray_loss(alpha, 0.2).item() == pytest.approx(0.2 * far / 32**2)


def test_the_other_view_is_another_one(archive: Path) -> None:
    batches = Batches.of(read_sprites(archive, 64), replace(TINY_TRANSPARENCY, size_steps=(40,)), 1.0)
    drawn = [batches.draw(step) for step in range(40)]
    assert all(each["view"] != each["other_view"] for each in drawn)
    assert {each["other_view"] for each in drawn} == set(range(8))


def test_views_are_turned_back(raw: LatentTransparency, monkeypatch: pytest.MonkeyPatch) -> None:
    latent = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        for view in range(8):
            monkeypatch.setattr(raw.decoder, "forward", lambda pixel, _: pixel)
            picture, output = raw.read(latent, view)
            assert output.equal(picture.clamp(0, 1))
            monkeypatch.setattr(raw.decoder, "forward", lambda _, latent: F.interpolate(latent, (64, 64)))
            assert raw.read(latent, view)[1].equal(F.interpolate(latent, (64, 64)))


def test_pairs_share_their_picture_and_differ_in_alpha(archive: Path) -> None:
    config = replace(TINY_TRANSPARENCY, fade_share=1.0, batches=(4,))
    batch = Batches.of(read_sprites(archive, 64), config, 1.0).draw(0)["batch"]
    assert batch.padded[0].equal(batch.padded[1])
    assert not batch.alpha[0].equal(batch.alpha[1])
    assert not batch.padded[1].equal(batch.padded[2])
    single = Batches.of(read_sprites(archive, 64), replace(config, pairs=False), 1.0).draw(0)["batch"]
    assert single.alpha.shape == (4, 1, 64, 64)
    assert not single.padded[0].equal(single.padded[1])


def test_evaluation_uses_the_average_and_puts_the_weights_back(
    raw: LatentTransparency, batch: TransparentBatch
) -> None:
    average = Average(raw, 0.9)
    wanted = transparency.evaluate(raw, average, batch, None)
    with torch.no_grad():
        for parameter in raw.parameters():
            parameter.add_(0.05)
    changed = {name: value.clone() for name, value in raw.state_dict().items()}
    found = transparency.evaluate(raw, average, batch, None)
    assert {name: float(value) for name, value in found.items() if value == value} == {
        name: float(value) for name, value in wanted.items() if value == value
    }
    assert all(value.equal(changed[name]) for name, value in raw.state_dict().items())


class Stopped(Exception):
    pass


def test_interrupted_training_ends_with_the_same_bits(
    archive: Path, vae_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(TINY_TRANSPARENCY, data=archive, autoencoder=vae_folder, encoder_steps=1, discriminator_from=0.5)
    transparency.train(config, tmp_path / "whole")
    keep = Run.checkpoint

    def keep_and_stop(run: Run) -> None:
        keep(run)
        raise Stopped

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Run, "checkpoint", keep_and_stop)
        transparency.train(config, tmp_path / "parts")
    transparency.train(replace(config, workers=2), tmp_path / "parts")  # which may be another number
    for name in (ENCODER, DECODER):
        assert (tmp_path / "parts" / "model" / name).read_bytes() == (tmp_path / "whole" / "model" / name).read_bytes()
    logs = [read_values(tmp_path / run / "log.csv") for run in ("whole", "parts")]
    assert logs[0] == logs[1]
    assert [row["matching"] == "0.0" for row in logs[0]] == [True, False]  # it starts at half of the steps


def read_values(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def test_data_without_splits_prompts_and_soft_images_can_be_trained_on(archive: Path) -> None:
    config = TransparencyConfig(sizes=(64,), size_steps=(1,), batches=(4,))
    plain = [replace(s, kind="opaque", split="train", prompt=False) for s in read_sprites(archive, 80)]
    assert Batches.of(plain, config, 1.0).draw(0)["batch"].alpha.shape == (4, 1, 64, 64)
    assert transparency.draw_check(plain, config).alpha.shape == (16, 1, 64, 64)


def test_alpha_aims_beyond_the_range_where_it_is_exact() -> None:
    output = torch.tensor([-0.5, -0.01, 0.3, 0.9, 1.01, 1.5], requires_grad=True)
    assert transparency.aim(output, torch.zeros(6), 0.02).tolist() == pytest.approx([-0.5, *[-0.02] * 5])
    assert transparency.aim(output, torch.ones(6), 0.02).tolist() == pytest.approx([*[1.02] * 5, 1.5])
    half = torch.full((6,), 0.5)
    assert transparency.aim(output, half, 0.02).equal(half)
    assert transparency.aim(output, torch.zeros(6), 0.0).equal(torch.zeros(6))
    assert not transparency.aim(output, torch.zeros(6), 0.02).requires_grad


def test_narrower_decoder_of_an_earlier_training_is_widened(
    raw: LatentTransparency, vae_folder: Path, tmp_path: Path
) -> None:
    write_files(raw, tmp_path, TINY_TRANSPARENCY)
    config = replace(TINY_TRANSPARENCY, decoder_widths=(16, *(8,) * 6))
    wider = LatentTransparency(config, AutoencoderKL.from_pretrained(vae_folder))
    wider.start_from(tmp_path / ENCODER, tmp_path / DECODER)
    first = wider.decoder.conv_in.weight
    assert first.shape[0] == 16
    assert torch.allclose(first[::2], raw.decoder.conv_in.weight, rtol=0.5, atol=0.05)


def test_likeness_is_to_the_frozen_decoders_picture_on_grey(
    raw: LatentTransparency, batch: TransparentBatch, vae_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(TINY_TRANSPARENCY, picture_weight=2.0, gradient_weight=0.0, laplacian_weight=0.0)
    seeing = LatentTransparency(config, AutoencoderKL.from_pretrained(vae_folder))
    picture = torch.rand(2, 3, 64, 64)
    for alpha, colour, wanted in ((1.0, picture, 0.0), (1.0, picture + 0.1, 0.2), (0.5, picture * 2 - 0.5, 0.0)):
        output = torch.cat([torch.full((2, 1, 64, 64), alpha), colour], dim=1)
        monkeypatch.setattr(seeing, "read", lambda latent, view, output=output: (picture, output))
        monkeypatch.setattr(seeing, "coarse_loss", lambda alpha, view: torch.zeros(()))
        assert terms(seeing, batch)["likeness"].item() == pytest.approx(wanted, abs=1e-5)
    assert terms(raw, batch)["likeness"] == 0


def test_corner_weight_is_on_the_four_corner_pixels(
    raw: LatentTransparency, batch: TransparentBatch, vae_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(TINY_TRANSPARENCY, corner_weight=0.5)
    heavy = LatentTransparency(config, AutoencoderKL.from_pretrained(vae_folder))
    exact = torch.cat([batch.alpha, batch.padded], dim=1)
    for place, wanted in (((0, 0), 0.25 * 0.5), ((-1, -1), 0.25 * 0.5), ((0, 1), 0.0)):
        output = exact.clone()
        output[:, 0, place[0], place[1]] += 1
        for model in (raw, heavy):
            monkeypatch.setattr(model, "read", lambda latent, view, output=output: (batch.grey, output))
            monkeypatch.setattr(model, "coarse_loss", lambda alpha, view: torch.zeros(()))
        difference = terms(heavy, batch)["reconstruction"] - terms(raw, batch)["reconstruction"]
        assert difference.item() == pytest.approx(wanted, abs=1e-6)


def test_softness_is_of_an_edges_width_and_not_of_its_place() -> None:
    columns = torch.arange(32.0).expand(1, 1, 32, 32)

    def edge(place: float, width: float) -> Tensor:
        return ((columns - place) / width + 0.5).clamp(0, 1)

    wanted = edge(16, 2)
    wider = softness_loss(edge(16, 6), wanted)
    assert softness_loss(wanted, wanted) == 0
    assert softness_loss(3 * wanted - 1, edge(16, 2 / 3)) == pytest.approx(0, abs=1e-6)  # what is beyond 0..1 is exact
    assert softness_loss(edge(16.5, 2), wanted) < 0.2 * wider
    assert wider == softness_loss(wanted, edge(16, 6))


def test_one_layer_can_be_trained_alone(raw: LatentTransparency) -> None:
    last = transparency.choose_parameters(raw, "decoder.conv_out")
    assert [parameter.shape for parameter in last] == [
        raw.decoder.conv_out.weight.shape,
        raw.decoder.conv_out.bias.shape,
    ]
    assert sum(parameter.requires_grad for parameter in raw.parameters()) == 2
    with pytest.raises(Refusal, match="begins with 'encoder'"):
        transparency.choose_parameters(raw, "encoder")


def test_everything_that_is_not_frozen_is_trained_otherwise(vae_folder: Path) -> None:
    config = replace(TINY_TRANSPARENCY, decoder_only=True)
    model = LatentTransparency(config, AutoencoderKL.from_pretrained(vae_folder))
    names = {name.partition(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(transparency.choose_parameters(model, None)) == sum(p.requires_grad for p in model.parameters())
    assert names == {"decoder", "coarse_heads"}


def test_sampled_latents_are_seen_beside_the_images(
    archive: Path, sd15_folder: Path, encoder_file: Path, vae_folder: Path, tmp_path: Path
) -> None:
    tiny = FinetuneConfig(size=64, rank=2, views_per_caption=1, steps=1, grid_every=0)
    finetune.train(replace(tiny, data=archive, base=sd15_folder, encoder=encoder_file), tmp_path / "layers")
    config = replace(
        TINY_TRANSPARENCY,
        data=archive,
        autoencoder=vae_folder,
        decoder_only=True,
        start_encoder=encoder_file,
        start_decoder=encoder_file.with_name(DECODER),
        discriminator_from=0.0,
        picture_weight=1.0,
        sampler=sd15_folder,
        sampler_weights=tmp_path / "layers" / "model",
        samples=5,
        sampled=3,
        workers=1,
    )
    transparency.train(config, tmp_path / "run")
    (kept,) = (tmp_path / "run" / "sampled").iterdir()
    latents = load_file(kept)["latent"]
    assert latents.shape == (5, 4, 8, 8)
    assert not torch.allclose(latents[0], latents[3])  # the same caption with another seed

    gone = replace(config, sampler=tmp_path / "gone", accumulate=2)  # what is sampled needs no sampler any more
    sprites = read_sprites(archive, 64)
    bank = transparency.open_bank(gone, sprites, kept.parent, Accelerator(cpu=True))
    drawn = [Batches.of(sprites, gone, 1.0, rank, 2, bank).draw(0)["sampled"] for rank in (0, 1)]
    assert [part.shape for part in drawn] == [(6, 4, 8, 8)] * 2
    rows = [[int((latents == row).all((1, 2, 3)).nonzero()) for row in part] for part in drawn]
    assert sorted(rows[0][:5]) == [0, 1, 2, 3, 4]
    assert sorted(rows[0][5:] + rows[1][:4]) == [0, 1, 2, 3, 4]
    assert all(part.shape[0] == 3 for part in split(drawn[0], 2))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sampled": 1, "decoder_only": True, "sampler": Path("a")}, "sampled = 0"),
        ({"sampled": 1, "sampler": Path("a"), "sampler_weights": Path("b")}, "decoder_only = true"),
        ({"picture_path": True}, "name start_decoder"),
    ],
)
def test_a_start_that_lacks_something_is_refused_before_the_run(
    changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(Refusal, match=sentence):
        transparency.train(replace(TINY_TRANSPARENCY, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_sampled_latents_of_several_sizes_are_refused(tmp_path: Path) -> None:
    given = {"sampled": 1, "decoder_only": True, "sampler": tmp_path, "sampler_weights": tmp_path}
    config = TransparencyConfig(sizes=(64, 128), **given)
    with pytest.raises(Refusal, match="one size"):
        transparency.train(config, tmp_path / "run")


def test_the_pictures_path_is_put_into_the_decoder_that_is_started_from(
    batch: TransparentBatch, vae_folder: Path, tmp_path: Path
) -> None:
    config = replace(TINY_TRANSPARENCY, decoder_widths=(32, *(8,) * 6))
    vae = AutoencoderKL.from_pretrained(vae_folder)
    write_files(LatentTransparency(config, vae), tmp_path, config)
    model = LatentTransparency(replace(config, picture_path=True), vae)
    model.start_from(tmp_path / ENCODER, tmp_path / DECODER)
    with torch.no_grad():
        picture, output = model.read(model.adjust(batch)[1])
    assert (output[:, 1:] - picture.clamp(0, 1)).abs().max() < 0.01


def test_likeness_alone_is_asked_of_sampled_latents(
    raw: LatentTransparency, batch: TransparentBatch, vae_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = LatentTransparency(
        replace(TINY_TRANSPARENCY, picture_weight=1.0), AutoencoderKL.from_pretrained(vae_folder)
    )
    model.load_state_dict(raw.state_dict())
    rest = (torch.zeros(2, 4, 8, 8), torch.full((2, 3, 64, 64), 0.3), 1.0, 0)
    with torch.no_grad():
        own, made = model(batch, *rest)
        more, all_made = model(batch, *rest, sampled=torch.randn(3, 4, 8, 8))
    assert all_made.shape == (5, 4, 64, 64)
    assert (all_made[:2] - made).abs().max() < 1e-3
    different = {name for name, value in own.items() if not torch.allclose(more[name], value, rtol=1e-3)}
    assert different == {"likeness"}


def test_training_without_the_latent_ends_with_networks_that_disregard_it(
    archive: Path, vae_folder: Path, raw: LatentTransparency, batch: TransparentBatch, tmp_path: Path
) -> None:
    write_files(raw, tmp_path, TINY_TRANSPARENCY)
    config = replace(TINY_TRANSPARENCY, data=archive, autoencoder=vae_folder, start_decoder=tmp_path / DECODER)
    transparency.train(replace(config, latent=False, decoder_only=True), tmp_path / "blind")
    state = load_file(tmp_path / "blind" / "model" / DECODER)
    assert not state["conv_out.weight"].equal(raw.decoder.conv_out.weight)  # it has been trained
    decoder = TransparentDecoder.from_state_dict(state)
    assert decoder(batch.grey, torch.randn(2, 4, 8, 8)).equal(decoder(batch.grey, torch.zeros(2, 4, 8, 8)))
    encoder = TransparentEncoder.from_state_dict(load_file(tmp_path / "blind" / "model" / ENCODER))
    mean, adjusted = adjust(raw.vae[0], encoder, batch)
    assert adjusted.equal(mean)
    with pytest.raises(Refusal, match="decoder_only"):
        replace(config, latent=False)
