"""The driver loop: longhand equality, seeds and chunks, layouts, gradients, failures."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise

import pytest
import torch
from cases import (
    F64,
    SHAPES,
    SOLVERS,
    Fixed,
    Silent,
    Spy,
    gaussian,
    generator,
    grid_for,
    mixture,
    name,
    normal,
    output_variance,
    tensor,
)
from torch import Tensor, nn

from scoregen import (
    DDIM,
    EDMSDE,
    MLP,
    VPSDE,
    Ancestral,
    Constant,
    DiscreteVPSDE,
    DivergenceError,
    DPMSolverPP,
    Empirical,
    Eps,
    EulerMaruyama,
    Index,
    Karras,
    KarrasHeun,
    Knots,
    Langevin,
    ProbabilityFlow,
    RectifiedSDE,
    Sampler,
    ScoreNetwork,
    Solver,
    Strided,
    Times,
    UniformTime,
    V,
)
from scoregen.noise import ReplayNoise, SampleNoise, TorchNoise
from scoregen.sampling import Picard
from scoregen.solvers import HEUN, ReverseDiffusion

CORE: list[Solver] = [
    DDIM(),
    DDIM(0.5),
    Ancestral("small"),
    Ancestral("large"),
    EulerMaruyama(),
    ReverseDiffusion(),
    ProbabilityFlow(HEUN),
    KarrasHeun(churn=0.1),
    DPMSolverPP(),
    Langevin(1e-3),
]
each_core = pytest.mark.parametrize("solver", CORE, ids=name)


class Wave(nn.Module):
    """A nonlinear elementwise eps-network in float64 that reads the integer label."""

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        assert label.dtype == torch.int64
        shape = (-1,) + (1,) * (x.dim() - 1)
        return torch.tanh(x + 0.1 * torch.sin(label.to(x.dtype)).reshape(shape))


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("steps", [1, 2, 40])
def test_ddpm_is_algorithm_2_written_out(steps: int, variance) -> None:
    """Ho, Jain and Abbeel (2020), 2006.11239, Algorithm 2, in the paper's own symbols."""
    betas = [1e-3 + (0.2 - 1e-3) * i / max(steps - 1, 1) for i in range(steps)]
    alphas = [1 - beta for beta in betas]
    bars = [math.prod(alphas[: i + 1]) for i in range(steps)]
    eps_theta = Wave()
    x_T = normal(5, 3, seed=1)
    zs = [normal(5, 3, seed=100 + t) for t in range(steps)]

    x = x_T
    for t in range(steps - 1, -1, -1):
        z = zs[steps - 1 - t] if t > 0 else torch.zeros_like(x)
        before = bars[t - 1] if t > 0 else 1.0
        sigma2 = betas[t] if variance == "large" else (1 - before) / (1 - bars[t]) * betas[t]
        eps = eps_theta(x, torch.full((5,), t))
        x = (x - betas[t] / math.sqrt(1 - bars[t]) * eps) / math.sqrt(alphas[t]) + math.sqrt(
            sigma2
        ) * z

    model = ScoreNetwork(eps_theta, DiscreteVPSDE(tuple(betas)), Eps(), Index())
    got = Sampler(Ancestral(variance), Knots()).run(model, x_T, noise=ReplayNoise(zs))
    torch.testing.assert_close(got, x, rtol=1e-12, atol=1e-12)


def test_trajectory_has_one_point_more_than_moves_at_the_grids_times() -> None:
    sampler = Sampler(DDIM(), UniformTime(7))
    model, x = mixture(VPSDE()), normal(2, 2)
    steps = list(sampler.iterate(model, x, noise=Silent()))
    assert [s.index for s in steps] == list(range(8))
    assert [s.t.t for s in steps] == UniformTime(7)(VPSDE()).tolist()
    assert steps[0].x is x
    assert torch.equal(steps[-1].x, sampler.run(model, x, noise=Silent()))
    assert all(not torch.equal(a.x, b.x) for a, b in pairwise(steps))


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
@pytest.mark.parametrize("shape", SHAPES[:-1])
@each_core
def test_sample_i_is_bit_equal_for_every_batch(solver: Solver, shape, batch: int) -> None:
    sde = VPSDE()
    sampler = Sampler(solver, grid_for(solver, sde, 3))
    model = ScoreNetwork(Bounded(), sde, V())
    whole = sampler.sample(model, (8, *shape), seed=3)
    part = sampler.sample(model, (batch, *shape), seed=3)
    assert torch.equal(part, whole[:batch])
    tail = sampler.sample(model, (batch, *shape), seed=3, first=8 - batch)
    assert torch.equal(tail, whole[8 - batch :])


