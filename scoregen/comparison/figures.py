"""Figures: quality against cost with intervals and names at the lines' ends, and the samples."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from .._checks import (
    check_choice,
    check_entries,
    check_kind,
    check_number,
    check_path,
    check_range,
    check_tensor,
    shown,
)
from .._figures import figure, tile_images, written
from .statistics import Study, Summary, check_study

__all__ = ["plot_quality", "plot_samples"]

# Okabe and Ito's colours by falling luminance contrast: they stay apart in grey print
_COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
_MARKS = "osD^vP*X<"  # one more than colours: no pair comes twice in 72 lines
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.5, 1.2, 1.5)))
_LABELS = {
    "nfe": "network evaluations per sample",
    "depth": "evaluations one after the other",
    "seconds": "seconds for all samples",
}
_INK, _FAINT, _SHADE = "#111111", "#bbbbbb", "#dfe9da"
_SIZES = 2.0, 100.0  # of text in points
_WIDTHS = 1.0, 300.0  # inches: beyond them nothing is legible, or no picture can be made
_BAND = 1.09  # how far a band of ties reaches to either side, as a factor of the cost


def plot_quality(
    study: Study,
    path: str | Path,
    *,
    metrics: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    x: Literal["nfe", "depth", "seconds"] = "nfe",
    width: float | None = None,
    size: float = 8.0,
    heading: str = "",
) -> Path:
    """Quality against cost, a panel per metric, with 95 % intervals and the floor at equal n.

    Within each budget a band is shaded that holds the best sampler and those that tie with it.

    Args:
        study: a comparison.
        path: PNG, PDF or SVG to write, by its ending.
        metrics: titles; all unless given.
        names: samplers to draw in colour; the others stay grey and nameless. All unless given.
        x: the cost.
        width: of the figure in inches: 3.3 for one column of a paper, 6.8 for two.
        size: of the text in points.
        heading: a line above the panels: what the figure shows.

    Raises:
        ImportError: without matplotlib, naming the extra that brings it.
        ValueError: for a metric, name or cost that is not here.

    >>> import tempfile, torch
    >>> from scoregen import DDIM, VPSDE, Gaussian, Sampler, UniformTime, compare
    >>> from scoregen.metrics import MMD
    >>> model = Gaussian(VPSDE(), torch.zeros(2), torch.ones(2))
    >>> study = compare(model, {"ddim": Sampler(DDIM(), UniformTime(5))}, steps=[5, 10],
    ...                 metrics=[MMD(1.0)], reference=model.sample(9).float(), progress=False)
    >>> plot_quality(study, Path(tempfile.mkdtemp()) / "quality.pdf", width=3.3).exists()
    True
    """
    path = check_path("path", path)
    check_kind("heading", heading, str, "'Samplers compared'")
    made = quality_figure(study, metrics=metrics, names=names, x=x, width=width, size=size)
    if heading:
        letters = made.get_size_inches()[0] * 72 / (0.62 * (size + 1))  # of a bold line
        lines = "\n".join(textwrap.wrap(heading, int(letters), break_on_hyphens=False))
        made.suptitle(lines, fontsize=size + 1, color=_INK, x=0.01, ha="left", weight="bold")
    return written(made, path)


def quality_figure(
    study: Study,
    *,
    metrics: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    x: Literal["nfe", "depth", "seconds"] = "nfe",
    width: float | None = None,
    size: float = 8.0,
) -> Any:
    """The figure that `plot_quality` writes."""
    check_study(study)
    check_choice("x", x, tuple(_LABELS))
    size = check_number("size", size, *_SIZES)
    if width is not None:
        width = check_number("width", width, *_WIDTHS)
    chosen = study.metrics if metrics is None else check_entries("metrics", metrics, "titles")
    every = list(dict.fromkeys(s.name for s in study.summaries))
    named = every if names is None else check_entries("names", names, "names of samplers")
    if not chosen:
        raise ValueError("metrics must list at least one title, got none")
    for metric in chosen:
        check_choice("metric", metric, study.metrics)
    for name in named:
        check_choice("name", name, every)
    wide = 4.2 * len(chosen) if width is None else width
    made = figure(wide, max(2.3, min(3.6, 0.78 * wide / len(chosen)), 0.2 * len(named) + 1.0))
    panels = made.subplots(1, len(chosen), squeeze=False)[0]
    for panel, metric in zip(panels, chosen, strict=True):
        _panel(panel, study, metric, every, named, x, size)
    return made


def _panel(
    panel: Any,
    study: Study,
    metric: str,
    every: Sequence[str],
    named: Sequence[str],
    x: str,
    size: float,
) -> None:
    done = [s for s in study.summaries if s.metric == metric and math.isfinite(s.value)]
    ends: list[tuple[float, float, str, str]] = []
    _axes(panel, study, done, metric, x, size)
    if x != "seconds":  # a band as wide as the seconds of a budget would cover other budgets
        _ties(panel, study, done, x)
    for name in sorted(every, key=lambda n: n in named):
        line = sorted((s for s in done if s.name == name), key=lambda s: float(getattr(s, x)))
        if not line:
            continue
        at = [float(getattr(s, x)) for s in line]
        values = [s.value for s in line]
        if name not in named:
            panel.plot(at, values, color=_FAINT, linewidth=0.8, zorder=1)
            continue
        i = named.index(name)
        colour = _COLOURS[i % len(_COLOURS)]
        reach = [
            [max(0.0, s.value - s.low) if math.isfinite(s.low) else 0.0 for s in line],
            [max(0.0, s.high - s.value) if math.isfinite(s.high) else 0.0 for s in line],
        ]
        panel.errorbar(
            at,
            values,
            yerr=reach,
            color=colour,
            marker=_MARKS[i % len(_MARKS)],
            linestyle=_DASHES[i // 2 % len(_DASHES)],
            markersize=size * 0.45,
            linewidth=1.2,
            elinewidth=0.9,
            capsize=1.5,
            zorder=3,
        )
        ends.append((at[-1], values[-1], name, colour))
    _names(panel, ends, size)


def _ties(panel: Any, study: Study, done: list[Summary], x: str) -> None:
    """A band around the best of each budget and what ties with it."""
    from matplotlib.patches import Rectangle

    for budget in sorted({s.budget for s in done if s.budget is not None}):
        level = study.ties([s for s in done if s.budget == budget])
        if len(level) < 2:
            continue
        at = [float(getattr(s, x)) for s in level]
        ends = [v for s in level for v in (s.low, s.value, s.high) if math.isfinite(v)]
        left, right = min(at) / _BAND, max(at) * _BAND
        size = right - left, max(ends) - min(ends)
        band = Rectangle((left, min(ends)), *size, facecolor=_SHADE, edgecolor="none", zorder=0)
        panel.add_patch(band)


def _axes(panel: Any, study: Study, done: list[Summary], metric: str, x: str, size: float) -> None:
    """Scales, ticks, the floor and the words."""
    values = [s.value for s in done]
    floor = study.manifest.get("floor", {}).get(metric)
    if study.direction(metric) == "lower" and values:
        if min(values) > 0 and all(s.low > 0 for s in done if math.isfinite(s.low)):
            panel.set_yscale("log")
        elif max(values) > 20 * abs(min(values)):  # an unbiased estimate may be negative
            errors = [s.stderr for s in done if math.isfinite(s.stderr) and s.stderr > 0]
            scale = max([max(errors, default=0.0) * 2, abs(min(values)), max(values) * 1e-4])
            panel.set_yscale("symlog", linthresh=scale)
    panel.set_xscale("log")
    budgets = sorted({s.budget for s in done if s.budget is not None})
    if x != "seconds" and budgets:
        panel.set_xticks(budgets, [str(b) for b in budgets])
        panel.minorticks_off()
    if x == "seconds":
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_formatter("{x:g}")
        ticks = [m * 10.0**e for e in range(-6, 6) for m in (2, 5)]
        panel.set_xticks(ticks, minor=True)
        at = [s.seconds for s in done if s.seconds > 0]
        if at:
            panel.set_xlim(0.8 * min(at), 1.25 * max(at))
    if floor:
        panel.axhline(floor["value"], color="#555555", linestyle=(0, (1, 1.5)), linewidth=1.0)
        panel.annotate(
            f"real data, n = {floor['count']}",
            (0.0, floor["value"]),
            xycoords=("axes fraction", "data"),
            xytext=(2, 2 if floor["value"] < min(values, default=0.0) else -2),
            va="bottom" if floor["value"] < min(values, default=0.0) else "top",
            textcoords="offset points",
            fontsize=size - 1,
            color="#444444",
        )
    better = "lower" if study.direction(metric) == "lower" else "higher"
    panel.set_title(f"{metric} ({better} is better)", fontsize=size, color=_INK, loc="left")
    panel.set_xlabel(_LABELS[x], fontsize=size, color=_INK)
    panel.tick_params(labelsize=size - 1, colors=_INK, width=0.6, length=2.5)
    panel.tick_params(which="minor", labelsize=size - 1.5, labelcolor=_INK, width=0.4, length=1.5)
    panel.grid(which="major", color=_FAINT, linewidth=0.4, alpha=0.6)
    panel.set_axisbelow(True)
    for name, side in panel.spines.items():
        side.set_visible(name not in ("top", "right"))
        side.set_color(_INK)
        side.set_linewidth(0.6)


def _names(panel: Any, ends: list[tuple[float, float, str, str]], size: float) -> None:
    """Names right of the panel, each at the height of its line's end, moved apart where needed."""
    if not ends:
        return
    low, high = panel.get_ylim()
    panel.set_ylim(low, high)
    scale = panel.transData
    bottom, top = (panel.transAxes.transform((0, v))[1] for v in (0.0, 1.0))
    heights = [(float(scale.transform((x, y))[1]) - bottom) / (top - bottom) for x, y, _, _ in ends]
    inches = panel.figure.get_size_inches()[1] * 0.72
    gap = 1.25 * size / 72 / inches
    order = sorted(range(len(ends)), key=heights.__getitem__)
    placed: dict[int, float] = {}
    before = -math.inf
    for i in order:
        placed[i] = before = max(min(heights[i], 1.0), before + gap, 0.0)
    over = max(0.0, before - 1.0)
    limit = math.inf
    for i in reversed(order):  # push back down what would leave the panel
        placed[i] = min(placed[i], limit, 1.0 if over else math.inf)
        limit = placed[i] - gap
    for i, (x, y, name, colour) in enumerate(ends):
        panel.annotate(
            name,
            (x, y),
            xycoords="data",
            xytext=(1.03, placed[i]),
            textcoords="axes fraction",
            fontsize=size,
            color=colour,
            va="center",
            ha="left",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "relpos": (0.0, 0.5),
                "color": colour,
                "linewidth": 0.4,
                "alpha": 0.6,
                "shrinkA": 0,
                "shrinkB": 2,
            },
        )


