"""What a row of a comparison is that is no score model, and the loop that trains most of them."""

from __future__ import annotations

import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .._checks import check_count, check_data, check_kind, check_number
from ..data import Data
from ..likelihood import dequantise
from ..models import Conditions
from ..models.base import evaluating
from ..models.conditions import expand
from ..noise import SampleNoise
from ..noise.sources import normal_like
from ..processes import Level
from ..training import EMA, TrainingError, TrainSettings
from ..training.engine import private_draws

__all__ = ["Generator", "Normal", "Trained"]

Normal = Callable[[Tensor], Tensor]
"""`normal(like)` is a fresh N(0, I) draw shaped like `like`."""


def normals(seed: int) -> Normal:
    """Draws in which those of row i depend only on (seed, i) and how many came before.

    >>> torch.equal(normals(0)(torch.zeros(5, 2))[:3], normals(0)(torch.zeros(3, 2)))
    True
    """
    noise, here = SampleNoise(check_count("seed", seed, 0)), Level(0.0, 1.0, 0.0, math.inf)
    return lambda like: noise(like, here, here)


def drawn_by(generator: torch.Generator) -> Normal:
    """Draws of a torch.Generator, on its device.

    >>> drawn_by(torch.Generator().manual_seed(0))(torch.zeros(3, 2)).shape
    torch.Size([3, 2])
    """
    return lambda like: normal_like(like, generator)


def needs(module: str, package: str, what: str) -> Any:
    """A module of an optional package; where it is missing, what to install.

    >>> needs("math", "math", "a test").pi > 3
    True
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{what} needs {package}, which is not installed: pip install 'scoregen[families]'"
        ) from error


class Generator(nn.Module, ABC):
    """A model that draws samples, but not by its score: a row of `compare(..., baselines=)`.

    Subclasses set `event`, write `draw`, and say in `likelihood` what is known of log p(x).

    Attributes:
        event: shape of one sample.
        classes: number of classes of its condition "label"; 0 where it takes none.
        likelihood: "exact" where `log_prob` is, "bound" where only a lower bound is known, "none".
        evaluations: of networks per sample, one after the other.

    >>> class Coin(Generator):
    ...     event, likelihood = (1,), "none"
    ...     def draw(self, count, normal, label):
    ...         return normal(torch.zeros(count, 1)).sign()
    >>> Coin().sample(3, seed=0).shape
    torch.Size([3, 1])
    """

    event: tuple[int, ...]
    classes: int = 0
    likelihood: ClassVar[Literal["exact", "bound", "none"]]
    _why: ClassVar[str] = "compare it by its samples"

    @property
    def evaluations(self) -> float:
        return 1.0

    @abstractmethod
    def draw(self, count: int, normal: Normal, label: Tensor | None) -> Tensor:
        """`count` samples (count, *event), without checks.

        Args:
            count: how many.
            normal: source of all randomness.
            label: classes, shape (count,), or None.
        """

    @torch.no_grad()
    def sample(self, n: int, *, seed: int, condition: Mapping[str, Any] | None = None) -> Tensor:
        """Samples of shape (n, *event); sample i depends only on (seed, i) and its condition.

        Args:
            n: how many.
            seed: of all randomness.
            condition: {"label": one class, or int64 of shape (n,)}, for a family with classes.

        Raises:
            TypeError, ValueError: for a condition that the family does not take.
        """
        check_count("n", n, 0)
        given = expand(condition or {}, n, self.device)
        self.check_condition(**given)
        label = given.get("label")
        if label is not None and len(label) != n:
            raise ValueError(f"label must hold one class for each of {n} samples, got {len(label)}")
        with evaluating(self):
            return self.draw(n, normals(seed), label)

    def check_condition(self, **condition: Any) -> None:
        """Refuse a condition it does not take.

        Raises:
            TypeError, ValueError: for an unknown name, or labels that cannot be.
        """
        if condition and not self.classes:
            raise TypeError(
                f"{type(self).__name__} is unconditional, and takes no {', '.join(condition)}: "
                "leave the condition out, or take a family with classes, such as NaiveBayes or "
                "ConditionalGAN"
            )
        if self.classes:
            # the last class is the last label: there is no null class
            Conditions({"label": self.classes - 1}, self.classes).check(**condition)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, shape (batch,), where the family knows it.

        Args:
            x: data, shape (batch, *event).

        Raises:
            TypeError: by name, for a family without a likelihood.
        """
        raise TypeError(f"{type(self).__name__} has no log-density: {self._why}")

    def checked(self, x: Tensor) -> Tensor:
        """The data themselves, once it is known that they are finite and of the right event."""
        check_data(x)
        if x.shape[1:] != self.event:
            raise ValueError(
                f"x must have shape (batch, *event) with event {self.event}, got {tuple(x.shape)}"
            )
        return x

    def check_training(self, data: Data, *, labels: bool) -> None:
        """Refuse data of another event, and labels that the family cannot use or lacks."""
        check_kind("data", data, Data, "Data(x)")
        if data.event != self.event:
            raise ValueError(f"data must have the event {self.event}, got {data.event}")
        if labels and data.label is None:
            raise ValueError(f"{type(self).__name__} needs labelled data, got none: Data(x, label)")
        if not labels and data.label is not None:
            raise ValueError(
                f"{type(self).__name__} is unconditional and would ignore the labels of the data: "
                "leave them out by data.unlabelled()"
            )
        if labels and data.classes > self.classes:
            raise ValueError(f"the data have {data.classes} classes and the model {self.classes}")

    def _averaged(
        self, update: Callable[[int], None], settings: TrainSettings, progress: bool
    ) -> Self:
        """Itself after all updates, with the average of the weights they passed through."""
        average = EMA(self, settings.ema_decay)
        self.train()
        name = type(self).__name__
        # dropout draws from torch's global generator
        with private_draws(settings.seed, self.device):
            for step in tqdm(range(settings.steps), desc=name, disable=None if progress else True):
                update(step)
                average.update_parameters(self)
        self.load_state_dict(average.module.state_dict())
        return self.eval()

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next((t.device for t in (*self.parameters(), *self.buffers())), torch.device("cpu"))


