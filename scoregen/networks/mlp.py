"""A residual multi-layer perceptron, for vectors and any other small event."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .._checks import check_count, check_counts
from ..models import Conditions
from .embedding import Conditioning, check_clock


class _Layer(nn.Module):
    """h + W_2 SiLU(W_1 (norm(h) (1 + scale) + shift)), scale and shift from the condition."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden, elementwise_affine=False)
        self.modulation = nn.Linear(hidden, 2 * hidden)
        self.inner = nn.Linear(hidden, hidden)
        self.outer = nn.Linear(hidden, hidden)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.modulation(condition).chunk(2, dim=1)
        y = self.norm(h) * (1 + scale) + shift
        return h + self.outer(nn.functional.silu(self.inner(y)))


class MLP(nn.Module):
    """Residual SiLU layers, each scaled and shifted by the clock and the label.

        h_0 = W x,   h_i = h_{i-1} + W_2 SiLU(W_1 (norm(h_{i-1}) (1 + scale_i) + shift_i))

    Scale and shift are linear in the embedding of clock and label (feature-wise modulation:
    Perez et al., 2018, arXiv:1709.07871).

    Args:
        event: Shape of one sample, for instance (2,), (17,) or (); flattened inside.
        hidden: Width of the layers, an even number of at least 4.
        depth: Number of residual layers.
        classes: Number of classes K; labels are 0 .. K with K the null class. 0: no labels.
        outputs: Multiplies the first axis of the output: 2 gives (2 event[0], *event[1:]).
        min_period: The shortest period of the clock's sinusoids.
        max_period: The longest period of the clock's sinusoids.
        second_clock: Whether it takes a second clock `span`, as a flow map does.

    Attributes:
        config: The arguments above in JSON's types; `MLP(**net.config)` builds the same net.

    Raises:
        ValueError: If an argument is out of its range, or an event of shape () has
            several outputs.

    Example:
        >>> import torch
        >>> net = MLP(event=(2,), hidden=16, classes=3)
        >>> net(torch.zeros(5, 2), torch.linspace(-1, 1, 5), label=torch.arange(5) % 4).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        event: Sequence[int] = (2,),
        hidden: int = 128,
        depth: int = 3,
        classes: int = 0,
        *,
        outputs: int = 1,
        min_period: float = 1.0,
        max_period: float = 10_000.0,
        second_clock: bool = False,
    ) -> None:
        super().__init__()
        self.event = check_counts("event", event)
        hidden, depth = check_count("hidden", hidden), check_count("depth", depth, 0)
        classes, outputs = check_count("classes", classes, 0), check_count("outputs", outputs)
        if outputs > 1 and not self.event:
            raise ValueError(
                f"outputs={outputs} needs an axis to multiply, and the event is (); use event=(1,)"
            )
        self.config: dict[str, Any] = {
            "event": list(self.event),
            "hidden": hidden,
            "depth": depth,
            "classes": classes,
            "outputs": outputs,
            "min_period": min_period,
            "max_period": max_period,
            "second_clock": second_clock,
        }
        size = math.prod(self.event)
        self.output_event = (outputs * self.event[0], *self.event[1:]) if self.event else self.event
        self.condition = Conditioning(
            hidden,
            hidden,
            classes=classes,
            min_period=min_period,
            max_period=max_period,
            second_clock=second_clock,
        )
        self.inlet = nn.Linear(size, hidden)
        self.layers = nn.ModuleList(_Layer(hidden) for _ in range(depth))
        self.outlet = nn.Linear(hidden, outputs * size)

    def forward(
        self, x: Tensor, clock: Tensor, label: Tensor | None = None, span: Tensor | None = None
    ) -> Tensor:
        """Evaluates the network, in the precision of its parameters.

        Args:
            x: Batch of shape (B, *event).
            clock: The time as the network reads it, shape (B,).
            label: Classes of shape (B,), int64 in 0 .. K; None means the null class.
            span: The second clock, shape (B,), for a network built with one.

        Returns:
            Tensor of shape (B, *output_event) and the parameters' dtype.

        Raises:
            ValueError: If a shape does not fit.
            TypeError: If a label is given to a network without classes.
        """
        if x.shape[1:] != self.event or x.ndim == 0:
            raise ValueError(
                f"this MLP takes events of shape {self.event} (x: (batch, *event)), "
                f"got x of shape {tuple(x.shape)}"
            )
        check_clock(x, clock)
        condition = self.condition(clock, label, span)
        flat = x.reshape(x.shape[0], self.inlet.in_features)
        h = self.inlet(flat.to(self.inlet.weight.dtype))
        for layer in self.layers:
            h = layer(h, condition)
        return self.outlet(nn.functional.silu(h)).reshape(x.shape[0], *self.output_event)

    @property
    def conditions(self) -> Conditions:
        """What it takes: a label, where it has classes."""
        return Conditions.labels(self.condition.classes)

    def check_condition(self, **condition: Any) -> None:
        """Refuses unknown conditions and labels of a wrong type, shape or value.

        Args:
            **condition: `label`, an int64 tensor of shape (B,) in 0 .. K; or nothing.

        Raises:
            TypeError: For an unknown name, a label without classes, or a wrong dtype.
            ValueError: For a wrong shape or a label outside 0 .. K.
        """
        self.conditions.check(**condition)
