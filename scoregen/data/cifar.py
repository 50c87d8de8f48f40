"""CIFAR-10 from its own files, which are read and not run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from .._checks import check_choice, check_path
from .dataset import Data
from .pickles import read_pickle

__all__ = ["cifar10"]

_FILES = {"train": tuple(f"data_batch_{k}" for k in range(1, 6)), "test": ("test_batch",)}
_NAMES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
_EVENT = (3, 32, 32)


def cifar10(folder: str | Path, split: Literal["train", "test"] = "train") -> Data:
    """CIFAR-10 from the files of its archive, the Python version or the binary one.

    Nothing is downloaded, and the pickles of the Python version are read without running them:
    unpack `cifar-10-python.tar.gz` (files `data_batch_1` to `data_batch_5` and `test_batch`) or
    `cifar-10-binary.tar.gz` (the same with `.bin`), and give the folder that holds them.

    Args:
        folder: Holds the files of the split.
        split: "train" (50,000 images) or "test" (10,000).

    Returns:
        Data with 8-bit levels of shape (N, 3, 32, 32), range (-1, 1), and labels 0 .. 9 with names.

    Raises:
        FileNotFoundError: If a file of the split is missing.
        ValueError: If one is damaged, of another format, or of images of another size.

    Source:
        Krizhevsky (2009), Learning Multiple Layers of Features from Tiny Images.

    Example:
        >>> cifar10("/nowhere")
        Traceback (most recent call last):
            ...
        FileNotFoundError: /nowhere has neither data_batch_1 nor data_batch_1.bin; unpack ...
    """
    check_choice("split", split, ("train", "test"))
    folder = check_path("folder", folder)
    parts = [_read(folder, name) for name in _FILES[split]]
    x = np.concatenate([x for x, _ in parts]).reshape(-1, *_EVENT)
    label = np.concatenate([label for _, label in parts]).astype(np.int64)
    return Data(
        torch.from_numpy(x),
        torch.from_numpy(label),
        bins=256,
        name=f"cifar10/{split}",
        class_names=_NAMES,
    )


def _read(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (n, 3072), red then green then blue row by row, and labels (n,), both uint8."""
    pickled, binary = folder / name, folder / f"{name}.bin"
    if pickled.is_file():
        pixels, label = _pickled(pickled)
    elif binary.is_file():
        pixels, label = _binary(binary)
    else:
        raise FileNotFoundError(
            f"{folder} has neither {name} nor {name}.bin; unpack the archive of CIFAR-10, its "
            "Python version or its binary version, and give the folder of these files"
        )
    if label.max() > 9:
        raise ValueError(f"{folder / name} must have labels 0 .. 9, got {label.max()}")
    return pixels, label


def _binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """One byte of label and 3072 of pixels for each image."""
    rows = np.fromfile(path, np.uint8)
    if not len(rows) or len(rows) % 3073:
        raise ValueError(f"{path} must hold images of 3073 bytes each, got {len(rows)} bytes")
    rows = rows.reshape(-1, 3073)
    return np.ascontiguousarray(rows[:, 1:]), rows[:, 0]


def _pickled(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A dict with "data", uint8 of shape (n, 3072), and "labels", a list of n numbers."""
    held = read_pickle(path)
    named = {_text(key): value for key, value in held.items()} if isinstance(held, dict) else {}
    pixels, label = named.get("data"), named.get("labels")
    if (
        isinstance(pixels, np.ndarray)
        and isinstance(label, list)
        and label
        and all(isinstance(k, int) and 0 <= k < 256 for k in label)
        and (pixels.dtype, pixels.shape) == (np.uint8, (len(label), 3072))
    ):
        return pixels, np.array(label, np.uint8)
    raise ValueError(
        f"{path} must hold a dict with 'data', uint8 of shape (n, 3072), and 'labels', n whole "
        f"numbers; got {sorted(named) or type(held).__name__}"
    )


def _text(key: Any) -> Any:
    """Keys are strings of Python 2 or 3, or bytes, as the file was written."""
    return key.decode("latin-1") if isinstance(key, bytes) else key
