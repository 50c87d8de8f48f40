"""Identity: whatever changes a result changes it, nothing else does, and no guess stands in."""

from __future__ import annotations

import copy
import functools
import subprocess
import sys
import threading
import types
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import scoregen as sg
from scoregen._identity import (
    IdentityError,
    identity,
    installed,
    library,
    modules_within,
    recipe,
    structure,
)

ROOT = Path(__file__).resolve().parents[1]


def linear(value: float = 1.0) -> nn.Linear:
    net = nn.Linear(2, 2, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        net.weight.fill_(value)
        net.bias.zero_()
    return net


def network(value: float = 1.0) -> sg.ScoreNetwork:
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        net = sg.MLP(event=(2,), hidden=4, depth=1, classes=3)
    with torch.no_grad():
        net.inlet.bias.fill_(value)
    return sg.ScoreNetwork(net, sg.VPSDE(), sg.V())


@dataclass(frozen=True)
class Metric:
    features: Any = None
    table: dict[str, float] = field(default_factory=dict)
    scales: tuple[float, ...] = (1.0,)


class Plain:
    def __init__(self, **held: Any) -> None:
        self.__dict__.update(held)


class Slotted:
    __slots__ = ("net",)

    def __init__(self, net: nn.Module) -> None:
        self.net = net


def closed(value: Any) -> Any:
    def feature(x: Tensor) -> Any:
        return x, value

    return feature


def defaulted(value: float) -> Any:
    return lambda x, scale=value: x * scale


# Each pair differs in one thing that decides results; each is made twice.
PAIRS = {
    "number": lambda v: v,
    "tensor value": lambda v: torch.tensor([v, 2.0]),
    "module weight": linear,
    "module in a list": lambda v: [linear(v)],
    "module in a dict": lambda v: {"net": linear(v)},
    "module in a tuple of a plain object": lambda v: Plain(nets=(linear(v),)),
    "module in a slot": lambda v: Slotted(linear(v)),
    "module in a dataclass": lambda v: Metric(linear(v)),
    "method of a module": lambda v: Metric(linear(v).forward),
    "module in a closure": lambda v: Metric(closed(linear(v))),
    "number in a closure": lambda v: Metric(closed(v)),
    "default of a function": defaulted,
    "partial": lambda v: functools.partial(torch.clamp, min=v),
    "dict of settings": lambda v: Metric(table={"a": v}),
    "numpy array": lambda v: Plain(mean=np.array([v, 0.0])),
    "array of objects": lambda v: np.array([v, "a"], dtype=object),
    "set": lambda v: {v, 7.0},
    "guidance scale": lambda v: sg.ClassifierFree(network(), v),
    "guidance scales per sample": lambda v: sg.ClassifierFree(network(), torch.tensor([v, 1.0])),
    "bound condition": lambda v: network().given(label=torch.tensor([int(v)])),
    "buffer that is not saved": lambda v: _with_buffer(v),
    "hook": lambda v: _hooked(v),
    "compiled network": lambda v: torch.compile(linear(v)),
    "process": lambda v: sg.Gaussian(sg.VPSDE(0.1, 10.0 * v), torch.zeros(2), 1.0),
    "function inside a potential": lambda v: sg.Potential(closed(v)),
    "sampler": lambda v: sg.Sampler(sg.DDIM(eta=v / 2), sg.UniformTime(3)),
    "scripted network": lambda v: torch.jit.trace(linear(v), torch.zeros(1, 2)),
}


def _with_buffer(value: float) -> nn.Module:
    net = linear()
    net.register_buffer("mean", torch.tensor(value), persistent=False)
    return net


def _hooked(value: float) -> nn.Module:
    net = linear()
    net.register_forward_hook(lambda module, args, out: out * value)
    return net


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", PAIRS)
def test_what_decides_results_is_seen(name: str) -> None:
    make = PAIRS[name]
    assert identity(make(1.0)) == identity(make(1.0))
    assert identity(make(1.0)) != identity(make(2.0))


def test_code_is_seen_and_its_name_is_not() -> None:
    space: dict[str, Any] = {"np": np}
    exec("def f(x):\n    return x + 1\ndef g(x):\n    # moved\n    return x + 1\n", space)
    exec("def h(x):\n    return x - 1\ndef k(x):\n    return x + 2\n", space)
    assert identity(space["f"]) == identity(space["g"])
    assert len({identity(space[name]) for name in "fhk"}) == 3


def test_globals_a_function_names_are_seen() -> None:
    def made(body: str, **given: Any) -> Any:
        space = dict(given)
        exec(f"def helper(x):\n    return {body}\ndef metric(x):\n    return helper(x)", space)
        return space["metric"]

    assert identity(made("x")) == identity(made("x", unused=3))
    assert identity(made("x")) != identity(made("-x"))
    assert identity(made("net(x)", net=linear(1.0))) != identity(made("net(x)", net=linear(2.0)))


def test_a_module_of_the_user_counts_with_what_is_used_of_it() -> None:
    def using(**held: Any) -> Any:
        mine = types.ModuleType("mine_that_is_nowhere")
        vars(mine).update(held)
        space = {"mine": mine}
        exec("def metric(x):\n    return mine.features(x)", space)
        return space["metric"]

    with pytest.raises(IdentityError, match="no source"):
        identity(using(features=lambda x: x))


def test_a_module_of_the_user_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    source = tmp_path / "features_of_mine.py"
    source.write_text("scale = 1.0\ndef features(x):\n    return x * scale\n")
    import features_of_mine

    space = {"features_of_mine": features_of_mine}
    exec("def metric(x):\n    return features_of_mine.features(x)", space)
    before = identity(space["metric"])
    assert before == identity(space["metric"])
    features_of_mine.scale = 2.0
    assert identity(space["metric"]) != before
    features_of_mine.scale = 1.0
    source.write_text(source.read_text() + "# edited\n")
    assert identity(space["metric"]) != before


def test_methods_of_a_class_are_seen() -> None:
    def made(body: str) -> Any:
        space: dict[str, Any] = {"nn": nn}
        exec(f"class Net(nn.Module):\n    def forward(self, x):\n        return {body}", space)
        return space["Net"]()

    assert identity(made("x")) == identity(made("x"))
    assert identity(made("x")) != identity(made("2 * x"))


def test_sending_a_thing_to_a_worker_does_not_change_it() -> None:
    """Pickling leaves a cache on the class."""

    class Own:
        value = 1

    thing = Own()
    before = identity(thing)
    assert Own.__reduce_ex__(thing, 2)[0] is not None
    assert "__slotnames__" in vars(Own)
    assert identity(thing) == before


def test_what_does_not_decide_results_is_not_seen() -> None:
    net = network()
    before = identity(net)
    assert identity(net.train()) == identity(net.eval()) == before
    assert identity(copy.deepcopy(net)) == before
    assert identity({"a": 1, "b": 2}) == identity({"b": 2, "a": 1})
    shared = torch.ones(2)
    assert identity([shared, shared]) == identity([shared, shared.clone()])
    assert identity(torch.compile(linear())) == identity(linear())
    sg.Sampler(sg.DDIM(), sg.UniformTime(3)).sample(net, (2, 2), condition={"label": 1})
    assert identity(net) == before


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (1, 1.0),
        (True, 1),
        ([1, 2], (1, 2)),
        ([1, 2], [2, 1]),
        ("1", 1),
        ("", b""),
        ([[1], 2], [1, [2]]),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (0.0, -0.0),
        (None, "None"),
        (sg.UniformTime(3), sg.UniformLam(3)),
    ],
)
def test_unlike_things_differ(a: Any, b: Any) -> None:
    assert identity(a) != identity(b)


