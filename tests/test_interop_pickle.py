"""Network pickles are read as data: right numbers, no imports, and hostile files named."""

from __future__ import annotations

import codecs
import os
import pickle
import shutil
import struct
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scoregen.interop import Record, read_pickle


class EasyDict(dict):
    """dnnlib's, near enough."""


class _Persistent:
    """What NVIDIA's decorator makes of a class, by its published format, for writing alone."""

    def __init__(self, class_name: str, module: nn.Module, kwargs: dict[str, Any]) -> None:
        self.class_name, self.module, self.kwargs = class_name, module, kwargs

    def __reduce__(self) -> Any:
        state = {**self.module.__dict__, "_init_args": (), "_init_kwargs": EasyDict(self.kwargs)}
        meta = EasyDict(
            type="class", version=6, module_src="raise SystemExit('the source was run')",
            class_name=self.class_name, state=state,
        )  # fmt: skip
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,)


def _reconstruct_persistent_obj(meta: Any) -> Any:
    raise AssertionError("the file's own reconstruction was called")


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """write(path, thing, protocol): with modules that have NVIDIA's names, gone afterwards."""

    def write(path: Path, thing: Any, protocol: int = 2) -> Path:
        with monkeypatch.context() as patch:
            modules = {
                name: types.ModuleType(name)
                for name in ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util")
            }
            for name, module in modules.items():
                patch.setitem(sys.modules, name, module)
            persistence: Any = modules["torch_utils.persistence"]
            persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj
            patch.setattr(_reconstruct_persistent_obj, "__module__", "torch_utils.persistence")
            util: Any = modules["dnnlib.util"]
            util.EasyDict = EasyDict
            patch.setattr(EasyDict, "__module__", "dnnlib.util")
            path.write_bytes(pickle.dumps(thing, protocol))
        return path

    return write


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.Sequential(nn.Linear(4, 2)))
    net.register_buffer("freqs", torch.arange(6, dtype=torch.float64).reshape(2, 3).t())
    return net


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_snapshot_comes_back_as_data(tmp_path: Path, writer: Any, protocol: int) -> None:
    net = network()
    ema = _Persistent("EDMPrecond", net, {"img_resolution": 32, "label_dim": 10, "sigma": 0.5})
    shared = np.arange(3.0)
    whole = {
        "twice": [shared, shared], "big-endian": np.arange(3, dtype=">i4"),
        "ema": ema, "loss": (1, -2.5, None, True), "names": ["a", "b"], "kept": {1, 2},
        "array": np.arange(6, dtype=np.float32).reshape(2, 3), "number": np.float64(0.25),
        "big": 2**70, "raw": b"bytes", "dtype": torch.float16, "order": OrderedDict(x=1),
    }  # fmt: skip
    path = writer(tmp_path / "snapshot.pkl", whole, protocol)
    before = set(sys.modules)
    got = read_pickle(path)
    assert not {"dnnlib", "torch_utils"} & (set(sys.modules) - before)
    record = got["ema"]
    assert isinstance(record, Record)
    assert record.name == "EDMPrecond"
    assert record.kwargs == {"img_resolution": 32, "label_dim": 10, "sigma": 0.5}
    tensors = record.tensors()
    assert set(tensors) == set(net.state_dict())
    for name, value in net.state_dict().items():
        assert torch.equal(tensors[name], value), name
        assert tensors[name].dtype == value.dtype
    assert record.state["_modules"]["1"].name.startswith("torch.nn.modules.activation")
    assert (got["loss"], got["names"], got["big"], got["raw"]) == (
        (1, -2.5, None, True), ["a", "b"], 2**70, b"bytes",
    )  # fmt: skip
    assert (got["kept"], got["order"], got["number"]) == ({1, 2}, {"x": 1}, 0.25)
    for array in got["twice"]:
        np.testing.assert_array_equal(array, shared)
    np.testing.assert_array_equal(got["big-endian"], [0, 1, 2])
    np.testing.assert_array_equal(got["array"], np.arange(6, dtype=np.float32).reshape(2, 3))


