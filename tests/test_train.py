"""Training: averages, resuming to the bit, skipped steps, dropped labels, several processes."""

import functools
import json
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import silu

import scoregen as sg
from scoregen import MLP, VPSDE, Data, Gaussian, ScoreNetwork, V
from scoregen._files import CheckpointError
from scoregen._identity import modules_within, recipe
from scoregen.data.targets import moons, rings
from scoregen.energies import EnergyNetwork, Potential, ReconstructionEnergy, energy_of
from scoregen.models import Conditions
from scoregen.objectives import (
    ContrastiveDivergence,
    DenoisingScoreMatching,
    LossAwareKnots,
    PersistentContrastiveDivergence,
    ReplayBuffer,
    Stratified,
    Unit,
    VariationalBound,
)
from scoregen.training import EMA, TrainingError, TrainStep, card, fingerprint, fit, load
from scoregen.training.ema import ema_decay
from scoregen.training.settings import TrainSettings, learning_rate

# most networks here are the tests' own, which a checkpoint cannot rebuild
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*not the code of Forgetful:UserWarning"),
    pytest.mark.usefixtures("own_generator"),
]


class Forgetful(nn.Module):
    """A network with dropout, which draws from torch's global generator."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 16), nn.Linear(16, 2)
        self.table = nn.Embedding(4, 16)
        self.drop = nn.Dropout(0.3)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, clock: Tensor, label: Tensor | None = None) -> Tensor:
        h = silu(self.inner(torch.cat([x, clock[:, None] / 4], 1)))
        if label is not None:
            self.seen.append(label)
            h = h + self.table(label)
        return self.outer(self.drop(h))


def model(seed: int = 0) -> ScoreNetwork:
    torch.manual_seed(seed)
    return ScoreNetwork(Forgetful(), VPSDE(), V(), conditions=Conditions.labels(3))


def labelled(n: int = 60) -> Data:
    return Data(rings(n, 0), torch.arange(n) % 3, name="rings")


def train(net: ScoreNetwork, stop: int | None = None, **change: Any) -> list[TrainStep]:
    """A short training, or the first `stop` steps of one."""
    arguments = {"steps": 12, "batch": 16, "progress": False, "lr": 1e-2, **change}
    data = arguments.pop("data", labelled())
    done = []
    for step in fit(net, data, arguments.pop("objective", None), **arguments):
        done.append(step)
        if len(done) == stop:
            break
    return done


def numbers(step: TrainStep) -> tuple[float, ...]:
    return step.step, step.loss, step.grad_norm, step.lr, step.skipped


def bits(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# The average


def test_the_average_follows_its_formula_for_ten_thousand_steps() -> None:
    scalar = nn.Linear(1, 1, bias=False).double()
    ema = EMA(scalar, decay=0.999)
    slow = 0.0
    for k in range(10_000):
        value = math.sin(k / 300) + k * 1e-4
        with torch.no_grad():
            scalar.weight.fill_(value)
        ema.update_parameters(scalar)
        rate = min(0.999, (1 + k) / (10 + k)) if k else 0.0
        slow = rate * slow + (1 - rate) * value
        if k % 1000 == 999 or k < 20:
            assert float(ema.module.weight) == pytest.approx(slow, rel=1e-11, abs=1e-13)
    assert ema_decay(10_000, 0.999) == 0.999
    assert ema_decay(10_000, 0.9999) == 10_001 / 10_010


def test_the_average_leaves_the_live_weights_alone() -> None:
    net = model()
    before = bits(net)
    ema = EMA(net, 0.9)
    ema.update_parameters(net)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(2)
    doubled = bits(net)
    ema.update_parameters(net)
    ema.module(torch.zeros(2, 2), 0.5)
    assert equal(bits(net), doubled)
    assert not equal(bits(ema.module), doubled)
    assert not equal(bits(ema.module), before)
    assert not any(p.requires_grad for p in ema.parameters())
    assert not ema.train().module.training
    with pytest.raises(ValueError, match="decay"):
        EMA(net, 1.0)


def test_buffers_are_copied() -> None:
    norm = nn.BatchNorm1d(2)
    ema = EMA(norm, 0.99)
    for value in (1.0, 5.0):
        norm.running_mean.fill_(value)
        ema.update_parameters(norm)
    assert torch.equal(ema.module.running_mean, norm.running_mean)


# The loop


def test_the_rate_rises_and_falls() -> None:
    rates = [learning_rate(k, 1000, 2.0, 100) for k in range(1000)]
    assert rates[0] == pytest.approx(0.02)
    assert rates[:100] == sorted(rates[:100])
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[500] == pytest.approx(1.0)
    assert rates[-1] < 1e-4
    assert learning_rate(0, 10, 2.0, 0) == 2.0
    steps = train(model(), warmup=4)
    assert [s.lr for s in steps] == [learning_rate(k, 12, 1e-2, 4) for k in range(12)]


def test_training_reaches_the_closed_form_floor_on_gaussian_data() -> None:
    torch.manual_seed(0)
    x = torch.randn(4000, 2) @ torch.tensor([[1.0, 0.0], [0.8, 0.3]]).T
    x = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T
    x = (x @ torch.tensor([[1.0, 0.0], [0.8, 0.3]]).T).contiguous()
    exact = Gaussian(VPSDE(), torch.zeros(2), x.T.cov())
    loss = DenoisingScoreMatching(Stratified(), Unit(V()))
    net = ScoreNetwork(MLP((2,), 64, 2), VPSDE(), V())
    last = list(
        fit(net, Data(x), loss, steps=250, batch=128, lr=1e-2, ema_decay=0.97, progress=False)
    )[-1]

    def mean(judged: Any) -> float:
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            return float(loss(judged, x, generator=generator).mean())

    floor = mean(exact)
    assert floor < mean(last.ema) < 1.06 * floor
    assert last.step == 250


def test_the_caller_sees_every_step_and_the_weights_move() -> None:
    net = model()
    before = bits(net)
    steps = train(net)
    assert [s.step for s in steps] == list(range(1, 13))
    assert all(math.isfinite(s.loss) and s.grad_norm > 0 and s.skipped == 0 for s in steps)
    assert not equal(bits(net), before)
    assert not equal(bits(steps[-1].ema), bits(net))
    assert net.training


def test_the_same_seed_gives_the_same_bits_and_the_global_generator_stays() -> None:
    first, second, other = model(), model(), model()
    state = torch.get_rng_state()
    train(first)
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(7)
    train(second)
    train(other, seed=1)
    assert equal(bits(first), bits(second))
    assert not equal(bits(first), bits(other))


def test_the_loss_is_the_objectives_mean_over_the_batch_that_is_next() -> None:
    seen: list[tuple[Tensor, Tensor, float]] = []

    def objective(m: Any, x0: Tensor, *, generator: torch.Generator, label: Tensor) -> Tensor:
        loss = DenoisingScoreMatching()(m, x0, generator=generator, label=label)
        seen.append((x0, label, float(loss.detach().mean())))
        return loss

    steps = train(model(), objective=objective, label_dropout=0.0)
    batches = labelled().batches(16, 0)
    for step, (x0, label, mean), (x, y) in zip(steps, seen, batches, strict=False):
        assert torch.equal(x0, x)
        assert torch.equal(label, y)
        assert step.loss == mean


# Resuming


@pytest.mark.parametrize("stop", [1, 5, 11, 12])
def test_a_stopped_training_ends_where_the_uninterrupted_one_does(
    stop: int, tmp_path: Path
) -> None:
    whole, halved = model(), model()
    straight = train(whole, out=tmp_path / "a")
    train(halved, stop, out=tmp_path / "b")
    again = model(seed=9)
    rest = train(again, out=tmp_path / "b")
    assert [s.step for s in rest] == list(range(stop + 1, 13))
    assert equal(bits(again), bits(whole))
    if rest:
        assert list(map(numbers, rest)) == list(map(numbers, straight[stop:]))
        assert equal(bits(rest[-1].ema), bits(straight[-1].ema))


@pytest.mark.slow
def test_a_killed_training_resumes_from_the_last_file(tmp_path: Path) -> None:
    whole = model()
    straight = train(whole)
    script = tmp_path / "train.py"
    script.write_text(
        "import os, signal, sys\n"
        f"sys.path[:0] = [{str(Path(__file__).parent)!r}]\n"
        "from test_train import model, train, labelled, fit\n"
        "for s in fit(model(), labelled(), steps=12, batch=16, lr=1e-2, progress=False,\n"
        f"             out={str(tmp_path / 'out')!r}, save_every=3):\n"
        "    if s.step == 8:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).resolve().parents[1]
    killed = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(root)},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    again = model(seed=9)
    rest = train(again, out=tmp_path / "out", save_every=3)
    assert rest[0].step == 7
    assert equal(bits(again), bits(whole))
    assert numbers(rest[-1]) == numbers(straight[-1])


@pytest.fixture
def sigint() -> Iterator[None]:
    """Python's handler of Ctrl-C, which a shell's background jobs start without."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("sigint")