def test_a_recipe_is_what_training_leaves_alone() -> None:
    assert recipe(linear(1.0)) == recipe(linear(2.0))
    assert recipe(nn.Dropout(0.1)) != recipe(nn.Dropout(0.2))
    assert recipe([torch.ones(1)]) != recipe([torch.zeros(1)])
    assert recipe(closed(linear(1.0))) == recipe(closed(linear(2.0)))
    assert recipe(closed(1.0)) != recipe(closed(2.0))
    with pytest.raises(IdentityError, match="objective_name="):
        recipe(threading.Lock())


def test_a_recipe_survives_an_update_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    before = recipe(sg.Sampler(sg.DDIM(), sg.UniformTime(3)))
    monkeypatch.setattr(installed, "library", lambda: "9.9.9")
    installed.version.cache_clear()
    try:
        assert recipe(sg.Sampler(sg.DDIM(), sg.UniformTime(3))) == before
    finally:
        monkeypatch.undo()
        installed.version.cache_clear()


def test_modules_are_found_wherever_they_are_held() -> None:
    net = linear()
    held = {
        ".nets[0]": Plain(nets=[net]),
        "['a']": {"a": net},
        ".value": closed(net),
        ".net": Slotted(net),
        ".__self__": net.forward,
        ".keywords['net']": functools.partial(closed, net=net),
        "[1].features": [sys.stdout, Metric(net), threading.Lock(), iter([1])],
    }
    for path, thing in held.items():
        assert modules_within(thing) == {path: net}
    assert modules_within(nn.Sequential(net)).keys() == {""}  # the outermost alone


