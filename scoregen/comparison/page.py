"""The report: one HTML file that is read, sent and printed as it is, without a single request."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from .._checks import check_kind, check_path
from .._figures import tile_images
from .._files import write
from .figures import _COLOURS, _FAINT, _INK, _SHADE, quality_figure
from .statistics import Study, Summary, check_study
from .tables import grid, shown

__all__ = ["write_page"]

_LARGEST = 2_000_000
_SIDE = 96  # pixels of the picture of points


def write_page(study: Study, path: str | Path, *, heading: str = "Samplers compared") -> Path:
    """Write the report of a comparison: verdict, curves, table, samples, exact errors, manifest.

    The file holds everything it shows and asks for nothing; it adapts to light and dark, to a
    phone and to paper. Samples are dropped, in whole steps, until it has at most 2 MB.

    Args:
        study: a comparison with at least one finished row.
        path: the HTML file.
        heading: its title.

    Raises:
        ImportError: without jinja2 or matplotlib.
        ValueError: where nothing is finished.

    >>> import tempfile
    >>> from scoregen import DDIM, VPSDE, Gaussian, Sampler, UniformTime, compare
    >>> from scoregen.metrics import MMD
    >>> model = Gaussian(VPSDE(), torch.zeros(2), torch.ones(2))
    >>> study = compare(model, {"ddim": Sampler(DDIM(), UniformTime(5))}, steps=[5, 10],
    ...                 metrics=[MMD(1.0)], reference=model.sample(9).float(), progress=False)
    >>> page = write_page(study, Path(tempfile.mkdtemp()) / "report.html")
    >>> "https:" in page.read_text()
    False
    """
    check_study(study)
    path = check_path("path", path)
    check_kind("heading", heading, str, "'Samplers compared'")
    for name in ("jinja2", "matplotlib"):
        if importlib.util.find_spec(name) is None:
            raise ImportError(f"the report needs {name}: pip install 'scoregen[bench]'")
    import jinja2

    if not any(s.seeds for s in study.summaries):
        raise ValueError("nothing is finished in this comparison; run it again")
    template = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True
    ).from_string(files("scoregen.comparison").joinpath("page.html").read_text(encoding="utf-8"))
    fixed = {
        "heading": heading,
        "verdicts": _verdicts(study),
        "curves": _curves(study),
        "tables": [_table(study, metric) for metric in study.metrics],
        "exact": _exact(study),
        "manifest": json.dumps(study.manifest, indent=1),
        "facts": study.manifest,
        "troubles": _troubles(study),
        "colours": _COLOURS,
    }
    for most in (25, 16, 9, 4, 1, 0):
        content = template.render(**fixed, samples=_samples(study, most)).encode()
        if len(content) <= _LARGEST:
            break
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, content)
    return path


def _number(s: Summary) -> str:
    value, error = shown(s)
    return f"{value} ± {error}" if error else value


def sentence(study: Study, metric: str, budget: int) -> str:
    """What a metric says at a budget, with its uncertainty."""
    rows = study.at(budget, metric)
    level = study.ties(rows)
    if not level:
        return f"Nothing is finished at {budget} evaluations."
    best, *ties = level
    which = "lowest" if study.direction(metric) == "lower" else "highest"
    seeds = f"{best.seeds} seed{'s' * (best.seeds != 1)} of {best.count} samples"
    text = f"{best.name} has the {which} {metric}, {_number(best)} ({seeds})"
    if not ties:
        rest = "every other differs from it significantly" if len(rows) > 1 else "the only one"
        return f"At {budget} evaluations {text}; {rest}."
    names = [s.name for s in ties]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    are = "is" if len(names) == 1 else "are"
    return f"At {budget} evaluations {text}; {listed} {are} not significantly different from it."


def _verdicts(study: Study) -> list[str]:
    """The first metric at the budget in the middle, then the others and the other budgets."""
    budgets = sorted({s.budget for s in study.summaries if s.budget is not None})
    if not budgets:
        budgets = [round(max(s.nfe for s in study.summaries))]
    middle = budgets[(len(budgets) - 1) // 2]
    order = [(study.metrics[0], middle)]
    order += [(metric, middle) for metric in study.metrics[1:]]
    order += [(study.metrics[0], b) for b in budgets if b != middle]
    return [sentence(study, metric, budget) for metric, budget in order]


def _curves(study: Study) -> list[dict[str, Any]]:
    bars = "Bars: 95 % intervals of the mean."
    costs: list[tuple[Literal["nfe", "seconds"], str, str]] = [
        (
            "nfe",
            "Quality against evaluations",
            f"Shaded: the best of a budget and what ties with it. {bars}",
        ),
        ("seconds", "Quality against seconds", bars),
    ]
    found = []
    for x, words, note in costs:
        drawn = [
            _inline(quality_figure(study, metrics=[m], x=x, width=5.4, size=9.5))
            for m in study.metrics
        ]
        found.append({"title": words, "figures": drawn, "note": note})
    return found


def _inline(made: Any) -> Any:
    """A figure as SVG inside the page, in the page's colours and letters."""
    import markupsafe
    import matplotlib

    content = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "scoregen"}):
        made.savefig(content, format="svg", transparent=True, metadata={"Date": None})
    text = content.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    text = text.replace("xlink:href", "href")
    text = re.sub(r'^<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 role="img">', text, count=1)
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
    for i, colour in enumerate(_COLOURS):
        text = text.replace(colour, f"var(--c{i})")
    for colour, variable in ((_INK, "ink"), (_FAINT, "faint"), (_SHADE, "mark")):
        text = text.replace(colour, f"var(--{variable})")
    text = re.sub(r"#[45]{6}", "var(--soft)", text)
    return markupsafe.Markup(text)  # from numbers and names that matplotlib has escaped


