"""Argument validation: what must hold, what was got, what to do."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["DivergenceError"]


class DivergenceError(RuntimeError):
    """A sampler produced values that are not finite.

    Attributes:
        step: index of the first move whose result was not finite, counted from 1; 0 where the
            start was not finite, None where the move could not be found.
        t: the time that move started from; None where the move could not be found.
        rows: indices of the samples that failed there.
        partial: the last state that was finite, shaped like the sample batch; None where there is
            none.
        reason: what the solver knows of the failure, or why the move is not known; "" for nothing.

    >>> raise DivergenceError(3, 0.5, [0, 2])
    Traceback (most recent call last):
        ...
    scoregen._checks.DivergenceError: move 3 (from t = 0.5) left values that are not finite in 2 \
rows (0, 2); take more or smaller steps, or start closer to the data
    """

    def __init__(
        self,
        step: int | None,
        t: float | None,
        rows: Sequence[int],
        partial: Tensor | None = None,
        reason: str = "",
    ):
        self.step, self.t, self.rows, self.partial = step, t, list(rows), partial
        self.reason = reason
        shown = ", ".join(str(r) for r in self.rows[:5]) + (", ..." if len(self.rows) > 5 else "")
        bad = f"values that are not finite in {len(self.rows)} rows ({shown})"
        if step == 0:
            text = f"the start (t = {t:g}) holds {bad}; remove or repair them"
        elif step is None or t is None:
            text = f"a move left {bad}; which one is not known, because {reason}"
        else:
            advice = reason or "take more or smaller steps, or start closer to the data"
            text = f"move {step} (from t = {t:g}) left {bad}; {advice}"
        super().__init__(text)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.step, self.t, self.rows, self.partial, self.reason)

    def among(self, samples: Sequence[int]) -> DivergenceError:
        """The same error for rows that are these samples of a larger batch."""
        rows = [samples[row] for row in self.rows]
        return type(self)(self.step, self.t, rows, self.partial, self.reason)


def shown(value: object) -> str:
    """What was got, in a few words: tensors by shape and dtype, other values by their repr."""
    if isinstance(value, Tensor) and (value.dim() > 0 or value.is_complex()):
        return f"a tensor of shape {tuple(value.shape)} and {value.dtype}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    text = repr(value)
    if len(text) > 60 or "\n" in text:
        return f"a value of type {type(value).__name__}"
    return text


def check_count(name: str, value: object, least: int = 1) -> int:
    """Return `value` as an int, or refuse it by name.

    Whole numbers are Python's, NumPy's, and whole tensors of no dimension; no bools.
    """
    whole = hasattr(value, "__index__") and not isinstance(value, bool | np.bool_)
    if isinstance(value, Tensor):
        whole = not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
    if not whole or getattr(value, "ndim", 0) != 0:
        raise TypeError(f"{name} must be an integer, got {shown(value)}")
    count = operator.index(value)  # type: ignore[arg-type]
    if count < least:
        raise ValueError(f"{name} must be at least {least}, got {count}")
    return count


def check_number(
    name: str,
    value: object,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
    infinite: bool = False,
) -> float:
    """Return `value` as a float inside the interval, or name the interval it must lie in.

    Infinity is refused unless `infinite` declares it a value of its own.

    Real numbers are Python's, NumPy's, and real tensors of no dimension; no bools, and no arrays
    of one element, whose axis must be a mistake.
    """
    real = not isinstance(value, bool | np.bool_ | np.complexfloating)
    if isinstance(value, Tensor):
        real = not value.is_complex() and value.dtype != torch.bool
    if not real or getattr(value, "ndim", 0) != 0 or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a real number, got {shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(f"{name} must fit into a float, got a larger integer") from None
    open_low = open_low or (low == -math.inf and not infinite)
    open_high = open_high or (high == math.inf and not infinite)
    below = number <= low if open_low else number < low
    above = number >= high if open_high else number > high
    if below or above or math.isnan(number):
        if low == -math.inf and high == math.inf and not infinite:
            raise ValueError(f"{name} must be finite, got {number:g}")
        span = f"{'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"
        raise ValueError(f"{name} must lie in {span}, got {number:g}")
    return number


def check_entries(name: str, values: object, what: str) -> list[Any]:
    """The entries of a sequence, array or tensor with one axis."""
    flat = isinstance(values, Iterable) and not isinstance(values, str | bytes | dict)
    if not flat or getattr(values, "ndim", 1) != 1:
        raise TypeError(f"{name} must be a sequence of {what}, got {shown(values)}")
    # NumPy and torch make Python's numbers of theirs at once
    listed: Any = values.tolist() if hasattr(values, "tolist") else values
    return list(listed)


def check_numbers(
    name: str,
    values: object,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> tuple[float, ...]:
    """Return a sequence, array or tensor of one axis as floats, each checked by `check_number`."""
    return tuple(
        check_number(f"{name}[{i}]", value, low, high, open_low=open_low, open_high=open_high)
        for i, value in enumerate(check_entries(name, values, "real numbers"))
    )


def check_counts(name: str, values: object, least: int = 1) -> tuple[int, ...]:
    """Return a sequence, array or tensor of one axis as ints, each checked by `check_count`."""
    return tuple(
        check_count(f"{name}[{i}]", value, least)
        for i, value in enumerate(check_entries(name, values, "integers"))
    )


def check_range(name: str, value: object) -> tuple[float, float]:
    """Return (low, high), two finite numbers of which the first is smaller."""
    ends = check_numbers(name, value)
    if len(ends) != 2:
        raise ValueError(f"{name} must be two numbers (low, high), got {len(ends)}")
    low, high = ends
    if low >= high:
        raise ValueError(f"{name} must be (low, high) with low < high, got ({low:g}, {high:g})")
    return low, high


def check_path(name: str, value: object) -> Path:
    """Return a path of text as a Path, or refuse it by name; it need not exist."""
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a path, a str or an os.PathLike, got {shown(value)}")
    if not text:
        raise ValueError(f"{name} must be a path, got an empty string; name a file or a folder")
    if "\0" in text:
        raise ValueError(f"{name} must be a path without null characters, got {shown(value)}")
    return Path(text)


def check_device(name: str, value: object) -> torch.device:
    """Return a device on which a tensor can be made, by its name, its number or as it is."""
    if not isinstance(value, str | int | torch.device) or isinstance(value, bool):
        raise TypeError(f"{name} must be a device, such as 'cpu' or 'cuda:0', got {shown(value)}")
    try:
        device = torch.device(value)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        known = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise ValueError(
            f"{name} {value} cannot be used here ({reason}); there are: {', '.join(known)}"
        ) from error
    return device


def check_kind(
    name: str, value: object, kind: type[Any] | tuple[type[Any], ...], example: str
) -> None:
    """Refuse what is not an instance of a class, with an example of what is."""
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        what = " or ".join("None" if k is type(None) else k.__name__ for k in kinds)
        hint = ": make an instance of it" if isinstance(value, type) else ""
        article = "an" if what[0] in "AEIO" else "a"
        raise TypeError(
            f"{name} must be {article} {what}, such as {example}; got {shown(value)}{hint}"
        )


def check_callable(name: str, value: object, signature: str) -> None:
    """Refuse what cannot be called, with the signature that is needed."""
    if not callable(value):
        raise TypeError(f"{name} must be a function {signature}, got {shown(value)}")


def check_flag(name: str, value: object) -> None:
    """Refuse all but True and False: the truth of other values is a guess."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {shown(value)}")


