"""What a training reads its samples from: the protocol, the rows of each process, dropped parts."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from scoregen import VPSDE, Data, ScoreNetwork, V
from scoregen.data import Batch, Source, as_source, from_levels, rings
from scoregen.models import Conditions
from scoregen.objectives import DenoisingScoreMatching
from scoregen.training import fit
from scoregen.training.batches import ConditionDropout


class Net(nn.Module):
    """A network of a user, which takes a label, a tuple of tensors and a caption."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(2, 2)
        self.seen: list[dict[str, Any]] = []

    def forward(self, x: Tensor, clock: Tensor, **condition: Any) -> Tensor:
        self.seen.append(condition)
        return self.body(x) * clock[:, None]


NULLS = {
    "label": 3,
    "pair": (torch.full((2,), -1.0), {"deep": -1}),
    "caption": "",
}


def network() -> ScoreNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ScoreNetwork(Net(), VPSDE(), V(), conditions=Conditions(NULLS, classes=3))


class Own:
    """A source of a user, without any class of the library but `Batch`."""

    name, event, range, bins, units = "own", (2,), None, None, None
    conditions, classes = ("label", "pair", "caption"), 3

    def __init__(self, square: float | None = None, known: str | None = "own-1") -> None:
        self.square, self.known = square, known

    def identity(self) -> str | None:
        return self.known

    def mean_square(self) -> float | None:
        return self.square

    def serve(
        self,
        batch: int,
        seed: int,
        first_step: int = 0,
        rows: slice = slice(None),
        device: torch.device | str = "cpu",
    ) -> Iterator[Batch]:
        def made(step: int) -> Batch:
            g = np.random.default_rng((seed, step))
            index = np.arange(batch)[rows]
            x = torch.from_numpy(g.standard_normal((batch, 2)).astype(np.float32))[rows]
            pair = (torch.from_numpy(index[:, None].repeat(2, 1)).float(), {"deep": index % 5})
            deep = {"deep": torch.from_numpy(pair[1]["deep"])}
            label = torch.from_numpy(index % 3)
            return Batch(
                x,
                {"label": label, "pair": (pair[0], deep), "caption": [f"row {i}" for i in index]},
            )

        return map(made, itertools.count(first_step))


def test_data_are_a_source_and_a_tensor_is_none() -> None:
    data = Data(torch.zeros(4, 2), torch.tensor([0, 1, 2, 0]))
    assert isinstance(data, Source)
    assert as_source(data) is data
    assert as_source(Own()).name == "own"
    assert (data.conditions, data.classes) == (("label",), 3)
    assert (data.unlabelled().conditions, data.unlabelled().classes) == ((), 0)
    for bad, words in [
        (torch.zeros(4, 2), r"use Data\(x\)"),
        (None, r"such as Data\(x\)"),
        (3, r"such as Data\(x\)"),
        ([torch.zeros(2)], "samples or batches"),
        ({"x": np.zeros((4, 2))}, "samples or batches"),
    ]:
        with pytest.raises(TypeError, match=words):
            as_source(bad)


@given(st.integers(1, 12), st.integers(0, 9), st.integers(0, 100), st.data())
def test_the_rows_of_the_processes_make_up_the_batch(
    n: int, first: int, seed: int, draw: st.DataObject
) -> None:
    batch = draw.draw(st.integers(1, n))
    cut = draw.draw(st.integers(0, batch))
    data = Data(torch.arange(float(n)), torch.arange(n))
    served = [
        itertools.islice(data.serve(batch, seed, first, rows), 4)
        for rows in (slice(0, cut), slice(cut, batch))
    ]
    for (x, label), low, high in zip(
        itertools.islice(data.batches(batch, seed, first), 4), *served, strict=True
    ):
        assert torch.equal(torch.cat((low.x, high.x)), x)
        assert torch.equal(torch.cat((low.condition["label"], high.condition["label"])), label)


def test_levels_leave_the_store_as_bytes_and_arrive_on_the_range() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(64, 4)
    data = Data(levels, bins=256)
    batch = next(data.serve(64, 0))
    assert batch.condition == {}
    assert batch.x.dtype == torch.float32
    rows = next(Data(torch.arange(64.0)).serve(64, 0)).x.long()
    assert torch.equal(batch.x, from_levels(levels, 256)[rows])
    assert next(data.serve(64, 0, device="meta")).x.device.type == "meta"


