"""Tables and plots of a sampler's exact errors, and where they come from."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from torch import Tensor

from .._checks import check_counts, check_entries, check_kind
from ..densities import gaussian_w2
from ..grids import Times
from ..processes import SDE
from ..sampling import Sampler
from .law import OutputLaw, output_law

__all__ = ["ErrorRow", "ErrorTable", "analyse", "gaussian_error", "plot", "table"]


class ErrorRow(NamedTuple):
    """One line of the table of a sampler's errors; distances in the unit of the data.

    >>> ErrorRow("DDIM", 8, 8.0, 0.36, 0.1, (0.0,), (-0.1,), 0.01, 0.0, 0.35).nfe
    8.0
    """

    name: str
    steps: int
    nfe: float
    w2: float
    kl: float
    mean_error: tuple[float, ...]
    std_error: tuple[float, ...]
    prior: float
    jump: float
    discretisation: float


class ErrorTable(list[ErrorRow]):
    """Rows that print as a Markdown table.

    >>> print(ErrorTable())
    | sampler | steps | NFE | W2 | KL | mean | std | prior | jump | discretisation |
    |---|---|---|---|---|---|---|---|---|---|
    """

    def __str__(self) -> str:
        return table(self)


def gaussian_error(
    sampler: Sampler,
    sde: SDE,
    variances: Tensor | Sequence[float],
    mean: Tensor | float = 0.0,
    steps: Iterable[int] | None = None,
    *,
    start: Literal["exact", "prior"] = "prior",
    name: str | None = None,
) -> ErrorTable:
    """Exact errors over a ladder of steps, and where they come from.

    Each row has the W2 distance and KL(output || target) of the whole run, mean and relative
    standard-deviation error per direction, and three W2 distances that say what would be left if
    everything else were exact: `prior`, the exact flow started from the prior; `jump`, the last
    move to sigma = 0 alone, begun at the exact law; `discretisation`, the run before that move,
    begun and judged at the exact laws. They do not add up: errors of opposite sign cancel.

    Args:
        sampler: on a grid with a count of steps, unless `steps` is None.
        sde: the process.
        variances: eigenvalues of the data's covariance, shape (d,).
        mean: of the data in the eigenbasis, () or (d,).
        steps: numbers of steps; the sampler's own grid alone if None.
        start: law that the whole run starts from.
        name: for the table; the solver's own if None.

    >>> from scoregen import DDIM, EDMSDE, Karras
    >>> rows = gaussian_error(Sampler(DDIM(), Karras(8)), EDMSDE(), (0.5, 2.0), steps=[8, 16])
    >>> rows[1].w2 < rows[0].w2
    True
    """
    check_kind("sampler", sampler, Sampler, "Sampler(DDIM(), UniformTime(20))")
    if name is not None:
        check_kind("name", name, str, '"DDIM"')
    samplers = [sampler] if steps is None else [sampler.with_steps(n) for n in _ladder(steps)]
    rows = ErrorTable()
    for each in samplers:
        law = output_law(each, sde, variances, mean, start=start)
        prior, jump, discretisation = _split(each, sde, law, variances, mean)
        rows.append(
            ErrorRow(
                name or repr(sampler.solver),
                len(each.levels(sde)) - 1,
                law.nfe,
                law.w2,
                law.kl,
                tuple(law.mean_error.tolist()),
                tuple(law.std_error.tolist()),
                prior,
                jump,
                discretisation,
            )
        )
    return rows


def _ladder(steps: Iterable[int]) -> tuple[int, ...]:
    """Numbers of steps from any iterable, at least one."""
    counts = check_counts("steps", steps)
    if not counts:
        raise ValueError("steps must hold at least one number of steps, got none")
    return counts


def _split(
    sampler: Sampler,
    sde: SDE,
    law: OutputLaw,
    variances: Tensor | Sequence[float],
    mean: Tensor | float,
) -> tuple[float, float, float]:
    """W2 of the prior's mismatch, of the last move to sigma = 0, and of the moves before it."""
    t, s = law.start, law.stop
    spread = (law.flow_gain * sde.prior_std(t.t)).square()
    missed = gaussian_w2(law.flow_offset, spread, law.target_mean, law.target_variance)
    prior = float(missed)
    times = [level.t for level in sampler.levels(sde)]
    if s.sigma > 0:
        return prior, 0.0, output_law(sampler, sde, variances, mean).w2
    last = output_law(Sampler(sampler.solver, Times(*times[-2:])), sde, variances, mean).w2
    if len(times) == 2:
        return prior, last, 0.0
    rest = Sampler(sampler.solver, Times(*times[:-1]))
    return prior, last, output_law(rest, sde, variances, mean).w2


