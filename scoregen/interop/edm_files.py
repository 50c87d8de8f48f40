"""The networks in EDM's and EDM2's pickles, rebuilt here and filled with their weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import nn

from ..data.pickles import Record, read_pickle
from ..networks import ADM, EDM2, NCSNpp
from .preconditioned import Preconditioned
from .weights import EDM2_BLOCK, EDM_BLOCK, edm_names, existing, fill, renamed

__all__ = ["edm_network"]

KINDS: dict[str, Literal["edm", "vp", "ve", "iddpm"]] = {
    "EDMPrecond": "edm", "VPPrecond": "vp", "VEPrecond": "ve", "iDDPMPrecond": "iddpm",
    "Precond": "edm",
}  # fmt: skip
# What each class of the file is made with where the file states nothing.
OUTER = {"label_dim": 0, "use_fp16": False}
OWN: dict[str, dict[str, Any]] = {
    "EDMPrecond": {"sigma_min": 0, "sigma_max": math.inf, "sigma_data": 0.5,
                   "model_type": "DhariwalUNet"},
    "VPPrecond": {"beta_d": 19.9, "beta_min": 0.1, "M": 1000, "epsilon_t": 1e-5,
                  "model_type": "SongUNet"},
    "VEPrecond": {"sigma_min": 0.02, "sigma_max": 100, "model_type": "SongUNet"},
    "iDDPMPrecond": {"C_1": 0.001, "C_2": 0.008, "M": 1000, "model_type": "DhariwalUNet"},
    "Precond": {"sigma_data": 0.5, "logvar_channels": 128, "model_type": "UNet"},
}  # fmt: skip
INNER: dict[str, dict[str, Any]] = {
    "SongUNet": {
        "augment_dim": 0, "model_channels": 128, "channel_mult": [1, 2, 2, 2],
        "channel_mult_emb": 4, "num_blocks": 4, "attn_resolutions": [16], "dropout": 0.1,
        "label_dropout": 0, "embedding_type": "positional", "channel_mult_noise": 1,
        "encoder_type": "standard", "decoder_type": "standard", "resample_filter": [1, 1],
    },
    "DhariwalUNet": {
        "augment_dim": 0, "model_channels": 192, "channel_mult": [1, 2, 3, 4],
        "channel_mult_emb": 4, "num_blocks": 3, "attn_resolutions": [32, 16, 8], "dropout": 0.1,
        "label_dropout": 0,
    },
    "UNet": {
        "model_channels": 192, "channel_mult": [1, 2, 3, 4], "channel_mult_noise": None,
        "channel_mult_emb": None, "num_blocks": 3, "attn_resolutions": [16, 8],
        "label_balance": 0.5, "concat_balance": 0.5, "resample_filter": [1, 1],
        "channels_per_head": 64, "dropout": 0, "res_balance": 0.3, "attn_balance": 0.3,
        "clip_act": 256,
    },
}  # fmt: skip
TOP = {"map_layer0": "inner", "map_layer1": "outer", "map_label": "label"}


def edm_network(path: str | Path) -> tuple[Preconditioned, str, tuple[str, ...]]:
    """The averaged network of a pickle, what it is, and what was left behind.

    Raises:
        FileNotFoundError: without the file.
        ValueError: for a file without such a network, arguments or weights that do not fit.

    >>> edm_network("absent.pkl")
    Traceback (most recent call last):
        ...
    FileNotFoundError: no file absent.pkl; nothing is downloaded: fetch it first
    """
    path = existing(path)
    content = read_pickle(path)
    record = content.get("ema") if isinstance(content, dict) else content
    if not isinstance(record, Record) or record.name not in KINDS:
        found = record.name if isinstance(record, Record) else type(record).__name__
        raise ValueError(
            f"{path.name} holds no network of EDM under 'ema' but {found}; known are "
            f"{', '.join(KINDS)}"
        )
    given, inner, kind = _arguments(record, path.name)
    size = int(given["img_resolution"])
    event = (int(given["img_channels"]), size, size)
    classes = int(given["label_dim"])
    body = record.state["_modules"]["unet" if record.name == "Precond" else "model"]
    tensors = {k: v for k, v in body.tensors().items() if not k.endswith(".resample_filter")}
    net, names, left = BUILDERS[kind](event, classes, inner, given, body)
    for name in [name for name in tensors if name.startswith("map_augment.")]:
        del tensors[name]
    fill(net, renamed(tensors, names, "channel"), path.name)
    levels = record.tensors().get("u")
    ends = (float(given["sigma_min"]), float(given["sigma_max"])) if "sigma_min" in given else None
    whole = Preconditioned(
        net.eval(),
        KINDS[record.name],
        event,
        classes=classes,
        sigma_data=float(given.get("sigma_data", 0.5)),
        span=ends,
        beta=(float(given.get("beta_d", 19.9)), float(given.get("beta_min", 0.1))),
        knots=int(given.get("M", 1000)),
        levels=levels,
    )
    return whole, f"{record.name} of {kind}", left + _encoder(content)


def _encoder(content: Any) -> tuple[str, ...]:
    """What stands between pixels and the network in EDM2's files."""
    encoder = content.get("encoder") if isinstance(content, dict) else None
    if not isinstance(encoder, Record) or encoder.name == "StandardRGBEncoder":
        return ()
    return (f"{encoder.name}: the data are its latents, to be decoded by it",)


