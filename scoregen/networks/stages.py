"""The order of blocks that the published U-Nets share: down through the levels, and up again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .._checks import check_count, check_flags

__all__ = ["Stage", "stages"]


@dataclass(frozen=True)
class Stage:
    """One step of a U-Net.

    Args:
        kind: "inlet", the first convolution; "block"; "down" and "up", blocks that halve and double
            the size; "middle", one of the two blocks at the coarsest size.
        level: 0 for full size.
        index: which of the blocks of its kind and level.
        channels: channels of the state that enters.
        skip: channels of the earlier state that is joined to it; 0 for none.
        out: channels that leave.
        attends: whether self-attention follows.

    >>> Stage("block", 0, 1, 64, 32, 64, False).attends
    False
    """

    kind: Literal["inlet", "block", "down", "middle", "up"]
    level: int
    index: int
    channels: int
    skip: int
    out: int
    attends: bool


def stages(
    channels: int,
    first: int,
    widths: Sequence[int],
    blocks: int,
    attention: Sequence[bool],
    *,
    upward: Literal["each", "last"] = "each",
) -> tuple[list[Stage], list[Stage]]:
    """The two halves of a U-Net, as lists.

    Every state of the first half, that of the inlet included, is joined once in the second half,
    which therefore has one block more per level.

    Args:
        channels: of the image.
        first: channels behind the inlet.
        widths: channels of each level.
        blocks: per level in the first half.
        attention: whether a level attends; the first of the two middle blocks always does.
        upward: in the second half, "each" block of such a level attends, or the "last" one alone.

    Raises:
        ValueError: unless every level has a width and a flag.

    >>> encoder, decoder = stages(3, 8, (8, 16), 1, (False, True))
    >>> [(s.kind, s.channels, s.out) for s in encoder]
    [('inlet', 3, 8), ('block', 8, 8), ('down', 8, 8), ('block', 8, 16)]
    >>> [(s.kind, s.channels, s.skip) for s in decoder][:4]
    [('middle', 16, 0), ('middle', 16, 0), ('block', 16, 16), ('block', 16, 8)]
    """
    attention = check_flags("attention", attention)
    blocks = check_count("blocks", blocks)
    if not widths or len(widths) != len(attention):
        raise ValueError(
            "every level needs a width and a flag of attention, got "
            f"{len(widths)} widths and {len(attention)} flags"
        )
    last = len(widths) - 1
    encoder = [Stage("inlet", 0, 0, channels, 0, first, False)]
    h = first
    for level, width in enumerate(widths):
        if level:
            encoder.append(Stage("down", level, 0, h, 0, h, False))
        for i in range(blocks):
            encoder.append(Stage("block", level, i, h, 0, width, attention[level]))
            h = width
    skips = [stage.out for stage in encoder]
    decoder: list[Stage] = []
    for level in reversed(range(len(widths))):
        if level == last:
            decoder += [Stage("middle", level, i, h, 0, h, i == 0) for i in range(2)]
        else:
            decoder.append(Stage("up", level, 0, h, 0, h, False))
        for i in range(blocks + 1):
            attends = attention[level] and (upward == "each" or i == blocks)
            decoder.append(Stage("block", level, i, h, skips.pop(), widths[level], attends))
            h = widths[level]
    return encoder, decoder
