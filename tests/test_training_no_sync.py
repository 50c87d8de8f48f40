"""No step of a training waits for the device: nothing is read back, and nothing is float64 there.

A tensor subclass cannot stand in for a GPU in fused kernels, so the rule is watched on the CPU: the
operators by which a host reads a tensor are forbidden while a step runs.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from scoregen import MLP, VPSDE, Data, Eps, ScoreNetwork, UNet, V
from scoregen.data.targets import rings
from scoregen.objectives import DenoisingScoreMatching, Stratified, Unit
from scoregen.training import PostHoc, TrainSettings
from scoregen.training import engine as module
from scoregen.training.engine import Engine

READS = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "item", "masked_select", "unique")


class Forbidding(TorchDispatchMode):
    """Fails on whatever makes the host wait for a device, but for buffers that live on the host."""

    def __init__(self, host: list[torch.Tensor] | None = None):
        super().__init__()
        self.host = {tensor.data_ptr() for tensor in host or []}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in READS and args[0].data_ptr() not in self.host:
            raise AssertionError(f"the host reads a tensor: {name}")
        return func(*args, **(kwargs or {}))


pytestmark = pytest.mark.usefixtures("own_generator")


def engine(model: ScoreNetwork, event: tuple[int, ...], objective: Any, parts: int) -> Engine:
    averages = [*PostHoc(5).averages(model)]
    settings = TrainSettings(steps=10, batch=8, accumulate=parts)
    return Engine(model, objective, averages, settings, event, torch.device("cpu"))


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(
    "objective", [DenoisingScoreMatching(), DenoisingScoreMatching(Stratified(), Unit(V()))]
)
def test_a_step_reads_nothing(objective: Any, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one check of levels that reads them does so on the host alone, and is told it is not."""
    monkeypatch.setattr("scoregen.models.prediction._readable", lambda value: False)
    models = [
        (ScoreNetwork(MLP((2,), 8, classes=3), VPSDE(), V()), Data(rings(20, 0))),
        (
            ScoreNetwork(UNet(1, 4, (1,), attention=(True,), dropout=0.1), VPSDE(), Eps()),
            Data(torch.linspace(-1, 1, 20 * 16).reshape(20, 1, 4, 4)),
        ),
    ]
    for model, data in models:
        steps = engine(model, data.event, objective, parts)
        batches = data.serve(8, 0)
        for k in range(3):
            batch = next(batches)
            with Forbidding([average.n_averaged for average in steps.averages]):
                measured = steps.gradient(batch, k)
                steps.update(measured, 1e-3)
        assert measured.isfinite().all()


def test_reading_is_noticed() -> None:
    """A mutant that reads the norm is caught by the mode."""
    with pytest.raises(AssertionError, match="the host reads"), Forbidding():
        float(torch.ones(()))
    with pytest.raises(AssertionError, match="the host reads"), Forbidding():
        bool(torch.ones(()) > 0)


def test_a_step_that_is_left_out_leaves_weights_and_moments_alone() -> None:
    """Without reading anything: on the device, by the optimizer's own flag."""
    model = ScoreNetwork(MLP((2,), 8), VPSDE(), V())
    calls = []

    def objective(m: Any, x0: torch.Tensor, **named: Any) -> torch.Tensor:
        calls.append(1)
        return DenoisingScoreMatching()(m, x0, **named) * (torch.nan if len(calls) == 3 else 1.0)

    steps = engine(model, (2,), objective, 1)
    batches = Data(rings(20, 0)).serve(8, 0)
    for k in range(4):
        before = [p.detach().clone() for p in model.parameters()]
        moments = [
            [v.clone() for v in steps.optimizer.state[p].values()] for p in model.parameters()
        ]
        measured = steps.gradient(next(batches), k)
        steps.update(measured, 1e-2)
        same = all(map(torch.equal, before, model.parameters()))
        assert same == (k == 2)
        if k == 2:
            after = [list(steps.optimizer.state[p].values()) for p in model.parameters()]
            assert all(
                torch.equal(a, b)
                for old, new in zip(moments, after, strict=True)
                for a, b in zip(old, new, strict=True)
            )


def test_times_are_drawn_on_the_host_where_the_device_is_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same times, from a generator of the host: a trained-on device sees what a CPU sees."""
    model = ScoreNetwork(MLP((2,), 8), VPSDE(), V())
    steps = engine(model, (2,), DenoisingScoreMatching(), 1)
    x = torch.zeros(8, 2)
    here = steps._draws(x, 4).t
    monkeypatch.setattr(steps, "place", torch.device("meta"))
    assert torch.equal(steps._draws(x, 4).t, here)
    assert module.divisible(DenoisingScoreMatching())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_finds_no_synchronisation() -> None:
    """torch's own detector, over whole steps on the device."""
    place = torch.device("cuda")
    model = ScoreNetwork(UNet(1, 8, classes=3), VPSDE(), V()).to(place)
    settings = TrainSettings(steps=10, batch=8)
    averages = [*PostHoc(5).averages(model)]
    steps = Engine(model, DenoisingScoreMatching(), averages, settings, (1, 8, 8), place)
    x = torch.linspace(-1, 1, 20 * 64).reshape(20, 1, 8, 8)
    batches = Data(x, torch.arange(20) % 3).serve(8, 0, device=place)
    for k in range(6):
        if k == 3:
            torch.cuda.set_sync_debug_mode("error")
        try:
            measured = steps.gradient(next(batches), k)
            steps.update(measured, 1e-3)
        finally:
            if k == 5:
                torch.cuda.set_sync_debug_mode("default")
