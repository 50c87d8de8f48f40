"""guided- and improved-diffusion's files: the architecture is read off their keys and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..networks import ADM
from ..networks.blocks import Block
from .weights import fill, read, renamed

__all__ = ["guided_network"]

BLOCK = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "modulation",
    "out_layers.0": "norm2", "out_layers.3": "conv2", "skip_connection": "shortcut",
}  # fmt: skip
ATTENTION = {"norm": "attention.norm", "qkv": "attention.qkv", "proj_out": "attention.out"}
TOP = {
    "time_embed.0": "inner", "time_embed.2": "outer", "label_emb": "label", "out.0": "norm",
    "out.2": "outlet",
}  # fmt: skip


def guided_network(
    path: str | Path,
    *,
    heads: int | None = None,
    head_channels: int | None = None,
    new_attention_order: bool = False,
) -> ADM:
    """An `ADM` with the weights of a `.pt` file, whose keys and shapes state all but the heads.

    Args:
        path: of the file, a bare state dict.
        heads: num_heads; or head_channels, num_head_channels.
        head_channels: channels of a head; one of the two is needed.
        new_attention_order: use_new_attention_order.

    Raises:
        FileNotFoundError: without the file.
        TypeError: without heads and head_channels.
        ValueError: for a file that holds no such network.

    >>> guided_network("absent.pt", head_channels=64)
    Traceback (most recent call last):
        ...
    FileNotFoundError: no file absent.pt; nothing is downloaded: fetch it first
    """
    content = read(path)
    source = Path(path).name
    if (heads is None) == (head_channels is None):
        raise TypeError(
            "the file does not state the attention heads: give heads= (the flag num_heads) or "
            "head_channels= (num_head_channels), one of the two"
        )
    if not isinstance(content, Mapping) or "time_embed.0.weight" not in content:
        raise ValueError(f"{source} holds no state dict of a U-Net of guided-diffusion")
    if "output_blocks.0.0.in_layers.0.weight" not in content:
        raise ValueError(
            f"{source} has no output blocks: a classifier has no score; use its gradient with "
            "guidance.Classifier"
        )
    tensors: dict[str, Tensor] = {
        name: value for name, value in content.items() if isinstance(value, Tensor)
    }
    net = ADM(**_architecture(tensors, source), heads=heads, head_channels=head_channels)
    names, counts = _names(net)
    found = renamed(
        {name: _squeezed(name, value) for name, value in tensors.items()},
        names,
        "kind" if new_attention_order else "head",
        counts,
    )
    if "label.weight" in found:
        found["label.weight"] = found["label.weight"].t()
    fill(net, found, source)
    return net.eval()


def _squeezed(name: str, value: Tensor) -> Tensor:
    """Attention's layers along pixels, as 1 x 1 convolutions."""
    return value[..., None] if re.search(r"(qkv|proj_out)\.weight$", name) else value


def _architecture(tensors: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """The arguments of `ADM` but for the heads."""
    inputs = [f"input_blocks.{i}" for i in range(_count(tensors, "input_blocks"))]
    outputs = _count(tensors, "output_blocks")
    # the way up ends each level but the finest with a third kind of part, which shows their length
    sized = re.compile(r"output_blocks\.(\d+)\.([12])\.(in_layers\.0|conv)\.weight")
    ends = [match for name in tensors if (match := sized.fullmatch(name))]
    blocks = min((int(match[1]) for match in ends), default=outputs - 1)
    levels = len(ends) + 1
    if len(inputs) != levels * (blocks + 1) or outputs != levels * (blocks + 1):
        raise ValueError(
            f"{source} has {len(inputs)} input and {outputs} output blocks, which are not "
            f"{levels} levels of {blocks} and {blocks + 1}; it is no U-Net of guided-diffusion"
        )
    width = tensors["time_embed.0.weight"].shape[1]
    lasts = [inputs[level * (blocks + 1) + blocks] for level in range(levels)]
    widths = [len(tensors[f"{last}.0.in_layers.2.weight"]) for last in lasts]
    first = inputs[1]
    scales = len(tensors[f"{first}.0.emb_layers.1.weight"]) == 2 * widths[0]
    convolves = any(match[3] == "conv" for match in ends)
    return {
        "channels": tensors["input_blocks.0.0.weight"].shape[1],
        "width": width,
        "mults": [w / width for w in widths],
        "blocks": blocks,
        "attention": [f"{last}.1.qkv.weight" in tensors for last in lasts],
        "classes": len(tensors["label_emb.weight"]) if "label_emb.weight" in tensors else 0,
        "out_channels": len(tensors["out.2.weight"]),
        "modulation": "scale" if scales else "add",
        "sizing": "conv" if convolves else "block",
        "group_channels": 1,
    }


def _count(tensors: Mapping[str, Tensor], part: str) -> int:
    return 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith(f"{part}."))


def _names(net: ADM) -> tuple[dict[str, str], dict[str, int]]:
    """Names there and here, and the number of heads of each attention layer."""
    names = dict(TOP)

    def place(there: str, here: str, attention: str | None = None) -> None:
        names.update({f"{there}.{a}": f"{here}.{b}" for a, b in BLOCK.items()})
        if attention is not None:
            names.update({f"{attention}.{a}": f"{here}.{b}" for a, b in ATTENTION.items()})

    for i, stage in enumerate(net.down):
        there, here = f"input_blocks.{i}", f"encoder.{i}"
        if stage.kind == "inlet":
            names[f"{there}.0"] = here
        elif isinstance(net.encoder[i], Block):
            place(f"{there}.0", here, f"{there}.1" if stage.attends else None)
        else:
            names[f"{there}.0.op"] = here
    place("middle_block.0", "decoder.0", "middle_block.1")
    place("middle_block.2", "decoder.1")
    count, part = -1, 0  # the block that a part of the way up belongs to, and its place there
    for i, stage in enumerate(net.up):
        here = f"decoder.{i}"
        if stage.kind == "block":
            count, part = count + 1, 2 if stage.attends else 1
            there = f"output_blocks.{count}"
            place(f"{there}.0", here, f"{there}.1" if stage.attends else None)
        elif stage.kind == "up" and isinstance(net.decoder[i], Block):
            place(f"output_blocks.{count}.{part}", here)
        elif stage.kind == "up":
            names[f"output_blocks.{count}.{part}.conv"] = here
    parts = [(f"encoder.{i}", part) for i, part in enumerate(net.encoder)]
    parts += [(f"decoder.{i}", part) for i, part in enumerate(net.decoder)]
    counts = {
        f"{name}.attention.qkv": part.attention.heads
        for name, part in parts
        if isinstance(part, Block) and part.attention is not None
    }
    return names, counts
