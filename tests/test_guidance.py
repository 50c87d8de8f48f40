"""Guidance: its two ends, its algebra, and the laws it leads to where they are known."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from scoregen import (
    DDIM,
    EDM,
    EDMSDE,
    MLP,
    VPSDE,
    X0,
    DivergenceError,
    Eps,
    Gaussian,
    GaussianMixture,
    RectifiedSDE,
    Sampler,
    Score,
    ScoreModel,
    ScoreNetwork,
    Times,
    UniformTime,
    V,
    Velocity,
)
from scoregen.energies import Potential
from scoregen.guidance import (
    AutoGuidance,
    Clamped,
    Classifier,
    ClassifierFree,
    DynamicThreshold,
    Reconstruction,
    Switch,
)
from scoregen.likelihood import decode, log_prob
from scoregen.models import Counted, LearnedVariance, Prediction
from scoregen.noise import ReplayNoise
from scoregen.solvers import ReverseDiffusion

FORMS = ("x0", "eps", "score", "velocity", "v")


class ByLabel(ScoreModel):
    """One exact Gaussian per label, so that both branches of guidance are known."""

    def __init__(self, *models: Gaussian):
        super().__init__()
        self.models, self.sde = torch.nn.ModuleList(models), models[0].sde

    def check_condition(self, **condition) -> None:
        if set(condition) - {"label"}:
            raise TypeError("only a label")

    def predict(self, x, t, *, label: Tensor) -> Prediction:
        each = [m.predict(x, t) for m in self.models]
        pick = label.reshape(-1, *(1,) * (x.dim() - 1))

        def choose(form: str) -> Tensor:
            values = [getattr(p, form) for p in each]
            out = values[0]
            for i, value in enumerate(values[1:], 1):
                out = torch.where(pick == i, value, out)
            return out

        return Prediction(self.sde, t, x, x0=choose("x0"), eps=choose("eps"))


def gaussians(sde, c: float, u: float, mu_c: float = 0.0, mu_u: float = 0.0) -> ByLabel:
    """Label 0 is the condition, label 1 its absence."""
    means = [torch.tensor([m], dtype=torch.float64) for m in (mu_c, mu_u)]
    return ByLabel(Gaussian(sde, means[0], c), Gaussian(sde, means[1], u))


def guided(sde, c, u, scale, mu_c=0.0, mu_u=0.0, batch: int = 1) -> ScoreModel:
    model = ClassifierFree(gaussians(sde, c, u, mu_c, mu_u), scale, null={"label": 1})
    return model.given(label=torch.zeros(batch, dtype=torch.long))


def network(parameterization, sde=VPSDE(), classes: int = 4, outputs: int = 1) -> ScoreNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MLP(event=(3,), hidden=16, depth=1, classes=classes, outputs=outputs).double()
    return ScoreNetwork(net, sde, parameterization)


X = torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(4, 3)
LABEL = torch.tensor([0, 3, 1, 4])


@pytest.mark.parametrize("parameterization", [Eps(), X0(), V(), Score(), Velocity(), EDM()])
@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, 2.5])
def test_every_form_is_blended_alike(parameterization, scale: float) -> None:
    model = network(parameterization)
    said = ClassifierFree(model, scale)(X, 0.4, label=LABEL)
    c, u = model(X, 0.4, label=LABEL), model(X, 0.4)
    for form in FORMS:
        expected = getattr(u, form) + scale * (getattr(c, form) - getattr(u, form))
        torch.testing.assert_close(getattr(said, form), expected, rtol=1e-9, atol=1e-9)
    level = model.sde.level(0.4)
    torch.testing.assert_close(level.alpha * said.x0 + level.sigma * said.eps, X)


def test_scale_0_is_unconditional_and_1_conditional_to_the_last_bit() -> None:
    model = network(Eps())
    one = torch.ones(4, dtype=torch.float64)
    for scale in (1.0, one):
        said = ClassifierFree(model, scale)(X, 0.4, label=LABEL).eps
        torch.testing.assert_close(said, model(X, 0.4, label=LABEL).eps, rtol=0, atol=1e-15)
    for scale in (0.0, 0 * one):
        said = ClassifierFree(model, scale)(X, 0.4, label=LABEL).eps
        torch.testing.assert_close(said, model(X, 0.4).eps, rtol=0, atol=1e-15)


def test_scales_and_times_of_their_own_per_sample() -> None:
    model = network(V())
    scale = torch.tensor([0.0, 1.0, 2.0, 3.5], dtype=torch.float64)
    times = torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=torch.float64)
    said = ClassifierFree(model, scale)(X, times, label=LABEL).score
    for i in range(4):
        row = ClassifierFree(model, float(scale[i]))(X[i : i + 1], float(times[i]),
                                                     label=LABEL[i : i + 1])  # fmt: skip
        torch.testing.assert_close(said[i : i + 1], row.score)
    one = ClassifierFree(model, 2.0)(X[:1], times[:1], label=LABEL[:1])
    assert one.x0.shape == (1, 3)
    empty = ClassifierFree(model, 2.0)(X[:0], 0.4, label=LABEL[:0])
    assert empty.x0.shape == (0, 3)


def test_both_branches_are_one_batched_evaluation() -> None:
    model = network(Eps())
    calls = []
    model.net.register_forward_hook(lambda *_: calls.append(1))
    for scale, rows in [(2.0, 8), (1.0, 4), (0.0, 4)]:
        calls.clear()
        with Counted(model) as count:
            ClassifierFree(model, scale)(X, 0.4, label=LABEL)
        assert count.rows == rows
        assert len(calls) == 1


class Operations(TorchDispatchMode):
    """Counts tensor operations that compute something, views aside."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        self.count += name in ("mul", "add", "sub", "div", "lerp", "neg", "rsub")
        return func(*args, **(kwargs or {}))


