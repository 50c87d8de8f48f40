"""Tensors of a foreign file under the names of a network here, checked by keys and shapes."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.serialization import get_unsafe_globals_in_checkpoint

from .._checks import check_path
from ..networks.stages import Stage

__all__ = ["Order", "edm_names", "fill", "nin_merged", "read", "renamed", "score_sde_names"]

Order = Literal["channel", "head", "kind"]
Halves = tuple[Iterable[Stage], Iterable[Stage]]

EDM_BLOCK = {
    "norm0": "norm1", "conv0": "conv1", "affine": "modulation", "norm1": "norm2",
    "conv1": "conv2", "skip": "shortcut", "norm2": "attention.norm", "qkv": "attention.qkv",
    "proj": "attention.out",
}  # fmt: skip
EDM2_BLOCK = {
    "emb_gain": "gain", "conv_res0": "conv1", "emb_linear": "modulation", "conv_res1": "conv2",
    "conv_skip": "shortcut", "attn_qkv": "qkv", "attn_proj": "out",
}  # fmt: skip
SONG_BLOCK = {
    "GroupNorm_0": "norm1", "Conv_0": "conv1", "Dense_0": "modulation", "GroupNorm_1": "norm2",
    "Conv_1": "conv2", "Conv_2": "shortcut",
}  # fmt: skip


def existing(path: str | Path) -> Path:
    """The path of a file that is there.

    >>> existing("absent.pt")
    Traceback (most recent call last):
        ...
    FileNotFoundError: no file absent.pt; nothing is downloaded: fetch it first
    """
    path = check_path("path", path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; nothing is downloaded: fetch it first")
    return path


def read(path: str | Path) -> Any:
    """What torch.save wrote, by weights alone: nothing in the file is run.

    Raises:
        FileNotFoundError: without it.
        ValueError: for a file that holds more than tensors and plain data.

    >>> read("absent.pt")
    Traceback (most recent call last):
        ...
    FileNotFoundError: no file absent.pt; nothing is downloaded: fetch it first
    """
    path = existing(path)
    # checked beforehand, because torch's own refusal advises to load such a file unsafely
    foreign = (
        get_unsafe_globals_in_checkpoint(path) if zipfile.is_zipfile(path) else ["another format"]
    )
    if foreign:
        raise ValueError(
            f"{path.name} is truncated, of another format than torch's since 1.6, or holds Python "
            f"objects, which are never loaded: {', '.join(foreign)}"
        )
    return torch.load(path, map_location="cpu", weights_only=True)


def fill(net: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load tensors into a network whose keys and shapes they must have, one for one.

    Args:
        net: the network, changed in place; values are cast to its dtypes.
        tensors: by the names of its `state_dict`.
        source: what they come from, for the messages.

    Raises:
        ValueError: for missing or surplus keys, other shapes, and values that are not finite.

    >>> fill(nn.Linear(2, 1), {"weight": torch.ones(1, 2)}, "net.pt")
    Traceback (most recent call last):
        ...
    ValueError: net.pt does not fit Linear: it lacks bias. The architecture's arguments must be
    those it was trained with
    """
    own = net.state_dict()
    lacking = sorted(set(own) - set(tensors))
    surplus = sorted(set(tensors) - set(own))
    other = [
        f"{name} is {tuple(tensors[name].shape)} where {tuple(value.shape)} is needed"
        for name, value in own.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    wrong = [
        f"it lacks {_some(lacking)}" if lacking else "",
        f"{_some(surplus)} in it has no place" if surplus else "",
        _some(other),
    ]
    if any(wrong):
        raise ValueError(
            f"{source} does not fit {type(net).__name__}: {'; '.join(w for w in wrong if w)}. "
            "The architecture's arguments must be those it was trained with"
        )
    broken = [name for name, value in tensors.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise ValueError(f"{source} has weights that are not finite: {_some(broken)}")
    net.load_state_dict(dict(tensors))


def _some(names: list[str]) -> str:
    rest = len(names) - 3
    return ", ".join(names[:3]) + (f" and {rest} more" if rest > 0 else "")


def renamed(
    tensors: Mapping[str, Tensor],
    names: Mapping[str, str],
    order: Order = "kind",
    heads: Mapping[str, int] | None = None,
) -> dict[str, Tensor]:
    """Tensors under other names; the channels of queries, keys and values in the order here.

    Args:
        tensors: as in the file.
        names: of a module or tensor there, and here; the longest that fits counts.
        order: how the channels of "qkv" lie in the file: all queries, keys and values ("kind", as
            here), a head's queries, keys and values ("head"), or a channel's three ("channel").
        heads: number of heads by the name of the module here, for "head".

    >>> renamed({"a.b.weight": torch.ones(1)}, {"a.b": "c"})
    {'c.weight': tensor([1.])}
    """
    found: dict[str, Tensor] = {}
    for key, value in tensors.items():
        parts = key.split(".")
        there = next(
            (".".join(parts[:n]) for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in names),
            None,
        )
        name = key if there is None else names[there] + key[len(there) :]
        module = name.rpartition(".")[0]
        if module.endswith("qkv"):
            value = _ordered(value, order, 1 if heads is None else heads[module])
        found[name] = value
    return found


def _ordered(value: Tensor, order: Order, heads: int) -> Tensor:
    """Output channels of a layer for queries, keys and values as (three, heads, channels)."""
    if order == "kind":
        return value
    groups = len(value) // 3 if order == "channel" else heads
    split = value.reshape(groups, 3, len(value) // (3 * groups), *value.shape[1:])
    return split.transpose(0, 1).reshape(value.shape)


def edm_names(
    halves: Halves, resolution: int, block: Mapping[str, str], top: Mapping[str, str]
) -> dict[str, str]:
    """EDM's and EDM2's names of a U-Net's modules, and the names here.

    >>> stage = Stage("block", 1, 0, 8, 0, 8, False)
    >>> edm_names(([stage], []), 32, {"conv0": "conv1"}, {})
    {'enc.16x16_block0.conv0': 'encoder.0.conv1'}
    """
    names = dict(top)
    for half, mine, there in zip(halves, ("encoder", "decoder"), ("enc", "dec"), strict=True):
        for i, stage in enumerate(half):
            size = resolution >> stage.level
            kind = {"inlet": "conv", "middle": f"in{stage.index}", "block": f"block{stage.index}"}
            place = f"{there}.{size}x{size}_{kind.get(stage.kind, stage.kind)}"
            if stage.kind == "inlet":
                names[place] = f"{mine}.{i}"
            else:
                names |= {f"{place}.{a}": f"{mine}.{i}.{b}" for a, b in block.items()}
    return names


def score_sde_names(net: Any) -> dict[str, str]:
    """score_sde's names, a list of modules in order of their making, for an `NCSNpp`.

    >>> from scoregen.networks import NCSNpp
    >>> names = score_sde_names(NCSNpp(width=8, mults=(1,), blocks=1, attention=(False,)))
    >>> names["all_modules.0"], names["all_modules.2"], names["all_modules.3.Conv_0"]
    ('inner', 'encoder.0', 'encoder.1.conv1')
    """
    names: dict[str, str] = {}
    count = 0

    def add(here: str, inner: str = "") -> None:
        nonlocal count
        names[f"all_modules.{count}{inner}"] = here
        count += 1

    def block(here: str, attends: bool) -> None:
        nonlocal count
        names.update({f"all_modules.{count}.{a}": f"{here}.{b}" for a, b in SONG_BLOCK.items()})
        count += 1
        if attends:
            parts = {"GroupNorm_0": "norm", "NIN_3": "out"}
            parts |= {f"NIN_{k}": f"qkv.{k}" for k in range(3)}
            names.update(
                {f"all_modules.{count}.{a}": f"{here}.attention.{b}" for a, b in parts.items()}
            )
            count += 1

    if net.embedding == "fourier":
        names["all_modules.0.W"] = "frequencies"
        count = 1
    add("inner")
    add("outer")
    pyramid = 0
    for i, stage in enumerate(net.down):
        if stage.kind == "inlet":
            add(f"encoder.{i}")
            continue
        block(f"encoder.{i}", stage.attends)
        if stage.kind == "down" and net.entry != "plain":
            add(f"pyramid.{pyramid}", ".Conv_0" if net.entry == "skip" else ".Conv2d_0")
            pyramid += 1
    head = 0
    for i, stage in enumerate(net.up):
        block(f"decoder.{i}", stage.attends)
        last = i + 1 == len(net.up) or net.up[i + 1].kind == "up"
        if last and (net.exit == "skip" or stage.level == 0):
            add(f"heads.{head}.norm")
            add(f"heads.{head}.conv")
            head += 1
    return names


def nin_merged(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """1 x 1 layers of score_sde, `W` (in, out) and `b`, as convolutions; three of them as qkv.

    >>> nin_merged({"out.W": torch.ones(2, 3)})["out.weight"].shape
    torch.Size([3, 2, 1, 1])
    """
    found: dict[str, Tensor] = {}
    thirds: dict[str, dict[int, Tensor]] = {}
    for name, value in tensors.items():
        if name.endswith(".W"):
            name, value = f"{name[:-2]}.weight", value.t()[:, :, None, None]
        elif name.endswith(".b"):
            name = f"{name[:-2]}.bias"
        part = re.fullmatch(r"(.*qkv)\.([012])(\..*)", name)
        if part is None:
            found[name] = value
        else:
            thirds.setdefault(part[1] + part[3], {})[int(part[2])] = value
    for name, parts in thirds.items():
        found[name] = torch.cat([parts[k] for k in sorted(parts)])
    return found
