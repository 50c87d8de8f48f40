"""Configuration as JSON: classes and arguments, looked up among the public classes alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

from torch import nn

from .._families import classes
from .._files import CheckpointError
from .._identity import uncompiled
from ..energies import ReconstructionEnergy
from ..models import ScoreModel

# the words that cards use for the families
_FAMILY = {
    "sde": "process",
    "parameterization": "parameterization",
    "clock": "clock",
    "span": "span",
    "net": "network",
}

# models that are made of described parts, and the parts, in the order of their arguments
PARTS: dict[str, tuple[str, ...]] = {
    "ScoreNetwork": ("net", "sde", "parameterization", "clock"),
    "EnergyNetwork": ("net", "sde", "clock"),
    "FlowMap": ("net", "sde", "parameterization", "clock", "span"),
    "ConsistencyModel": ("net", "sde", "parameterization", "clock", "span"),
}


def parts_of(name: object) -> tuple[Callable[..., ScoreModel] | None, tuple[str, ...]]:
    """The public class of that name and the parts it is made of; (None, ()) for another."""
    if not isinstance(name, str) or name not in PARTS:
        return None, ()
    return classes("model")[name], PARTS[name]


# classes that carry another name in cards written by 0.1
_RENAMED = {"Raw": "RawTime"}
# what an argument meant before a class had it: cards of that time lack it
_ADDED = {"Index": {"scale": 1.0}}


class Missing(NamedTuple):
    """What a card cannot rebuild, and the argument of `load` that takes it."""

    what: str
    argument: str


def core(model: ScoreModel) -> nn.Module:
    """The module whose weights are a model's: its network, or, without described parts, itself."""
    cls, _ = parts_of(type(model).__name__)
    return (
        uncompiled(model.net) if cls is type(model) and isinstance(model.net, nn.Module) else model
    )


def describe_model(model: ScoreModel) -> dict[str, Any]:
    """The class of a model and its parts; parts of one's own have no arguments.

    >>> from scoregen import MLP, V, VPSDE, ScoreNetwork
    >>> sorted(describe_model(ScoreNetwork(MLP(), VPSDE(), V())))
    ['clock', 'model', 'net', 'parameterization', 'sde']
    """
    name = type(model).__name__
    cls, parts = parts_of(name)
    if cls is not type(model):
        return {"model": name}
    return {"model": name, **{part: describe(getattr(model, part), part) for part in parts}}


def undescribed(model: ScoreModel) -> Missing | None:
    """What of a model only its owner's code can rebuild.

    >>> from scoregen import MLP, V, VPSDE, ScoreNetwork
    >>> undescribed(ScoreNetwork(nn.Identity(), VPSDE(), V()))
    Missing(what='Identity', argument='net')
    """
    entries = describe_model(model)
    if len(entries) == 1:
        return Missing(type(model).__name__, "model")
    own = [part for part, entry in entries.items() if part != "model" and entry["args"] is None]
    if not own:
        return None
    what = ", ".join(entries[part]["class"] for part in own)
    return Missing(what, "net" if own == ["net"] else "model")


def describe(thing: Any, family: str) -> dict[str, Any]:
    """The class and the arguments of a configuration object, in JSON's types.

    Args:
        thing: a process, parameterization, clock or network.
        family: which of these, in the card's words.
    """
    if family == "net":
        return _describe_net(uncompiled(thing))
    name = type(thing).__name__
    known = classes(_FAMILY[family]).get(name) is type(thing)
    if not known:
        return {"class": getattr(thing, "__qualname__", name), "args": None}
    named = [f.name for f in fields(thing) if f.init]
    entries = {key: _value(getattr(thing, key), family) for key in named}
    return {"class": name, "args": None if any(map(_unknown, entries.values())) else entries}


def _value(value: Any, family: str) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return describe(value, family)
    return [_value(v, family) for v in value] if isinstance(value, tuple) else value


def _unknown(entry: Any) -> bool:
    if isinstance(entry, list):
        return any(map(_unknown, entry))
    return isinstance(entry, dict) and "args" in entry and entry["args"] is None


def _describe_net(net: nn.Module) -> dict[str, Any]:
    name = type(net).__name__
    if isinstance(net, ReconstructionEnergy):
        inner = describe(net.net, "net") if isinstance(net.net, nn.Module) else {"args": None}
        args = None if inner["args"] is None else {"net": inner, "scale": net.scale}
        return {"class": name, "args": args}
    config = vars(net).get("config")
    known = classes("network").get(name) is type(net) and isinstance(config, dict)
    return {"class": name, "args": dict(config) if known and config is not None else None}


def rebuild(entry: Any, family: str) -> Any:
    """The object that `describe` wrote down.

    Args:
        entry: a class and its arguments.
        family: what it must be, in the card's words.

    Raises:
        CheckpointError: for anything but a public class with fitting arguments.
    """
    known: dict[str, Any] = dict(classes(_FAMILY[family]))
    if family == "net":
        known["ReconstructionEnergy"] = ReconstructionEnergy
    if not isinstance(entry, dict) or set(entry) != {"class", "args"}:
        raise CheckpointError(f"the card's {family} must have a class and args, got {entry!r:.200}")
    name, args = entry["class"], entry["args"]
    if isinstance(name, str):
        name = _RENAMED.get(name, name)
    if not isinstance(name, str) or name not in known or not isinstance(args, dict):
        raise CheckpointError(
            f"the card's {family} is {name!r:.200}, which is none of {', '.join(sorted(known))}; "
            "a newer scoregen may know it"
        )

    def rich(value: Any) -> Any:
        if isinstance(value, dict) and set(value) == {"class", "args"}:
            return rebuild(value, family)
        return tuple(rich(v) for v in value) if isinstance(value, list) else value

    args = {**_ADDED.get(name, {}), **args}
    cls = known[name]
    if is_dataclass(cls):
        wanted = {f.name for f in fields(cls) if f.init}
        if wanted != set(args):
            raise CheckpointError(
                f"the arguments of {name} do not agree with this version: missing "
                f"{sorted(wanted - set(args))}, unknown {sorted(set(args) - wanted)}"
            )
    try:
        return cls(**{key: rich(value) for key, value in args.items()})
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the card's {name} cannot be built: {error}") from error
