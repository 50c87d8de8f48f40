"""ADM, the U-Net of guided-diffusion and of EDM's ImageNet networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from .._checks import check_choice, check_count, check_number
from .blocks import Block, ClassConditional, ConvDown, ConvUp, Style, check_image, joined, ladder
from .stages import Stage, stages

__all__ = ["ADM"]


class ADM(ClassConditional):
    """The U-Net of Dhariwal & Nichol (2021, arXiv:2105.05233), `net(x, clock, label=None)`.

        condition = SiLU(W_2 SiLU(W_1 (cos, sin)(clock / 10000^(i / n))) + table label)

    Residual blocks that also halve and double the size, scaled and shifted by the condition, with
    multi-head attention at the coarse levels.

    Args:
        channels: of the image.
        width: base number of channels.
        mults: channels of each level, as multiples of `width`.
        blocks: residual blocks per level on the way down; one more on the way up.
        attention: whether each level attends; the middle always does.
        heads: attention heads, or None where `head_channels` decides.
        head_channels: channels of one head; 64 in the paper.
        classes: number of classes K; 0 for a network without labels.
        out_channels: of the output, by default `channels`; twice that for learned variances.
        modulation: "scale" for scale and shift, "add" for a sum.
        sizing: "block" where residual blocks change the size, "conv" where convolutions do, as in
            improved-diffusion.
        groups: most groups of a normalisation.
        group_channels: fewest channels of a group; 4 in EDM's networks, 1 in guided-diffusion.
        dropout: probability inside the blocks, in training.

    Attributes:
        config: the arguments above; `ADM(**net.config)` builds the same network.

    Raises:
        ValueError: for arguments that do not fit together.

    >>> net = ADM(3, 16, (1, 2), 1, (False, True), head_channels=8, classes=10)
    >>> net(torch.zeros(2, 3, 8, 8), torch.tensor([3.0, 500.0]), torch.tensor([3, 10])).shape
    torch.Size([2, 3, 8, 8])
    """

    def __init__(
        self,
        channels: int = 3,
        width: int = 192,
        mults: Sequence[float] = (1, 2, 3, 4),
        blocks: int = 3,
        attention: Sequence[bool] = (False, True, True, True),
        *,
        heads: int | None = None,
        head_channels: int | None = None,
        classes: int = 0,
        out_channels: int | None = None,
        modulation: Literal["scale", "add"] = "scale",
        sizing: Literal["block", "conv"] = "block",
        groups: int = 32,
        group_channels: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_choice("modulation", modulation, ("scale", "add"))
        check_choice("sizing", sizing, ("block", "conv"))
        if heads is None and head_channels is None:
            head_channels = 64
        channels, width = check_count("channels", channels), check_count("width", width, 4)
        if width % 2:
            raise ValueError(f"width must be even, got {width}")
        self.channels, self.classes = channels, check_count("classes", classes, 0)
        out_channels = channels if out_channels is None else check_count("out", out_channels)
        self.config: dict[str, Any] = {
            "channels": channels, "width": width, "mults": list(mults), "blocks": blocks,
            "attention": list(attention), "heads": heads, "head_channels": head_channels,
            "classes": classes, "out_channels": out_channels, "modulation": modulation,
            "sizing": sizing, "groups": groups, "group_channels": group_channels,
            "dropout": dropout,
        }  # fmt: skip
        style = Style(
            modulation,
            groups=check_count("groups", groups),
            group_channels=check_count("group_channels", group_channels),
            heads=heads,
            head_channels=head_channels,
            dropout=check_number("dropout", dropout, 0.0, 1.0, open_high=True),
        )
        widths = [check_count("mults x width", int(mult * width)) for mult in mults]
        self.levels = len(widths)
        self.down, self.up = stages(channels, widths[0], widths, blocks, attention)
        condition = 4 * width
        self.inner = nn.Linear(width, condition)
        self.outer = nn.Linear(condition, condition)
        self.label = nn.Linear(classes, condition, bias=False) if classes else None

        def made(stage: Stage) -> nn.Module:
            if stage.kind == "inlet":
                return nn.Conv2d(stage.channels, stage.out, 3, padding=1)
            if sizing == "conv" and stage.kind in ("down", "up"):
                return (ConvDown if stage.kind == "down" else ConvUp)(stage.out)
            return Block(stage, condition, style)

        self.encoder = nn.ModuleList(made(stage) for stage in self.down)
        self.decoder = nn.ModuleList(made(stage) for stage in self.up)
        self.norm = style.norm(widths[0])
        self.outlet = nn.Conv2d(widths[0], out_channels, 3, padding=1)
        nn.init.zeros_(self.outlet.weight)

    def forward(self, x: Tensor, clock: Tensor, label: Tensor | None = None) -> Tensor:
        """Evaluate the network.

        Args:
            x: (batch, channels, height, width), sides divisible by 2^(levels - 1).
            clock: (batch,).
            label: whole numbers (batch,), K for none; or rows of weights (batch, K).
        """
        check_image(x, clock, self.channels, self.levels)
        dtype = self.outlet.weight.dtype
        phase = ladder(clock, self.inner.in_features // 2, self.inner.in_features // 2)
        h = torch.cat((phase.cos(), phase.sin()), dim=1).to(dtype)
        condition = self.outer(silu(self.inner(h)))
        rows = self.rows(label, len(x), self.outlet.weight)
        if self.label is not None:
            condition = condition + self.label(rows)
        condition = silu(condition)
        h, skips = x.to(dtype), []
        for stage, part in zip(self.down, self.encoder, strict=True):
            h = part(h) if stage.kind == "inlet" else part(h, condition)
            skips.append(h)
        for stage, part in zip(self.up, self.decoder, strict=True):
            h = part(joined(h, skips, stage), condition)
        return self.outlet(silu(self.norm(h)))