class Bounded(nn.Module):
    def forward(self, x: Tensor, clock: Tensor) -> Tensor:
        return x / (1 + x * x) * 0.5


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 100])
@each_core
def test_chunks_change_nothing(solver: Solver, chunk: int) -> None:
    sde = VPSDE()
    sampler = Sampler(solver, grid_for(solver, sde, 3))
    model = ScoreNetwork(Bounded(), sde, V())
    whole = sampler.sample(model, (5, 17), seed=1)
    assert torch.equal(sampler.sample(model, (5, 17), seed=1, chunk=chunk), whole)
    world = [sampler.sample(model, (n, 17), seed=1, first=f) for f, n in ((0, 2), (2, 2), (4, 1))]
    assert torch.equal(torch.cat(world), whole)


@each_core
def test_batch_mates_do_not_matter(solver: Solver) -> None:
    sde = VPSDE()
    sampler = Sampler(solver, grid_for(solver, sde, 4))
    model, x = ScoreNetwork(Bounded(), sde, V()), normal(4, 3)
    draws = [normal(4, 3, seed=k) for k in range(9)]
    order = torch.tensor([2, 0, 3, 1])
    whole = sampler.run(model, x, noise=ReplayNoise(draws))
    turned = sampler.run(model, x[order], noise=ReplayNoise([z[order] for z in draws]))
    assert torch.equal(turned, whole[order])
    wild = x.clone()
    wild[1:] *= 50
    other = sampler.run(model, wild, noise=ReplayNoise(draws))
    assert torch.equal(other[:1], whole[:1])


