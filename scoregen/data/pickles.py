"""NVIDIA's network pickles read inertly: nothing is imported, nothing that they carry is run.

The stream of opcodes is interpreted here. A name that stands in the file becomes a record of that
name, and only names of the list below are let through; the source code that such files embed is
kept as text at most.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Record", "read_pickle"]

# Classes whose instances become records of plain data.
CLASSES = (
    "dnnlib.util.EasyDict", "collections.OrderedDict", "builtins.object", "__builtin__.object",
    "builtins.set", "__builtin__.set", "numpy.ndarray", "numpy.dtype", "torch.Size",
    "torch.nn.parameter.Parameter", "torch.nn.modules.",
)  # fmt: skip


@dataclass(eq=False)
class Record:
    """An object of a pickle, as data.

    Attributes:
        name: of its class, which is not imported.
        args, kwargs: that it was made with, where the file states them (NVIDIA's files do).
        state: its attributes.

    >>> Record("torch.nn.modules.linear.Linear", state={"_parameters": {}}).tensors()
    {}
    """

    name: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """Parameters and buffers of a module and its parts, by the names of its `state_dict`."""
        found: dict[str, Tensor] = {}
        for group in ("_parameters", "_buffers"):
            for name, value in (self.state.get(group) or {}).items():
                if isinstance(value, Tensor):
                    found[prefix + name] = value
        for name, part in (self.state.get("_modules") or {}).items():
            if isinstance(part, Record):
                found |= part.tensors(f"{prefix}{name}.")
        return found


@dataclass(frozen=True)
class _Name:
    """A name in the file."""

    text: str


class _Mark:
    """Where a run of items on the stack begins."""


class _Array:
    """An array of numpy before its state."""


def read_pickle(path: str | Path) -> Any:
    """What a pickle of EDM, EDM2 or another of NVIDIA's projects holds, as plain data.

    Dicts, lists, tensors, arrays and numbers come as they are, objects as `Record`: the network's
    weights are `read_pickle(path)["ema"].tensors()`, its arguments `["ema"].kwargs`.

    Args:
        path: of the file.

    Raises:
        FileNotFoundError: without it.
        ValueError: for a name outside the list, an opcode that such files do not have, or a damaged
            file; nothing has been imported or run by then.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "net.pkl"
    ...     _ = path.write_bytes(b"cos\\nsystem\\n(S'true'\\ntR.")
    ...     read_pickle(path)
    Traceback (most recent call last):
        ...
    ValueError: net.pkl names os.system, which no network needs; it is not read
    """
    path = Path(path)
    data = path.read_bytes()
    try:
        return _Machine().run(data)[0]
    except _Refused as refused:
        raise ValueError(f"{path.name} {refused}; it is not read") from None
    except (
        ValueError, IndexError, KeyError, TypeError, AttributeError, EOFError, RuntimeError,
        OverflowError,
    ) as error:  # fmt: skip
        raise ValueError(f"{path.name} is no pickle of a network: {error}") from error


class _Refused(Exception):
    """A file that is not to be read, and why."""


class _Machine:
    """pickle's stack machine, with records for objects; `persistent` inside torch's storages."""

    def __init__(self, persistent: bool = False) -> None:
        self.persistent = persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> tuple[Any, int]:
        """The thing at the start of the data, and where it ends."""
        for opcode, arg, place in pickletools.genops(data):
            if opcode.name == "STOP":
                return self.stack.pop(), (place or 0) + 1
            if opcode.name in CONSTANTS:
                self.stack.append(CONSTANTS[opcode.name]())
            elif opcode.name in LITERALS:
                self.stack.append(arg)
            elif opcode.name in TUPLES:
                self._tuple_of(TUPLES[opcode.name])
            elif opcode.name not in IGNORED:
                act = getattr(self, f"_{opcode.name.lower()}", None)
                if act is None:
                    raise _Refused(f"holds the opcode {opcode.name}, which no network needs")
                act(arg)
        raise ValueError("it ends early")

    def _items(self) -> list[Any]:
        """What stands above the last mark."""
        place = max(i for i, item in enumerate(self.stack) if item is _Mark)
        items = self.stack[place + 1 :]
        del self.stack[place:]
        return items

    def _mark(self, _: Any) -> None:
        self.stack.append(_Mark)

    def _pop(self, _: Any) -> None:
        self.stack.pop()

    def _memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _put(self, arg: Any) -> None:
        self.memo[int(arg)] = self.stack[-1]

    _binput = _long_binput = _put

    def _get(self, arg: Any) -> None:
        self.stack.append(self.memo[int(arg)])

    _binget = _long_binget = _get

    def _append(self, _: Any) -> None:
        value = self.stack.pop()
        _list(self.stack[-1]).append(value)

    def _appends(self, _: Any) -> None:
        items = self._items()
        _list(self.stack[-1]).extend(items)

    def _additems(self, _: Any) -> None:
        items = self._items()
        if not isinstance(self.stack[-1], set):
            raise ValueError("items for a set that is none")
        self.stack[-1].update(items)

    def _setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _mapping(self.stack[-1])[key] = value

    def _setitems(self, _: Any) -> None:
        items = self._items()
        _mapping(self.stack[-1]).update(zip(items[::2], items[1::2], strict=True))

    def _list(self, _: Any) -> None:
        self.stack.append(self._items())

    def _dict(self, _: Any) -> None:
        items = self._items()
        self.stack.append(dict(zip(items[::2], items[1::2], strict=True)))

    def _frozenset(self, _: Any) -> None:
        self.stack.append(frozenset(self._items()))

    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._items()))

    def _tuple_of(self, count: int) -> None:
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.stack.append(items)

    def _global(self, arg: Any) -> None:
        module, _, name = str(arg).partition(" ")
        self.stack.append(_named(f"{module}.{name}"))

    def _stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(_named(f"{module}.{name}"))

    def _reduce(self, _: Any) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        self.stack.append(_made(function, args))

    def _newobj(self, _: Any) -> None:
        args, cls = self.stack.pop(), self.stack.pop()
        self.stack.append(_new(cls, args))

    def _newobj_ex(self, _: Any) -> None:
        self.stack.pop()
        self._newobj(None)

    def _binpersid(self, _: Any) -> None:
        if not self.persistent:
            raise _Refused("holds the opcode BINPERSID, which no network needs")

    def _build(self, _: Any) -> None:
        state, thing = self.stack.pop(), self.stack.pop()
        built = _built(thing, state)
        self.stack.append(built)
        if built is not thing:  # later references mean the finished one
            self.memo = {k: built if v is thing else v for k, v in self.memo.items()}


IGNORED = ("PROTO", "FRAME")
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict, "EMPTY_SET": set,
}  # fmt: skip
LITERALS = (
    "INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT", "STRING",
    "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
)  # fmt: skip


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"items for a list that is a {type(value).__name__}")
    return value


def _mapping(value: Any) -> dict[Any, Any]:
    """The dict behind a dict or a record of a class derived from it."""
    if isinstance(value, Record):
        return value.state
    if not isinstance(value, dict):
        raise ValueError(f"items for a dict that is a {type(value).__name__}")
    return value


def _named(text: str) -> _Name:
    dtype = text.startswith("torch.") and isinstance(getattr(torch, text[6:], None), torch.dtype)
    known = text in MAKERS or text in STORAGES or dtype
    if not known and not any(
        text.startswith(name) if name.endswith(".") else text == name for name in CLASSES
    ):
        raise _Refused(f"names {text}, which no network needs")
    return _Name(text)


def _new(cls: Any, args: Any) -> Any:
    if not isinstance(cls, _Name) or cls.text in MAKERS:
        raise ValueError(f"an object of {cls!r}")
    if cls.text in ("dnnlib.util.EasyDict", "collections.OrderedDict"):
        return dict(*args)
    if cls.text == "torch.Size":
        return tuple(*args)
    return Record(cls.text)


def _made(function: Any, args: Any) -> Any:
    """What a function of the list would have made of its arguments."""
    if not isinstance(function, _Name):
        raise ValueError(f"a call of {type(function).__name__}")
    if function.text in MAKERS:
        return MAKERS[function.text](*args)
    if function.text.endswith(".set"):
        return set(*args)
    if function.text == "numpy.dtype":
        return _dtype(str(args[0]))
    return _new(function, args)


def _built(thing: Any, state: Any) -> Any:
    """A thing with its state set."""
    if isinstance(thing, np.dtype):
        return thing.newbyteorder(">") if state[1] == ">" else thing
    if isinstance(thing, _Array):
        _, shape, dtype, fortran, raw = state  # Python 2 wrote bytes as a string
        flat = np.frombuffer(raw.encode("latin-1") if isinstance(raw, str) else raw, dtype=dtype)
        return flat.reshape(shape, order="F" if fortran else "C").copy()
    if isinstance(thing, Record | dict):
        for part in state if isinstance(state, tuple) else (state,):
            _mapping(thing).update(part or {})
        return thing
    if isinstance(thing, Tensor):
        return thing
    raise ValueError(f"state for a {type(thing).__name__}")


def _dtype(code: str) -> np.dtype[Any]:
    dtype = np.dtype(code)
    if dtype.hasobject:
        raise _Refused("holds an array of Python objects, which no network needs")
    return dtype


STORAGES = {
    "torch.DoubleStorage": torch.float64, "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16, "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64, "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16, "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8, "torch.BoolStorage": torch.bool,
}  # fmt: skip
MAGIC = 0x1950A86A20F9469CFC6C


def _storage(data: bytes) -> Tensor:
    """torch's older format: magic number, version, machine, what is stored, its key, its bytes."""
    parts: list[Any] = []
    for _ in range(5):
        part, end = _Machine(persistent=True).run(data)
        parts.append(part)
        data = data[end:]
    magic, _, machine, (kind, cls, _, _, count, *_), keys = parts
    if magic != MAGIC or kind != "storage" or len(keys) != 1 or not machine["little_endian"]:
        raise ValueError("a storage in another format than torch.save's older one")
    dtype = STORAGES[cls.text]
    size = torch.empty(0, dtype=dtype).element_size() * count
    raw = data[8 : 8 + size]
    if int.from_bytes(data[:8], "little") != count or len(raw) != size:
        raise ValueError("a storage that ends early")
    return torch.frombuffer(bytearray(raw), dtype=dtype) if count else torch.empty(0, dtype=dtype)


def _tensor(storage: Tensor, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor:
    if math.prod(size) > len(storage):
        raise ValueError(f"a tensor of shape {tuple(size)} in a storage of {len(storage)}")
    return torch.as_strided(storage, tuple(size), tuple(stride), offset).clone()


def _persistent(meta: Any) -> Record:
    """An object of NVIDIA's persistence: its class by name, its arguments, its state."""
    state = dict(meta.get("state") or {})
    args, kwargs = state.pop("_init_args", ()), state.pop("_init_kwargs", {})
    return Record(str(meta["class_name"]), tuple(args), dict(kwargs), state)


def _encoded(text: str, code: str) -> bytes:
    """Bytes, as protocol 2 writes them."""
    if code != "latin1":
        raise _Refused(f"encodes text as {code!r}, which no network needs")
    return text.encode("latin1")


def _buffered(raw: bytes, dtype: np.dtype[Any], shape: tuple[int, ...], order: str) -> Any:
    """An array, as protocol 5 writes it."""
    flat = np.frombuffer(raw, dtype=dtype)
    return flat.reshape(shape, order="F" if order == "F" else "C").copy()


CORES = ("core", "_core")  # where numpy keeps its own, before and after 2.0
MAKERS: dict[str, Callable[..., Any]] = {
    "_codecs.encode": _encoded,
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *rest: data,
    "torch.storage._load_from_bytes": _storage,
    "copyreg._reconstructor": lambda cls, *rest: _new(cls, ()),
    "copy_reg._reconstructor": lambda cls, *rest: _new(cls, ()),
    "copyreg.__newobj__": lambda cls, *args: _new(cls, args),
    **{f"numpy.{core}.numeric._frombuffer": _buffered for core in CORES},
    **{
        f"numpy.{core}.multiarray.{name}": maker
        for core in ("core", "_core")
        for name, maker in {
            "_reconstruct": lambda *a: _Array(),
            "scalar": lambda dtype, raw: np.frombuffer(raw, dtype)[0],
        }.items()
    },
}
