"""Train the digits network bundled with scoregen, measure it, and write its checkpoint.

    OMP_NUM_THREADS=2 python benchmarks/training/train_digits.py

At most fifteen minutes on two CPU cores. It may be stopped and started again: it resumes from the
folder of `--out`. Only the training split is seen. The card of the checkpoint carries the figures
printed at the end: held-out loss, accuracy of the classes asked for, and how far samples lie from
the nearest training digit, beside the same distance for held-out digits (a network that recites
its training set would lie much nearer).
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

import scoregen.data
from scoregen import (
    VPSDE,
    DPMSolverPP,
    HalfLogSNR,
    Sampler,
    ScoreNetwork,
    UNet,
    UniformLam,
    V,
    digits,
)
from scoregen.metrics import digits_classifier
from scoregen.models import ScoreModel
from scoregen.objectives import DenoisingScoreMatching, Stratified, Unit
from scoregen.training import fit, load, save

BUNDLED = Path(scoregen.data.__file__).with_name("digits_v")
OBJECTIVE = DenoisingScoreMatching(law=Stratified(), weight=Unit(V()))


def network(seed: int, dropout: float) -> ScoreNetwork:
    """A class-conditional U-Net of 0.28 M parameters that predicts v."""
    torch.manual_seed(seed)
    net = UNet(channels=1, width=24, classes=10, dropout=dropout)
    return ScoreNetwork(net, VPSDE(), V(), HalfLogSNR())


@torch.no_grad()
def loss(model: ScoreModel, split: str) -> float:
    """Mean v-loss per pixel on a split, at the same times and noise whatever the weights."""
    data, repeats = digits(split), 20
    generator = torch.Generator().manual_seed(0)
    losses = [
        OBJECTIVE(model, data.x, generator=generator, label=data.label).mean() / 64
        for _ in range(repeats)
    ]
    return float(torch.stack(losses).mean())


def nearest(x: Tensor, y: Tensor) -> Tensor:
    """Distance of each row of x to the nearest row of y."""
    return torch.cdist(x.flatten(1), y.flatten(1)).amin(1)


def measure(model: ScoreModel, samples: int = 1000) -> dict[str, float]:
    """What the card says of the network."""
    label = torch.arange(samples) % 10
    sampler = Sampler(DPMSolverPP(), UniformLam(20))
    x = sampler.sample(model, (samples, 1, 8, 8), seed=1, condition={"label": label})
    train, test = digits("train").x, digits("test").x
    right = digits_classifier()(x).argmax(1) == label
    return {
        "training loss per pixel": round(loss(model, "train"), 5),
        "held-out loss per pixel": round(loss(model, "test"), 5),
        "class accuracy of 1000 samples, 20 evaluations": round(float(right.double().mean()), 4),
        "median distance, sample to nearest training digit": round(
            float(nearest(x, train).median()), 3
        ),
        "median distance, held-out to nearest training digit": round(
            float(nearest(test, train).median()), 3
        ),
        "share of samples within 0.5 of a training digit": round(
            float((nearest(x, train) < 0.5).double().mean()), 4
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/digits"), help="resume file")
    parser.add_argument("--bundle", type=Path, default=BUNDLED, help="checkpoint to write")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model, data = network(args.seed, args.dropout), digits("train")
    for _ in fit(
        model,
        data,
        OBJECTIVE,
        steps=args.steps,
        batch=args.batch,
        lr=args.lr,
        seed=args.seed,
        label_dropout=0.1,
        ema_decay=0.9995,
        out=args.out,
    ):
        pass
    average = load(args.out / "model")
    figures = measure(average)
    for name, value in figures.items():
        print(f"{name}: {value}")
    note = f"benchmarks/training/train_digits.py, steps {args.steps}, batch {args.batch}, lr {args.lr}, "
    save(
        average,
        args.bundle,
        steps=args.steps,
        weights="ema",
        data_range=data.range,
        bins=data.bins,
        event=data.event,
        extra={"data": data.name, "figures": figures, "trained by": note + f"seed {args.seed}"},
        overwrite=True,
    )
    print(f"wrote {args.bundle}")


if __name__ == "__main__":
    main()
