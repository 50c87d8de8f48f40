"""A model on disk: a folder with `model.safetensors` and `card.json`, nothing that executes.

The card names the classes and arguments of network, process, parameterization and clock. On the way
back they are looked up among the public classes of this package only, rebuilt, and filled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .._checks import (
    check_choice,
    check_count,
    check_counts,
    check_device,
    check_flag,
    check_kind,
    check_path,
    check_range,
)
from .._files import CheckpointError, check_finite, probe, sweep, temporary, write
from .._identity import uncompiled_name
from .._version import __version__
from ..data import Units
from ..data.levels import check_bins
from ..models import ScoreModel, ScoreNetwork
from ..models.base import check_model
from .card import core, describe_model, parts_of, rebuild

__all__ = ["CheckpointError", "card", "digits_model", "load", "probe", "save"]

FORMAT = 2
_KIND = "scoregen checkpoint"
_CARD, _WEIGHTS, _NEXT = "card.json", "model.safetensors", "next.safetensors"
_LARGEST_CARD = 1 << 24
DIGITS = Path(str(files("scoregen.data").joinpath("digits_v")))


def check_target(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that must not be written over.

    Raises:
        CheckpointError: if it exists, unless it is a checkpoint and `overwrite` is set.
    """
    if folder.exists() and not overwrite:
        raise CheckpointError(f"{folder} exists already; choose another name or overwrite=True")
    if folder.exists() and not (folder / _CARD).is_file():
        raise CheckpointError(f"{folder} is no checkpoint, so it is not overwritten; move it away")


