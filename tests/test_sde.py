"""Processes: the pair (alpha, sigma), its rates, and everything that follows from it."""

from __future__ import annotations

import dataclasses
import math
import pickle
from decimal import Decimal, getcontext

import numpy as np
import pytest
import torch
from cases import (
    CONTINUOUS,
    F64,
    NOISY,
    SDES,
    NoFloat64,
    gaussian,
    inner_times,
    name,
    normal,
    tensor,
)
from hypothesis import given
from hypothesis import strategies as st

from scoregen import (
    DDIM,
    EDMSDE,
    SDE,
    VESDE,
    VPSDE,
    CosineVPSDE,
    DiscreteVPSDE,
    Level,
    RawTime,
    RectifiedSDE,
    Sampler,
    StaticSDE,
    SubVPSDE,
    UniformLam,
    V,
)

each_sde = pytest.mark.parametrize("sde", SDES, ids=name)
each_noisy = pytest.mark.parametrize("sde", NOISY, ids=name)
each_continuous = pytest.mark.parametrize("sde", CONTINUOUS, ids=name)


@each_noisy
def test_rates_equal_the_automatic_default(sde: SDE) -> None:
    t = inner_times(sde)
    for closed, automatic in zip(sde.rates(t), SDE.rates(sde, t), strict=True):
        torch.testing.assert_close(closed, automatic, rtol=1e-10, atol=1e-12)


@each_noisy
def test_rates_equal_finite_differences(sde: SDE) -> None:
    t = inner_times(sde)
    h = 1e-5 * sde.t_max
    for scale, rate in ((sde.alpha, sde.rates(t)[0]), (sde.sigma, sde.rates(t)[1])):
        difference = (scale(t + h) - scale(t - h)) / (2 * h)
        torch.testing.assert_close(rate, difference, rtol=2e-6, atol=1e-8)


@each_noisy
def test_drift_and_diffusion_move_the_marginals(sde: SDE) -> None:
    t = inner_times(sde)
    h = 1e-5 * sde.t_max
    f, g2 = sde.f(t), sde.g2(t)
    alpha_rate = (sde.alpha(t + h) - sde.alpha(t - h)) / (2 * h)
    variance_rate = (sde.sigma(t + h) ** 2 - sde.sigma(t - h) ** 2) / (2 * h)
    torch.testing.assert_close(f * sde.alpha(t), alpha_rate, rtol=2e-6, atol=1e-8)
    torch.testing.assert_close(2 * f * sde.sigma(t) ** 2 + g2, variance_rate, rtol=5e-6, atol=1e-6)
    assert bool((g2 > 0).all())


@pytest.mark.parametrize(
    ("sde", "f", "g2"),
    [
        (VPSDE(), lambda t: -(0.1 + 19.9 * t) / 2, lambda t: 0.1 + 19.9 * t),
        (
            SubVPSDE(),
            lambda t: -(0.1 + 19.9 * t) / 2,
            lambda t: (0.1 + 19.9 * t) * (1 - math.exp(-2 * (0.1 * t + 9.95 * t * t))),
        ),
        (VESDE(), lambda t: 0.0, lambda t: 2 * math.log(5000) * 1e-4 * 5000 ** (2 * t)),
        (EDMSDE(), lambda t: 0.0, lambda t: 2 * t),
        (RectifiedSDE(), lambda t: -1 / (1 - t), lambda t: 2 * t / (1 - t)),
        (
            CosineVPSDE(s=0.0),
            lambda t: -math.pi / 2 * math.tan(math.pi * t / 2),
            lambda t: math.pi * math.tan(math.pi * t / 2),
        ),
    ],
    ids=lambda v: name(v) if isinstance(v, SDE) else "",
)
def test_drift_and_diffusion_are_the_published_ones(sde: SDE, f, g2) -> None:
    t = inner_times(sde)
    torch.testing.assert_close(sde.f(t), tensor(*(f(u) for u in t.tolist())), rtol=1e-11, atol=0)
    torch.testing.assert_close(sde.g2(t), tensor(*(g2(u) for u in t.tolist())), rtol=1e-9, atol=0)


