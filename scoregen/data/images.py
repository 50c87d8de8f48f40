"""A folder of images, and what each is converted to."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["pixels", "read_images"]

_IMAGES = {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
MODES = ("L", "RGB", "RGBA", "I;16")


def read_images(
    folder: Path, mode: str | None = None
) -> tuple[Tensor, Tensor | None, int, tuple[str, ...] | None]:
    """The images of a folder, turned upright, in the order of their names.

    Args:
        folder: Holds images, or one subfolder of images per class.
        mode: "L", "RGB", "RGBA" or "I;16"; None takes images that are all L or all RGB.

    Returns:
        (levels of shape (N, C, H, W), labels or None, number of levels, names of the classes).

    Raises:
        ImportError: If pillow is missing.
        ValueError: If a file is no image, or the images differ in size or colour.

    Example:
        >>> read_images(Path("/nowhere"))
        Traceback (most recent call last):
            ...
        FileNotFoundError: [Errno 2] No such file or directory: '/nowhere'
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "reading images needs pillow, which is not installed; pip install 'scoregen[data]'"
        ) from error
    files, label, names = _list_images(folder)
    images: list[np.ndarray] = []
    damage = (OSError, SyntaxError, ValueError, TypeError, KeyError, MemoryError, OverflowError)
    for file in files:
        if not file.is_file():
            raise ValueError(f"{file} is no file but a pipe, device or socket")
        try:
            with warnings.catch_warnings():
                # pillow warns above 89 million pixels and raises above twice that
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(file) as opened:
                    images.append(pixels(opened, mode, file))
        except _WrongModeError:
            raise
        except (
            *damage,
            Image.DecompressionBombError,
            Image.DecompressionBombWarning,
        ) as error:
            raise ValueError(f"{file} is truncated or not an image: {error}") from error
        if images[-1].shape != images[0].shape:
            raise ValueError(
                f"images must agree in size and colour: {files[0]} has shape "
                f"{images[0].shape}, {file} has {images[-1].shape}"
            )
    values = torch.from_numpy(np.stack(images))
    values = values[:, None] if values.ndim == 3 else values.movedim(3, 1).contiguous()
    return values, label, 65536 if mode == "I;16" else 256, names


class _WrongModeError(ValueError):
    """An image of a kind that nobody said how to convert."""


def pixels(opened: Any, mode: str | None, file: Path | str) -> np.ndarray:
    """The levels of a PIL image, (H, W) or (H, W, C), upright and in the mode.

    Args:
        opened: The image.
        mode: As for `read_images`.
        file: Its name, for messages.

    Raises:
        ValueError: For a kind of image that nobody said how to convert.

    Example:
        >>> from PIL import Image
        >>> pixels(Image.new("L", (3, 2), 7), None, "a grey image").tolist()
        [[7, 7, 7], [7, 7, 7]]
    """
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(opened)
    if image.mode == "1":
        image = image.convert("L")
    if mode is None:
        if image.mode not in ("L", "RGB"):
            raise _WrongModeError(
                f"images must be 8-bit grey or RGB, and {file} is of mode {image.mode}; say what "
                f"to convert it to, by mode= one of {', '.join(MODES)}"
            )
        return np.asarray(image)
    deep = image.mode.startswith("I")
    if mode == "I;16" or deep:
        if mode not in ("I;16", "L") or not (deep or image.mode == "L"):
            raise _WrongModeError(
                f"{file} is of mode {image.mode}, which is not converted to {mode}"
            )
        levels = np.asarray(image).astype(np.int64) * (1 if deep else 257)
        if levels.min() < 0 or levels.max() > 65535:
            raise _WrongModeError(f"{file} has levels beyond 16 bits")
        if mode == "I;16":
            return levels.astype(np.int32)
        return ((levels * 255 + 32767) // 65535).astype(np.uint8)
    if mode in ("L", "RGB") and (
        image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    ):
        above = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", above.size, "white"), above).convert("RGB")
    return np.asarray(image.convert(mode))


def _list_images(folder: Path) -> tuple[list[Path], Tensor | None, tuple[str, ...] | None]:
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
    if not classes:
        return files, None, None
    return files, torch.tensor(labels), tuple(p.name for p in classes)