def _arguments(record: Record, source: str) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Arguments of the preconditioning and of the network inside, and the latter's class."""
    if record.args:
        raise ValueError(f"{source} states arguments of {record.name} without their names")
    own = OUTER | OWN[record.name]
    stated = dict(record.kwargs)
    kind = str(stated.get("model_type", own["model_type"]))
    if kind not in INNER or (kind == "UNet") != (record.name == "Precond"):
        raise ValueError(f"{source} has a network of class {kind}; known are {', '.join(INNER)}")
    known = {*own, *INNER[kind], "img_resolution", "img_channels"}
    unknown = sorted(set(stated) - known)
    if unknown or not {"img_resolution", "img_channels"} <= set(stated):
        raise ValueError(
            f"{source}: {record.name} of {kind} with arguments that are not known here: "
            f"{', '.join(unknown) or 'img_resolution and img_channels are missing'}"
        )
    inner = {name: stated.get(name, value) for name, value in INNER[kind].items()}
    outer = {name: stated.get(name, value) for name, value in own.items()}
    sizes = {name: stated[name] for name in ("img_resolution", "img_channels")}
    return outer | sizes, inner, kind


def _levels(event: tuple[int, ...], inner: Mapping[str, Any]) -> list[bool]:
    """Whether each level attends."""
    return [(event[1] >> k) in inner["attn_resolutions"] for k in range(len(inner["channel_mult"]))]


def _left(inner: Mapping[str, Any]) -> tuple[str, ...]:
    if not inner["augment_dim"]:
        return ()
    return ("the input for augmentation labels, which is zero in sampling",)


Built = tuple[nn.Module, dict[str, str], tuple[str, ...]]


