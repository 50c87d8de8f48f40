"""Bad input at the doors of sampling: each gets an error that says what to do."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from cases import Silent, Spy, gaussian, mixture, normal, tensor

import scoregen as sg
from scoregen import (
    DDIM,
    EDMSDE,
    VPSDE,
    X0,
    Ancestral,
    DiscreteVPSDE,
    DivergenceError,
    DPMSolverPP,
    Eps,
    GaussianMixture,
    Index,
    Karras,
    Knots,
    Langevin,
    RectifiedSDE,
    Sampler,
    ScoreNetwork,
    Strided,
    Times,
    UniformTime,
)
from scoregen._checks import check_count, check_finite, check_number, check_state

MODEL = mixture(VPSDE())
SAMPLER = Sampler(DDIM(), UniformTime(4))


def run(x: object, sampler: Sampler = SAMPLER) -> torch.Tensor:
    return sampler.run(MODEL, x, noise=Silent())  # type: ignore[arg-type]


STATES = [
    (torch.zeros(3, 2, dtype=torch.int64), TypeError, r"got torch.int64.*\.to\(torch.float32\)"),
    (torch.zeros(3, 2, dtype=torch.uint8), TypeError, "uint8"),
    (torch.zeros(3, 2, dtype=torch.bool), TypeError, "bool"),
    (torch.zeros(3, 2, dtype=torch.complex64), TypeError, "complex64"),
    (torch.eye(2).to_sparse(), TypeError, "dense"),
    ([[0.0, 0.0]], TypeError, "torch.Tensor"),
    (torch.tensor(1.0), ValueError, "batch axis"),
    (torch.zeros(3, 5), ValueError, r"event \(2,\), got \(3, 5\)"),
]


@pytest.mark.parametrize(("x", "error", "word"), STATES)
def test_states_that_are_none(x: object, error: type[Exception], word: str) -> None:
    with pytest.raises(error, match=word):
        run(x)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_state_with_one_bad_value_in_many(value: float) -> None:
    x = torch.zeros(1000, 2)
    x[617, 1] = value
    with pytest.raises(DivergenceError, match="617"):
        run(x)
    with pytest.raises(ValueError, match=r"1 rows, the first at \[617\]"):
        check_finite("data", x)


GRIDS = [
    ((0.5, 0.9, 0.0), "fall strictly"),
    ((0.9, 0.5, 0.5, 0.0), "drop repeated"),
    ((0.9, 0.0, 0.5), "fall strictly"),
    ((1.5, 0.0), r"\[0, 1\]"),
    ((0.9, 1e-6, 0.0), "smaller t_min"),
]


@pytest.mark.parametrize(("times", "word"), GRIDS)
def test_grids_that_cannot_be_walked(times: tuple[float, ...], word: str) -> None:
    for solver in (Ancestral(),):
        with pytest.raises(ValueError, match=word):
            Sampler(solver, Times(*times)).sample(MODEL, (2, 2))


def test_a_zero_inside_a_grid() -> None:
    with pytest.raises(ValueError, match=r"fall strictly|only be the last"):
        Sampler(Ancestral(), lambda sde: tensor(0.9, 0.0, 0.0)).sample(MODEL, (2, 2))


@pytest.mark.parametrize(
    ("grid", "error"),
    [
        (lambda sde: [1.0, 0.0], TypeError),
        (lambda sde: tensor(1.0), ValueError),
        (lambda sde: tensor(), ValueError),
        (lambda sde: tensor(1.0, math.nan, 0.0), ValueError),
        (lambda sde: torch.zeros(2, 2), ValueError),
    ],
)
def test_grids_that_are_none(grid, error: type[Exception]) -> None:
    with pytest.raises(error, match="time"):
        Sampler(DDIM(), grid).sample(MODEL, (2, 2))


@pytest.mark.parametrize(
    ("act", "error", "word"),
    [
        (lambda: Sampler(DDIM, UniformTime(4)), TypeError, "DDIM()"),
        (lambda: Sampler("ddim", UniformTime(4)), TypeError, "solver"),
        (lambda: Sampler(DDIM(), [1.0, 0.0]), TypeError, "grid"),
        (lambda: Sampler(DDIM(), UniformTime(4), steps=3), TypeError, "steps"),
        (lambda: SAMPLER.sample(MODEL, (2, 2), sed=0), TypeError, "sed"),
        (lambda: SAMPLER.sample(MODEL, (-1, 2)), ValueError, r"shape\[0\]"),
        (lambda: SAMPLER.sample(MODEL, (2.5, 2)), TypeError, r"shape\[0\]"),
        (lambda: SAMPLER.sample(MODEL, (True, 2)), TypeError, r"shape\[0\]"),
        (lambda: SAMPLER.sample(MODEL, ()), ValueError, "shape"),
        (lambda: SAMPLER.sample(MODEL, 4), TypeError, "shape"),
        (lambda: SAMPLER.sample(MODEL, (2, 2), chunk=0), ValueError, "chunk"),
        (lambda: SAMPLER.sample(MODEL, (2, 2), seed=-1), ValueError, "seed"),
        (lambda: SAMPLER.sample(MODEL, (2, 2), seed=0.5), TypeError, "seed"),
        (lambda: SAMPLER.sample(MODEL, (2, 2), seed=None), TypeError, "seed"),
        (lambda: SAMPLER.sample(MODEL, (2, 2), dtype=torch.int64), TypeError, "int64"),
        (lambda: SAMPLER.sample(MODEL, (2, 2), dtype=torch.complex64), TypeError, "complex64"),
        (lambda: SAMPLER.sample(MODEL, (2, 3)), ValueError, r"event \(2,\)"),
        (lambda: SAMPLER.sample(MODEL, (2, 2), condition={"label": 1}), TypeError, "label"),
        (lambda: SAMPLER.with_steps(0), ValueError, "steps"),
        (lambda: SAMPLER.with_steps(2.5), TypeError, "steps"),
        (lambda: UniformTime(0), ValueError, "steps must be at least 1, got 0"),
        (lambda: UniformTime(steps=4, stepsize=0.1), TypeError, "stepsize"),
    ],
)
def test_arguments_that_cannot_be_meant(act, error: type[Exception], word: str) -> None:
    with pytest.raises(error, match=word):
        act()


class Answer(torch.nn.Module):
    def __init__(self, rule) -> None:
        super().__init__()
        self.rule = rule

    def forward(self, x: torch.Tensor, clock: torch.Tensor) -> torch.Tensor:
        return self.rule(x)


@pytest.mark.parametrize(
    "rule",
    [
        lambda x: x[:1],
        lambda x: x[:, :1],
        lambda x: x.unsqueeze(1),
        lambda x: x.sum(1),
        lambda x: torch.cat([x, x], 1),
    ],
)
def test_networks_of_another_shape_stop_the_first_move(rule) -> None:
    model = ScoreNetwork(Answer(rule), VPSDE(), Eps())
    with pytest.raises(ValueError, match="network's output must have the shape"):
        SAMPLER.sample(model, (3, 2))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_networks_that_fail_are_named_by_move(value: float) -> None:
    model = ScoreNetwork(Answer(lambda x: torch.full_like(x, value)), VPSDE(), X0())
    with pytest.raises(DivergenceError) as caught:
        SAMPLER.sample(model, (3, 2))
    assert (caught.value.step, caught.value.t, caught.value.rows) == (1, 1.0, [0, 1, 2])


def test_an_eps_network_is_not_asked_at_zero_signal() -> None:
    model = ScoreNetwork(Answer(lambda x: x), RectifiedSDE(), Eps(), lambda sde, t, x: x[:, 0])
    for solver in (DDIM(), Ancestral(), DPMSolverPP()):
        with pytest.raises(ValueError, match="zero signal"):
            Sampler(solver, UniformTime(4)).sample(model, (2, 2))
    late = Sampler(DDIM(), UniformTime(4, start=0.99)).sample(model, (2, 2))
    assert bool(torch.isfinite(late).all())


def test_langevin_refuses_to_start_without_noise() -> None:
    model = ScoreNetwork(Answer(lambda x: x), VPSDE(), Eps(), lambda sde, t, x: x[:, 0])
    with pytest.raises(ValueError, match="t = 0"):
        Sampler(Langevin(0.1), Times(0.0, 0.0)).run(model, normal(2, 2), noise=Silent())


@pytest.mark.filterwarnings("ignore:sampling starts at")
def test_a_discrete_network_is_not_asked_between_its_knots() -> None:
    model = ScoreNetwork(Answer(lambda x: x), DiscreteVPSDE.linear(10), Eps(), Index())
    with pytest.raises(ValueError, match=r"nearest are 0\.5 and 0\.6.*Knots\(\)"):
        Sampler(DDIM(), Times(0.55, 0.0)).sample(model, (2, 2))
    with pytest.raises(ValueError, match="at most the number of knots, 10, got 11"):
        Sampler(DDIM(), Strided(11)).sample(model, (2, 2))
    assert Sampler(DDIM(), Strided(10)).sample(model, (2, 2)).shape == (2, 2)


def test_a_chain_sampler_needs_a_chain() -> None:
    with pytest.raises(TypeError, match="UniformTime"):
        Sampler(Ancestral(), Knots()).sample(MODEL, (2, 2))


def test_logarithmic_grids_need_a_smallest_noise() -> None:
    with pytest.raises(ValueError, match="t_min > 0"):
        Sampler(DDIM(), Karras(5)).sample(gaussian(EDMSDE(t_min=0.0)), (2, 1))


@pytest.mark.parametrize("steps", [1, 2])
def test_few_steps_are_exact_formulas_not_explosions(steps: int) -> None:
    for solver in (DDIM(), Ancestral(), DPMSolverPP()):
        out = Sampler(solver, Karras(steps)).sample(gaussian(EDMSDE(), 0.25), (500, 1), seed=0)
        assert float(out.abs().max()) < 5


def test_an_error_in_the_model_reaches_the_caller() -> None:
    class Broken(Spy):
        def predict(self, x, t, **condition):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        SAMPLER.sample(Broken(MODEL), (2, 2))


def test_numbers_and_counts() -> None:
    class Whole:
        def __index__(self) -> int:
            return 3

    assert check_count("n", Whole()) == 3
    assert check_count("n", torch.tensor(4)) == 4
    assert check_number("x", torch.tensor(0.5)) == 0.5
    for wrong in (1.5, "3", None, True):
        with pytest.raises(TypeError, match="n must be an integer"):
            check_count("n", wrong)
    for wrong in ("3", None, False):
        with pytest.raises(TypeError, match="x must be a real number"):
            check_number("x", wrong)
    with pytest.raises(ValueError, match=r"x must lie in \(0, 1\), got 1"):
        check_number("x", 1.0, 0.0, 1.0, open_low=True, open_high=True)
    with pytest.raises(ValueError, match="got nan"):
        check_number("x", math.nan)
    assert check_state(torch.zeros(0, 3)).shape == (0, 3)


def test_mixtures_need_positive_weights() -> None:
    with pytest.raises(ValueError, match="positive weights"):
        GaussianMixture(VPSDE(), tensor(0.5, -0.5), normal(2, 2), tensor(1.0, 1.0))


def test_a_start_with_signal_left_is_warned_of() -> None:
    model = sg.Gaussian(sg.DiscreteVPSDE.linear(50), torch.zeros(2), torch.ones(2))
    with pytest.warns(UserWarning, match="signal-to-noise ratio is still 1.5"):
        sg.Sampler(sg.DDIM(), sg.Knots()).sample(model, (2, 2))


def test_a_score_network_has_no_target_without_noise() -> None:
    with pytest.raises(ValueError, match="sigma = 0"):
        sg.Score().coefficients(None, sg.Level(0.0, 1.0, 0.0, math.inf))


def test_complex_states_are_told_how_to_become_real() -> None:
    """Casting to float32 would drop the imaginary part."""
    x = torch.ones(1, 2, dtype=torch.complex64) * 1j
    for act in (lambda: run(x), lambda: MODEL(x, 0.5)):
        with pytest.raises(TypeError, match=r"complex64.*view_as_real"):
            act()


def test_divergence_errors_survive_another_process() -> None:
    for error in (
        DivergenceError(3, 0.5, [0, 2], torch.ones(2, 1)),
        DivergenceError(None, None, [1], reason="nothing can be repeated"),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is DivergenceError
        assert str(again) == str(error)
        assert (again.step, again.t, again.rows) == (error.step, error.t, error.rows)
        assert (again.partial is None) == (error.partial is None)


class Once:
    """Normal draws that cannot be repeated: a user's own source, a function of nothing we know."""

    def __init__(self) -> None:
        self.source = torch.Generator().manual_seed(0)

    def __call__(self, like, t, s):
        return torch.randn(like.shape, generator=self.source, dtype=like.dtype)


