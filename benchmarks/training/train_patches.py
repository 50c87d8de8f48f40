"""Train a 32 x 32 U-Net on patches of photographs, or on CIFAR-10, for as long as you like.

    python benchmarks/training/train_patches.py
    python benchmarks/training/train_patches.py --cifar cifar-10-batches-py --width 128 --device cuda

Stop it whenever you like, by Ctrl-C or --minutes, and start it again: it goes on where it was, to the
same bits. The checkpoint of the averaged weights, `model` in the folder of `--out`, and the picture
`samples.png`, a row for each class, are replaced at every save. Patches come with scikit-image and
scikit-learn; for CIFAR-10 give the folder of its own files, see `scoregen.data.cifar10`.

The network and the objective are EDM's (Karras et al. 2022, 2206.00364), on mirrored images.
"""

import argparse
import io
import time
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

import scoregen as sg
from scoregen._files import write
from scoregen.data import Augmented, HorizontalFlip, cifar10, patches, to_levels
from scoregen.models import EDM, ScoreModel
from scoregen.objectives import DenoisingScoreMatching, EDMWeight, LogNormalSigma
from scoregen.training import fit, load

OBJECTIVE = DenoisingScoreMatching(law=LogNormalSigma(), weight=EDMWeight(0.5))
SAMPLER = sg.Sampler(sg.KarrasHeun(), sg.Karras(18))


def network(classes: int, width: int, seed: int) -> sg.ScoreNetwork:
    """A class-conditional U-Net that attends at 8 x 8 and 4 x 4 pixels."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = sg.UNet(
            channels=3, width=width, mults=(1, 2, 2, 2), attention=(False, False, True, True),
            classes=classes, dropout=0.1,
        )  # fmt: skip
    return sg.ScoreNetwork(net, sg.EDMSDE(), EDM(0.5))


def picture(x: Tensor, columns: int, path: Path, zoom: int = 3) -> None:
    """Images (n, 3, H, W) on [-1, 1] as a PNG of rows of `columns`."""
    levels = to_levels(x, 256).to(torch.uint8)
    n, channels, height, width = levels.shape
    rows = levels.reshape(n // columns, columns, channels, height, width)
    sheet = rows.permute(0, 3, 1, 4, 2).reshape(-1, columns * width, channels).numpy()
    image = Image.fromarray(sheet).resize((zoom * sheet.shape[1], zoom * sheet.shape[0]), 0)
    buffer = io.BytesIO()
    image.save(buffer, "png")
    write(path, buffer.getvalue())


def samples(model: ScoreModel, classes: int, columns: int = 12) -> Tensor:
    """Some samples of each class, from the same noise for every state of the network."""
    label = torch.arange(classes).repeat_interleave(columns)
    shape = (len(label), 3, 32, 32)
    return SAMPLER.sample(model, shape, seed=0, condition={"label": label}).cpu()


@torch.no_grad()
def loss(model: ScoreModel, data: sg.Data, count: int = 1024) -> float:
    """Mean loss per pixel without labels, at the same images, times and noise."""
    device = model.placement()[0]
    batch = next(data.serve(min(count, len(data)), seed=0, device=device)).x
    generator = torch.Generator(device).manual_seed(0)
    label = torch.full((len(batch),), model.conditions.classes, device=device)
    return float(OBJECTIVE(model, batch, generator=generator, label=label).mean()) / 3072


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder; runs/patches or runs/cifar by default")
    parser.add_argument("--cifar", type=Path, help="folder of CIFAR-10's files; patches without")
    parser.add_argument("--minutes", type=float, help="stop after so long, to go on another time")
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=500)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    cifar = args.cifar is not None
    train, test = (cifar10(args.cifar, s) if cifar else patches(s) for s in ("train", "test"))
    out = args.out or Path("runs") / ("cifar" if cifar else "patches")
    model = network(train.classes, args.width, args.seed)
    end = time.monotonic() + 60 * (args.minutes or float("inf"))
    last = None
    for step in fit(
        model,
        Augmented(train, HorizontalFlip()),
        OBJECTIVE,
        steps=args.steps,
        batch=args.batch,
        lr=args.lr,
        seed=args.seed,
        label_dropout=0.1,
        out=out,
        save_every=args.save_every,
        device=args.device,
    ):
        last = step.step
        if step.step % args.save_every == 0:
            picture(samples(step.ema, train.classes), 12, out / "samples.png")
            print(f"step {step.step}: loss {step.loss / 3072:.4f}", flush=True)
        if time.monotonic() > end:
            break
    average = load(out / "model").to(args.device)
    picture(samples(average, train.classes), 12, out / "samples.png")
    print(f"after {last or args.steps} steps; {out / 'samples.png'}")
    for split, data in (("train", train), ("test", test)):
        print(f"{split} loss per pixel: {loss(average, data):.4f}")


if __name__ == "__main__":
    main()
