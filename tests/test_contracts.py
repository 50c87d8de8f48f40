"""Contracts over whole families: whatever an `__all__` exports is held to them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import cases
import pytest
import torch
from cases import (
    CLOCKS,
    F64,
    GRIDS,
    NOISY,
    PARAMETERIZATIONS,
    SDES,
    SHAPES,
    SOLVERS,
    NoFloat64,
    gaussian,
    grid_for,
    inner_times,
    mixture,
    name,
    normal,
    suits,
)

import scoregen
from scoregen import (
    EDMSDE,
    SDE,
    VPSDE,
    DiscreteVPSDE,
    Level,
    RectifiedSDE,
    Sampler,
    ScoreModel,
    ScoreNetwork,
    Solver,
    StaticSDE,
    _families,
)
from scoregen.models import Counted, Parameterization, Prediction, parameterization

EVERYTHING = [*SDES, *GRIDS, *PARAMETERIZATIONS, *CLOCKS, *SOLVERS]
PLACES = [VPSDE(), EDMSDE(t_max=10.0), RectifiedSDE(), DiscreteVPSDE.linear(100), StaticSDE()]
RUNNABLE = [s for s in SOLVERS if type(s).__name__ not in cases.APART]
each_solver = pytest.mark.parametrize("solver", RUNNABLE, ids=name)
each_place = pytest.mark.parametrize("sde", PLACES, ids=name)


def data(sde: SDE, event: tuple[int, ...] = (2,)) -> ScoreModel:
    return gaussian(sde, 0.3, 0.4, event)


def run_of(solver: Solver, sde: SDE, shape: tuple[int, ...], **options: Any) -> torch.Tensor:
    if not suits(solver, sde):
        pytest.skip("needs noise to take away")
    sampler = Sampler(solver, grid_for(solver, sde, 4))
    return sampler.sample(data(sde, shape[1:]), shape, seed=7, **options)


def test_every_exported_class_has_an_instance() -> None:
    assert cases.MISSING == [], "\n".join(cases.MISSING)


@pytest.mark.parametrize(
    ("family", "made"),
    [
        ("process", SDES),
        ("grid", GRIDS),
        ("parameterization", PARAMETERIZATIONS),
        ("clock", CLOCKS),
        ("solver", SOLVERS),
    ],
)
def test_every_member_of_a_family_is_under_contract(family: str, made: list[Any]) -> None:
    assert {type(thing) for thing in made} == set(_families.classes(family).values())


@pytest.mark.parametrize("thing", EVERYTHING, ids=name)
def test_values_are_frozen_hash_and_print(thing: Any) -> None:
    assert hash(thing) == hash(thing)
    scope = {"inf": math.inf}
    for family in _families.FAMILIES:
        scope |= _families.public(family)
    assert eval(repr(thing), scope) == thing
    if dataclasses.is_dataclass(thing):
        assert type(thing).__dataclass_params__.frozen  # type: ignore[attr-defined]
        again = dataclasses.replace(thing)
        assert again == thing
        assert hash(again) == hash(thing)


@pytest.mark.parametrize("thing", EVERYTHING, ids=name)
def test_unknown_options_are_refused(thing: Any) -> None:
    with pytest.raises(TypeError):
        type(thing)(unheard_of=1)


@each_solver
def test_solvers_declare_what_they_are(solver: Solver) -> None:
    assert solver.direction in ("down", "both", "fixed", "any")
    for claim in (solver.order, solver.weak_order):
        assert claim is None or (isinstance(claim, int) and 1 <= claim <= 6)
    assert solver.nfe is None or (isinstance(solver.nfe, int) and solver.nfe >= 1)
    assert type(solver).__doc__


CLAIMS = ("direction", "order", "weak_order", "nfe", "invariant", "population")


@each_solver
def test_claims_are_read_only(solver: Solver) -> None:
    for claim in CLAIMS:
        with pytest.raises(AttributeError):
            setattr(solver, claim, None)


def inner_solvers(solver: Solver) -> list[str]:
    """Names of the fields that hold a solver."""
    fields = dataclasses.fields(solver) if dataclasses.is_dataclass(solver) else ()
    return [f.name for f in fields if isinstance(getattr(solver, f.name), Solver)]


WRAPPERS = [
    s for s in RUNNABLE if inner_solvers(s) and type(s).__module__.startswith("scoregen.solvers")
]


def claiming(inner: Solver, **claims: Any) -> Solver:
    """The same solver with other claims."""
    made: Any = type("Claiming", (type(inner),), claims)
    return made(**vars(inner))  # type: ignore[no-any-return]


@pytest.mark.parametrize("solver", WRAPPERS, ids=name)
def test_wrappers_forward_what_their_solver_claims(solver: Solver) -> None:
    for field in inner_solvers(solver):
        inner = getattr(solver, field)
        made: Any = solver
        assert not solver.population
        rows = dataclasses.replace(made, **{field: claiming(inner, population=True)})
        assert rows.population
        dear = dataclasses.replace(made, **{field: claiming(inner, nfe=(inner.nfe or 0) + 7)})
        assert dear.nfe == (solver.nfe or 0) + 7
        unknown = dataclasses.replace(made, **{field: claiming(inner, nfe=None)})
        assert unknown.nfe is None
        if field != "corrector":
            lost = claiming(inner, failure=lambda self, state: f"because of {state}")
            assert dataclasses.replace(made, **{field: lost}).failure(3) == "because of 3"
        if field == "solver":
            low = dataclasses.replace(made, **{field: claiming(inner, weak_order=1)})
            assert low.weak_order == 1


def test_there_are_wrappers() -> None:
    found = {type(s).__name__ for s in WRAPPERS}
    assert {"AncestralODE", "EulerStart", "PredictorCorrector", "Restart"} <= found


@pytest.mark.parametrize(
    "cls", dict.fromkeys(type(s) for s in SOLVERS), ids=lambda cls: cls.__name__
)
def test_a_solver_is_abstract_or_final(cls: type[Solver]) -> None:
    above = [base for base in cls.__mro__[1:] if issubclass(base, Solver)]
    assert all(base.__abstractmethods__ for base in above)


def numbers(solver: Solver) -> list[str]:
    """Names of the fields that hold a float."""
    fields = dataclasses.fields(solver) if dataclasses.is_dataclass(solver) else ()
    return [f.name for f in fields if isinstance(getattr(solver, f.name), float)]


NUMBERED = [
    (s, field)
    for s in SOLVERS
    if type(s).__module__.startswith("scoregen.solvers")
    for field in numbers(s)
]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("solver", "field"), NUMBERED, ids=name)
def test_solvers_refuse_numbers_that_are_none(solver: Any, field: str, value: float) -> None:
    if field == "r_max" and value == math.inf:
        pytest.skip("the paper's S_max has no upper end")
    with pytest.raises(ValueError, match="must lie in"):
        dataclasses.replace(solver, **{field: value})


@each_place
@each_solver
@pytest.mark.filterwarnings("ignore:sampling starts at")
def test_solvers_run_on_every_process_that_suits_them(solver: Solver, sde: SDE) -> None:
    out = run_of(solver, sde, (3, 2))
    assert out.shape == (3, 2)
    assert out.dtype == torch.float32
    assert bool(torch.isfinite(out).all())
    assert torch.equal(out, run_of(solver, sde, (3, 2)))


@each_solver
def test_solvers_reach_the_data(solver: Solver) -> None:
    """Coarse, but with real noise: means and spreads of 200 samples of a narrow Gaussian."""
    if solver.direction not in ("down", "both"):
        pytest.skip("walks no way from noise to data")
    sde = VPSDE()
    grid: Any = scoregen.UniformLam(40, start=0.99)
    if solver.nfe is None:
        grid = grid_for(solver, sde)
    # 64 coordinates: steps that are ratios of norms have no mean in one or two
    out = Sampler(solver, grid).sample(data(sde, (64,)), (200, 64), seed=1, dtype=F64)
    # the error of a mean is 0.039, so 0.25 is six of them; the spread is known to 1 %
    assert float((out.mean(0) - 0.4).abs().max()) < 0.25
    assert 0.7 < float(out.std(0).mean()) / math.sqrt(0.3) < 1.3


@pytest.mark.parametrize("shape", SHAPES)
@each_solver
def test_solvers_take_every_event_shape(solver: Solver, shape: tuple[int, ...]) -> None:
    if shape == (3, 32, 32) and solver.nfe is None:
        pytest.skip("the same code as smaller images, slowly")
    out = run_of(solver, VPSDE(), (2, *shape))
    assert out.shape == (2, *shape)
    assert bool(torch.isfinite(out).all())


@pytest.mark.parametrize("batch", [0, 1])
@each_solver
def test_solvers_take_batches_of_none_and_one(solver: Solver, batch: int) -> None:
    for event in ((), (3,), (1, 4, 4)):
        assert run_of(solver, VPSDE(), (batch, *event)).shape == (batch, *event)


@each_solver
def test_solvers_keep_the_dtype_and_the_digits(solver: Solver) -> None:
    if solver.nfe is None and solver.direction == "down":
        pytest.skip("refuses steps by rounded errors, and each refusal takes a draw")
    wide = run_of(solver, VPSDE(), (3, 2), dtype=F64)
    narrow = run_of(solver, VPSDE(), (3, 2))
    assert wide.dtype == F64
    loose = 2e-3 if solver.nfe else 0.05  # steps that choose themselves choose by rounded errors
    torch.testing.assert_close(narrow.double(), wide, rtol=loose, atol=loose)


@each_solver
def test_solvers_are_pure(solver: Solver) -> None:
    """Nothing of the user's is written into, and a second run does as the first did."""
    sampler = Sampler(solver, grid_for(solver, VPSDE(), 4))
    model, x = mixture(VPSDE()), normal(3, 2)
    before, version = x.clone(), x._version
    state = torch.get_rng_state()
    first = sampler.run(model, x, noise=scoregen.noise.SampleNoise(0))
    second = sampler.run(model, x, noise=scoregen.noise.SampleNoise(0))
    assert torch.equal(first, second)
    assert torch.equal(x, before)
    assert x._version == version
    assert torch.equal(state, torch.get_rng_state())


