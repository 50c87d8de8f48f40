"""The arithmetic of a step: gradient, update and averages, without waiting for the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from ..data import Batch
from ..data.order import stream
from ..models import ScoreModel
from ..models.conditions import rows as rows_of
from ..objectives import DenoisingScoreMatching, Objective
from ..objectives.denoising import Draws
from .ema import EMA
from .optimizer import SkippingAdamW
from .settings import TrainSettings
from .sharding import sharded, whole

__all__ = ["divisible", "key_of"]

Shard = Callable[[nn.Module], object]


@lru_cache(maxsize=64)
def key_of(seed: int, step: int, part: int) -> int:
    """A 63-bit seed that is a pure function of (seed, step, part of the batch).

    Part 0 is the key of the whole batch too. It is no default, so that it is remembered once.

    >>> key_of(0, 1, 0) == key_of(0, 1, 0) != key_of(0, 1, 1)
    True
    """
    return int(stream(seed, (1 << 63) + (part << 40) + step).integers(1 << 63))


@contextmanager
def private_draws(key: int, device: torch.device) -> Iterator[None]:
    """Dropout draws from torch's global generator: give it one of its own, and put it back.

    It costs 7 microseconds on a CPU, in every step: less than finding out that nothing was drawn.
    """
    places = [torch.default_generator]
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        places.append(torch.cuda.default_generators[index])
    before = [generator.get_state() for generator in places]
    for generator in places:
        generator.manual_seed(key)
    try:
        yield
    finally:
        for generator, state in zip(places, before, strict=True):
            generator.set_state(state)


@dataclass(frozen=True, eq=False)
class Part:
    """The samples of one backward pass; one object, whose tensors no wrapper casts or moves."""

    x0: Tensor
    condition: dict[str, Any]
    source: torch.Generator | Draws


class Loss(nn.Module):
    """Model and objective as one module, so that a distributed wrapper sees one forward pass."""

    def __init__(self, model: ScoreModel, objective: Objective):
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, part: Part) -> Tensor:
        if isinstance(part.source, Draws):
            drawn: Any = self.objective
            loss: Tensor = drawn.drawn(self.model, part.x0, part.source, **part.condition)
            return loss
        return self.objective(self.model, part.x0, generator=part.source, **part.condition)


def divisible(objective: Objective) -> bool:
    """Whether its draws are made for a whole batch first and divided afterwards.

    >>> divisible(DenoisingScoreMatching()), divisible(lambda model, x0, **named: x0)
    (True, False)
    """
    # a subclass may draw more
    return type(objective) is DenoisingScoreMatching


class Engine:
    """Gradients, updates and averages of one training, on one process of several.

    Args:
        model: what is trained, on its device, whole.
        objective: the loss per sample.
        averages: of the model, whole; divided here as the model is.
        settings: of the training.
        event: shape of one sample.
        place: the device.
        accelerator: an `accelerate.Accelerator`, or None.
        shard: divides the model among the processes, or None.
    """

    def __init__(
        self,
        model: ScoreModel,
        objective: Objective,
        averages: Sequence[EMA],
        settings: TrainSettings,
        event: tuple[int, ...],
        place: torch.device,
        accelerator: Any = None,
        shard: Shard | None = None,
    ):
        self.model, self.objective, self.averages = model, objective, averages
        self.settings, self.place, self.accelerator = settings, place, accelerator
        self.event = event
        self.rank, self.world = 0, 1
        self.loss: nn.Module = Loss(model, objective)
        if shard is not None:
            shard(model)
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = SkippingAdamW(trained, settings.lr, settings.weight_decay)
        if accelerator is not None:
            self.rank, self.world = accelerator.process_index, accelerator.num_processes
        if accelerator is not None and shard is None:
            self.loss, _ = accelerator.prepare(self.loss, self.optimizer)
        for average in averages:
            average.divide_like(model)
        self.parameters = list(model.parameters())
        self.divided = any(map(sharded, self.parameters))
        self.generator = torch.Generator(place)
        share = settings.batch // self.world
        self.rows = slice(self.rank * share, (self.rank + 1) * share)
        self.coordinates = max(1, math.prod(event))

    def gradient(self, batch: Batch, step: int) -> Tensor:
        """Accumulate the gradient of the mean loss per coordinate, and clip it.

        Args:
            batch: the rows of this process.
            step: updates so far.

        Returns:
            The mean loss over the whole batch and the norm, shape (2,), on the device.
        """
        accumulate = self.settings.accumulate
        size = len(batch.x) // accumulate
        losses = []
        draws: Draws | None = None
        for j in range(accumulate):
            part = slice(j * size, (j + 1) * size)
            number = self.rank * accumulate + j
            key = key_of(self.settings.seed, step, number)
            with self._alone(last=j == accumulate - 1), private_draws(key ^ 2, self.place):
                source: torch.Generator | Draws
                if divisible(self.objective):
                    if draws is None:
                        draws = self._draws(batch.x, step)
                    source = draws.rows(part)
                else:
                    source = self.generator.manual_seed(key)
                condition = batch.condition
                if accumulate > 1:
                    condition = rows_of(condition, part, len(batch.x))
                mean = self._mean(Part(batch.x[part], condition, source))
                self._backward(mean / self.coordinates)
            losses.append(mean.detach())
        loss = losses[0] if accumulate == 1 else torch.stack(losses).mean()
        if self.accelerator is not None:
            loss = self.accelerator.reduce(loss, "mean")
        used = [p for p in self.parameters if p.grad is not None]
        norm = whole(nn.utils.clip_grad_norm_(used, self.settings.grad_clip))
        return torch.stack([loss, norm])

    def _draws(self, x: Tensor, step: int) -> Draws:
        """Those of this process's rows: every process draws the whole batch, alike."""
        like = x
        if self.world > 1:
            like = x[:1].expand(self.settings.batch, *self.event)
        draws: Any = self.objective
        key = key_of(self.settings.seed, step, 0)
        generator = self.generator.manual_seed(key)
        times = None if self.place.type == "cpu" else torch.Generator().manual_seed(key)
        mine: Draws = draws.draw(self.model, like, generator, times).rows(self.rows)
        return mine

    def _mean(self, part: Part) -> Tensor:
        if self.accelerator is None or self.loss.__class__ is not Loss:
            mean: Tensor = self.loss(part).mean()
            return mean
        with self.accelerator.autocast():
            return self.loss(part).mean()

    def _backward(self, loss: Tensor) -> None:
        """Add the gradient of a part's share in the mean over all parts."""
        share = 1 / self.settings.accumulate
        if self.accelerator is None:
            (loss if share == 1 else loss * share).backward()
            return
        # an Accelerator set to accumulate divides by its own number of parts
        share *= self.accelerator.gradient_accumulation_steps
        self.accelerator.backward(loss if share == 1 else loss * share)

    def _alone(self, last: bool) -> AbstractContextManager[None]:
        """Gradients are summed over the processes once, with the last part."""
        if last or self.accelerator is None or isinstance(self.loss, Loss):
            return nullcontext()
        alone: AbstractContextManager[None] = self.accelerator.no_sync(self.loss)
        return alone

    def update(self, measured: Tensor, rate: float) -> None:
        """One update, left out on the device where the norm is not finite, and the averages.

        The averages take the weights of every step, also of one that left them as they were.

        Args:
            measured: what `gradient` returned.
            rate: the learning rate.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step_unless(~measured[1].isfinite())
        for average in self.averages:
            average.update_parameters(self.model)
        self.optimizer.zero_grad()
