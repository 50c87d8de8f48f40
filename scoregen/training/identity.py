"""Whether two things compute the same: their fields, their code and what that code closes over.

Nothing here depends on memory addresses, so that a new process finds what an old one wrote.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import logging
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping, Set
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .._files import digest

__all__ = ["identity", "modules_within", "structure"]

_ATOMS = (bool, int, float, complex, str, bytes, type(None), type(...), range, slice)
_TORCH_ATOMS = (torch.dtype, torch.device, torch.Size, torch.layout)
_INSTALLED = {str(Path(p).resolve()) for k, p in sysconfig.get_paths().items() if "lib" in k}
_INSTALLED.add(str(Path(__file__).resolve().parents[1]))
# what every module has, and what changes while it is used
_MODULE_OWN = frozenset(vars(nn.Module())) | {"training"}


def identity(thing: object, what: str = "the objective") -> str:
    """Sixteen hexadecimal digits of everything that an object computes with.

    Numbers, words, tensors (by content), containers, dataclasses and plain objects by their
    fields; functions and classes of one's own by their code, defaults, closures and the globals
    they read; those of installed packages by name; modules by structure, since their weights
    are state.

    Args:
        thing: what is to be identified.
        what: how an error calls it.

    Raises:
        TypeError: if a part has no such description, such as an open file or a generator.

    >>> identity(lambda x: x + 1) == identity(lambda x: x + 2)
    False
    """
    return hashlib.sha256("\n".join(_lines(thing, what)).encode()).hexdigest()[:16]


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
        shown = [f"{k}={v}" for k, v in sorted(_settings(module))]
        shown += [
            f"{k}: {tuple(v.shape)} {v.dtype}"
            for k, v in (*module._parameters.items(), *module._buffers.items())
            if v is not None
        ]
        found[path.replace("_orig_mod.", "")] = f"{type(module).__qualname__}({', '.join(shown)})"
    return found


def modules_within(thing: object) -> dict[str, nn.Module]:
    """The modules that an object holds in its fields, closures and containers, by path.

    >>> list(modules_within([nn.Linear(1, 1), 3]))
    ['[0]']
    """
    return {path: v for path, v in _walk(thing, "", {}) if isinstance(v, nn.Module)}


def _lines(thing: object, what: str) -> Iterator[str]:
    for path, value in _walk(thing, what, {}):
        try:
            yield f"{path} {_text(value)}"
        except TypeError:
            raise TypeError(
                f"{path} is a {type(value).__module__}.{type(value).__qualname__}, which nothing "
                f"identifies from one process to the next, so {what} could not be recognised when "
                "a training is resumed: leave it out, or give fit a name for the whole, "
                "objective_name=..., to be changed whenever the objective changes"
            ) from None


class _Seen:
    """Stands for an object that was described before."""

    def __init__(self, index: int):
        self.index = index


def _walk(
    thing: object, path: str, seen: dict[int, tuple[int, object]]
) -> Iterator[tuple[str, object]]:
    if isinstance(thing, (*_ATOMS, *_TORCH_ATOMS)):
        yield path, thing
        return
    if id(thing) in seen:
        yield path, _Seen(seen[id(thing)][0])
        return
    seen[id(thing)] = len(seen), thing  # kept, because a freed address may be given out again
    yield path, thing
    for label, child in _children(thing):
        yield from _walk(child, path + label, seen)


def _children(thing: object) -> Iterator[tuple[str, object]]:
    if isinstance(thing, tuple | list):
        yield from ((f"[{i}]", value) for i, value in enumerate(thing))
    elif isinstance(thing, Mapping):
        yield from ((f"[{key!r}]", thing[key]) for key in sorted(thing, key=repr))
    elif isinstance(thing, Set):
        yield from ((f"{{{i}}}", value) for i, value in enumerate(sorted(thing, key=repr)))
    elif isinstance(thing, functools.partial):
        yield from ((".func", thing.func), (".args", thing.args), (".keywords", thing.keywords))
    elif isinstance(thing, types.MethodType):
        yield from ((".__self__", thing.__self__), (".__func__", thing.__func__))
    elif isinstance(thing, types.FunctionType):
        yield from (
            (".__defaults__", thing.__defaults__),
            (".__kwdefaults__", thing.__kwdefaults__),
        )
        for name, cell in zip(thing.__code__.co_freevars, thing.__closure__ or (), strict=True):
            yield f".{name}", cell.cell_contents
        if not _installed(thing):
            for name in sorted(_names(thing.__code__) & set(thing.__globals__)):
                yield f".{name}", thing.__globals__[name]
    elif isinstance(thing, type):
        if not _installed(thing):
            yield ".__bases__", thing.__bases__
            for name, member in sorted(vars(thing).items()):
                inner = getattr(member, "__func__", getattr(member, "fget", member))
                if isinstance(inner, types.FunctionType):
                    yield f".{name}", inner
                elif isinstance(member, _ATOMS) and not name.startswith("__"):
                    yield f".{name}", member
    elif isinstance(thing, nn.Module | Tensor | np.ndarray | enum.Enum | types.ModuleType):
        return
    elif is_dataclass(thing):
        yield "", type(thing)
        yield from ((f".{f.name}", getattr(thing, f.name)) for f in fields(thing))
    elif hasattr(thing, "__dict__") and not _standard(type(thing)):
        yield "", type(thing)
        yield from ((f".{name}", value) for name, value in sorted(vars(thing).items()))


def _text(thing: object) -> str:
    """What an object is, without what it holds."""
    kind = f"{type(thing).__module__}.{type(thing).__qualname__}"
    if isinstance(thing, (*_ATOMS, *_TORCH_ATOMS)):
        return repr(thing)
    if isinstance(thing, _Seen):
        return f"as number {thing.index}"
    if isinstance(thing, Tensor):
        return f"tensor {digest([('', thing)])}"
    if isinstance(thing, np.ndarray) and thing.dtype != object:
        return f"{thing.dtype} {thing.shape} {hashlib.sha256(thing.tobytes()).hexdigest()}"
    if isinstance(thing, enum.Enum):
        return str(thing)
    if isinstance(thing, types.ModuleType | logging.Logger):
        return f"{kind} {thing.__name__ if isinstance(thing, types.ModuleType) else ''}"
    if isinstance(thing, nn.Module):
        return str(structure(thing))
    if isinstance(thing, types.FunctionType) and not _installed(thing):
        return f"function {_code(thing.__code__)}"
    if isinstance(thing, type | types.FunctionType | types.BuiltinFunctionType):
        return f"{thing.__module__}.{thing.__qualname__}"
    known = isinstance(thing, tuple | list | Mapping | Set | functools.partial | types.MethodType)
    if known or is_dataclass(thing) or (hasattr(thing, "__dict__") and not _standard(type(thing))):
        return kind
    raise TypeError(kind)


def _settings(module: nn.Module) -> Iterator[tuple[str, str]]:
    for key, value in vars(module).items():
        if key in _MODULE_OWN:
            continue
        inside = [v for _, v in _walk(value, "", {})]
        if any(isinstance(v, Tensor | np.ndarray | nn.Module) for v in inside):
            continue
        if all(isinstance(v, (*_ATOMS, tuple, list, dict)) for v in inside):
            yield key, repr(value)
        else:
            try:
                named = all(isinstance(v, (*_ATOMS, tuple, type)) or _ours(v) for v in inside)
                shown = repr(value) if named else type(value).__qualname__
                yield key, f"{shown} {identity(value)}"
            except TypeError:
                continue


def _ours(thing: object) -> bool:
    """A configuration object of scoregen, which prints its fields."""
    return is_dataclass(thing) and type(thing).__module__.startswith("scoregen.")


def _names(code: types.CodeType) -> set[str]:
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _code(code: types.CodeType) -> str:
    """The compiled code, without names of files and numbers of lines."""
    total = hashlib.sha256(f"{sys.version_info[:2]}".encode())

    def constant(value: object) -> str:
        if isinstance(value, types.CodeType):
            return _code(value)
        if isinstance(value, frozenset):
            return str(sorted(map(constant, value)))
        return f"({', '.join(map(constant, value))})" if isinstance(value, tuple) else repr(value)

    for part in (code.co_names, code.co_varnames, code.co_freevars, code.co_flags):
        total.update(repr(part).encode())
    total.update(code.co_code)
    total.update("\n".join(map(constant, code.co_consts)).encode())
    return total.hexdigest()


def _standard(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in sys.stdlib_module_names - {"__main__"} or (
        kind.__module__.startswith("torch._C")
    )


def _installed(thing: types.FunctionType | type) -> bool:
    """Whether a class or function comes with a package, whose version stands for its code."""
    if isinstance(thing, types.FunctionType):
        name = thing.__code__.co_filename
        return name.startswith("<frozen") or _within_package(name)
    module = sys.modules.get(thing.__module__ or "")
    if module is None or thing.__module__ == "__main__":
        return False
    file = getattr(module, "__file__", None)
    return file is None or _within_package(file)


def _within_package(file: str) -> bool:
    return any(str(Path(file).resolve()).startswith(place) for place in _INSTALLED)
