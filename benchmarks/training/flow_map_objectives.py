"""Every objective of flow maps on the digits, each with the same processor time, in one table.

    python benchmarks/training/flow_map_objectives.py [--seconds 100] [--only shortcut mean_flow]

All start from the bundled digits network and are distilled from it, with the settings that served
each best among those of its source and a few more (see `recipe`), batches of 64; `trajectories` pays for its data
out of the same budget. The steps of a budget are found by timing the first ones. Figures are those
of `train_flow_map.py`: paired over three seeds of 1,000 samples, with 95 % t-intervals; they hold
for one training seed each. Rows that are there already and not in `--only` are kept.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
import train_flow_map as digits

import scoregen as sg
from scoregen import flowmaps
from scoregen._files import write
from scoregen.flowmaps import GrowingPairs, Pairs
from scoregen.training import EMA

OUT = digits.TABLE.with_name("flow_map_objectives.txt")
HEAD = (
    "| objective | steps | seconds | Fréchet beyond the exact flow's, 1 evaluation | "
    "2 evaluations | RMS to it, 1 | 2 |\n|---|---|---|---|---|---|---|"
)
NAMES = {
    "trajectories": "`Trajectories`",
    "lagrangian_steps": "`LagrangianSteps`",
    "lagrangian": "`Lagrangian`",
    "shortcut": "`Shortcut`",
    "shortcut_plain": "`Shortcut`, neither average nor growing jumps",
    "consistency": "`Consistency`",
    "consistency_distillation": "`ConsistencyDistillation`",
    "mean_flow": "`MeanFlow`",
    "mean_flow_teacher": "`MeanFlow`, teacher's velocity",
}


def recipe(name: str, model: sg.ScoreModel, teacher: sg.ScoreModel, steps: int) -> Any:
    """The settings of each objective."""
    every: dict[str, Any] = {
        "trajectories": lambda: flowmaps.Trajectories((1, 8, 8)),
        "lagrangian_steps": lambda: flowmaps.LagrangianSteps(
            diagonal=None, teacher=teacher, gap=0.1
        ),
        "lagrangian": lambda: flowmaps.Lagrangian(diagonal=None, teacher=teacher, c=0.1),
        "shortcut": lambda: flowmaps.Shortcut(
            GrowingPairs(int(0.6 * steps)), average=EMA(model, 0.99)
        ),
        "shortcut_plain": lambda: flowmaps.Shortcut(),
        "consistency": lambda: flowmaps.Consistency(Pairs(top=0.25), gap=0.1),
        "consistency_distillation": lambda: flowmaps.ConsistencyDistillation(
            Pairs(top=0.25), gap=0.1, teacher=teacher
        ),
        "mean_flow": lambda: flowmaps.MeanFlow(Pairs(top=0.05), same=0.75),
        "mean_flow_teacher": lambda: flowmaps.MeanFlow(
            Pairs(top=0.05), same=0.0, teacher=teacher, c=0.1
        ),
    }
    return every[name]()


def trained(name: str, seconds: float) -> tuple[sg.ScoreModel, int, float]:
    """The averaged map after that much processor time, its steps, and what was really used."""
    teacher = sg.digits_model()
    began = time.process_time()
    data = sg.digits("train")
    if name == "trajectories":
        # as many as a third of the budget pays for
        per = 256
        flowmaps.trajectories(teacher, per, event=(1, 8, 8), label=torch.arange(per) % 10)
        each = (time.process_time() - began) / per
        count = max(512, int(seconds / 3 / each) // 256 * 256)
        label = torch.arange(count) % 10
        data = flowmaps.trajectories(teacher, count, event=(1, 8, 8), label=label)
    trial = flowmaps.from_score_network(teacher)
    clock = [time.process_time()]
    objective = recipe(name, trial, teacher, 100)
    for _ in sg.fit(trial, data, objective, steps=40, batch=64, progress=False):
        clock.append(time.process_time())
    each = (clock[-1] - clock[10]) / 30  # the first ones also pay for what is set up once
    steps = max(50, int((seconds - (time.process_time() - began)) / each))
    model = flowmaps.from_score_network(teacher)
    average = digits.train(model, data, recipe(name, model, teacher, steps), steps, batch=64)
    return average, steps, time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=100.0, help="processor time of each")
    parser.add_argument("--only", nargs="*", default=list(NAMES), choices=list(NAMES))
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    rows = {}
    if given.out.exists():
        rows = {line.split(" | ")[0][2:]: line for line in given.out.read_text().splitlines()[2:]}
    for name in given.only:
        model, steps, used = trained(name, given.seconds)
        two = digits.jumps(2)
        if name.startswith("consistency"):  # trained on jumps to 0 alone
            two = sg.Sampler(flowmaps.Renoise(), two.grid)
        cells = []
        for sampler in (digits.jumps(1), two):
            samples = [digits.draw(model, sampler, seed) for seed in digits.SEEDS]
            cells.append(digits.measure(name, samples))
        shown = [digits.interval(cell.excess) for cell in cells]
        rms = [f"{float(cell.rms.mean()):.3f}" for cell in cells]
        if name.startswith("consistency"):
            rms[1] = "new noise"
        row = f"| {NAMES[name]} | {steps:,} | {used:.0f} | {' | '.join(shown + rms)} |"
        print(row, flush=True)
        rows[NAMES[name]] = row
        lines = [HEAD, *(rows[title] for title in NAMES.values() if title in rows)]
        write(given.out, ("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    main()