def test_ctrl_c_saves_a_whole_step(tmp_path: Path) -> None:
    whole, stopped, again = model(), model(), model(seed=9)
    train(whole)
    calls = []

    def objective(m: Any, x0: Tensor, *, generator: torch.Generator, label: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return DenoisingScoreMatching()(m, x0, generator=generator, label=label)

    with pytest.raises(KeyboardInterrupt):
        train(stopped, objective=objective, objective_name="usual", out=tmp_path)
    rest = train(again, objective_name="usual", out=tmp_path)
    assert rest[0].step == 5
    assert equal(bits(again), bits(whole))


@pytest.mark.usefixtures("sigint")
def test_ctrl_c_within_an_update_waits_for_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = EMA.update_parameters

    def interrupted(self: EMA, net: nn.Module) -> None:
        if self.count == 4:
            os.kill(os.getpid(), signal.SIGINT)
        update(self, net)

    monkeypatch.setattr(EMA, "update_parameters", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(model(), out=tmp_path)
    monkeypatch.undo()
    whole, again = model(), model(seed=9)
    train(whole)
    rest = train(again, out=tmp_path)
    assert rest[0].step == 6
    assert equal(bits(again), bits(whole))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_settings_are_not_resumed_into(tmp_path: Path) -> None:
    train(model(), 3, out=tmp_path)
    for change, word in (
        ({"steps": 13}, "steps: 12 -> 13"),
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"lr": 1e-3}, r"lr: 0\.01 -> 0\.001"),
        ({"data": labelled(50)}, "data"),
        ({"data": Data(3 * rings(60, 0) + 7, labelled().label, name="rings")}, "data"),
        ({"data": Data(rings(60, 0), labelled().label.flip(0), name="rings")}, "data"),
        ({"objective": DenoisingScoreMatching(Stratified())}, "objective:"),
    ):
        with pytest.raises(CheckpointError, match=word):
            train(model(), out=tmp_path, **change)
    other = ScoreNetwork(MLP((2,), 8, classes=3), VPSDE(), V())
    with pytest.raises(CheckpointError, match=r"model\.net"):
        train(other, out=tmp_path)
    again = ScoreNetwork(Forgetful(), VPSDE(0.2), V(), conditions=Conditions.labels(3))
    with pytest.raises(CheckpointError, match=r"model: .*beta_min=0\.1.*beta_min=0\.2"):
        train(again, out=tmp_path)
    forgetful = model()
    forgetful.net.drop.p = 0.1
    with pytest.raises(CheckpointError, match=r"model\.net\.drop: .*p=0\.3.*p=0\.1"):
        train(forgetful, out=tmp_path)
    assert train(model(), 1, out=tmp_path, seed=1, resume=False)[0].step == 1