def _rows(rows: Iterable[ErrorRow]) -> list[ErrorRow]:
    listed = check_entries("rows", rows, "ErrorRow")
    for i, row in enumerate(listed):
        check_kind(f"rows[{i}]", row, ErrorRow, "a row of gaussian_error")
    return listed


def table(rows: Iterable[ErrorRow]) -> str:
    """The rows as a Markdown table.

    >>> print(table([ErrorRow("DDIM", 8, 8.0, 0.36, 0.1, (0.0,), (-0.1,), 0.01, 0.0, 0.35)]))
    | sampler | steps | NFE | W2 | KL | mean | std | prior | jump | discretisation |
    |---|---|---|---|---|---|---|---|---|---|
    | DDIM | 8 | 8 | 3.6e-01 | 1.0e-01 | 0.0e+00 | -1.0e-01 | 1.0e-02 | 0.0e+00 | 3.5e-01 |
    """
    head = "sampler | steps | NFE | W2 | KL | mean | std | prior | jump | discretisation"
    lines = [f"| {head} |", "|" + "---|" * 10]
    for row in _rows(rows):
        worst_mean = max(row.mean_error, key=abs)
        worst_std = max(row.std_error, key=abs)
        numbers = (row.w2, row.kl, worst_mean, worst_std, row.prior, row.jump, row.discretisation)
        cells = [row.name, str(row.steps), f"{row.nfe:g}", *(f"{v:.1e}" for v in numbers)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(rows: Iterable[ErrorRow], path: Path | str) -> Path:
    """Draw W2 against counted evaluations on logarithmic axes, with matplotlib.

    Args:
        rows: of `gaussian_error`, in any order.
        path: where the picture goes; its suffix names the format.

    Returns:
        The path.

    >>> import tempfile
    >>> row = ErrorRow("DDIM", 8, 8.0, 0.36, 0.1, (0.0,), (-0.1,), 0.01, 0.0, 0.35)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     plot([row], Path(folder) / "w2.png").name
    'w2.png'
    """
    check_kind("path", path, (str, Path), '"w2.png"')
    listed = _rows(rows)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines: dict[str, list[tuple[float, float]]] = {}
    for row in listed:
        lines.setdefault(row.name, []).append((row.nfe, row.w2))
    figure = Figure(figsize=(7, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, points in lines.items():
        axes.loglog(*zip(*sorted(points), strict=True), marker="o", markersize=3, label=name)
    axes.set_xlabel("evaluations of the model per sample")
    axes.set_ylabel("W2 to the target")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    return Path(path)


def analyse(
    samplers: Mapping[str, Sampler],
    sde: SDE,
    variances: Tensor | Sequence[float],
    steps: Iterable[int] | None = (8, 16, 32, 64, 128),
    out: Path | str | None = None,
    *,
    mean: Tensor | float = 0.0,
    start: Literal["exact", "prior"] = "prior",
) -> ErrorTable:
    """The table of several samplers on one Gaussian; with `out`, also analysis.md and analysis.png.

    Args:
        samplers: by name.
        sde: the process.
        variances: eigenvalues of the data's covariance, shape (d,).
        steps: numbers of steps; each sampler's own grid alone if None.
        out: a folder, made if missing.
        mean: of the data in the eigenbasis, () or (d,).
        start: law that the runs start from.

    Returns:
        The rows, sampler by sampler; `print(rows)` shows the table.

    >>> from scoregen import DDIM, EDMSDE, Karras
    >>> rows = analyse({"ddim": Sampler(DDIM(), Karras(8))}, EDMSDE(), (0.5, 2.0), steps=[8, 16])
    >>> [(row.name, row.steps) for row in rows]
    [('ddim', 8), ('ddim', 16)]
    """
    check_kind("samplers", samplers, Mapping, '{"ddim": Sampler(DDIM(), UniformTime(20))}')
    for name, sampler in samplers.items():
        check_kind(f"samplers[{name!r}]", sampler, Sampler, "Sampler(DDIM(), UniformTime(20))")
    ladder = None if steps is None else _ladder(steps)
    if out is not None:
        check_kind("out", out, (str, Path), '"analysis"')
        if importlib.util.find_spec("matplotlib") is None:
            raise ImportError("out=... draws a plot with matplotlib: pip install 'scoregen[bench]'")
    rows = ErrorTable()
    for name, sampler in samplers.items():
        rows += gaussian_error(sampler, sde, variances, mean, ladder, start=start, name=name)
    if out is not None:
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "analysis.md").write_text(table(rows) + "\n")
        plot(rows, folder / "analysis.png")
    return rows
