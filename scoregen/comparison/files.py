"""The files of a cell: its record as JSON with a checksum, its samples as safetensors."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .._files import write

__all__ = ["read_cell"]

_BLOCKS = 1024  # influences are kept as the means of at most so many blocks of samples


def number(value: float) -> float | str:
    """A number for JSON, which has no NaN and no infinity: those become words."""
    return value if math.isfinite(value) else str(value)


def packed(influence: Tensor) -> str:
    """Influences as the means of at most 1,024 blocks of samples, in float32, base 64."""
    blocks = influence.detach().to("cpu", torch.float64)
    blocks = blocks - blocks.mean()
    if len(blocks) > _BLOCKS:
        blocks = torch.stack([part.mean() for part in blocks.tensor_split(_BLOCKS)])
    return base64.b64encode(blocks.numpy().astype("<f4").tobytes()).decode()


def unpacked(text: str | None) -> np.ndarray | None:
    """What `packed` wrote, in float64."""
    if text is None:
        return None
    return np.frombuffer(base64.b64decode(text), "<f4").astype(np.float64)


def cell_path(folder: Path, cell: str) -> Path:
    return folder / "cells" / f"{cell[:32]}.json"


def write_cell(folder: Path, record: dict[str, Any]) -> None:
    """Write a record, with what another process has added to it meanwhile."""
    before = read_cell(folder, record["cell"])
    if before is not None and before["status"] == record["status"]:
        record["measures"] = {**before["measures"], **record["measures"]}
    body = {key: value for key, value in record.items() if key != "failed"}
    text = json.dumps({"sha256": _checksum(body), "record": body}, indent=1)
    write(cell_path(folder, record["cell"]), text.encode())


def read_cell(folder: Path, cell: str) -> dict[str, Any] | None:
    """The record of a cell; None where there is none, or it is not what was written.

    >>> import tempfile
    >>> read_cell(Path(tempfile.mkdtemp()), "0" * 64) is None
    True
    """
    try:
        content = json.loads(cell_path(folder, cell).read_bytes())
        record: dict[str, Any] = content["record"]
        sound = content["sha256"] == _checksum(record) and record["cell"] == cell
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if sound else None


def read_samples(folder: Path, cell: str) -> Tensor | None:
    """The samples kept of a cell; None where there are none."""
    path = cell_path(folder, cell).with_suffix(".safetensors")
    try:
        return safetensors.torch.load(path.read_bytes())["samples"]
    except (OSError, KeyError, safetensors.SafetensorError):
        return None


def _checksum(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
