"""A multistep solver whose times and weights are a table, fitted to one network."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field, is_dataclass
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from .._checks import check_choice
from .._files import digest
from .._identity import machinery, recipe
from ..grids import Times
from ..models import Prediction, ScoreModel, ScoreNetwork
from ..models.base import Given
from ..models.parameterization import X0, Eps, LearnedVariance, Score
from ..noise import Noise
from ..processes import SDE, Level
from ..sampling import Sampler, Solver

__all__ = ["Fit", "Tuned"]

Basis = Literal["eps", "x0", "v"]
Condition = tuple[tuple[str, tuple[int, ...] | None], ...]


class Fit(NamedTuple):
    """Distance of a sampler's ends from those of the network's own fine trajectories, per pixel.

    Attributes:
        rms: root mean square over trajectories.
        median: of the trajectories' own root mean squares.
        most: their 90 % quantile.

    >>> print(Fit(0.05, 0.02, 0.1))
    RMS 0.05, median 0.02, 90 % below 0.1
    """

    rms: float
    median: float
    most: float

    def __str__(self) -> str:
        return f"RMS {self.rms:.3g}, median {self.median:.3g}, 90 % below {self.most:.3g}"

    @classmethod
    def of(cls, squares: Tensor) -> Fit:
        """From the mean square of each trajectory, shape (K,).

        >>> Fit.of(torch.tensor([1.0, 4.0, 9.0])).median
        2.0
        """
        each = squares.double().sqrt()
        return cls(
            float(squares.double().mean().sqrt()),
            float(each.median()),
            float(each.quantile(0.9)),
        )


@dataclass(frozen=True)
class Tuned(Solver):
    """x_i / s_i = a_i x_T / s_T + m_i mean + sum_{j<i} B_ij out_j, with s = hypot(alpha, sigma).

    The form of every noise-free multistep method with fixed coefficients, in its own times (bespoke
    non-stationary solvers: Shaul et al. 2024, 2403.01329; S4S: Frankel et al. 2025, 2502.17423).
    Row 0 makes the first state without an evaluation, row n the output at sigma = 0. `out` is the
    network's own output, so that a row of weights multiplies its error by what it shows. It runs on
    its own times alone (`sampler` has them) and with the network, process and condition it was
    fitted to; others are refused on the first move.

    Args:
        times: of the n evaluations, falling.
        rows: n + 1 rows; row i holds a_i, m_i, B_i0 .. B_i(i-1).
        basis: what out is: "eps", "x0", or "v" = (alpha eps - sigma x0) / s.
        event: shape of one sample.
        mean: mu, flat.
        process: that it was fitted on.
        network: fingerprint of the network, guidance included.
        condition: names of the conditions, each with the whole numbers it was fitted to, or None
            where any value is taken.
        start: the sampler that the fit began at, in words.
        improved: whether the fit is better than that start on trajectories it has not seen; if not,
            the table is the start itself.
        before: held-out error of the start.
        training: error on the trajectories of the fit.
        held_out: error on others.

    >>> from scoregen import DDIM, EDMSDE, Gaussian, Karras
    >>> from scoregen.tuning import as_table
    >>> model = Gaussian(EDMSDE(), torch.zeros(2), torch.ones(2))
    >>> solver = as_table(Sampler(DDIM(), Karras(3)), model, (2,))
    >>> len(solver.times), len(solver.rows)
    (3, 4)
    """

    times: tuple[float, ...]
    rows: tuple[tuple[float, ...], ...]
    basis: Basis
    event: tuple[int, ...]
    mean: tuple[float, ...] = field(repr=False)
    process: SDE
    network: str
    condition: Condition = ()
    start: str = ""
    improved: bool = False
    before: Fit | None = None
    training: Fit | None = None
    held_out: Fit | None = None
    nfe = None

    def __post_init__(self) -> None:
        check_choice("basis", self.basis, ("eps", "x0", "v"))
        if len(self.rows) != len(self.times) + 1 or any(
            len(row) != 2 + i for i, row in enumerate(self.rows)
        ):
            raise ValueError(
                f"{len(self.times)} times need {len(self.times) + 1} rows of 2, 3, ... numbers, "
                f"got {[len(row) for row in self.rows]}"
            )
        if len(self.mean) != math.prod(self.event):
            raise ValueError(
                f"mean must hold {math.prod(self.event)} numbers, got {len(self.mean)}"
            )
        if not all(math.isfinite(v) for row in (*self.rows, self.times, self.mean) for v in row):
            raise ValueError("times, rows and mean must be finite")

    @property
    def grid(self) -> Times:
        """t_max, the times of the evaluations, and 0."""
        first = (self.process.t_max,) if self.times[0] != self.process.t_max else ()
        return Times(*first, *self.times, 0.0)

    def sampler(self) -> Sampler:
        """The solver on its own times."""
        return Sampler(self, self.grid)

    def __str__(self) -> str:
        lines = [f"{len(self.times)} evaluations, out = {self.basis}, begun at {self.start}"]
        head = f"{'sigma / alpha':>13} {'x_T':>9} {'mean':>9}"
        lines.append(head + "".join(f" {f'out_{j}':>9}" for j in range(len(self.times))))
        ratios = [f"{math.exp(-self.process.level(t).lam):.5g}" for t in self.times]
        for ratio, row in zip([*ratios, "0"], self.rows, strict=True):
            lines.append(f"{ratio:>13}" + "".join(f" {value:9.4f}" for value in row))
        if self.before and self.training and self.held_out:
            lines.append(f"the start, held out: {self.before}")
            lines.append(f"training: {self.training}")
            lines.append(f"held out: {self.held_out}")
            if not self.improved:
                lines.append("the fit was no better than the start, and this is the start")
        return "\n".join(lines)

    def step(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        if state is None:
            self._check(model, x)
            mean = torch.tensor(self.mean, dtype=torch.float64).to(x.device, x.dtype)
            known: tuple[Tensor, ...] = (x / size(t), mean.reshape(self.event).expand_as(x))
            if not self.at(t, 0):
                return size(s) * combine(self.rows[0], known), known
        else:
            known = state
        index = len(known) - 2
        if index >= len(self.times) or not self.at(t, index):
            raise ValueError(
                f"a tuned solver runs on its own times, and t = {t.t:g} is not the time of "
                f"evaluation {index + 1}; use solver.sampler()"
            )
        known = (*known, out_of(model(x, t), self.basis))
        return size(s) * combine(self.rows[index + 1], known), known

    def at(self, t: Level, index: int) -> bool:
        """Whether a level is that of evaluation `index`."""
        return t.t == self.times[index]

    def _check(self, model: ScoreModel, x: Tensor) -> None:
        if x.shape[1:] != self.event:
            raise ValueError(f"fitted to events {self.event}, got x of shape {tuple(x.shape)}")
        if model.sde != self.process:
            raise ValueError(
                f"fitted on {self.process!r:.200}, and this model is on {model.sde!r:.200}; tune "
                "again"
            )
        network, condition = identity(model)
        if network != self.network:
            raise ValueError(
                f"fitted to the network {self.network}, and this one is {network}: other weights, "
                "settings or guidance; tune again"
            )
        if [name for name, _ in condition] != [name for name, _ in self.condition]:
            raise ValueError(
                f"fitted under the conditions {[name for name, _ in self.condition]}, and now "
                f"there are {[name for name, _ in condition]}; tune again"
            )
        for (name, values), (_, known) in zip(condition, self.condition, strict=True):
            if known is None:
                continue
            new = set(values or ()) - set(known)
            if values is None or new:
                raise ValueError(
                    f"fitted to {name} in {list(known)}, got "
                    f"{'something else' if values is None else sorted(new)}; tune again"
                )


def size(t: Level) -> float:
    return math.hypot(t.alpha, t.sigma)


def combine(row: tuple[float, ...], known: tuple[Tensor, ...]) -> Tensor:
    """sum_j row_j known_j, one kernel a term."""
    w = row[0] * known[0]
    for weight, part in zip(row[1:], known[1:], strict=True):
        w = w.add_(part, alpha=weight)
    return w


def out_of(p: Prediction, basis: Basis) -> Tensor:
    """The output of a network in the basis' form."""
    if basis == "eps":
        return p.eps
    if basis == "x0":
        return p.x0
    s = size(p.t)
    return p.combine(-p.t.sigma / s, p.t.alpha / s)