def test_serving_refuses_at_once() -> None:
    data = Data(torch.zeros(5))
    for arguments, words in [
        ((0, 0), r"1 \.\. 5"),
        ((6, 0), r"1 \.\. 5"),
        ((2, 0, -1), "first_step must be at least 0"),
        ((2, -1), "seed must be at least 0"),
    ]:
        with pytest.raises(ValueError, match=words):
            data.serve(*arguments)
    with pytest.raises(TypeError, match="rows must be a slice"):
        data.serve(2, 0, rows=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="classes must be at least 0"):
        as_source(data, -1)


# Dropped conditions


def test_parts_of_any_structure_are_replaced_by_their_nulls_row_by_row() -> None:
    source, n = Own(), 4000
    given_ = next(source.serve(n, 0)).condition
    shares = {"label": 0.25, "pair": 0.5, "caption": 0.75}
    dropout = ConditionDropout(shares, Conditions(NULLS, 3))
    got = dropout(given_, key=7, batch=n, rows=slice(0, n))
    hidden = {
        "label": got["label"] == 3,
        "pair": (got["pair"][0] == -1).all(1),
        "caption": torch.tensor([text == "" for text in got["caption"]]),
    }
    for name, share in shares.items():
        # 5.1 standard deviations: a false alarm below 1e-6
        spread = math.sqrt(share * (1 - share) / n)
        assert abs(float(hidden[name].double().mean()) - share) < 5.1 * spread
    assert torch.equal(got["pair"][1]["deep"] == -1, hidden["pair"])
    for a, b in itertools.combinations(hidden, 2):
        both = float((hidden[a] & hidden[b]).double().mean())
        assert abs(both - shares[a] * shares[b]) < 5.1 * math.sqrt(0.25 / n)
    kept = ~hidden["pair"]
    assert torch.equal(got["pair"][0][kept], given_["pair"][0][kept])
    assert torch.equal(got["pair"][1]["deep"][kept], given_["pair"][1]["deep"][kept])
    kept = ~hidden["label"]
    assert torch.equal(got["label"][kept], given_["label"][kept])
    assert got["label"].dtype == torch.int64
    rest = [i for i in range(n) if not hidden["caption"][i]]
    assert [got["caption"][i] for i in rest] == [given_["caption"][i] for i in rest]
    # the served condition itself stays
    assert given_["caption"] == [f"row {i}" for i in range(n)]


def test_which_rows_are_replaced_depends_on_the_key_the_name_and_the_row_alone() -> None:
    known = Conditions(NULLS, 3)
    condition = next(Own().serve(64, 0)).condition
    label = {"label": condition["label"]}
    every = {"label": 0.4, "pair": 0.3, "caption": 0.5}

    def replaced(share: dict[str, float], given_: dict[str, Any], key: int = 5) -> Tensor:
        made = ConditionDropout(share, known)(given_, key=key, batch=64, rows=slice(0, 64))
        return made["label"]

    whole = replaced({"label": 0.4}, label)
    assert torch.equal(whole, replaced(every, condition))
    assert not torch.equal(whole, replaced({"label": 0.4}, label, key=6))
    halves = [
        ConditionDropout(every, known)(
            next(Own().serve(64, 0, rows=rows)).condition, key=5, batch=64, rows=rows
        )
        for rows in (slice(0, 20), slice(20, 64))
    ]
    joined = ConditionDropout(every, known)(condition, key=5, batch=64, rows=slice(0, 64))
    for name in ("label", "caption"):
        parts = [list(half[name]) for half in halves]
        assert parts[0] + parts[1] == list(joined[name])
    low, high = (half["pair"][0] for half in halves)
    assert torch.equal(torch.cat((low, high)), joined["pair"][0])


def test_shares_of_none_and_all() -> None:
    condition = next(Own().serve(8, 0)).condition
    known = Conditions(NULLS, 3)
    none = ConditionDropout({"label": 0.0, "pair": 0.0}, known)
    got = none(condition, key=1, batch=8, rows=slice(0, 8))
    assert got["pair"] is condition["pair"]
    every = ConditionDropout({"label": 1.0, "pair": 1.0}, known)
    got = every(condition, key=1, batch=8, rows=slice(0, 8))
    assert got["label"].tolist() == [3] * 8
    assert bool((got["pair"][0] == -1).all())