def test_through_a_network_batches_agree_to_rounding() -> None:
    with torch.random.fork_rng():
        model = ScoreNetwork(MLP(event=(2,), classes=3), VPSDE(), Eps())
    sampler = Sampler(Ancestral(), UniformTime(5))
    labels = torch.tensor([0, 1, 2, 0, 1])
    whole = sampler.sample(model, (5, 2), seed=0, condition={"label": labels})
    chunks = sampler.sample(model, (5, 2), seed=0, condition={"label": labels}, chunk=2)
    torch.testing.assert_close(chunks, whole, rtol=1e-4, atol=1e-5)
    ones = sampler.sample(model, (5, 2), seed=0, condition={"label": 1})
    torch.testing.assert_close(ones[1], whole[1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ones[0], whole[0])


def test_two_runs_of_one_sampler_are_equal_and_seeds_differ() -> None:
    sampler, model = Sampler(Ancestral(), UniformTime(5)), mixture(VPSDE())
    first = sampler.sample(model, (3, 2), seed=5)
    assert torch.equal(first, sampler.sample(model, (3, 2), seed=5))
    assert not torch.equal(first, sampler.sample(model, (3, 2), seed=6))
    given = sampler.sample(model, (3, 2), seed=generator(5))
    assert torch.equal(given, sampler.sample(model, (3, 2), seed=generator(5)))
    assert not torch.equal(given, first)


def test_a_given_generator_is_the_only_source(monkeypatch: pytest.MonkeyPatch) -> None:
    source, plain = generator(0), torch.randn

    def guarded(*size: object, generator: torch.Generator | None = None, **rest: object) -> Tensor:
        if generator is not source:
            raise AssertionError("drew without the run's generator")
        return plain(*size, generator=generator, **rest)

    def refuse(*_: object, **__: object) -> Tensor:
        raise AssertionError("drew from the global generator")

    monkeypatch.setattr(torch, "randn", guarded)
    monkeypatch.setattr(torch, "randn_like", refuse)
    monkeypatch.setattr(torch, "normal", refuse)
    for solver in CORE:
        sampler = Sampler(solver, grid_for(solver, VPSDE(), 3))
        sampler.sample(gaussian(VPSDE()), (3, 1), seed=source)


@pytest.mark.filterwarnings("ignore:sampling starts at")
def test_the_start_is_the_prior_at_the_grids_first_time() -> None:
    """Not at t_max: a grid that starts at sigma = 3 starts with standard deviation 3."""
    model = Fixed(EDMSDE(), lambda x, t: torch.zeros_like(x))
    starts = []
    for first in (80.0, 3.0):
        spy = Recorder(model)
        Sampler(DDIM(), Times(first, 0.0)).sample(spy, (4, 2), seed=2, dtype=F64)
        starts.append(spy.states[0] / first)
    torch.testing.assert_close(starts[0], starts[1])
    z = SampleNoise(2)(torch.empty(4, 2, dtype=F64), None, None)  # type: ignore[arg-type]
    torch.testing.assert_close(starts[0], z)


class Recorder(Spy):
    """Keeps the states it was asked about."""

    def __init__(self, model) -> None:
        super().__init__(model)
        self.states: list[Tensor] = []

    def predict(self, x: Tensor, t, **condition):
        self.states.append(x)
        return super().predict(x, t)


@pytest.mark.filterwarnings("ignore:sampling starts at")
def test_the_runs_noise_is_not_the_noise_of_the_start() -> None:
    """The first draw makes x_T; the moves go on from the second."""
    model = Fixed(EDMSDE(), lambda x, t: torch.zeros_like(x))
    sampler = Sampler(Ancestral("large"), Times(2.0, 1.0))
    source = SampleNoise(4)
    like = torch.empty(3, 2, dtype=F64)
    start = 2 * source(like, None, None)  # type: ignore[arg-type]
    want = start * 0.25 + math.sqrt(3.0) * source(like, None, None)  # type: ignore[arg-type]
    torch.testing.assert_close(sampler.sample(model, (3, 2), seed=4, dtype=F64), want)


@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.float16, torch.bfloat16])
@each_core
def test_the_state_keeps_its_dtype(solver: Solver, dtype: torch.dtype) -> None:
    model = gaussian(VPSDE(), event=(2,))
    sampler = Sampler(solver, grid_for(solver, VPSDE()))
    out = sampler.sample(model, (3, 2), seed=0, dtype=dtype)
    assert out.dtype == dtype
    wide = sampler.sample(model, (3, 2), seed=0, dtype=F64)
    rounding = 1e-4 if dtype.itemsize >= 4 else 0.1
    torch.testing.assert_close(out.double(), wide, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("default", [F64, torch.float16])
def test_the_default_dtype_of_torch_changes_nothing(default: torch.dtype) -> None:
    def everything() -> list[Tensor]:
        made = []
        for solver in CORE:
            sde = VPSDE(0.1, 20.0)
            sampler = Sampler(solver, grid_for(solver, sde, 3))
            made.append(sampler.sample(gaussian(sde, 0.3), (2, 1), seed=0))
            made.append(sampler.grid(sde))
        empirical = Empirical(EDMSDE(), normal(3, 1, dtype=torch.float32))
        made.append(Sampler(KarrasHeun(), Karras(3)).sample(empirical, (2, 1), seed=0))
        chain = DiscreteVPSDE.cosine(17)
        made.append(Sampler(Ancestral(), Knots()).sample(gaussian(chain), (2, 1), seed=0))
        return made

    want = everything()
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        got = everything()
    finally:
        torch.set_default_dtype(before)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


LAYOUTS = {
    "expanded": lambda: normal(1, 4, 6, 6).expand(3, 4, 6, 6),
    "transposed": lambda: normal(3, 6, 6, 4).permute(0, 3, 1, 2),
    "channels last": lambda: normal(3, 4, 6, 6).contiguous(memory_format=torch.channels_last),
    "strided": lambda: normal(6, 4, 6, 6)[::2],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@each_core
def test_every_layout_gives_the_same_and_is_left_alone(solver: Solver, layout: str) -> None:
    x = LAYOUTS[layout]()
    sampler = Sampler(solver, grid_for(solver, VPSDE(), 3))
    model = ScoreNetwork(Bounded(), VPSDE(), V())
    kept, version = x.clone(), x._version
    got = sampler.run(model, x, noise=SampleNoise(0))
    assert torch.equal(got, sampler.run(model, x.clone().contiguous(), noise=SampleNoise(0)))
    assert x._version == version
    assert torch.equal(x, kept)


class Kept(nn.Module):
    """Gives out the same tensor every time: writing into a model's output would show."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("answer", normal(3, 2))

    def forward(self, x: Tensor, clock: Tensor) -> Tensor:
        return self.answer


@each_core
def test_outputs_of_the_model_and_draws_are_not_written_into(solver: Solver) -> None:
    net, draws = Kept(), [normal(3, 2, seed=k) for k in range(9)]
    versions = [t._version for t in (net.answer, *draws)]
    Sampler(solver, grid_for(solver, VPSDE(), 4)).run(
        ScoreNetwork(net, VPSDE(), V()), normal(3, 2), noise=ReplayNoise(draws)
    )
    assert [t._version for t in (net.answer, *draws)] == versions


@each_core
def test_batches_of_none_and_one(solver: Solver) -> None:
    sampler = Sampler(solver, grid_for(solver, VPSDE(), 3))
    for event in ((), (2,), (1, 8, 8)):
        model = gaussian(VPSDE(), event=event)
        assert sampler.sample(model, (0, *event), seed=0).shape == (0, *event)
        assert sampler.sample(model, (1, *event), seed=0).shape == (1, *event)


@pytest.mark.parametrize("solver", [DDIM(), ProbabilityFlow(HEUN), DPMSolverPP()], ids=name)
def test_gradients_flow_through_an_ode_sampler(solver: Solver) -> None:
    """On Gaussian data the map is linear, so its gradient is its gain."""
    model = gaussian(VPSDE(), 0.3, 0.2)
    sampler = Sampler(solver, UniformTime(10))
    x = normal(4, 1).requires_grad_()
    out = sampler.run(model, x, noise=Silent())
    (gradient,) = torch.autograd.grad(out.sum(), x)
    h = tensor(1.0)
    gain = sampler.run(model, x.detach() + h, noise=Silent()) - out.detach()
    torch.testing.assert_close(gradient, gain, rtol=1e-9, atol=1e-12)
    assert not sampler.sample(model, (2, 1)).requires_grad
    weight = torch.tensor(0.5, dtype=F64, requires_grad=True)
    scaled = Fixed(VPSDE(), lambda x, t: weight * x)
    sampler.run(scaled, normal(2, 1), noise=Silent()).sum().backward()
    assert weight.grad is not None
    assert float(weight.grad) != 0


def test_float32_and_float64_runs_agree() -> None:
    model = mixture(VPSDE())
    for solver in (DDIM(), DPMSolverPP(), ProbabilityFlow(HEUN)):
        for steps in (10, 500):
            a = Sampler(solver, UniformTime(steps)).sample(model, (16, 2), seed=0)
            b = Sampler(solver, UniformTime(steps)).sample(model, (16, 2), seed=0, dtype=F64)
            assert float((a - b).abs().max()) < 1e-3


class Poison(Spy):
    """NaN in chosen rows from a level on, when the state itself asks for it."""

    def __init__(self, model, bad) -> None:
        super().__init__(model)
        self.bad = bad

    def predict(self, x: Tensor, t, **condition):
        p = self.model.predict(x, t)
        return p.with_x0(torch.where(self.bad(x, t), torch.nan, p.x0))


def test_failures_name_the_move_the_time_and_the_rows() -> None:
    rows = torch.tensor([False, True, False, True])[:, None]
    model = Poison(gaussian(VPSDE(), event=(2,)), lambda x, t: rows & torch.tensor(t.t < 0.6))
    grid = Times(0.9, 0.7, 0.5, 0.3, 0.0)
    with pytest.raises(DivergenceError) as caught:
        Sampler(DDIM(), grid).run(model, normal(4, 2), noise=Silent())
    error = caught.value
    assert (error.step, error.t, error.rows) == (3, 0.5, [1, 3])
    assert error.partial is not None
    assert bool(torch.isfinite(error.partial).all())
    assert "move 3 (from t = 0.5)" in str(error)
    want = Sampler(DDIM(), Times(0.9, 0.7, 0.5)).run(model, normal(4, 2), noise=Silent())
    torch.testing.assert_close(error.partial, want)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", ["seed", "generator"])
def test_a_failed_run_is_repeated_with_its_own_noise(kind: str, seed: int) -> None:
    """Where it fails depends on the noise; another noise would fail elsewhere or not at all."""
    model = Poison(gaussian(VPSDE(), 1.0, event=(1,)), lambda x, t: x.abs() > 2.1)
    sampler = Sampler(Ancestral("large"), UniformTime(20))
    make = (lambda: seed) if kind == "seed" else (lambda: generator(seed))
    noise = SampleNoise(seed) if kind == "seed" else TorchNoise(generator(seed))
    level = VPSDE().level(1.0)
    x = noise(torch.empty(12, 1), level, level)
    first = None
    for step in sampler.iterate(model, x, noise=noise):
        bad = (~torch.isfinite(step.x)).flatten().nonzero().flatten().tolist()
        if bad and first is None:
            first = (step.index, bad)
    assert first is not None
    with pytest.raises(DivergenceError) as caught:
        sampler.sample(model, (12, 1), seed=make())
    assert (caught.value.step, caught.value.rows) == first


def test_a_start_that_is_not_finite_is_named() -> None:
    x = normal(3, 2)
    x[2, 1] = math.inf
    with pytest.raises(DivergenceError) as caught:
        Sampler(DDIM(), UniformTime(3)).run(gaussian(VPSDE(), event=(2,)), x, noise=Silent())
    assert (caught.value.step, caught.value.rows) == (0, [2])


def test_langevin_with_a_step_too_large_diverges_by_name() -> None:
    sampler = Sampler(Langevin(50.0), Constant(0.5, 400))
    with pytest.raises(DivergenceError, match="smaller steps"):
        sampler.sample(gaussian(VPSDE(), 0.01), (2, 1), seed=0)


def test_progress_shows_a_bar_and_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    sampler, model = Sampler(DDIM(), UniformTime(5)), mixture(VPSDE())
    shown = sampler.sample(model, (2, 2), seed=0, progress=True)
    assert "DDIM" in capsys.readouterr().err
    assert torch.equal(shown, sampler.sample(model, (2, 2), seed=0))
    assert capsys.readouterr().err == ""


def test_samplers_compare_hash_and_print() -> None:
    a, b = Sampler(DDIM(), Karras(5)), Sampler(DDIM(), Karras(5))
    assert a == b
    assert len({a, b, Sampler(DDIM(0.5), Karras(5))}) == 2
    assert eval(repr(a)) == a


def test_strided_ddim_hits_the_knots_it_was_trained_on() -> None:
    model = ScoreNetwork(Wave(), DiscreteVPSDE.linear(1000), Eps(), Index())
    out = Sampler(DDIM(), Strided(20)).sample(model, (2, 3), seed=0, dtype=F64)
    assert bool(torch.isfinite(out).all())
    with pytest.raises(ValueError, match="between the knots"):
        Sampler(DDIM(), UniformTime(7)).sample(model, (2, 3), seed=0)


def test_statistics_of_real_noise_match_the_exact_law() -> None:
    """Real draws reach the map that unit inputs measure; chi-square, false alarm below 1e-7."""
    n, model = 20_000, gaussian(RectifiedSDE(), 0.3, 0.5)
    for solver in (Ancestral("small"), ReverseDiffusion(), KarrasHeun(churn=0.2)):
        sampler = Sampler(solver, UniformTime(8, start=0.95))
        out = sampler.sample(model, (n, 1), seed=1, dtype=F64)
        variance = output_variance(sampler, model, 1.0)
        ratio = float(((out - out.mean()) ** 2).mean()) / variance
        assert abs(ratio - 1) < 5.6 * math.sqrt(2 / n)


@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_every_solver_is_a_frozen_value(solver: Solver) -> None:
    assert hash(solver) == hash(solver)
    with pytest.raises(AttributeError):
        solver.anything = 1  # type: ignore[attr-defined]


@each_core
def test_chosen_rows_are_those_of_the_whole_batch(solver: Solver) -> None:
    sampler = Sampler(solver, grid_for(solver, VPSDE(), 3))
    model = ScoreNetwork(Bounded(), VPSDE(), V())
    whole = sampler.sample(model, (50, 2), seed=3, first=2)
    for rows in ([3, 17, 42], [17], [49, 0, 0], []):
        got = sampler.sample(model, (50, 2), seed=3, first=2, rows=rows, chunk=2)
        assert torch.equal(got, whole[rows])


def test_chosen_rows_take_their_conditions() -> None:
    with torch.random.fork_rng():
        model = ScoreNetwork(MLP(event=(2,), classes=3), VPSDE(), Eps())
    sampler = Sampler(DDIM(), UniformTime(5))
    labels = torch.tensor([0, 1, 2, 0, 1])
    whole = sampler.sample(model, (5, 2), condition={"label": labels})
    some = sampler.sample(model, (5, 2), condition={"label": labels}, rows=[4, 2])
    torch.testing.assert_close(some, whole[[4, 2]], rtol=1e-4, atol=1e-5)


@dataclasses.dataclass(frozen=True)
class Crowd(DDIM):
    """A solver whose rows belong together."""

    @property
    def population(self) -> bool:
        return True


def test_parts_of_a_batch_are_refused_where_they_would_change_the_answer() -> None:
    sampler, model = Sampler(DDIM(), UniformTime(3)), mixture(VPSDE())
    crowd = Sampler(Crowd(), UniformTime(3))
    for options, word in (
        ({"rows": [7]}, "must lie in"),
        ({"rows": [-1]}, "at least 0"),
        ({"first": 7, "seed": generator()}, "first needs an integer seed"),
        ({"rows": [0], "seed": generator()}, "rows needs an integer seed"),
    ):
        with pytest.raises(ValueError, match=word):
            sampler.sample(model, (4, 2), **options)
    with pytest.raises(ValueError, match="first needs an integer seed"):
        sampler.from_data(model, normal(4, 2), first=3, seed=generator())
    for options in ({"chunk": 3}, {"first": 1}, {"rows": [0, 1]}):
        with pytest.raises(ValueError, match="Crowd acts on the whole batch"):
            crowd.sample(model, (4, 2), **options)
    whole = sampler.sample(model, (4, 2))
    assert torch.equal(crowd.sample(model, (4, 2), chunk=4), whole)


def test_data_are_noised_by_other_draws_than_made_them() -> None:
    """x0 made by seed 0 and noised by seed 0: variances add; the same draw twice gives 2."""
    model = Fixed(EDMSDE(), lambda x, t: x)
    n = 20_000
    x0 = SampleNoise(0)(torch.empty(n, 1, dtype=F64), VPSDE().level(1.0), VPSDE().level(1.0))
    sampler = Sampler(DDIM(), Times(1.0, 0.5))
    # a model that returns its state leaves it where it is
    eps = sampler.from_data(model, x0, seed=0) - x0
    assert abs(float((eps * x0).mean())) < 6 / math.sqrt(n)
    assert abs(float(eps.square().mean()) - 1) < 6 * math.sqrt(2 / n)
    assert torch.equal(sampler.from_data(model, x0[7:9], seed=0, first=7), (x0 + eps)[7:9])
    drawn = sampler.from_data(model, x0[:5], seed=generator(1)) - x0[:5]
    torch.testing.assert_close(drawn, torch.randn(5, 1, generator=generator(1), dtype=F64))


def test_from_data_keeps_what_the_noise_left() -> None:
    """On Gaussian data the exact flow maps x_t to one point: compare with `flow`."""
    model = gaussian(VPSDE(), 0.25, 0.3)
    x0 = normal(6, 1)
    sampler = Sampler(DDIM(), UniformTime(400, start=0.3))
    got = sampler.from_data(model, x0, seed=3)
    level = VPSDE().level(0.3)
    eps = SampleNoise(3, draw=2**60)(x0, level, level)
    want = model.flow(level.alpha * x0 + level.sigma * eps, 0.3, 0.0)
    torch.testing.assert_close(got, want, rtol=0.01, atol=0.01)
    with pytest.raises(ValueError, match="x0 must be finite"):
        sampler.from_data(model, x0 * math.nan)


class Dropped(nn.Module):
    """Records whether dropout was on at each evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: list[bool] = []

    def forward(self, x: Tensor, clock: Tensor) -> Tensor:
        self.modes.append(self.training)
        return 0.1 * x


@pytest.mark.parametrize("kind", [Sampler, Picard])
def test_dropout_is_off_however_a_run_is_started(kind) -> None:
    net = Dropped()
    model = ScoreNetwork(net, VPSDE(), V()).train()
    sampler, x = kind(DDIM(), UniformTime(3)), normal(2, 2)
    for act in (
        lambda: sampler.sample(model, (2, 2)),
        lambda: sampler.from_data(model, x),
        lambda: sampler.run(model, x, noise=Silent()),
        lambda: list(sampler.iterate(model, x, noise=Silent())),
    ):
        act()
        assert net.training
    steps = sampler.iterate(model, x, noise=Silent())
    next(steps)
    next(steps)
    steps.close()  # a run that is left early gives the mode back too
    assert net.training
    assert net.modes
    assert not any(net.modes)
