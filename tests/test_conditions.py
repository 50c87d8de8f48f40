"""Conditions of any structure: rows, guidance, chunks; and whatever a network may be."""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from cases import F64, gaussian, mixture, normal
from torch import Tensor, nn

from scoregen import (
    DDIM,
    VPSDE,
    X0,
    Eps,
    HalfLogSNR,
    RawTime,
    RectifiedSDE,
    Sampler,
    ScoreModel,
    ScoreNetwork,
    Times,
    UniformLam,
    UniformTime,
    V,
    Velocity,
)
from scoregen.energies import EnergyNetwork, Potential, ReconstructionEnergy
from scoregen.guidance import ClassifierFree, Reconstruction
from scoregen.inverse import LinearMeasurement, PiGDM
from scoregen.models import (
    Conditions,
    Counted,
    LearnedVariance,
    Network,
    Shared,
    Wrapped,
    check_model,
    conditions_of,
)
from scoregen.models.conditions import expand, fill, join, plain, rows
from scoregen.networks import MLP, UNet
from scoregen.sampling import Picard

CPU = torch.device("cpu")


class Pair(NamedTuple):
    text: Any
    mask: Any


# -- trees -------------------------------------------------------------------------------------


def test_rows_follow_the_written_rule() -> None:
    tree = {
        "per": torch.arange(4),
        "one": torch.ones(1, 3),
        "scalar": torch.tensor(2.0),
        "prompts": ["a", "b", "c", "d"],
        "prompt": ["same"],
        "word": "plain",
        "size": (512, 4),
        "nested": {"deep": [torch.arange(8).reshape(4, 2), Pair(torch.arange(4), None)]},
        "marked": Shared(torch.arange(4)),
    }
    got = rows(tree, slice(1, 3), 4)
    assert got["per"].tolist() == [1, 2]
    assert got["one"] is tree["one"]
    assert got["scalar"] is tree["scalar"]
    assert got["prompts"] == ["b", "c"]
    assert got["prompt"] == ["same"]
    assert got["word"] == "plain"
    assert got["size"] == (512, 4)
    assert got["nested"]["deep"][0].tolist() == [[2, 3], [4, 5]]
    assert isinstance(got["nested"]["deep"][1], Pair)
    assert got["nested"]["deep"][1].text.tolist() == [1, 2]
    assert got["marked"].value.tolist() == [0, 1, 2, 3]
    picked = rows(tree, torch.tensor([3, 0, 0]), 4)
    assert picked["per"].tolist() == [3, 0, 0]
    assert picked["prompts"] == ["d", "a", "a"]
    assert plain(tree)["marked"] is tree["marked"].value
    assert plain(tree)["nested"] is tree["nested"], "what holds no mark is passed on as given"
    assert rows({"label": torch.tensor([5])}, torch.tensor([0, 0]), 1)["label"].tolist() == [5, 5]


@pytest.mark.parametrize(
    ("value", "error", "word"),
    [
        (torch.zeros(3, 2), ValueError, "one entry per sample"),
        (["a", "b"], ValueError, "one entry per sample"),
        ({"deep": [torch.zeros(5)]}, ValueError, "Shared"),
        (object(), TypeError, "object"),
        (lambda: None, TypeError, "Shared"),
    ],
)
def test_what_is_neither_per_sample_nor_shared_is_refused(value, error, word: str) -> None:
    with pytest.raises(error, match=word):
        rows({"text": value}, slice(0, 2), 4)
    assert rows({"text": Shared(value)}, slice(0, 2), 4)["text"].value is value


def test_expanding_makes_labels_of_whole_numbers_and_moves_nested_tensors() -> None:
    import numpy as np

    full = expand({"label": 3, "other": np.int64(2), "flag": True, "size": {"h": 8}}, 2, CPU)
    assert full["label"].tolist() == [3, 3]
    assert full["other"].dtype == torch.int64
    assert full["flag"] is True
    assert full["size"] == {"h": 8}
    meta = expand({"a": {"b": [torch.zeros(2)]}, "c": Shared(torch.zeros(1))}, 2, "meta")
    assert meta["a"]["b"][0].device.type == "meta"
    assert meta["c"].value.device.type == "meta"