def test_the_structure_of_a_compiled_network_is_its_own() -> None:
    inner = nn.Sequential(linear(), nn.Dropout(0.5))
    assert structure(torch.compile(inner)) == structure(inner)


def test_cycles_end() -> None:
    def loop(value: float) -> Plain:
        a = Plain(value=value)
        a.self = Plain(back=a)
        return a

    assert identity(loop(1.0)) == identity(loop(1.0))
    assert identity(loop(1.0)) != identity(loop(2.0))


@pytest.mark.parametrize(
    "thing",
    [
        lambda: torch.Generator(),
        lambda: np.random.default_rng(0),
        lambda: threading.Lock(),
        lambda: (x for x in [1]),
        lambda: linear().to("meta"),
        lambda: iter([1]),
        lambda: sys.stdout.buffer,
        lambda: closed(threading.Lock()),
        lambda: Metric(Plain(source=np.random.default_rng(0))),
    ],
)
def test_a_hidden_state_is_refused(thing: Any) -> None:
    with pytest.raises(IdentityError, match="has no identity"):
        identity(thing())


def test_the_refusal_says_where() -> None:
    with pytest.raises(IdentityError, match=r"Metric\.table\['a'\]\[1\]"):
        identity(replace(Metric(), table={"a": [1, threading.Lock()]}))


def test_a_foreign_estimator_counts_with_what_it_learned() -> None:
    ensemble = pytest.importorskip("sklearn.ensemble")
    rng = np.random.default_rng(0)

    def fitted(x: np.ndarray) -> Any:
        forest = ensemble.RandomForestClassifier(2, random_state=0)
        return forest.fit(x, [0, 1] * 10)

    x = rng.normal(size=(20, 2))
    assert identity(fitted(x).predict) == identity(fitted(x).predict)
    assert identity(fitted(x).predict) != identity(fitted(-x[::-1]).predict)


@pytest.mark.slow
def test_another_process_finds_the_same() -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "import test_identity as t\n"
        "for n, m in t.PAIRS.items():\n"
        "    if n != 'scripted network': print(n, t.identity(m(1.0)), sep='=')"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]
    assert len(runs[0].splitlines()) == len(PAIRS) - 1


def test_the_library_counts_with_version_and_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    assert library() == library()
    before = identity(sg.DDIM())
    monkeypatch.setattr(installed, "library", lambda: "9.9.9")
    installed.version.cache_clear()
    try:
        assert identity(sg.DDIM()) != before
    finally:
        monkeypatch.undo()
        installed.version.cache_clear()
    assert identity(sg.DDIM()) == before
