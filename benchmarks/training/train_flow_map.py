"""Distil the bundled digits network into the bundled flow map, and measure it.

    python benchmarks/training/train_flow_map.py [--steps 6000] [--measure]

Trajectories of the teacher's probability flow are drawn once (46,080 of them, 24 evaluations each)
and the map is regressed on pairs of their points. The measurement is paired: the same starts and
labels for every row, three seeds of 1,000 samples; Fréchet distance of classifier features to the
training digits, its difference to the exact flow's (60 evaluations of the teacher) with a 95 %
t-interval over the seeds, and the root mean square distance to the exact flow. Written are the
checkpoint, a table and a picture; `--measure` measures the checkpoint that is there.
"""

from __future__ import annotations

import argparse
import io
import math
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import scoregen as sg
from scoregen import flowmaps
from scoregen._files import write
from scoregen.metrics import Frechet, digits_classifier, digits_features
from scoregen.solvers import AngularAB, EulerStart

ROOT = Path(__file__).resolve().parents[2]
BUNDLED = Path(sg.data.__file__).with_name("digits_map")
TABLE = ROOT / "docs" / "_generated" / "flow_map_digits.txt"
RUNS = ROOT / "runs" / "flow_map"
TRAJECTORIES = 46_080
SEEDS = (101, 102, 103)
STUDENT = 4.303  # 97.5 % quantile of Student's t with two degrees of freedom
LABEL = torch.arange(1000) % 10
MOVES = {1: (1.0, 0.0), 2: (1.0, 0.6, 0.0), 4: (1.0, 0.7, 0.5, 0.15, 0.0)}


def jumps(evaluations: int) -> sg.Sampler:
    return sg.Sampler(flowmaps.Jump(), sg.Times(*MOVES[evaluations]))


def distil(teacher: sg.ScoreNetwork, steps: int, count: int, seed: int = 0) -> sg.ScoreModel:
    """The averaged map after training on trajectories of the teacher."""
    began = time.process_time()
    label = torch.arange(count) % 10
    data = flowmaps.trajectories(teacher, count, event=(1, 8, 8), label=label, moves=24, seed=seed)
    print(
        f"{count} trajectories: {time.process_time() - began:.0f} s of processor time", flush=True
    )
    model = flowmaps.from_score_network(teacher)
    average = train(model, data, flowmaps.Trajectories((1, 8, 8)), steps, seed)
    print(f"{steps} steps, {time.process_time() - began:.0f} s in all", flush=True)
    return average


def train(
    model: sg.ScoreModel,
    data: sg.Data,
    objective: Any,
    steps: int,
    seed: int = 0,
    batch: int = 128,
) -> sg.ScoreModel:
    """AdamW 1e-3, betas 0.9 and 0.999, 50 steps of warm-up, cosine to 0, average 0.998."""
    last = None
    for step in sg.fit(
        model, data, objective, steps=steps, batch=batch, lr=1e-3, warmup=50, ema_decay=0.998,
        label_dropout=0.0, seed=seed,
    ):  # fmt: skip
        last = step
    assert last is not None
    average: sg.ScoreModel = last.ema.eval()
    return average


class Row(NamedTuple):
    """Figures of one sampler, one entry per seed."""

    name: str
    frechet: Tensor
    excess: Tensor
    rms: Tensor
    accuracy: Tensor


def draw(model: sg.ScoreModel, sampler: sg.Sampler, seed: int) -> Tensor:
    return sampler.sample(model, (1000, 1, 8, 8), seed=seed, condition={"label": LABEL})


@cache
def flow(seed: int) -> Tensor:
    """Samples of the teacher's exact flow, kept under runs/ for the next run."""
    teacher = sg.digits_model()
    path = RUNS / f"exact-flow-{sg.training.fingerprint(teacher)}-{seed}.npy"
    if not path.exists():
        RUNS.mkdir(parents=True, exist_ok=True)
        sampler = sg.Sampler(EulerStart(AngularAB(2)), sg.grids.SinhLam(60))
        content = io.BytesIO()
        np.save(content, draw(teacher, sampler, seed).numpy(), allow_pickle=False)
        write(path, content.getvalue())
    return torch.from_numpy(np.load(path))


