"""Distil the bundled digits network into a flow map, or train one by another objective.

    python benchmarks/training/train_flow_map.py [--objective trajectories] [--steps 6000] [--out FOLDER]

Trajectories of the teacher's probability flow are drawn once (15,360 of them, 12 evaluations each)
and the map is regressed on pairs of their points. The measurement at the end is paired: the same
starts, the same labels, three seeds of 1,000 samples, Fréchet distance of classifier features to
the training digits beside the exact flow's (60 evaluations), and the root mean square distance to
the exact flow.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

import scoregen as sg
from scoregen import flowmaps
from scoregen.metrics import Frechet, digits_classifier, digits_features
from scoregen.solvers import AngularAB, EulerStart

TRAJECTORIES = 15_360
SEEDS = (101, 102, 103)


def objective(name: str, teacher: sg.ScoreModel) -> object:
    """Each objective with the settings of its source, or those that served best here."""
    made = {
        "trajectories": lambda: flowmaps.Trajectories((1, 8, 8)),
        "lagrangian_steps": lambda: flowmaps.LagrangianSteps(diagonal=None, teacher=teacher),
        "lagrangian": lambda: flowmaps.Lagrangian(diagonal=None, teacher=teacher),
        "shortcut": lambda: flowmaps.Shortcut(),
        "mean_flow": lambda: flowmaps.MeanFlow(),
        "consistency": lambda: flowmaps.Consistency(),
        "consistency_distillation": lambda: flowmaps.ConsistencyDistillation(teacher=teacher),
    }
    return made[name]()


def measure(model: sg.ScoreModel, teacher: sg.ScoreModel, sampler: sg.Sampler, seeds=SEEDS) -> str:
    """Fréchet and root mean square distance beside the exact flow on the same starts."""
    exact = sg.Sampler(EulerStart(AngularAB(2)), sg.grids.SinhLam(60))
    reference, metric = sg.digits("train").x, Frechet(digits_features)
    label = torch.arange(1000) % 10
    lines = []
    for seed in seeds:
        shape = (1000, 1, 8, 8)
        truth = exact.sample(teacher, shape, seed=seed, condition={"label": label})
        x = sampler.sample(model, shape, seed=seed, condition={"label": label})
        right = (digits_classifier()(x).argmax(1) == label).float().mean()
        lines.append(
            (
                metric(x, reference).value,
                metric(truth, reference).value,
                float((x - truth).square().mean().sqrt()),
                float(right),
            )
        )
    mine, flow, rms, right = torch.tensor(lines).mean(0).tolist()
    return f"Frechet {mine:.3f} (exact flow {flow:.3f}), RMS {rms:.3f}, accuracy {right:.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objective", default="trajectories")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    teacher = sg.digits_model()
    began = time.process_time()
    model = flowmaps.from_score_network(teacher)
    if options.objective == "trajectories":
        label = torch.arange(TRAJECTORIES) % 10
        data = flowmaps.trajectories(
            teacher, TRAJECTORIES, event=(1, 8, 8), label=label, moves=12, seed=options.seed
        )
        print(f"trajectories: {time.process_time() - began:.0f} s")
    else:
        data = sg.digits("train")
    steps = sg.fit(
        model,
        data,
        objective(options.objective, teacher),
        steps=options.steps,
        batch=options.batch,
        lr=1e-3,
        warmup=50,
        ema_decay=0.998,
        label_dropout=0.0,
        seed=options.seed,
    )
    for step in steps:
        last = step
    trained = last.ema.eval()
    seconds = time.process_time() - began
    print(f"{options.objective}: {options.steps} steps, {seconds:.0f} s of processor time")
    for name, times in (
        ("1", (1.0, 0.0)),
        ("2", (1.0, 0.35, 0.0)),
        ("4", (1.0, 0.6, 0.35, 0.15, 0.0)),
    ):
        sampler = sg.Sampler(flowmaps.Jump(), sg.Times(*times))
        print(f"{name} evaluation(s): {measure(trained, teacher, sampler)}")
    if options.out is not None:
        extra = {"command": f"python benchmarks/training/train_flow_map.py --steps {options.steps}"}
        sg.save(
            trained, options.out, weights="ema", steps=options.steps, data_range=(-1, 1), bins=17,
            event=(1, 8, 8), extra=extra, overwrite=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
