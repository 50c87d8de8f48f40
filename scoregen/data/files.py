"""A user's own data: arrays, tensors, image folders and MNIST-style files."""

from __future__ import annotations

import gzip
import math
import os
import struct
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint

from .._checks import check_choice, check_count, check_path, check_range
from .arrays import tensor_of
from .dataset import Data
from .images import MODES, read_images
from .levels import check_bins

_KEYS = (("x", "y"), ("images", "labels"))
_LARGEST = 1 << 35
_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def load(
    path: str | os.PathLike[str],
    *,
    range: tuple[float, float] | None = None,
    bins: int | None = None,
    labels: str | os.PathLike[str] | Tensor | None = None,
    mode: str | None = None,
    largest: int = _LARGEST,
) -> Data:
    """Reads a user's data, whatever the file; nothing in it is executed.

    Whole numbers are levels, and floats are values:

        uint8 -> 2 v / 255 - 1;   integers with `bins` -> 2 v / (bins - 1) - 1;   floats -> v

    Levels are kept as they are stored and put on [-1, 1] batch by batch, see `Data`.

    Understood are .npy and .npz, .pt and .pth (a tensor or a dict of tensors), .safetensors,
    MNIST-style idx files (plain or .gz), and a folder of images, whose subfolders, in the
    order of their names, are the classes. Images are turned as their EXIF orientation says.
    Files of several arrays name them x and y, or images and labels. 8-bit arrays of shape
    (N, H, W) and (N, H, W, C), where C is 1, 3 or 4 and the second axis is none of these,
    become (N, C, H, W).

    Args:
        path: File or folder.
        range: The interval that floats cannot leave; levels always come out on (-1, 1).
        bins: Number of levels; 256 for 8-bit data if not said.
        labels: Classes as an integer tensor, or a file that holds them.
        mode: What images are converted to: "L" (8-bit grey), "RGB", "RGBA" or "I;16" (16-bit
            grey). Without it, all must be L or all RGB. Transparent pixels are laid over white
            for L and RGB; 16-bit grey is rounded to 8 bits for L, level to nearest level.
        largest: Bytes that a compressed file may unpack to.

    Returns:
        Data with x in float32 and labels, if any, in int64.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If a folder of images is read without pillow.
        TypeError: If the numbers are of a type that says nothing of their scale.
        ValueError: If the file is truncated, foreign or pickled, if its arrays are not named
            as above, if images differ in size or colour, or `Data` refuses the values.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/points.npy", np.zeros((4, 2)))
        ...     load(f"{folder}/points.npy").x.shape
        torch.Size([4, 2])
    """
    path, largest = check_path("path", path), check_count("largest", largest)
    range = None if range is None else check_range("range", range)
    bins = None if bins is None else check_bins(bins)
    if mode is not None:
        check_choice("mode", mode, MODES)
    content = _read(path, mode, largest)
    found = content.label
    if found is not None and labels is not None:
        raise ValueError(f"{path} has labels of its own; leave `labels` out")
    if isinstance(labels, str | os.PathLike):
        other = _read(check_path("labels", labels), None, largest)
        if other.label is not None:
            raise ValueError(f"{labels} should hold labels alone, but holds labels and data")
        found = other.values
    elif labels is not None:
        found = labels
    label = None if found is None else _as_label(found)
    bins = content.bins if bins is None else bins
    x, range, bins = _scale(content.values, range, bins, path)
    return Data(x, label, range, bins, path.name, content.class_names)


class _Content(NamedTuple):
    """What a file holds, in the types it holds it in."""

    values: Tensor
    label: Tensor | None = None
    bins: int | None = None
    class_names: tuple[str, ...] | None = None


def _read(path: Path, mode: str | None, largest: int) -> _Content:
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}")
    if path.is_dir():
        return _Content(*read_images(path, mode))
    if mode is not None:
        raise ValueError(f"mode={mode!r} is for folders of images, and {path} is a file")
    if not path.is_file():
        raise ValueError(f"{path} is neither a file nor a folder but a pipe, device or socket")
    suffix = path.suffix.lower()
    try:
        if suffix == ".npy":
            np.load(path, mmap_mode="r", allow_pickle=False)  # refuses a size the file has not
            return _Content(_tensor(np.load(path, allow_pickle=False), path))
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                size = sum(member.file_size for member in archive.infolist())
            _check_unpacked(path, size, largest)
        if suffix == ".npz":
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                wanted = [k for k in arrays.files if any(k in pair for pair in _KEYS)]
                found = {k: _tensor(arrays[k], path) for k in wanted}
                return _named(found | dict.fromkeys(set(arrays.files) - set(wanted)), path)
        if suffix in (".pt", ".pth"):
            content = _named(_read_torch(path), path)
            size = content.values.numel() * content.values.element_size()
            _check_unpacked(path, size, largest)
            return content
        if suffix == ".safetensors":
            return _named(load_file(path), path)
    except (_Foreign, PermissionError):
        raise
    except (
        ValueError,
        TypeError,
        KeyError,
        OSError,
        EOFError,
        RuntimeError,
        zipfile.BadZipFile,
        MemoryError,
        NotImplementedError,
        struct.error,
        zlib.error,
        SafetensorError,
    ) as error:
        raise ValueError(
            f"{path} is not a readable {suffix} file of plain numbers: it is truncated, of "
            f"another format, or holds Python objects, which are never loaded"
        ) from error
    return _Content(_read_idx(path, largest))


