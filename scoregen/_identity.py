"""What a thing computes, as a number: tensors, settings, code and closures, never an address.

Two things with one `identity` give the same results, so a stored result may be served for both. The
converse does not hold: a comment moved or a counter increased may change an identity, and then a
result is computed again, which costs time and nothing else. A `recipe` leaves out what a training
changes, the weights, so that a training that goes on finds its own.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import importlib.metadata
import inspect
import logging
import os
import struct
import sys
import sysconfig
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ._version import __version__

__all__ = ["IdentityError", "identity", "library", "modules_within", "recipe", "structure"]

_LIBRARIES = tuple(
    str(Path(sysconfig.get_path(name)).resolve())
    for name in ("stdlib", "platstdlib", "purelib", "platlib")
)
_OWN = Path(__file__).resolve().parent
_HEAP = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by a class statement
_ATOMS = (bool, int, str, bytes, complex, torch.dtype, torch.device, torch.layout, range, PurePath)
# what a class holds beside its code: names, documentation and what the machinery leaves there
_INCIDENTAL = {
    "__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__annotations__",
    "__firstlineno__", "__static_attributes__", "__abstractmethods__", "_abc_impl", "__slots__",
    "__dataclass_fields__", "__dataclass_params__", "__match_args__", "__orig_bases__",
    "__parameters__", "__slotnames__", "__annotate_func__", "__annotations_cache__", "__annotate__",
}  # fmt: skip
# what a dataclass writes from its fields
_WRITTEN = {
    "__repr__", "__eq__", "__hash__", "__setattr__", "__delattr__", "__replace__", "__getstate__",
    "__setstate__", "__lt__", "__le__", "__gt__", "__ge__",
}  # fmt: skip
_MODULE_PARTS = ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks")


class IdentityError(TypeError):
    """Something decides a result and cannot be named, so a stored result must not be served.

    >>> identity(iter([1]))
    Traceback (most recent call last):
        ...
    scoregen._identity.IdentityError: a list_iterator has no identity ...
    """


@functools.cache
def library() -> str:
    """The version of scoregen, with a digest of its sources: an edited solver is another one.

    >>> library().startswith(__version__)
    True
    """
    total = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        if path.relative_to(root).parts[0] not in ("cli", "comparison"):
            total.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return f"{__version__}+{total.hexdigest()[:12]}"


def identity(thing: Any) -> str:
    """SHA-256, 64 hexadecimal digits, over everything that decides what a thing computes.

    Tensors count with their values, modules with their weights, buffers, attributes and hooks,
    functions with their code, defaults, closures and the globals they name, classes of your own
    with their methods, installed libraries with their versions. `training` and devices do not
    count, nor does the sharing of equal parts.

    Args:
        thing: a model, metric, sampler, condition; anything made of numbers, tensors, containers,
            functions, classes and objects with attributes.

    Raises:
        IdentityError: for what holds a stream, a generator, a lock or another thing that has a
            state which cannot be read; the message says where.

    >>> identity({"scale": 2.0}) == identity({"scale": 2.0}) != identity({"scale": 2.5})
    True
    >>> identity(lambda x: x + 1) == identity(lambda x: x + 2)
    False
    """
    return _Reader().digest(thing, type(thing).__name__).hex()


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
        found[path.replace("_orig_mod.", "")] = f"{type(module).__qualname__}({', '.join(held)})"
    return found


def modules_within(thing: Any) -> dict[str, nn.Module]:
    """The outermost modules that a thing reaches in fields, closures, globals, containers, by path.

    >>> list(modules_within([nn.Linear(1, 1), 3]))
    ['[0]']
    """
    return {path: part for path, part in _reached(thing) if isinstance(part, nn.Module)}


class _Reader:
    """Digests, from the leaves up; finished objects are remembered, open ones are cycles."""

    remedy = "without `out` nothing is stored, and nothing needs an identity"

    def __init__(self) -> None:
        # the object is kept beside its digest, so that its id is not given to another one
        self.known: dict[int, tuple[Any, bytes]] = {}
        self.open: list[int] = []

    def digest(self, thing: Any, where: str) -> bytes:
        key = id(thing)
        if key in self.known:
            return self.known[key][1]
        if key in self.open:
            return b"cycle" + struct.pack("<I", len(self.open) - self.open.index(key))
        self.open.append(key)
        total = hashlib.sha256()
        for part in self.parts(thing, where):
            total.update(struct.pack("<Q", len(part)))
            total.update(part)
        self.open.pop()
        self.known[key] = thing, total.digest()
        return self.known[key][1]

    def parts(self, thing: Any, where: str) -> Iterator[bytes | memoryview]:
        kind = type(thing)
        if thing is None or thing is Ellipsis or thing is NotImplemented:
            yield repr(thing).encode()
        elif kind in _ATOMS or isinstance(thing, PurePath):
            yield f"{kind.__name__} {thing!r}".encode()
        elif kind is float:
            yield b"float" + struct.pack("<d", thing)
        elif isinstance(thing, Tensor):
            yield from _tensor(thing, where)
        elif isinstance(thing, np.ndarray | np.generic):
            array = np.ascontiguousarray(thing)
            yield f"array {array.dtype} {array.shape}".encode()
            if array.dtype == object:
                yield self.all(array.ravel().tolist(), where)
            else:
                yield array.tobytes()
        elif isinstance(thing, Enum):
            yield f"enum {self.named(kind)} {thing.name}".encode()
        elif isinstance(thing, logging.Logger):  # decides nothing
            yield f"logger {thing.name}".encode()
        elif isinstance(thing, types.ModuleType):
            yield from self.module(thing, where)
        elif isinstance(thing, type):
            yield from self.cls(thing, where)
        elif isinstance(thing, types.FunctionType):
            yield from self.function(thing, where)
        elif isinstance(thing, types.CodeType):
            yield self.code(thing, where)
        elif isinstance(thing, types.MethodType):
            yield b"method"
            yield self.digest(thing.__func__, f"{where}.__func__")
            yield self.digest(thing.__self__, f"{where}.__self__")
        elif (inner := _wrapping(thing)) is not None:
            yield kind.__name__.encode()
            yield self.pairs(inner, where)
        elif isinstance(thing, types.BuiltinFunctionType | np.ufunc) and not _bound(thing):
            yield f"builtin {self.named(thing)}".encode()
        elif isinstance(thing, nn.Module):
            yield from self.network(thing, where)
        else:
            yield from self.instance(thing, where)

    def all(self, things: Iterable[Any], where: str) -> bytes:
        return b"".join(self.digest(item, f"{where}[{i}]") for i, item in enumerate(things))

    def pairs(self, items: Mapping[Any, Any], where: str, form: str = ".{}") -> bytes:
        """Entries in the order of their keys' digests: the order of insertion is no setting."""
        return b"".join(
            sorted(
                self.digest(key, where) + self.digest(value, where + form.format(key))
                for key, value in items.items()
            )
        )

    def instance(self, thing: Any, where: str) -> Iterator[bytes]:
        kind = type(thing)
        yield b"instance" + self.digest(kind, where)
        parts: list[bytes] = []
        if isinstance(thing, Mapping):
            parts.append(b"mapping" + self.pairs(thing, where, "[{!r}]"))
        elif isinstance(thing, list | tuple):
            parts.append(b"sequence" + self.all(thing, where))
        elif isinstance(thing, set | frozenset):
            parts.append(b"set" + b"".join(sorted(self.digest(item, where) for item in thing)))
        elif isinstance(thing, int | float | str | bytes):
            base: Any = next(c for c in (int, float, str, bytes) if isinstance(thing, c))
            parts.append(self.digest(base(thing), where))
        state = _attributes(thing)
        if state is not None and (parts or kind.__flags__ & _HEAP):
            parts.append(b"attributes" + self.pairs(state, where))
        # made in C: what copying it would carry over
        yield from parts or [self.reduced(thing, where)]

    def reduced(self, thing: Any, where: str) -> bytes:
        kind = type(thing)
        refusal = (
            f"a {kind.__name__} has no identity ({where}): what decides results must be held in "
            f"numbers, tensors, functions or objects of such; {self.remedy}"
        )
        if isinstance(thing, Iterator | torch.Generator | np.random.Generator):
            raise IdentityError(refusal)
        try:
            content = thing.__reduce_ex__(2)
        except (TypeError, AttributeError, RuntimeError) as error:
            raise IdentityError(refusal) from error
        if isinstance(content, str) or content[0] in (getattr, iter):
            raise IdentityError(refusal)
        parts = [list(part) if isinstance(part, Iterator) else part for part in content]
        return b"reduced" + self.all(parts, where)

    def network(self, thing: nn.Module, where: str) -> Iterator[bytes]:
        while "_orig_mod" in thing._modules:  # torch.compile changes the speed alone
            thing = thing.get_submodule("_orig_mod")
        if isinstance(thing, torch.jit.ScriptModule):
            yield b"script" + self.pairs(dict(thing.state_dict()), where)
            yield "".join(str(getattr(m, "code", "")) for m in thing.modules()).encode()
            return
        yield b"network" + self.digest(type(thing), where)
        machinery = {*vars(nn.Module()), "_is_torch_compile", "_compiled_call_impl"}
        own = set(vars(thing)) - machinery | set(_MODULE_PARTS)
        held = {name: vars(thing)[name] for name in own}
        for name in ("_forward_hooks", "_forward_pre_hooks"):
            held[name] = list(held[name].values())
        yield self.pairs(held, where)

    def cls(self, thing: type, where: str) -> Iterator[bytes]:
        if _installed(thing):
            yield f"class {self.named(thing)}".encode()
            return
        yield f"class {thing.__qualname__}".encode() + self.all(thing.__bases__, where)
        own = {
            name: value
            for name, value in vars(thing).items()
            if name not in _INCIDENTAL
            and not isinstance(value, types.MemberDescriptorType | types.GetSetDescriptorType)
            and not (name in _WRITTEN and "__dataclass_fields__" in vars(thing))
        }
        yield self.pairs(own, where)

    def function(self, thing: types.FunctionType, where: str) -> Iterator[bytes]:
        if _installed(thing):
            yield f"function {self.named(thing)}".encode()
        else:
            yield b"function" + self.code(thing.__code__, where)
            yield self.all((thing.__defaults__, thing.__kwdefaults__), where)
            yield self.pairs(self.globals(thing), where)
        # a function of a library may still close over something of yours
        for name, cell in zip(thing.__code__.co_freevars, thing.__closure__ or (), strict=True):
            try:
                content = cell.cell_contents
            except ValueError:  # not filled yet
                continue
            yield name.encode()
            yield self.digest(content, f"{where}.{name}")

    def code(self, code: types.CodeType, where: str) -> bytes:
        names = " ".join((*code.co_names, "|", *code.co_freevars, "|", *code.co_cellvars))
        constants = b"".join(
            self.code(c, where) if isinstance(c, types.CodeType) else self.digest(c, where)
            for c in code.co_consts
        )
        shape = struct.pack("<4i", code.co_argcount, code.co_kwonlyargcount, code.co_flags, 0)
        return hashlib.sha256(code.co_code + names.encode() + constants + shape).digest()

    def globals(self, thing: types.FunctionType) -> dict[str, Any]:
        """What the code names outside itself; of your own modules, the attributes it names."""
        found: dict[str, Any] = {}
        for code in _codes(thing.__code__):
            loaded = {
                i.argval
                for i in dis.get_instructions(code)
                if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")
            }
            for name in loaded & set(thing.__globals__):
                value = thing.__globals__[name]
                found[name] = value
                if isinstance(value, types.ModuleType) and not _installed(value):
                    for attribute in set(code.co_names) & set(vars(value)):
                        found[f"{name}.{attribute}"] = vars(value)[attribute]
        return found

    def module(self, thing: types.ModuleType, where: str) -> Iterator[bytes]:
        file = getattr(thing, "__file__", None)
        if _installed(thing):
            yield f"module {self.named(thing)}".encode()
        elif file is None:
            raise IdentityError(f"the module {thing.__name__} ({where}) has no source to identify")
        else:
            yield b"module" + Path(file).read_bytes()

    def named(self, thing: Callable[..., Any] | type | types.ModuleType) -> str:
        """The name of something installed, with the version that stands for its code."""
        return f"{_named(thing)} {_version(_module_of(thing).partition('.')[0])}"