def test_a_guided_combination_is_one_interpolation() -> None:
    """p x0 + q eps of a v-network: two operations of one batch and one lerp, not twelve."""
    model = network(V())
    for guided, most in [(ClassifierFree(model, 2.0), 3), (AutoGuidance(model, model, 2.0), 5)]:
        p = guided(X, 0.4, label=LABEL)
        with Operations() as operations:
            got = p.combine(0.3, 0.7)
        assert operations.count == most
        torch.testing.assert_close(got, 0.3 * p.x0 + 0.7 * p.eps)


def test_time_free_energies_are_guided_by_their_scores() -> None:
    """On StaticSDE only scores exist, and the blend has one too."""
    good, weak = (Potential(lambda x, k=k: k * x.square().sum(1) / 2) for k in (1.0, 3.0))
    said = AutoGuidance(good, weak, 2.0)(X, 0.0)
    torch.testing.assert_close(said.score.detach(), -(3 + 2 * (1 - 3)) * X)


def test_scales_may_be_functions_of_the_level() -> None:
    model = network(V())
    guided = ClassifierFree(model, lambda t: 1 + t.sigma)
    for t in (0.2, 0.7):
        want = ClassifierFree(model, 1 + model.sde.level(t).sigma)(X, t, label=LABEL).x0
        torch.testing.assert_close(guided(X, t, label=LABEL).x0, want)
    times = torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=torch.float64)
    rows = torch.cat([guided(X[i : i + 1], float(times[i]), label=LABEL[i : i + 1]).x0
                      for i in range(4)])  # fmt: skip
    torch.testing.assert_close(guided(X, times, label=LABEL).x0, rows)
    for bad in (-1.0, math.nan):
        with pytest.raises(ValueError, match="scale at this level"):
            ClassifierFree(model, lambda t, bad=bad: bad)(X, 0.4, label=LABEL)


@pytest.mark.parametrize(
    ("parameterization", "form"),
    [(V(), "v"), (Eps(), "eps"), (X0(), "x0"), (Velocity(), "velocity"), (Score(), "score")],
)
@pytest.mark.parametrize("scale", [0.0, 3.0, torch.tensor([0.5, 1.0, 2.0, 7.5]).double()])
def test_rescaled_guidance_is_the_papers(parameterization, form: str, scale) -> None:
    """Algorithm 2 of Lin et al. (2023), on the network's own output."""
    model = network(parameterization)
    c, u = (getattr(model(X, 0.4, label=k), form) for k in (LABEL, LABEL * 0 + 4))
    weight = scale.reshape(-1, 1) if isinstance(scale, Tensor) else scale
    cfg = u + weight * (c - u)
    factor = c.std(1, keepdim=True) / cfg.std(1, keepdim=True)
    want = cfg * (0.7 * factor + (1 - 0.7))
    p = ClassifierFree(model, scale, rescale=0.7)(X, 0.4, label=LABEL)
    torch.testing.assert_close(getattr(p, form), want)
    level = model.sde.level(0.4)
    torch.testing.assert_close(level.alpha * p.x0 + level.sigma * p.eps, X)


