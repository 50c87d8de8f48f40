"""Autoencoders of diffusers: latents as their networks know them, and the way back to images."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import check_counts, check_kind, check_path, shown
from ..data import Units
from ..latent import AutoEncoder
from ..latent.autoencoder import check_autoencoder
from .diffusers import _diffusers

__all__ = ["DiffusersAutoEncoder", "from_diffusers_vae"]


class DiffusersAutoEncoder(AutoEncoder):
    """`AutoencoderKL.encode(x).latent_dist` and `.decode(z).sample`, without the scaling.

    Args:
        vae: the module.
        event: shape of one image, such as (3, 512, 512).
        latent: shape of its code.

    >>> class Still(torch.nn.Module):
    ...     def encode(self, x): ...
    ...     def decode(self, z): ...
    >>> DiffusersAutoEncoder(Still(), (3, 8, 8), (4, 1, 1)).latent
    (4, 1, 1)
    """

    def __init__(self, vae: nn.Module, event: tuple[int, ...], latent: tuple[int, ...]):
        super().__init__()
        check_kind("vae", vae, nn.Module, "an AutoencoderKL")
        self.vae: Any = vae
        self.event = check_counts("event", event)
        self.latent = check_counts("latent", latent)

    def encode(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        law = self.vae.encode(x).latent_dist
        code: Tensor = law.mode() if generator is None else law.sample(generator)
        return code

    def decode(self, z: Tensor) -> Tensor:
        image: Tensor = self.vae.decode(z).sample
        return image


def from_diffusers_vae(
    source: str | Path | nn.Module, event: tuple[int, ...]
) -> tuple[DiffusersAutoEncoder, Units]:
    """A diffusers `AutoencoderKL` and the units in which its latents are diffused.

    A network of latents predicts (z - shift_factor) scaling_factor: `LatentModel(model,
    *from_diffusers_vae(folder, (3, 512, 512)))` samples there and decodes (Rombach et al. 2022,
    2112.10752; the numbers stand in the config).

    Args:
        source: the folder of the autoencoder (config.json and its weights), or the module itself.
        event: shape of one image.

    Returns:
        The autoencoder and its units, of mean shift_factor (0 where the config has none) and std
        1 / scaling_factor in every channel.

    Raises:
        FileNotFoundError: for a folder without config.json.
        ValueError: for a config without scaling_factor, or with latents_mean or latents_std, which
            are other units; for an event that does not fit.

    >>> from_diffusers_vae("nowhere", (3, 64, 64))
    Traceback (most recent call last):
        ...
    FileNotFoundError: no nowhere/config.json: need the folder of an AutoencoderKL
    """
    event = check_counts("event", event)
    if isinstance(source, str | Path):
        path = check_path("source", source)
        if not (path / "config.json").is_file():
            raise FileNotFoundError(f"no {path}/config.json: need the folder of an AutoencoderKL")
        source = (
            _diffusers()
            .AutoencoderKL.from_pretrained(str(path), use_safetensors=True, local_files_only=True)
            .eval()
        )
    if not isinstance(source, nn.Module) or not hasattr(source, "config"):
        raise TypeError(f"need a diffusers AutoencoderKL or its folder, got {shown(source)}")
    config: Any = source.config
    scale, shift = config.get("scaling_factor"), config.get("shift_factor") or 0.0
    other = [k for k in ("latents_mean", "latents_std") if config.get(k) is not None]
    if scale is None or not scale > 0 or other:
        raise ValueError(
            f"the config must give the latents' unit as scaling_factor (and shift_factor) alone, "
            f"got scaling_factor={scale!r}{' and ' + ' and '.join(other) if other else ''}: build "
            "DiffusersAutoEncoder and Units(mean, std) yourself"
        )
    down = 2 ** (len(config["block_out_channels"]) - 1)
    channels = config["latent_channels"]
    if len(event) != 3 or any(math.remainder(size, down) for size in event[1:]):
        raise ValueError(f"event must be (channels, height, width) in multiples of {down}: {event}")
    code = (channels, event[1] // down, event[2] // down)
    autoencoder = DiffusersAutoEncoder(source, event, code)
    check_autoencoder(autoencoder)
    return autoencoder, Units((float(shift),) * channels, (1 / float(scale),) * channels)