def check_flags(name: str, values: object) -> tuple[bool, ...]:
    """Return a sequence, array or tensor of one axis as bools, each checked by `check_flag`."""
    flags = tuple(check_entries(name, values, "True and False"))
    for i, flag in enumerate(flags):
        check_flag(f"{name}[{i}]", flag)
    return flags


def check_tensor(name: str, value: object) -> Tensor:
    """A real tensor, of any shape and dtype."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {shown(value)}")
    return check_real(name, value)


def check_real(name: str, value: Tensor) -> Tensor:
    """Refuse complex numbers, whose imaginary part a conversion would drop."""
    if value.is_complex():
        raise TypeError(
            f"{name} must be real, got {value.dtype}: a conversion would drop the imaginary part; "
            "use torch.view_as_real, which gives it an axis of its own"
        )
    return value


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Refuse a word that is not among the choices."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(
            f"{name} must be one of {', '.join(map(repr, choices))}; got {shown(value)}"
        )


def check_state(x: object, name: str = "x") -> Tensor:
    """A batch of samples: a real floating-point dense tensor of shape (batch, *event)."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor of shape (batch, *event), got {shown(x)}")
    check_real(name, x)
    if not x.is_floating_point() or x.layout != torch.strided:
        raise TypeError(
            f"{name} must be a dense tensor of a real floating-point dtype, got {x.dtype} "
            f"({x.layout}); convert it with .to(torch.float32) and scale it to the data's range"
        )
    if x.dim() == 0:
        raise ValueError(f"{name} must have shape (batch, *event), got a scalar; add a batch axis")
    return x


