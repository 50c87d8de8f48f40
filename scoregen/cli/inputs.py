"""What the words of a command line stand for: models, devices, data, networks."""

from __future__ import annotations

import difflib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch

from .. import data, networks
from .._checks import check_device
from ..data import Data, Units
from ..flowmaps.bundled import DIGITS_MAP
from ..models import ScoreModel
from ..training import card, load
from ..training.checkpoint import DIGITS
from . import specs
from .origins import is_origin, origin

BUNDLED = "digits"
FOLDERS = {BUNDLED: DIGITS, "digits-map": DIGITS_MAP}


def model_of(checkpoint: str, device: str | None) -> ScoreModel:
    place = device_of(device)
    if is_origin(checkpoint):
        return origin(checkpoint).to(place)
    return load(FOLDERS.get(checkpoint, checkpoint)).to(place)


def device_of(device: str | None) -> torch.device:
    """The device of that name, if it can be used here; the best there is for None."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return check_device("--device", device)


def drawable(*needed: str) -> bool:
    """Whether pictures can be made here; what will be missing is named before any work."""
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"scoregen: without {' and '.join(missing)} no pictures are made, the rest is: "
            "pip install 'scoregen[bench]'",
            file=sys.stderr,
        )
    return not missing


def card_of(checkpoint: str) -> dict[str, Any]:
    return card(FOLDERS.get(checkpoint, checkpoint))


def units_of(checkpoint: str) -> Units | None:
    """What the data of a checkpoint were standardised by."""
    if is_origin(checkpoint):
        return None
    units = card_of(checkpoint)["units"]
    return None if units is None else Units(*(tuple(units[name]) for name in ("mean", "std")))


def event_of(checkpoint: str) -> tuple[int, ...]:
    """The shape of one sample, which the card must state."""
    foreign = is_origin(checkpoint)
    event = origin(checkpoint).card.event if foreign else card_of(checkpoint)["event"]
    if event is None:
        how = f"write {checkpoint}(event=(3, 64, 64))" if foreign else "save it with event=(...)"
        raise ValueError(f"the card of {checkpoint} states no shape of a sample; {how}")
    return tuple(event)


def data_of(source: str, split: str, seed: int = 0, mode: str | None = None) -> Data:
    """The bundled digits, a two-dimensional target by name, or a user's own file or folder."""
    if source == BUNDLED:
        return data.digits("test" if split == "test" else "train")
    targets = ("checkerboard", "eight_gaussians", "moons", "rings", "swiss_roll")
    if source in targets:
        count, key = (2000, seed + 1) if split == "test" else (20_000, seed)
        return Data(getattr(data, source)(count, key), name=source)
    if not Path(source).exists():
        near = difflib.get_close_matches(source, (BUNDLED, *targets), 1, 0.6)
        hint = f", did you mean {near[0]}" if near else ""
        raise ValueError(
            f"no data at {source!r}{hint}: name a file or folder, {BUNDLED!r}, or one of "
            f"{', '.join(targets)}."
        )
    whole = data.load(source, mode=mode)
    if len(whole) < 10:  # too few to hold any out
        if split == "test":
            raise ValueError(
                f"{source} has {len(whole)} samples; with fewer than 10 none are held out for a "
                "test"
            )
        return whole
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