class _Recipe(_Reader):
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
        return _named(thing)


class _Finder(_Reader):
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


def _settings(module: nn.Module) -> Iterator[tuple[str, str]]:
    machinery = {*vars(nn.Module()), "training"}
    for key, value in vars(module).items():
        if key in machinery:
            continue
        inside = [part for _, part in _reached(value)]
        if any(isinstance(part, Tensor | np.ndarray | nn.Module) for part in inside):
            continue
        plain = (*_ATOMS, float, types.NoneType, types.EllipsisType, PurePath, tuple)
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


def _tensor(x: Tensor, where: str) -> Iterator[bytes | memoryview]:
    if x.is_meta or x.layout != torch.strided or x.is_quantized:
        raise IdentityError(f"a {x.layout} tensor on {x.device} has no identity ({where})")
    yield f"tensor {x.dtype} {tuple(x.shape)}".encode()
    plain = x.detach().resolve_conj().resolve_neg().cpu().contiguous()
    yield plain.reshape(-1).view(torch.uint8).numpy().data


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _attributes(thing: Any) -> dict[str, Any] | None:
    """Attributes in `__dict__` and in slots; None where there is neither."""
    kind = type(thing)
    listed = [vars(c).get("__slots__", ()) for c in kind.__mro__]
    slots = {name for names in listed for name in ([names] if isinstance(names, str) else names)}
    slots -= {"__dict__", "__weakref__"}
    if not hasattr(thing, "__dict__") and not slots:
        return None
    found = {name: getattr(thing, name) for name in slots if hasattr(thing, name)}
    for name, value in getattr(thing, "__dict__", {}).items():
        # a cached property follows from the rest, and comes with the first use
        if not isinstance(getattr(kind, name, None), functools.cached_property):
            found[name] = value
    return found


