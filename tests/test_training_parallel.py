"""Parts of a batch, processes, divided weights, 16 bits, compiled networks: the same training."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import silu

import scoregen as sg
from scoregen import MLP, VPSDE, Data, ScoreNetwork, UNet, V
from scoregen._files import CheckpointError
from scoregen.data.targets import rings
from scoregen.models import Conditions
from scoregen.objectives import DenoisingScoreMatching, Stratified
from scoregen.training import PostHoc, TrainStep, Watch, card, fit, load, reconstruct

STEPS, BATCH = 6, 16


pytestmark = pytest.mark.usefixtures("own_generator")


def model(dtype: torch.dtype = torch.float64) -> ScoreNetwork:
    torch.manual_seed(0)
    return ScoreNetwork(MLP((2,), 8, classes=3), VPSDE(), V()).to(dtype)


def data(dtype: torch.dtype = torch.float64) -> Data:
    return Data(rings(60, 0).to(dtype), torch.arange(60) % 3, name="rings")


class Spy:
    """The usual loss, which notes what it was given and what it drew."""

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def __call__(self, m: Any, x0: Tensor, *, generator: torch.Generator, label: Tensor) -> Tensor:
        state = generator.get_state()
        self.seen.append((x0, label, torch.rand(len(x0), generator=generator)))
        generator.set_state(state)
        return DenoisingScoreMatching()(m, x0, generator=generator, label=label)


def train(
    net: ScoreNetwork, objective: Any = None, source: Data | None = None, **change: Any
) -> list[TrainStep]:
    options = {"steps": STEPS, "batch": BATCH, "lr": 1e-2, "progress": False, **change}
    return list(fit(net, data() if source is None else source, objective, **options))


def weights(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().double().flatten() for p in module.parameters()])


def losses(steps: list[TrainStep]) -> list[float]:
    return [s.loss for s in steps]


# Parts of a batch, one after the other


@pytest.mark.parametrize("law", [None, Stratified()])
@pytest.mark.parametrize("parts", [2, 4, 16])
def test_parts_of_a_batch_train_what_the_whole_does(parts: int, law: Any) -> None:
    """In float64, where only the order of sums differs: to 1e-10 after six steps of Adam."""
    objective = DenoisingScoreMatching() if law is None else DenoisingScoreMatching(law)
    whole, divided = model(), model()
    a = train(whole, objective)
    b = train(divided, objective, accumulate=parts)
    assert losses(b) == pytest.approx(losses(a), rel=1e-10)
    assert [s.grad_norm for s in b] == pytest.approx([s.grad_norm for s in a], rel=1e-10)
    assert float((weights(whole) - weights(divided)).abs().max()) < 1e-10
    assert float((weights(a[-1].ema) - weights(b[-1].ema)).abs().max()) < 1e-10
    assert not torch.equal(weights(whole), weights(model()))


def test_parts_in_single_precision_agree_to_rounding() -> None:
    whole, divided = model(torch.float32), model(torch.float32)
    a = train(whole, source=data(torch.float32))
    b = train(divided, source=data(torch.float32), accumulate=4)
    assert losses(b) == pytest.approx(losses(a), rel=1e-5)
    assert float((weights(whole) - weights(divided)).abs().max()) < 1e-5


def test_other_objectives_draw_part_by_part() -> None:
    """x0 and labels are those of the whole batch; each part has a stream of its own."""
    whole, divided = Spy(), Spy()
    train(model(), whole, label_dropout=0.4)
    train(model(), divided, label_dropout=0.4, accumulate=2)
    for k in range(STEPS):
        for i in range(2):
            parts = torch.cat([seen[i] for seen in divided.seen[2 * k : 2 * k + 2]])
            assert torch.equal(parts, whole.seen[k][i])
        assert torch.equal(divided.seen[2 * k][2], whole.seen[k][2][:8])
    draws = torch.cat([seen[2] for seen in divided.seen])
    assert len(draws.unique()) == len(draws)


def test_the_gradient_of_parts_is_that_of_the_mean() -> None:
    """An objective that draws nothing, against its own gradient over the whole batch."""

    def objective(m: Any, x0: Tensor, *, generator: torch.Generator, label: Tensor) -> Tensor:
        return (m(x0, 0.5, label=label).x0 - x0).square().sum(1)

    net = model()
    x0, label = next(data().batches(BATCH, 0))
    exact = torch.autograd.grad(
        objective(net, x0, generator=None, label=label).mean() / 2, list(net.parameters())
    )
    norm = math.sqrt(sum(float(g.square().sum()) for g in exact))
    (step,) = train(net, objective, accumulate=8, steps=1, label_dropout=0.0)
    assert step.grad_norm == pytest.approx(norm, rel=1e-12)


def test_an_accelerators_own_parts_count_and_agree(accelerate: Any) -> None:
    plain, own = model(), model()
    a = train(plain, accumulate=4)
    for given in (None, 4):
        own = model()
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=4)
        b = train(own, accelerator=accelerator, accumulate=given)
        assert losses(a) == losses(b)
        assert torch.equal(weights(plain), weights(own))
    for change, word in (
        ({"accumulate": 2}, r"accumulate = 2.*accumulation_steps = 4"),
        ({"accumulate": None, "batch": 18}, r"batch = 18.*1 processes.*4 parts"),
        ({"shard": lambda m: m, "accelerator": None}, "processes of an Accelerator: give one"),
    ):
        with pytest.raises(ValueError, match=word):
            train(model(), **{"accelerator": accelerator, **change})
    for wrong in (0, 1.5):
        with pytest.raises((ValueError, TypeError), match="accumulate"):
            train(model(), accumulate=wrong)


def test_a_training_goes_on_in_more_parts(tmp_path: Path) -> None:
    """Short of memory: resumed with more parts, it ends where the whole would, but for rounding."""
    whole, divided = model(), model()
    train(whole)
    for step in fit(divided, data(), steps=STEPS, batch=BATCH, lr=1e-2, out=tmp_path):
        if step.step == 3:
            break
    rest = train(divided, out=tmp_path, accumulate=4)
    assert rest[0].step == 4
    assert float((weights(whole) - weights(divided)).abs().max()) < 1e-10
    spy = {"objective": Spy(), "objective_name": "spy", "out": tmp_path / "spy"}
    train(model(), **spy, accumulate=2)
    with pytest.raises(CheckpointError, match="processes: 2 -> 4"):
        train(model(), **spy, accumulate=4)


# Precision, compiled networks, activations


def test_bfloat16_trains_float32_weights_and_resumes_exactly(
    accelerate: Any, tmp_path: Path
) -> None:
    kinds = set()

    class Seen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(3, 16), nn.Linear(16, 2)

        def forward(self, x: Tensor, clock: Tensor) -> Tensor:
            h = silu(self.inner(torch.cat([x, clock[:, None]], 1)))
            kinds.add(h.dtype)
            return self.outer(h)

    def made() -> ScoreNetwork:
        torch.manual_seed(0)
        return ScoreNetwork(Seen(), VPSDE(), V())

    def run(net: ScoreNetwork, stop: int | None = None, **change: Any) -> list[TrainStep]:
        accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
        source, done = Data(rings(60, 0)), []
        for step in fit(
            net, source, steps=40, batch=16, lr=1e-2, accelerator=accelerator, **change
        ):
            done.append(step)
            if step.step == stop:
                break
        return done

    half, full = made(), made()
    steps = run(half)
    assert kinds == {torch.bfloat16}
    exact = list(fit(full, Data(rings(60, 0)), steps=40, batch=16, lr=1e-2))
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    # eight bits of mantissa
    assert losses(steps) == pytest.approx(losses(exact), rel=0.05)
    assert losses(steps) != losses(exact)
    with pytest.warns(UserWarning, match="not the code of Seen"):
        run(made(), 15, out=tmp_path)
    again = made()
    with pytest.warns(UserWarning, match="not the code of Seen"):
        rest = run(again, out=tmp_path)
    assert rest[0].step == 16
    assert torch.equal(weights(half), weights(again))


@pytest.mark.slow
def test_a_compiled_network_trains_the_same_and_resumes_as_a_plain_one(tmp_path: Path) -> None:
    plain, compiled = model(), model()
    compiled.net = torch.compile(compiled.net, backend="aot_eager")
    a = train(plain)
    b = train(compiled, out=tmp_path)
    assert losses(b) == pytest.approx(losses(a), rel=1e-10)
    assert float((weights(plain) - weights(compiled)).abs().max()) < 1e-10
    assert torch.equal(weights(load(tmp_path / "model")), weights(b[-1].ema))
    assert train(model(), out=tmp_path) == []


def test_recomputed_activations_train_the_same_bits_and_may_be_switched_on(tmp_path: Path) -> None:
    def made(checkpoint: bool) -> ScoreNetwork:
        torch.manual_seed(0)
        net = UNet(1, 4, (1,), attention=(False,), dropout=0.2, checkpoint=checkpoint)
        return ScoreNetwork(net, VPSDE(), V())

    source = Data(torch.linspace(-1, 1, 20 * 16).reshape(20, 1, 4, 4).sin())
    options: dict[str, Any] = {"source": source, "steps": 4, "batch": 8}
    kept, again, switched = made(False), made(True), made(True)
    train(kept, **options)
    train(again, **options)
    assert torch.equal(weights(kept), weights(again))
    for step in fit(made(False), source, steps=4, batch=8, lr=1e-2, out=tmp_path):
        if step.step == 2:
            break
    assert [s.step for s in train(switched, **options, out=tmp_path)] == [3, 4]
    assert torch.equal(weights(kept), weights(switched))


# Several processes


RANKS = """
import json, sys
from pathlib import Path
sys.path[:0] = [sys.argv[2]]
import torch
from accelerate import Accelerator
from test_training_parallel import *