def plot_samples(
    samples: Mapping[tuple[str, float], Tensor],
    path: str | Path,
    *,
    data_range: tuple[float, float] = (-1.0, 1.0),
    unit: str = "evaluations",
) -> Path:
    """Samples per sampler (rows) and evaluations (columns): images in a tile, points in the plane.

    Images have 1 or 3 channels; of any other number the first is shown in grey.

    Args:
        samples: (name, budget or evaluations) -> samples (n, *event); equal seeds stand in equal
            places, so differences are the sampler's.
        path: file to write.
        data_range: values shown as black and white.
        unit: what the columns count.

    >>> import tempfile, torch
    >>> path = Path(tempfile.mkdtemp()) / "samples.png"
    >>> plot_samples({("ddim", 10.0): torch.zeros(4, 1, 8, 8)}, path).exists()
    True
    """
    path = check_path("path", path)
    low, high = check_range("data_range", data_range)
    check_kind("unit", unit, str, "'evaluations'")
    _check_samples(samples)
    names = list(dict.fromkeys(name for name, _ in samples))
    budgets = sorted({budget for _, budget in samples})
    made = figure(1.75 * len(budgets) + 1.6, 1.75 * len(names) + 0.5)
    panels = made.subplots(len(names), len(budgets), squeeze=False)
    for i, name in enumerate(names):
        for j, budget in enumerate(budgets):
            panel = panels[i][j]
            panel.set_xticks([])
            panel.set_yticks([])
            for side in panel.spines.values():
                side.set_color("0.85")
            if i == 0:
                panel.set_title(f"{budget:g} {unit}", fontsize=9)
            if j == 0:
                panel.set_ylabel(name, fontsize=9, rotation=0, ha="right", va="center")
            found = samples.get((name, budget))
            if found is not None and len(found):
                _show(panel, found.detach().float().cpu(), (low, high))
    return written(made, path)


