"""Draw the tables of docs/explanation/accuracy.md: error against evaluations, and fixed samplers.

python benchmarks/figures/accuracy_plots.py [--out docs/_generated]
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "explanation" / "accuracy.md"
PROBLEMS = ("gauss2", "gauss64", "gmm2", "gmm64")
PROCESSES = ("VP", "EDM")
# name of a line, the column of the table that holds it, its style
LINES = (
    ("recommended", 1, "C0-o"),
    ("best of scoregen", 3, "C0:"),
    ("best of the others", 5, "C1-o"),
)


def rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the table below a heading, without its head."""
    (part,) = re.findall(rf"^### {heading}\n(.*?)(?=^### |\Z)", text, flags=re.M | re.S)
    lines = [line for line in part.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def errors(text: str, path: Path) -> None:
    """A panel for each problem and process."""
    shape = {"nrows": len(PROCESSES), "ncols": len(PROBLEMS)}
    figure, axes = plt.subplots(**shape, figsize=(7.2, 4.4), sharex=True, sharey=True)
    for line, process in zip(axes, PROCESSES, strict=True):
        for axis, problem in zip(line, PROBLEMS, strict=True):
            table = rows(text, f"{problem}, {process}")
            budgets = [int(cells[0]) for cells in table]
            for name, column, style in LINES:
                axis.loglog(budgets, [float(c[column]) for c in table], style, ms=3, label=name)
            axis.set_title(f"{problem}, {process}")
            axis.set_xticks([5, 10, 20, 50, 100], ["5", "10", "20", "50", "100"], fontsize=8)
            axis.minorticks_off()
    for axis in axes[-1]:
        axis.set_xlabel("evaluations")
    for line in axes:
        line[0].set_ylabel("RMS error")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(path)
    plt.close(figure)


def fixed(text: str, path: Path) -> None:
    """Fixed samplers: geometric mean and worst of their errors over the least, one bar each."""
    table = rows(text, "Fixed samplers")
    figure, axis = plt.subplots(figsize=(7.2, 4.6))
    for i, (name, mean, worst) in enumerate(table):
        colour = "C0" if name.startswith("scoregen") else "C1"
        axis.plot([float(mean), float(worst)], [-i, -i], colour, lw=1)
        axis.plot(float(mean), -i, f"{colour}o")
        axis.plot(float(worst), -i, f"{colour}|")
    short = [shortened(name) for name, *_ in table]
    axis.set_yticks([-i for i in range(len(table))], short, fontsize=7)
    axis.set(xscale="log", xlabel="over the least: mean (dot), worst (bar)")
    figure.savefig(path)
    plt.close(figure)


def shortened(name: str) -> str:
    """The name of a sampler with its arguments in a word each."""
    words = {
        "EulerStart(": "", "))": ")", "order=": "", "max_points=": "", "smooth_end=True": "smooth",
        "bounded=True": "bounded", "bounded=False": "unbounded", "scoregen: ": "",
        "sg.tuning.recommended(model, n), its own, its own": "recommended(model, n)",
    }  # fmt: skip
    for long, word in words.items():
        name = name.replace(long, word)
    return name


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "_generated")
    options = parser.parse_args()
    text = PAGE.read_text()
    with plt.rc_context(fname=ROOT / "docs" / "matplotlibrc"):
        errors(text, options.out / "accuracy.svg")
        fixed(text, options.out / "accuracy_fixed.svg")


if __name__ == "__main__":
    main()
