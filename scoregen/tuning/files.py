"""A tuned sampler on disk: one JSON file, the table beside the card of what it belongs to."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from .._checks import check_path, shown
from .._files import CheckpointError, probe, write
from .._version import __version__
from ..guidance import AutoGuidance, ClassifierFree
from ..models import ScoreModel, check_model
from ..sampling import Sampler
from ..training.card import describe, rebuild
from .tuned import Fit, Tuned, identity

__all__ = ["load_sampler", "save_sampler"]

_KIND, _FORMAT = "scoregen tuned sampler", 1
_LARGEST = 1 << 28


def save_sampler(sampler: Sampler, path: str | Path, model: ScoreModel | None = None) -> Path:
    """Write what `tune` returned.

    Args:
        sampler: with a `Tuned` solver.
        path: of the file, such as "five.json"; an older one is replaced.
        model: the model it was fitted to, for a card that names its guidance in words; the
            fingerprint, which includes guidance, is on the card in any case.

    Raises:
        CheckpointError: if the process is no public one, or the file cannot be written.
        ValueError: if `model` is not the one it was fitted to.

    >>> import tempfile, torch
    >>> from scoregen import DDIM, EDMSDE, Gaussian, Karras
    >>> from scoregen.tuning import as_table
    >>> model = Gaussian(EDMSDE(), torch.zeros(2), torch.ones(2))
    >>> sampler = as_table(Sampler(DDIM(), Karras(3)), model, (2,)).sampler()
    >>> path = save_sampler(sampler, Path(tempfile.mkdtemp()) / "three.json")
    >>> load_sampler(path, model) == sampler
    True
    """
    solver = _tuned(sampler)
    guidance: list[str] = []
    path = check_path("path", path)
    if model is not None:
        if identity(check_model(model))[0] != solver.network:
            raise ValueError("model is not the network that this sampler was fitted to")
        guidance = [type(m).__name__ for m in model.modules() if _guides(m)]
    content = {
        "card": {
            "network": solver.network,
            "process": describe(solver.process, "sde"),
            "condition": dict(solver.condition),
            "guidance": guidance,
            "start": solver.start,
            "improved": solver.improved,
            "before": solver.before,
            "training": solver.training,
            "held_out": solver.held_out,
        },
        "table": {
            "basis": solver.basis,
            "event": solver.event,
            "times": solver.times,
            "rows": solver.rows,
            "mean": solver.mean,
        },
    }
    body = json.dumps(content, allow_nan=False)
    head = {"kind": _KIND, "format": _FORMAT, "scoregen": __version__, "sha256": _digest(body)}
    probe(path.parent)
    write(path, json.dumps({**head, **json.loads(body)}, indent=1).encode())
    return path


def load_sampler(path: str | Path, model: ScoreModel) -> Sampler:
    """Read a tuned sampler for the model it was fitted to.

    Args:
        path: what `save_sampler` wrote.
        model: the network, with its guidance; conditions may be bound to it or come later.

    Raises:
        CheckpointError: if the file is missing, foreign, damaged or newer, or belongs to another
            network, process or guidance.

    >>> from scoregen import EDMSDE, Gaussian
    >>> import torch
    >>> load_sampler("nowhere.json", Gaussian(EDMSDE(), torch.zeros(1), 1.0))
    Traceback (most recent call last):
        ...
    scoregen._files.CheckpointError: there is no file nowhere.json
    """
    path = check_path("path", path)
    check_model(model)
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    if path.stat().st_size > _LARGEST:
        raise CheckpointError(f"{path} is larger than any tuned sampler")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged or no JSON: {error}") from error
    if not isinstance(content, dict) or content.get("kind") != _KIND:
        raise CheckpointError(f"{path} is no tuned sampler of scoregen")
    if content.get("format") != _FORMAT:
        raise CheckpointError(
            f"{path} has format {content.get('format')!r} and this scoregen reads {_FORMAT}; it "
            f"was written by scoregen {content.get('scoregen')!r}: install that version or newer"
        )
    body = {key: content.get(key) for key in ("card", "table")}
    if _digest(json.dumps(body)) != content.get("sha256"):
        raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one in it; tune again")
    solver = _solver(body["card"], body["table"], path)
    network, _ = identity(model)
    if model.sde != solver.process:
        raise CheckpointError(
            f"{path} was fitted on {solver.process!r:.200}, and the model is on {model.sde!r:.200}"
        )
    if network != solver.network:
        raise CheckpointError(
            f"{path} belongs to the network {solver.network}, and this one is {network}: other "
            "weights, settings or guidance; tune again"
        )
    return solver.sampler()


def _solver(card: Any, table: Any, path: Path) -> Tuned:
    def fit(values: Any) -> Fit | None:
        return None if values is None else Fit(*values)

    try:
        return Tuned(
            times=tuple(table["times"]),
            rows=tuple(tuple(row) for row in table["rows"]),
            basis=table["basis"],
            event=tuple(table["event"]),
            mean=tuple(table["mean"]),
            process=rebuild(card["process"], "sde"),
            network=card["network"],
            condition=tuple(
                (name, None if values is None else tuple(values))
                for name, values in card["condition"].items()
            ),
            start=card["start"],
            improved=card["improved"],
            before=fit(card["before"]),
            training=fit(card["training"]),
            held_out=fit(card["held_out"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read as a tuned sampler: {error}") from error


def _tuned(sampler: Sampler) -> Tuned:
    if not isinstance(sampler, Sampler) or not isinstance(sampler.solver, Tuned):
        raise TypeError(f"sampler must be what tune returned, got {shown(sampler)}")
    return sampler.solver


def _guides(module: object) -> bool:
    return isinstance(module, ClassifierFree | AutoGuidance)


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()
