"""Train the two small networks that the accuracy gate measures beside the bundled one.

    OMP_NUM_THREADS=1 python benchmarks/training/train_gate.py [--only eps | x0]

Exact scores hide what a sampler makes of a network's own error, and so does a v-network: its error
reaches the result almost unchanged by the weights of a multistep formula, where an eps-network's is
multiplied by sigma / alpha (`scoregen.analysis.amplification`). So the gate also has an eps-network
on a chain of 1,000 steps, evaluated between its knots, and an x0-network. Both see the digits'
training split without labels; together they take three and a half minutes of one CPU core. They
need not draw well: they must err as trained networks do.
"""

import argparse
import time
from pathlib import Path

import torch
from torch import nn

from scoregen import (
    MLP,
    VPSDE,
    X0,
    DiscreteVPSDE,
    Eps,
    HalfLogSNR,
    Index,
    ScoreNetwork,
    UNet,
    digits,
)
from scoregen.objectives import DenoisingScoreMatching, Stratified, Unit
from scoregen.training import fit, save

FOLDER = Path(__file__).parents[1] / "samplers" / "data"


def eps_network() -> ScoreNetwork:
    """A U-Net of 0.12 M parameters that predicts eps at the places between a chain's knots."""
    net: nn.Module = UNet(channels=1, width=16)
    return ScoreNetwork(net, DiscreteVPSDE.linear(1000), Eps(), Index(fractional=True))


def x0_network() -> ScoreNetwork:
    """A perceptron of 0.25 M parameters that predicts x0."""
    net: nn.Module = MLP((1, 8, 8), hidden=128, depth=3)
    return ScoreNetwork(net, VPSDE(), X0(), HalfLogSNR())


# name -> how it is built, steps, batch, weight of the loss: each network's own output counts 1
RECIPES = {
    "eps": (eps_network, 1500, 64, Unit(Eps())),
    "x0": (x0_network, 6000, 128, Unit(X0())),
}


def train(name: str) -> None:
    build, steps, batch, weight = RECIPES[name]
    began = time.process_time()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build()
    objective = DenoisingScoreMatching(law=Stratified(), weight=weight)
    data, average, loss = digits("train"), model, 0.0
    for step in fit(
        model, data, objective, steps=steps, batch=batch, lr=2e-3, seed=0, ema_decay=0.995
    ):
        average, loss = step.ema, step.loss
    spent = time.process_time() - began
    folder = save(
        average,
        FOLDER / f"digits_{name}",
        steps=steps,
        weights="ema",
        data_range=data.range,
        bins=data.bins,
        event=data.event,
        extra={
            "data": data.name,
            "trained by": f"benchmarks/training/train_gate.py, {steps} steps",
        },
        overwrite=True,
    )
    print(f"{folder}: last loss {loss:.2f}, {spent:.0f} s of CPU time")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", choices=list(RECIPES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in [options.only] if options.only else list(RECIPES):
        train(name)


if __name__ == "__main__":
    main()