def save(
    model: ScoreModel,
    folder: str | os.PathLike[str],
    *,
    steps: int = 0,
    weights: Literal["ema", "raw"] = "raw",
    data_range: tuple[float, float] | None = None,
    bins: int | None = None,
    event: tuple[int, ...] | None = None,
    units: Units | None = None,
    extra: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a model as a folder; it appears, or replaces an older one, whole or not at all.

    Networks and models of your own are saved too: their weights, not their code. Give that code to
    `load`, as `net=` where only the network is yours, as `model=` otherwise.

    Args:
        model: a `ScoreNetwork`, an `EnergyNetwork`, or any other score model.
        folder: where to; made here.
        steps: training steps behind the weights.
        weights: which set these are: the average or the last ones.
        data_range: interval the data cannot leave.
        bins: number of levels of discrete data.
        event: shape of one sample.
        units: what the data were standardised by.
        extra: anything else worth knowing, in JSON's types.
        overwrite: replace an older checkpoint.

    Raises:
        CheckpointError: if the folder exists, cannot be written, or a weight is not finite.
        ValueError, TypeError: for an argument of another kind, or outside its range.

    >>> import tempfile
    >>> from scoregen import MLP, V, VPSDE, ScoreNetwork
    >>> folder = Path(tempfile.mkdtemp()) / "mine"
    >>> model = load(save(ScoreNetwork(MLP(), VPSDE(), V()), folder))
    """
    check_model(model)
    folder = check_path("folder", folder)
    steps = check_count("steps", steps, 0)
    check_choice("weights", weights, ("ema", "raw"))
    ends = None if data_range is None else check_range("data_range", data_range)
    bins = None if bins is None else check_bins(bins)
    shape = None if event is None else check_counts("event", event)
    if units is not None:
        check_kind("units", units, Units, "Units((0.5,), (2.0,))")
    if extra is not None:
        check_kind("extra", extra, dict, '{"data": "faces"}')
    check_flag("overwrite", overwrite)
    check_target(folder, overwrite)
    probe(folder.parent)
    tensors = {
        uncompiled_name(k): v.detach().cpu().clone() for k, v in core(model).state_dict().items()
    }
    check_finite(tensors, "the model")
    content = safetensors.torch.save(tensors)
    text = {
        "kind": _KIND,
        "format": FORMAT,
        "scoregen": __version__,
        "torch": torch.__version__,
        **describe_model(model),
        "event": shape,
        "data_range": ends,
        "bins": bins,
        "units": None if units is None else units._asdict(),
        "weights": {
            "set": weights,
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "parameters": sum(p.numel() for p in model.parameters()),
        },
        "steps": steps,
        "extra": extra or {},
    }
    try:
        text["sha256"] = _seal(text)
        encoded = json.dumps(text, indent=1, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"the card must hold finite values of JSON's types: {error}"
        ) from error
    if folder.exists():
        _replace(folder, content, encoded)
    else:
        _create(folder, content, encoded)
    return folder


def _create(folder: Path, content: bytes, encoded: bytes) -> None:
    part = temporary(folder)
    try:
        part.mkdir()
        write(part / _WEIGHTS, content)
        write(part / _CARD, encoded)
        os.rename(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _replace(folder: Path, content: bytes, encoded: bytes) -> None:
    """The new weights stand beside the old ones until the card, replaced at once, names them."""
    sweep(folder)
    if (folder / _NEXT).exists():  # an earlier replacement was broken off
        if _is(folder / _NEXT, card(folder)["weights"]):
            os.replace(folder / _NEXT, folder / _WEIGHTS)
        else:
            (folder / _NEXT).unlink()
    write(folder / _NEXT, content)
    write(folder / _CARD, encoded)
    os.replace(folder / _NEXT, folder / _WEIGHTS)


def _is(path: Path, expected: dict[str, Any]) -> bool:
    return hashlib.sha256(path.read_bytes()).hexdigest() == expected.get("sha256")


def _seal(text: dict[str, Any]) -> str:
    """SHA-256 of what a card says, apart from the seal itself."""
    said = {key: value for key, value in text.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True, allow_nan=False).encode()).hexdigest()


def card(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What is known of a checkpoint, without reading its weights.

    Raises:
        CheckpointError: if it is missing, foreign, damaged or of a newer format.

    >>> card("nowhere")
    Traceback (most recent call last):
        ...
    scoregen._files.CheckpointError: there is no checkpoint at nowhere
    """
    folder = check_path("folder", folder)
    if folder.is_file():
        raise CheckpointError(
            f"{folder} is a single file, and a checkpoint is a folder with {_CARD} and {_WEIGHTS}; "
            "pickled checkpoints (.pt, .pth, .ckpt, .bin) can run code and are never read here"
        )
    if not folder.is_dir():
        raise CheckpointError(f"there is no checkpoint at {folder}")
    path = folder / _CARD
    if not path.is_file():
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:10]) or "nothing"
        raise CheckpointError(
            f"{folder} has no {_CARD} (found: {found}); pickled files are never read"
        )
    if path.stat().st_size > _LARGEST_CARD:
        raise CheckpointError(f"{path} is larger than any card, {path.stat().st_size} bytes")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged or no JSON: {error}") from error
    if not isinstance(content, dict) or content.get("kind") != _KIND:
        raise CheckpointError(f"{path} is not the card of a scoregen checkpoint")
    if content.get("format") not in (1, FORMAT):
        raise CheckpointError(
            f"{path} has format {content.get('format')!r} and this scoregen reads 1 and {FORMAT}; "
            f"it was written by scoregen {content.get('scoregen')!r}: install that version or newer"
        )
    if content["format"] == 1:  # written by 0.1, which knew one kind of model
        content = {"model": "ScoreNetwork", "units": None, **content}
    elif _sealed(content) != content.get("sha256"):
        raise CheckpointError(f"{path} is damaged: its SHA-256 differs from the one it states")
    _, parts = parts_of(content.get("model"))
    described = set(parts) if set(parts) & set(content) else set()
    missing = ({"model", "weights", "steps"} | described) - set(content)
    if missing or not isinstance(content["weights"], dict):
        raise CheckpointError(f"{path} is damaged: {', '.join(sorted(missing))} missing")
    return content


def _sealed(content: dict[str, Any]) -> str:
    try:
        return _seal(content)
    except ValueError:  # NaN, which no card holds
        return ""