def test_nulls_take_the_form_of_their_condition() -> None:
    label = torch.tensor([1, 2, 3])
    assert fill(9, label, "label").tolist() == [9, 9, 9]
    assert fill(torch.tensor(9), label, "label").tolist() == [9, 9, 9]
    text = torch.ones(3, 7, 6)
    assert fill(0.0, text, "text").shape == (3, 7, 6)
    assert fill(torch.zeros(7, 6), text, "text").shape == (3, 7, 6)
    assert fill(torch.zeros(1, 5, 6), text, "text").shape == (1, 5, 6)
    assert fill("", ["a", "b"], "prompt") == ["", ""]
    assert fill(["x", "y"], ["a", "b"], "prompt") == ["x", "y"]
    nested = fill({"a": 0.0, "b": [1.0]}, {"a": text, "b": [label.double()]}, "tree")
    assert nested["b"][0].tolist() == [1.0, 1.0, 1.0]
    assert fill(0.0, Shared(text), "text").value.sum() == 0
    with pytest.raises(TypeError, match="whole-numbered"):
        fill(0.5, label, "label")
    with pytest.raises(ValueError, match="does not expand"):
        fill(torch.zeros(5), text, "text")
    with pytest.raises(TypeError, match="lacks"):
        fill({"a": 0.0}, {"a": text, "b": text}, "tree")


def test_branches_are_joined_only_where_they_fit() -> None:
    one = {"a": torch.ones(2, 3), "b": {"c": ["x", "y"]}, "d": None, "e": 2.0}
    two = {"a": torch.zeros(1, 3), "b": {"c": ["", ""]}, "d": None, "e": 2.0}
    both = join(one, two, 2)
    assert both is not None
    assert both["a"].tolist() == [[1] * 3, [1] * 3, [0] * 3, [0] * 3]
    assert both["b"]["c"] == ["x", "y", "", ""]
    for name, other in [("a", torch.zeros(2, 4)), ("e", 3.0), ("b", None), ("a", torch.ones(()))]:
        assert join(one, {**two, name: other}, 2) is None


# -- any callable is a network -----------------------------------------------------------------


@dataclass
class Output:
    sample: Tensor


class Ordered(OrderedDict):
    """As diffusers' outputs are: a mapping with attributes."""

    @property
    def sample(self) -> Tensor:
        return self["sample"]


@dataclass
class Only:
    mean: Tensor
    note: str = ""


HALVES = {
    "function": lambda x, clock: x / 2,
    "sample": lambda x, clock: Output(x / 2),
    "ordered": lambda x, clock: Ordered(sample=x / 2, other=x),
    "tuple": lambda x, clock: (x / 2,),
    "tuple and none": lambda x, clock: (x / 2, None),
    "mapping": lambda x, clock: {"out": x / 2},
    "dataclass": lambda x, clock: Only(x / 2),
}


@pytest.mark.parametrize("name", HALVES)
def test_any_callable_is_a_network(name: str) -> None:
    model, x = ScoreNetwork(HALVES[name], VPSDE(), X0()), normal(3, 2)
    assert torch.equal(model(x, 0.5).x0, x / 2)
    assert model.placement() == (CPU, torch.float32)
    assert model.conditions is None
    assert Sampler(DDIM(), UniformTime(3)).sample(model, (2, 3), seed=0).isfinite().all()
    with Counted(model) as count:
        model(x, 0.5)
    assert count.rows == 3


@pytest.mark.parametrize(
    ("net", "error", "word"),
    [
        (lambda x, clock: (x, x), TypeError, r"exactly one.*tuple with tensors of shapes \(2, 3\)"),
        (lambda x, clock: None, TypeError, "NoneType"),
        (lambda x, clock: {"a": x, "b": x}, TypeError, "exactly one"),
        (lambda x, clock: torch.distributions.Normal(x, 1.0), TypeError, "Normal"),
        (lambda x, clock: x.to(torch.complex64), TypeError, "complex64"),
        (lambda x, clock: x.long(), TypeError, "int64"),
        (lambda x, clock: (x[:, :1],), ValueError, r"\(2, 3\), got \(2, 1\)"),
    ],
)
def test_ambiguous_outputs_are_refused(net, error, word: str) -> None:
    with pytest.raises(error, match=word):
        ScoreNetwork(net, VPSDE(), X0())(torch.zeros(2, 3), 0.5)