@each_continuous
def test_transition_variance_is_the_integral_of_the_diffusion(sde: SDE) -> None:
    nodes, weights = np.polynomial.legendre.leggauss(80)
    u, t = 0.31 * sde.t_max, 0.83 * sde.t_max
    w = torch.from_numpy(nodes) * (t - u) / 2 + (t + u) / 2
    at = lambda time: sde.level(time)  # noqa: E731
    integrand = sde.g2(w) * (at(t).alpha / sde.alpha(w)) ** 2
    integral = float((torch.from_numpy(weights) * integrand).sum()) * (t - u) / 2
    kernel = at(t).sigma ** 2 - (at(t).alpha / at(u).alpha * at(u).sigma) ** 2
    assert integral == pytest.approx(kernel, rel=1e-9)


@each_noisy
def test_time_inverts_the_log_ratio_up_to_the_ends(sde: SDE) -> None:
    ends = [sde.t_max * (1 - 1e-6), sde.t_min if sde.t_min > 0 else 1e-6]
    t = torch.cat([inner_times(sde, 11), tensor(*ends)])
    torch.testing.assert_close(sde.time(sde.lam(t)), t, rtol=1e-8, atol=0)
    # chains snap times to a knot within 1e-7 of the distance between knots
    torch.testing.assert_close(SDE.time(sde, sde.lam(t)), t, rtol=2e-7, atol=1e-14)
    # the clean end has lam = inf, in any kind of float
    assert sde.level_at(np.float64(math.inf)) == sde.level_at(math.inf)
    if math.isfinite(sde.level(sde.t_max).lam):
        assert sde.level_at(sde.level(sde.t_max).lam).t == pytest.approx(sde.t_max, rel=1e-9)


@each_sde
def test_scales_are_total_and_monotone(sde: SDE) -> None:
    t = torch.linspace(0, sde.t_max, 301, dtype=F64)
    alpha, sigma, lam = sde.alpha(t), sde.sigma(t), sde.lam(t)
    for values in (alpha, sigma, lam):
        assert not bool(values.isnan().any())
    assert alpha[0] == 1
    assert sigma[0] == 0
    assert math.copysign(1, float(sigma[0])) == 1, "sigma(0) must be +0: its reciprocal is +inf"
    assert lam[0] == math.inf
    assert bool((alpha >= 0).all())
    if not isinstance(sde, StaticSDE):
        assert bool((sigma.diff() > 0).all())
        assert bool((lam.diff() < 0).all())
        assert bool((alpha.diff() <= 0).all())


@each_noisy
def test_float_and_tensor_levels_agree(sde: SDE) -> None:
    times = inner_times(sde, 4)
    x = torch.zeros(4, 2, 3, dtype=F64)
    many = sde.level_of(times, x)
    listed = sde.levels(times)
    for i, t in enumerate(times.tolist()):
        level = sde.level(t)
        assert level == listed[i]
        for got, value in zip(many, level, strict=True):
            assert got.shape == (4, 1, 1)
            assert float(got[i]) == pytest.approx(value, rel=1e-15)


@each_noisy
def test_levels_of_float32_times_are_computed_in_float64(sde: SDE) -> None:
    t = inner_times(sde, 3).float()
    level = sde.level_of(t, torch.zeros(3, 2))
    exact = sde.level_of(t.double(), torch.zeros(3, 2, dtype=F64))
    for got, want in zip(level, exact, strict=True):
        assert got.dtype == torch.float32
        assert torch.equal(got, want.float())
    for time in t.double():  # one level for all, at a time that float32 would round
        off = time * (1 + 1e-9)
        one = sde.level_of(off, torch.zeros(3, 2))
        exact = sde.level_of(off, torch.zeros(3, 2, dtype=F64))
        for got, want in zip(one, exact, strict=True):
            assert got.dtype == torch.float32
            assert torch.equal(got, want.float())


@pytest.mark.parametrize("shape", [(), (1,), (3,), (3, 1, 1, 1)])
@each_noisy
def test_every_shape_of_time_gives_the_same_level(sde: SDE, shape: tuple[int, ...]) -> None:
    t = 0.4 * sde.t_max
    x0, eps = normal(3, 2, 4, 4), normal(3, 2, 4, 4, seed=1)
    level = sde.level(t)
    want = level.alpha * x0 + level.sigma * eps
    torch.testing.assert_close(sde.perturb(x0, torch.full(shape, t, dtype=F64), eps), want)
    torch.testing.assert_close(sde.perturb(x0, t, eps), want)


