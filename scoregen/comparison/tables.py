"""Tables for reading and for papers: a line per sampler, a column per budget."""

from __future__ import annotations

import math

from .._checks import check_choice
from .statistics import Study, Summary

__all__ = ["Grid", "grid", "latex", "markdown"]


class Grid:
    """The summaries of one metric as a table, and which of each column are best.

    Attributes:
        columns: budgets in order; None for samplers that set their own.
        lines: name -> column -> summary.
        best: column -> the best of it, followed by what is not significantly different.

    >>> from scoregen.comparison import Comparison
    >>> Grid(Comparison([], {}), "mmd2").columns
    []
    """

    def __init__(self, study: Study, metric: str):
        mine = [s for s in study.summaries if s.metric == metric]
        budgets = sorted({s.budget for s in mine if s.budget is not None})
        self.columns: list[int | None] = [*budgets]
        if any(s.budget is None for s in mine):
            self.columns.append(None)
        self.lines: dict[str, dict[int | None, Summary]] = {}
        for s in mine:
            self.lines.setdefault(s.name, {})[s.budget] = s
        self.best = {
            c: study.ties([line[c] for line in self.lines.values() if c in line])
            for c in self.columns
        }

    def mark(self, s: Summary) -> str:
        """ "best", "tie" or nothing."""
        level = self.best[s.budget]
        return "best" if level[:1] == [s] else "tie" if s in level else ""


def grid(study: Study, metric: str) -> Grid:
    """The table of one metric.

    >>> from scoregen.comparison import Comparison
    >>> grid(Comparison([], {}), "mmd2").lines
    {}
    """
    return Grid(study, metric)


def shown(s: Summary) -> tuple[str, str]:
    """Value and standard error with the digits that the error allows."""
    if not math.isfinite(s.value):
        return ("inf" if s.value == math.inf else s.status), ""
    if not (math.isfinite(s.stderr) and s.stderr > 0):
        return f"{s.value:.4g}", ""
    digits = max(0, 1 - math.floor(math.log10(s.stderr)))
    if digits > 8:
        return f"{s.value:.3g}", f"{s.stderr:.1g}"
    return f"{s.value:.{digits}f}", f"{s.stderr:.{digits}f}"


def markdown(study: Study) -> str:
    """A table per metric: value ± standard error, the best of a column bold, its ties marked *.

    >>> from scoregen.comparison import Comparison
    >>> markdown(Comparison([], {}))
    ''
    """
    parts = []
    for metric in study.metrics:
        table = grid(study, metric)
        better = "lower" if study.direction(metric) == "lower" else "higher"
        head = ["its own" if c is None else str(c) for c in table.columns]
        lines = [
            f"**{metric}** ({better} is better) at evaluations per sample",
            "",
            f"| sampler | {' | '.join(head)} |",
            "|---" * (len(head) + 1) + "|",
        ]
        for name, line in table.lines.items():
            cells = []
            for column in table.columns:
                s = line.get(column)
                cells.append("" if s is None else _markdown_cell(s, table.mark(s)))
            lines.append(f"| {name} | {' | '.join(cells)} |")
        floor = study.manifest.get("floor", {}).get(metric)
        if floor:
            lines += ["", f"Real data, n = {floor['count']}: {floor['value']:.3g}."]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _markdown_cell(s: Summary, mark: str) -> str:
    value, error = shown(s)
    text = f"{value} ± {error}" if error else value
    text = {"best": f"**{text}**", "tie": f"{text} *"}.get(mark, text)
    return f"{text} (at {s.nfe:g})" if s.budget is None else text


def latex(study: Study, metric: str | None, bold: str | None) -> str:
    """Booktabs tables; the best of a column and its ties are bold.

    >>> from scoregen.comparison import Comparison
    >>> latex(Comparison([], {}), None, "best")
    ''
    """
    if bold is not None:
        check_choice("bold", bold, ("best",))
    if metric is not None:
        check_choice("metric", metric, study.metrics)
    parts = []
    for one in study.metrics if metric is None else [metric]:
        table = grid(study, one)
        head = ["own" if c is None else str(c) for c in table.columns]
        arrow = r"$\downarrow$" if study.direction(one) == "lower" else r"$\uparrow$"
        lines = [
            rf"\begin{{tabular}}{{l{'r' * len(head)}}}",
            r"\toprule",
            rf"{_escaped(one)} {arrow} & {' & '.join(head)} \\",
            r"\midrule",
        ]
        for name, line in table.lines.items():
            cells = []
            for column in table.columns:
                s = line.get(column)
                cells.append("" if s is None else _latex_cell(s, bold and table.mark(s)))
            lines.append(rf"{_escaped(name)} & {' & '.join(cells)} \\")
        lines += [r"\bottomrule", r"\end{tabular}", ""]
        parts.append("\n".join(lines))
    return "\n".join(parts)


def _latex_cell(s: Summary, mark: str | None) -> str:
    value, error = shown(s)
    if not math.isfinite(s.value):
        return value
    body = rf"\mathbf{{{value}}}" if mark else value
    return f"${body}$" if not error else rf"${body} {{\scriptstyle \pm {error}}}$"


def _escaped(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)