def _song(
    event: tuple[int, ...], classes: int, inner: dict[str, Any], given: Any, body: Record
) -> Built:
    _fixed("SongUNet", inner, channel_mult_emb=4)
    forms = {"standard": "plain", "skip": "skip", "residual": "residual"}
    embedding = inner["embedding_type"]
    _fixed("SongUNet", inner, channel_mult_noise=2 if embedding == "fourier" else 1)
    entry: Any = forms[inner["encoder_type"]]
    leave: Any = forms[inner["decoder_type"]]
    net = NCSNpp(
        event[0],
        int(inner["model_channels"]),
        inner["channel_mult"],
        int(inner["num_blocks"]),
        _levels(event, inner),
        embedding=embedding,
        encoder=entry,
        decoder=leave,
        taps=inner["resample_filter"],
        classes=classes,
        dropout=float(inner["dropout"]),
    )
    names = edm_names((net.down, net.up), event[1], EDM_BLOCK, TOP)
    names["map_noise.freqs"] = "frequencies"
    for level in range(1, net.levels):
        size, kind = event[1] >> level, {"skip": "skip", "residual": "residual"}.get(entry, "")
        names[f"enc.{size}x{size}_aux_{kind}"] = f"pyramid.{level - 1}"
    for k, level in enumerate(reversed(range(net.levels)) if leave == "skip" else [0]):
        size = event[1] >> level
        names[f"dec.{size}x{size}_aux_norm"] = f"heads.{k}.norm"
        names[f"dec.{size}x{size}_aux_conv"] = f"heads.{k}.conv"
    return net, names, _left(inner)


def _dhariwal(
    event: tuple[int, ...], classes: int, inner: dict[str, Any], given: Any, body: Record
) -> Built:
    _fixed("DhariwalUNet", inner, channel_mult_emb=4)
    net = ADM(
        event[0],
        int(inner["model_channels"]),
        inner["channel_mult"],
        int(inner["num_blocks"]),
        _levels(event, inner),
        head_channels=_head_channels(body),
        classes=classes,
        out_channels=2 * event[0] if "C_1" in given else None,
        dropout=float(inner["dropout"]),
    )
    top = TOP | {"out_norm": "norm", "out_conv": "outlet"}
    return net, edm_names((net.down, net.up), event[1], EDM_BLOCK, top), _left(inner)


def _head_channels(body: Record) -> int:
    """Channels of a head, from the number of heads that the middle block states."""
    middle = [
        part.state
        for name, part in body.state["_modules"]["dec"].state["_modules"].items()
        if name.endswith("_in0")
    ]
    if len(middle) != 1 or not middle[0].get("num_heads"):
        raise ValueError("the network in the file states no number of attention heads")
    return int(middle[0]["out_channels"]) // int(middle[0]["num_heads"])


def _edm2(
    event: tuple[int, ...], classes: int, inner: dict[str, Any], given: Any, body: Record
) -> Built:
    _fixed("UNet", inner, resample_filter=[1, 1])
    width = int(inner["model_channels"])
    clip = inner["clip_act"]
    net = EDM2(
        event[0],
        width,
        inner["channel_mult"],
        int(inner["num_blocks"]),
        _levels(event, inner),
        head_channels=int(inner["channels_per_head"]),
        classes=classes,
        noise_width=_times(width, inner["channel_mult_noise"]),
        condition=_times(width, inner["channel_mult_emb"]),
        label_balance=float(inner["label_balance"]),
        skip_balance=float(inner["concat_balance"]),
        block_balance=float(inner["res_balance"]),
        attention_balance=float(inner["attn_balance"]),
        clip=math.inf if clip is None else float(clip),
    )
    top = {
        "emb_fourier.freqs": "fourier.frequencies", "emb_fourier.phases": "fourier.phases",
        "emb_noise": "noise", "emb_label": "label", "out_conv": "outlet", "out_gain": "gain",
    }  # fmt: skip
    names = edm_names((net.down, net.up), event[1], EDM2_BLOCK, top)
    return net, names, ("its estimate of the uncertainty, log u(sigma)",)


def _times(width: int, multiple: Any) -> int | None:
    return None if multiple is None else width * int(multiple)


def _fixed(kind: str, inner: Mapping[str, Any], **wanted: Any) -> None:
    """Refuse a value that the architecture here does not have."""
    for name, value in wanted.items():
        if inner[name] != value:
            raise ValueError(f"{kind} with {name}={inner[name]!r} is not known here, only {value}")


BUILDERS = {"SongUNet": _song, "DhariwalUNet": _dhariwal, "UNet": _edm2}
