"""Train the digit classifier bundled with scoregen.metrics and write its weights.

    OMP_NUM_THREADS=2 python benchmarks/training/train_classifier.py

Under two minutes on two CPU cores. Only the training split is seen; the accuracy on the held-out
test split is printed, and stored with the settings in the file's metadata.
"""

import argparse
import os
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

import scoregen.metrics
from scoregen.data.digits import digits
from scoregen.metrics import DigitsClassifier

BUNDLED = Path(scoregen.metrics.__file__).with_name("digits_classifier.safetensors")


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by at most one pixel, one time in two, and add noise of random size."""
    padded = pad(x, (1, 1, 1, 1), value=-1.0)
    shift = torch.randint(0, 3, (2, len(x)), generator=generator)
    shift[:, torch.rand(len(x), generator=generator) < 0.5] = 1
    span = torch.arange(8)
    rows = (shift[0][:, None] + span)[:, :, None]
    columns = (shift[1][:, None] + span)[:, None, :]
    moved = padded[torch.arange(len(x))[:, None, None], 0, rows, columns][:, None]
    size = 0.2 * torch.rand(len(x), 1, 1, 1, generator=generator)
    return moved + size * torch.randn(x.shape, generator=generator)


def train(epochs: int, batch: int, seed: int) -> DigitsClassifier:
    """Fit the classifier to the training split; the same seed gives the same weights."""
    data = digits("train")
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    net = DigitsClassifier()
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.02)
    steps = epochs * -(-len(data.x) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, total_steps=steps)
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(data.x), generator=generator).split(batch):
            logits = net(augment(data.x[rows], generator))
            loss = cross_entropy(logits, data.label[rows], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item() * len(rows)
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1:3d}  loss {total / len(data.x):.4f}", flush=True)
    return net.eval()


@torch.no_grad()
def accuracy(net: DigitsClassifier, split: str) -> float:
    """Share of a split that the network names rightly."""
    data = digits(split)
    return (net(data.x).argmax(1) == data.label).double().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=BUNDLED, help="file to write")
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    net = train(args.epochs, args.batch, args.seed)
    held_out = accuracy(net, "test")
    metadata = {
        "trained on": "scikit-learn digits, training split of scoregen.data.digits",
        "held-out accuracy": f"{held_out:.4f}",
        "training accuracy": f"{accuracy(net, 'train'):.4f}",
        "settings": f"epochs {args.epochs}, batch {args.batch}, seed {args.seed}",
        "torch": torch.__version__,
    }
    temporary = args.out.with_name(args.out.name + ".part")
    safetensors.torch.save_file(net.state_dict(), temporary, metadata=metadata)
    temporary.chmod(0o644)  # safetensors writes for the owner alone; a package is for everyone
    os.replace(temporary, args.out)
    print(f"held-out accuracy {held_out:.4f}; wrote {args.out} ({args.out.stat().st_size} bytes)")


if __name__ == "__main__":
    main()
