"""The order in which samples are served: a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .._checks import check_count, check_kind

__all__ = ["check_seed", "order", "stream"]


def check_seed(seed: object) -> int:
    """A seed of `stream` as an int, which `stream` itself, called in every step, does not check.

    Raises:
        TypeError: If it is no whole number.
        ValueError: If it lies outside of 0 .. 2^64 - 1.

    Example:
        >>> check_seed(np.int64(3))
        3
    """
    number = check_count("seed", seed, 0)
    if number >= 2**64:
        raise ValueError(f"seed must lie in 0 .. 2^64 - 1, got {number}; take its remainder")
    return number


def stream(seed: int, index: int = 0) -> np.random.Generator:
    """A NumPy generator that is a pure function of two integers.

    Args:
        seed: In 0 .. 2^64 - 1.
        index: In 0 .. 2^64 - 1; different indices give independent streams.

    Raises:
        ValueError: If either lies outside.

    Source:
        Philox (Salmon et al., 2011, doi:10.1145/2063384.2063405).

    Example:
        >>> bool(stream(3).random() == stream(3).random()), stream(3, 1).random() < 1
        (True, True)
    """
    if not 0 <= seed < 2**64 or not 0 <= index < 2**64:
        raise ValueError(f"seed and index must lie in 0 .. 2^64 - 1, got {seed} and {index}")
    return np.random.Generator(np.random.Philox(key=np.array([seed, index], dtype=np.uint64)))


def order(
    samples: int, batch: int, seed: int, first_step: int = 0, part: slice = slice(None)
) -> Iterator[np.ndarray]:
    """The rows of each batch, without end; step k depends on (seed, k) alone.

    One random order of all samples follows another, each drawn from (seed, epoch), so every sample
    is seen once per epoch, and an order begun at step k is the one that reached it.

    Args:
        samples: How many there are.
        batch: Samples per step, at most the number there is.
        seed: Of the orders.
        first_step: The step to begin with.
        part: Which rows of each batch are wanted.

    Raises:
        ValueError: If `batch` is not in 1 .. `samples`, or `first_step` or `seed` is negative.

    Example:
        >>> rows = order(5, batch=2, seed=0)
        >>> sorted(int(row) for _ in range(5) for row in next(rows))
        [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    """
    batch, first_step = check_count("batch", batch, 0), check_count("first_step", first_step, 0)
    if not 0 < batch <= samples:
        raise ValueError(f"batch must be in 1 .. {samples}, the number of samples, got {batch}")
    seed = check_seed(seed)
    check_kind("rows", part, slice, "slice(0, 16)")
    return (rows[part] for rows in _orders(samples, batch, seed, first_step))


def _orders(samples: int, batch: int, seed: int, first_step: int) -> Iterator[np.ndarray]:
    epoch, at = divmod(first_step * batch, samples)
    rows = stream(seed, epoch).permutation(samples)
    while True:
        taken = rows[at : at + batch]
        at += batch
        if at >= samples:
            epoch, at = epoch + 1, at - samples
            rows = stream(seed, epoch).permutation(samples)
            taken = np.concatenate((taken, rows[:at]))
        yield taken
