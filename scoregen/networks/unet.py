"""A U-Net with attention, for images of any size, odd ones included."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import interpolate, scaled_dot_product_attention, silu
from torch.utils.checkpoint import checkpoint as recomputed

from .._checks import (
    check_count,
    check_counts,
    check_flag,
    check_flags,
    check_number,
)
from ..models import Conditions
from .embedding import Conditioning, check_clock


def _norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with at most 8 groups of at least 4 channels (where there are 4)."""
    most = min(8, max(1, channels // 4))
    return nn.GroupNorm(next(g for g in range(most, 0, -1) if channels % g == 0), channels)


def _zero(conv: nn.Conv2d) -> nn.Conv2d:
    """The same convolution started at zero, so that a residual branch starts as the identity."""
    nn.init.zeros_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


class _Block(nn.Module):
    """Two convolutions beside a shortcut; the condition scales and shifts between them."""

    def __init__(self, channels: int, out: int, condition: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = _norm(channels)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.modulation = nn.Linear(condition, 2 * out)
        self.norm2 = _norm(out)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv2 = _zero(nn.Conv2d(out, out, 3, padding=1))
        self.shortcut = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        y = self.conv1(silu(self.norm1(h)))
        scale, shift = self.modulation(condition)[:, :, None, None].chunk(2, dim=1)
        y = self.norm2(y) * (1 + scale) + shift
        return self.shortcut(h) + self.conv2(self.dropout(silu(y)))


class _Attention(nn.Module):
    """Self-attention over all pixels, added to its input."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = _norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zero(nn.Conv2d(channels, channels, 1))

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = rearrange(
            self.qkv(self.norm(h)),
            "b (three heads c) height width -> three b heads (height width) c",
            three=3,
            heads=self.heads,
        ).unbind(0)
        # The fused kernels have neither forward-mode nor second derivatives.
        with sdpa_kernel(SDPBackend.MATH):
            y = scaled_dot_product_attention(q, k, v)
        y = rearrange(y, "b heads (height width) c -> b (heads c) height width", height=h.shape[-2])
        return h + self.out(y)


class _Stage(nn.Module):
    """A residual block and, where wanted, attention."""

    def __init__(self, block: _Block, attention: _Attention | None) -> None:
        super().__init__()
        self.block = block
        self.attention = attention

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        h = self.block(h, condition)
        return h if self.attention is None else self.attention(h)


class UNet(nn.Module):
    """Residual blocks on the way down and up, joined by skips, with self-attention.

        block(h) = shortcut(h) + W_2 SiLU(norm(W_1 SiLU(norm(h))) (1 + scale) + shift)

    Scale and shift are linear in the embedding of clock and label. Each level halves the
    size, rounded up, and the way back restores it, so that any height and width will do.
    At the start the output is zero. Attention takes torch's plain kernel, which alone has
    forward-mode and second derivatives: its memory grows with (height x width)^2, so attend
    at the coarse levels (Ronneberger et al., 2015, arXiv:1505.04597; with
    attention and the clock: Ho et al., 2020, arXiv:2006.11239; scale and shift: Dhariwal &
    Nichol, 2021, arXiv:2105.05233).

    Args:
        channels: Channels of the image.
        width: Channels at full size, an even number of at least 4.
        mults: Channels of each level, as multiples of `width`; one level per entry.
        blocks: Residual blocks per level and direction.
        attention: Whether each level attends; the last entry also rules the middle.
        heads: Attention heads; must divide the channels of each level that attends.
        classes: Number of classes K; labels are 0 .. K with K the null class. 0: no labels.
        out_channels: Channels of the output, by default `channels`.
        dropout: Probability inside the blocks, in training mode; drawn from torch's global
            generator.
        min_period: The shortest period of the clock's sinusoids.
        max_period: The longest period of the clock's sinusoids.
        second_clock: Whether it takes a second clock `span`, as a flow map does.
        checkpoint: Whether training keeps only what enters each residual block and computes the
            rest again on the way back: less memory, about a third more time, the same gradients
            (Chen et al., 2016, arXiv:1604.06174). Not for objectives that differentiate forward.

    Attributes:
        config: The arguments above in JSON's types, without `checkpoint`, which changes no number;
            `UNet(**net.config)` builds the same net.

    Raises:
        ValueError: If an argument is out of its range or two do not fit together.

    Example:
        >>> net = UNet(channels=3, width=8, classes=10)
        >>> x = torch.zeros(2, 3, 7, 9)
        >>> net(x, torch.tensor([0.5, 1.0]), label=torch.tensor([3, 10])).shape
        torch.Size([2, 3, 7, 9])
    """

    _changes_no_number: ClassVar = ("checkpoint",)

    def __init__(
        self,
        channels: int = 1,
        width: int = 32,
        mults: Sequence[int] = (1, 2),
        blocks: int = 1,
        attention: Sequence[bool] = (False, True),
        heads: int = 4,
        classes: int = 0,
        out_channels: int | None = None,
        dropout: float = 0.0,
        *,
        min_period: float = 1.0,
        max_period: float = 10_000.0,
        second_clock: bool = False,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        check_flag("checkpoint", checkpoint)
        mults, attention = check_counts("mults", mults), check_flags("attention", attention)
        if not mults or len(mults) != len(attention):
            raise ValueError(
                "mults and attention must have one entry per level, "
                f"got {len(mults)} and {len(attention)}"
            )
        channels, width = check_count("channels", channels), check_count("width", width)
        out_channels = channels if out_channels is None else out_channels
        out_channels = check_count("out_channels", out_channels)
        blocks, heads = check_count("blocks", blocks), check_count("heads", heads)
        classes = check_count("classes", classes, 0)
        if width < 4 or width % 2:
            raise ValueError(f"width must be an even number >= 4, got {width}")
        for mult, attends in zip(mults, attention, strict=True):
            if attends and width * mult % heads:
                raise ValueError(
                    f"heads must divide the channels of a level that attends, "
                    f"got {heads} heads and {width * mult} channels"
                )
        dropout = check_number("dropout", dropout, 0.0, 1.0, open_high=True)
        self.channels = channels
        self.checkpoint = checkpoint
        self.config: dict[str, Any] = {
            "channels": channels,
            "width": width,
            "mults": list(mults),
            "blocks": blocks,
            "attention": list(attention),
            "heads": heads,
            "classes": classes,
            "out_channels": out_channels,
            "dropout": dropout,
            "min_period": min_period,
            "max_period": max_period,
            "second_clock": second_clock,
        }

        def stage(c: int, out: int, attends: bool) -> _Stage:
            return _Stage(
                _Block(c, out, 4 * width, dropout),
                _Attention(out, heads) if attends else None,
            )

        self.condition = Conditioning(
            2 * width,
            4 * width,
            classes=classes,
            min_period=min_period,
            max_period=max_period,
            second_clock=second_clock,
        )
        sizes = [width * mult for mult in mults]
        levels = list(zip(sizes, attention, strict=True))
        self.blocks = blocks
        self.inlet = nn.Conv2d(channels, sizes[0], 3, padding=1)
        self.down = nn.ModuleList(
            stage(c, c, attends) for c, attends in levels for _ in range(blocks)
        )
        self.shrink = nn.ModuleList(
            nn.Conv2d(fine, coarse, 3, stride=2, padding=1) for fine, coarse in pairwise(sizes)
        )
        self.middle = stage(sizes[-1], sizes[-1], attention[-1])
        self.up = nn.ModuleList(
            stage(2 * c, c, attends) for c, attends in reversed(levels) for _ in range(blocks)
        )
        self.grow = nn.ModuleList(
            nn.Conv2d(coarse, fine, 3, padding=1) for coarse, fine in pairwise(reversed(sizes))
        )
        self.norm = _norm(sizes[0])
        self.outlet = _zero(nn.Conv2d(sizes[0], out_channels, 3, padding=1))

    def forward(
        self, x: Tensor, clock: Tensor, label: Tensor | None = None, span: Tensor | None = None
    ) -> Tensor:
        """Evaluates the network, in the precision of its parameters.

        Args:
            x: Images of shape (B, channels, height, width).
            clock: The time as the network reads it, shape (B,).
            label: Classes of shape (B,), int64 in 0 .. K; None means the null class.
            span: The second clock, shape (B,), for a network built with one.

        Returns:
            Tensor of shape (B, out_channels, height, width) and the parameters' dtype.

        Raises:
            ValueError: If a shape does not fit.
            TypeError: If a label is given to a network without classes.
        """
        if x.ndim != 4:
            raise ValueError(
                "a UNet takes x of 4 axes, (batch, channels, height, width), "
                f"got {x.ndim} axes: {tuple(x.shape)}"
            )
        if x.shape[1] != self.channels:
            raise ValueError(
                f"this UNet takes {self.channels} channel(s), got {x.shape[1]}: {tuple(x.shape)}"
            )
        check_clock(x, clock)
        condition = self.condition(clock, label, span)
        h = self.inlet(x.to(self.inlet.weight.dtype))
        skips: list[Tensor] = []
        for i, stage in enumerate(self.down):
            if i and i % self.blocks == 0:
                h = self.shrink[i // self.blocks - 1](h)
            h = self._run(stage, h, condition)
            skips.append(h)
        h = self._run(self.middle, h, condition)
        for i, stage in enumerate(self.up):
            skip = skips.pop()
            if i and i % self.blocks == 0:
                h = interpolate(h, size=skip.shape[-2:], mode="nearest")
                h = self.grow[i // self.blocks - 1](h)
            h = self._run(stage, torch.cat((h, skip), dim=1), condition)
        return self.outlet(silu(self.norm(h)))

    def _run(self, stage: nn.Module, h: Tensor, condition: Tensor) -> Tensor:
        if not (self.checkpoint and self.training and torch.is_grad_enabled()):
            out: Tensor = stage(h, condition)
            return out
        # dropout must draw the same mask again
        draws = self.config["dropout"] > 0
        again: Tensor = recomputed(
            stage, h, condition, use_reentrant=False, preserve_rng_state=draws
        )
        return again

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
