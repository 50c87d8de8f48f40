"""Networks of score_sde and score_sde_pytorch (Song et al. 2021, 2011.13456)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor

from .._checks import check_choice, check_count
from ..models import Eps, Index, RawTime, Score
from ..models.clocks import Clock
from ..models.parameterization import Parameterization
from ..processes import EDMSDE, SDE, VPSDE, DiscreteVESDE, DiscreteVPSDE, SubVPSDE
from .card import Adapter, Card, Imported

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


def from_score_sde(
    net: Callable[..., Any],
    kind: Literal["vp", "subvp", "ve"],
    *,
    centered: bool,
    continuous: bool = True,
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

    Args:
        net: the network with its (EMA) weights loaded, in evaluation mode.
        kind: of the process.
        centered: config.data.centered: True for data in [-1, 1], False for [0, 1].
        continuous: config.training.continuous.
        beta: beta_min and beta_max of "vp" and "subvp".
        sigma: sigma_min and sigma_max of "ve".
        levels: config.model.num_scales, N, of discrete training.
        event: shape of one sample, for the card.

    Raises:
        ValueError: for an unknown kind, or a discrete sub-VP, which the origin has not either.

    >>> import torch
    >>> model = from_score_sde(
    ...     lambda x, sigma: -x / (1 + sigma.reshape(-1, 1) ** 2), "ve", centered=False
    ... )
    >>> model(torch.ones(1, 2), 1.0).x0, model.sde.t_min
    (tensor([[0.5000, 0.5000]]), 0.01)
    """
    check_choice("kind", kind, ("vp", "subvp", "ve"))
    if not isinstance(centered, bool):
        raise TypeError(f"centered must be True or False, as config.data.centered; got {centered}")
    count = check_count("levels", levels, 2)
    if kind == "subvp" and not continuous:
        raise ValueError("score_sde trains sub-VP in continuous time only: continuous=True")
    sde: SDE
    slot: Parameterization = Eps()
    clock: Clock = RawTime(999.0)
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
        sampling="predictor and corrector, 1000 steps",
        dropped=(
            "the last move without noise (`denoise`): moves to 0 return x0 here",
            "step sizes of the corrector from norms averaged over the batch",
        ),
    )
    reason = (
        "its predictor's steps are 1/N long on N times that are (1 - eps)/(N - 1) apart, and its "
        "corrector averages over the batch; take PredictorCorrector(ReverseDiffusion(), "
        "SNRLangevin()) or Dopri5()"
    )
    return Imported(adapter, sde, slot, clock, card, reason)