@each_solver
def test_samples_do_not_depend_on_the_batch(solver: Solver) -> None:
    whole = run_of(solver, VPSDE(), (5, 2), dtype=F64)
    chunks = run_of(solver, VPSDE(), (5, 2), dtype=F64, chunk=2)
    if isinstance(solver, scoregen.Dopri5):  # its step is shared: equal within the tolerance
        torch.testing.assert_close(chunks, whole, rtol=1e-3, atol=1e-3)
    else:
        torch.testing.assert_close(chunks, whole, rtol=1e-12, atol=1e-12)


@each_solver
def test_counted_evaluations_are_the_declared_ones(solver: Solver) -> None:
    if solver.nfe is None or solver.direction == "any":
        pytest.skip("declares none")

    def evaluations(steps: int) -> float:
        model = data(VPSDE())
        grid: Any = scoregen.UniformTime(steps, start=0.9, stop=0.1)
        if solver.direction == "fixed":
            grid = grid_for(solver, VPSDE(), steps)
        with Counted(model) as count:
            Sampler(solver, grid).sample(model, (3, 2), seed=0)
        return count.rows / 3

    assert evaluations(12) - evaluations(6) == 6 * solver.nfe
    # only the start may cost more: multistep methods build a history, chains ask where they stand
    assert 0 <= evaluations(6) - 6 * solver.nfe <= 12