def check_data(x: object, name: str = "x") -> Tensor:
    """A batch of samples as `check_state` has it, and finite: for entry points that take data."""
    x = check_state(x, name)
    check_finite(name, x)
    return x


def check_batch(x: object, name: str = "x0") -> Tensor:
    """`check_data` for what is called in every step of a training: finite on the CPU alone.

    On a device the answer would have to be waited for.
    """
    x = check_state(x, name)
    if x.is_cpu:
        check_finite(name, x)
    return x


def check_same_shape(name: str, got: Tensor, x: Tensor) -> None:
    """Shapes must agree exactly: broadcasting would hide a wrong network."""
    if got.shape != x.shape:
        raise ValueError(
            f"{name} must have the shape of x, {tuple(x.shape)}, got {tuple(got.shape)}; "
            "nothing is broadcast"
        )


def check_broadcast(name: str, *shapes: Sequence[int]) -> None:
    """Refuse shapes that do not broadcast against one another."""
    try:
        torch.broadcast_shapes(*shapes)
    except RuntimeError:
        got = ", ".join(str(tuple(shape)) for shape in shapes)
        raise ValueError(f"{name} must broadcast, got {got}") from None


def check_finite(name: str, x: Tensor) -> None:
    """Refuse NaN and infinity, naming the first rows that hold them."""
    if not bool(torch.isfinite(x).all()):
        if x.dim() == 0:
            raise ValueError(f"{name} must be finite, got {float(x):g}")
        bad = (~torch.isfinite(x.reshape(len(x), -1))).any(1).nonzero().flatten().tolist()
        raise ValueError(
            f"{name} must be finite, got NaN or infinity in {len(bad)} rows, the first at "
            f"{bad[:5]}; remove or repair them"
        )


def check_times(t: Tensor, t_max: float, t_min: float = 0.0) -> None:
    """Times lie in [0, t_max], up to rounding; below t_min only 0 itself."""
    check_tensor("times", t)
    if t.numel() == 0:
        return
    eps = torch.finfo(t.dtype if t.is_floating_point() else torch.float64).eps
    slack = 4 * eps * max(1.0, t_max)
    low, high = float(t.min()), float(t.max())
    if not (low >= -slack and high <= t_max + slack):
        raise ValueError(
            f"times must lie in [0, {t_max:g}] (0 is data, {t_max:g} is noise), "
            f"got values from {low:g} to {high:g}"
        )
    inside = t[(t > slack) & (t < t_min * (1 - max(1e-9, 4 * eps)))]
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
        raise TypeError(f"a grid must return a torch.Tensor of times, got {type(times).__name__}")
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
