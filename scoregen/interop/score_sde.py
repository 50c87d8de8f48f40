"""Networks of score_sde and score_sde_pytorch (Song et al. 2021, 2011.13456)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from .._checks import (
    check_choice,
    check_count,
    check_counts,
    check_flag,
    check_numbers,
    check_range,
    shown,
)
from ..models import Eps, Index, RawTime, Score
from ..models.clocks import Clock
from ..models.parameterization import Parameterization
from ..networks import NCSNpp
from ..processes import EDMSDE, SDE, VPSDE, DiscreteVESDE, DiscreteVPSDE, SubVPSDE
from .card import Adapter, Card, Imported, Recipe
from .score_sde_files import SongNetwork, geometric, load_score_sde
from .score_sde_sampler import SongSampling

__all__ = ["from_score_sde"]


class _Noise(Adapter):
    """The network's output is -sigma score with the sign turned: eps itself."""


class _Descending(Adapter):
    """NCSN's labels: 0 for the greatest of N noise levels."""

    def __init__(self, net: Callable[..., Any], levels: int):
        super().__init__(net)
        self.levels = levels

    def forward(self, x: Tensor, clock: Tensor, **condition: Any) -> Tensor:
        return self.net(x, self.levels - 1 - clock, **condition)


def _same(label: Tensor) -> Tensor:
    """The label of continuous "ve" is sigma itself."""
    return label


def from_score_sde(
    net: Callable[..., Any],
    kind: Literal["vp", "subvp", "ve"],
    *,
    centered: bool,
    continuous: bool = True,
    weights: str | Path | None = None,
    ema: bool | None = None,
    beta: tuple[float, float] = (0.1, 20.0),
    sigma: tuple[float, float] = (0.01, 50.0),
    levels: int = 1000,
    event: tuple[int, ...] | None = None,
) -> Imported:
    """A network of score_sde: net(x, labels), before its library's `get_score_fn`.

    | kind | labels | output | process |
    |---|---|---|---|
    | vp, subvp | 999 t | eps | `VPSDE`, `SubVPSDE` |
    | vp, discrete | 0 .. N - 1 | eps | `DiscreteVPSDE.first_order` |
    | ve | sigma | score | `EDMSDE(sigma_min, sigma_max)` |
    | ve, discrete | N - 1 .. 0 | score | `DiscreteVESDE.geometric` |

    A VE network is evaluated at sigma in [sigma_min, sigma_max] alone: that process is sigma
    itself, not `VESDE`, whose sigma falls to 0.

    A `networks.NCSNpp` is called as the origin calls its own: x as 2 x - 1 where the data are not
    centred, log(sigma) into its random frequencies, and under "ve" the output over sigma.

    Args:
        net: the network, score_sde's own or a `networks.NCSNpp`.
        kind: of the process.
        centered: config.data.centered: True for data in [-1, 1], False for [0, 1].
        continuous: config.training.continuous.
        weights: a `.pth` checkpoint to fill the network with; without it the network is taken as
            it is.
        ema: with weights, and only with them: True for the averaged ones, False for the raw.
        beta: beta_min and beta_max of "vp" and "subvp".
        sigma: sigma_min and sigma_max of "ve".
        levels: config.model.num_scales, N, of discrete training.
        event: shape of one sample, for the card.

    Raises:
        ValueError: for an unknown kind, a discrete sub-VP, which the origin has not either, and
            weights that do not fit the network.
        FileNotFoundError: for weights that are not there; nothing is downloaded.

    >>> import torch
    >>> model = from_score_sde(
    ...     lambda x, sigma: -x / (1 + sigma.reshape(-1, 1) ** 2), "ve", centered=False
    ... )
    >>> model(torch.ones(1, 2), 1.0).x0, model.sde.t_min
    (tensor([[0.5000, 0.5000]]), 0.01)
    """
    check_choice("kind", kind, ("vp", "subvp", "ve"))
    check_flag("centered", centered)
    check_flag("continuous", continuous)
    count = check_count("levels", levels, 2)
    if len(check_numbers("beta", beta, 0.0, open_low=True)) != 2:
        raise ValueError(f"beta must be two numbers, beta_min and beta_max, got {shown(beta)}")
    check_range("sigma", sigma)
    if event is not None:
        check_counts("event", event)
    if kind == "subvp" and not continuous:
        raise ValueError("score_sde trains sub-VP in continuous time only: continuous=True")
    if (weights is None) != (ema is None):
        raise TypeError(
            "weights= and ema= belong together: ema=True for the averaged weights of the file, "
            f"False for the raw ones; got {weights=}, {ema=}"
        )
    if weights is not None and ema is not None:
        check_flag("ema", ema)
        if not isinstance(net, nn.Module):
            raise TypeError(f"weights= need a network to fill, got {type(net).__name__}")
        load_score_sde(net, weights, ema)
    sde: SDE
    slot: Parameterization = Eps()
    clock: Clock = RawTime(999.0)
    if isinstance(net, NCSNpp):
        reads = geometric(sigma, count) if not continuous else _same
        net = SongNetwork(net, centered, reads if kind == "ve" else None)
    adapter: Adapter = _Noise(net)
    if kind == "ve" and continuous:
        sde, slot, clock = EDMSDE(*sigma), Score(), RawTime()
        times = f"sigma in [{sigma[0]:g}, {sigma[1]:g}], the label"
    elif kind == "ve":
        sde, slot, clock = DiscreteVESDE.geometric(count, *sigma), Score(), Index(fractional=True)
        adapter = _Descending(net, count)
        times = f"{count} sigmas from {sigma[1]:g} (label 0) to {sigma[0]:g}"
    elif continuous:
        sde = VPSDE(*beta) if kind == "vp" else SubVPSDE(*beta)
        times = "t in [1e-5, 1], label 999 t; sampled above 1e-3"
    else:
        sde = DiscreteVPSDE.first_order(VPSDE(*beta), count)
        clock = Index(fractional=True)
        times = f"{count} knots, labels 0 to {count - 1}"
    card = Card(
        f"score_sde, {kind}, {'continuous' if continuous else 'discrete'}",
        (-1.0, 1.0) if centered else (0.0, 1.0),
        event,
        times=times,
        sampling=f"{'Langevin and reverse diffusion' if kind == 've' else 'Euler-Maruyama'}, "
        "1000 steps",
        dropped=(
            "the last move without noise (`denoise`): moves to 0 return x0 here",
            "step sizes of the corrector from norms averaged over the batch",
        ),
    )
    origin: Recipe | str = SongSampling(kind, sigma)
    if not continuous:
        origin = "networks of discrete training take Ancestral or ReverseDiffusion on Knots()"
    model = Imported(adapter, sde, slot, clock, card, origin)
    return model if weights is None else model.eval()