@each_noisy
def test_one_time_per_sample_equals_sample_by_sample(sde: SDE) -> None:
    t = inner_times(sde, 5)
    x0, eps = normal(5, 3), normal(5, 3, seed=1)
    whole = sde.perturb(x0, t, eps)
    for i in range(5):
        one = sde.perturb(x0[i : i + 1], float(t[i]), eps[i : i + 1])
        torch.testing.assert_close(whole[i : i + 1], one, rtol=1e-14, atol=0)


def cosine(x: Decimal) -> Decimal:
    term, total, k = Decimal(1), Decimal(1), 0
    while abs(term) > Decimal(10) ** -70:
        k += 2
        term *= -x * x / (k * (k - 1))
        total += term
    return total


PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899")


def exact_variance(sde: SDE, t: float) -> Decimal:
    """sigma(t)^2 with 70 digits, from the definition, by subtraction."""
    u = Decimal(t)
    if isinstance(sde, VPSDE | SubVPSDE):
        b0, b1 = Decimal(sde.beta_min), Decimal(sde.beta_max)
        kept = (-(b0 * u + (b1 - b0) * u * u / 2)).exp()
        return (1 - kept) ** 2 if isinstance(sde, SubVPSDE) else 1 - kept
    if isinstance(sde, VESDE):
        low, high = Decimal(sde.sigma_min), Decimal(sde.sigma_max)
        return low**2 * ((2 * u * (high / low).ln()).exp() - 1)
    if isinstance(sde, CosineVPSDE):
        s = Decimal(sde.s)
        quarter = PI / 2 / (1 + s)
        return 1 - (cosine(quarter * (u + s)) / cosine(quarter * s)) ** 2
    if isinstance(sde, EDMSDE | RectifiedSDE):
        return u * u
    return pytest.skip(f"the sigma of {type(sde).__name__} has no line in exact_variance yet")


@pytest.mark.parametrize("t", [1e-12, 1e-8, 1e-5, 1e-3, 0.03, 0.5, 0.97])
@each_continuous
def test_sigma_is_accurate_over_the_whole_range(sde: SDE, t: float) -> None:
    getcontext().prec = 80
    variance = Decimal(sde.level(t).sigma) ** 2
    exact = exact_variance(sde, t)
    assert abs(variance / exact - 1) < Decimal("1e-12")


def test_constants_of_the_processes() -> None:
    assert VPSDE().level(1.0).alpha ** 2 == pytest.approx(math.exp(-10.05), rel=1e-13)
    assert VPSDE(0.1, 19.9).level(1.0).alpha ** 2 == pytest.approx(math.exp(-10.0), rel=1e-13)
    assert SubVPSDE().level(1.0).sigma == pytest.approx(1 - math.exp(-10.05), rel=1e-13)
    assert VESDE().level(1.0).sigma == pytest.approx(0.01 * math.sqrt(5000**2 - 1), rel=1e-13)
    assert VESDE().prior_std(1.0) == VESDE().level(1.0).sigma
    assert EDMSDE().prior_std(80.0) == 80.0
    assert VPSDE().prior_std(1.0) == 1.0
    assert RectifiedSDE().prior_std(1.0) == 1.0
    middle = CosineVPSDE(s=0.0).level(0.5)
    assert middle.alpha == pytest.approx(math.sqrt(0.5), rel=1e-14)
    assert middle.sigma == pytest.approx(math.sqrt(0.5), rel=1e-14)
    shifted = math.cos(0.258 / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)
    assert CosineVPSDE().level(0.25).alpha == pytest.approx(shifted, rel=1e-14)
    assert CosineVPSDE(t_max=1.0).level(1.0).alpha == 0


@pytest.mark.parametrize(("steps", "ratio"), [(10, 204), (100, 2029), (1000, 20291)])
def test_the_cap_of_the_cosine_table_sets_its_last_level(steps: int, ratio: int) -> None:
    level = DiscreteVPSDE.cosine(steps).level(1.0)
    assert round(level.sigma / level.alpha) == ratio


