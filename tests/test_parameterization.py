"""What a network's output means: one 2 x 2 system, asked from every side."""

from __future__ import annotations

import math

import pytest
import torch
from cases import F64, NOISY, PARAMETERIZATIONS, gaussian, inner_times, name, normal
from hypothesis import given
from hypothesis import strategies as st

from scoregen import (
    EDM,
    EDMSDE,
    SDE,
    VESDE,
    VPSDE,
    X0,
    CosineVPSDE,
    Eps,
    Level,
    RectifiedSDE,
    Score,
    StaticSDE,
    V,
    Velocity,
)
from scoregen.models import LearnedVariance, Parameterization, Prediction

PLAIN = [p for p in PARAMETERIZATIONS if not isinstance(p, LearnedVariance)]
each_pair = pytest.mark.parametrize("meaning", PLAIN, ids=name)
each_noisy = pytest.mark.parametrize("sde", NOISY, ids=name)
FORMS = ("x0", "eps", "score", "velocity", "v")


def truth(sde: SDE, level: Level, x0: torch.Tensor, eps: torch.Tensor) -> dict[str, torch.Tensor]:
    """Every form from its definition, for known x0 and eps."""
    t = torch.as_tensor(level.t, dtype=F64)
    alpha_rate, sigma_rate = SDE.rates(sde, t)
    return {
        "x0": x0,
        "eps": eps,
        "score": -eps / level.sigma,
        "velocity": alpha_rate * x0 + sigma_rate * eps,
        "v": level.alpha * eps - level.sigma * x0,
    }


@each_pair
@each_noisy
def test_decoding_the_target_gives_every_form_back(sde: SDE, meaning: Parameterization) -> None:
    x0, eps = normal(3, 2, seed=1), normal(3, 2, seed=2)
    for t in inner_times(sde, 4).tolist():
        level = sde.level(t)
        x = level.alpha * x0 + level.sigma * eps
        want = truth(sde, level, x0, eps)
        for form in FORMS:
            p = meaning.decode(sde, level, x, meaning.target(sde, level, x0, eps))
            scale = 1 + 1 / level.alpha + 1 / level.sigma + float(want[form].abs().max())
            torch.testing.assert_close(getattr(p, form), want[form], rtol=0, atol=3e-12 * scale**2)


