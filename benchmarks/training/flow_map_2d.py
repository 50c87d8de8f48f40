"""One evaluation beside fifty on two-dimensional targets: sliced W2 of flow maps and of flows.

    python benchmarks/training/flow_map_2d.py [--targets rings moons] [--steps 3000]

For each target a score network is trained, its trajectories are drawn, and a network of the same
size is regressed on them (`distilled`); another one is trained by the Lagrangian loss from the data
alone, without any teacher (`from scratch`), its diagonal first and its jumps growing. Shown is the
sliced W2 to 20,000 fresh points of 5,000 samples: of one jump, and of 50 evaluations of the
probability flow of the score network of equal size, from the same noise, three seeds each; and what
5,000 points of the data themselves have.
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch

import scoregen as sg
from scoregen import flowmaps
from scoregen._files import write
from scoregen.metrics import SlicedWasserstein

OUT = Path(__file__).resolve().parents[2] / "docs" / "_generated" / "flow_map_2d.txt"
ONE = sg.Sampler(flowmaps.Jump(), sg.Times(1.0, 0.0))
FIFTY = sg.Sampler(sg.solvers.EulerStart(sg.solvers.AngularAB(2)), sg.grids.SinhLam(50))
TARGETS = ("rings", "moons", "checkerboard", "eight_gaussians")
SEEDS = (1, 2, 3)


class Trained(NamedTuple):
    """A score network and two maps of its size, with the processor time of each."""

    score: sg.ScoreModel
    distilled: sg.ScoreModel
    scratch: sg.ScoreModel
    seconds: tuple[float, float, float]


def network(second_clock: bool) -> sg.MLP:
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        return sg.MLP(event=(2,), hidden=128, second_clock=second_clock)


def last(model: sg.ScoreModel, data: sg.Data, objective: Any, steps: int) -> Any:
    """The average after training."""
    made = None
    for step in sg.fit(
        model, data, objective, steps=steps, batch=256, lr=2e-3, ema_decay=0.998, seed=0
    ):
        made = step
    assert made is not None
    return made.ema.eval()


def train(target: str, steps: int, *, scratch: bool = True) -> Trained:
    """All three, each from the same first weights where the clocks allow it."""
    data = sg.Data(getattr(sg.data, target)(20_000, 0), name=target)
    sde, times = sg.VPSDE(), []
    times.append(time.process_time())
    score = last(
        sg.ScoreNetwork(network(False), sde, sg.V()), data, sg.DenoisingScoreMatching(), 2 * steps
    )
    times.append(time.process_time())
    paths = flowmaps.trajectories(score, 8192, event=(2,), moves=16, chunk=256, progress=False)
    distilled = last(flowmaps.from_score_network(score), paths, flowmaps.Trajectories((2,)), steps)
    times.append(time.process_time())
    alone = flowmaps.FlowMap(network(True), sde, sg.V())
    if scratch:
        warm = last(alone, data, sg.DenoisingScoreMatching(), steps)
        pairs = flowmaps.GrowingPairs(steps // 2)
        alone = last(warm.requires_grad_(True), data, flowmaps.Lagrangian(pairs), steps)
    times.append(time.process_time())
    spent = [b - a for a, b in pairwise(times)]
    return Trained(score, distilled, alone, (spent[0], spent[0] + spent[1], spent[2]))


def distances(model: sg.ScoreModel, sampler: sg.Sampler, target: str) -> torch.Tensor:
    """Sliced W2 to fresh data, one entry per seed."""
    reference = getattr(sg.data, target)(20_000, 99)
    metric = SlicedWasserstein()
    return torch.tensor(
        [metric(sampler.sample(model, (5000, 2), seed=s), reference).value for s in SEEDS]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="*", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    lines = [
        "| target | the data's own | flow, 50 evaluations | distilled, 1 | from scratch, 1 "
        "| ratios | seconds: score, distilled in all, from scratch |",
        "|---|---|---|---|---|---|---|",
    ]
    for target in given.targets:
        trained = train(target, given.steps)
        own = SlicedWasserstein()(
            getattr(sg.data, target)(5000, 7), getattr(sg.data, target)(20_000, 99)
        ).value
        flow = distances(trained.score, FIFTY, target).mean()
        maps = [distances(m, ONE, target).mean() for m in (trained.distilled, trained.scratch)]
        seconds = ", ".join(f"{s:.0f}" for s in trained.seconds)
        row = (
            f"| {target} | {own:.4f} | {flow:.4f} | {maps[0]:.4f} | {maps[1]:.4f} "
            f"| {maps[0] / flow:.2f}, {maps[1] / flow:.2f} | {seconds} |"
        )
        print(row, flush=True)
        lines.append(row)
    write(given.out, ("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    main()