class _Undrawn(TorchFunctionMode):
    """Builds networks without drawing first weights, which a checkpoint replaces.

    On the meta device torch would import its compiler for each draw.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        named = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else named["tensor"]
        return func(*args, **named)


def load(
    folder: str | os.PathLike[str],
    *,
    net: nn.Module | None = None,
    model: ScoreModel | None = None,
    device: torch.device | str = "cpu",
) -> ScoreModel:
    """Read a model back, in evaluation mode; every byte of its weights is verified.

    Args:
        folder: what `save` wrote.
        net: the network to fill, where it is not one of scoregen's.
        model: the model to fill, where its class, process, parameterization or clock is your own.
        device: where the model should live.

    Returns:
        A model of the class that was saved: a `ScoreNetwork`, an `EnergyNetwork`, a flow map, or
        `model`.

    Raises:
        CheckpointError: if anything is missing, damaged, foreign, newer, or does not fit.

    >>> digits_model().sde
    VPSDE(beta_min=0.1, beta_max=20.0, t_min=0.001, t_max=1.0)
    """
    folder, place = check_path("folder", folder), check_device("device", device)
    if net is not None:
        check_kind("net", net, nn.Module, "MLP()")
    text = card(folder)
    if model is not None:
        if net is not None:
            raise TypeError("give load either net or model, not both")
        check_model(model)
        _check_same(folder, text, model)
        made = model
    else:
        made = _made(folder, text, net)
    tensors = _read(folder, text["weights"])
    _fill(core(made), tensors, folder)
    return made.eval().to(place)


def _made(folder: Path, text: dict[str, Any], net: nn.Module | None) -> ScoreModel:
    """The model a card describes, with weights still to be filled in."""
    name = text["model"]
    cls, parts = parts_of(name)
    own = [p for p in parts if isinstance(text.get(p), dict) and text[p].get("args") is None]
    if cls is None or not set(parts) <= set(text) or set(own) - {"net"}:
        what = ", ".join(str(text[p].get("class")) for p in own) or name
        raise CheckpointError(
            f"{folder} holds the weights of {name!r:.200} and not the code of {what}, which is "
            "none of scoregen's: build the model yourself and pass it, load(folder, model=...)"
        )
    made = {part: rebuild(text[part], part) for part in parts if part != "net"}
    if net is None:
        if own:
            raise CheckpointError(
                f"{folder} holds the weights of {text['net'].get('class')!r}, which is no network "
                "of scoregen: build it yourself and pass it, load(folder, net=...)"
            )
        # a card that names a huge network costs nothing
        with torch.device("meta"), _Undrawn():
            net = rebuild(text["net"], "net")
    return cls(net=net, **made)


def _check_same(folder: Path, text: dict[str, Any], model: ScoreModel) -> None:
    """A model that is given must be what the card describes, as far as it does."""
    said = json.loads(json.dumps(describe_model(model)))
    other = [part for part in said if text.get(part) != said[part]]
    if other:
        raise CheckpointError(
            f"{folder} does not hold the weights of this {type(model).__name__}; they differ in "
            + "; ".join(f"{part}: {text.get(part)!r:.200} -> {said[part]!r:.200}" for part in other)
        )


def _read(folder: Path, expected: dict[str, Any]) -> dict[str, Tensor]:
    path = folder / _WEIGHTS
    if (folder / _NEXT).is_file() and _is(folder / _NEXT, expected):
        path = folder / _NEXT  # a replacement was broken off after the card was written
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    content = path.read_bytes()
    if len(content) != expected.get("bytes"):
        raise CheckpointError(
            f"{path} is truncated or damaged: {len(content)} of {expected.get('bytes')} bytes"
        )
    if hashlib.sha256(content).hexdigest() != expected.get("sha256"):
        raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one on the card")
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} is no safetensors file: {error}") from error
    check_finite(tensors, str(path))
    return tensors


def _fill(net: nn.Module, tensors: dict[str, Tensor], folder: Path) -> None:
    """Put the weights into the network, or say which do not fit."""
    if tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    tensors = {uncompiled_name(name): value for name, value in tensors.items()}
    names = {uncompiled_name(name): name for name in net.state_dict()}
    wanted = {name: net.state_dict()[inner] for name, inner in names.items()}
    missing, unexpected = sorted(set(wanted) - set(tensors)), sorted(set(tensors) - set(wanted))
    shapes = [k for k, v in wanted.items() if k in tensors and v.shape != tensors[k].shape]
    if missing or unexpected or shapes:
        raise CheckpointError(
            f"the weights of {folder} do not fit {type(net).__name__}: missing {missing}, "
            f"unexpected {unexpected}, of another shape {shapes}"
        )
    net.load_state_dict({names[k]: v for k, v in tensors.items()}, assign=True)


def digits_model() -> ScoreNetwork:
    """The bundled network: v-prediction on `VPSDE`, 8x8 digits, classes 0..9 and 10 for none.

    Trained by `benchmarks/training/train_digits.py` on the 1,500 training digits; the card says
    how.

    >>> digits_model().net.config["classes"]
    10
    """
    model = load(DIGITS)
    if not isinstance(model, ScoreNetwork):
        raise CheckpointError(f"{DIGITS} must hold a ScoreNetwork, got {type(model).__name__}")
    return model
