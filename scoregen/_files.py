"""Files that are there whole or not at all, and what is checked of the tensors in them."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["CheckpointError", "probe"]


class CheckpointError(ValueError):
    """A checkpoint cannot be read or written as asked; the message says what to do.

    >>> raise CheckpointError("there is no checkpoint at nowhere")
    Traceback (most recent call last):
        ...
    scoregen._files.CheckpointError: there is no checkpoint at nowhere
    """


def probe(folder: str | Path) -> Path:
    """Make sure that a folder can be written to, before hours are spent; creates it.

    Raises:
        CheckpointError: if it cannot.

    >>> import tempfile
    >>> probe(tempfile.mkdtemp()).is_dir()
    True
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(b"probe")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written to: {error.strerror}") from error
    return folder


def write(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all: temporary name, fsync, rename.

    Raises:
        CheckpointError: if the disk is full or refuses; an earlier file then stays.

    >>> import tempfile
    >>> write(Path(tempfile.mkdtemp()) / "a", b"whole")
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        free = shutil.disk_usage(path.parent).free if path.parent.is_dir() else 0
        raise CheckpointError(
            f"{path} cannot be written: {error.strerror}; {len(content)} bytes are needed and "
            f"{free} are free. An earlier file is untouched"
        ) from error


def digest(named: Iterable[tuple[str, Tensor]], *, head: str = "") -> str:
    """SHA-256 over names, dtypes, shapes and bytes of tensors, in the order of their names.

    >>> digest([("w", torch.zeros(2))])[:8] == digest([("w", torch.zeros(2))])[:8]
    True
    """
    total = hashlib.sha256(head.encode())
    for name, tensor in sorted(named, key=lambda pair: pair[0]):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        total.update(flat.numpy().tobytes())
    return total.hexdigest()


def check_finite(tensors: dict[str, Tensor], where: str) -> None:
    bad = [k for k, v in tensors.items() if v.is_floating_point() and not bool(v.isfinite().all())]
    if bad:
        raise CheckpointError(
            f"{where} holds NaN or infinite weights in {', '.join(bad[:5])}; the training diverged"
        )
