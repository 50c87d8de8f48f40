"""Where the noise z comes from: `noise(like, t, s)` is a fresh N(0, I) draw shaped like `like`.

Each call is the next draw. One source serves one run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from .._checks import check_count
from ..processes import Level

__all__ = ["Noise", "ReplayNoise", "SampleNoise", "TorchNoise"]

Noise = Callable[[Tensor, Level, Level], Tensor]

_BLOCK = 1024  # values drawn at once; events smaller than this share a block


class SampleNoise:
    """Noise in which sample i depends only on (seed, i, draw): not on batch, chunk or device.

    Drawn in float32 from NumPy's counter-based Philox (Salmon et al. 2011), keyed by the seed and
    by a block of sample indices, then cast to the dtype of the state.

    Args:
        seed: an integer in [0, 2**88).
        first: index of the first sample of this batch, for chunks and ranks.
        draw: number of the first draw.

    >>> level = Level(1.0, 0.0, 1.0, 0.0)
    >>> whole = SampleNoise(0)(torch.zeros(5, 2), level, level)
    >>> tail = SampleNoise(0, first=3)(torch.zeros(2, 2), level, level)
    >>> torch.equal(whole[3:], tail)
    True
    """

    def __init__(self, seed: int, first: int = 0, draw: int = 0):
        self.seed = check_count("seed", seed, 0)
        if self.seed >= 2**88:
            raise ValueError(f"seed must be less than 2**88, got {seed}; take its remainder")
        self.first = check_count("first", first, 0)
        self._start = self.draw = check_count("draw", draw, 0)

    def rewind(self) -> None:
        """Start again from the first draw."""
        self.draw = self._start

    def __call__(self, like: Tensor, t: Level, s: Level) -> Tensor:
        z = self.rows(len(like), tuple(like.shape[1:]), self.draw)
        self.draw += 1
        return z.to(like.device, like.dtype)

    def rows(self, count: int, event: tuple[int, ...], draw: int) -> Tensor:
        """Draw number `draw` for the samples first .. first + count - 1, float32 on the CPU."""
        size = int(np.prod(event, dtype=np.int64))
        if count == 0 or size == 0:
            return torch.zeros((count, *event))
        share = max(1, _BLOCK // size)
        start, stop = self.first // share, (self.first + count - 1) // share + 1
        blocks = [self._block(b, share * size, size, draw) for b in range(start, stop)]
        flat = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        offset = (self.first - start * share) * size
        return torch.from_numpy(flat[offset : offset + count * size]).view(count, *event)

    def _block(self, block: int, length: int, size: int, draw: int) -> np.ndarray:
        # the key holds (seed, event size), the counter (free, draw, block): streams never overlap
        low = self.seed & (2**64 - 1)
        key = low | ((size + ((self.seed >> 64) << 40)) << 64)
        bits = np.random.Philox(key=key & (2**128 - 1), counter=(draw << 64) | (block << 128))
        return np.random.Generator(bits).standard_normal(length, dtype=np.float32)


class TorchNoise:
    """Noise from a torch.Generator, drawn on its device in the dtype of the state: fast.

    >>> level = Level(1.0, 0.0, 1.0, 0.0)
    >>> TorchNoise(torch.Generator().manual_seed(0))(torch.zeros(3, 2), level, level).shape
    torch.Size([3, 2])
    """

    def __init__(self, generator: torch.Generator):
        if not isinstance(generator, torch.Generator):
            raise TypeError(f"need a torch.Generator, got {generator!r}")
        self.generator = generator
        self._start = generator.get_state()

    def rewind(self) -> None:
        """Start again from the state the generator had when this source was made."""
        self.generator.set_state(self._start)

    def __call__(self, like: Tensor, t: Level, s: Level) -> Tensor:
        return torch.randn(
            like.shape, generator=self.generator, dtype=like.dtype, device=like.device
        )


class ReplayNoise:
    """Given draws, one after the other: for tests, and for the exact law of a sampler.

    Args:
        draws: tensors of the shapes that the sampler asks for, in order.

    >>> level = Level(1.0, 0.0, 1.0, 0.0)
    >>> ReplayNoise([torch.ones(1, 2)])(torch.zeros(1, 2), level, level)
    tensor([[1., 1.]])
    """

    def __init__(self, draws: Sequence[Tensor]):
        self.draws = draws
        self.draw = 0

    def rewind(self) -> None:
        """Start again from the first draw."""
        self.draw = 0

    def __call__(self, like: Tensor, t: Level, s: Level) -> Tensor:
        if self.draw >= len(self.draws):
            raise ValueError(f"only {len(self.draws)} draws were given, and one more is asked for")
        z = self.draws[self.draw]
        self.draw += 1
        if z.shape != like.shape:
            raise ValueError(
                f"draw {self.draw} must have shape {tuple(like.shape)}, got {tuple(z.shape)}"
            )
        return z.to(like.device, like.dtype)
