"""The magnitude-preserving U-Net of EDM2."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, silu

from .._checks import check_count, check_counts, check_number
from .blocks import ClassConditional, attend, check_image, joined, resample, shares
from .stages import Stage, stages

__all__ = ["EDM2"]

UNIT = 0.596  # root mean square of SiLU of a normal variable


def _unit(x: Tensor, dim: int | tuple[int, ...], eps: float = 1e-4) -> Tensor:
    """x over its root mean square along some axes, to which eps is added."""
    size = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    count = x.numel() / size.numel()
    return x / (eps + size / math.sqrt(count))


def _blend(a: Tensor, b: Tensor, t: float) -> Tensor:
    """(1 - t) a + t b, of unit magnitude where a and b are so (equation 88)."""
    return ((1 - t) * a + t * b) / math.hypot(1 - t, t)


def _active(x: Tensor) -> Tensor:
    """SiLU of unit magnitude (equation 81)."""
    return silu(x) / UNIT


class _Weight(nn.Module):
    """A linear layer or convolution without bias, its weight used at unit magnitude (equation 47).

    In training the weight itself is brought back to unit magnitude first (equation 66).
    """

    def __init__(self, channels: int, out: int, kernel: int = 0) -> None:
        super().__init__()
        shape = (out, channels, kernel, kernel) if kernel else (out, channels)
        drawn = torch.randn(shape, generator=torch.Generator().manual_seed(out * 1009 + channels))
        self.weight = nn.Parameter(drawn)

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        axes = tuple(range(1, self.weight.ndim))
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        if self.training:
            with torch.no_grad():
                self.weight.copy_(_unit(self.weight.to(wide), axes))
        weight = _unit(self.weight.to(wide), axes)
        weight = (weight * (gain / math.sqrt(weight[0].numel()))).to(x.dtype)
        if weight.ndim == 2:
            return linear(x, weight)
        return conv2d(x, weight, padding=weight.shape[-1] // 2)


class _Fourier(nn.Module):
    """sqrt(2) cos(frequency x + phase), frequencies normal, phases uniform (equation 75)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(features)
        self.register_buffer("frequencies", 2 * math.pi * torch.randn(features, generator=g))
        self.register_buffer("phases", 2 * math.pi * torch.rand(features, generator=g))

    def forward(self, clock: Tensor) -> Tensor:
        frequencies: Any = self.frequencies
        phases: Any = self.phases
        dtype = torch.promote_types(clock.dtype, torch.float32)
        phase = clock.to(dtype)[:, None] * frequencies.to(dtype) + phases.to(dtype)
        return math.sqrt(2) * phase.cos()


class _Block(nn.Module):
    """Figure 21: a residual branch of two convolutions and, where wanted, attention by cosines."""

    def __init__(
        self,
        stage: Stage,
        side: Literal["encoder", "decoder"],
        condition: int,
        head_channels: int,
        balances: tuple[float, float],
        clip: float,
    ) -> None:
        super().__init__()
        channels, out = stage.channels + stage.skip, stage.out
        self.stage, self.side, self.balances, self.clip = stage, side, balances, clip
        self.gain = nn.Parameter(torch.zeros(()))
        self.conv1 = _Weight(out if side == "encoder" else channels, out, 3)
        self.modulation = _Weight(condition, out)
        self.conv2 = _Weight(out, out, 3)
        self.shortcut = _Weight(channels, out, 1) if channels != out else None
        if stage.attends:
            shares(out, head_channels, "channels for a head")
        self.heads = out // head_channels
        self.qkv = _Weight(out, 3 * out, 1) if stage.attends else None
        self.out = _Weight(out, out, 1) if stage.attends else None

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        if self.stage.kind in ("down", "up"):
            h = resample(h, "down" if self.stage.kind == "down" else "up", (1, 1))
        if self.side == "encoder":
            h = h if self.shortcut is None else self.shortcut(h)
            h = _unit(h, 1)
        y = self.conv1(_active(h))
        y = _active(y * (1 + self.modulation(condition, self.gain))[:, :, None, None])
        y = self.conv2(y)
        if self.side == "decoder" and self.shortcut is not None:
            h = self.shortcut(h)
        h = _blend(h, y, self.balances[0])
        if self.qkv is not None and self.out is not None:
            qkv = self.qkv(h)
            split = qkv.reshape(len(h), 3 * self.heads, -1, *h.shape[2:])  # a head of q, k or v
            y = self.out(attend(_unit(split, 2).reshape(qkv.shape), self.heads))
            h = _blend(h, y, self.balances[1])
        return h.clamp(-self.clip, self.clip)