def test_the_tensors_fill_a_network_of_ones_own(tmp_path: Path, writer: Any) -> None:
    path = writer(tmp_path / "n.pkl", {"ema": _Persistent("Net", network(), {})})
    with torch.random.fork_rng():
        mine = nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.Sequential(nn.Linear(4, 2)))
    mine.register_buffer("freqs", torch.zeros(3, 2, dtype=torch.float64))
    mine.load_state_dict(read_pickle(path)["ema"].tensors())
    x = torch.ones(1, 3)
    assert torch.equal(mine(x), network()(x))


class _Call:
    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


HOSTILE = {
    "posix.system": _Call(os.system, "touch owned"),
    "builtins.eval": _Call(eval, "1 / 0"),
    "builtins.getattr": _Call(getattr, "x", "upper"),
    "builtins.exec": {"ema": [_Call(exec, "raise SystemExit")]},
    "torch.serialization.load": _Call(torch.load, "x"),
    "shutil.rmtree": _Call(shutil.rmtree, "absent"),
    "_codecs.decode": _Call(codecs.decode, b"x", "rot13"),
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_by_name(tmp_path: Path, name: str, protocol: int) -> None:
    path = tmp_path / "net.pkl"
    path.write_bytes(pickle.dumps(HOSTILE[name], protocol))
    shown = name.replace("builtins", "(builtins|__builtin__)")
    with pytest.raises(ValueError, match=rf"net\.pkl names {shown}, which no network needs"):
        read_pickle(path)
    assert list(tmp_path.iterdir()) == [path]


def test_code_inside_a_storage_is_not_run(tmp_path: Path) -> None:
    inner = pickle.dumps(_Call(os.system, f"touch {tmp_path}/owned"), 2)
    path = tmp_path / "net.pkl"
    path.write_bytes(pickle.dumps(_Call(torch.storage._load_from_bytes, inner), 2))
    with pytest.raises(ValueError, match=r"posix\.system"):
        read_pickle(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "no pickle of a network"),
        (b"not a pickle at all", "no pickle of a network"),
        (pickle.dumps([1, 2, 3])[:-3], "no pickle of a network"),
        (b"P1\n.", "PERSID"),
        (b"(ios\nsystem\n.", "INST"),
        (b"\x82\x01.", "EXT1"),
        (b"K\x01K\x02a.", "list"),
        (b"K\x01)R.", "a call of int"),
        (b"\x80\x02cnumpy\ndtype\nX\x01\x00\x00\x00O\x85R.", "Python objects"),
        (b"\x80\x02B" + struct.pack("<I", 2**31) + b"x.", "no pickle of a network"),
        (b"ctorch\nload\n.", r"torch\.load"),
        (b"ctorch.nn.modules.linear\nLinear\n)R}Nb.", None),
    ],
)
def test_damaged_and_odd_streams(tmp_path: Path, data: bytes, word: str | None) -> None:
    path = tmp_path / "net.pkl"
    path.write_bytes(data)
    if word is None:
        assert read_pickle(path).__class__ in (dict, Record)
        return
    with pytest.raises(ValueError, match=word):
        read_pickle(path)


def test_every_flipped_byte_reads_or_is_refused(tmp_path: Path, writer: Any) -> None:
    """Never another error, never code: 200 damaged copies."""
    path = writer(tmp_path / "n.pkl", {"ema": _Persistent("Net", network(), {"a": 1})})
    whole = path.read_bytes()
    for i in range(0, len(whole), max(1, len(whole) // 200)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 0x15]) + whole[i + 1 :])
        try:
            read_pickle(path)
        except ValueError:
            continue


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_pickle(tmp_path / "absent.pkl")


def test_tensors_share_no_memory_with_the_file(tmp_path: Path, writer: Any) -> None:
    part: Tensor = torch.arange(12.0)[3:9].reshape(2, 3)  # a view with an offset
    kinds = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
    more = [torch.tensor([0, 1, 2]).to(kind) for kind in kinds]
    path = writer(tmp_path / "n.pkl", {"part": part, "more": more, "none": torch.zeros(0, 3)})
    got = read_pickle(path)
    assert torch.equal(got["part"], part)
    assert got["part"].is_contiguous()
    assert got["none"].shape == (0, 3)
    for value, want in zip(got["more"], more, strict=True):
        assert value.dtype == want.dtype
        assert torch.equal(value, want)
