"""Guidance on the digits: class accuracy by the bundled classifier, and diversity, against scale.

Writes a picture and prints a table. The same noise serves every scale.

python benchmarks/figures/guidance_digits.py [--out docs/_generated/guidance_digits.png] [--count 50]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from scoregen import DPMSolverPP, Sampler, UniformLam, digits
from scoregen.guidance import ClassifierFree
from scoregen.metrics import digits_classifier, digits_features
from scoregen.models import Counted
from scoregen.training import digits_model

SCALES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def diversity(x: Tensor, label: Tensor) -> float:
    """Root mean square distance of features to their class' mean, in the bundled classifier."""
    f = digits_features(x)
    total = sum(float(f[label == k].var(0, correction=1).sum()) for k in range(10))
    return (total / 10) ** 0.5


def accuracy(x: Tensor, label: Tensor) -> float:
    """Share of images that the bundled classifier gives their own label."""
    with torch.no_grad():
        return float((digits_classifier()(x).argmax(1) == label).double().mean())


def measure(count: int, steps: int, seed: int) -> tuple[list[tuple[float, ...]], list[Tensor]]:
    """(scale, accuracy, diversity, evaluations) for each scale, and one row of images of each."""
    model = digits_model()
    label = torch.arange(10).repeat_interleave(count)
    sampler = Sampler(DPMSolverPP(), UniformLam(steps))
    rows, pictures = [], []
    for scale in SCALES:
        guided = ClassifierFree(model, scale)
        with Counted(guided) as counted:
            x = sampler.sample(
                guided, (len(label), 1, 8, 8), seed=seed, condition={"label": label}, chunk=250
            )
        rows.append((scale, accuracy(x, label), diversity(x, label), counted.rows / len(label)))
        pictures.append(x[::count])
        print(_line(rows[-1]), flush=True)
    return rows, pictures


def _line(row: tuple[float, ...]) -> str:
    return f"| {row[0]:g} | {100 * row[1]:.1f} % | {row[2]:.2f} | {row[3]:g} |"


def plot(
    rows: list[tuple[float, ...]], real: tuple[float, float], pictures: list[Tensor], path: Path
) -> None:
    """Accuracy and diversity against scale, beside a sample of every class at every scale."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    scales = [row[0] for row in rows]
    left.plot(scales, [100 * row[1] for row in rows], "o-", color="C0", label="class accuracy")
    left.axhline(100 * real[0], color="C0", lw=0.8, ls="--")
    left.set(xlabel="guidance scale (1 is conditional)", ylabel="class accuracy, %", ylim=(0, 102))
    twin = left.twinx()
    twin.plot(scales, [row[2] for row in rows], "s-", color="C1", label="diversity")
    twin.axhline(real[1], color="C1", lw=0.8, ls="--")
    twin.set(ylabel="diversity within a class (features)", ylim=(0, None))
    left.set_title("dashed: the held-out digits", fontsize=9)
    figure.legend(loc="outside lower left", ncols=2, fontsize=8)
    tiles = torch.nn.functional.pad(torch.stack(pictures)[:, :, 0], (1, 1, 1, 1), value=-1.0)
    canvas = tiles.permute(0, 2, 1, 3).reshape(10 * len(rows), 100)
    right.imshow(canvas, cmap="gray_r", vmin=-1, vmax=1)
    right.set_yticks([10 * i + 5 for i in range(len(rows))], [f"{s:g}" for s in scales], fontsize=8)
    right.set_xticks([10 * k + 5 for k in range(10)], [str(k) for k in range(10)], fontsize=8)
    right.set(xlabel="label", ylabel="guidance scale")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("docs/_generated/guidance_digits.png"))
    parser.add_argument("--count", type=int, default=50, help="samples per class and scale")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print("| scale | class accuracy | diversity | evaluations |\n|---|---|---|---|")
    rows, pictures = measure(options.count, options.steps, options.seed)
    held = digits("test")
    real = accuracy(held.x, held.label), diversity(held.x, held.label)
    print(f"| held-out digits | {100 * real[0]:.1f} % | {real[1]:.2f} | |")
    plot(rows, real, pictures, options.out)


if __name__ == "__main__":
    main()