def test_shares_that_cannot_be_are_refused() -> None:
    known = Conditions(NULLS, 3)
    for share, error, words in [
        ({"label": 1.5}, ValueError, r"dropout\['label'\] must lie in \[0, 1\]"),
        ({"pair": math.nan}, ValueError, "must lie in"),
        ({"text": 0.1}, ValueError, "'text' needs its null value.*'label', 'pair', 'caption'"),
        (0.1, TypeError, "dropout must be a Mapping"),
    ]:
        with pytest.raises(error, match=words):
            ConditionDropout(share, known)  # type: ignore[arg-type]
    wide = ConditionDropout({"pair": 0.5}, Conditions({"pair": torch.zeros(5, 4)}))
    with pytest.raises(ValueError, match="the null of 'pair' does not fit"):
        wide({"pair": torch.zeros(3, 2)}, key=0, batch=3, rows=slice(0, 3))


def test_a_training_hands_every_condition_on_and_drops_as_given() -> None:
    model = network()
    steps = list(fit(model, Own(1.0), steps=30, batch=12, dropout={"pair": 0.5}, progress=False))
    assert len(steps) == 30
    seen = model.net.seen
    pairs = torch.cat([c["pair"][0] for c in seen])
    labels = torch.cat([c["label"] for c in seen])
    assert 0.5 - 5.1 * 0.5 / math.sqrt(360) < float((pairs == -1).all(1).double().mean())
    assert float((pairs == -1).all(1).double().mean()) < 0.5 + 5.1 * 0.5 / math.sqrt(360)
    assert 0 < int((labels == 3).sum()) < 180  # 0.1 unless given
    assert all(c["caption"] == [f"row {i}" for i in range(12)] for c in seen)


def test_a_training_refuses_conditions_that_nobody_takes(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        bare = ScoreNetwork(Net(), VPSDE(), V(), conditions=Conditions.labels(3))
    with pytest.raises(ValueError, match=r"conditions \['pair', 'caption'\].*declares 'label'"):
        fit(bare, Own(1.0), steps=1, batch=4)
    for given_, words in [
        ({"dropout": {"text": 0.1}}, r"dropout of \['text'\], which the data do not have"),
        ({"dropout": {"label": 0.1}, "label_dropout": 0.1}, "not both"),
    ]:
        with pytest.raises(ValueError, match=words):
            fit(network(), Own(1.0), steps=1, batch=4, **given_)
    with pytest.raises(ValueError, match="nothing identifies the data 'own'"):
        fit(network(), Own(1.0, known=None), steps=1, batch=4, out=tmp_path)
    with pytest.raises(TypeError, match="Data"):
        fit(network(), rings(20, 0), steps=1, batch=4)


def test_an_unknown_scale_is_looked_at_in_the_first_batch() -> None:
    class Far(Own):
        def serve(self, *arguments: Any, **named: Any) -> Iterator[Batch]:
            return (Batch(x + 100, c) for x, c in super().serve(*arguments, **named))

    with pytest.warns(UserWarning, match="of the noise's power"):
        list(fit(network(), Far(), steps=2, batch=12, progress=False))
    list(fit(network(), Own(), steps=2, batch=12, progress=False))


def test_a_source_of_ones_own_is_resumed_to_the_same_bits(tmp_path: Path) -> None:
    whole, halved = network(), network()
    arguments: dict[str, Any] = {
        "objective": DenoisingScoreMatching(), "steps": 8, "batch": 12, "progress": False,
        "dropout": {"caption": 0.5, "pair": 0.2},
    }  # fmt: skip
    list(fit(whole, Own(1.0), **arguments))
    with pytest.warns(UserWarning, match="not the code of Net"):
        list(itertools.islice(fit(halved, Own(1.0), **arguments, out=tmp_path), 3))
    again = network()
    with pytest.warns(UserWarning, match="not the code of Net"):
        list(fit(again, Own(1.0), **arguments, out=tmp_path))
    assert all(map(torch.equal, whole.parameters(), again.parameters()))
    for change in ({"dropout": {"pair": 0.2}}, {"data": Own(1.0, known="own-2")}):
        other = {**arguments, **change}
        data = other.pop("data", Own(1.0))
        with (
            pytest.raises(ValueError, match="other settings"),
            pytest.warns(UserWarning, match="not the code of Net"),
        ):
            fit(network(), data, **other, out=tmp_path)
