"""Something to look at: quality against evaluations, and the samples themselves."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._files import write
from .table import Row

__all__ = ["plot_quality", "plot_samples"]


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'scoregen[bench]'") from error
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    return matplotlib, Figure, FigureCanvasAgg


def figure(width: float, height: float) -> Any:
    """A figure that touches no global state and needs no display."""
    _, figure_class, canvas = _pyplot()
    made = figure_class(figsize=(width, height), layout="constrained")
    canvas(made)
    return made


def write_figure(made: Any, path: Path) -> None:
    """Write a figure in the format of the path's ending, whole or not at all."""
    content = io.BytesIO()
    made.savefig(content, dpi=160, format=path.suffix[1:] or "png")
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, content.getvalue())


_MARKS = "osD^vP*X<>hpd"


def plot_quality(
    rows: Sequence[Row],
    path: Path,
    *,
    floor: Mapping[str, float] | None = None,
    floor_label: str = "real data",
    subtitle: str = "",
) -> None:
    """Quality against counted evaluations, log-log with error bars, one panel per metric.

    Args:
        rows: of a comparison.
        path: PNG, PDF or SVG to write, by its ending.
        floor: value per metric that real data reach, drawn as a line.
        floor_label: what is written beside that line, such as how many they are.
        subtitle: a line under the title, such as the number of samples.

    Raises:
        ImportError: without matplotlib, naming the extra that brings it.

    >>> import tempfile
    >>> row = Row("ddim", "DDIM()", "UniformTime(10)", 10, 10, 10.0, 0.5, "mmd2", 0.1, 0.01)
    >>> path = Path(tempfile.mkdtemp()) / "quality.png"
    >>> plot_quality([row], path)
    >>> path.exists()
    True
    """
    metrics = list(dict.fromkeys(r.metric for r in rows))
    names = list(dict.fromkeys(r.sampler for r in rows))
    made = figure(4.6 * len(metrics) + 1.9, 4.3)
    panels = made.subplots(1, len(metrics), squeeze=False)[0]
    matplotlib, _, _ = _pyplot()
    colours = matplotlib.colormaps["tab20" if len(names) > 10 else "tab10"]
    for panel, metric in zip(panels, metrics, strict=True):
        for i, name in enumerate(names):
            mine = sorted(
                (r for r in rows if r.metric == metric and r.sampler == name),
                key=lambda r: r.nfe,
            )
            panel.errorbar(
                [r.nfe for r in mine],
                [r.value for r in mine],
                yerr=[r.stderr for r in mine],
                label=name,
                color=colours(i % colours.N),
                marker=_MARKS[i % len(_MARKS)],
                markersize=4.5,
                linewidth=1.3,
                capsize=2,
                alpha=0.9,
            )
        mine = [r for r in rows if r.metric == metric and math.isfinite(r.value)]
        if all(r.value > 0 for r in mine):
            panel.set_yscale("log")
        else:  # unbiased estimates may be negative: linear within a standard error of zero
            panel.set_yscale(
                "symlog", linthresh=max(statistics.median(r.stderr for r in mine), 1e-9)
            )
        panel.set_xscale("log")
        ticks = sorted({r.budget for r in rows if r.budget is not None})
        if ticks:
            panel.set_xticks(ticks, [str(b) for b in ticks])
            panel.minorticks_off()
        if floor and metric in floor and math.isfinite(floor[metric]):
            panel.axhline(floor[metric], color="0.4", linestyle=":", linewidth=1.2)
            panel.annotate(
                floor_label,
                (0.02, floor[metric]),
                xycoords=("axes fraction", "data"),
                fontsize=8,
                color="0.3",
                va="bottom",
            )
        panel.set_xlabel("network evaluations per sample")
        panel.set_ylabel(metric)
        panel.grid(which="major", color="0.9", linewidth=0.8)
        panel.set_axisbelow(True)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    made.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8.5)
    if subtitle:
        made.suptitle(subtitle, fontsize=9, color="0.3")
    write_figure(made, path)


def plot_samples(
    samples: Mapping[tuple[str, float], Tensor],
    path: Path,
    *,
    data_range: tuple[float, float] = (-1.0, 1.0),
    unit: str = "evaluations",
) -> None:
    """Samples per sampler (rows) and evaluations (columns): images in a tile, points in the plane.

    Args:
        samples: (name, budget or evaluations) -> samples (n, *event); equal seeds stand in equal
            places, so differences are the sampler's.
        path: file to write.
        data_range: values shown as black and white.
        unit: what the columns count.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "samples.png"
    >>> plot_samples({("ddim", 10.0): torch.zeros(4, 1, 8, 8)}, path)
    >>> path.exists()
    True
    """
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
            shown = samples.get((name, budget))
            if shown is None:
                continue
            _show(panel, shown.detach().float().cpu(), data_range)
    write_figure(made, path)


def _show(panel: Any, x: Tensor, data_range: tuple[float, float]) -> None:
    if x.dim() == 4:
        tile = tile_images(x)
        low, high = data_range
        tile = ((tile - low) / (high - low)).clamp(0, 1)
        grey = tile.shape[0] == 1
        panel.imshow(
            tile[0] if grey else tile.permute(1, 2, 0),
            cmap="gray" if grey else None,
            vmin=0,
            vmax=1,
        )
    elif x.dim() == 2 and x.shape[1] >= 2:
        panel.scatter(x[:, 0], x[:, 1], s=1.2, color="C0", alpha=0.5, linewidths=0)
        panel.set_aspect("equal")
    else:
        panel.hist(x.reshape(-1).numpy(), bins=50, color="C0")


def tile_images(x: Tensor, pad: int = 1) -> Tensor:
    """Images (n, channels, height, width) in a near-square tile (channels, H, W).

    >>> tile_images(torch.zeros(4, 1, 8, 8)).shape
    torch.Size([1, 19, 19])
    """
    n, channels, height, width = x.shape
    columns = math.ceil(math.sqrt(n))
    lines = math.ceil(n / columns)
    tile = torch.full(
        (channels, lines * (height + pad) + pad, columns * (width + pad) + pad), float(x.max())
    )
    for k in range(n):
        top = pad + (k // columns) * (height + pad)
        left = pad + (k % columns) * (width + pad)
        tile[:, top : top + height, left : left + width] = x[k]
    return tile