def test_the_four_slots_are_checked() -> None:
    with torch.random.fork_rng():
        net = MLP()
    for bad, word in [
        ((3, VPSDE(), Eps()), "callable"),
        ((MLP, VPSDE(), Eps()), "callable"),
        ((net, Eps(), VPSDE()), "process"),
        ((net, VPSDE(), VPSDE()), "parameterization"),
        ((net, VPSDE(), Eps(), 1.0), "clock"),
        ((gaussian(VPSDE()), VPSDE(), Eps()), "score model already"),
    ]:
        with pytest.raises(TypeError, match=word):
            ScoreNetwork(*bad)
    with pytest.raises(TypeError, match="Conditions"):
        ScoreNetwork(net, VPSDE(), Eps(), conditions={"label": 3})


def test_two_output_channels_in_an_object() -> None:
    model = ScoreNetwork(lambda x, c: Output(torch.cat([x, 0 * x], 1)), VPSDE(), LearnedVariance())
    assert float(model(torch.ones(2, 3), 0.5).spread[0, 0]) == 0.5


class Quantised(nn.Module):
    """Weights stored as bytes come first among the parameters; the scale is what it computes in."""

    def __init__(self, storage: torch.dtype, scale: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(2).to(storage), requires_grad=False)
        self.scale = nn.Parameter(torch.tensor(0.5, dtype=scale))
        self.seen: list[tuple[torch.dtype, torch.dtype]] = []

    def forward(self, x: Tensor, clock: Tensor) -> Tensor:
        self.seen.append((x.dtype, clock.dtype))
        return x @ (self.weight.to(x.dtype) * self.scale)


@pytest.mark.parametrize("storage", [torch.int8, torch.uint8, torch.float8_e4m3fn])
@pytest.mark.parametrize("scale", [torch.float32, torch.bfloat16])
def test_storage_dtypes_do_not_decide_the_inputs(storage, scale) -> None:
    net = Quantised(storage, scale)
    x = torch.tensor([[0.9, -1.7], [2.6, 0.3]])
    model = ScoreNetwork(net, VPSDE(), X0())
    out = model(x, 0.5).x0
    torch.testing.assert_close(out, (x.to(scale) / 2).float(), rtol=0.01, atol=0)
    assert net.seen == [(scale, torch.float32)]
    assert model.placement()[1] == scale