def test_damaged_resume_files_are_refused(tmp_path: Path) -> None:
    train(model(), 3, out=tmp_path)
    path = tmp_path / "resume.safetensors"
    content = path.read_bytes()
    for at in (3, 50, len(content) // 2, len(content) - 1):
        flipped = bytearray(content)
        flipped[at] ^= 1
        path.write_bytes(bytes(flipped))
        with pytest.raises(CheckpointError, match=r"resume\.safetensors"):
            train(model(), out=tmp_path)
    for keep in (0, 7, len(content) // 2):
        path.write_bytes(content[:keep])
        with pytest.raises(CheckpointError, match="truncated"):
            train(model(), out=tmp_path)
    path.write_bytes(content)
    assert train(model(), out=tmp_path)[0].step == 4


def test_the_end_leaves_a_checkpoint_of_the_average(tmp_path: Path) -> None:
    net = ScoreNetwork(MLP((2,), 8, classes=3), VPSDE(), V())
    steps = train(net, out=tmp_path)
    back = load(tmp_path / "model")
    assert fingerprint(back) == fingerprint(steps[-1].ema)
    text = card(tmp_path / "model")
    assert (text["weights"]["set"], text["steps"], text["event"]) == ("ema", 12, [2])
    assert text["extra"]["training"]["seed"] == 0
    assert train(net, out=tmp_path) == []


# Gradients that are not finite


class Sometimes:
    """The usual loss, with a NaN at chosen calls."""

    def __init__(self, bad: set[int]):
        self.bad, self.calls = bad, 0

    def __call__(self, m: Any, x0: Tensor, **named: Any) -> Tensor:
        loss = DenoisingScoreMatching()(m, x0, **named)
        self.calls += 1
        return loss * (math.nan if self.calls in self.bad else 1.0)


def test_steps_without_a_finite_gradient_are_skipped_and_counted() -> None:
    net = model()
    previous, seen = bits(net), []
    last = None
    for last in fit(  # noqa: B007
        net, labelled(), Sometimes({3, 4, 7}), steps=9, batch=16, patience=3, progress=False
    ):
        now = bits(net)
        seen.append(equal(now, previous))
        previous = now
    assert [k + 1 for k, same in enumerate(seen) if same] == [3, 4, 7]
    assert last is not None
    assert last.skipped == 3
    assert not last.ema.training
    assert all(p.isfinite().all() for p in net.parameters())


def test_too_many_in_a_row_stop_the_training_and_keep_the_good_weights(tmp_path: Path) -> None:
    net, objective = model(), Sometimes(set(range(5, 99)))
    with pytest.raises(TrainingError, match="3 steps in a row, up to step 7"):
        train(net, objective=objective, patience=3, out=tmp_path)
    assert objective.calls == 7  # at once, and not where the training would have ended
    assert all(p.isfinite().all() for p in net.parameters())
    assert (tmp_path / "resume.safetensors").is_file()


def test_large_gradients_are_clipped() -> None:
    def objective(m: Any, x0: Tensor, *, generator: Any, label: Tensor) -> Tensor:
        return 1e6 * DenoisingScoreMatching()(m, x0, generator=generator, label=label)

    plain, scaled = model(), model()
    a = train(plain, steps=1, warmup=0)
    b = train(scaled, steps=1, warmup=0, objective=objective)
    assert b[0].grad_norm == pytest.approx(1e6 * a[0].grad_norm, rel=1e-4)
    norms = [
        math.sqrt(sum(float(p.grad.square().sum()) for p in net.parameters() if p.grad is not None))
        for net in (plain, scaled)
    ]
    assert norms == [0.0, 0.0]


# Labels


def test_labels_are_dropped_at_their_rate_without_touching_the_noise() -> None:
    net = model()
    list(fit(net, labelled(), steps=100, batch=60, label_dropout=0.25, progress=False))
    seen = torch.cat(net.net.seen)
    assert set(seen.tolist()) == {0, 1, 2, 3}
    share = float((seen == 3).double().mean())
    assert abs(share - 0.25) < 5 * math.sqrt(0.25 * 0.75 / len(seen))
    hidden = [tuple((label == 3).tolist()) for label in net.net.seen]
    assert len(set(hidden)) == len(hidden)
    seen_x: list[list[Tensor]] = [[], []]
    for k, rate in enumerate((0.0, 0.9)):

        def objective(m: Any, x0: Tensor, *, generator: Any, label: Tensor, k: int = k) -> Tensor:
            seen_x[k].append(torch.rand(3, generator=generator))
            return DenoisingScoreMatching()(m, x0, generator=generator, label=label)

        train(model(), objective=objective, label_dropout=rate)
    assert all(torch.equal(a, b) for a, b in zip(*seen_x, strict=True))


def test_dropout_differs_from_step_to_step() -> None:
    net, masks = model(), []
    net.net.drop.register_forward_hook(
        lambda module, args, out: masks.append(tuple((out == 0).flatten().tolist()))
    )
    train(net)
    assert len(set(masks)) == len(masks) == 12


def test_labels_go_only_where_there_are_classes() -> None:
    plain = ScoreNetwork(MLP((2,), 8), VPSDE(), V())
    for net in (plain, EnergyNetwork(ReconstructionEnergy(MLP((2,), 8)), VPSDE())):
        with pytest.raises(ValueError, match=r"labels of 3 classes.*data\.unlabelled\(\)"):
            train(net)
    assert len(train(plain, data=labelled().unlabelled())) == 12
    with pytest.raises(ValueError, match="label_dropout needs"):
        train(plain, data=labelled().unlabelled(), label_dropout=0.1)
    with pytest.raises(ValueError, match="label_dropout needs"):
        train(model(), data=Data(rings(30, 0)), label_dropout=0.1)
    assert len(train(model(), data=Data(rings(30, 0)))) == 12
    few = ScoreNetwork(MLP((2,), 8, classes=2), VPSDE(), V())
    with pytest.raises(ValueError, match="3 classes and the network 2"):
        train(few)


# Bad arguments


def test_an_infinite_norm_clips_nothing() -> None:
    free, wide = model(), model()
    train(free, grad_clip=math.inf)
    train(wide, grad_clip=1e30)
    assert equal(bits(free), bits(wide))


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"steps": 0}, ValueError),
        ({"steps": 1.5}, TypeError),
        ({"batch": 61}, ValueError),
        ({"batch": 0}, ValueError),
        ({"lr": 0.0}, ValueError),
        ({"lr": math.nan}, ValueError),
        ({"ema_decay": 1.0}, ValueError),
        ({"label_dropout": 1.5}, ValueError),
        ({"grad_clip": 0.0}, ValueError),
        ({"save_every": 0}, ValueError),
        ({"patience": 0}, ValueError),
        ({"data": rings(20, 0)}, TypeError),
        ({"seed": -1}, ValueError),
        ({"momentum": 0.9}, TypeError),
    ],
)
def test_bad_arguments_are_refused(change: dict[str, Any], kind: type) -> None:
    arguments = {"steps": 12, "batch": 16, "progress": False, **change}
    data = arguments.pop("data", labelled())
    with pytest.raises(kind):
        fit(model(), data, **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": 3}, r"objective must be a function \(model, x0, \*, generator, "),
        ({"objective": DenoisingScoreMatching}, "got the class .*: make an instance of it"),
        ({"seed": 2**64}, r"seed must lie in 0 .. 2\^64 - 1"),
        ({"label_dropout": torch.ones(2)}, "label_dropout must be a real number, got a tensor"),
        ({"dropout": 0.1}, "dropout must be a Mapping, such as {\"label\": 0.1}; got 0.1"),
        ({"dropout": {"label": "0.1"}}, r"dropout\['label'\] must be a real number, got '0.1'"),
        ({"out": 3}, "out must be a path, a str or an os.PathLike, got 3"),
        ({"out": ""}, "out must be a path, got an empty string"),
        ({"device": "gpu"}, r"device gpu cannot be used here \(.*\); there are: cpu"),
        ({"device": 0.5}, "device must be a device, such as 'cpu' or 'cuda:0', got 0.5"),
        ({"accelerator": "gpu"}, r"such as accelerate.Accelerator\(\); got 'gpu'"),
        ({"shard": True}, r"shard must be a function \(model\), such as torch.distributed"),
        ({"posthoc": 100}, r"posthoc must be a PostHoc, such as PostHoc\(every=100\); got 100"),
        ({"watch": 100}, r"watch must be a Watch, such as Watch\(every=100, data=held_out\)"),
        ({"objective_name": 1}, "objective_name must be a str"),
        ({"resume": "no"}, "resume must be True or False, got 'no'"),
        ({"progress": None}, "progress must be True or False, got None"),
        ({"accumulate": 0.5}, "accumulate must be an integer, got 0.5"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused_in_words(change: dict[str, Any], message: str) -> None:
    arguments = {"steps": 12, "batch": 16, "progress": False, **change}
    with pytest.raises((TypeError, ValueError), match=message):
        fit(model(), labelled(), arguments.pop("objective", None), **arguments)


def test_what_is_no_score_model_is_refused(tmp_path: Path) -> None:
    net = nn.Linear(2, 2)
    with pytest.raises(TypeError, match="model must be a score model, got the network Linear"):
        fit(net, labelled(), steps=12)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="model must be a score model, got the network Linear"):
        sg.save(net, tmp_path / "a")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="model must be a Module, such as ScoreNetwork"):
        EMA(lambda x: x)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_numbers_of_every_library_train_the_same_and_resume(tmp_path: Path) -> None:
    """They were written into the resume file, whose JSON knows Python's alone."""
    whole, mine = model(), model()
    lr = float(np.float32(0.01))
    steps = train(whole, steps=20, lr=lr)
    foreign = {
        "steps": np.int64(20), "batch": torch.tensor(16), "lr": np.float32(0.01),
        "seed": np.uint8(0), "weight_decay": np.float64(0.0), "ema_decay": np.float64(0.999),
        "save_every": np.int32(5), "label_dropout": np.float64(0.1), "out": tmp_path,
    }  # fmt: skip
    # a tenth of the steps, as for 20 of Python's
    assert [numbers(s) for s in train(mine, 6, **foreign)] == [numbers(s) for s in steps[:6]]
    later = model(1)
    rest = train(later, steps=20, lr=lr, save_every=5, out=str(tmp_path))
    assert [numbers(s) for s in rest] == [numbers(s) for s in steps[6:]]
    assert equal(bits(later), bits(whole))


def test_settings_hold_pythons_numbers() -> None:
    settings = TrainSettings(np.int64(10), torch.tensor(4), np.float32(0.5), dropout={"label": 1})
    assert (settings.steps, settings.batch, settings.lr) == (10, 4, 0.5)
    kinds = [type(v) for v in (settings.steps, settings.batch, settings.lr, settings.seed)]
    assert kinds == [int, int, float, int]
    assert json.dumps(settings.fixed())
    for bad, words in (
        ({"label": 2}, r"dropout\['label'\] must lie in \[0, 1\]"),
        (0.1, "Mapping"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            TrainSettings(10, dropout=bad)  # type: ignore[arg-type]


def test_an_unwritable_folder_is_found_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="cannot be written to"):
        fit(model(), labelled(), steps=12, batch=16, out=tmp_path / "file" / "run")


# The average, once more


def test_the_average_of_bfloat16_weights_is_kept_in_float32() -> None:
    """Steps of 0.001 x 0.5 are below bfloat16's rounding at 1, 0.0078, and must not be lost."""
    net = nn.Linear(1, 1, bias=False).bfloat16()
    ema = EMA(net, 0.999)
    with torch.no_grad():
        net.weight.fill_(1.0)
        ema.update_parameters(net)
        ema.n_averaged.fill_(20_000)  # past the warm-up of the decay
        net.weight.fill_(1.5)
        for _ in range(1000):
            ema.update_parameters(net)
    exact = 1.5 - 0.5 * 0.999**1000
    assert ema.module.weight.dtype == torch.bfloat16
    assert float(ema.module.weight) == pytest.approx(exact, rel=2**-8)
    assert float(ema.wide0) == pytest.approx(exact, rel=1e-5)
    trained = ScoreNetwork(MLP(hidden=8), VPSDE(), V()).bfloat16()
    *_, last = fit(trained, Data(moons(50, 0)), steps=2, batch=16, progress=False)
    assert last.ema.placement()[1] == torch.bfloat16


def test_the_average_is_pickled_copied_and_moved() -> None:
    net = ScoreNetwork(MLP(hidden=8), VPSDE(), V()).bfloat16()
    ema = EMA(net, 0.9)
    ema.update_parameters(net)
    for other in (pickle.loads(pickle.dumps(ema)), deepcopy(ema), deepcopy(ema).to("cpu")):
        with torch.no_grad():
            for p in net.parameters():
                p.add_(1)
        reference = deepcopy(ema)
        reference.update_parameters(net)
        other.update_parameters(net)
        assert other.count == 2
        assert equal(bits(other.module), bits(reference.module))
    fresh = EMA(net, 0.9)
    fresh.load_state_dict(ema.state_dict())
    assert fresh.count == ema.count


def test_a_step_keeps_its_own_average() -> None:
    steps, kept = [], []
    for step in fit(model(), labelled(), steps=6, batch=16, progress=False):
        steps.append(step)
        if step.step in (2, 4):
            kept.append(step.ema)
    assert not equal(bits(kept[0]), bits(kept[1]))
    assert kept[0] is steps[1].ema
    assert not kept[0].training
    with pytest.raises(ValueError, match=r"after step 3 is gone.*inside the loop"):
        _ = steps[2].ema


# What a training is


RESUME = """
import sys
import torch
import scoregen as sg
from torch import nn

kind, out, stop = sys.argv[1], sys.argv[2], int(sys.argv[3])
matching, half = sg.DenoisingScoreMatching(), 0.5

def mirrored(model, x0, *, generator, **condition):
    return half * matching(model, -x0, generator=generator, **condition)

class Own:
    def __init__(self, scale):
        self.scale = scale
    def __call__(self, model, x0, *, generator, **condition):
        return self.scale * matching(model, x0, generator=generator, **condition)

net = nn.Sequential(nn.Linear(1, 1))
objective = {
    "function": mirrored,
    "object": Own(0.5),
    "weight": sg.DenoisingScoreMatching(weight=lambda model, t, law: t.alpha),
    "closure": (lambda scale: lambda model, x0, **named: scale * matching(model, x0, **named))(2.0),
}[kind]
with torch.random.fork_rng():
    net = sg.ScoreNetwork(sg.MLP(hidden=8), sg.VPSDE(), sg.V())
for step in sg.fit(net, sg.Data(sg.data.moons(64, 0)), objective, steps=4, batch=32, out=out):
    print(step.step)
    if step.step == stop:
        break
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["function", "object", "weight", "closure"])
def test_a_new_process_resumes_with_own_parts(kind: str, tmp_path: Path) -> None:
    for stop, steps in (("2", ["1", "2"]), ("9", ["3", "4"])):
        done = subprocess.run(
            [sys.executable, "-c", RESUME, kind, str(tmp_path), stop],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
        )
        assert done.stdout.split() == steps, done.stderr[-800:]
        assert "\r" not in done.stderr  # no bar where nobody watches it


def test_the_identity_of_an_objective_is_what_it_computes() -> None:
    def scaled(scale: float) -> Any:
        return lambda m, x0, **named: scale * x0

    sampler = sg.Sampler(sg.Langevin(0.1), sg.Constant(0.0, 2))
    teachers = [Gaussian(VPSDE(), torch.zeros(2), v) for v in (1.0, 2.0)]
    different = [
        scaled(1.0),
        scaled(2.0),
        lambda m, x0, **named: x0 - 1,
        functools.partial(scaled(1.0), flag=True),
        DenoisingScoreMatching(),
        DenoisingScoreMatching(Stratified()),
        DenoisingScoreMatching(weight=lambda m, t, law: t.alpha),
        DenoisingScoreMatching(weight=lambda m, t, law: t.sigma),
        ContrastiveDivergence(sampler),
        ContrastiveDivergence(sampler, penalty=0.1),
        PersistentContrastiveDivergence(sampler, ReplayBuffer(torch.zeros(9, 2))),
        PersistentContrastiveDivergence(sampler, ReplayBuffer(torch.zeros(9, 2), restart=0.2)),
        {"a": torch.zeros(2)},
        {"a": torch.ones(2)},
        Sometimes({3}),
        Sometimes({4}),
    ]
    assert len({recipe(thing) for thing in different}) == len(different)
    assert recipe(scaled(2.0)) == recipe(scaled(2.0))
    assert recipe(Sometimes({4, 9, 100})) == recipe(Sometimes({100, 9, 4}))
    shared, apart = [[1]] * 2, [[1], [1]]
    assert recipe(shared) != recipe(apart) or shared == apart
    circle: list[Any] = [1]
    circle.append(circle)
    assert recipe(circle) == recipe(circle)
    assert list(modules_within({"t": teachers})) == ["['t'][0]", "['t'][1]"]


def test_what_nothing_identifies_needs_a_name(tmp_path: Path) -> None:
    own = torch.Generator()

    def objective(m: Any, x0: Tensor, **named: Any) -> Tensor:
        own.manual_seed(1)
        return DenoisingScoreMatching()(m, x0, **named)

    with pytest.raises(TypeError, match=r"a Generator has no identity \(the objective\.own\)"):
        train(model(), objective=objective, out=tmp_path)
    train(model(), 3, objective=objective, objective_name="a", out=tmp_path)
    with pytest.raises(CheckpointError, match="objective: 'a' -> 'b'"):
        train(model(), objective=objective, objective_name="b", out=tmp_path)
    assert train(model(), objective=objective, objective_name="a", out=tmp_path)[0].step == 4
    assert len(train(model(), objective=objective)) == 12  # nothing to resume, nothing to name


def chains(stop: int | None, out: Path | None, first: Tensor) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 16), nn.SiLU(), nn.Linear(16, 1), nn.Flatten(0))
    energy, buffer = Potential(net), ReplayBuffer(first)
    sampler = sg.Sampler(sg.Langevin(0.05), sg.Constant(0.0, 3))
    objective = PersistentContrastiveDivergence(sampler, buffer)
    for step in fit(
        energy, Data(moons(100, 0)), objective, steps=10, batch=16, progress=False, out=out
    ):
        if step.step == stop:
            break
    return bits(net), buffer.points


@pytest.mark.filterwarnings("ignore:.*not the code of Potential:UserWarning")
def test_persistent_chains_are_resumed(tmp_path: Path) -> None:
    first = torch.randn(64, 2)
    whole = chains(None, None, first)
    chains(5, tmp_path, first)
    again = chains(None, tmp_path, first)
    assert equal(whole[0], again[0])
    assert torch.equal(whole[1], again[1])


def test_the_history_of_losses_is_resumed(tmp_path: Path) -> None:
    def run(stop: int | None, out: Path | None) -> tuple[Any, LossAwareKnots]:
        torch.manual_seed(0)
        law = LossAwareKnots(4, history=2)
        net = ScoreNetwork(MLP(hidden=8), sg.DiscreteVPSDE.linear(4, 0.5, 0.99), V())
        objective = VariationalBound("large", law=law)
        for step in fit(
            net, Data(moons(64, 0)), objective, steps=8, batch=16, progress=False, out=out
        ):
            if step.step == stop:
                break
        return bits(net), law

    whole, _ = run(None, None), run(4, tmp_path)
    again = run(None, tmp_path)
    assert equal(whole[0], again[0])
    assert torch.equal(whole[1].squares, again[1].squares)


def test_a_teacher_that_training_left_alone_must_be_the_same(tmp_path: Path) -> None:
    def run(teacher: nn.Module, stop: int | None) -> list[int]:
        def objective(m: Any, x0: Tensor, **named: Any) -> Tensor:
            return DenoisingScoreMatching()(m, teacher(x0), **named)

        torch.manual_seed(0)
        net = ScoreNetwork(MLP(hidden=8), VPSDE(), V())
        done = []
        for step in fit(
            net, Data(moons(64, 0)), objective, steps=6, batch=16, progress=False, out=tmp_path
        ):
            done.append(step.step)
            if step.step == stop:
                break
        return done

    torch.manual_seed(1)
    teacher, other = nn.Linear(2, 2), nn.Linear(2, 2)
    run(teacher, 3)
    with pytest.raises(CheckpointError, match=r"another objective.*teacher\.weight"):
        run(other, None)
    assert run(teacher, None) == [4, 5, 6]


def test_failures_in_a_row_are_counted_across_a_resume(tmp_path: Path) -> None:
    def bad(*arguments: Any, **named: Any) -> Tensor:
        return math.nan * DenoisingScoreMatching()(*arguments, **named)

    train(model(), 3, objective=bad, patience=5, out=tmp_path)
    with pytest.raises(TrainingError, match="5 steps in a row, up to step 5"):
        train(model(), objective=bad, patience=5, out=tmp_path)


# Stopping


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_preemption_saves_and_leaves(number: int, tmp_path: Path) -> None:
    whole, again = model(), model(seed=9)
    train(whole)
    before = signal.getsignal(number)

    def preempted() -> None:
        for step in fit(
            model(), labelled(), steps=12, batch=16, lr=1e-2, progress=False, out=tmp_path
        ):
            if step.step == 5:
                os.kill(os.getpid(), number)
                pytest.fail("the signal was lost")

    with pytest.raises(SystemExit) as left:
        preempted()
    assert left.value.code == 128 + number
    assert signal.getsignal(number) == before
    assert train(again, out=tmp_path)[0].step == 6
    assert equal(bits(again), bits(whole))


def test_a_programs_own_handler_comes_after_the_save(tmp_path: Path) -> None:
    seen = []

    def own(number: int, frame: Any) -> None:
        seen.append((tmp_path / "resume.safetensors").is_file())

    before = signal.signal(signal.SIGTERM, own)
    try:
        for step in fit(model(), labelled(), steps=4, batch=16, progress=False, out=tmp_path):
            if step.step == 2:
                os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [True]


def test_ignored_signals_stay_ignored_and_threads_install_none(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        for _ in fit(model(), labelled(), steps=2, batch=16, progress=False):
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    net, whole = model(), model()
    thread = threading.Thread(target=train, args=(net,), kwargs={"out": tmp_path})
    thread.start()
    thread.join()
    train(whole)
    assert equal(bits(net), bits(whole))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["fit", "command"])
def test_killed_trainings_end_as_the_uninterrupted_one(way: str) -> None:
    script = Path(__file__).resolve().parents[1] / "benchmarks" / "training" / "kill_training.py"
    done = subprocess.run(
        [sys.executable, script, "--rounds", "3", "--way", way],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(script.parents[2])},
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_stopped_training_can_be_sampled(tmp_path: Path) -> None:
    net = ScoreNetwork(MLP((2,), 8, classes=3), VPSDE(), V())
    stopped = train(net, 7, out=tmp_path)
    assert fingerprint(load(tmp_path / "model")) == fingerprint(stopped[-1].ema)
    assert card(tmp_path / "model")["steps"] == 7


def test_an_energy_leaves_a_checkpoint(tmp_path: Path) -> None:
    energy = EnergyNetwork(ReconstructionEnergy(MLP(hidden=8), 0.5), VPSDE())
    steps = train(energy, data=labelled().unlabelled(), out=tmp_path)
    x = torch.ones(3, 2)
    back = load(tmp_path / "model")
    assert torch.equal(energy_of(back, x, 0.5), energy_of(steps[-1].ema, x, 0.5))


def test_labels_reach_a_conditional_energy() -> None:
    seen = []

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = MLP(event=(2,), hidden=8, classes=3)
            self.config = "no dict"

        def forward(self, x: Tensor, clock: Tensor, label: Tensor | None = None) -> Tensor:
            seen.append(label is not None)
            return self.inner(x, clock, label)

        @property
        def conditions(self) -> Conditions:
            return Conditions.labels(3)

        def check_condition(self, **condition: Any) -> None:
            self.inner.check_condition(**condition)

    energy = EnergyNetwork(ReconstructionEnergy(Spy()), VPSDE())
    train(energy)
    assert len(seen) == 12
    assert all(seen)
    sampler = sg.Sampler(sg.Langevin(0.01), sg.Constant(0.5, 2))
    seen.clear()
    train(energy, objective=ContrastiveDivergence(sampler, t=0.5))
    assert seen
    assert all(seen)


def test_what_can_be_known_at_once_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.tex").write_text("x")
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        fit(model(), labelled(), steps=12, batch=16, out=tmp_path)
    with pytest.warns(UserWarning, match=r"not the code of Forgetful.*load\(folder, net=\.\.\.\)"):
        fit(model(), labelled(), steps=12, batch=16, out=tmp_path / "b")


def test_data_on_another_scale_than_the_noise_are_noticed() -> None:
    net = ScoreNetwork(MLP((2,), 8), VPSDE(), V())
    far = Data(moons(100, 0) * 12_000 + 50_000)
    # alpha(1)^2 = exp(-20.1 / 2), sigma = 1
    share = math.exp(-10.05) * float(far.x.double().square().mean())
    with pytest.warns(UserWarning, match=re.escape(f"still have {share:.2g} of the noise's power")):
        fit(net, far, steps=1, batch=16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(net, far.standardised(), steps=1, batch=16)
        # sqrt(1e-2) / alpha(1) = 15.2: just below and, in the next line, just above
        fit(net, Data(torch.full((20, 2), 15.1)), steps=1, batch=16)
    with pytest.warns(UserWarning, match="of the noise's power"):
        fit(net, Data(torch.full((20, 2), 15.3)), steps=1, batch=16)


# Several processes


RANKS = """
import json, sys
from pathlib import Path
sys.path[:0] = [sys.argv[2]]
import torch
from accelerate import Accelerator
from test_train import DenoisingScoreMatching, fit, labelled, model

accelerator = Accelerator(cpu=True)
rank, out = accelerator.process_index, Path(sys.argv[1])
seen, noise = [], []

class Objective:
    def __repr__(self):
        return "Objective()"
    def __call__(self, m, x0, *, generator, label):
        seen.append(x0.tolist())
        loss = DenoisingScoreMatching()(m, x0, generator=generator, label=label)
        noise.append(float(torch.rand((), generator=generator)))
        return loss

net = model(seed=rank)
steps = [
    [s.step, s.loss, s.grad_norm, s.lr, s.skipped]
    for s in fit(net, labelled(), Objective(), steps=6, batch=16, lr=1e-2, progress=False,
                 out=out, accelerator=accelerator)
]
weights = [p.double().sum().item() for p in net.parameters()]
result = [accelerator.num_processes, seen, noise, steps, weights]
(out / f"{rank}.json").write_text(json.dumps(result))
accelerator.end_training()
"""


@pytest.mark.slow
def test_two_processes_share_the_batch_and_end_with_the_same_weights(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        *(str(script), str(tmp_path), str(Path(__file__).parent)),
    ]
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first[0] == second[0] == 2
    for k, (x0, _) in zip(range(6), labelled().batches(16, 0), strict=False):
        assert first[1][k] == x0[:8].tolist()
        assert second[1][k] == x0[8:].tolist()
    assert not set(first[2]) & set(second[2])
    assert first[3] == second[3]
    assert first[4] == second[4]
    assert card(tmp_path / "model")["extra"]["training"]["processes"] == 2


class Foreign:
    """What fit asks of an Accelerator before anything else."""

    def __init__(self, **change: Any):
        self.gradient_accumulation_steps = change.get("accumulate", 1)
        self.mixed_precision = change.get("precision", "no")
        self.num_processes = change.get("processes", 1)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"accumulate": 2}, "accumulation_steps = 2"),
        ({"precision": "fp16"}, "bf16"),
        ({"processes": 3}, "multiple of the 3"),
    ],
)
def test_accelerators_that_would_not_resume_are_refused(change: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        fit(model(), labelled(), steps=2, batch=16, accumulate=4, accelerator=Foreign(**change))
