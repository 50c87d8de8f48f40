"""The 8x8 handwritten digits that come with scikit-learn."""

from typing import Literal

import numpy as np
import torch

from .._checks import check_choice
from .dataset import Data
from .levels import from_levels
from .order import stream

_TEST = 297
_SPLIT_SEED = 1797


def digits(split: Literal["train", "test", "all"] = "train") -> Data:
    """The 1,797 real handwritten digits of scikit-learn, on [-1, 1].

        x = level / 8 - 1,    level in 0 .. 16

    The split is fixed: 297 test and 1,500 training digits, every class in proportion
    (largest remainders), drawn class by class from Philox with the key (1797, class).

    Args:
        split: "train", "test" or "all".

    Returns:
        Data with x of shape (N, 1, 8, 8), labels 0 .. 9, range (-1, 1) and 17 bins.

    Raises:
        ImportError: If scikit-learn is missing.
        ValueError: If `split` is none of the three.

    Source:
        Alpaydin & Kaynak (1998), Optical Recognition of Handwritten Digits, UCI
        repository, doi:10.24432/C50P49.

    Example:
        >>> data = digits("test")
        >>> data.x.shape, data.classes
        (torch.Size([297, 1, 8, 8]), 10)
    """
    check_choice("split", split, ("train", "test", "all"))
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the digits come with scikit-learn, which is not installed; "
            "pip install 'scoregen[data]'"
        ) from error
    bunch = load_digits()
    levels = torch.from_numpy(bunch.images.astype(np.int64))[:, None]
    label = torch.from_numpy(bunch.target.astype(np.int64))
    rows = torch.ones(len(label), dtype=torch.bool)
    if split != "all":
        rows = torch.from_numpy(_in_test(bunch.target) == (split == "test"))
    return Data(from_levels(levels[rows], 17), label[rows], (-1.0, 1.0), 17, f"digits/{split}")


def _in_test(target: np.ndarray) -> np.ndarray:
    share = np.bincount(target) * _TEST / len(target)
    quota = np.floor(share).astype(int)
    first = np.argsort(quota - share, kind="stable")[: _TEST - quota.sum()]
    quota[first] += 1
    chosen = np.zeros(len(target), dtype=bool)
    for label, count in enumerate(quota):
        members = np.flatnonzero(target == label)
        chosen[stream(_SPLIT_SEED, label).permutation(members)[:count]] = True
    return chosen
