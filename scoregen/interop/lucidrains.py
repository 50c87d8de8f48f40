"""denoising-diffusion-pytorch's GaussianDiffusion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..grids import Knots, Times
from ..guidance import Clamped
from ..models import X0, Eps, Index, ScoreModel, V
from ..models.parameterization import Parameterization
from ..processes import DiscreteVPSDE
from ..sampling import Sampler, Solver
from ..solvers import DDIM, Ancestral
from .card import Adapter, Card, Imported

__all__ = ["from_lucidrains"]

FORMS: dict[str, Parameterization] = {"pred_noise": Eps(), "pred_x0": X0(), "pred_v": V()}


class _Unet(Adapter):
    """net(x, t), between the knots too."""

    def forward(self, x: Tensor, clock: Tensor, **condition: Any) -> Tensor:
        return self.net(x, clock)


@dataclass(frozen=True)
class _Sample:
    """`sample`: DDPM over all knots, or DDIM over linspace(-1, N - 1) cut to whole numbers."""

    eta: float

    def __call__(self, model: ScoreModel, steps: int) -> tuple[ScoreModel, Sampler]:
        sde = model.sde
        if not isinstance(sde, DiscreteVPSDE):
            raise TypeError(f"need the chain it was trained on, got {type(sde).__name__}")
        clipped = Clamped(model, -1.0, 1.0)
        if steps == sde.steps:
            return clipped, Sampler(Ancestral("small"), Knots())
        if steps > sde.steps:
            raise ValueError(f"steps must be at most {sde.steps}, got {steps}")
        # rounded as there, in float32, so that the same knots come out
        index = torch.linspace(-1, sde.steps - 1, steps + 1).int().flip(0).tolist()[:-1]
        solver: Solver = DDIM(self.eta)
        return clipped, Sampler(solver, Times(*(sde.knots[i] for i in index), 0.0))


def from_lucidrains(diffusion: nn.Module) -> Imported:
    """A `GaussianDiffusion` of denoising-diffusion-pytorch, network and chain.

    Args:
        diffusion: read are `model`, `objective`, `alphas_cumprod`, `image_size`, `channels`,
            `self_condition`, `ddim_sampling_eta`.

    Raises:
        TypeError: for another object.
        ValueError: for self-conditioning, which is no function of (x, t), or an unknown objective.

    >>> from types import SimpleNamespace
    >>> import torch
    >>> model = from_lucidrains(SimpleNamespace(  # stands for a GaussianDiffusion
    ...     model=lambda x, t: 0 * x, objective="pred_v", self_condition=False, channels=3,
    ...     image_size=(8, 8), alphas_cumprod=torch.linspace(0.99, 0.01, 50), ddim_sampling_eta=0.0,
    ... ))
    >>> model.card.event
    (3, 8, 8)
    """
    wanted = (
        "model", "objective", "alphas_cumprod", "image_size", "channels", "self_condition",
        "ddim_sampling_eta",
    )  # fmt: skip
    missing = [name for name in wanted if not hasattr(diffusion, name)]
    if missing:
        raise TypeError(
            "need a GaussianDiffusion of denoising-diffusion-pytorch, got "
            f"{type(diffusion).__name__} without {', '.join(missing)}"
        )
    origin: Any = diffusion
    if origin.self_condition:
        raise ValueError(
            "self-conditioning feeds the last x0 back into the network, which is then no function "
            "of (x, t); train with self_condition=False"
        )
    if origin.objective not in FORMS:
        raise ValueError(f"objective must be one of {', '.join(FORMS)}, got {origin.objective!r}")
    sde = DiscreteVPSDE.from_alpha_bar(origin.alphas_cumprod.double().tolist())
    card = Card(
        f"denoising-diffusion-pytorch, {origin.objective}",
        (-1.0, 1.0),
        (int(origin.channels), *(int(size) for size in origin.image_size)),
        times=f"{sde.steps} knots",
        sampling=f"DDPM over all knots, or DDIM({origin.ddim_sampling_eta:g}), x0 clipped",
        dropped=(
            "x0 clipped to [-1, 1]: wrap the model in Clamped(model)",
            "images outside in [0, 1] (auto_normalize): here they are in [-1, 1]",
        ),
    )
    return Imported(
        _Unet(origin.model, ()),
        sde,
        FORMS[origin.objective],
        Index(fractional=True),
        card,
        _Sample(float(origin.ddim_sampling_eta)),
    )