def _check_samples(samples: Mapping[tuple[str, float], Tensor]) -> None:
    check_kind("samples", samples, Mapping, "{('ddim', 10.0): x}")
    if not samples:
        raise ValueError("samples must hold at least one entry, got none")
    for place, x in samples.items():
        if not isinstance(place, tuple) or len(place) != 2 or not isinstance(place[0], str):
            raise TypeError(
                f"the keys of samples must be (name, evaluations), such as ('ddim', 10.0); got "
                f"{shown(place)}"
            )
        check_number(f"the evaluations of {place[0]}", place[1], 0.0)
        if not check_tensor(f"samples[{place!r}]", x).dim():
            raise ValueError(f"samples[{place!r}] must have shape (n, *event), got a scalar")


def _show(panel: Any, x: Tensor, data_range: tuple[float, float]) -> None:
    if x.dim() == 4:
        tile = tile_images(x, data_range)
        grey = tile.shape[0] == 1
        panel.imshow(
            tile[0].numpy() if grey else tile.permute(1, 2, 0).numpy(),
            cmap="gray" if grey else None,
            vmin=0,
            vmax=1,
        )
    elif x.dim() == 2 and x.shape[1] >= 2:
        panel.scatter(x[:, 0].numpy(), x[:, 1].numpy(), s=1.2, color="C0", alpha=0.5, linewidths=0)
        panel.set_aspect("equal")
    else:
        panel.hist(x.reshape(-1).numpy(), bins=50, color="C0")
