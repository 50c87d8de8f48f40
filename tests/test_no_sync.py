"""Fixed grids, objectives and guidance never wait for the device, nor make float64 on it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import SOLVERS, grid_for, name, suits
from no_sync import DEVICE, NoSync, WaitedError
from torch import Tensor, nn

import scoregen as sg
from scoregen import (
    MLP,
    VPSDE,
    Constant,
    DiscreteVPSDE,
    Sampler,
    ScoreModel,
    ScoreNetwork,
    Solver,
    StaticSDE,
    UniformLam,
    V,
    guidance,
    objectives,
)
from scoregen.densities import Analytic
from scoregen.energies import EnergyNetwork, Potential
from scoregen.mcmc import MALA
from scoregen.models import Given, LearnedVariance, Prediction
from scoregen.noise import SampleNoise

# They choose their moves by the state, so the host must read it.
READING = {"AdaptiveDPM", "AdaptiveHeun", "AdaptiveSDE", "Dopri5", "NUTS"}


def network(sde: sg.SDE, event: tuple[int, ...] = (2,), **options: Any) -> ScoreNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ScoreNetwork(MLP(event=event, hidden=8, **options), sde, V()).to(DEVICE)


def moved(sampler: Sampler, model: ScoreModel, noise: Any, event: tuple[int, ...] = (2,)) -> Tensor:
    x = torch.empty(3, *event, device=DEVICE)
    with torch.no_grad(), NoSync():
        for step in sampler.iterate(model, x, noise=noise):
            x = step.x
    return x


# Solvers


PLACES = [VPSDE(), DiscreteVPSDE.linear(100)]
FIXED = [s for s in SOLVERS if type(s).__name__ not in READING]


@pytest.mark.parametrize("solver", [s for s in FIXED if suits(s, VPSDE())], ids=name)
def test_no_solver_waits(solver: Solver) -> None:
    """With the noise that is taken unless another is given, on a network."""
    sampler = Sampler(solver, grid_for(solver, VPSDE(), 4))
    x = moved(sampler, network(VPSDE()), SampleNoise(0))
    assert (x.shape, x.dtype, x.device) == ((3, 2), torch.float32, DEVICE)


@pytest.mark.parametrize("solver", [s for s in SOLVERS if type(s).__name__ in READING], ids=name)
def test_those_that_choose_by_the_state_are_known(solver: Solver) -> None:
    with pytest.raises((WaitedError, NotImplementedError, RuntimeError)):
        moved(Sampler(solver, grid_for(solver, VPSDE(), 5)), network(VPSDE()), SampleNoise(0))


# Guidance


def labelled() -> ScoreNetwork:
    return network(VPSDE(), classes=3)


LABEL = torch.zeros(3, dtype=torch.long, device=DEVICE)


def bound(model: ScoreModel) -> ScoreModel:
    """With its label, whose values are checked where a run begins and not in its moves."""
    return Given(model, {"label": LABEL})


SCALES = torch.tensor([0.5, 1.0, 2.0])

GUIDED: dict[str, Callable[[], list[ScoreModel]]] = {
    "ClassifierFree": lambda: (
        [
            bound(guidance.ClassifierFree(labelled(), scale, **options))
            for scale, options in (
                (2.0, {}),
                (0.0, {}),
                (2.0, {"rescale": 0.5}),
                (2.0, {"interval": (0.2, 0.7)}),
                (lambda t: 1 + t.t, {}),
            )
        ]
        + [bound(guidance.ClassifierFree(labelled(), SCALES).to(DEVICE))]
    ),
    "AutoGuidance": lambda: [
        guidance.AutoGuidance(network(VPSDE()), network(VPSDE()), 2.0),
        guidance.AutoGuidance(network(VPSDE()), network(VPSDE()), SCALES).to(DEVICE),
    ],
    "Classifier": lambda: [
        guidance.Classifier(network(VPSDE()), lambda x, t: -x.square().sum(1), 2.0, at=at)
        for at in ("x_t", "mean")
    ],
    "Reconstruction": lambda: [
        guidance.Reconstruction(network(VPSDE()), lambda x: x[:, :1], torch.ones(1)).to(DEVICE)
    ],
    "Clamped": lambda: [guidance.Clamped(network(VPSDE()))],
    "DynamicThreshold": lambda: [guidance.DynamicThreshold(network(VPSDE()))],
    "Switch": lambda: [guidance.Switch({0.0: network(VPSDE()), 0.5: network(VPSDE())})],
}


def test_every_wrapper_is_here() -> None:
    assert set(GUIDED) == set(guidance.__all__)


@pytest.mark.parametrize("wrapper", GUIDED)
def test_no_guidance_waits(wrapper: str) -> None:
    for model in GUIDED[wrapper]():
        moved(Sampler(sg.Ancestral(), UniformLam(4)), model, SampleNoise(0))
        x, times = torch.empty(3, 2, device=DEVICE), torch.tensor([0.1, 0.4, 0.9])
        with NoSync():  # and where the times differ by sample
            assert model(x, times).x0.dtype == torch.float32


# Objectives


class Quadratic(nn.Module):
    """An energy without a time."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Parameter(torch.ones(2, device=DEVICE))

    def forward(self, x: Tensor) -> Tensor:
        return (self.inner * x.square()).sum(1)