def parameterizations(model: ScoreModel) -> set[type]:
    """What the networks inside predict; a model without any stands for itself."""
    kinds: set[type] = set()
    for inner in model.modules():
        if isinstance(inner, ScoreNetwork):
            meaning = inner.parameterization
            kinds.add(type(meaning.inner if isinstance(meaning, LearnedVariance) else meaning))
    return kinds or {type(model)}


def basis_of(model: ScoreModel) -> Basis:
    """eps and x0 for networks of these; v for all others, whose error no conversion enlarges."""
    kinds = parameterizations(model)
    if kinds <= {Eps, Score}:
        return "eps"
    return "x0" if kinds == {X0} else "v"


_KNOWN: WeakKeyDictionary[ScoreModel, tuple[tuple[int, ...], str]] = WeakKeyDictionary()


def identity(model: ScoreModel) -> tuple[str, Condition]:
    """Fingerprint of a model without the conditions bound to it, and what these are.

    Weights are hashed again only if one of them was written to since.
    """
    condition: dict[str, Any] = {}
    while isinstance(model, Given):
        condition |= model.condition
        model = model.model
    tensors = (*model.parameters(), *model.buffers())
    versions = tuple(n for tensor in tensors for n in (tensor.data_ptr(), tensor._version))
    known = _KNOWN.get(model)
    if known is None or known[0] != versions:
        known = _KNOWN[model] = versions, _with_settings(model)
    return known[1], describe_condition(condition)