class Half(ScoreModel):
    """x0 = x / 2: nothing but the device's own operations."""

    def __init__(self, sde: SDE) -> None:
        super().__init__()
        self.sde = sde

    def predict(self, x: torch.Tensor, t: Level, **condition: Any) -> Prediction:
        return Prediction(self.sde, t, x, x0=x / 2)


FIXED_GRID = [s for s in RUNNABLE if s.nfe is not None and s.direction != "fixed"]


@pytest.mark.parametrize("sde", [VPSDE(), DiscreteVPSDE.linear(100)], ids=name)
@pytest.mark.parametrize("solver", FIXED_GRID, ids=name)
def test_fixed_grids_never_wait_for_the_device(solver: Solver, sde: SDE) -> None:
    def noise(like: torch.Tensor, t: Level, s: Level) -> torch.Tensor:
        return torch.empty_like(like)

    x = torch.empty(3, 2, 4, device="meta")
    with NoFloat64():
        *_, last = Sampler(solver, grid_for(solver, sde, 6)).iterate(Half(sde), x, noise=noise)
    assert last.x.shape == x.shape
    assert last.x.dtype == torch.float32


@pytest.mark.parametrize(
    "wrong", [lambda x: x.sum().item(), lambda x: bool(x.any()), torch.Tensor.double]
)
def test_waiting_for_the_device_is_found(wrong: Any) -> None:
    with pytest.raises((RuntimeError, NotImplementedError, AssertionError)), NoFloat64():
        wrong(torch.empty(3, device="meta"))