def test_a_source_that_cannot_rewind_leaves_the_move_unknown() -> None:
    model = ScoreNetwork(Answer(lambda x: torch.where(x > 0.5, torch.nan, x)), VPSDE(), X0())
    sampler = Sampler(Ancestral(), UniformTime(30))
    with pytest.raises(DivergenceError, match=r"Once, has no rewind\(\)") as caught:
        sampler.run(model, torch.full((4, 2), 0.1), noise=Once())
    error = caught.value
    assert (error.step, error.t, error.partial) == (None, None, None)
    assert error.rows
    assert "-1" not in str(error)
    # a run that draws nothing is repeated all the same
    with pytest.raises(DivergenceError) as caught:
        SAMPLER.run(model, torch.full((4, 2), 0.9), noise=Once())
    assert caught.value.step == 1


def test_a_failure_that_does_not_come_back_is_not_named() -> None:
    calls = []

    def rule(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return torch.full_like(x, math.nan if len(calls) == 4 else 0.0)

    model = ScoreNetwork(Answer(rule), VPSDE(), X0())
    with pytest.raises(DivergenceError, match="did not fail again") as caught:
        SAMPLER.sample(model, (3, 2))
    assert caught.value.step is None
    assert caught.value.rows == [0, 1, 2]


def test_failures_in_a_chunk_are_named_by_sample() -> None:
    model = ScoreNetwork(
        Answer(lambda x: torch.where((x > 0.5) | x.isnan(), torch.nan, 0.0)), VPSDE(), X0()
    )
    level = VPSDE().level(1.0)
    start = sg.noise.SampleNoise(5)(torch.empty(9, 2), level, level)
    bad = (start > 0.5).any(1).nonzero().flatten().tolist()
    for options, want in (
        ({"chunk": 1}, bad[:1]),
        ({}, bad),
        ({"rows": [bad[2], bad[1]]}, [bad[2], bad[1]]),
        ({"rows": [bad[2], bad[1]], "chunk": 1}, [bad[2]]),
    ):
        with pytest.raises(DivergenceError) as caught:
            SAMPLER.sample(model, (9, 2), seed=5, **options)
        assert caught.value.rows == want


def test_an_exact_flow_is_refused_what_would_never_end() -> None:
    model, x = gaussian(VPSDE()), normal(2, 1)
    flow = sg.analysis.exact_flow
    for act in (
        lambda: flow(model, x, math.nan, 0.0),
        lambda: flow(model, x, 1.0, math.nan),
        lambda: flow(model, x, 1.0, 0.1, rtol=math.nan),
        lambda: flow(model, x, 1.0, 0.1, atol=math.nan),
        lambda: flow(model, x, 1.0, 0.1, rtol=0.0),
        lambda: flow(model, x * math.nan, 1.0, 0.1),
    ):
        with pytest.raises(ValueError, match="must"):
            act()
    broken = ScoreNetwork(Answer(lambda x: x * math.nan), VPSDE(), X0(), lambda sde, t, x: x[:, 0])
    with pytest.raises(RuntimeError, match="not finite at t ="):
        flow(broken, x, 1.0, 0.1)
