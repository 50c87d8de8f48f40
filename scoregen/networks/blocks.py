"""The residual block of ADM, DDPM++ and NCSN++, which differ in what `Style` states."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, silu

from .._checks import check_count
from ..models import Conditions
from ..models.network import NO_CLASSES
from .embedding import check_clock
from .stages import Stage

__all__ = [
    "Block",
    "ClassConditional",
    "ConvDown",
    "ConvUp",
    "Style",
    "attend",
    "ladder",
    "resample",
    "rows_of",
    "shares",
]

Way = Literal["keep", "down", "up"]


@dataclass(frozen=True)
class Style:
    """What distinguishes the published blocks.

    Args:
        modulation: how the condition enters: "scale" multiplies by 1 + scale and adds a shift
            after the second normalisation, "add" adds before it.
        balance: factor on the sum of branch and shortcut: 1, or sqrt(1/2) to keep the variance.
        eps: of the normalisations.
        groups: most groups of a normalisation.
        group_channels: fewest channels of a group.
        heads: attention heads, or None where `head_channels` decides.
        head_channels: channels of a head.
        taps: the filter of up- and downsampling; (1, 1) averages two pixels and repeats one.
        mixes: whether a shortcut that changes the size passes a 1 x 1 convolution although its
            channels stay.
        dropout: probability inside the blocks, in training.

    Raises:
        ValueError: unless heads or head_channels is given, and one alone.

    >>> Style("add", heads=1).count(64)
    1
    """

    modulation: Literal["scale", "add"]
    balance: float = 1.0
    eps: float = 1e-5
    groups: int = 32
    group_channels: int = 4
    heads: int | None = None
    head_channels: int | None = None
    taps: tuple[int, ...] = (1, 1)
    mixes: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if (self.heads is None) == (self.head_channels is None):
            raise ValueError(
                "attention needs heads=, a number of heads, or head_channels=, the channels of one;"
                f" got heads={self.heads} and head_channels={self.head_channels}"
            )
        if self.heads is not None:
            check_count("heads", self.heads)
        if self.head_channels is not None:
            check_count("head_channels", self.head_channels)

    def count(self, channels: int) -> int:
        """Attention heads of a state with that many channels."""
        if self.heads is not None:
            return shares(channels, self.heads, "attention heads")
        each = check_count("head_channels", self.head_channels)
        shares(channels, each, "channels for a head")
        return channels // each

    def norm(self, channels: int) -> nn.GroupNorm:
        groups = max(1, min(self.groups, channels // self.group_channels))
        if channels % groups:
            raise ValueError(f"{channels} channels are not divisible into {groups} groups")
        return nn.GroupNorm(groups, channels, eps=self.eps)


def shares(channels: int, count: int, what: str) -> int:
    """`count`, if it divides the channels.

    >>> shares(64, 4, "attention heads")
    4
    """
    if channels % count:
        raise ValueError(f"{count} {what} do not divide {channels} channels")
    return count


def resample(x: Tensor, way: Way, taps: Sequence[int], edge: int | None = None) -> Tensor:
    """Half or twice the size, by a separable filter of even length; "keep" returns x.

    Args:
        x: (batch, channels, height, width).
        way: "keep", "down" or "up".
        taps: the filter, normalised here.
        edge: zeros beyond each edge; as many as halve or double the size unless given.

    >>> resample(torch.arange(4.0).reshape(1, 1, 2, 2), "down", (1, 1))
    tensor([[[[1.5000]]]])
    """
    if way == "keep":
        return x
    # filled in on the device: a copy of the numbers would make the host wait
    line = torch.stack([x.new_full((), tap / sum(taps)) for tap in taps])
    filter_ = torch.outer(line, line).expand(x.shape[1], 1, -1, -1)
    edge = (len(taps) - 1) // 2 if edge is None else edge
    if way == "down":
        return conv2d(x, filter_, stride=2, padding=edge, groups=x.shape[1])
    return conv_transpose2d(x, 4 * filter_, stride=2, padding=edge, groups=x.shape[1])


def attend(qkv: Tensor, heads: int) -> Tensor:
    """softmax(q k / sqrt(d)) v over all pixels.

    Args:
        qkv: (batch, 3 channels, height, width): queries, keys, values, each head by head.
        heads: number of heads.

    Returns:
        (batch, channels, height, width).

    >>> attend(torch.ones(1, 6, 2, 2), 1).shape
    torch.Size([1, 2, 2, 2])
    """
    batch, channels, height, width = qkv.shape
    q, k, v = qkv.reshape(batch, 3, heads, channels // (3 * heads), height * width).unbind(1)
    weight = (q.transpose(-1, -2) @ (k / math.sqrt(k.shape[-2]))).softmax(-1)
    return (v @ weight.transpose(-1, -2)).reshape(batch, channels // 3, height, width)


def ladder(clock: Tensor, count: int, last: float) -> Tensor:
    """Phases clock x 10000^(-i / last), (batch, count), in float32 at least.

    >>> ladder(torch.ones(1), 2, 2.0)
    tensor([[1.0000, 0.0100]])
    """
    dtype = torch.promote_types(clock.dtype, torch.float32)
    powers = torch.arange(count, dtype=dtype, device=clock.device) / last
    return clock.to(dtype)[:, None] * torch.exp(-math.log(10000.0) * powers)


def rows_of(label: Tensor | None, classes: int, batch: int, like: Tensor) -> Tensor:
    """Labels as rows of weights, (batch, classes): one-hot, or zeros for the null class.

    Args:
        label: int64 in 0 .. classes, where `classes` is the null class; rows as they are; or None.
        classes: number of classes.
        batch: number of samples.
        like: a tensor of the dtype and on the device that is wanted.

    Raises:
        ValueError: for another shape.

    >>> rows_of(torch.tensor([1, 2]), 2, 2, torch.zeros(()))
    tensor([[0., 1.],
            [0., 0.]])
    """
    if label is None:
        return like.new_zeros(batch, classes)
    if label.is_floating_point() and label.shape[1:] == (classes,) and len(label) in (1, batch):
        return label.to(like)
    if label.is_floating_point() or label.shape != (batch,):
        raise ValueError(
            f"labels must be whole numbers of shape ({batch},), {classes} for none, or rows of "
            f"shape ({batch}, {classes}); got {label.dtype} of shape {tuple(label.shape)}"
        )
    return torch.eye(classes + 1, classes, dtype=like.dtype, device=like.device)[label]


class ClassConditional(nn.Module):
    """A network that takes a class label where it has classes: what the published ones share.

    >>> net = ClassConditional()
    >>> net.classes = 3
    >>> net.rows(torch.tensor([1, 3]), 2, torch.zeros(()))
    tensor([[0., 1., 0.],
            [0., 0., 0.]])
    """

    classes: int

    @property
    def conditions(self) -> Conditions:
        """What it takes: a label, where it has classes."""
        return Conditions.labels(self.classes)

    def check_condition(self, **condition: Any) -> None:
        """Refuse unknown conditions and labels of a wrong type, shape or value."""
        self.conditions.check(**condition)

    def rows(self, label: Tensor | None, batch: int, like: Tensor) -> Tensor | None:
        """`rows_of` the label; None for a network without classes, which takes none."""
        if self.classes:
            return rows_of(label, self.classes, batch, like)
        if label is not None:
            raise TypeError(NO_CLASSES)
        return None


class _Attention(nn.Module):
    """Self-attention over all pixels, to be added to its input."""

    def __init__(self, channels: int, style: Style) -> None:
        super().__init__()
        self.heads = style.count(channels)
        self.norm = style.norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)

    def forward(self, h: Tensor) -> Tensor:
        return self.out(attend(self.qkv(self.norm(h)), self.heads))


class Block(nn.Module):
    """Two convolutions beside a shortcut, then attention beside another.

        y = W_2 SiLU(condition(norm(W_1 resample(SiLU(norm(h))))))
        h = balance (y + shortcut(resample(h)))

    Args:
        stage: channels, resampling and attention.
        condition: length of the vector that carries clock and label.
        style: what the papers differ in.

    >>> block = Block(Stage("down", 1, 0, 8, 0, 8, False), 4, Style("add", heads=1))
    >>> block(torch.zeros(2, 8, 4, 4), torch.zeros(2, 4)).shape
    torch.Size([2, 8, 2, 2])
    """

    def __init__(self, stage: Stage, condition: int, style: Style) -> None:
        super().__init__()
        channels, out = stage.channels + stage.skip, stage.out
        self.style = style
        self.way: Way = "down" if stage.kind == "down" else "up" if stage.kind == "up" else "keep"
        self.norm1 = style.norm(channels)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.modulation = nn.Linear(condition, (2 if style.modulation == "scale" else 1) * out)
        self.norm2 = style.norm(out)
        self.dropout = nn.Dropout(style.dropout) if style.dropout else nn.Identity()
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        mixes = channels != out or (style.mixes and self.way != "keep")
        self.shortcut = nn.Conv2d(channels, out, 1) if mixes else nn.Identity()
        self.attention = _Attention(out, style) if stage.attends else None

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        y = self.conv1(resample(silu(self.norm1(h)), self.way, self.style.taps))
        moved = self.modulation(condition)[:, :, None, None]
        if self.style.modulation == "scale":
            scale, shift = moved.chunk(2, dim=1)
            y = self.norm2(y) * (1 + scale) + shift
        else:
            y = self.norm2(y + moved)
        y = self.conv2(self.dropout(silu(y)))
        h = self.style.balance * (y + self.shortcut(resample(h, self.way, self.style.taps)))
        return h if self.attention is None else self.style.balance * (h + self.attention(h))


class ConvDown(nn.Conv2d):
    """Half the size by a convolution of stride 2 alone.

    >>> ConvDown(8)(torch.zeros(1, 8, 4, 4), torch.zeros(1, 4)).shape
    torch.Size([1, 8, 2, 2])
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, stride=2, padding=1)

    def forward(self, h: Tensor, condition: Tensor | None = None) -> Tensor:
        return super().forward(h)


class ConvUp(nn.Conv2d):
    """Twice the size by repeated pixels and a convolution.

    >>> ConvUp(8)(torch.zeros(1, 8, 4, 4), torch.zeros(1, 4)).shape
    torch.Size([1, 8, 8, 8])
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, h: Tensor, condition: Tensor | None = None) -> Tensor:
        return super().forward(resample(h, "up", (1, 1)))


def check_image(x: Tensor, clock: Tensor, channels: int, levels: int) -> None:
    """Refuse what does not fit a U-Net that halves the size `levels` - 1 times."""
    factor = 2 ** (levels - 1)
    if x.ndim != 4 or x.shape[1] != channels or x.shape[2] % factor or x.shape[3] % factor:
        raise ValueError(
            f"this network takes x of shape (batch, {channels}, height, width) with sides that "
            f"{factor} divides, got {tuple(x.shape)}"
        )
    check_clock(x, clock)


def joined(h: Tensor, skips: list[Tensor], stage: Stage) -> Tensor:
    """The state with the earlier one that its stage wants."""
    return torch.cat((h, skips.pop()), dim=1) if stage.skip else h