accelerator = Accelerator(cpu=True)
rank, out = accelerator.process_index, Path(sys.argv[1])

def sharded(m):
    from torch.distributed.fsdp import fully_shard
    fully_shard(m.net)
    fully_shard(m)

def full(m):
    return [p.full_tensor() if hasattr(p, "full_tensor") else p for p in m.parameters()]

result = {"world": accelerator.num_processes}
watch = Watch(every=4, data=data(), samples=40, levels=2)
for name, options in {
    "plain": {}, "parts": {"accumulate": 2}, "sharded": {"shard": sharded},
    "sharded parts": {"shard": sharded, "accumulate": 2},
}.items():
    net = model()
    if rank and name == "plain":
        for p in net.parameters():
            torch.nn.init.zeros_(p)  # the first process's weights count
    steps = train(net, accelerator=accelerator, out=out / name, posthoc=PostHoc(3),
                  watch=watch, **options)
    result[name] = [
        losses(steps), [s.grad_norm for s in steps],
        torch.cat([p.detach().flatten() for p in full(net)]).tolist(),
        weights(steps[-1].ema).tolist(),
        [tuple(p.to_local().shape if hasattr(p, "to_local") else p.shape)
         for p in net.parameters()],
    ]
    accelerator.wait_for_everyone()
# stopped and resumed, divided
for stop in (4, None):
    net = model()
    for step in fit(net, data(), steps=STEPS, batch=BATCH, lr=1e-2, save_every=2, progress=False,
                    accelerator=accelerator, shard=sharded, out=out / "resumed"):
        if step.step == stop:
            break
    accelerator.wait_for_everyone()
