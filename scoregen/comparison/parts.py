"""A large cell in ranges of sample indices, which workers make side by side."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .._files import write
from .plan import Cost

__all__ = ["Part", "ranges", "together"]


@dataclass(frozen=True)
class Part:
    """The samples `start` to `stop` of a cell and what they cost.

    Args:
        start, stop: indices of the samples.
        seconds: that sampling took.
        nfe, depth: as in `Cost`.
        message: why it diverged; empty where it did not.
        samples: the states; None where a folder holds them.

    >>> Part(0, 4, 0.5, 10.0, 5).stop
    4
    """

    start: int
    stop: int
    seconds: float
    nfe: float
    depth: int
    message: str = ""
    samples: Tensor | None = None

    def save(self, folder: Path, cell: str) -> None:
        """Write it beside the cells, whole or not at all."""
        held = {} if self.samples is None else {"samples": self.samples.contiguous().cpu()}
        about = {
            "seconds": self.seconds,
            "nfe": self.nfe,
            "depth": self.depth,
            "message": self.message,
        }
        content = safetensors.torch.save(held, {"part": json.dumps(about)})
        write(path_of(folder, cell, self.start, self.stop), content)


def path_of(folder: Path, cell: str, start: int, stop: int) -> Path:
    return folder / "cells" / f"{cell[:32]}.{start}-{stop}.safetensors"


def read(folder: Path, cell: str, start: int, stop: int) -> Part | None:
    """The part that `Part.save` wrote; None where there is none, or it is damaged.

    >>> import tempfile
    >>> read(Path(tempfile.mkdtemp()), "0" * 64, 0, 4) is None
    True
    """
    try:
        with safetensors.safe_open(path_of(folder, cell, start, stop), framework="pt") as file:
            about = json.loads((file.metadata() or {})["part"])
            samples = None if about["message"] else file.get_tensor("samples")
    except (OSError, KeyError, ValueError, safetensors.SafetensorError):
        return None
    return Part(start, stop, **about, samples=samples)


def ranges(count: int, most: int) -> list[tuple[int, int]]:
    """Consecutive ranges of at most so many.

    >>> ranges(5, 2)
    [(0, 2), (2, 4), (4, 5)]
    """
    return [(start, min(start + most, count)) for start in range(0, count, most)]


def together(parts: Sequence[Part]) -> tuple[Tensor, float, Cost]:
    """Samples, seconds and cost of a whole cell; the seconds are those of one part after another.

    >>> x = torch.zeros(2, 1)
    >>> together([Part(0, 2, 0.5, 10.0, 5, "", x), Part(2, 4, 0.5, 20.0, 6, "", x)])[1:]
    (1.0, Cost(nfe=15.0, depth=6))
    """
    held = [part.samples for part in parts if part.samples is not None]
    weights = [part.stop - part.start for part in parts]
    nfe = statistics.fmean([part.nfe for part in parts], weights)
    seconds = math.fsum(part.seconds for part in parts)
    return torch.cat(held), seconds, Cost(nfe, max(part.depth for part in parts))
