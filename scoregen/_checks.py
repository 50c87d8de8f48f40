"""The doors' error messages: what must hold, what was got, what to do."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["DivergenceError"]


class DivergenceError(RuntimeError):
    """A sampler produced values that are not finite.

    Attributes:
        step: index of the first move whose result was not finite, counted from 1.
        t: the time that move started from.
        rows: indices of the samples that failed there.
        partial: the last state that was finite, shaped like the sample batch.
        reason: what the solver knows of it, or None.

    >>> raise DivergenceError(3, 0.5, [0, 2])
    Traceback (most recent call last):
        ...
    scoregen._checks.DivergenceError: move 3 (from t = 0.5) left values that are not finite in 2 \
rows (0, 2); take more or smaller steps, or start closer to the data
    """

    def __init__(
        self,
        step: int,
        t: float,
        rows: Sequence[int],
        partial: Tensor | None = None,
        reason: str | None = None,
    ):
        self.step, self.t, self.rows, self.partial = step, t, list(rows), partial
        self.reason = reason
        advice = reason or "take more or smaller steps, or start closer to the data"
        shown = ", ".join(str(r) for r in self.rows[:5]) + (", ..." if len(self.rows) > 5 else "")
        super().__init__(
            f"move {step} (from t = {t:g}) left values that are not finite in {len(self.rows)} "
            f"rows ({shown}); {advice}"
        )


def check_count(name: str, value: object, least: int = 1) -> int:
    """Return `value` as an int, or say why it is not a count."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    count = value.__index__()
    if count < least:
        raise ValueError(f"{name} must be at least {least}, got {count}")
    return int(count)


def check_number(
    name: str,
    value: object,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> float:
    """Return `value` as a float inside the interval, or say which interval it must lie in."""
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a real number, got {value!r}")
    number = float(value)
    below = number <= low if open_low else number < low
    above = number >= high if open_high else number > high
    if below or above or math.isnan(number):
        span = f"{'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"
        raise ValueError(f"{name} must lie in {span}, got {number:g}")
    return number


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Refuse a word that is not among the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")


def check_state(x: object, name: str = "x") -> Tensor:
    """A batch of samples: a real floating-point dense tensor of shape (batch, *event)."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor of shape (batch, *event), got {type(x)}")
    if not x.is_floating_point() or x.layout != torch.strided:
        raise TypeError(
            f"{name} must be a dense tensor of a real floating-point dtype, got {x.dtype} "
            f"({x.layout}); convert it with .to(torch.float32) and scale it to the data's range"
        )
    if x.dim() == 0:
        raise ValueError(f"{name} must have shape (batch, *event), got a scalar; add a batch axis")
    return x


def check_same_shape(name: str, got: Tensor, x: Tensor) -> None:
    """Shapes must agree exactly: broadcasting would hide a wrong network."""
    if got.shape != x.shape:
        raise ValueError(
            f"{name} must have the shape of x, {tuple(x.shape)}, got {tuple(got.shape)}; "
            "nothing is broadcast"
        )


def check_finite(name: str, x: Tensor) -> None:
    """Refuse NaN and infinity, naming the first rows that hold them."""
    if not bool(torch.isfinite(x).all()):
        bad = (~torch.isfinite(x.reshape(len(x), -1))).any(1).nonzero().flatten().tolist()
        raise ValueError(
            f"{name} must be finite, got NaN or infinity in {len(bad)} rows, the first at "
            f"{bad[:5]}; remove or repair them"
        )


def check_times(t: Tensor, t_max: float, t_min: float = 0.0) -> None:
    """Times lie in [0, t_max], up to rounding; below t_min only 0 itself."""
    slack = 4 * torch.finfo(torch.float64).eps * max(1.0, t_max)
    if t.dtype == torch.float32:
        slack = 4 * torch.finfo(torch.float32).eps * max(1.0, t_max)
    if t.numel() == 0:
        return
    low, high = float(t.min()), float(t.max())
    if not (low >= -slack and high <= t_max + slack):
        raise ValueError(
            f"times must lie in [0, {t_max:g}] (0 is data, {t_max:g} is noise), "
            f"got values from {low:g} to {high:g}"
        )
    inside = t[(t > slack) & (t < t_min * (1 - 1e-9))]
    if inside.numel():
        raise ValueError(
            f"times must be 0 or at least t_min = {t_min:g}, got {float(inside.min()):g}; "
            "build the process with a smaller t_min to go there"
        )


def check_grid(times: object, t_max: float, t_min: float, direction: str) -> Tensor:
    """A grid that suits a solver: float64, finite, inside the domain, and in its direction.

    Args:
        direction: "down" (times fall), "both" (rise or fall), "fixed" (fall or repeat) or "any"
            (differ).
    """
    if not isinstance(times, Tensor):
        raise TypeError(f"a grid must return a torch.Tensor of times, got {type(times)}")
    if times.dim() != 1 or len(times) < 2:
        raise ValueError(
            f"a grid needs at least two times in one axis, got shape {tuple(times.shape)}"
        )
    times = times.detach().to("cpu", torch.float64)
    if not bool(torch.isfinite(times).all()):
        raise ValueError(f"times must be finite, got {times.tolist()}")
    check_times(times, t_max, t_min)
    step = times.diff()
    wrong = {
        "down": step >= 0,
        "both": (step * torch.sign(step[0]) <= 0) if len(step) else step,
        "fixed": step > 0,
        "any": step == 0,
    }[direction]
    if bool(wrong.any()):
        i = int(wrong.nonzero()[0])
        rule = {
            "down": "fall strictly from noise to data",
            "both": "be strictly monotone",
            "fixed": "repeat or fall",
            "any": "change at every move",
        }[direction]
        raise ValueError(
            f"the times of this solver must {rule}, but times[{i}] = {float(times[i]):.12g} is "
            f"followed by {float(times[i + 1]):.12g}; sort the grid and drop repeated values"
        )
    if direction == "down" and bool((times[:-1] == 0).any()):
        raise ValueError("0 may only be the last time of a grid")
    return times.clamp(0.0, t_max)
