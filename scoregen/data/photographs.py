"""Patches of the photographs that scikit-learn and scikit-image bring with them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from .._checks import check_choice
from .dataset import Data

__all__ = ["patches"]


class _Photograph(NamedTuple):
    name: str
    package: str
    file: str


_TRAIN = (
    _Photograph("astronaut", "skimage", "data/astronaut.png"),
    _Photograph("chelsea", "skimage", "data/chelsea.png"),
    _Photograph("china", "sklearn", "datasets/images/china.jpg"),
    _Photograph("flower", "sklearn", "datasets/images/flower.jpg"),
    _Photograph("motorcycle", "skimage", "data/motorcycle_left.png"),
)
_TEST = (
    _Photograph("coffee", "skimage", "data/coffee.png"),
    _Photograph("rocket", "skimage", "data/rocket.jpg"),
)
_SIZE = 32
_STRIDE = 8  # in pixels of the photograph
_REDUCED = (2, 4)


def patches(split: Literal["train", "test"] = "train") -> Data:
    """Natural image patches, 32 x 32 pixels of 8-bit colour, from seven photographs.

    Each photograph is reduced by 2 and by 4 (means of blocks of pixels), and cut at every 8th pixel
    of the original along both axes. Five photographs are for training, two for testing, so no test
    patch overlaps one of training. The label is the photograph.

    Args:
        split: "train" (27,972 patches of astronaut, chelsea, china, flower, motorcycle) or "test"
            (10,852 of coffee, rocket).

    Returns:
        Data with 8-bit levels of shape (N, 3, 32, 32), range (-1, 1), and labels 0 .. 4 (train) or
        5 and 6 (test).

    Raises:
        ImportError: If scikit-image, scikit-learn or pillow is missing.
        ValueError: If `split` is neither.

    Source:
        The photographs come with scikit-image (van der Walt et al. 2014, doi:10.7717/peerj.453)
        and scikit-learn, each under the licence that its package states.

    Example:
        >>> data = patches("test")
        >>> data.event, data.bins, data.class_names[5]
        ((3, 32, 32), 256, 'coffee')
    """
    check_choice("split", split, ("train", "test"))
    every = (*_TRAIN, *_TEST)
    cut = [
        (k, _cut(photo)) for k, photo in enumerate(every) if (photo in _TRAIN) == (split == "train")
    ]
    label = torch.cat([torch.full((len(x),), k) for k, x in cut])
    return Data(
        torch.from_numpy(np.concatenate([x for _, x in cut])),
        label,
        bins=256,
        name=f"patches/{split}",
        class_names=tuple(photo.name for photo in every),
    )


def _cut(photo: _Photograph) -> np.ndarray:
    """All patches of a photograph, uint8 of shape (n, 3, 32, 32)."""
    pixels = _read(photo)
    found = []
    for factor in _REDUCED:
        small = _reduced(pixels, factor)
        windows = np.lib.stride_tricks.sliding_window_view(small, (_SIZE, _SIZE), axis=(0, 1))
        step = _STRIDE // factor
        # (rows, columns, 3, 32, 32)
        found.append(windows[::step, ::step].reshape(-1, 3, _SIZE, _SIZE))
    return np.concatenate(found)


def _reduced(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Means of blocks, rounded to the nearest level; a rest at the right and lower edge is left."""
    height, width = (n // factor for n in pixels.shape[:2])
    blocks = pixels[: height * factor, : width * factor].astype(np.uint32)
    total = blocks.reshape(height, factor, width, factor, 3).sum((1, 3))
    return ((total + factor**2 // 2) // factor**2).astype(np.uint8)


def _read(photo: _Photograph) -> np.ndarray:
    """The photograph as (H, W, 3); its package is found, and not imported."""
    spec = find_spec(photo.package)
    if spec is None or spec.origin is None or find_spec("PIL") is None:
        raise ImportError(
            "the photographs come with scikit-image and scikit-learn, and are read with pillow, "
            "which are not all installed; pip install 'scoregen[data]'"
        )
    from PIL import Image

    with Image.open(Path(spec.origin).parent / photo.file) as opened:
        return np.asarray(opened.convert("RGB"))