def measure(name: str, samples: Iterable[Tensor]) -> Row:
    """The figures of samples, one batch for each of SEEDS, beside those of the exact flow."""
    metric, reference = Frechet(digits_features), sg.digits("train").x
    rows = []
    for seed, x in zip(SEEDS, samples, strict=True):
        value, exact = (metric(y, reference).value for y in (x, flow(seed)))
        right = (digits_classifier()(x).argmax(1) == LABEL).float().mean()
        rms = (x - flow(seed)).square().mean().sqrt()
        rows.append((value, value - exact, float(rms), float(right)))
    return Row(name, *torch.tensor(rows).T)


def interval(values: Tensor) -> str:
    """Mean and half width of the 95 % t-interval over the seeds."""
    half = STUDENT * float(values.std()) / math.sqrt(len(values))
    return f"{float(values.mean()):.3f} ± {half:.3f}"


def table(rows: list[Row]) -> str:
    lines = [
        "| sampler | Fréchet | more than the exact flow | RMS to it | class accuracy |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        excess = "" if float(row.rms.max()) == 0 else interval(row.excess)
        lines.append(
            f"| {row.name} | {float(row.frechet.mean()):.3f} | {excess} | "
            f"{float(row.rms.mean()):.3f} | {float(row.accuracy.mean()):.1%} |"
        )
    return "\n".join(lines) + "\n"


def rows_of(model: sg.ScoreModel) -> list[Row]:
    """The map at 1, 2 and 4 evaluations, consistency sampling, its start (DDIM), the exact flow."""
    start = flowmaps.from_score_network(sg.digits_model())
    renoise = sg.Sampler(flowmaps.Renoise(), sg.Times(*MOVES[2]))
    samplers = {f"`Jump()`, {n} evaluation{'s'[: n > 1]}": (model, jumps(n)) for n in MOVES}
    samplers["`Renoise()`, 2 evaluations"] = model, renoise
    for n in (1, 2, 4):
        samplers[f"DDIM of the teacher, {n}"] = start, jumps(n)
    rows = [
        measure(name, (draw(net, sampler, seed) for seed in SEEDS))
        for name, (net, sampler) in samplers.items()
    ]
    return [*rows, measure("exact flow, 60", map(flow, SEEDS))]


def picture(model: sg.ScoreModel, path: Path) -> None:
    """Twenty digits from the same noise: one and two evaluations above the exact flow."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    seed = SEEDS[0]
    shown = {
        "teacher, 1 evaluation (DDIM)": draw(
            flowmaps.from_score_network(sg.digits_model()), jumps(1), seed
        ),
        "flow map, 1 evaluation": draw(model, jumps(1), seed),
        "flow map, 2 evaluations": draw(model, jumps(2), seed),
        "teacher's exact flow, 60": flow(seed),
    }
    figure, axes = plt.subplots(len(shown), 1, figsize=(9, 0.75 * len(shown)), layout="constrained")
    for axis, (name, x) in zip(axes, shown.items(), strict=True):
        axis.imshow(x[:20, 0].permute(1, 0, 2).reshape(8, 160), cmap="gray", vmin=-1, vmax=1)
        axis.set_title(name, fontsize=8, loc="left", pad=2)
        axis.axis("off")
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--trajectories", type=int, default=TRAJECTORIES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bundle", type=Path, default=BUNDLED, help="checkpoint to write or read")
    parser.add_argument("--out", type=Path, default=TABLE, help="table; the picture lies beside it")
    parser.add_argument("--measure", action="store_true", help="measure the checkpoint as it is")
    given = parser.parse_args()
    if given.measure:
        model = sg.load(given.bundle)
    else:
        model = distil(sg.digits_model(), given.steps, given.trajectories, given.seed)
        command = f"benchmarks/training/train_flow_map.py, steps {given.steps}"
        extra = {"data": "trajectories of the bundled digits network", "trained by": command}
        sg.save(
            model, given.bundle, weights="ema", steps=given.steps, data_range=(-1, 1), bins=17,
            event=(1, 8, 8), extra=extra, overwrite=True,
        )  # fmt: skip
        print(f"wrote {given.bundle}", flush=True)
    text = table(rows_of(model))
    print(text)
    write(given.out, text.encode())
    picture(model, given.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
