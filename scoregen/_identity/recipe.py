"""What a training leaves alone: settings, code and structure, without weights and versions."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from .installed import named
from .reader import ATOMS, IdentityError, Reader, uncompiled_name

__all__ = ["modules_within", "recipe", "structure"]


def recipe(thing: Any, what: str = "the objective") -> str:
    """Sixteen hexadecimal digits of what a thing is set to compute, in any state of its training.

    As `identity`, but modules count with their `structure` instead of their weights, and libraries
    by name instead of their version, so that a training goes on after an update.

    Args:
        thing: an objective; anything that `identity` takes.
        what: how an error calls it.

    Raises:
        IdentityError: for what cannot be recognised in another process.

    >>> recipe(nn.Dropout(0.1)) == recipe(nn.Dropout(0.1)) != recipe(nn.Dropout(0.2))
    True
    """
    return _Recipe().digest(thing, what).hex()[:16]


def structure(model: nn.Module) -> dict[str, str]:
    """The settings of every module, by its path: another dropout or width is another structure.

    Settings are the attributes made of numbers, words, functions and containers or dataclasses of
    these; other attributes are state. Weights and buffers appear by shape and dtype alone.

    >>> structure(nn.Dropout(0.3))
    {'': 'Dropout(inplace=False, p=0.3)'}
    """
    found = {}
    for path, module in model.named_modules():
        if path.endswith("_orig_mod"):  # a compiled network stands for the network inside
            path = path.removesuffix("_orig_mod").removesuffix(".")
        held = [f"{k}={v}" for k, v in sorted(_settings(module))]
        held += [
            f"{k}: {tuple(v.shape)} {v.dtype}"
            for k, v in (*module._parameters.items(), *module._buffers.items())
            if v is not None
        ]
        found[uncompiled_name(path)] = f"{type(module).__qualname__}({', '.join(held)})"
    return found


def modules_within(thing: Any) -> dict[str, nn.Module]:
    """The outermost modules that a thing reaches in fields, closures, globals, containers, by path.

    >>> list(modules_within([nn.Linear(1, 1), 3]))
    ['[0]']
    """
    return {path: part for path, part in _reached(thing) if isinstance(part, nn.Module)}


class _Recipe(Reader):
    """Leaves out what a training changes and what an update does."""

    remedy = (
        "a training could not recognise it when it is resumed: leave it out, or give fit a name "
        "for the whole, objective_name=..., to be changed whenever the objective changes"
    )

    def network(self, thing: nn.Module, where: str) -> Iterator[bytes]:
        yield f"network {structure(thing)}".encode()

    def module(self, thing: types.ModuleType, where: str) -> Iterator[bytes]:
        yield f"module {thing.__name__}".encode()  # what is used of it counts by itself

    def named(self, thing: Callable[..., Any] | type | types.ModuleType) -> str:
        return named(thing)


class _Finder(Reader):
    """Visits what a reader reads, down to the first tensor or module, and refuses nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, Any]] = []

    def parts(self, thing: Any, where: str) -> Iterator[bytes | memoryview]:
        self.found.append((where, thing))
        if not isinstance(thing, Tensor | np.ndarray | nn.Module | types.ModuleType):
            yield from super().parts(thing, where)

    def reduced(self, thing: Any, where: str) -> bytes:
        return b""


def _reached(thing: Any) -> list[tuple[str, Any]]:
    finder = _Finder()
    finder.digest(thing, "")
    return finder.found


def machinery(module: nn.Module) -> set[str]:
    """Attributes that decide nothing: torch's own, and those that the class declares so.

    A class lists in `_changes_no_number` the settings that cost or spare time and memory alone.

    >>> sorted(machinery(nn.Identity())) == sorted({*vars(nn.Module()), "_is_torch_compile"})
    True
    """
    declared: tuple[str, ...] = getattr(type(module), "_changes_no_number", ())
    # torch.compile marks the module inside too
    return {*vars(nn.Module()), "_is_torch_compile", *declared}


def _settings(module: nn.Module) -> Iterator[tuple[str, str]]:
    without = machinery(module)
    for key, value in vars(module).items():
        if key in without:
            continue
        inside = [part for _, part in _reached(value)]
        if any(isinstance(part, Tensor | np.ndarray | nn.Module) for part in inside):
            continue
        plain = (*ATOMS, float, types.NoneType, types.EllipsisType, tuple)
        if all(isinstance(part, (*plain, list, dict)) for part in inside if part is not dict):
            yield key, repr(value)
            continue
        try:
            digits = recipe(value)
        except IdentityError:  # a state
            continue
        named = all(isinstance(part, (*plain, type)) or _ours(part) for part in inside)
        yield key, f"{repr(value) if named else type(value).__qualname__} {digits}"


def _ours(thing: object) -> bool:
    """A configuration object of scoregen, which prints its fields."""
    return is_dataclass(thing) and type(thing).__module__.startswith("scoregen.")
