"""What is looked at during a training: held-out losses, the best checkpoint, logs and pictures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import scoregen as sg
from scoregen import MLP, VPSDE, Data, Gaussian, ScoreNetwork, UNet, V
from scoregen._files import CheckpointError
from scoregen.data import Batch
from scoregen.data.targets import moons, rings
from scoregen.models import Conditions
from scoregen.noise import SampleNoise
from scoregen.objectives import DenoisingScoreMatching, Stratified, UniformLamLaw, UniformLaw
from scoregen.training import (
    PostHoc,
    TrainStep,
    Validation,
    Watch,
    card,
    fit,
    load,
    reconstruct,
    validate,
)
from scoregen.training.log import read
from scoregen.training.posthoc import gamma_of

IMAGES = Data(torch.linspace(-1, 1, 40 * 16).reshape(40, 1, 4, 4).sin(), range=(-1, 1))


pytestmark = pytest.mark.usefixtures("own_generator")


def small(seed: int = 0, **change: Any) -> ScoreNetwork:
    torch.manual_seed(seed)
    return ScoreNetwork(MLP((2,), 8, **change), VPSDE(), V())


def train(net: ScoreNetwork, stop: int | None = None, **change: Any) -> list[TrainStep]:
    arguments = {"steps": 12, "batch": 16, "progress": False, "lr": 1e-2, **change}
    data = arguments.pop("data", Data(moons(60, 0)))
    done = []
    for step in fit(net, data, arguments.pop("objective", None), **arguments):
        done.append(step)
        if len(done) == stop:
            break
    return done


def bits(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def kinds(folder: Path) -> list[str]:
    """What lies in a folder, without what hosts and processes name."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


# The loss on held-out data


def test_the_held_out_loss_is_the_closed_form_of_a_gaussian() -> None:
    """Data N(0, v) seen by the model of N(0, u): the loss per level is an integral of Gaussians.

    x0_hat = g x with g = alpha u / (alpha^2 u + sigma^2), so E|x0 - x0_hat|^2 / d is
    (1 - g alpha)^2 v + g^2 sigma^2, and the loss is that times w (1 + alpha^2 / sigma^2).
    """
    sde, v, u = VPSDE(), 1.5, 0.5
    x = math.sqrt(v) * torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    model = Gaussian(sde, torch.zeros(2), u)
    found = validate(model, Batch(x, {}), levels=5)
    assert found.t == pytest.approx([sde.t_min + (1 - sde.t_min) * (k + 0.5) / 5 for k in range(5)])
    second = float(x.double().square().mean())
    for t, loss in zip(found.t, found.losses, strict=True):
        level = sde.level(t)
        g = level.alpha * u / (level.alpha**2 * u + level.sigma**2)
        error = (1 - g * level.alpha) ** 2 * second + g**2 * level.sigma**2
        # the default weight counts the error of eps once: |eps - eps_hat| = alpha/sigma |x0 - ..|
        exact = error * level.alpha**2 / level.sigma**2
        # 8,000 squares of normals: a standard error of 1.6 %; false alarms below 1e-6 at 5 of them
        assert loss == pytest.approx(exact, rel=0.08)
    assert found.loss == pytest.approx(sum(found.losses) / 5)


def test_the_held_out_loss_is_the_objectives_own_at_fixed_noise() -> None:
    model, x = small(classes=3), moons(20, 1)
    label = torch.arange(20) % 3
    objective = DenoisingScoreMatching(Stratified(UniformLamLaw()))
    found = validate(model, Batch(x, {"label": label}), objective, levels=3, seed=7, chunk=6)
    noise, level = SampleNoise(7), model.sde.level(1.0)
    for k, loss in enumerate(found.losses):
        t = UniformLamLaw().quantile(model.sde, torch.tensor([(k + 0.5) / 3]).double())
        eps = noise(x, level, level)
        with torch.no_grad():
            exact = objective.at(model.eval(), x, t.expand(20), eps, label=label).mean() / 2
        assert loss == pytest.approx(float(exact), rel=1e-5)
    again = validate(model, Batch(x, {"label": label}), objective, levels=3, seed=7)
    assert again.losses == pytest.approx(found.losses, rel=1e-5)