@each_pair
@each_noisy
def test_tensor_levels_equal_float_levels(sde: SDE, meaning: Parameterization) -> None:
    times = inner_times(sde, 4)
    x, out = normal(4, 2, 3, seed=3), normal(4, 2, 3, seed=4)
    whole = meaning.decode(sde, sde.level_of(times, x), x, out)
    for form in FORMS:
        rows = [
            getattr(meaning.decode(sde, sde.level(float(t)), x[i : i + 1], out[i : i + 1]), form)
            for i, t in enumerate(times)
        ]
        torch.testing.assert_close(getattr(whole, form), torch.cat(rows), rtol=1e-9, atol=1e-9)
    target = meaning.target(sde, sde.level_of(times, x), x, out)
    one = meaning.target(sde, sde.level(float(times[1])), x[1:2], out[1:2])
    torch.testing.assert_close(target[1:2], one, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("third", PLAIN, ids=name)
@pytest.mark.parametrize("second", PLAIN, ids=name)
def test_conversions_form_a_group(second: Parameterization, third: Parameterization) -> None:
    """first -> second -> third equals first -> third, and back again is where it began."""
    for sde in (VPSDE(), RectifiedSDE(), VESDE(sigma_max=3.0)):
        level = sde.level(0.45)
        x, out = normal(2, 3, seed=5), normal(2, 3, seed=6)

        def convert(a: Parameterization, b: Parameterization, out: torch.Tensor) -> torch.Tensor:
            p = a.decode(sde, level, x, out)  # noqa: B023
            return b.target(sde, level, p.x0, p.eps)  # noqa: B023

        for first in PLAIN:
            by_way = convert(second, third, convert(first, second, out))
            torch.testing.assert_close(by_way, convert(first, third, out), rtol=1e-9, atol=1e-10)
            back = convert(second, first, convert(first, second, out))
            torch.testing.assert_close(back, out, rtol=1e-9, atol=1e-10)


def test_coefficients_are_the_published_ones() -> None:
    level = Level(0.3, 0.6, 0.8, math.log(0.75))
    assert Eps().coefficients(VPSDE(), level) == (0.0, 1.0)
    assert X0().coefficients(VPSDE(), level) == (1.0, 0.0)
    assert V().coefficients(VPSDE(), level) == (-0.8, 0.6)
    assert Score().coefficients(VPSDE(), level) == (0.0, -1.25)
    sde = RectifiedSDE()
    assert Velocity().coefficients(sde, sde.level(0.3)) == (-1.0, 1.0)


def test_v_is_not_the_velocity() -> None:
    """v = alpha eps - sigma x0; on straight paths the velocity is eps - x0."""
    sde, x0, eps = RectifiedSDE(), normal(2, 2), normal(2, 2, seed=1)
    level = sde.level(0.25)
    p = Prediction(sde, level, 0.75 * x0 + 0.25 * eps, x0=x0)
    torch.testing.assert_close(p.v, 0.75 * eps - 0.25 * x0)
    torch.testing.assert_close(p.velocity, eps - x0)
    # D = (a x - s v)/(a^2 + s^2) and u = f x - g^2 score / 2
    torch.testing.assert_close((0.75 * p.x - 0.25 * p.v) / (0.75**2 + 0.25**2), x0)
    t = torch.tensor(0.25, dtype=F64)
    torch.testing.assert_close(sde.f(t) * p.x - sde.g2(t) / 2 * p.score, p.velocity)


def test_straight_paths_give_x0_and_eps_from_the_velocity() -> None:
    sde, x, u = RectifiedSDE(), normal(2, 2), normal(2, 2, seed=1)
    p = Velocity().decode(sde, sde.level(0.3), x, u)
    torch.testing.assert_close(p.x0, x - 0.3 * u)
    torch.testing.assert_close(p.eps, x + 0.7 * u)
    torch.testing.assert_close(p.score, -(x + 0.7 * u) / 0.3)
    assert p.velocity is u


@pytest.mark.parametrize("sigma", [0.002, 0.5, 80.0])
@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_edm_preconditioning_is_karras_et_als(sigma: float, sigma_data: float) -> None:
    sde, meaning = EDMSDE(), EDM(sigma_data)
    level = sde.level(sigma)
    total = math.sqrt(sigma**2 + sigma_data**2)
    c_skip, c_out, c_in = sigma_data**2 / total**2, sigma * sigma_data / total, 1 / total
    assert meaning.input_scale(sde, level) == pytest.approx(c_in, rel=1e-14)
    x, out = normal(3, 2), normal(3, 2, seed=1)
    p = meaning.decode(sde, level, x, out)
    torch.testing.assert_close(p.x0, c_skip * x + c_out * out, rtol=1e-10, atol=1e-12)
    # unit input variance and unit target variance for data of variance sigma_data^2
    a, b = meaning.coefficients(sde, level)
    assert c_in**2 * (sigma_data**2 + sigma**2) == pytest.approx(1, rel=1e-14)
    assert a**2 * sigma_data**2 + b**2 == pytest.approx(1, rel=1e-12)
    # at the optimum for Gaussian data of that variance the network has nothing to say
    data = gaussian(sde, sigma_data**2, event=(2,))(x, sigma)
    silent = meaning.target(sde, level, data.x0, data.eps)
    torch.testing.assert_close(silent, torch.zeros_like(x), rtol=0, atol=1e-13 * (1 + 1 / sigma))


def test_edm_scales_are_those_of_x_over_alpha_on_every_process() -> None:
    sde, edm = VPSDE(), EDMSDE()
    level = sde.level(0.6)
    ratio = level.sigma / level.alpha
    same = edm.level(ratio)
    x, out = normal(3, 2), normal(3, 2, seed=1)
    here = EDM(0.7).decode(sde, level, level.alpha * x, out)
    there = EDM(0.7).decode(edm, same, x, out)
    torch.testing.assert_close(here.x0, there.x0)
    torch.testing.assert_close(here.eps, there.eps)
    got = EDM(0.7).input_scale(sde, level) * level.alpha
    assert got == pytest.approx(EDM(0.7).input_scale(edm, same), rel=1e-13)


@given(
    x0=st.floats(-3, 3), x=st.floats(-3, 3), alpha=st.floats(0.01, 1.0), sigma=st.floats(0.01, 50)
)
def test_an_edit_of_x0_keeps_the_state(x0: float, x: float, alpha: float, sigma: float) -> None:
    level = Level(0.5, alpha, sigma, math.log(alpha / sigma))
    state = torch.full((2, 1), x, dtype=F64)
    before = Prediction(VPSDE(), level, state, x0=torch.zeros_like(state), spread=state)
    edited = before.with_x0(torch.full_like(state, x0))
    rebuilt = level.alpha * edited.x0 + level.sigma * edited.eps
    torch.testing.assert_close(rebuilt, state, rtol=1e-9, atol=1e-9)
    assert edited.spread is before.spread
    assert float(before.x0[0]) == 0.0


def test_forms_are_converted_once() -> None:
    p = Prediction(VPSDE(), VPSDE().level(0.5), normal(2, 2), x0=normal(2, 2, seed=1))
    assert p.eps is p.eps
    assert p.score is p.score
    assert p.velocity is p.velocity
    assert p.v is p.v


@pytest.mark.parametrize("meaning", [X0(), V(), EDM()], ids=name)
@pytest.mark.parametrize("sde", [RectifiedSDE(), CosineVPSDE(t_max=1.0)], ids=name)
def test_pure_noise_is_no_trouble_for_data_predictions(sde: SDE, meaning) -> None:
    level = sde.level(1.0)
    assert level.alpha == 0
    x, x0 = normal(2, 3), normal(2, 3, seed=1)
    p = meaning.decode(sde, level, x, meaning.target(sde, level, x0, x))
    torch.testing.assert_close(p.x0, x0)
    torch.testing.assert_close(p.eps, x)
    torch.testing.assert_close(p.score, -x)


@pytest.mark.parametrize(
    ("meaning", "sde", "t", "form"),
    [
        (Eps(), RectifiedSDE(), 1.0, "x0"),
        (Score(), RectifiedSDE(), 1.0, "x0"),
        (Eps(), CosineVPSDE(t_max=1.0), 1.0, "velocity"),
        (X0(), VPSDE(), 0.0, "eps"),
        (X0(), VPSDE(), 0.0, "score"),
        (Eps(), VPSDE(), 0.0, "score"),
        (V(), VPSDE(), 0.0, "score"),
        (Velocity(), VPSDE(), 0.0, "x0"),
        (Velocity(), VESDE(), 0.0, "v"),
        (V(), VPSDE(), 0.0, "velocity"),
        (Score(), StaticSDE(), 0.5, "eps"),
    ],
)
def test_forms_that_do_not_exist_are_refused(meaning, sde: SDE, t: float, form: str) -> None:
    x = normal(2, 2)
    p = meaning.decode(sde, sde.level(t), x, x)
    with pytest.raises(ValueError, match=f"t = {t:g}"):
        getattr(p, form)


def test_straight_paths_keep_their_velocity_at_clean_data() -> None:
    sde, x, u = RectifiedSDE(), normal(2, 2), normal(2, 2, seed=1)
    p = Velocity().decode(sde, sde.level(0.0), x, u)
    assert p.velocity is u
    torch.testing.assert_close(p.x0, x)
    torch.testing.assert_close(p.eps, x + u)


def test_learned_variance_splits_the_channels() -> None:
    sde, x = VPSDE(), normal(2, 3, 4, 4)
    out = normal(2, 6, 4, 4, seed=1)
    p = LearnedVariance(V()).decode(sde, sde.level(0.5), x, out)
    q = V().decode(sde, sde.level(0.5), x, out[:, :3])
    assert torch.equal(p.x0, q.x0)
    torch.testing.assert_close(p.spread, (out[:, 3:] + 1) / 2)
    for wrong in (out[:, :3], out[:, :5], out[:1], out[..., :2]):
        with pytest.raises(ValueError, match=r"shape|twice"):
            LearnedVariance().decode(sde, sde.level(0.5), x, wrong)


@each_pair
def test_a_wrong_output_shape_is_refused(meaning: Parameterization) -> None:
    sde = VPSDE()
    for wrong in (normal(2), normal(2, 1), normal(1, 3), normal(2, 3, 1)):
        with pytest.raises(ValueError, match=r"shape of x, \(2, 3\)"):
            meaning.decode(sde, sde.level(0.5), normal(2, 3), wrong)


def test_an_empty_prediction_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match="needs x0, eps"):
        _ = Prediction(VPSDE(), VPSDE().level(0.5), normal(1, 1)).x0
    with pytest.raises(ValueError, match="sigma_data"):
        EDM(0.0)


