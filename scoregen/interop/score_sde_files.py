"""score_sde's checkpoints: raw weights or their average, into a network of one's own or here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..networks import NCSNpp
from .card import Adapter
from .weights import fill, nin_merged, read, renamed, score_sde_names

__all__ = ["SongNetwork", "load_score_sde"]


class SongNetwork(Adapter):
    """An `NCSNpp` as score_sde calls it: net(x, labels) with its own scales of x, labels, output.

    Args:
        net: the network.
        centered: whether the data are in [-1, 1]; else x is taken to 2 x - 1.
        sigma: the noise level of a label where the output is to be divided by it and random
            frequencies read its logarithm; None for networks of "vp" and "subvp".

    >>> net = NCSNpp(1, 8, (1,), 1, (False,), embedding="fourier")
    >>> song = SongNetwork(net, centered=False, sigma=lambda label: label)
    >>> song(torch.zeros(1, 1, 4, 4), torch.ones(1)).shape
    torch.Size([1, 1, 4, 4])
    """

    def __init__(
        self, net: NCSNpp, centered: bool, sigma: Callable[[Tensor], Tensor] | None
    ) -> None:
        super().__init__(net, ())
        self.centered, self.sigma, self.fourier = centered, sigma, net.embedding == "fourier"

    def forward(self, x: Tensor, clock: Tensor, **condition: Any) -> Tensor:
        inner = x if self.centered else 2 * x - 1
        if self.sigma is None:
            return self.net(inner, clock)
        sigma = self.sigma(clock)
        out = self.net(inner, sigma.log() if self.fourier else clock)
        return out / sigma.reshape(-1, *(1,) * (x.ndim - 1)).to(out.dtype)


def load_score_sde(net: nn.Module, path: str | Path, ema: bool) -> None:
    """Fill a network from a checkpoint of score_sde_pytorch.

    The average is a list, in the order of the parameters that were trained; it is put together
    with the names of the raw weights in the same file, one by one and shape by shape.

    Args:
        net: an `NCSNpp`, or score_sde's own network; changed in place.
        path: of the `.pth` file.
        ema: whether the averaged weights are meant, or the raw ones.

    Raises:
        FileNotFoundError: without the file.
        ValueError: for another file, or weights that do not fit the network.

    >>> load_score_sde(NCSNpp(), "absent.pth", ema=True)
    Traceback (most recent call last):
        ...
    FileNotFoundError: no file absent.pth; nothing is downloaded: fetch it first
    """
    content = read(path)
    source = Path(path).name
    if not isinstance(content, Mapping) or not {"model", "ema"} <= set(content):
        raise ValueError(f"{source} is no checkpoint of score_sde: it needs 'model' and 'ema'")
    raw: dict[str, Tensor] = {
        name.removeprefix("module."): value for name, value in content["model"].items()
    }
    ours = isinstance(net, NCSNpp)
    if ours:
        frozen = {name for name in raw if name == "sigmas" or name == "all_modules.0.W"}
    else:
        trained = {name for name, p in net.named_parameters() if p.requires_grad}
        frozen = set(raw) - {n for n in raw if n in trained or f"module.{n}" in trained}
    if ema:
        raw |= _average(raw, frozen, content["ema"], source)
    if ours:
        raw.pop("sigmas", None)
        fill(net, nin_merged(renamed(raw, score_sde_names(net))), source)
    else:
        prefix = "module." if isinstance(net, nn.DataParallel) else ""
        fill(net, {prefix + name: value for name, value in raw.items()}, source)
    net.eval()


def _average(
    raw: Mapping[str, Tensor], frozen: set[str], stated: Any, source: str
) -> dict[str, Tensor]:
    """The averaged weights by name."""
    shadow = stated.get("shadow_params") if isinstance(stated, Mapping) else None
    names = [name for name in raw if name not in frozen]
    if not isinstance(shadow, list) or len(shadow) != len(names):
        count = len(shadow) if isinstance(shadow, list) else 0
        raise ValueError(
            f"{source} has {count} averaged weights for {len(names)} trained ones; with ema=False "
            "the raw ones are taken"
        )
    for name, value in zip(names, shadow, strict=True):
        if value.shape != raw[name].shape:
            raise ValueError(
                f"{source}: the averaged weight in the place of {name} is {tuple(value.shape)}, "
                f"the raw one {tuple(raw[name].shape)}; they are in another order"
            )
    return dict(zip(names, shadow, strict=True))


def geometric(sigma: tuple[float, float], levels: int) -> Callable[[Tensor], Tensor]:
    """The noise level of score_sde's label among N falling ones.

    >>> geometric((0.01, 1.0), 3)(torch.tensor([0.0, 1.0, 2.0]))
    tensor([1.0000, 0.1000, 0.0100])
    """
    low, high = math.log(sigma[0]), math.log(sigma[1])

    def level(label: Tensor) -> Tensor:
        wide = torch.promote_types(label.dtype, torch.float32)
        return torch.exp(high + (low - high) / (levels - 1) * label.to(wide))

    return level
