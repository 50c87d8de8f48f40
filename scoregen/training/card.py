"""Configuration as JSON: classes and arguments, looked up among the public classes alone."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from .._families import classes
from .._files import CheckpointError

# the words that cards of format 1 use for the families
_FAMILY = {
    "sde": "process",
    "parameterization": "parameterization",
    "clock": "clock",
    "net": "network",
}

# classes that carry another name in cards written by 0.1
_RENAMED = {"Raw": "RawTime"}


def describe(thing: Any, family: str) -> dict[str, Any]:
    """The class and the arguments of a configuration object, in JSON's types."""
    name = type(thing).__name__
    known = classes(_FAMILY[family]).get(name) is type(thing)
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
    known = classes(_FAMILY[family])
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