def _table(study: Study, metric: str) -> dict[str, Any]:
    table = grid(study, metric)
    return {
        "metric": metric,
        "better": study.direction(metric),
        "columns": ["its own" if c is None else c for c in table.columns],
        "lines": [
            {
                "name": name,
                "cells": [
                    None
                    if c not in line
                    else {
                        "value": shown(line[c])[0],
                        "error": shown(line[c])[1],
                        "mark": table.mark(line[c]),
                        "status": line[c].status,
                        "hint": f"{line[c].nfe:g} evaluations, depth {line[c].depth:g}, "
                        f"{line[c].seconds:.3g} s",
                    }
                    for c in table.columns
                ],
            }
            for name, line in table.lines.items()
        ],
        "floor": study.manifest.get("floor", {}).get(metric),
    }


def _exact(study: Study) -> dict[str, Any] | None:
    """Exact errors on Gaussian data of the reference's spectrum, where they are known."""
    known = study.manifest.get("exact", {})
    lines: dict[str, dict[int | None, float]] = {}
    for row in study.rows:
        value = known.get(f"{row.model}|{row.sampler}|{row.budget}")
        if value is not None:
            lines.setdefault(study.name(row), {})[row.budget] = value
    if not lines:
        return None
    columns = sorted({c for line in lines.values() for c in line}, key=lambda c: (c is None, c))
    return {
        "columns": ["its own" if c is None else c for c in columns],
        "lines": [
            {"name": n, "cells": [f"{line[c]:.3g}" if c in line else "" for c in columns]}
            for n, line in lines.items()
        ],
    }


def _troubles(study: Study) -> list[str]:
    bad = [r for r in study.rows if r.status != "done"]
    return [
        f"{study.name(r)} at {r.budget}, seed {r.seed}: {r.status}. {r.message[:200]}" for r in bad
    ]


def _samples(study: Study, most: int) -> dict[str, Any] | None:
    """A picture per sampler and budget; the same place is the same noise."""
    found = study.pictured(max(most, 1) if most else 0)
    if not most or not found:
        return None
    columns = sorted({budget for _, budget in found})
    flat = [x.detach().float().cpu() for x in found.values()]
    everything = torch.cat([x.reshape(-1)[:50_000] for x in flat])[:2_000_000].nan_to_num()
    low, high = (float(everything.float().quantile(q)) for q in (0.005, 0.995))
    margin = 0.1 * (high - low)
    box = low - margin, high + margin
    pictures = {
        place: _picture(x.detach().float().cpu(), study.data_range, box)
        for place, x in found.items()
    }
    return {
        "columns": [f"{c:g}" for c in columns],
        "lines": [
            {"name": name, "cells": [pictures.get((name, c)) for c in columns]}
            for name in dict.fromkeys(n for n, _ in found)
        ],
    }


def _picture(x: Tensor, data_range: tuple[float, float], box: tuple[float, float]) -> str:
    """A PNG as a data address: a tile of images, or the density of points or numbers."""
    from matplotlib.image import imsave

    pixels = tile_images(x, data_range) if x.dim() == 4 else _density(x, box)
    array = (pixels * 255).round().to(torch.uint8).movedim(0, -1).expand(-1, -1, 3)
    content = io.BytesIO()
    imsave(content, array.numpy(), format="png")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def _density(x: Tensor, box: tuple[float, float]) -> Tensor:
    """Points of the plane, by their first two coordinates, or a histogram: dark where many are."""
    low, high = box
    rows = x.reshape(len(x), -1).nan_to_num()
    scale = (_SIDE - 1) / max(high - low, 1e-9)
    at = ((rows - low) * scale).round().clamp(0, _SIDE - 1).long()
    ink = torch.zeros(_SIDE, _SIDE)
    if at.shape[1] >= 2:
        ink.index_put_((_SIDE - 1 - at[:, 1], at[:, 0]), torch.ones(len(at)), accumulate=True)
        ink = torch.nn.functional.avg_pool2d(ink[None], 3, 1, 1)[0] * 9
        ink = (ink / ink.max().clamp_min(1e-9)).sqrt()
    else:
        counts = torch.bincount(at.flatten() // 4, minlength=_SIDE // 4).repeat_interleave(4)
        heights = counts / counts.max().clamp_min(1) * (_SIDE - 4)
        ink = (torch.arange(_SIDE, 0, -1)[:, None] <= heights).float()
    return 1 - ink[None]
