"""U-Nets of improved-diffusion and guided-diffusion (Dhariwal and Nichol 2021, 2105.05233)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from .._checks import check_choice, check_count, check_counts, check_flag
from ..grids import Strided
from ..guidance import Clamped
from ..models import X0, Eps, Index, LearnedVariance, ScoreModel
from ..models.parameterization import Parameterization
from ..networks import ADM
from ..processes import DiscreteVPSDE
from ..sampling import Sampler
from ..solvers import Ancestral
from .card import Adapter, Card, Imported
from .guided_files import guided_network

__all__ = ["from_guided_diffusion"]


class _Rescaled(Adapter):
    """Labels are the chain's index times a factor."""

    def __init__(
        self, net: Callable[..., Any], factor: float, conditions: tuple[str, ...], required: bool
    ):
        super().__init__(net, conditions)
        self.factor, self.required = factor, required

    def forward(self, x: Tensor, clock: Tensor, **condition: Any) -> Tensor:
        if self.required and "y" not in condition:
            raise TypeError("this network is trained with classes: give condition={'y': labels}")
        return self.net(x, clock if self.factor == 1 else self.factor * clock, **condition)


class _Labelled(Adapter):
    """An `ADM` with the labels called y."""

    def forward(self, x: Tensor, clock: Tensor, **condition: Any) -> Tensor:
        return self.net(x, clock, condition.get("y"))


def _checked(net: ADM, learned: bool, class_cond: bool | None) -> _Labelled:
    """The network of a file, if it is what the arguments state."""
    outer = net.config["out_channels"]
    if outer != (2 if learned else 1) * net.channels:
        raise ValueError(
            f"the file's network returns {outer} channels for {net.channels}: learned="
            f"{outer == 2 * net.channels} is what it was trained with, got {learned}"
        )
    if class_cond is not None and class_cond != bool(net.classes):
        raise ValueError(f"the file's network has {net.classes} classes, got {class_cond=}")
    return _Labelled(net, ("y",) if net.classes else ())


@dataclass(frozen=True)
class _Respaced:
    """p_sample_loop with clip_denoised on `space_timesteps(str(steps))`."""

    variance: Literal["small", "large", "learned"]

    def __call__(self, model: ScoreModel, steps: int) -> tuple[ScoreModel, Sampler]:
        return Clamped(model, -1.0, 1.0), Sampler(
            Ancestral(self.variance), Strided(steps, "linspace")
        )


def from_guided_diffusion(
    net: Callable[..., Any] | str | Path,
    steps: int = 1000,
    schedule: Literal["linear", "cosine"] = "linear",
    *,
    learned: bool = True,
    rescale_timesteps: bool = False,
    predict_xstart: bool = False,
    sigma_small: bool = False,
    class_cond: bool | None = None,
    event: tuple[int, ...] | None = None,
    heads: int | None = None,
    head_channels: int | None = None,
    new_attention_order: bool = False,
) -> Imported:
    """A network of guided- or improved-diffusion: net(x, t) or net(x, t, y=labels).

    Args:
        net: a `.pt` file, whose weights fill a `networks.ADM` of the architecture that its keys and
            shapes state; or the network with its weights loaded.
        steps: diffusion_steps, T; 4000 for most of improved-diffusion.
        schedule: noise_schedule. "linear" runs from 1e-4 to 0.02, both times 1000/T.
        learned: learn_sigma: twice the channels come out.
        rescale_timesteps: labels are the index times 1000/T; improved-diffusion's default.
        predict_xstart: the output is x0, not eps.
        sigma_small: without learned variances, sample with the small instead of the large one.
        class_cond: the network wants labels `y`, whole numbers; unless given, a file's own
            statement, and False for a network.
        event: shape of one sample, for the card.
        heads: of a file, num_heads, where head_channels is not given.
        head_channels: of a file, num_head_channels, where heads is not given.
        new_attention_order: of a file, use_new_attention_order.

    Raises:
        FileNotFoundError: for a file that is not there; nothing is downloaded.
        TypeError: for a file without heads or head_channels, or either of a network.
        ValueError: for a file that holds no such network, or contradicts the arguments.

    >>> import torch
    >>> net = lambda x, t: torch.cat([0 * x, 0 * x], 1)
    >>> model = from_guided_diffusion(net)
    >>> float(model(torch.ones(1, 1, 2, 2), 1.0).spread.mean())
    0.5
    """
    count = check_count("steps", steps, 2)
    for name, flag in (
        ("learned", learned),
        ("rescale_timesteps", rescale_timesteps),
        ("predict_xstart", predict_xstart),
        ("sigma_small", sigma_small),
        ("new_attention_order", new_attention_order),
    ):
        check_flag(name, flag)
    if class_cond is not None:
        check_flag("class_cond", class_cond)
    if event is not None:
        check_counts("event", event)
    for name, number in (("heads", heads), ("head_channels", head_channels)):
        if number is not None:
            check_count(name, number)
    check_choice("schedule", schedule, ("linear", "cosine"))
    if isinstance(net, str | Path):
        filled = guided_network(
            net,
            heads=heads,
            head_channels=head_channels,
            new_attention_order=new_attention_order,
        )
        net = _checked(filled, learned, class_cond)
        class_cond = filled.classes > 0
    elif heads is not None or head_channels is not None or new_attention_order:
        raise TypeError("heads, head_channels and new_attention_order are those of a file")
    class_cond = bool(class_cond)
    scale = 1000 / count
    sde = (
        DiscreteVPSDE.linear(count, scale * 1e-4, scale * 0.02)
        if schedule == "linear"
        else DiscreteVPSDE.cosine(count)
    )
    slot: Parameterization = X0() if predict_xstart else Eps()
    factor = scale if rescale_timesteps else 1.0
    variance: Literal["small", "large", "learned"] = (
        "learned" if learned else "small" if sigma_small else "large"
    )
    card = Card(
        "guided-diffusion",
        (-1.0, 1.0),
        event,
        (("y", "none was trained"),) if class_cond else (),
        times=f"{count} knots, {schedule} betas, labels 0 to {factor * (count - 1):g}",
        sampling=f"DDPM with {variance} variance on evenly spaced knots, x0 clipped to [-1, 1]",
        dropped=("clip_denoised: wrap the model in Clamped(model)",),
    )
    adapter = _Rescaled(net, factor, ("y",) if class_cond else (), class_cond)
    model = Imported(
        adapter,
        sde,
        LearnedVariance(slot) if learned else slot,
        Index(fractional=True),
        card,
        _Respaced(variance),
    )
    return model.eval() if isinstance(net, _Labelled) else model