def test_rescaling_other_models_and_its_limits() -> None:
    model = network(Eps())
    kept = ClassifierFree(model, 3.0, rescale=0.0)(X, 0.4, label=LABEL).eps
    assert torch.equal(kept, ClassifierFree(model, 3.0)(X, 0.4, label=LABEL).eps)
    one = ClassifierFree(model, 1.0, rescale=1.0)
    with Counted(one) as count:
        got = one(X, 0.4, label=LABEL).eps
    assert count.rows == 4
    assert torch.equal(got, model(X, 0.4, label=LABEL).eps)
    # in one coordinate nothing can be rescaled, and nothing is divided by zero
    exact = ClassifierFree(gaussians(VPSDE(), 0.3, 1.0), 2.0, null={"label": 1}, rescale=1.0)
    label = torch.zeros(2, dtype=torch.long)
    assert bool(exact(torch.ones(2, 1).double(), 0.4, label=label).x0.isfinite().all())
    for bad in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="rescale"):
            ClassifierFree(model, 2.0, rescale=bad)


def test_a_bound_condition_inside_is_not_doubled() -> None:
    """Bound to the model inside, or held by a wrapper: two evaluations, each of its own batch."""
    model = network(Eps())
    inside = Clamped(model, -9.0, 9.0)
    want = ClassifierFree(model, 2.0)(X, 0.4, label=LABEL).x0.clamp(-9, 9)
    torch.testing.assert_close(ClassifierFree(inside, 2.0)(X, 0.4, label=LABEL).x0, want)


def test_the_missing_condition_is_named_wherever_it_is_missed() -> None:
    guided = ClassifierFree(network(Eps()), 2.0)
    level = guided.sde.level(0.4)
    text = r"guidance needs the condition label: pass it, or bind it by ClassifierFree"
    for miss in (
        lambda: guided(X, 0.4),
        lambda: guided(X, level),
        lambda: guided(X, 0.4, label=None),
        lambda: guided.predict(X, level),
        lambda: Sampler(DDIM(), UniformTime(2)).sample(guided, (2, 3)),
    ):
        with pytest.raises(TypeError, match=text):
            miss()
    with pytest.raises(TypeError, match="by name"):
        ClassifierFree(network(Eps()), 2.0, null=4)