def continuous(x: Tensor, data: Data, generator: torch.Generator) -> Tensor:
    """Data on levels made continuous by uniform noise; other data as they are."""
    if data.bins is None or data.range is None:
        return x
    return dequantise(x, bins=data.bins, data_range=data.range, generator=generator)


class Trained(Generator):
    """A family trained by the mean of one loss per sample: subclasses write `loss`.

    >>> issubclass(Trained, Generator)
    True
    """

    @abstractmethod
    def loss(self, x: Tensor, normal: Normal) -> Tensor:
        """One loss per sample in nats, shape (batch,).

        Args:
            x: data, shape (batch, *event).
            normal: source of all noise.
        """

    def prepare(self, data: Data) -> None:
        """What is set from the data before the first step; nothing unless written."""

    def fit(
        self,
        data: Data,
        *,
        steps: int,
        batch: int = 128,
        lr: float = 2e-3,
        seed: int = 0,
        weight_decay: float = 0.0,
        ema_decay: float = 0.995,
        progress: bool = True,
    ) -> Self:
        """Train in place by AdamW with a warmed-up cosine rate; ends with averaged weights.

        Data on levels are dequantised anew in every step, so that the family learns a density.
        Gradients longer than 100 are scaled down to it.

        Args:
            data: without labels.
            steps: updates.
            batch: samples per update.
            lr: largest learning rate.
            seed: of the order of the data and of all noise.
            weight_decay: of AdamW.
            ema_decay: of the average of the weights.
            progress: show a bar, on a terminal.

        Returns:
            Itself.

        Raises:
            ValueError, TypeError: for data that do not fit.
            TrainingError: if the loss is not finite.
        """
        self.check_training(data, labels=False)
        settings = TrainSettings(
            steps,
            batch,
            lr,
            seed,
            warmup=steps // 20,
            weight_decay=weight_decay,
            ema_decay=ema_decay,
        )
        self.prepare(data)
        generator = torch.Generator().manual_seed(seed)
        weights = [p for p in self.parameters() if p.requires_grad]
        fused = self.device.type in ("cpu", "cuda")
        optimizer = torch.optim.AdamW(weights, lr, weight_decay=weight_decay, fused=fused)
        batches = data.batches(batch, seed)

        def update(step: int) -> None:
            x, _ = next(batches)
            x = continuous(x, data, generator).to(self.device)
            descend(optimizer, settings, step, self.loss(x, drawn_by(generator)).mean())

        return self._averaged(update, settings, progress)


def descend(
    optimizer: torch.optim.Optimizer, settings: TrainSettings, step: int, loss: Tensor
) -> None:
    """One update at the rate of this step, with the gradient's norm clipped; nan is refused."""
    optimizer.zero_grad()
    loss.backward()
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    norm = float(nn.utils.clip_grad_norm_(weights, 100.0))
    if not math.isfinite(norm):
        raise TrainingError(
            f"step {step + 1} has the loss {float(loss.detach()):g} and no finite gradient: lower "
            "lr, or look for extreme values in the data"
        )
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate(step)
    optimizer.step()


def check_variance(variance: object, event: tuple[int, ...]) -> Tensor:
    """The logarithm, in float64, of a positive number or of one per coordinate."""
    if not isinstance(variance, Tensor) or not variance.dim():
        number = check_number("variance", variance, 0.0, open_low=True)
        return torch.tensor(math.log(number), dtype=torch.float64)
    if variance.shape != event or not bool(((variance > 0) & variance.isfinite()).all()):
        raise ValueError(
            f"variance must be a positive number, or a tensor of shape {event} of such, got shape "
            f"{tuple(variance.shape)}"
        )
    return variance.detach().double().log()


def check_net(name: str, net: nn.Module, wanted: tuple[int, ...], *inputs: Any) -> Tensor:
    """What a network makes of two rows, refused unless it has the shape that is wanted."""
    check_kind(name, net, nn.Module, "Perceptron((2,), (2,))")
    shown = ", ".join(str(tuple(i.shape)) for i in inputs if i is not None)
    try:
        with evaluating(net):
            out = net(*(i for i in inputs if i is not None))
    except RuntimeError as error:
        raise ValueError(f"{name} does not take {shown}: {error}") from error
    if not isinstance(out, Tensor) or out.shape != wanted:
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(f"{name} must make {wanted} of {shown}, got {got}")
    return out


def dtype_of(*nets: nn.Module) -> torch.dtype:
    """The precision of the first weights or buffers; float32 without any."""
    every = (t for net in nets for t in (*net.parameters(), *net.buffers()))
    return next((t.dtype for t in every if t.is_floating_point()), torch.float32)
