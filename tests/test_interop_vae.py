"""Autoencoders of other libraries: a stand-in here, diffusers' own under `peers`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cases import normal
from torch import Tensor, nn

import scoregen as sg
from scoregen.interop import from_diffusers_vae
from scoregen.latent import LatentModel


class HalfSize(nn.Module):
    """A user's class with diffusers' interface: every second pixel, four times."""

    def __init__(self, **changes: Any) -> None:
        super().__init__()
        self.config = {
            "block_out_channels": (8, 8), "latent_channels": 4, "scaling_factor": 0.25,
            "shift_factor": 0.5, **changes,
        }  # fmt: skip

    def encode(self, x: Tensor) -> Any:
        mean = x[:, :1, ::2, ::2].expand(-1, 4, -1, -1)
        return SimpleNamespace(
            latent_dist=SimpleNamespace(
                mode=lambda: mean, sample=lambda g: mean + torch.randn(mean.shape, generator=g)
            )
        )

    def decode(self, z: Tensor) -> Any:
        return SimpleNamespace(sample=z[:, :1].repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_latents_are_shifted_and_scaled_as_the_config_has_it() -> None:
    autoencoder, units = from_diffusers_vae(HalfSize(), (1, 8, 8))
    inner = sg.Gaussian(sg.VPSDE(), torch.zeros(4, 4, 4), 1.0)
    model = LatentModel(inner, autoencoder, units)
    x = normal(2, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    z = model.encode(x)
    torch.testing.assert_close(z, (x[:, :, ::2, ::2].expand(-1, 4, -1, -1) - 0.5) * 0.25)
    torch.testing.assert_close(model.decode(z), x)
    drawn = model.encode(x, generator=torch.Generator().manual_seed(0))
    assert 0.15 < float((drawn - z).std()) < 0.35  # one unit of code is 0.25 of a latent
    sampler = sg.Sampler(sg.DDIM(), sg.UniformTime(4))
    assert model.sample(sampler, 3, seed=0).shape == (3, 1, 8, 8)


@pytest.mark.parametrize(
    ("changes", "event", "word"),
    [
        ({"scaling_factor": None}, (1, 8, 8), "scaling_factor"),
        ({"latents_mean": [0.0] * 4}, (1, 8, 8), "latents_mean"),
        ({}, (1, 7, 8), "multiples of 2"),
        ({}, (8,), "multiples of 2"),
        ({"latent_channels": 3}, (1, 8, 8), r"\(batch, \*latent\)"),
    ],
)
def test_other_units_and_shapes_are_refused(changes: Any, event: Any, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        from_diffusers_vae(HalfSize(**changes), event)


def test_what_is_no_autoencoder_is_refused() -> None:
    with pytest.raises(TypeError, match="AutoencoderKL"):
        from_diffusers_vae(nn.Identity(), (1, 8, 8))


@pytest.mark.peers
def test_the_library_encodes_and_decodes_the_same(tmp_path: Any) -> None:
    diffusers = pytest.importorskip("diffusers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4,
            scaling_factor=0.13025, shift_factor=0.2,
        ).eval()  # fmt: skip
    vae.save_pretrained(tmp_path)
    autoencoder, units = from_diffusers_vae(tmp_path, (3, 16, 16))
    inner = sg.Gaussian(sg.VPSDE(), torch.zeros(4, 8, 8), 1.0)
    model = LatentModel(inner, autoencoder, units)
    x, z = normal(2, 3, 16, 16).float(), normal(2, 4, 8, 8).float()
    with torch.no_grad():
        want = (vae.encode(x).latent_dist.mode() - 0.2) * 0.13025
        image = vae.decode(z / 0.13025 + 0.2).sample  # as diffusers' pipelines decode
    torch.testing.assert_close(model.encode(x), want)
    torch.testing.assert_close(model.decode(z), image)