def _wrapping(thing: Any) -> dict[str, Any] | None:
    """What a descriptor, a partial or a decorator is made of; None for anything else."""
    if isinstance(thing, staticmethod | classmethod):
        return {"__func__": thing.__func__}
    if isinstance(thing, property):
        return {"fget": thing.fget, "fset": thing.fset, "fdel": thing.fdel}
    if isinstance(thing, functools.cached_property):
        return {"func": thing.func}
    if isinstance(thing, functools.partial):
        return {"func": thing.func, "args": thing.args, "keywords": thing.keywords}
    inner = inspect.getattr_static(thing, "__wrapped__", None) if callable(thing) else None
    return {"__wrapped__": inner} if isinstance(inner, types.FunctionType) else None


def _bound(thing: Any) -> bool:
    """Whether a built-in is the method of an object that may hold a state."""
    owner = getattr(thing, "__self__", None)
    return owner is not None and not isinstance(owner, types.ModuleType | type)


def _module_of(thing: Any) -> str:
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


def _installed(thing: Any) -> bool:
    """Whether a library's version says all about a function, class or module."""
    if isinstance(thing, types.FunctionType):  # __module__ is copied by decorators
        return _in_library(thing.__code__.co_filename)
    if isinstance(thing, type) and thing.__module__ == "builtins":
        return not thing.__flags__ & _HEAP
    return _installed_module(_module_of(thing))


@functools.cache
def _version(top: str) -> str:
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


def _named(thing: Callable[..., Any] | type | types.ModuleType) -> str:
    name = getattr(thing, "__qualname__", getattr(thing, "__name__", ""))
    return f"{_module_of(thing)}.{name}"