result["resumed"] = torch.cat([p.detach().flatten() for p in full(net)]).tolist()
spy = Spy()
train(model(), spy, accelerator=accelerator)
result["spy"] = [[part.tolist() for part in seen] for seen in spy.seen]
(out / f"{rank}.json").write_text(json.dumps(result))
accelerator.end_training()
"""


def launched(script: str, out: Path, processes: int) -> list[dict[str, Any]]:
    """What each process wrote."""
    path = out / "ranks.py"
    path.write_text(script)
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *(f"--nproc-per-node={processes}", str(path), str(out), str(Path(__file__).parent)),
    ]
    root = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False, timeout=400
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(processes)]


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    """Data, noise and labels are the same bits; sums agree to 1e-10 in float64, six steps on.

    Each process holds the whole, or a half of every weight; in parts, or not; and what they write
    is what one process writes.
    """
    pytest.importorskip("accelerate")
    one = model()
    watch = Watch(every=4, data=data(), samples=40, levels=2)
    steps = train(one, out=tmp_path / "one", posthoc=PostHoc(3), watch=watch)
    first, second = launched(RANKS, tmp_path, 2)
    assert first["world"] == second["world"] == 2
    shapes = [tuple(p.shape) for p in one.parameters()]
    for name in ("plain", "parts", "sharded", "sharded parts"):
        for found in (first[name], second[name]):
            assert found[0] == pytest.approx(losses(steps), rel=1e-10)
            assert found[1] == pytest.approx([s.grad_norm for s in steps], rel=1e-10)
            for values, exact in ((found[2], weights(one)), (found[3], weights(steps[-1].ema))):
                mine = torch.tensor(values, dtype=torch.float64)
                assert float((mine - exact).abs().max()) < 1e-10
        held = [tuple(shape) for shape in first[name][4]]
        assert (held == shapes) == (name in ("plain", "parts"))
        total = sum(math.prod(shape) for found in (first, second) for shape in found[name][4])
        share = 1 if "sharded" in name else 2
        assert total == share * sum(map(math.prod, shapes))
        for made, exact in (
            (load(tmp_path / name / "model"), steps[-1].ema),
            (reconstruct(tmp_path / name, 0.12), reconstruct(tmp_path / "one", 0.12)),
            (load(tmp_path / name / "best"), load(tmp_path / "one" / "best")),
        ):
            assert float((weights(made) - weights(exact)).abs().max()) < 1e-9
        assert card(tmp_path / name / "model")["extra"]["training"]["processes"] == 2
        # the resume file of two processes is continued by one
        assert train(model(), out=tmp_path / name, posthoc=PostHoc(3)) == []
    exact = weights(one)
    assert float((torch.tensor(first["resumed"], dtype=torch.float64) - exact).abs().max()) < 1e-10
    # other objectives: p processes train as p parts of one
    spy = Spy()
    train(model(), spy, accumulate=2)
    for k in range(STEPS):
        for rank, found in enumerate((first, second)):
            for given, exact in zip(found["spy"][k], spy.seen[2 * k + rank], strict=True):
                assert torch.tensor(given, dtype=exact.dtype).equal(exact)


def test_weights_of_16_bits_are_not_divided() -> None:
    """Their wide averages would stay whole; a stand-in for what only several processes can do."""
    from scoregen.training import EMA
    from scoregen.training import ema as module

    average = EMA(model(torch.bfloat16))
    whole = module.sharded
    try:
        module.sharded = lambda tensor: True  # type: ignore[assignment]
        with pytest.raises(ValueError, match="must be of 32 bits"):
            average.divide_like(model(torch.bfloat16))
    finally:
        module.sharded = whole


def test_conditions_of_any_structure_are_divided_too() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 2).double()
            self.seen: list[Tensor] = []

        def forward(self, x: Tensor, clock: Tensor, text: dict[str, Tensor]) -> Tensor:
            self.seen.append(text["a"])
            return self.inner(torch.cat([x, text["a"]], 1))

    class Texts(Data):
        @property
        def conditions(self) -> tuple[str, ...]:
            return ("text",)

        def serve(self, *arguments: Any, **named: Any) -> Any:
            for batch in super().serve(*arguments, **named):
                yield batch._replace(condition={"text": {"a": 2 * batch.x}})

    seen = []
    for parts in (1, 4):
        torch.manual_seed(0)
        declared = Conditions({"text": {"a": 0.0}})
        net = ScoreNetwork(Own(), VPSDE(), V(), conditions=declared)
        source = Texts(rings(60, 0).double())
        train(net, source=source, accumulate=parts, dropout={"text": 0.3})
        seen.append(torch.cat(net.net.seen))
    assert torch.equal(*seen)
    assert 0.15 < float((seen[0] == 0).all(1).double().mean()) < 0.45
    assert sg.training.fit is fit