class EDM2(ClassConditional):
    """The U-Net of Karras et al. (2024, arXiv:2312.02696), `net(x, clock, label=None)`.

    Configuration G: no biases and no normalisations by groups; weights, sums and concatenations
    keep the magnitude of what passes.

    Args:
        channels: of the image.
        width: base number of channels.
        mults: channels of each level, as multiples of `width`.
        blocks: residual blocks per level on the way down; one more on the way up.
        attention: whether each level attends; the middle always does.
        head_channels: channels of one attention head.
        classes: number of classes K; 0 for a network without labels.
        noise_width: Fourier features; channels of the first level unless given.
        condition: length of the vector that carries clock and label; the most channels of a level
            unless given.
        label_balance: share of the label in that vector, between 0 and 1.
        skip_balance: share of the earlier state where two are joined.
        block_balance: share of the residual branch.
        attention_balance: share of the attention branch.
        clip: greatest size of an activation; inf for any.

    Attributes:
        config: the arguments above; `EDM2(**net.config)` builds the same network.

    Raises:
        ValueError: for arguments that do not fit together.

    >>> net = EDM2(3, 16, (1, 2), 1, (False, True), head_channels=8, classes=10)
    >>> net(torch.zeros(2, 3, 8, 8), torch.zeros(2), torch.tensor([3, 10])).shape
    torch.Size([2, 3, 8, 8])
    """

    def __init__(
        self,
        channels: int = 4,
        width: int = 192,
        mults: Sequence[int] = (1, 2, 3, 4),
        blocks: int = 3,
        attention: Sequence[bool] = (False, False, True, True),
        *,
        head_channels: int = 64,
        classes: int = 0,
        noise_width: int | None = None,
        condition: int | None = None,
        label_balance: float = 0.5,
        skip_balance: float = 0.5,
        block_balance: float = 0.3,
        attention_balance: float = 0.3,
        clip: float = 256.0,
    ) -> None:
        super().__init__()
        channels, width = check_count("channels", channels), check_count("width", width)
        mults = check_counts("mults", mults)
        self.channels, self.classes = channels, check_count("classes", classes, 0)
        self.label_balance = check_number("label_balance", label_balance, 0.0, 1.0)
        self.skip_balance = check_number("skip_balance", skip_balance, 0.0, 1.0)
        balances = (
            check_number("block_balance", block_balance, 0.0, 1.0),
            check_number("attention_balance", attention_balance, 0.0, 1.0),
        )
        clip = check_number("clip", clip, 0.0, open_low=True, infinite=True)
        check_count("head_channels", head_channels)
        widths = [mult * width for mult in mults]
        noise_width = widths[0] if noise_width is None else check_count("noise_width", noise_width)
        condition = max(widths) if condition is None else check_count("condition", condition)
        self.config: dict[str, Any] = {
            "channels": channels, "width": width, "mults": list(mults), "blocks": blocks,
            "attention": list(attention), "head_channels": head_channels, "classes": classes,
            "noise_width": noise_width, "condition": condition, "label_balance": label_balance,
            "skip_balance": skip_balance, "block_balance": block_balance,
            "attention_balance": attention_balance, "clip": clip,
        }  # fmt: skip
        self.levels = len(widths)
        self.down, self.up = stages(channels + 1, widths[0], widths, blocks, attention)
        self.fourier = _Fourier(noise_width)
        self.noise = _Weight(noise_width, condition)
        self.label = _Weight(classes, condition) if classes else None
        shared = (condition, head_channels, balances, clip)
        self.encoder = nn.ModuleList(
            _Weight(stage.channels, stage.out, 3)
            if stage.kind == "inlet"
            else _Block(stage, "encoder", *shared)
            for stage in self.down
        )
        self.decoder = nn.ModuleList(_Block(stage, "decoder", *shared) for stage in self.up)
        self.outlet = _Weight(widths[0], channels, 3)
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, clock: Tensor, label: Tensor | None = None) -> Tensor:
        """Evaluate the network.

        Args:
            x: (batch, channels, height, width), sides divisible by 2^(levels - 1).
            clock: (batch,), log(sigma) / 4.
            label: whole numbers (batch,), K for none; or rows of weights (batch, K).
        """
        check_image(x, clock, self.channels, self.levels)
        dtype = self.outlet.weight.dtype
        condition = self.noise(self.fourier(clock).to(dtype))
        rows = self.rows(label, len(x), self.outlet.weight)
        if self.label is not None and rows is not None:
            given = self.label(math.sqrt(self.classes) * rows)
            condition = _blend(condition, given, self.label_balance)
        condition = _active(condition)
        x = x.to(dtype)
        h, skips = torch.cat((x, torch.ones_like(x[:, :1])), dim=1), []  # ones stand for a bias
        for stage, part in zip(self.down, self.encoder, strict=True):
            h = part(h) if stage.kind == "inlet" else part(h, condition)
            skips.append(h)
        for stage, part in zip(self.up, self.decoder, strict=True):
            if stage.skip:
                h, skips[-1] = self._weighted(h, skips[-1])
            h = part(joined(h, skips, stage), condition)
        return self.outlet(h, self.gain)

    def _weighted(self, h: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """Two states, to be joined at unit magnitude and in their shares (equation 103)."""
        t, a, b = self.skip_balance, h.shape[1], skip.shape[1]
        whole = math.sqrt((a + b) / ((1 - t) ** 2 + t**2))
        return whole * (1 - t) / math.sqrt(a) * h, whole * t / math.sqrt(b) * skip