# Watching


def test_watching_changes_no_bit_and_leaves_what_it_says(tmp_path: Path) -> None:
    plain, watched = small(), small()
    train(plain)
    watch = Watch(every=8, data=Data(moons(50, 9)), samples=40, levels=4)
    steps = train(watched, out=tmp_path, watch=watch)
    assert equal(bits(plain), bits(watched))
    rows = [row for row in read(tmp_path / "log.jsonl") if "validation" in row]
    assert [row["step"] for row in rows] == [8, 12]
    batch = next(Data(moons(50, 9)).serve(40, 0))
    exact = validate(steps[-1].ema, batch, DenoisingScoreMatching(), levels=4)
    assert rows[-1]["validation"] == pytest.approx(exact.loss)
    assert rows[-1]["levels"] == pytest.approx(exact.losses)
    lowest = min(rows, key=lambda row: row["validation"])
    best = card(tmp_path / "best")
    assert (best["steps"], best["extra"]["validation"]) == (lowest["step"], lowest["validation"])
    again = validate(load(tmp_path / "best"), batch, levels=4)
    assert again.loss == pytest.approx(lowest["validation"])
    assert (tmp_path / "training.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_the_best_checkpoint_stays_when_the_loss_rises(tmp_path: Path) -> None:
    """Trained towards one law and judged on another, the loss rises from some step on."""
    watch = Watch(every=20, data=Data(torch.zeros(40, 2)), samples=40)
    train(small(), out=tmp_path, watch=watch, data=Data(3 + moons(60, 0)), steps=60, lr=3e-2)
    rows = [row for row in read(tmp_path / "log.jsonl") if "validation" in row]
    losses = [row["validation"] for row in rows]
    lowest = losses.index(min(losses))
    assert lowest < len(losses) - 1
    assert card(tmp_path / "best")["steps"] == rows[lowest]["step"]
    assert card(tmp_path / "model")["steps"] == 60


@pytest.mark.parametrize("stop", [3, pytest.param(7, marks=pytest.mark.slow)])
def test_a_stopped_training_ends_with_the_same_files(stop: int, tmp_path: Path) -> None:
    def run(out: Path, stop: int | None) -> ScoreNetwork:
        net = small()
        options: dict[str, Any] = {"posthoc": PostHoc(3), "save_every": 2}
        watch = Watch(every=6, data=Data(moons(50, 9)), samples=40, levels=2)
        train(net, stop, out=out, watch=watch, **options)
        return net

    whole = run(tmp_path / "a", None)
    run(tmp_path / "b", stop)
    with open(tmp_path / "b" / "log.jsonl", "a") as file:  # as a killed process leaves it
        file.write('{"step": 99, "loss": 1.0}\n{"step": 5, "lo')
    again = run(tmp_path / "b", None)
    assert equal(bits(whole), bits(again))
    assert kinds(tmp_path / "a") == kinds(tmp_path / "b")
    for name in kinds(tmp_path / "a"):
        if name.endswith(".safetensors"):
            assert equal(*(safetensors.torch.load_file(tmp_path / side / name) for side in "ab"))
    looks = [
        [row for row in read(tmp_path / name / "log.jsonl") if "validation" in row] for name in "ab"
    ]
    assert looks[0] == looks[1]
    steps = [row["steps"] for row in read(tmp_path / "b" / "log.jsonl") if "steps" in row]
    assert sum(steps) == 12
    assert equal(bits(reconstruct(tmp_path / "a", 0.15)), bits(reconstruct(tmp_path / "b", 0.15)))


def test_held_out_batches_of_an_iterator_are_used_from_the_first(tmp_path: Path) -> None:
    """One batch is there, and checking what was given must not use it up."""
    watch = Watch(every=2, data=iter([moons(40, 9)]), samples=40, levels=2)  # type: ignore[arg-type]
    train(small(), steps=2, watch=watch, out=tmp_path)
    assert len(read(tmp_path / "log.jsonl")[-1]["levels"]) == 2


@pytest.mark.slow
def test_a_new_training_in_the_folder_of_an_old_one_starts_clean(tmp_path: Path) -> None:
    watch = Watch(every=4, data=Data(moons(50, 9)), samples=40)
    train(small(), out=tmp_path, watch=watch, posthoc=PostHoc(4))
    train(small(), 2, out=tmp_path, seed=1, resume=False)
    assert not (tmp_path / "best").exists()
    with pytest.raises(CheckpointError, match="no snapshots"):
        reconstruct(tmp_path, 0.1)
    assert [row["step"] for row in read(tmp_path / "log.jsonl")] == [2]


def test_snapshots_hold_the_power_averages_of_the_training(tmp_path: Path) -> None:
    net, path = small(), []
    for _ in fit(
        net, Data(moons(60, 0)), steps=20, batch=16, posthoc=PostHoc(5), out=tmp_path,
        progress=False,
    ):  # fmt: skip
        path.append(torch.cat([p.detach().double().flatten() for p in net.parameters()]))
    s = torch.arange(1, 21).double()
    for sigma_rel in (0.05, 0.10):
        power = gamma_of(sigma_rel) + 1
        shares = (s / 20) ** power - ((s - 1) / 20) ** power
        exact = shares @ torch.stack(path)
        made = reconstruct(tmp_path, sigma_rel)
        found = torch.cat([p.detach().double().flatten() for p in made.net.parameters()])
        assert torch.allclose(found, exact, rtol=1e-5, atol=1e-6)
    with pytest.raises(CheckpointError, match=r"posthoc: \[0\.05, 0\.1\] -> \[0\.1, 0\.2\]"):
        fit(
            small(), Data(moons(60, 0)), steps=20, batch=16, out=tmp_path,
            posthoc=PostHoc(5, (0.1, 0.2)),
        )  # fmt: skip


def test_pictures_of_a_training_in_progress(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    net = ScoreNetwork(UNet(1, 4, (1,), attention=(False,), classes=2), VPSDE(), V())
    data = Data(IMAGES.x, torch.arange(40) % 2, range=(-1, 1))
    sampler = sg.Sampler(sg.DDIM(), sg.UniformLam(3))
    watch = Watch(every=2, sampler=sampler, pictures=6, seed=3)
    kept = {}
    for step in fit(
        net, data, steps=4, batch=8, out=tmp_path, watch=watch, lr=1e-2, progress=False
    ):
        if step.step % 2 == 0:
            kept[step.step] = step.ema
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == [
        "000000002.png",
        "000000004.png",
    ]
    for number, average in kept.items():
        label = torch.arange(6) % 2
        x = sampler.sample(average, (6, 1, 4, 4), seed=3, condition={"label": label})
        row = imread(tmp_path / "samples" / f"{number:09d}.png")
        assert row.shape[:2] == (6, 31)
        for k in range(6):
            shown = torch.from_numpy(row[1:5, 1 + 5 * k : 5 + 5 * k, 0].copy())
            exact = ((x[k, 0] + 1) / 2).clamp(0, 1)
            assert float((shown - exact).abs().max()) < 0.003
    assert imread(tmp_path / "samples.png").shape[:2] == (12, 31)


# The log and the trackers


def test_the_log_holds_the_means_of_the_steps(tmp_path: Path) -> None:
    steps = train(small(), out=tmp_path, steps=50)
    rows = read(tmp_path / "log.jsonl")
    assert [(row["step"], row["steps"]) for row in rows] == [(20, 20), (40, 20), (50, 10)]
    assert rows[0]["loss"] == pytest.approx(sum(s.loss for s in steps[:20]) / 20)
    assert rows[2]["grad_norm"] == steps[-1].grad_norm
    assert rows[1]["lr"] == steps[39].lr
    assert all(json.dumps(row, allow_nan=False) for row in rows)


def test_losses_that_are_not_finite_are_counted_and_left_out_of_means(tmp_path: Path) -> None:
    calls = []

    def objective(m: Any, x0: Tensor, *, generator: torch.Generator) -> Tensor:
        calls.append(1)
        loss = DenoisingScoreMatching()(m, x0, generator=generator)
        return loss * (math.nan if len(calls) in (2, 3) else 1.0)

    steps = train(
        small(), objective=objective, objective_name="sometimes", out=tmp_path, patience=5
    )
    (row,) = read(tmp_path / "log.jsonl")
    good = [s.loss for s in steps if math.isfinite(s.loss)]
    assert (row["skipped"], row["steps"], len(good)) == (2, 12, 10)
    assert row["loss"] == pytest.approx(sum(good) / 10)


def test_trackers_get_the_numbers(accelerate: Any, tmp_path: Path) -> None:
    """TensorBoard's own reader finds what Accelerate's tracker wrote."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    accelerator = accelerate.Accelerator(
        cpu=True, log_with="tensorboard", project_dir=str(tmp_path / "board")
    )
    accelerator.init_trackers("moons")
    watch = Watch(every=10, data=Data(moons(50, 9)), samples=40)
    steps = train(small(), out=tmp_path / "run", watch=watch, accelerator=accelerator, steps=20)
    accelerator.end_training()
    (events,) = (tmp_path / "board" / "moons").glob("events*")
    board = reader.EventAccumulator(str(events.parent))
    board.Reload()
    assert {"loss", "lr", "grad_norm", "skipped", "validation"} <= set(board.Tags()["scalars"])
    rows = read(tmp_path / "run" / "log.jsonl")
    loss = {event.step: event.value for event in board.Scalars("loss")}
    assert loss == pytest.approx({r["step"]: r["loss"] for r in rows if "loss" in r}, rel=1e-6)
    found = {event.step: event.value for event in board.Scalars("validation")}
    assert sorted(found) == [10, 20]
    assert steps[-1].step == 20


# Bad arguments


def test_what_cannot_be_validated_is_refused() -> None:
    net, batch = small(), Batch(moons(20, 1), {})
    for arguments, message in (
        ((nn.Identity(), batch), "model must be a score model, got the network Identity"),
        ((net, moons(20, 1)), r"batch must be a Batch, such as Batch\(x, \{\}\); got a tensor"),
        ((net, Batch(moons(20, 1), None)), "batch.condition must be a Mapping"),
        ((net, Batch(moons(20, 1)[:0], {})), "batch.x must hold at least one sample"),
        ((net, Batch(moons(20, 1) / 0, {})), "batch.x must be finite"),
        ((net, batch, lambda model, x0: x0), "objective must be a DenoisingScoreMatching"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            validate(*arguments)  # type: ignore[arg-type]
    for change in ({"levels": 0}, {"levels": 2.0}, {"chunk": 0}, {"chunk": None}, {"seed": -1}):
        with pytest.raises((TypeError, ValueError), match=f"{next(iter(change))} must be"):
            validate(net, batch, **change)  # type: ignore[arg-type]


def test_a_range_that_no_card_holds_is_found_before_the_first_step(tmp_path: Path) -> None:
    class Positive:
        """A source of one's own, of positive numbers."""

        name, event, bins, units, conditions, classes = "own", (2,), None, None, (), 0
        range = (0.0, math.inf)

        def identity(self) -> str:
            return "own"

        def mean_square(self) -> float:
            return 1.0

        def serve(self, *arguments: Any, **named: Any) -> Any:
            return Data(moons(60, 0).abs()).serve(*arguments, **named)

    assert len(train(small(), data=Positive(), steps=2)) == 2
    with pytest.raises(ValueError, match=r"data.range\[1\] must be finite, got inf"):
        fit(small(), Positive(), steps=2, batch=16, out=tmp_path)


def test_what_cannot_be_watched_is_refused_before_the_first_step(tmp_path: Path) -> None:
    held_out = Data(moons(300, 1))
    with pytest.raises(ValueError, match="something to look at"):
        Watch(every=10)
    for change in ({"every": 0}, {"levels": 0}, {"samples": 0}, {"pictures": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match=next(iter(change))):
            Watch(**{"every": 10, "data": held_out, **change})
    with pytest.raises(TypeError, match="objective must be"):
        Watch(10, held_out, objective=lambda *a, **k: None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="sampler must be"):
        Watch(10, held_out, sampler=sg.DDIM())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="data must be"):
        Watch(10, moons(300, 1))  # type: ignore[arg-type]

    def begin(watch: Watch, objective: Any = None, **change: Any) -> None:
        arguments = {"steps": 2, "batch": 16, "out": tmp_path, "objective_name": "a", **change}
        data = arguments.pop("data", Data(moons(60, 0)))
        fit(arguments.pop("net", small()), data, objective, watch=watch, **arguments)

    with pytest.raises(ValueError, match="give fit a folder"):
        begin(Watch(10, held_out), out=None)
    with pytest.raises(ValueError, match=r"event \(3,\)"):
        begin(Watch(10, Data(torch.zeros(300, 3))))
    with pytest.raises(ValueError, match=r"batch must be in 1 \.\. 10"):
        begin(Watch(10, Data(moons(10, 0))))
    with pytest.raises(ValueError, match="labels of 2 classes"):
        begin(Watch(10, Data(moons(300, 1), torch.arange(300) % 2)))
    with pytest.raises(TypeError, match=r"function is not: choose one, Watch\(objective"):
        begin(Watch(10, held_out), lambda m, x0, **named: x0.sum(1))
    with pytest.raises(TypeError, match="quantiles of the law"):
        begin(Watch(10, held_out), DenoisingScoreMatching(law=lambda sde, n, g: torch.ones(n)))
    begin(
        Watch(10, held_out, objective=DenoisingScoreMatching(UniformLaw())),
        lambda m, x0, **named: x0.sum(1),
    )
    with pytest.raises(ValueError, match=r"a strip shows images.*\(2,\)"):
        begin(Watch(10, sampler=sg.Sampler(sg.DDIM(), sg.UniformLam(3))))
    with pytest.raises(ValueError, match="give fit a folder"):
        fit(small(), Data(rings(60, 0)), steps=2, batch=16, posthoc=PostHoc(1))


def test_a_model_of_ones_own_is_watched(tmp_path: Path) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.drop = nn.Linear(3, 2), nn.Dropout(0.5)

        def forward(self, x: Tensor, clock: Tensor, label: Tensor) -> Tensor:
            return self.drop(self.inner(torch.cat([x, label[:, None].float()], 1)))

    net = ScoreNetwork(Own(), VPSDE(), V(), conditions=Conditions.labels(2))
    data = Data(moons(60, 0), torch.arange(60) % 2)
    watch = Watch(every=6, data=data, samples=30)
    with pytest.warns(UserWarning, match="not the code of Own"):
        steps = train(net, data=data, out=tmp_path, watch=watch)
    rows = [row for row in read(tmp_path / "log.jsonl") if "validation" in row]
    batch = next(data.serve(30, 0))
    # dropout is off, and the labels are those of the data: none is replaced by the null class
    assert rows[-1]["validation"] == pytest.approx(validate(steps[-1].ema, batch).loss)
    assert Validation((0.5,), (1.0,)) != Validation((0.5,), (2.0,))