def _check_unpacked(path: Path, size: int, largest: int) -> None:
    """A file of some kilobytes may unpack to more than any memory."""
    if size > largest:
        raise _Foreign(
            f"{path} unpacks to {size:,} bytes, and largest={largest:,} are allowed; pass a "
            "greater `largest` if it is meant to"
        )


class _Foreign(ValueError):
    """A file that was read, and holds something else than expected."""


def _tensor(array: np.ndarray, path: Path) -> Tensor:
    if array.dtype.kind not in "biuf":
        raise _Foreign(f"{path} must hold numbers, got an array of type {array.dtype}")
    return tensor_of(array, str(path))


def _named(content: object, path: Path) -> _Content:
    if isinstance(content, Tensor):
        return _Content(content)
    if not isinstance(content, Mapping):
        raise _Foreign(f"{path} must hold a tensor or a dict of them, got {type(content).__name__}")
    for x, y in _KEYS:
        if x in content:
            values, label = content[x], content.get(y)
            if not isinstance(values, Tensor) or not isinstance(label, Tensor | None):
                raise _Foreign(f"{path}: {x!r} and {y!r} must be tensors")
            return _Content(values, label)
    raise _Foreign(
        f"{path} must name its arrays x (and y), or images (and labels); "
        f"found: {', '.join(sorted(map(str, content))) or 'nothing'}"
    )


def _read_torch(path: Path) -> object:
    # Checked beforehand, because torch's own refusal advises to load such a file unsafely.
    foreign = (
        get_unsafe_globals_in_checkpoint(path) if zipfile.is_zipfile(path) else ["another format"]
    )
    if foreign:
        raise _Foreign(
            f"{path} is truncated, of another format than torch's since 1.6, or holds Python "
            f"objects, which are never loaded: {', '.join(foreign)}"
        )
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_idx(path: Path, largest: int) -> Tensor:
    """The format of MNIST: two zero bytes, type, axes, sizes in big-endian, then the values."""
    try:
        opener = gzip.open if path.suffix.lower() == ".gz" else open
        with opener(path, "rb") as file:
            start: bytes = file.read(4)
            if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in _IDX_TYPES:
                raise ValueError(
                    f"{path} is of no known format; known are .npy, .npz, .pt, .pth, "
                    ".safetensors, MNIST-style idx files (plain or .gz) and folders of images"
                )
            sizes: bytes = file.read(4 * start[3])
            if len(sizes) < 4 * start[3]:
                raise ValueError(
                    f"{path} is truncated: it ends within its header of {4 + 4 * start[3]} bytes"
                )
            shape = tuple(int(n) for n in np.frombuffer(sizes, ">u4"))
            dtype = np.dtype(_IDX_TYPES[start[2]])
            size = math.prod(shape) * dtype.itemsize
            _check_unpacked(path, size, largest)
            content: bytes = file.read(size + 1)  # one more, to see that nothing follows
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is truncated or not a gzip file: {error}") from error
    except MemoryError as error:
        raise ValueError(f"{path} needs more memory than there is: {size:,} bytes") from error
    if len(content) != size:
        raise ValueError(
            f"{path} is truncated or damaged: its header announces shape {shape}, {size} bytes "
            f"of values, and it has {len(content) if len(content) < size else 'more'}"
        )
    return _tensor(np.frombuffer(content, dtype).reshape(shape).copy(), path)


def _as_label(label: Tensor) -> Tensor:
    kind = label.dtype if isinstance(label, Tensor) else type(label).__name__
    if not isinstance(label, Tensor) or label.dtype.is_floating_point or label.dtype == torch.bool:
        raise TypeError(f"labels must be a file or a tensor of whole numbers, got {kind}")
    return label.to(torch.int64)


def _scale(
    values: Tensor, range: tuple[float, float] | None, bins: int | None, path: Path
) -> tuple[Tensor, tuple[float, float] | None, int | None]:
    values = values.detach()
    if values.dtype.is_floating_point:
        if values.ndim == 4 and values.shape[3] in (1, 3, 4) and values.shape[1] not in (1, 3, 4):
            warnings.warn(
                f"{path} holds floats of shape {tuple(values.shape)}, which are kept as they are; "
                "if these are images with their channels last, store them as (N, C, H, W)",
                UserWarning,
                stacklevel=3,
            )
        return values.to(torch.float32), range, bins
    if values.dtype == torch.uint8:
        bins = 256 if bins is None else bins
        values = _channels_first(values)
    elif bins is None or values.dtype == torch.bool:
        raise TypeError(
            f"{path} holds {values.dtype}, which says nothing of the scale: pass bins=K if they "
            "are levels 0 .. K - 1, or store floats"
        )
    if range is not None and range != (-1, 1):
        raise ValueError(
            f"levels are put on [-1, 1]; leave range=({range[0]:g}, {range[1]:g}) out, or store "
            "floats"
        )
    return _narrowest(values, bins), None, bins


def _narrowest(levels: Tensor, bins: int) -> Tensor:
    """Levels in one byte where they fit, once they are known to."""
    if levels.dtype != torch.uint8 and levels.numel() and bins <= 256:
        low, high = int(levels.min()), int(levels.max())
        return levels.to(torch.uint8) if low >= 0 and high < 256 else levels
    return levels


def _channels_first(values: Tensor) -> Tensor:
    if values.ndim == 3:
        return values[:, None]
    if values.ndim == 4 and values.shape[1] not in (1, 3, 4):
        if values.shape[3] not in (1, 3, 4):
            raise ValueError(
                "8-bit images must be (N, C, H, W) or (N, H, W, C) with C = 1, 3 or 4, "
                f"got {tuple(values.shape)}"
            )
        return values.movedim(3, 1).contiguous()
    return values
