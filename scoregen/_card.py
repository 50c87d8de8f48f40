"""Configuration as JSON: classes and arguments, looked up among the public classes alone."""

from __future__ import annotations

import sys
from dataclasses import fields, is_dataclass
from typing import Any

from torch import nn

from ._files import CheckpointError
from .parameterization import Parameterization
from .sde import SDE


def public(family: str) -> dict[str, type]:
    """The public classes that a card may name: the package's `__all__` is the allow-list."""
    package = sys.modules[__package__]
    things = {name: getattr(package, name, None) for name in package.__all__}
    classes = {name: thing for name, thing in things.items() if isinstance(thing, type)}

    def belongs(thing: type) -> bool:
        if family == "net":
            return issubclass(thing, nn.Module) and f"{__package__}.networks." in thing.__module__
        if not is_dataclass(thing):
            return False
        if family == "clock":
            return thing.__module__ == f"{__package__}.clocks"
        return issubclass(thing, SDE if family == "sde" else Parameterization)

    return {name: thing for name, thing in classes.items() if belongs(thing)}


def describe(thing: Any, family: str) -> dict[str, Any]:
    """The class and the arguments of a configuration object, in JSON's types."""
    name = type(thing).__name__
    known = public(family).get(name) is type(thing)
    if family == "net":
        return {"class": name, "args": dict(thing.config) if known else None}
    if not known:
        raise CheckpointError(
            f"{name} is no {family} of scoregen, and only its public classes can be rebuilt from a "
            "card; save the network's own state_dict instead"
        )

    def plain(value: Any) -> Any:
        if is_dataclass(value) and not isinstance(value, type):
            return describe(value, family)
        return [plain(v) for v in value] if isinstance(value, tuple) else value

    args = {f.name: plain(getattr(thing, f.name)) for f in fields(thing) if f.init}
    return {"class": name, "args": args}


def rebuild(entry: Any, family: str) -> Any:
    known = public(family)
    if not isinstance(entry, dict) or set(entry) != {"class", "args"}:
        raise CheckpointError(f"the card's {family} must have a class and args, got {entry!r:.200}")
    name, args = entry["class"], entry["args"]
    if not isinstance(name, str) or name not in known or not isinstance(args, dict):
        raise CheckpointError(
            f"the card's {family} is {name!r:.200}, which is none of {', '.join(sorted(known))}; "
            "a newer scoregen may know it"
        )

    def rich(value: Any) -> Any:
        if isinstance(value, dict):
            return rebuild(value, family)
        return tuple(rich(v) for v in value) if isinstance(value, list) else value

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
