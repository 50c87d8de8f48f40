"""A model on disk: a folder with `model.safetensors` and `card.json`, nothing that executes.

The card names the classes and arguments of network, process, parameterization and clock. On the way
back they are looked up among the public classes of this package only, rebuilt, and filled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from .._checks import check_choice, check_count
from .._files import CheckpointError, check_finite, probe, write
from .._identity import identity
from .._version import __version__
from ..models import ScoreNetwork
from .card import describe, rebuild

__all__ = ["CheckpointError", "card", "digits_model", "fingerprint", "load", "probe", "save"]

FORMAT = 1
_KIND = "scoregen checkpoint"
_CARD, _WEIGHTS = "card.json", "model.safetensors"
_LARGEST_CARD = 1 << 24
DIGITS = Path(str(files("scoregen.data").joinpath("digits_v")))


def fingerprint(model: nn.Module) -> str:
    """Twelve hexadecimal digits that change with whatever changes what a model predicts.

    Args:
        model: any module; weights, buffers, settings, bound conditions, code and closures count.

    Raises:
        IdentityError: where something that decides the prediction cannot be read.

    >>> from scoregen import VPSDE, Gaussian
    >>> a, b = (Gaussian(VPSDE(), torch.zeros(2), v) for v in (1.0, 2.0))
    >>> len(fingerprint(a)), fingerprint(a) == fingerprint(b)
    (12, False)
    """
    return identity(model)[:12]


def save(
    model: ScoreNetwork,
    folder: str | Path,
    *,
    steps: int = 0,
    weights: Literal["ema", "raw"] = "raw",
    data_range: tuple[float, float] | None = None,
    bins: int | None = None,
    event: tuple[int, ...] | None = None,
    extra: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a model as a folder; it appears whole or not at all.

    A network of your own is saved too: its weights, not its code. Give it to `load` as `net=`.

    Args:
        model: a network with its process, parameterization and clock.
        folder: where to; made here.
        steps: training steps behind the weights.
        weights: which set these are: the average or the last ones.
        data_range: interval the data cannot leave.
        bins: number of levels of discrete data.
        event: shape of one sample.
        extra: anything else worth knowing, in JSON's types.
        overwrite: replace an older checkpoint.

    Raises:
        CheckpointError: if the folder exists, cannot be written, or a weight is not finite.

    >>> import tempfile
    >>> from scoregen import MLP, V, VPSDE, ScoreNetwork
    >>> folder = Path(tempfile.mkdtemp()) / "mine"
    >>> model = load(save(ScoreNetwork(MLP(), VPSDE(), V()), folder))
    """
    check_choice("weights", weights, ("ema", "raw"))
    folder = Path(folder)
    if folder.exists() and not overwrite:
        raise CheckpointError(f"{folder} exists already; choose another name or overwrite=True")
    if folder.exists() and not (folder / _CARD).is_file():
        raise CheckpointError(f"{folder} is no checkpoint, so it is not overwritten; move it away")
    probe(folder.parent)
    tensors = {k: v.detach().cpu().clone() for k, v in model.net.state_dict().items()}
    check_finite(tensors, "the model")
    content = safetensors.torch.save(tensors)
    text = {
        "kind": _KIND,
        "format": FORMAT,
        "scoregen": __version__,
        "torch": torch.__version__,
        "net": describe(model.net, "net"),
        "sde": describe(model.sde, "sde"),
        "parameterization": describe(model.parameterization, "parameterization"),
        "clock": describe(model.clock, "clock"),
        "event": None if event is None else list(event),
        "data_range": None if data_range is None else list(data_range),
        "bins": bins,
        "weights": {
            "set": weights,
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "parameters": sum(p.numel() for p in model.net.parameters()),
        },
        "steps": check_count("steps", steps, 0),
        "extra": extra or {},
    }
    try:
        encoded = json.dumps(text, indent=1, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"the card must hold finite values of JSON's types: {error}"
        ) from error
    part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    part.chmod(0o755)
    old = part.with_name(f"{part.name}.old")
    try:
        write(part / _WEIGHTS, content)
        write(part / _CARD, encoded)
        if folder.exists():
            os.rename(folder, old)
        os.rename(part, folder)
    finally:
        if old.exists() and not folder.exists():
            os.rename(old, folder)
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return folder


def card(folder: str | Path) -> dict[str, Any]:
    """What is known of a checkpoint, without reading its weights.

    Raises:
        CheckpointError: if it is missing, foreign, damaged or of a newer format.

    >>> card("nowhere")
    Traceback (most recent call last):
        ...
    scoregen._files.CheckpointError: there is no checkpoint at nowhere
    """
    folder = Path(folder)
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
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {content.get('format')!r} and this scoregen reads {FORMAT}; it was "
            f"written by scoregen {content.get('scoregen')!r}: install that version or newer"
        )
    missing = {"net", "sde", "parameterization", "clock", "weights", "steps"} - set(content)
    if missing or not isinstance(content["weights"], dict):
        raise CheckpointError(f"{path} is damaged: {', '.join(sorted(missing))} missing")
    return content


def load(
    folder: str | Path, *, net: nn.Module | None = None, device: torch.device | str = "cpu"
) -> ScoreNetwork:
    """Read a model back, in evaluation mode; every byte of its weights is verified.

    Args:
        folder: what `save` wrote.
        net: the network to fill, where it is not one of scoregen's.
        device: where the model should live.

    Raises:
        CheckpointError: if anything is missing, damaged, foreign, newer, or does not fit.

    >>> digits_model().sde
    VPSDE(beta_min=0.1, beta_max=20.0, t_min=0.001, t_max=1.0)
    """
    folder = Path(folder)
    text = card(folder)
    sde, meaning, clock = (rebuild(text[k], k) for k in ("sde", "parameterization", "clock"))
    if net is None:
        if isinstance(text["net"], dict) and text["net"].get("args") is None:
            raise CheckpointError(
                f"{folder} holds the weights of {text['net'].get('class')!r}, which is no network "
                "of scoregen: build it yourself and pass it, load(folder, net=...)"
            )
        # no initial weights are drawn, and a card that asks for a huge network costs nothing
        with torch.device("meta"):
            net = rebuild(text["net"], "net")
    tensors = _read(folder / _WEIGHTS, text["weights"])
    _fill(net, tensors, folder)
    return ScoreNetwork(net, sde, meaning, clock).eval().to(device)


def _read(path: Path, expected: dict[str, Any]) -> dict[str, Tensor]:
    if not path.is_file() or path.is_symlink():
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
    wanted = net.state_dict()
    missing, unexpected = sorted(set(wanted) - set(tensors)), sorted(set(tensors) - set(wanted))
    shapes = [k for k, v in wanted.items() if k in tensors and v.shape != tensors[k].shape]
    if missing or unexpected or shapes:
        raise CheckpointError(
            f"the weights of {folder} do not fit {type(net).__name__}: missing {missing}, "
            f"unexpected {unexpected}, of another shape {shapes}"
        )
    net.load_state_dict(tensors, assign=True)


def digits_model() -> ScoreNetwork:
    """The bundled network: v-prediction on `VPSDE`, 8x8 digits, classes 0..9 and 10 for none.

    Trained by `benchmarks/train_digits.py` on the 1,500 training digits; its card says how.

    >>> digits_model().net.config["classes"]
    10
    """
    return load(DIGITS)