def _with_settings(model: ScoreModel) -> str:
    """Weights, code of your own, and every plain attribute of every module, private ones included.

    The scale of a guidance, which decides the result as weights do, is such an attribute. Libraries
    count by name alone: a fitted sampler outlives an update.
    """
    held = [*model.named_parameters(), *model.named_buffers()]
    lines = [digest(held), recipe(model, "the network")]
    for name, module in model.named_modules():
        # "predict" stands among the attributes while evaluations are counted
        without = {*machinery(module), "predict"}
        own = {k: v for k, v in vars(module).items() if k not in without}
        lines.append(f"{name} {type(module).__qualname__} {_text(own)}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def _text(value: Any) -> str:
    """A value in words that say all of it; functions and foreign objects by their class alone."""
    if isinstance(value, Tensor):
        return digest([("", value)])
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k!r}: {_text(value[k])}" for k in sorted(value, key=repr)) + "}"
    if isinstance(value, list | tuple):
        return "(" + ", ".join(map(_text, value)) + ")"
    plain = value is None or isinstance(value, bool | int | float | str)
    if plain or (is_dataclass(value) and not isinstance(value, type)):
        return repr(value)
    return type(value).__qualname__


def describe_condition(condition: dict[str, Any]) -> Condition:
    """Names in order, with the values that occur where these are whole numbers."""
    described = []
    for name in sorted(condition):
        value = condition[name]
        values: tuple[int, ...] | None = None
        if isinstance(value, Tensor) and not value.is_floating_point() and value.numel():
            values = tuple(sorted({int(v) for v in value.reshape(-1).tolist()}))
        elif isinstance(value, int):
            values = (int(value),)
        described.append((name, values))
    return tuple(described)
