"""Dormand and Prince's method of torchdiffeq on a batch, its error controlled for the worst row."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ._rows import row_rms

__all__ = ["StepsError", "integrate", "worst_row"]


class StepsError(RuntimeError):
    """The solver found no step that meets the tolerances, or ran out of steps.

    >>> raise StepsError("max_num_steps exceeded")
    Traceback (most recent call last):
        ...
    scoregen._ode.StepsError: max_num_steps exceeded
    """


def integrate(
    field: Callable[[float, Tensor], Tensor],
    y: Tensor,
    a: float,
    b: float,
    *,
    rtol: float,
    atol: float,
    max_steps: int,
    norm: Callable[[Tensor], Tensor] | None = None,
    first_step: float | None = None,
) -> Tensor:
    """y at b from y at a, where dy / du = field(u, y), by Dormand-Prince 4(5).

    The steps are shared by the batch and end at b: nothing is evaluated outside [a, b].

    Args:
        field: the right side; u is a float in [a, b].
        y: state at a, shape (batch, *event).
        a, b: the ends, in either order.
        rtol, atol: tolerances of a step.
        max_steps: most steps.
        norm: of the scaled error; `worst_row` unless given.
        first_step: length of the first step; guessed by one more evaluation unless given.

    Raises:
        StepsError: if it gives up.

    >>> y = integrate(lambda u, y: -y, torch.ones(1, 1, dtype=torch.float64), 0.0, 1.0,
    ...               rtol=1e-8, atol=1e-8, max_steps=100)
    >>> round(float(y), 6)
    0.367879
    """
    from torchdiffeq import odeint  # takes a while to import

    low, high = min(a, b), max(a, b)

    def inside(u: Tensor, y: Tensor) -> Tensor:
        # torchdiffeq gives u in the dtype of y: rounding must not leave the interval
        return field(min(max(float(u), low), high), y)

    span = torch.tensor([a, b], dtype=torch.float64, device=y.device)
    # a step ends at b, where the process may end too: none beyond it and back
    options = {"norm": norm or worst_row, "max_num_steps": max_steps, "step_t": span[1:]}
    if first_step is not None:
        options["first_step"] = first_step
    try:
        path = odeint(inside, y, span, rtol=rtol, atol=atol, method="dopri5", options=options)
    except AssertionError as error:  # what torchdiffeq raises when its step underflows or runs out
        raise StepsError(str(error)) from error
    return path[-1]


def worst_row(error: Tensor) -> Tensor:
    """The largest root mean square among the samples of a batch.

    >>> worst_row(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    tensor(3.5355)
    """
    return row_rms(error).max()