def static() -> ScoreModel:
    return Potential(Quadratic())


class Broad(Analytic):
    """A user's own noise for contrastive estimation, in float32: N(0, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.sde, self.event = StaticSDE(), (2,)

    def log_density(self, x: Tensor, t: sg.Level) -> Tensor:
        return -x.square().sum(1) / 8 - math.log(8 * math.pi)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        return 2 * torch.randn(count, 2, generator=generator, dtype=torch.float64)

    def predict(self, x: Tensor, t: sg.Level, **condition: Any) -> Prediction:
        return Prediction(self.sde, t, x, score=-x / 4)


class Energy(nn.Module):
    """An energy at every level."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 1, device=DEVICE)

    def forward(self, x: Tensor, clock: Tensor) -> Tensor:
        return self.inner(torch.cat([x, clock[:, None]], 1)).square().sum(1)


def levelled() -> ScoreModel:
    return EnergyNetwork(Energy(), VPSDE())


def learned() -> ScoreModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = MLP(event=(2,), hidden=8, outputs=2)
    return ScoreNetwork(net, DiscreteVPSDE.linear(20), LearnedVariance()).to(DEVICE)


CHAINS = Sampler(MALA(0.1), Constant(0.0, 3))
OBJECTIVES: dict[str, Callable[[], list[tuple[Any, ScoreModel]]]] = {
    "DenoisingScoreMatching": lambda: [
        (objectives.DenoisingScoreMatching(law, weight), network(sde))
        for sde in PLACES
        for law in (objectives.UniformLaw(), objectives.UniformLamLaw(), objectives.Stratified())
        for weight in (
            objectives.Simple(),
            objectives.Unit(),
            objectives.Likelihood(),
            objectives.EDMWeight(),
            objectives.MinSNR(),
        )
    ],
    "ImplicitScoreMatching": lambda: [
        (objectives.ImplicitScoreMatching(), static()),
        (objectives.ImplicitScoreMatching(0.5), network(VPSDE())),
    ],
    "SlicedScoreMatching": lambda: [
        (objectives.SlicedScoreMatching(probes=2, variance_reduced=v), static())
        for v in (False, True)
    ],
    "ContrastiveDivergence": lambda: [
        (objectives.ContrastiveDivergence(CHAINS, penalty=0.1), static())
    ],
    "PersistentContrastiveDivergence": lambda: [
        (
            objectives.PersistentContrastiveDivergence(
                CHAINS, objectives.ReplayBuffer(torch.zeros(20, 2)).to(DEVICE)
            ),
            static(),
        )
    ],
    "NoiseContrastive": lambda: [
        (
            # ours compute in float64
            objectives.NoiseContrastive(Broad(), draws=2),
            static(),
        )
    ],
    "NoiseClassification": lambda: [(objectives.NoiseClassification(4), levelled())],
    "DiffusionRecovery": lambda: [
        (objectives.DiffusionRecovery(UniformLam(4, stop=0.01), moves=2), levelled())
    ],
    "VariationalBound": lambda: [
        (objectives.VariationalBound("learned"), learned()),
        (objectives.VariationalBound("large"), network(DiscreteVPSDE.linear(20))),
    ],
    "Hybrid": lambda: [(objectives.Hybrid(), learned())],
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_objective_waits(objective: str) -> None:
    for loss, model in OBJECTIVES[objective]():
        x0 = torch.empty(4, 2, device=DEVICE)
        with NoSync():
            out = loss(model, x0, generator=torch.Generator().manual_seed(0))
            out.mean().backward()
        assert (out.shape, out.dtype, out.device) == ((4,), torch.float32, DEVICE)


# The mode


WAITING: list[Callable[[Tensor], Any]] = [
    lambda x: x.sum().item(),
    lambda x: float(x[0]),
    lambda x: bool((x > 0).any()),
    lambda x: x.cpu(),
    lambda x: torch.empty(3).copy_(x),
    lambda x: x.tolist(),
    lambda x: x[x > 0],
    lambda x: x.nonzero(),
    lambda x: torch.masked_select(x, x > 0),
    lambda x: torch.equal(x, x),
    lambda x: x.unique(),
    lambda x: x.index_put_((x > 0,), torch.ones(2, device=DEVICE)),
    lambda x: x.double(),
    lambda x: torch.zeros(3, dtype=torch.float64).to(DEVICE),
    lambda x: torch.zeros(3, dtype=torch.float64, device=DEVICE),
]


@pytest.mark.parametrize("wait", WAITING)
def test_what_waits_is_found(wait: Callable[[Tensor], Any]) -> None:
    with pytest.raises((WaitedError, NotImplementedError, RuntimeError)), NoSync():
        wait(torch.empty(3, device=DEVICE))


def test_what_does_not_wait_passes() -> None:
    x = torch.empty(3, device=DEVICE)
    with NoSync():
        x[torch.zeros(2, dtype=torch.long, device=DEVICE)]
        x[x > 0] = 0.0
        torch.where(x > 0, x, torch.zeros(3).to(DEVICE)) * torch.tensor(2.0, dtype=torch.float64)