@pytest.mark.parametrize("state", [torch.float32, torch.float64, torch.bfloat16])
def test_clocks_are_not_rounded(state: torch.dtype) -> None:
    seen = []

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            seen.append(t)
            return x * self.w

    model = ScoreNetwork(Net(), RectifiedSDE(), Velocity(), RawTime(1000.0))
    want = [999.0, 937.0, 833.0, 625.0]
    grid = Times(*(t / 1000 for t in want), 0.0)
    Sampler(DDIM(), grid).sample(model, (2, 4), seed=0, dtype=state)
    assert [t.dtype for t in seen] == [torch.float32] * 4
    torch.testing.assert_close(torch.stack(seen)[:, 0], torch.tensor(want), rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_torchs_own_wrappers_are_looked_through() -> None:
    with torch.random.fork_rng():
        net = MLP(event=(2,), hidden=8, depth=1, classes=3)
    averaged = torch.optim.swa_utils.AveragedModel(net)
    compiled = torch.compile(net, backend="eager")
    shells = (nn.DataParallel(net), averaged, nn.DataParallel(averaged))
    for shell in (*shells, compiled, nn.DataParallel(compiled)):
        model = ScoreNetwork(shell, VPSDE(), Eps())
        assert conditions_of(model) == Conditions({"label": 3}, 3)
        with pytest.raises(TypeError, match="unknown condition"):
            model.given(colour=1)
        guided = ClassifierFree(model, 2.0)
        want = ClassifierFree(ScoreNetwork(net, VPSDE(), Eps()), 2.0)
        x, label = normal(2, 2, dtype=torch.float32), torch.tensor([0, 1])
        torch.testing.assert_close(guided(x, 0.5, label=label).x0, want(x, 0.5, label=label).x0)


# -- what is declared --------------------------------------------------------------------------


def test_networks_and_models_declare_their_conditions() -> None:
    with torch.random.fork_rng():
        nets = [MLP(classes=4), UNet(1, 8, classes=4)]
        plain_net = MLP()
    for net in nets:
        assert isinstance(net, Network)
        for thing in (
            net,
            ScoreNetwork(net, VPSDE(), Eps()),
            EnergyNetwork(ReconstructionEnergy(net), VPSDE()),
            ClassifierFree(ScoreNetwork(net, VPSDE(), Eps()), 2.0),
        ):
            assert conditions_of(thing) == Conditions.labels(4)
    for thing in (plain_net, gaussian(VPSDE()), Potential(lambda x: x.sum(1))):
        assert conditions_of(thing) == Conditions()
    assert conditions_of(nn.ReLU()) is None
    assert conditions_of(object()) is None
    bound = ScoreNetwork(nets[0], VPSDE(), Eps()).given(label=torch.tensor([0]))
    assert conditions_of(bound) == Conditions()
    with pytest.raises(ValueError, match="label"):
        Conditions(classes=3)
    with pytest.raises(ValueError, match="classes"):
        Conditions.labels(-1)


def test_an_energy_with_classes_sees_its_labels() -> None:
    """With a declaring network and with any other."""

    def energy(x: Tensor, clock: Tensor, label: Tensor) -> Tensor:
        return x.square().sum(1) * (1 + label)

    model = EnergyNetwork(energy, VPSDE()).given(label=torch.tensor([0, 1]))
    x = torch.ones(2, 2)
    assert model(x, 0.5).energy.tolist() == [2.0, 4.0]
    with torch.random.fork_rng():
        net = MLP(event=(2,), hidden=8, classes=3)
    labelled = EnergyNetwork(ReconstructionEnergy(net), VPSDE())
    assert not torch.equal(
        *(labelled(x, 0.5, label=torch.full((2,), k)).energy.detach() for k in (0, 1))
    )
    with pytest.raises(ValueError, match="labels must lie"):
        labelled.given(label=torch.tensor([9]))


class Embedded(nn.Module):
    """Someone's network: x0 = the mean over a text embedding, plus that of the pooled one."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def forward(self, x: Tensor, t: Tensor, emb: Tensor, added: Any = None) -> Tensor:
        self.calls.append(len(x))
        value = emb.mean(tuple(range(emb.dim() > 2, emb.dim()))).reshape(-1, 1)
        if added is not None:
            value = value + added["pooled"].mean(1, keepdim=True) + 0 * added["ids"].sum()
        return value.expand(len(x), 1).expand_as(x)


def embedded(scale: Any, **options: Any) -> ClassifierFree:
    model = ScoreNetwork(Embedded(), VPSDE(), X0(), HalfLogSNR())
    return ClassifierFree(model, scale, **options)


@pytest.mark.parametrize("batch", [1, 4, 7])
@pytest.mark.parametrize("shape", [(1, 7, 6), (7, 6), (7,), ()])
def test_shared_conditions_are_guided_like_any_other(batch: int, shape: tuple[int, ...]) -> None:
    """u + w (c - u) with c = 1 and u = 0.25, whatever the shape, batch 7 = L included."""
    null = torch.full(shape, 0.25)
    for scale, want in [(0.0, 0.25), (1.0, 1.0), (3.0, 2.5), (50.0, 37.75)]:
        guided = embedded(scale, null={"emb": null})
        with Counted(guided) as count:
            got = guided(torch.zeros(batch, 3), 0.5, emb=torch.ones(shape)).x0
        torch.testing.assert_close(got, torch.full((batch, 3), want))
        assert count.rows == batch * (1 if scale in (0.0, 1.0) else 2)
    one = embedded(3.0, null={"emb": 0.25})(torch.zeros(batch, 3), 0.5, emb=torch.ones(shape))
    torch.testing.assert_close(one.x0, torch.full((batch, 3), 2.5))


def test_nested_conditions_with_negatives_of_their_own() -> None:
    """Text of another length, one negative per sample, a pooled vector nulled with it."""
    emb = torch.arange(1.0, 5.0).reshape(4, 1, 1).expand(4, 7, 6)
    negative = torch.arange(4.0).reshape(4, 1, 1).expand(4, 11, 6) / 8
    added = {"pooled": torch.full((1, 5), 0.5), "ids": torch.ones(4, 6)}
    null = {"emb": negative, "added": {"pooled": 0.0, "ids": torch.zeros(1, 6)}}
    scales = torch.tensor([1.0, 2.0, 3.0, 4.0])
    c, u = torch.arange(1.0, 5.0) + 0.5, torch.arange(4.0) / 8
    want = (u + scales * (c - u)).reshape(4, 1).expand(4, 3)
    guided = embedded(scales, null=null)
    torch.testing.assert_close(guided(torch.zeros(4, 3), 0.5, emb=emb, added=added).x0, want)
    sampler = Sampler(DDIM(), UniformLam(4))
    condition = {"emb": emb, "added": added}
    for model in (guided, guided.given(**condition)):
        free = {} if model is not guided else condition
        whole = sampler.sample(model, (4, 3), seed=0, condition=free)
        torch.testing.assert_close(whole, want)
        for chunk in (1, 3):
            parts = sampler.sample(model, (4, 3), seed=0, condition=free, chunk=chunk)
            assert torch.equal(whole, parts)


def test_a_condition_without_batch_axis_is_marked_for_chunks() -> None:
    sampler, emb = Sampler(DDIM(), UniformLam(3)), torch.ones(7, 6)
    for batch in (5, 7):  # 7: the length that would pass for one row per sample
        guided = embedded(3.0, null={"emb": torch.zeros(7, 6)})
        got = sampler.sample(guided, (batch, 3), seed=0, chunk=2, condition={"emb": Shared(emb)})
        torch.testing.assert_close(got, torch.full((batch, 3), 3.0))
    with pytest.raises(ValueError, match="Shared"):
        sampler.sample(guided, (5, 3), seed=0, chunk=2, condition={"emb": emb})


def test_lists_of_prompts_are_sliced_and_nulled() -> None:
    def net(x: Tensor, clock: Tensor, prompt: list[str]) -> Tensor:
        assert len(prompt) == len(x)
        return x.new_tensor([float(len(p)) for p in prompt]).reshape(-1, 1) + 0 * x

    prompts = ["a", "bb", "ccc", "dddd", "eeeee"]
    guided = ClassifierFree(ScoreNetwork(net, VPSDE(), X0()), 2.0, null={"prompt": ""})
    for chunk in (None, 2):
        got = Sampler(DDIM(), UniformLam(3)).sample(
            guided, (5, 2), seed=0, chunk=chunk, condition={"prompt": prompts}
        )
        torch.testing.assert_close(got[:, 0], torch.tensor([2.0, 4.0, 6.0, 8.0, 10.0]))


def test_a_declaring_user_network_is_evaluated_in_one_batch() -> None:
    model = ScoreNetwork(Embedded(), VPSDE(), X0(), conditions=Conditions({"emb": 0.25}))
    guided = ClassifierFree(model, 3.0)
    got = guided(torch.zeros(4, 3), 0.5, emb=torch.ones(1, 7, 6)).x0
    torch.testing.assert_close(got, torch.full((4, 3), 2.5))
    assert model.net.calls == [8]
    longer = ClassifierFree(model, 3.0, null={"emb": torch.full((1, 9, 6), 0.25)})
    got = longer(torch.zeros(4, 3), 0.5, emb=torch.ones(1, 7, 6)).x0
    torch.testing.assert_close(got, torch.full((4, 3), 2.5))
    assert model.net.calls == [8, 4, 4]
    with pytest.raises(TypeError, match="unknown condition"):
        guided(torch.zeros(4, 3), 0.5, emb=torch.ones(1, 7, 6), text="x")


def test_picard_repeats_what_is_bound_per_sample() -> None:
    label = torch.arange(3.0).reshape(3, 1, 1)
    guided = embedded(torch.tensor([1.0, 2.0, 3.0]), null={"emb": label / 2}).given(emb=label)
    run = [
        kind(DDIM(), UniformLam(6)).sample(guided, (3, 2), seed=0, dtype=F64)
        for kind in (Sampler, Picard)
    ]
    torch.testing.assert_close(*run)


def test_measurements_per_sample_go_with_their_rows() -> None:
    prior = gaussian(VPSDE(), 1.0, event=(2,))
    y = torch.arange(5.0).reshape(5, 1)
    seen = LinearMeasurement(torch.eye(2)[:1], y, 0.5)
    sampler = Sampler(DDIM(), UniformLam(4))
    for model in (PiGDM(prior, seen), Reconstruction(prior, lambda x: x[:, :1], y)):
        whole = sampler.sample(model, (5, 2), seed=0)
        assert torch.equal(whole, sampler.sample(model, (5, 2), seed=0, chunk=2))
        assert torch.equal(model.rows(slice(1, 4), 5).rows(slice(1, 2), 3)(whole[:1], 0.5).x0,
                           model.rows(slice(2, 3), 5)(whole[:1], 0.5).x0)  # fmt: skip
        with pytest.raises(ValueError, match="one"):
            sampler.sample(model, (7, 2), seed=0, chunk=2)
    assert gaussian(VPSDE()).rows(slice(0, 1), 5) is not None
    exact = mixture(VPSDE())
    assert exact.rows(slice(0, 1), 5) is exact


# -- wrappers and the check at the entry -------------------------------------------------------


def test_a_wrapper_forwards_and_a_changed_score_is_integrated() -> None:
    exact = mixture(VPSDE())

    class Plain(Wrapped):
        pass

    class Halved(Wrapped):
        def predict(self, x, t, **condition):
            p = self.model.predict(x, t, **condition)
            return type(p)(p.sde, t, x, score=p.score / 2)

    x, y = normal(3, 2), normal(3, 2, seed=1)
    wrapped = Plain(exact)
    assert wrapped.event == (2,)
    assert wrapped.sde is exact.sde
    assert torch.equal(wrapped.energy_difference(x, y, 0.4), exact.energy_difference(x, y, 0.4))
    assert torch.equal(wrapped(x, 0.4).x0, exact(x, 0.4).x0)
    half = Halved(exact).energy_difference(x, y, 0.4, nodes=24)
    torch.testing.assert_close(half, exact.energy_difference(x, y, 0.4) / 2, rtol=1e-4, atol=1e-4)
    with pytest.raises(TypeError, match="no condition"):
        wrapped.given(label=1)
    with Counted(wrapped) as count:
        wrapped(x, 0.4)
    assert count.rows == 3
    copy.deepcopy(wrapped)(x, 0.4)


def test_a_subclass_that_calls_its_parent_is_one_evaluation() -> None:
    class Louder(type(mixture(VPSDE()))):
        def predict(self, x, t, **condition):
            return super().predict(x, t, **condition)

    exact = mixture(VPSDE())
    model = Louder(exact.sde, torch.ones(2), torch.zeros(2, 2), torch.ones(2))
    with Counted(model) as count:
        model(torch.zeros(5, 2), 0.5)
    assert count.rows == 5


class Unfinished(ScoreModel):
    def predict(self, x, t, **condition):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("thing", "word"),
    [
        (nn.ReLU(), r"the network ReLU.*ScoreNetwork\(net"),
        (lambda x, t: x, r"the callable <lambda>.*Potential"),
        (MLP, "the class MLP"),
        (None, "NoneType"),
        ({}, "dict"),
        (Unfinished(), "no process"),
    ],
)
def test_what_is_no_score_model_is_refused_with_a_way_out(thing: Any, word: str) -> None:
    with pytest.raises(TypeError, match=word):
        check_model(thing)
    with pytest.raises(TypeError, match=word):
        Wrapped(thing)


def test_a_model_passes_the_check() -> None:
    model = ScoreNetwork(lambda x, c: x, VPSDE(), V())
    assert check_model(model) is model
