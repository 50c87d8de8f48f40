"""Where the noise z comes from: `noise(like, t, s)` is a fresh N(0, I) draw shaped like `like`.

Each call is the next draw. One source serves one run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from .._checks import (
    check_count,
    check_counts,
    check_kind,
    check_tensor,
    shown,
)
from ..processes import Level

__all__ = ["Noise", "ReplayNoise", "Rewindable", "SampleNoise", "TorchNoise"]

Noise = Callable[[Tensor, Level, Level], Tensor]


@runtime_checkable
class Rewindable(Protocol):
    """A source that can start again, so that a failed run can be repeated draw by draw.

    >>> isinstance(SampleNoise(0), Rewindable), isinstance(lambda like, t, s: like, Rewindable)
    (True, False)
    """

    def rewind(self) -> None:
        """Start again from the first draw."""


_ALIGN = 64  # words: every word keeps its place in the vector registers, whatever the batch
_BLOCK = 32768  # words whose intermediate results fit into the cache


class SampleNoise:
    """Noise in which sample i depends only on (seed, i, draw): not on batch, chunk or device.

    Drawn in float32 from the counter-based Philox 4x64-10 (Salmon et al. 2011), keyed by the seed
    and the size of an event, and cast to the dtype of the state. Sample i has its own stretch of
    the stream of its draw; two 32-bit numbers a and b of it give two normals by the transform of
    Box and Muller (1958):

    z = sqrt(-2 log u) (cos phi, sin phi),   u = (a + 1/2) / 2^32,   phi = pi b / 2^31,  b signed.

    So abs(z) is at most sqrt(66 log 2) = 6.76, which a normal exceeds once in 7e10 draws.

    Args:
        seed: an integer in [0, 2**88).
        first: index of the first sample of this batch, for chunks and ranks.
        draw: number of the first draw.
        indices: the indices of the samples themselves, where they are not consecutive; then `first`
            is added to each, and batches have as many rows.

    >>> level = Level(1.0, 0.0, 1.0, 0.0)
    >>> whole = SampleNoise(0)(torch.zeros(5, 2), level, level)
    >>> tail = SampleNoise(0, first=3)(torch.zeros(2, 2), level, level)
    >>> torch.equal(whole[3:], tail)
    True
    >>> some = SampleNoise(0, indices=[4, 1])(torch.zeros(2, 2), level, level)
    >>> torch.equal(whole[[4, 1]], some)
    True
    """

    def __init__(
        self, seed: int, first: int = 0, draw: int = 0, *, indices: Sequence[int] | None = None
    ):
        self.seed = check_count("seed", seed, 0)
        if self.seed >= 2**88:
            raise ValueError(f"seed must be less than 2**88, got {seed}; take its remainder")
        self.first = check_count("first", first, 0)
        self.indices = None if indices is None else check_counts("indices", indices, 0)
        self._runs = None if self.indices is None else _runs(self.indices)
        self._start = self.draw = check_count("draw", draw, 0)
        self._bits: tuple[int, np.random.Philox, Any] | None = None

    def rewind(self) -> None:
        """Start again from the first draw."""
        self.draw = self._start

    def __call__(self, like: Tensor, t: Level, s: Level) -> Tensor:
        z = self.rows(len(like), tuple(like.shape[1:]), self.draw)
        self.draw += 1
        return moved(z, like)

    def rows(self, count: int, event: tuple[int, ...], draw: int) -> Tensor:
        """Draw number `draw` for the samples of this batch, float32 on the CPU.

        Args:
            count: rows of the batch; with `indices`, as many as there are.
            event: shape of a sample.
            draw: number of the draw, in [0, 2**64).
        """
        if self.indices is not None and count != len(self.indices):
            raise ValueError(
                f"this source has the indices of {len(self.indices)} samples, and the batch has "
                f"{count} rows; give one index for each row"
            )
        size = math.prod(event)
        if count == 0 or size == 0:
            return torch.zeros((count, *event))
        runs = [(0, count)] if self._runs is None else self._runs
        parts = [self._consecutive(self.first + i, n, size, draw) for i, n in runs]
        flat = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return torch.from_numpy(flat).view(count, *event)

    def _consecutive(self, first: int, count: int, size: int, draw: int) -> np.ndarray:
        """Normals of the samples first .. first + count - 1, shape (count, size), contiguous."""
        words = (size + 1) // 2  # sample i owns the words i * words .. (i + 1) * words - 1
        if words > _ALIGN:
            words = -(-words // _ALIGN) * _ALIGN
        group = _ALIGN // math.gcd(_ALIGN, words)  # samples that fill whole registers
        below, above = first // group * group, -(-(first + count) // group) * group
        normals = np.empty((above - below, 2, words), np.float32)
        bits = self._stream(below * words, size, draw)
        stride = max(group, _BLOCK // words // group * group)
        for block in range(0, len(normals), stride):
            _box_muller(bits, normals[block : block + stride])
        own = normals[first - below : first - below + count].reshape(count, 2 * words)
        return own if size == 2 * words else np.ascontiguousarray(own[:, :size])

    def _stream(self, start: int, size: int, draw: int) -> np.random.Philox:
        """The stream of one draw for events of one size, from its word number `start` = 4 n on."""
        if self._bits is None or self._bits[0] != size:
            # the key holds (seed, event size), the counter (position, draw): no streams overlap
            low, high = self.seed & (2**64 - 1), self.seed >> 64
            bits = np.random.Philox(key=low | ((size + (high << 40)) << 64))
            self._bits = size, bits, bits.state
        else:
            bits = self._bits[1]
        state = self._bits[2]
        position = start // 4
        state["state"]["counter"][:] = (position & (2**64 - 1), position >> 64, draw, 0)
        bits.state = state
        return bits


def moved(z: Tensor, like: Tensor) -> Tensor:
    """A draw of the host on the device and in the dtype of a tensor.

    A CUDA device fetches it from pinned memory while the host goes on: the draw itself was made
    while the device was still evaluating the network.
    """
    if like.is_cuda:
        return z.pin_memory().to(like.device, non_blocking=True).to(like.dtype)
    return z.to(like.device, like.dtype)


def _box_muller(bits: np.random.Philox, out: np.ndarray) -> None:
    """Fill `out`, shape (samples, 2, words), with the normals of the next words of a stream."""
    raw = bits.random_raw(out.size // 2).astype("<u8", copy=False)
    halves = raw.view("<u4").reshape(out.shape)
    radius = halves[:, 0].astype(np.float32)
    radius += 0.5
    radius *= 2.0**-32
    np.log(radius, out=radius)
    radius *= -2.0
    np.sqrt(radius, out=radius)
    angle = halves[:, 1].view("<i4").astype(np.float32)
    angle *= math.pi * 2.0**-31
    np.multiply(radius, np.cos(angle), out=out[:, 0])
    np.multiply(radius, np.sin(angle, out=angle), out=out[:, 1])


def _runs(indices: Sequence[int]) -> list[tuple[int, int]]:
    """(first, count) of each stretch of consecutive indices, in order."""
    found: list[tuple[int, int]] = []
    for i in indices:
        if found and i == sum(found[-1]):
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((i, 1))
    return found


class TorchNoise:
    """Noise from a torch.Generator, drawn on its device in the dtype of the state: fast.

    >>> level = Level(1.0, 0.0, 1.0, 0.0)
    >>> TorchNoise(torch.Generator().manual_seed(0))(torch.zeros(3, 2), level, level).shape
    torch.Size([3, 2])
    """

    def __init__(self, generator: torch.Generator):
        check_kind("generator", generator, torch.Generator, "torch.Generator().manual_seed(0)")
        self.generator = generator
        self._start = generator.get_state()

    def rewind(self) -> None:
        """Start again from the state the generator had when this source was made."""
        self.generator.set_state(self._start)

    def __call__(self, like: Tensor, t: Level, s: Level) -> Tensor:
        return torch.randn(
            like.shape, generator=self.generator, dtype=like.dtype, device=like.device
        )


def normal_like(like: Tensor, generator: torch.Generator) -> Tensor:
    """N(0, 1) shaped like a tensor, drawn where the generator is and moved to where the tensor is.

    >>> normal_like(torch.zeros(3, 2), torch.Generator().manual_seed(0)).shape
    torch.Size([3, 2])
    """
    z = torch.randn(like.shape, generator=generator, dtype=like.dtype, device=generator.device)
    return z.to(like.device)


class ReplayNoise:
    """Given draws, one after the other: for tests, and for the exact law of a sampler.

    Args:
        draws: tensors of the shapes that the sampler needs, in order.

    >>> level = Level(1.0, 0.0, 1.0, 0.0)
    >>> ReplayNoise([torch.ones(1, 2)])(torch.zeros(1, 2), level, level)
    tensor([[1., 1.]])
    """

    def __init__(self, draws: Sequence[Tensor]):
        if isinstance(draws, Tensor) or not isinstance(draws, Sequence):
            raise TypeError(f"draws must be a sequence of tensors, got {shown(draws)}")
        self.draws = [check_tensor(f"draws[{i}]", draw) for i, draw in enumerate(draws)]
        self.draw = 0

    def rewind(self) -> None:
        """Start again from the first draw."""
        self.draw = 0

    def __call__(self, like: Tensor, t: Level, s: Level) -> Tensor:
        if self.draw >= len(self.draws):
            raise ValueError(f"only {len(self.draws)} draws were given, and one more is needed")
        z = self.draws[self.draw]
        self.draw += 1
        if z.shape != like.shape:
            raise ValueError(
                f"draw {self.draw} must have shape {tuple(like.shape)}, got {tuple(z.shape)}"
            )
        return z.to(like.device, like.dtype)
