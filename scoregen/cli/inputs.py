"""What the words of a command line stand for: models, devices, data, networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .. import data, networks
from ..data.dataset import Data
from ..models import ScoreNetwork
from ..training import card, load
from ..training.checkpoint import DIGITS
from . import specs

BUNDLED = "digits"


def model_of(checkpoint: str, device: str | None) -> ScoreNetwork:
    model = load(DIGITS if checkpoint == BUNDLED else checkpoint)
    return model.to(device_of(device))


def device_of(device: str | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def card_of(checkpoint: str) -> dict[str, Any]:
    return card(DIGITS if checkpoint == BUNDLED else checkpoint)


def data_of(source: str, split: str, seed: int = 0) -> Data:
    """The bundled digits, a two-dimensional target by name, or a user's own file or folder."""
    if source == BUNDLED:
        return data.digits("test" if split == "test" else "train")
    targets = ("checkerboard", "eight_gaussians", "moons", "rings", "swiss_roll")
    if source in targets:
        count, key = (2000, seed + 1) if split == "test" else (20_000, seed)
        return Data(getattr(data, source)(count, key), name=source)
    if not Path(source).exists():
        raise ValueError(
            f"no data at {source!r}: name a file or folder, {BUNDLED!r}, or one of "
            f"{', '.join(targets)}"
        )
    whole = data.load(source)
    train, test = whole.split(test=0.1, seed=0)
    return test if split == "test" else train


def network_of(text: str, content: Data) -> torch.nn.Module:
    classes = content.classes if content.label is not None else 0
    if not text:
        text = "UNet(width=24)" if len(content.event) == 3 else "MLP(hidden=256)"
    name, inside, rest = text.partition("(")
    given: dict[str, Any] = {"classes": classes} if classes else {}
    if len(content.event) == 3 and name == "UNet":
        given["channels"] = content.event[0]
    if name == "MLP":
        given["event"] = tuple(content.event)
    extra = ", ".join(f"{k}={v!r}" for k, v in given.items() if f"{k}=" not in text)
    arguments = ", ".join(part for part in (rest.rstrip(")") if inside else "", extra) if part)
    made = specs.parse(f"{name}({arguments})", "network")
    if not isinstance(made, networks.UNet | networks.MLP):
        raise ValueError(f"{text!r} is no network; known: MLP(...), UNet(...)")
    return made