@given(
    low=st.floats(1e-3, 1.0), more=st.floats(0.0, 30.0), t=st.floats(1e-9, 1.0), u=st.floats(0, 1)
)
def test_variance_is_preserved_for_every_rate(low: float, more: float, t: float, u: float) -> None:
    sde = VPSDE(low, low + more)
    a, b = sde.level(t), sde.level(u * t)
    assert a.alpha**2 + a.sigma**2 == pytest.approx(1, abs=1e-14)
    assert float(sde.time(tensor(a.lam))) == pytest.approx(t, rel=1e-6)
    # Chapman-Kolmogorov: the transition u -> t keeps alpha_t / alpha_u and adds the rest
    kept = a.alpha / b.alpha
    assert kept**2 * b.sigma**2 + (1 - kept**2) == pytest.approx(a.sigma**2, rel=1e-9, abs=1e-15)


class Plain(SDE):
    """A user's own process, with nothing but the two scales."""

    t_min, t_max = 1e-3, 1.0

    def alpha(self, t: torch.Tensor) -> torch.Tensor:
        return torch.exp(-t)

    def sigma(self, t: torch.Tensor) -> torch.Tensor:
        return 2 * t


def test_defaults_serve_a_process_of_two_lines() -> None:
    sde, t = Plain(), tensor(0.1, 0.7)
    torch.testing.assert_close(sde.f(t), -torch.ones_like(t))
    torch.testing.assert_close(sde.g2(t), 2 * 2 * t * (2 + 2 * t))
    torch.testing.assert_close(sde.time(sde.lam(t)), t, rtol=1e-12, atol=0)
    # sigma at that level: a prior of 1 is a fact of the processes that declare it
    assert sde.prior_std(1.0) == 2.0
    assert sde.prior_std(0.5) == 1.0


REFUSED = [
    (lambda: VPSDE(beta_min=0.0), "beta_min"),
    (lambda: VPSDE(beta_min=-1.0), "beta_min"),
    (lambda: VPSDE(beta_min=2.0, beta_max=1.0), "beta_max"),
    (lambda: VPSDE(beta_max=math.nan), "beta_max"),
    (lambda: VPSDE(t_min=1.0), "t_min"),
    (lambda: VPSDE(t_max=0.0), "t_max"),
    (lambda: VESDE(sigma_min=0.0), "sigma_min"),
    (lambda: VESDE(sigma_min=2.0, sigma_max=1.0), "sigma_max"),
    (lambda: EDMSDE(t_min=80.0), "t_min"),
    (lambda: CosineVPSDE(t_max=1.5), "t_max"),
    (lambda: CosineVPSDE(s=-0.1), "s must"),
    (lambda: RectifiedSDE(t_max=2.0), "t_max"),
    (lambda: RectifiedSDE().f(tensor(1.0)), "alpha = 0"),
    (lambda: VPSDE().g2(tensor(0.0)), "sigma"),
    (lambda: StaticSDE().time(tensor(0.0)), "no noise"),
    (lambda: VPSDE().perturb(torch.zeros(2, 1), 1.1, torch.zeros(2, 1)), r"\[0, 1\]"),
    (lambda: VPSDE().perturb(torch.zeros(2, 1), math.nan, torch.zeros(2, 1)), r"\[0, 1\]"),
    (lambda: VPSDE().perturb(torch.zeros(2, 1), 0.5, torch.zeros(2)), "shape"),
    (lambda: VPSDE().level_of(tensor(0.1, 0.2), torch.zeros(3, 1)), "one per sample"),
    (lambda: VPSDE().level_of(torch.full((3, 2), 0.5), torch.zeros(3, 2)), "one per sample"),
]