def test_models_switch_by_level() -> None:
    low, middle, high = (Gaussian(VPSDE(), torch.full((3,), m).double(), 1.0) for m in (1, 2, 3))
    model = Switch({0.5: middle, 0.0: low, 0.8: high})
    for t, one in [(0.1, low), (0.5, middle), (0.79, middle), (0.8, high), (1.0, high)]:
        assert torch.equal(model(X, t).x0, one(X, t).x0)
        change = model.energy_difference(X, X + 1, t)
        torch.testing.assert_close(change, one.energy_difference(X, X + 1, t))
    times = torch.tensor([0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
    each = torch.cat([model(X[i : i + 1], float(times[i])).eps for i in range(4)])
    torch.testing.assert_close(model(X, times).eps, each)
    with Counted(model) as count:
        Sampler(DDIM(), UniformTime(10)).sample(model, (4, 3), seed=0)
    assert count.rows == 40
    assert model.event == (3,)


def test_prompts_are_edited_on_the_way() -> None:
    model = network(Eps())
    a, b = torch.tensor([0, 1, 2, 3]), torch.tensor([3, 2, 1, 0])
    edited = Switch({0.0: model.given(label=b), 0.6: model.given(label=a)})
    assert torch.equal(edited(X, 0.7).x0, model(X, 0.7, label=a).x0)
    assert torch.equal(edited(X, 0.3).x0, model(X, 0.3, label=b).x0)
    sampler = Sampler(DDIM(), UniformTime(6))
    whole = sampler.sample(edited, (4, 3), seed=0)
    torch.testing.assert_close(whole, sampler.sample(edited, (4, 3), seed=0, chunk=3))
    experts = Switch({0.0: network(V()), 0.6: model})
    assert experts.conditions == model.conditions
    want = ClassifierFree(model, 2.0)(X, 0.7, label=LABEL).x0
    torch.testing.assert_close(ClassifierFree(experts, 2.0)(X, 0.7, label=LABEL).x0, want)
    with pytest.raises(TypeError, match="unknown condition"):
        experts.given(text=a)


def test_switches_without_a_model_for_every_level_are_refused() -> None:
    model = network(Eps())
    for bad, error, word in [
        ({0.5: model}, ValueError, "least boundary"),
        ({0.0: model, 2.0: model}, ValueError, "boundary"),
        ({0.0: model, math.nan: model}, ValueError, "boundary"),
        ({0.0: model, 0.5: network(Eps(), EDMSDE())}, ValueError, "one process"),
        ({0.0: model.net}, TypeError, "score model"),
        ({}, TypeError, "mapping"),
        (model, TypeError, "mapping"),
    ]:
        with pytest.raises(error, match=word):
            Switch(bad)


def test_the_interval_switches_guidance_off_outside() -> None:
    model = network(Eps())
    inside = ClassifierFree(model, 3.0, interval=(0.2, 0.5))
    plain = ClassifierFree(model, 3.0)
    for t, expected in [(0.1, model), (0.2, plain), (0.35, plain), (0.5, plain), (0.6, model)]:
        said = inside(X, t, label=LABEL).eps
        torch.testing.assert_close(said, expected(X, t, label=LABEL).eps)
    times = torch.tensor([0.1, 0.3, 0.5, 0.9], dtype=torch.float64)
    said = inside(X, times, label=LABEL).eps
    both = plain(X, times, label=LABEL).eps, model(X, times, label=LABEL).eps
    within = (times >= 0.2) & (times <= 0.5)
    torch.testing.assert_close(said, torch.where(within[:, None], *both))
    upwards = ClassifierFree(model, 3.0, interval=(0.3, math.inf))
    for t, expected in [(0.2, model), (0.9, plain)]:
        got = upwards(X, t, label=LABEL).eps
        torch.testing.assert_close(got, expected(X, t, label=LABEL).eps)


def test_the_learned_variance_is_the_conditional_one() -> None:
    model = network(LearnedVariance(), outputs=2)
    said = ClassifierFree(model, 2.0)(X, 0.4, label=LABEL)
    torch.testing.assert_close(said.spread, model(X, 0.4, label=LABEL).spread)


def test_a_null_condition_of_ones_own() -> None:
    model = network(Eps())
    other = ClassifierFree(model, 2.0, null={"label": 2})(X, 0.4, label=LABEL).eps
    c = model(X, 0.4, label=LABEL).eps
    u = model(X, 0.4, label=torch.full((4,), 2)).eps
    torch.testing.assert_close(other, 2 * c - u)
    with pytest.raises(TypeError, match="text"):
        ClassifierFree(model, 2.0, null={"text": 0})(X, 0.4, label=LABEL)


def test_it_samples_with_one_label_for_all() -> None:
    model = ClassifierFree(network(Eps()), 2.0)
    sampler = Sampler(DDIM(), UniformTime(4))
    whole = sampler.sample(model, (5, 3), seed=0, condition={"label": 2})
    parts = sampler.sample(model, (5, 3), seed=0, condition={"label": 2}, chunk=2)
    torch.testing.assert_close(whole, parts)
    assert bool(whole.isfinite().all())


CASES = [(0.3, 1.0, 2.5), (0.5, 2.0, 4.0), (0.2, 0.25, 8.0)]  # c, u, scale = w + 1


@pytest.mark.parametrize(("c", "u", "scale"), CASES)
def test_the_guided_ode_is_not_the_tilted_law_but_a_geometric_mean(c, u, scale) -> None:
    low, high = 1e-4, 3e3
    sde = EDMSDE(t_min=low, t_max=high)
    x = torch.ones(1, 1, dtype=torch.float64)
    gain = float(decode(guided(sde, c, u, scale), x, rtol=1e-9, atol=1e-14))
    ends = [(c + t**2) ** (scale / 2) * (u + t**2) ** ((1 - scale) / 2) for t in (low, high)]
    assert gain == pytest.approx(ends[0] / ends[1], rel=1e-6)
    geometric = c**scale * u ** (1 - scale)
    assert (gain * high) ** 2 == pytest.approx(geometric, rel=1e-4)
    tilted = 1 / (scale / c + (1 - scale) / u)
    assert geometric < 0.7 * tilted


@pytest.mark.parametrize(("c", "u", "scale"), CASES)
@pytest.mark.slow
def test_the_guided_sde_leads_to_a_third_law(c, u, scale) -> None:
    """The exact variance of the reverse SDE's output, from the sampler's own coefficients."""
    sde = EDMSDE(t_min=1e-5, t_max=300.0)
    found = []
    for steps in (600, 1200):
        lam = torch.linspace(sde.level(300.0).lam, sde.level(2e-3).lam, steps, dtype=torch.float64)
        times = (*torch.exp(-lam).tolist(), 0.0)
        rows = torch.eye(steps, dtype=torch.float64).reshape(steps, steps, 1)
        start = torch.zeros(steps, 1, dtype=torch.float64)
        start[0] = 300.0
        draws = [torch.zeros(steps, 1, dtype=torch.float64), *rows]
        model = guided(sde, c, u, scale, batch=steps)
        sampler = Sampler(ReverseDiffusion(), Times(*times))
        out = sampler.run(model, start, noise=ReplayNoise(draws[1:]))
        # row 0 holds the start and the first draw, which the exact law adds in quadrature
        alone = sampler.run(guided(sde, c, u, scale), start[:1],
                            noise=ReplayNoise([d[:1] * 0 for d in rows]))  # fmt: skip
        first = (out[0] - alone[0]) ** 2
        found.append(float(alone[0] ** 2 + first + out[1:].square().sum()))
    limit = 2 * found[1] - found[0]  # the method is of first order
    exact = quad(
        lambda q: (c / (c + q)) ** (2 * scale) * ((u + q) / u) ** (2 * scale - 2), 0, math.inf
    )[0]
    assert limit == pytest.approx(exact, rel=3e-3)
    geometric, tilted = c**scale * u ** (1 - scale), 1 / (scale / c + (1 - scale) / u)
    assert geometric < 0.9 * exact < 0.8 * tilted


def test_the_published_figures_of_the_three_laws() -> None:
    c, u, scale = 0.3, 1.0, 2.5
    assert c**scale * u ** (1 - scale) == pytest.approx(0.04930, abs=5e-6)
    assert 1 / (scale / c + (1 - scale) / u) == pytest.approx(0.14634, abs=5e-6)


def test_with_equal_covariances_guidance_is_exact() -> None:
    """The only Gaussian case: the law is N(scale mu_c - (scale - 1) mu_u, c), the tilted one."""
    sde = EDMSDE(t_min=1e-4, t_max=1e5)
    scale, c, mu_c, mu_u = 3.0, 0.4, 1.0, -0.5
    model = guided(sde, c, c, scale, mu_c, mu_u, batch=2)
    x = torch.tensor([[0.0], [1e5]], dtype=torch.float64)
    out = decode(model, x, rtol=1e-10, atol=1e-10)
    mean = scale * mu_c - (scale - 1) * mu_u
    assert float(out[0]) == pytest.approx(mean, abs=1e-4)
    assert float(out[1] - out[0]) ** 2 == pytest.approx(c, rel=1e-5)


def test_autoguidance_leads_away_from_the_weaker_model() -> None:
    good, weak = (Gaussian(VPSDE(), torch.zeros(2).double(), v) for v in (0.5, 2.0))
    x = torch.ones(3, 2, dtype=torch.float64)
    for scale in (0.0, 1.0, 1.5):
        said = AutoGuidance(good, weak, scale)(x, 0.5)
        for form in FORMS:
            a, b = getattr(good(x, 0.5), form), getattr(weak(x, 0.5), form)
            torch.testing.assert_close(getattr(said, form), b + scale * (a - b))
    assert torch.equal(AutoGuidance(good, weak, 1.0)(x, 0.5).x0, good(x, 0.5).x0)
    away = AutoGuidance(good, weak, 3.0, interval=(0.4, 0.6))
    assert torch.equal(away(x, 0.3).x0, good(x, 0.3).x0)
    with pytest.raises(ValueError, match="one process"):
        AutoGuidance(good, Gaussian(EDMSDE(), torch.zeros(2), 1.0), 2.0)
    with Counted(away) as count:
        away(x, 0.5)
    assert count.rows == 6


MATRIX = torch.tensor([[0.5, 0.2], [0.2, 0.8]], dtype=torch.float64)
TILT = torch.tensor([1.5, -0.7], dtype=torch.float64)


@pytest.mark.parametrize("at", ["x_t", "mean"])
@pytest.mark.parametrize("sde", [VPSDE(), EDMSDE(), RectifiedSDE()])
@given(t=st.floats(0.05, 0.95), scale=st.floats(0.0, 4.0))
def test_a_linear_classifier_on_gaussian_data_is_exact(
    at: str, sde, t: float, scale: float
) -> None:
    """p(x0) exp(scale a . x0) is N(m + scale S a, S): its score at every t."""
    prior = Gaussian(sde, torch.tensor([0.3, -1.0]), MATRIX)
    tilted = Gaussian(sde, prior.mean + scale * MATRIX @ TILT, MATRIX)

    def noisy(x, level):  # log E[exp(a . x0) | x_t] up to a constant
        return prior.predict(x, level).x0 @ TILT

    def clean(x0, level):
        return x0 @ TILT

    model = Classifier(prior, noisy if at == "x_t" else clean, scale, at=at)
    x = torch.tensor([[0.4, 1.0], [-2.0, 0.1]], dtype=torch.float64)
    said, exact = model(x, t), tilted(x, t)
    for form in ("score", "x0", "eps"):
        torch.testing.assert_close(getattr(said, form), getattr(exact, form), rtol=1e-7, atol=1e-8)


def test_a_classifier_must_answer_per_sample() -> None:
    model = Classifier(Gaussian(VPSDE(), torch.zeros(2), 1.0), lambda x, t: x.sum())
    with pytest.raises(ValueError, match="one value per sample"):
        model(torch.zeros(3, 2), 0.5)
    with pytest.raises(ValueError, match="at must be"):
        Classifier(model, lambda x, t: x[:, 0], at="start")
    with pytest.raises(ValueError, match="scale"):
        Classifier(model, lambda x, t: x[:, 0], math.nan)


def test_reconstruction_is_the_gradient_through_the_denoiser() -> None:
    prior = GaussianMixture(VPSDE(), torch.ones(2), torch.tensor([[1.0, 0.0], [-1.0, 2.0]]),
                            torch.tensor([0.2, 0.5]))  # fmt: skip
    y, scale, t = torch.tensor([0.5], dtype=torch.float64), 1.7, 0.3
    x = torch.tensor([[0.4, 1.0], [-2.0, 0.1]], dtype=torch.float64, requires_grad=True)

    def measure(x0):
        return x0[:, :1] * x0[:, 1:]

    level = prior.sde.level(t)
    denoised = prior.predict(x, level).x0
    (slope,) = torch.autograd.grad((y - measure(denoised)).square().sum(), x)
    said = Reconstruction(prior, measure, y, scale)(x.detach(), t).x0
    expected = denoised - scale * level.alpha / 2 * slope
    torch.testing.assert_close(said, expected.detach())
    with pytest.raises(ValueError, match="measurement"):
        Reconstruction(prior, measure, torch.zeros(2))(x.detach(), t)
    for bad, error in [
        (torch.tensor([math.nan]), ValueError),
        (torch.tensor([math.inf]), ValueError),
        (torch.tensor([1j]), TypeError),
        ([0.5], TypeError),
    ]:
        with pytest.raises(error, match="measurement y"):
            Reconstruction(prior, measure, bad)


def test_guided_models_have_densities_too() -> None:
    """Products with the Jacobian pass through guidance, gradients inside included."""
    prior = Gaussian(RectifiedSDE(), torch.zeros(2).double(), MATRIX)
    tilted = Gaussian(RectifiedSDE(), MATRIX @ TILT, MATRIX)
    x = torch.tensor([[0.4, 1.0]], dtype=torch.float64)
    model = Classifier(prior, lambda x0, t: x0 @ TILT, at="mean")
    found = log_prob(model, x, rtol=1e-8, atol=1e-8, t_max=0.999,
                     prior=lambda z: tilted.log_prob(z, 0.999))  # fmt: skip
    torch.testing.assert_close(found.value, tilted.log_prob(x), rtol=0, atol=1e-6)
    labelled = ClassifierFree(network(Velocity(), RectifiedSDE(t_max=0.99, t_min=0.01)), 2.0)
    value = log_prob(labelled.given(label=LABEL), X).value
    assert value.shape == (4,)
    assert bool(value.isfinite().all())


def test_clamped_keeps_the_identity_and_shows_infinity() -> None:
    inner = Gaussian(VPSDE(), torch.zeros(2).double(), 4.0)
    x = torch.tensor([[5.0, 0.1], [-0.3, -7.0]], dtype=torch.float64)
    said, level = Clamped(inner, -1.0, 1.0)(x, 0.2), inner.sde.level(0.2)
    torch.testing.assert_close(said.x0, inner(x, 0.2).x0.clamp(-1, 1))
    torch.testing.assert_close(level.alpha * said.x0 + level.sigma * said.eps, x)
    for edited in (Clamped(inner), DynamicThreshold(inner)):
        far = torch.tensor([[math.inf, 0.0], [0.1, 0.2]], dtype=torch.float64)
        x0 = edited.predict(far, level).x0
        assert bool(x0[0, 0].isnan())
        assert bool(x0[1].isfinite().all())

        class Broken(ScoreModel):
            sde = inner.sde

            def predict(self, x, t, **condition):
                return Prediction(self.sde, t, x, x0=x / 0)

        broken = type(edited)(Broken())
        with pytest.raises(DivergenceError):
            Sampler(DDIM(), UniformTime(3)).sample(broken, (2, 2))
    with pytest.raises(ValueError, match="high"):
        Clamped(inner, 1.0, -1.0)


@pytest.mark.parametrize("event", [(), (5,), (1, 4, 4)])
def test_dynamic_thresholds_are_per_sample(event: tuple[int, ...]) -> None:
    inner = Gaussian(VPSDE(), torch.zeros(event).double(), 4.0)
    model = DynamicThreshold(inner, 0.9)
    x = inner.sample(6, 0.2) * torch.tensor([0.1, 1, 2, 4, 8, 16]).reshape(-1, *(1,) * len(event))
    whole, before = model(x, 0.2), inner(x, 0.2).x0
    for i in range(6):
        torch.testing.assert_close(whole.x0[i], model(x[i : i + 1], 0.2).x0[0])
        limit = max(1.0, float(torch.quantile(before[i].abs().flatten(), 0.9)))
        torch.testing.assert_close(whole.x0[i], before[i].clamp(-limit, limit) / limit)
    assert float(whole.x0.abs().max()) <= 1
    torch.testing.assert_close(whole.x0[0], before[0])  # inside the range nothing changes
    half = DynamicThreshold(Gaussian(VPSDE(), torch.zeros(event), 4.0))(x.half(), 0.2).x0
    assert half.dtype == torch.float16


def test_bad_scales_and_conditions_are_refused() -> None:
    model = network(Eps())
    for scale in (-1.0, math.nan, math.inf, torch.tensor([1.0, math.nan]), torch.tensor([-1.0])):
        with pytest.raises(ValueError, match="scale"):
            ClassifierFree(model, scale)
    for scale in ("2", torch.ones(2, 2), torch.tensor([1, 2]), True):
        with pytest.raises(TypeError, match="scale"):
            ClassifierFree(model, scale)
    with pytest.raises(ValueError, match="per sample"):
        ClassifierFree(model, torch.ones(3))(X, 0.4, label=LABEL)
    with pytest.raises(TypeError, match="class-conditional"):
        ClassifierFree(network(Eps(), classes=0), 2.0)
    with pytest.raises(TypeError, match="class-conditional"):
        ClassifierFree(Gaussian(VPSDE(), torch.zeros(2), 1.0), 2.0)
    with pytest.raises(ValueError, match="interval"):
        ClassifierFree(model, 2.0, interval=(0.5, 0.2))
    guided = ClassifierFree(model, 2.0)
    with pytest.raises(TypeError, match="label"):
        guided(X, 0.4)
    for bad in (5, -1):
        with pytest.raises(ValueError, match="labels must lie"):
            guided(X, 0.4, label=torch.full((4,), bad))
    with pytest.raises(TypeError, match="int64"):
        guided(X, 0.4, label=torch.zeros(4))
    with pytest.raises(TypeError, match="unknown"):
        guided(X, 0.4, label=LABEL, text=LABEL)
    with pytest.raises(TypeError, match="guidance needs"):
        Sampler(DDIM(), UniformTime(2)).sample(guided, (2, 3))
    with pytest.raises(ValueError, match="one entry per sample"):
        guided(X, 0.4, label=LABEL[:2])