@pytest.mark.parametrize(
    ("meaning", "sde", "t", "form"),
    [
        (Eps(), RectifiedSDE(), 1.0, "x0"),
        (Score(), RectifiedSDE(), 1.0, "x0"),
        (X0(), VPSDE(), 0.0, "eps"),
        (Eps(), VPSDE(), 0.0, "score"),
        (V(), VPSDE(), 0.0, "velocity"),
        (Velocity(), VPSDE(), 0.0, "x0"),
    ],
)
@pytest.mark.parametrize("rows", [1, 3])
def test_tensor_times_are_refused_where_floats_are(meaning, sde, t, form: str, rows: int) -> None:
    x = normal(3, 2)
    times = torch.full((rows,), 0.5, dtype=F64)
    times[-1] = t
    level = sde.level_of(times, x)
    with pytest.raises(ValueError, match=r"does not follow|infinite"):
        getattr(meaning.decode(sde, level, x, x), form)


def test_batched_levels_pass_where_no_value_can_be_read() -> None:
    sde, x = VPSDE(), normal(4, 2)

    def eps(level: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        t = Level(level, sde.alpha(level), sde.sigma(level), sde.lam(level))
        return X0().decode(sde, t, x, torch.zeros_like(x)).eps

    times = torch.tensor([0.1, 0.5, 0.7, 0.9], dtype=F64)
    got = torch.func.vmap(eps)(times, x)
    torch.testing.assert_close(got, x / sde.sigma(times)[:, None])
    _, tangent = torch.func.jvp(eps, (times[:1], x[:1]), (torch.ones(1, dtype=F64), 0 * x[:1]))
    assert bool(torch.isfinite(tangent).all())
