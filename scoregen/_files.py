"""Files that are there whole or not at all, and what is checked of the tensors in them."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import shutil
import socket
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["CheckpointError", "probe", "sweep", "write"]

# What is being written is called .NAME.HOST-PID-COUNT.part until it is whole.
_PART = re.compile(r"^\..+\.(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-\d+\.part$")
_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
_DAY = 86_400.0
_count = itertools.count()


class CheckpointError(ValueError):
    """A checkpoint cannot be read or written; the message says what to do.

    >>> raise CheckpointError("there is no checkpoint at nowhere")
    Traceback (most recent call last):
        ...
    scoregen._files.CheckpointError: there is no checkpoint at nowhere
    """


def probe(folder: str | Path) -> Path:
    """Make sure that a folder can be written to, before hours are spent; creates it.

    What killed processes left half written there is removed.

    Raises:
        CheckpointError: if it cannot.

    >>> import tempfile
    >>> probe(tempfile.mkdtemp()).is_dir()
    True
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = temporary(folder / "probe")
        file.write_bytes(b"probe")
        file.unlink()
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written to: {error.strerror}") from error
    sweep(folder)
    return folder


def temporary(path: Path) -> Path:
    """A name beside `path` that no other process or thread uses, for content not yet whole.

    >>> temporary(Path("a")).name.startswith(".a.")
    True
    """
    return path.with_name(f".{path.name}.{_HOST}-{os.getpid()}-{next(_count)}.part")


def sweep(folder: Path) -> list[Path]:
    """Remove the half-written files and folders of killed processes, and return their names.

    A part goes if it was written on this machine by a process that no longer runs, or, on whatever
    machine, has not changed for a day; parts of running processes stay.

    >>> import tempfile
    >>> sweep(Path(tempfile.mkdtemp()))
    []
    """
    removed = []
    for path in folder.iterdir():
        match = _PART.match(path.name)
        if match is None:
            continue
        if match["host"] == _HOST:
            dead = not _runs(int(match["pid"]))
        else:
            dead = _age(path) > _DAY
        if dead:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            removed.append(path)
    return removed


def _age(path: Path) -> float:
    try:
        return time.time() - path.lstat().st_mtime
    except FileNotFoundError:
        return 0.0


def _runs(pid: int) -> bool:
    if os.name != "posix":  # there, signal 0 would end the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def write(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all: temporary name, fsync, rename.

    Raises:
        CheckpointError: if the disk is full or refuses; an earlier file then stays.

    >>> import tempfile
    >>> write(Path(tempfile.mkdtemp()) / "a", b"whole")
    """
    part = temporary(path)
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        free = shutil.disk_usage(path.parent).free if path.parent.is_dir() else 0
        raise CheckpointError(
            f"{path} cannot be written: {error.strerror}; {len(content)} bytes are needed and "
            f"{free} are free. An earlier file is untouched"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def digest(named: Iterable[tuple[str, Tensor]], *, head: str = "") -> str:
    """SHA-256 over names, dtypes, shapes and bytes of tensors, in the order of their names.

    >>> digest([("w", torch.zeros(2))])[:8] == digest([("w", torch.zeros(2))])[:8]
    True
    """
    total = hashlib.sha256(head.encode())
    for name, tensor in sorted(named, key=lambda pair: pair[0]):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        total.update(flat.numpy().data)
    return total.hexdigest()


def check_finite(tensors: dict[str, Tensor], where: str) -> None:
    bad = [k for k, v in tensors.items() if v.is_floating_point() and not bool(v.isfinite().all())]
    if bad:
        raise CheckpointError(
            f"{where} holds NaN or infinite weights in {', '.join(bad[:5])}; the training diverged"
        )