@pytest.mark.parametrize(("act", "word"), REFUSED, ids=[w for _, w in REFUSED])
def test_what_cannot_be_is_refused_with_the_reason(act, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        act()


def test_a_flag_is_no_number() -> None:
    with pytest.raises(TypeError, match="beta_min"):
        VPSDE(beta_min=True)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_automatic_rates_work_where_gradients_are_off(mode, dtype: torch.dtype) -> None:
    with mode():
        t = torch.tensor([0.1, 0.7], dtype=dtype)
        alpha, sigma = Plain().rates(t)
        assert Plain().rates_at(0.25) == pytest.approx((-math.exp(-0.25), 2.0))
    assert alpha.dtype == sigma.dtype == dtype
    torch.testing.assert_close(alpha, -torch.exp(-t))
    torch.testing.assert_close(sigma, torch.full_like(t, 2.0))


class Learned(Plain):
    """A noise scale with a parameter and no dependence on time."""

    def __init__(self) -> None:
        self.scale = torch.tensor(3.0, dtype=F64, requires_grad=True)

    def sigma(self, t: torch.Tensor) -> torch.Tensor:
        return self.scale.expand(t.shape)


def test_a_scale_that_does_not_depend_on_time_has_no_rate() -> None:
    assert Learned().rates(tensor(0.1, 0.7))[1].tolist() == [0.0, 0.0]


def test_a_process_of_two_scales_samples_like_the_built_in_one() -> None:
    """The prior is sigma at the grid's first time, so EDM's levels give EDM's samples."""

    @dataclasses.dataclass(frozen=True)
    class Mine(SDE):
        t_min: float = 0.01
        t_max: float = 20.0

        def alpha(self, t: torch.Tensor) -> torch.Tensor:
            return torch.ones_like(t)

        def sigma(self, t: torch.Tensor) -> torch.Tensor:
            return t * 1.0

    sampler = Sampler(DDIM(), UniformLam(20))
    mine = sampler.sample(gaussian(Mine()), (50, 1), seed=0, dtype=F64)
    theirs = sampler.sample(gaussian(EDMSDE(0.01, 20.0)), (50, 1), seed=0, dtype=F64)
    torch.testing.assert_close(mine, theirs)


def test_sub_vp_is_no_vp() -> None:
    assert not isinstance(SubVPSDE(), VPSDE)
    with pytest.raises(TypeError, match="SubVPSDE"):
        DiscreteVPSDE.first_order(SubVPSDE(), 1000)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="CosineVPSDE"):
        DiscreteVPSDE.first_order(CosineVPSDE(), 1000)  # type: ignore[arg-type]


@each_noisy
@pytest.mark.parametrize("factor", [math.nan, 1.5, -0.1, math.inf])
def test_levels_outside_the_domain_are_refused(sde: SDE, factor: float) -> None:
    t = factor * sde.t_max
    for act in (sde.level, lambda t: sde.levels([0.0, t]), sde.prior_std):
        if act == sde.prior_std and sde.prior_std(sde.t_max) == 1.0:
            continue  # declared, whatever the time
        with pytest.raises(ValueError, match="times must lie in"):
            act(t)


@pytest.mark.parametrize(
    "act",
    [
        lambda v: VPSDE(beta_max=v),
        lambda v: VPSDE(beta_min=v, beta_max=v),
        lambda v: VPSDE(t_max=v),
        lambda v: VESDE(sigma_max=v),
        lambda v: VESDE(sigma_min=v),
        lambda v: EDMSDE(t_max=v),
        lambda v: CosineVPSDE(s=v),
    ],
)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_no_process_is_made_of_nan_or_infinity(act, value: float) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        act(value)


@each_noisy
def test_levels_of_half_precision_states_keep_the_time(sde: SDE) -> None:
    """Scales multiply the state and have its dtype; times go to clocks and are not rounded."""
    t = inner_times(sde, 3)
    level = sde.level_of(t, torch.zeros(3, 2, dtype=torch.bfloat16))
    assert (level.alpha.dtype, level.sigma.dtype) == (torch.bfloat16, torch.bfloat16)
    assert level.t.dtype == level.lam.dtype == torch.float32
    torch.testing.assert_close(level.t.flatten(), t.float(), rtol=1e-7, atol=0)


@each_noisy
def test_nothing_is_computed_in_float64_on_the_device(sde: SDE) -> None:
    x = torch.empty(2, 3, device="meta")
    with NoFloat64():
        level = sde.level_of(inner_times(sde, 2), x)
        assert {c.device.type for c in level} == {"meta"}
        sde.perturb(x, inner_times(sde, 2), x)
        assert V().decode(sde, level, x, x).x0.device.type == "meta"
        assert RawTime()(sde, level, x).dtype == torch.float32


def test_complex_times_are_refused() -> None:
    with pytest.raises(TypeError, match="view_as_real"):
        VPSDE().level_of(torch.ones(2, dtype=torch.complex64), torch.zeros(2, 1))


def test_levels_say_what_they_hold() -> None:
    """Type arguments are for the checker alone: values, pickles and tuples are as ever."""
    level = VPSDE().level(0.5)
    assert Level[float](*level) == level == Level(*level)
    assert pickle.loads(pickle.dumps(level)) == level
    assert isinstance(VPSDE().level_of(tensor(0.5), torch.zeros(1, 2)), Level)
