"""What comes installed: a version stands for its code."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import sys
import sysconfig
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .._version import __version__

__all__ = ["library"]

_LIBRARIES = tuple(
    str(Path(sysconfig.get_path(name)).resolve())
    for name in ("stdlib", "platstdlib", "purelib", "platlib")
)
_OWN = Path(__file__).resolve().parents[1]
_HEAP, _IMMUTABLE = 1 << 9, 1 << 8  # Py_TPFLAGS_HEAPTYPE, Py_TPFLAGS_IMMUTABLETYPE


def by_statement(kind: type) -> bool:
    """Whether a class was made by a class statement: its attributes are all there is to it.

    From Python 3.12 on files and other types made in C are on the heap too, but immutable.

    >>> by_statement(int), by_statement(type("Own", (), {}))
    (False, True)
    """
    return kind.__flags__ & (_HEAP | _IMMUTABLE) == _HEAP


@functools.cache
def library() -> str:
    """The version of scoregen, with a digest of its sources: an edited solver is another one.

    >>> library().startswith(__version__)
    True
    """
    total = hashlib.sha256()
    for path in sorted(_OWN.rglob("*.py")):
        place = path.relative_to(_OWN)
        if place.parts[0] not in ("cli", "comparison"):
            total.update(place.as_posix().encode() + path.read_bytes())
    return f"{__version__}+{total.hexdigest()[:12]}"


def module_of(thing: Any) -> str:
    name = thing.__name__ if isinstance(thing, types.ModuleType) else thing.__module__
    return str(name or "builtins")


def _in_library(file: str | None) -> bool:
    if file is None:
        return False
    path = str(Path(file).resolve())
    return file.startswith("<frozen") or path.startswith((*_LIBRARIES, f"{_OWN}{os.sep}"))


@functools.cache
def _installed_module(name: str) -> bool:
    top = name.partition(".")[0]
    if top in sys.builtin_module_names:
        return True
    # a part of a package may have no file of its own, as torch._C._nn
    files = (getattr(sys.modules.get(part), "__file__", None) for part in (name, top))
    return _in_library(next((f for f in files if f is not None), None))


def installed(thing: Any) -> bool:
    """Whether a library's version says all about a function, class or module."""
    if isinstance(thing, types.FunctionType):  # __module__ is copied by decorators
        return _in_library(thing.__code__.co_filename)
    if isinstance(thing, type) and thing.__module__ == "builtins":
        return not by_statement(thing)
    return _installed_module(module_of(thing))


@functools.cache
def version(top: str) -> str:
    if top == "scoregen":
        return library()
    if top in sys.stdlib_module_names:
        return f"{sys.version_info.major}.{sys.version_info.minor}"
    stated = getattr(sys.modules.get(top), "__version__", None)
    if isinstance(stated, str):
        return stated
    for name in importlib.metadata.packages_distributions().get(top, ()):
        return importlib.metadata.version(name)
    return "unknown"


def named(thing: Callable[..., Any] | type | types.ModuleType) -> str:
    name = getattr(thing, "__qualname__", getattr(thing, "__name__", ""))
    return f"{module_of(thing)}.{name}"
