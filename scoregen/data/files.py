"""A user's own data: arrays, tensors, image folders and MNIST-style files."""

import gzip
import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint

from .dataset import Data, from_levels

_KEYS = (("x", "y"), ("images", "labels"))
_IMAGES = {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def load(
    path: str | Path,
    *,
    range: tuple[float, float] | None = None,
    bins: int | None = None,
    labels: str | Path | Tensor | None = None,
) -> Data:
    """Reads a user's data, whatever the file; nothing in it is executed.

    Whole numbers are levels, and floats are values:

        uint8 -> 2 v / 255 - 1;   integers with `bins` -> 2 v / (bins - 1) - 1;   floats -> v

    Understood are .npy and .npz, .pt and .pth (a tensor or a dict of tensors), .safetensors,
    MNIST-style idx files (plain or .gz), and a folder of images, whose subfolders, in the
    order of their names, are the classes. Files of several arrays name them x and y, or
    images and labels. 8-bit arrays of shape (N, H, W) and (N, H, W, C), where C is 1, 3 or 4
    and the second axis is none of these, become (N, C, H, W).

    Args:
        path: File or folder.
        range: The interval that floats cannot leave; levels always come out on (-1, 1).
        bins: Number of levels; 256 for 8-bit data if not said.
        labels: Classes as an integer tensor, or a file that holds them.

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
    path = Path(path)
    values, found = _read(path)
    if found is not None and labels is not None:
        raise ValueError(f"{path} has labels of its own; leave `labels` out")
    if isinstance(labels, (str, Path)):
        found, nested = _read(Path(labels))
        if nested is not None:
            raise ValueError(f"{labels} should hold labels alone, but holds labels and data")
    elif labels is not None:
        found = labels
    label = None if found is None else _as_label(found)
    x, range, bins = _scale(values, range, bins, path)
    return Data(x, label, range, bins, path.name)


def _read(path: Path) -> tuple[Tensor, Tensor | None]:
    """The raw values and labels of a file, in the types it holds."""
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}")
    if path.is_dir():
        return _read_folder(path)
    suffix = path.suffix.lower()
    try:
        if suffix == ".npy":
            return _tensor(np.load(path, allow_pickle=False), path), None
        if suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return _named({k: _tensor(arrays[k], path) for k in arrays.files}, path)
        if suffix in (".pt", ".pth"):
            return _named(_read_torch(path), path)
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
        zlib.error,
        SafetensorError,
    ) as error:
        raise ValueError(
            f"{path} is not a readable {suffix} file of plain numbers: it is truncated, of "
            f"another format, or holds Python objects, which are never loaded"
        ) from error
    return _read_idx(path), None


class _Foreign(ValueError):
    """A file that was read, and holds something else than expected."""


def _tensor(array: np.ndarray, path: Path) -> Tensor:
    if array.dtype.kind not in "biuf":
        raise _Foreign(f"{path} must hold numbers, got an array of type {array.dtype}")
    # Torch knows little of 16 to 64 unsigned bits, and nothing of a foreign byte order.
    wide = array.dtype.kind == "u" and array.dtype.itemsize > 1
    native = array.astype(np.int64 if wide else array.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(np.ascontiguousarray(native).reshape(array.shape))


def _named(content: object, path: Path) -> tuple[Tensor, Tensor | None]:
    if isinstance(content, Tensor):
        return content, None
    if not isinstance(content, Mapping):
        raise _Foreign(f"{path} must hold a tensor or a dict of them, got {type(content).__name__}")
    for x, y in _KEYS:
        if x in content:
            values, label = content[x], content.get(y)
            if not isinstance(values, Tensor) or not isinstance(label, Tensor | None):
                raise _Foreign(f"{path}: {x!r} and {y!r} must be tensors")
            return values, label
    raise _Foreign(
        f"{path} must name its arrays x (and y), or images (and labels); "
        f"found: {', '.join(map(str, content)) or 'nothing'}"
    )


def _read_torch(path: Path) -> object:
    # Asked beforehand, because torch's own refusal advises to load such a file unsafely.
    foreign = (
        get_unsafe_globals_in_checkpoint(path) if zipfile.is_zipfile(path) else ["another format"]
    )
    if foreign:
        raise _Foreign(
            f"{path} is truncated, of another format than torch's since 1.6, or holds Python "
            f"objects, which are never loaded: {', '.join(foreign)}"
        )
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_idx(path: Path) -> Tensor:
    """The format of MNIST: two zero bytes, type, axes, sizes in big-endian, then the values."""
    try:
        opener = gzip.open if path.suffix.lower() == ".gz" else open
        with opener(path, "rb") as file:
            content: bytes = file.read()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is truncated or not a gzip file: {error}") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _IDX_TYPES:
        raise ValueError(
            f"{path} is of no known format; known are .npy, .npz, .pt, .pth, .safetensors, "
            "MNIST-style idx files (plain or .gz) and folders of images"
        )
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise ValueError(f"{path} is truncated: it ends within its header of {start} bytes")
    shape = tuple(int(n) for n in np.frombuffer(content[4:start], ">u4"))
    dtype = np.dtype(_IDX_TYPES[content[2]])
    expected = start + math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise ValueError(
            f"{path} is truncated or damaged: its header announces shape {shape}, "
            f"{expected} bytes in all, and it has {len(content)}"
        )
    return _tensor(np.frombuffer(content, dtype, offset=start).reshape(shape).copy(), path)


def _read_folder(folder: Path) -> tuple[Tensor, Tensor | None]:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "reading images needs pillow, which is not installed; pip install 'scoregen[data]'"
        ) from error
    files, label = _list_images(folder)
    images: list[np.ndarray] = []
    for file in files:
        try:
            with Image.open(file) as opened:
                image = opened.convert("L") if opened.mode == "1" else opened
                if image.mode not in ("L", "RGB"):
                    raise ValueError(
                        f"images must be 8-bit grey or RGB, and {file} is of mode {image.mode}; "
                        "convert it first"
                    )
                images.append(np.asarray(image))
        except OSError as error:
            raise ValueError(f"{file} is truncated or not an image: {error}") from error
        if images[-1].shape != images[0].shape:
            raise ValueError(
                f"images must agree in size and colour: {files[0]} has shape "
                f"{images[0].shape}, {file} has {images[-1].shape}"
            )
    values = torch.from_numpy(np.stack(images))
    return (values[:, None] if values.ndim == 3 else values.movedim(3, 1).contiguous()), label


def _list_images(folder: Path) -> tuple[list[Path], Tensor | None]:
    """The images of a folder in the order of their names, with the subfolder as the label."""
    entries = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    classes = [p for p in entries if p.is_dir()]
    loose = [p for p in entries if not p.is_dir()]
    if classes and loose:
        raise ValueError(
            f"{folder} holds both subfolders and files ({classes[0].name}, {loose[0].name}): put "
            "every image into the subfolder of its class, or all into one folder"
        )
    files, labels = loose, []
    for index, subfolder in enumerate(classes):
        members = sorted(p for p in subfolder.iterdir() if not p.name.startswith("."))
        if not members:
            raise ValueError(f"{subfolder} is empty; every subfolder is a class and needs images")
        files += members
        labels += [index] * len(members)
    foreign = next((p for p in files if p.is_dir() or p.suffix.lower() not in _IMAGES), None)
    if foreign is not None:
        raise ValueError(f"{foreign} is not an image; known are {', '.join(sorted(_IMAGES))}")
    if not files:
        raise ValueError(f"{folder} holds no images; known are {', '.join(sorted(_IMAGES))}")
    return files, torch.tensor(labels) if classes else None


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
        return values.to(torch.float32), range, bins
    if values.dtype == torch.uint8:
        bins = 256 if bins is None else bins
        values = _channels_first(values)
    elif bins is None or values.dtype == torch.bool:
        raise TypeError(
            f"{path} holds {values.dtype}, which says nothing of the scale: pass bins=K if they "
            "are levels 0 .. K - 1, or store floats"
        )
    if range not in (None, (-1, 1)):
        raise ValueError(f"levels are put on [-1, 1]; leave range={range} out, or store floats")
    return from_levels(values, bins), (-1.0, 1.0), bins


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
