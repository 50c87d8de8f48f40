"""One batch on many ranks: each makes its own rows, and together they are the single run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .._checks import check_count, check_kind
from ..models import ScoreModel
from .batch import check_shape
from .sampler import Sampler

__all__ = ["Sharded", "sharded"]


@dataclass(frozen=True)
class Sharded:
    """A rank's part of every batch of a sampler, as `sharded` makes it.

    Args:
        sampler: makes the samples.
        rank: this process, 0 .. world - 1.
        world: processes in all.

    >>> from scoregen import DDIM, UniformTime
    >>> Sharded(Sampler(DDIM(), UniformTime(4)), rank=1, world=3).rows(8)
    range(2, 5)
    """

    sampler: Sampler
    rank: int
    world: int

    def __post_init__(self) -> None:
        check_kind("sampler", self.sampler, Sampler, "Sampler(DDIM(), UniformTime(20))")
        check_count("world", self.world)
        if check_count("rank", self.rank, 0) >= self.world:
            raise ValueError(f"rank must be less than world = {self.world}, got {self.rank}")
        if self.sampler.solver.population:
            raise ValueError(
                f"{type(self.sampler.solver).__name__} acts on the whole batch, so ranks would "
                "change its answer: give each rank a seed and a whole population of its own"
            )

    def rows(self, batch: int) -> Sequence[int]:
        """The rows of a batch that this rank makes: consecutive, as many as elsewhere up to one."""
        check_count("batch", batch, 0)
        return range(self.rank * batch // self.world, (self.rank + 1) * batch // self.world)

    def sample(
        self,
        model: ScoreModel,
        shape: tuple[int, ...],
        *,
        seed: int = 0,
        condition: dict[str, Any] | None = None,
        **options: Any,
    ) -> Tensor:
        """This rank's samples of a batch, of shape (len(self.rows(batch)), *event).

        Args:
            model: a score model; what it or its condition holds per sample is for the whole batch.
            shape: (batch, *event) of the whole batch.
            seed: the same integer on all ranks.
            condition: keyword arguments of the model, for the whole batch.
            **options: of `Sampler.sample`: first, chunk, device, dtype, progress.

        Raises:
            ValueError: for a torch.Generator, whose draws have no index.
        """
        rows = self.rows(check_shape(shape)[0])
        return self.sampler.sample(
            model, shape, seed=seed, rows=rows, condition=condition, **options
        )


def sharded(sampler: Sampler, rank: int, world: int) -> Sharded:
    """The part of a sampler's batches that one of several processes makes.

    Sample i depends on (seed, i) alone, so ranks need not speak to each other: their rows, one
    rank's after the other's, are the batch that a single process makes with the same seed. Bit for
    bit where the network rounds a row alike in batches of any size; elsewhere up to that rounding,
    which the same `chunk` on both sides removes where it divides the rows of every rank. `Dopri5`
    shares its step among the rows of a batch, so there the union agrees to its tolerance.

    Args:
        sampler: any sampler whose solver treats rows one by one.
        rank: this process, such as `int(os.environ["RANK"])` under torchrun.
        world: processes in all, such as `int(os.environ["WORLD_SIZE"])`.

    Raises:
        ValueError: for a rank outside 0 .. world - 1, or a solver on whole populations.

    >>> import torch
    >>> from scoregen import DDIM, VPSDE, Gaussian, UniformTime
    >>> model, sampler = Gaussian(VPSDE(), torch.zeros(2), 1.0), Sampler(DDIM(), UniformTime(4))
    >>> parts = [sharded(sampler, rank, 3).sample(model, (8, 2), seed=0) for rank in range(3)]
    >>> torch.equal(torch.cat(parts), sampler.sample(model, (8, 2), seed=0))
    True
    """
    return Sharded(sampler, rank, world)
