"""Everything that decides a result, read from the leaves up: values, settings, code, closures."""

from __future__ import annotations

import dis
import functools
import hashlib
import inspect
import logging
import struct
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .installed import by_statement, installed, module_of, named, version

__all__ = ["IdentityError", "identity"]

ATOMS = (bool, int, str, bytes, complex, torch.dtype, torch.device, torch.layout, range, PurePath)
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
    scoregen._identity.reader.IdentityError: a list_iterator has no identity ...
    """


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
    return Reader().digest(thing, type(thing).__name__).hex()


class Reader:
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
        elif kind in ATOMS or isinstance(thing, PurePath):
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
        if state is not None and (parts or by_statement(kind)):
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
        thing = uncompiled(thing)  # torch.compile changes the speed alone
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
        if installed(thing):
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
        if installed(thing):
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
                if isinstance(value, types.ModuleType) and not installed(value):
                    for attribute in set(code.co_names) & set(vars(value)):
                        found[f"{name}.{attribute}"] = vars(value)[attribute]
        return found

    def module(self, thing: types.ModuleType, where: str) -> Iterator[bytes]:
        file = getattr(thing, "__file__", None)
        if installed(thing):
            yield f"module {self.named(thing)}".encode()
        elif file is None:
            raise IdentityError(f"the module {thing.__name__} ({where}) has no source to identify")
        else:
            yield b"module" + Path(file).read_bytes()

    def named(self, thing: Callable[..., Any] | type | types.ModuleType) -> str:
        """The name of something installed, with the version that stands for its code."""
        return f"{named(thing)} {version(module_of(thing).partition('.')[0])}"


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


def uncompiled(net: nn.Module) -> nn.Module:
    """The network inside one that `torch.compile` made; any other is itself.

    >>> net = nn.Linear(1, 1)
    >>> uncompiled(net) is net
    True
    """
    while "_orig_mod" in net._modules:
        net = net.get_submodule("_orig_mod")
    return net


def uncompiled_name(name: str) -> str:
    """The name of a weight or module without what `torch.compile` puts into it.

    >>> uncompiled_name("net._orig_mod.weight")
    'net.weight'
    """
    return name.replace("_orig_mod.", "")


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
