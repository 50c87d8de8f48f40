"""DDPM++ and NCSN++, the U-Nets of score_sde and of EDM's CIFAR-10, FFHQ and AFHQ networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from .._checks import check_choice, check_count, check_counts, check_number
from .blocks import Block, ClassConditional, Style, check_image, joined, ladder, resample
from .stages import Stage, stages

__all__ = ["NCSNpp"]


class _Head(nn.Module):
    """Normalisation, SiLU and a convolution to the image's channels."""

    def __init__(self, channels: int, out: int, style: Style) -> None:
        super().__init__()
        self.norm = style.norm(channels)
        self.conv = nn.Conv2d(channels, out, 3, padding=1)
        nn.init.zeros_(self.conv.weight)

    def forward(self, h: Tensor) -> Tensor:
        return self.conv(silu(self.norm(h)))


class NCSNpp(ClassConditional):
    """The U-Nets of Song et al. (2021, arXiv:2011.13456), `net(x, clock, label=None)`.

        condition = SiLU(W_2 SiLU(W_1 (sin, cos)(clock f)))

    The sums of its blocks are divided by sqrt(2). The two networks of the paper:

    | | embedding | encoder | decoder | taps |
    |---|---|---|---|---|
    | DDPM++ | "positional" | "plain" | "plain" | (1, 1) |
    | NCSN++ | "fourier" | "residual" | "plain" | (1, 3, 3, 1) |
    | NCSN++, 256 pixels and more | "fourier" | "skip" | "skip" | (1, 3, 3, 1) |

    Args:
        channels: of the image.
        width: base number of channels.
        mults: channels of each level, as multiples of `width`.
        blocks: residual blocks per level on the way down; one more on the way up.
        attention: whether each level attends; the middle always does.
        embedding: "positional" for n frequencies 10000^(-i / (n - 1)), "fourier" for random ones.
        encoder: whether the image enters every level: "plain" for no, "skip" through a 1 x 1
            convolution, "residual" through a 3 x 3 convolution, level after level.
        decoder: "plain" for one output at the end, "skip" for the sum of one per level.
        taps: the filter of up- and downsampling.
        classes: number of classes K; 0 for a network without labels.
        out_channels: of the output, by default `channels`.
        scale: of the random frequencies.
        dropout: probability inside the blocks, in training.

    Attributes:
        config: the arguments above; `NCSNpp(**net.config)` builds the same network.

    Raises:
        ValueError: for arguments that do not fit together.

    >>> net = NCSNpp(3, 16, (1, 2), 1, (False, True))
    >>> net(torch.zeros(2, 3, 8, 8), torch.tensor([3.0, 500.0])).shape
    torch.Size([2, 3, 8, 8])
    """

    def __init__(
        self,
        channels: int = 3,
        width: int = 128,
        mults: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 4,
        attention: Sequence[bool] = (False, True, False, False),
        *,
        embedding: Literal["positional", "fourier"] = "positional",
        encoder: Literal["plain", "skip", "residual"] = "plain",
        decoder: Literal["plain", "skip"] = "plain",
        taps: Sequence[int] = (1, 1),
        classes: int = 0,
        out_channels: int | None = None,
        scale: float = 16.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_choice("embedding", embedding, ("positional", "fourier"))
        check_choice("encoder", encoder, ("plain", "skip", "residual"))
        check_choice("decoder", decoder, ("plain", "skip"))
        self.embedding, self.entry, self.exit = embedding, encoder, decoder
        channels, width = check_count("channels", channels), check_count("width", width, 4)
        mults, taps = check_counts("mults", mults), check_counts("taps", taps)
        if width % 4 or len(taps) % 2 or not taps:
            raise ValueError(
                f"width must be divisible by 4 and taps of even length, got {width} and {taps}"
            )
        self.channels, self.classes = channels, check_count("classes", classes, 0)
        self.taps = tuple(taps)
        out_channels = channels if out_channels is None else check_count("out", out_channels)
        self.config: dict[str, Any] = {
            "channels": channels, "width": width, "mults": list(mults), "blocks": blocks,
            "attention": list(attention), "embedding": embedding, "encoder": encoder,
            "decoder": decoder, "taps": list(taps), "classes": classes,
            "out_channels": out_channels, "scale": scale, "dropout": dropout,
        }  # fmt: skip
        style = Style(
            "add",
            math.sqrt(0.5),
            1e-6,
            heads=1,
            taps=self.taps,
            mixes=True,
            dropout=check_number("dropout", dropout, 0.0, 1.0, open_high=True),
        )
        widths = [mult * width for mult in mults]
        self.levels = len(widths)
        self.down, self.up = stages(channels, width, widths, blocks, attention, upward="last")
        if embedding == "fourier":
            # part of the file: a trained network is nothing without its frequencies
            drawn = torch.randn(width, generator=torch.Generator().manual_seed(0))
            self.register_buffer("frequencies", scale * drawn)
        features = 2 * width if embedding == "fourier" else width
        condition = 4 * width
        self.label = nn.Linear(classes, features) if classes else None
        self.inner = nn.Linear(features, condition)
        self.outer = nn.Linear(condition, condition)

        def made(stage: Stage) -> nn.Module:
            if stage.kind == "inlet":
                return nn.Conv2d(stage.channels, stage.out, 3, padding=1)
            return Block(stage, condition, style)

        self.encoder = nn.ModuleList(made(stage) for stage in self.down)
        self.decoder = nn.ModuleList(made(stage) for stage in self.up)
        self.pyramid = nn.ModuleList()  # what the image passes on its own way down
        entering = channels
        for stage in self.down:
            if stage.kind == "down" and encoder == "skip":
                self.pyramid.append(nn.Conv2d(channels, stage.out, 1))
            if stage.kind == "down" and encoder == "residual":
                edge = 1 + (len(taps) - 1) // 2  # for the convolution and the filter behind it
                self.pyramid.append(nn.Conv2d(entering, stage.out, 3, padding=edge))
                entering = stage.out
        ends = reversed(widths) if decoder == "skip" else widths[:1]
        self.heads = nn.ModuleList(_Head(end, out_channels, style) for end in ends)

    def forward(self, x: Tensor, clock: Tensor, label: Tensor | None = None) -> Tensor:
        """Evaluate the network.

        Args:
            x: (batch, channels, height, width), sides divisible by 2^(levels - 1).
            clock: (batch,).
            label: whole numbers (batch,), K for none; or rows of weights (batch, K).
        """
        check_image(x, clock, self.channels, self.levels)
        condition = self._condition(clock, label, len(x))
        h = image = x.to(condition.dtype)
        skips: list[Tensor] = []
        pyramid = iter(self.pyramid)
        for stage, part in zip(self.down, self.encoder, strict=True):
            h = part(h) if stage.kind == "inlet" else part(h, condition)
            if stage.kind == "down" and self.entry == "skip":
                image = resample(image, "down", self.taps)
                h = h + next(pyramid)(image)
            if stage.kind == "down" and self.entry == "residual":
                image = resample(next(pyramid)(image), "down", self.taps, edge=0)
                h = image = (h + image) * math.sqrt(0.5)
            skips.append(h)
        out: Tensor | None = None
        heads = iter(self.heads)
        for i, (stage, part) in enumerate(zip(self.up, self.decoder, strict=True)):
            h = part(joined(h, skips, stage), condition)
            last = i + 1 == len(self.up) or self.up[i + 1].kind == "up"
            if last and (self.exit == "skip" or stage.level == 0):
                here = next(heads)(h)
                out = here if out is None else resample(out, "up", self.taps) + here
        if out is None:
            raise ValueError("a U-Net without levels has no output")
        return out

    def _condition(self, clock: Tensor, label: Tensor | None, batch: int) -> Tensor:
        """The vector that carries clock and label, (batch, 4 width)."""
        count = self.inner.in_features // 2
        if self.embedding == "fourier":
            frequencies: Any = self.frequencies
            dtype = torch.promote_types(clock.dtype, torch.float32)
            phase = clock.to(dtype)[:, None] * (2 * math.pi * frequencies).to(dtype)
        else:
            phase = ladder(clock, count, count - 1)
        h = torch.cat((phase.sin(), phase.cos()), dim=1).to(self.inner.weight.dtype)
        rows = self.rows(label, batch, self.inner.weight)
        if self.label is not None and rows is not None:
            h = h + self.label(math.sqrt(self.classes) * rows)
        return silu(self.outer(silu(self.inner(h))))