@each_solver
def test_solvers_refuse_a_grid_against_their_direction(solver: Solver) -> None:
    wrong = {
        "down": scoregen.Times(0.1, 0.9),
        "both": scoregen.Times(0.9, 0.5, 0.5),
        "fixed": scoregen.Times(0.1, 0.9),
        "any": scoregen.Times(0.5, 0.5),
    }[solver.direction]
    with pytest.raises(ValueError, match="the times of this solver must"):
        Sampler(solver, wrong).sample(data(VPSDE()), (2, 2))


@pytest.mark.parametrize("meaning", PARAMETERIZATIONS, ids=name)
@pytest.mark.parametrize("sde", NOISY, ids=name)
def test_parameterizations_decode_their_own_target(sde: SDE, meaning: Parameterization) -> None:
    x0, eps = normal(3, 2), normal(3, 2, seed=1)
    t = inner_times(sde, 3)
    level = sde.level_of(t, x0)
    x = level.alpha * x0 + level.sigma * eps
    out = meaning.target(sde, level, x0, eps)
    if isinstance(meaning, parameterization.LearnedVariance):
        out = torch.cat([out, torch.zeros_like(out)], 1)
    p = meaning.decode(sde, level, x, out)
    torch.testing.assert_close(p.x0, x0, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(p.eps, eps, rtol=1e-6, atol=1e-6)


class Linear(torch.nn.Module):
    def forward(self, x: torch.Tensor, clock: torch.Tensor) -> torch.Tensor:
        shape = (len(x),) + (1,) * (x.dim() - 1)
        return 0.1 * x + 0 * clock.reshape(shape).to(x.dtype)


@pytest.mark.parametrize("clock", CLOCKS, ids=name)
@pytest.mark.parametrize("meaning", PARAMETERIZATIONS, ids=name)
def test_every_meaning_with_every_clock_samples(meaning: Parameterization, clock: Any) -> None:
    if isinstance(meaning, parameterization.LearnedVariance):
        pytest.skip("another number of channels")
    sde = DiscreteVPSDE.cosine(20)
    model = ScoreNetwork(Linear(), sde, meaning, clock)
    out = Sampler(scoregen.DDIM(), scoregen.Knots()).sample(model, (2, 3), seed=0)
    assert out.shape == (2, 3)
    assert bool(torch.isfinite(out).all())


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_processes_say_where_they_live(sde: SDE) -> None:
    assert 0 <= sde.t_min < sde.t_max
    for dtype in (torch.float32, F64):
        t = torch.linspace(0, sde.t_max, 5, dtype=dtype)
        for values in (sde.alpha(t), sde.sigma(t), *sde.rates(t[1:-1])):
            assert values.dtype == dtype
    assert sde.prior_std(sde.t_max) > 0 or isinstance(sde, StaticSDE)
