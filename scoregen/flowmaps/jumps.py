"""The map, its mean velocity and its derivatives, in w = x / rho and the angle theta."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .._rows import against
from ..models import Prediction, ScoreModel
from ..processes import Level
from ..solvers.coordinate import ANGLE
from .angles import level_at, turned

__all__ = ["derivative"]


def predicted(
    model: ScoreModel, w: Tensor, first: Tensor, last: Tensor, condition: dict[str, Any]
) -> tuple[Prediction, Level]:
    """The prediction for the jump, and the level of its end on the unit circle."""
    level = level_at(model.sde, first, w)
    to = turned(model.sde, last, w)
    return model.predict(ANGLE.scale(level) * w, level, to=to, **condition), to


def mapped(model: ScoreModel, w: Tensor, first: Tensor, last: Tensor, **condition: Any) -> Tensor:
    """W(w, theta_t, theta_s), shaped like w, at angles of shape (batch,)."""
    p, to = predicted(model, w, first, last, condition)
    return p.combine(to.alpha, to.sigma, "the jump")


def velocity_between(
    model: ScoreModel, w: Tensor, first: Tensor, last: Tensor, **condition: Any
) -> Tensor:
    """(W - w) / (theta_s - theta_t) without the division: sinc(h) (cos(m) eps - sin(m) x0).

    m is the middle of the two angles and h half their difference; on the diagonal it is v.
    """
    p, _ = predicted(model, w, first, last, condition)
    middle = turned(model.sde, (first + last) / 2, w)
    half = against((first - last).to(w) / 2, w)
    return torch.sinc(half / math.pi) * p.combine(-middle.sigma, middle.alpha, "the mean velocity")


def derivative(
    function: Callable[..., Tensor], points: tuple[Tensor, ...], tangents: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """The function's value and its derivative along the tangents, by forward mode.

    Attention runs on its plain kernel, the only one that has a forward mode.

    Raises:
        TypeError: for tangents of fewer than 32 bits, whose rounding is as large as the derivative
            of a jump; or where an operation of the network has no forward mode, which is named.

    >>> derivative(torch.sin, (torch.zeros(()),), (torch.ones(()),))
    (tensor(0.), tensor(1.))
    """
    place = tangents[0].device.type
    if torch.is_autocast_enabled(place):
        _refuse(torch.get_autocast_dtype(place))
    for tangent in tangents:
        _refuse(tangent.dtype)
    try:
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            # torch compiles its table of forward formulas at first use, and warns of its compiler
            warnings.filterwarnings("ignore", "`torch.jit.script`", DeprecationWarning)
            pushed = torch.func.jvp(function, points, tangents)
    except (NotImplementedError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        if "forward" not in reason.lower() and "jvp" not in reason.lower():
            raise
        raise TypeError(
            f"an operation of the network has no forward-mode derivative ({reason}): replace it, "
            "or use an objective without a derivative, such as LagrangianSteps or Trajectories"
        ) from error
    _refuse(pushed[1].dtype)
    return pushed[0], pushed[1]


def _refuse(dtype: torch.dtype) -> None:
    if torch.finfo(dtype).bits < 32:
        raise TypeError(
            f"tangents in {dtype} are rounded as coarsely as the derivative itself: train with "
            "float32 data and without mixed precision, or use an objective without a derivative, "
            "such as LagrangianSteps or Trajectories"
        )
