"""What every network reads besides x: the clock, as sinusoids, and the class label."""

import math

import torch
from torch import Tensor, nn

from .._checks import check_count, check_number
from ..models.network import NO_CLASSES


class Sinusoids(nn.Module):
    """Cosines and sines of the clock, at periods spaced evenly in their logarithm.

        out = (cos(2 pi c / P_1) .. cos(2 pi c / P_n), sin(2 pi c / P_1) .. sin(2 pi c / P_n))

    With the default periods, 1 to 10,000, neighbouring values of half the log-SNR in
    [-10, 10] and neighbouring indices 0 .. 999 are both distinguishable (positional encoding:
    Vaswani et al., 2017, arXiv:1706.03762; for diffusion: Ho et al., 2020, arXiv:2006.11239).

    Args:
        features: Length of the output, an even number of at least 4.
        min_period: The shortest period, in units of the clock.
        max_period: The longest period, in units of the clock.

    Raises:
        ValueError: If `features` is odd or below 4, or the periods are not 0 < min < max.

    Example:
        >>> Sinusoids(4, min_period=8.0, max_period=32.0)(torch.tensor([0.0, 1.0]))
        tensor([[1.0000, 1.0000, 0.0000, 0.0000],
                [0.7071, 0.9808, 0.7071, 0.1951]])
    """

    def __init__(
        self, features: int, *, min_period: float = 1.0, max_period: float = 10_000.0
    ) -> None:
        super().__init__()
        features = check_count("features", features, 0)
        min_period = check_number("min_period", min_period)
        max_period = check_number("max_period", max_period, infinite=True)
        if features < 4 or features % 2:
            raise ValueError(f"features must be an even number >= 4, got {features}")
        if not 0 < min_period < max_period < math.inf:
            raise ValueError(
                "periods must satisfy 0 < min_period < max_period, "
                f"got min_period={min_period}, max_period={max_period}"
            )
        self.features = features
        self.min_period = min_period
        self.max_period = max_period

    def forward(self, clock: Tensor) -> Tensor:
        """Returns the (B, features) sinusoids of a (B,) clock, in float32 or float64."""
        # The phase reaches thousands of radians: half precision would lose it all. The
        # frequencies are no buffer, because `.half()` would round a buffer as well.
        dtype = torch.promote_types(clock.dtype, torch.float32)
        logs = torch.linspace(
            math.log(2 * math.pi / self.min_period),
            math.log(2 * math.pi / self.max_period),
            self.features // 2,
            dtype=dtype,
            device=clock.device,
        )
        phase = clock.to(dtype)[:, None] * logs.exp()
        return torch.cat((phase.cos(), phase.sin()), dim=1)


class Conditioning(nn.Module):
    """One vector per sample that carries the clock and, where there are classes, the label.

        out = SiLU(W_2 SiLU(W_1 sinusoids(clock)) + table[label])

    The table has `classes + 1` rows; row `classes` is the null class, which stands for
    "no label" (Ho & Salimans, 2022, arXiv:2207.12598).

    Args:
        features: Number of sinusoids.
        width: Length of the output.
        classes: Number of classes K; 0 for a network without labels.
        min_period: The shortest period, in units of the clock.
        max_period: The longest period, in units of the clock.
        second_clock: Whether a second clock, `span`, is embedded too and added; its last layer
            starts at zero, so that a network trained without it predicts what it did.

    Raises:
        ValueError: If `classes` is negative, or the sinusoids refuse their arguments.

    Example:
        >>> condition = Conditioning(8, 16, classes=10)
        >>> condition(torch.tensor([0.5, 2.0]), torch.tensor([3, 10])).shape
        torch.Size([2, 16])
    """

    def __init__(
        self,
        features: int,
        width: int,
        *,
        classes: int = 0,
        min_period: float = 1.0,
        max_period: float = 10_000.0,
        second_clock: bool = False,
    ) -> None:
        super().__init__()
        self.classes = classes = check_count("classes", classes, 0)
        width = check_count("width", width)
        self.sinusoids = Sinusoids(features, min_period=min_period, max_period=max_period)
        self.inner = nn.Linear(features, width)
        self.outer = nn.Linear(width, width)
        self.table = nn.Embedding(classes + 1, width) if classes else None
        self.span = _Span(features, width) if second_clock else None

    def forward(
        self, clock: Tensor, label: Tensor | None = None, span: Tensor | None = None
    ) -> Tensor:
        """Returns the (B, width) vectors; a label of None means the null class throughout."""
        h = self.sinusoids(clock).to(self.inner.weight.dtype)
        h = self.outer(nn.functional.silu(self.inner(h)))
        if self.span is not None and span is not None:
            h = h + self.span(span)
        elif self.span is not None or span is not None:
            raise ValueError(
                "a network built with second_clock=True takes span of shape (batch,), and one "
                "without takes none; a flow map needs the first kind, a score network the second"
            )
        if self.table is None:
            if label is not None:
                raise TypeError(NO_CLASSES)
        elif label is None:
            h = h + self.table.weight[self.classes]
        elif label.shape != clock.shape:
            raise ValueError(
                f"label must have one entry per sample, shape {tuple(clock.shape)}, "
                f"got {tuple(label.shape)}"
            )
        else:
            h = h + self.table(label)
        return nn.functional.silu(h)


class _Span(nn.Module):
    """The second clock, an angle in [0, pi / 2]: two layers, the last one zero at the start."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.sinusoids = Sinusoids(features, min_period=0.25, max_period=8.0)
        self.inner = nn.Linear(features, width)
        self.outer = nn.Linear(width, width)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, span: Tensor) -> Tensor:
        h = self.sinusoids(span).to(self.inner.weight.dtype)
        out: Tensor = self.outer(nn.functional.silu(self.inner(h)))
        return out


def check_clock(x: Tensor, clock: Tensor) -> None:
    """Refuses a clock that does not have exactly one entry per sample of x.

    Args:
        x: Batch of shape (B, *event).
        clock: What should be of shape (B,).

    Raises:
        ValueError: If the shapes do not agree.

    Example:
        >>> check_clock(torch.zeros(3, 2), torch.zeros(3))
    """
    if clock.shape != x.shape[:1]:
        raise ValueError(
            f"clock must have one entry per sample, shape {tuple(x.shape[:1])}, "
            f"got {tuple(clock.shape)}; use clock.expand(len(x)) for a common one"
        )
