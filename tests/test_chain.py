"""Chains: betas, knots and the continuous processes they are, with posteriors in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from cases import Silent, gaussian, normal, output_variance, tensor
from hypothesis import given
from hypothesis import strategies as st

from scoregen import (
    DDIM,
    EDMSDE,
    VPSDE,
    Ancestral,
    CosineVPSDE,
    DiscreteVESDE,
    DiscreteVPSDE,
    Eps,
    Index,
    Knots,
    RectifiedSDE,
    Sampler,
    ScoreNetwork,
    Strided,
    SubVPSDE,
    V,
)
from scoregen.processes import DiscreteSDE
from scoregen.solvers.ancestral import posterior


def products(betas: tuple[float, ...]) -> list[float]:
    """log alpha-bar after every knot, by compensated sums of log1p."""
    return [math.fsum(math.log1p(-b) for b in betas[: i + 1]) for i in range(len(betas))]


@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
@pytest.mark.parametrize(
    ("sde", "integral"),
    [
        (VPSDE(), lambda t: 0.1 * t + 9.95 * t * t),
        (VPSDE(0.5, 3.0), lambda t: 0.5 * t + 1.25 * t * t),
        (CosineVPSDE(s=0.0, t_max=0.9), lambda t: -2 * math.log(math.cos(0.45 * math.pi * t))),
    ],
)
def test_exact_betas_are_one_minus_the_decay_over_each_interval(sde, integral, steps) -> None:
    made = DiscreteVPSDE.exact(sde, steps)
    for i, beta in enumerate(made.betas):
        a, b = integral(i / steps), integral((i + 1) / steps)
        assert beta == pytest.approx(1 - math.exp(a - b), rel=1e-9, abs=1e-13)
        assert 2 * math.log(made.level((i + 1) / steps).alpha) == pytest.approx(-b, abs=1e-12)


@pytest.mark.parametrize("steps", [2, 10, 1000])
def test_first_order_betas_sum_to_the_integral_and_miss_by_the_logarithm(steps: int) -> None:
    b0, b1 = (0.1, 20.0) if steps > 20 else (0.1, 0.9)
    made = DiscreteVPSDE.first_order(VPSDE(b0, b1), steps)
    assert math.fsum(made.betas) == pytest.approx((b0 + b1) / 2, rel=1e-13)
    squares = (b0 * b1 + (b1 - b0) ** 2 * (2 * steps - 1) / (6 * (steps - 1))) / steps
    assert math.fsum(b * b for b in made.betas) == pytest.approx(squares, rel=1e-12)
    series = -sum(math.fsum(b**k for b in made.betas) / k for k in range(1, 60))
    assert 2 * math.log(made.level(1.0).alpha) == pytest.approx(series, abs=1e-12)


def test_first_order_table_approaches_the_process_as_one_over_n() -> None:
    gaps = []
    for steps in (1000, 2000):
        made = DiscreteVPSDE.first_order(VPSDE(), steps)
        t = tensor(*made.knots)
        gaps.append(float((made.alpha(t) ** 2 - VPSDE().alpha(t) ** 2).abs().max()))
    assert gaps[0] == pytest.approx(8e-4, rel=0.1)
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.02)


@pytest.mark.parametrize(
    ("steps", "alpha_bar"),
    [
        (50, "0.603"),
        (100, "0.364"),
        (200, "0.132"),
        (500, "6.4e-03"),
        (1000, "4.0e-05"),
        (4000, "2.7e-18"),
    ],
)
def test_the_linear_table_ends_where_its_length_says(steps: int, alpha_bar: str) -> None:
    got = DiscreteVPSDE.linear(steps).level(1.0).alpha ** 2
    assert (f"{got:.3f}" if "e" not in alpha_bar else f"{got:.1e}") == alpha_bar


def test_the_tables_are_the_published_ones() -> None:
    linear = DiscreteVPSDE.linear(1000).betas
    assert (linear[0], linear[-1]) == (1e-4, 0.02)
    assert linear[500] - linear[499] == pytest.approx(0.0199 / 999, rel=1e-10)
    scaled = DiscreteVPSDE.scaled_linear(1000).betas
    assert scaled[0] == pytest.approx(0.00085, rel=1e-12)
    assert scaled[-1] == pytest.approx(0.012, rel=1e-12)
    middle = (0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * 400 / 999) ** 2
    assert scaled[400] == pytest.approx(middle, rel=1e-12)
    cosine = DiscreteVPSDE.cosine(1000)
    assert cosine.betas[-1] == 0.999
    bar = math.cos((0.5 + 0.008) / 1.008 * math.pi / 2) ** 2
    bar /= math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    assert cosine.level(0.5).alpha ** 2 == pytest.approx(bar, rel=1e-12)


@given(betas=st.lists(st.floats(1e-6, 0.999), min_size=1, max_size=12), u=st.floats(0.0, 1.0))
def test_log_alpha_is_the_sum_at_knots_and_linear_between(betas: list[float], u: float) -> None:
    sde = DiscreteVPSDE(tuple(betas))
    table = [0.0, *products(sde.betas)]
    for i in range(len(betas)):
        t = (i + u) / len(betas)
        want = ((1 - u) * table[i] + u * table[i + 1]) / 2
        got = float(sde.log_alpha(tensor(t))[0])
        assert got == pytest.approx(want, rel=1e-6, abs=1e-7 * abs(table[i + 1] - table[i]))
        knot = sde.level((i + 1) / len(betas))
        assert knot.alpha == pytest.approx(math.exp(table[i + 1] / 2), rel=1e-12)
        assert knot.sigma**2 == pytest.approx(-math.expm1(table[i + 1]), rel=1e-12)
    t = tensor(*(0.037 + 0.9 * i / 20 for i in range(20)))
    torch.testing.assert_close(sde.time(sde.lam(t)), t, rtol=1e-6, atol=1e-9)


def test_knots_are_snapped_and_counted_from_zero() -> None:
    for steps in (10, 100, 4000):
        sde = DiscreteVPSDE.linear(steps, 1e-4, 2e-3)
        index = sde.index(tensor(*sde.knots))
        assert index.tolist() == list(range(steps))
    assert DiscreteVPSDE.linear(10).index(tensor(0.0)).tolist() == [-1]
    assert DiscreteVPSDE.linear(4).index(tensor(0.375)).tolist() == [0.5]
    assert DiscreteVPSDE.linear(4).t_min == 0.25


def test_a_table_of_alpha_bar_gives_its_betas_back() -> None:
    betas = (0.1, 0.3, 0.2)
    bars = [math.exp(v) for v in products(betas)]
    assert DiscreteVPSDE.from_alpha_bar(bars).betas == pytest.approx(betas, rel=1e-13)


def test_noise_levels_of_ncsn() -> None:
    sde = DiscreteVESDE((0.1, 0.4, 2.0))
    assert [sde.level(k).sigma for k in sde.knots] == pytest.approx([0.1, 0.4, 2.0], rel=1e-14)
    assert sde.level(0.5).sigma == pytest.approx(math.sqrt(0.1 * 0.4), rel=1e-12)
    assert sde.level(1 / 6).sigma == pytest.approx(0.05, rel=1e-12)
    assert sde.prior_std(1.0) == pytest.approx(2.0, rel=1e-14)
    assert sde.level_at(-math.log(0.1)).t == pytest.approx(1 / 3, rel=1e-12)
    assert sde.level_at(-math.log(0.05)).t == pytest.approx(1 / 6, rel=1e-12)
    assert sde.level_at(-math.log(2.0)).t == pytest.approx(1.0, rel=1e-12)
    made = DiscreteVESDE.geometric(5, 0.01, 1.0)
    assert made.sigmas == pytest.approx([0.01 * 10 ** (i / 2) for i in range(5)], rel=1e-12)
    assert DiscreteVESDE.geometric(1, 0.01, 1.0).sigmas == (1.0,)


class Labels(torch.nn.Module):
    """A network that answers zeros and keeps the labels it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        self.seen.append(label)
        return torch.zeros_like(x)


@pytest.mark.parametrize("steps", [10, 100, 4000])
def test_the_network_is_told_the_index_of_the_table(steps: int) -> None:
    sde, net = DiscreteVPSDE.linear(steps, 1e-4, 2e-3), Labels()
    model = ScoreNetwork(net, sde, Eps(), Index())
    Sampler(Ancestral(), Knots()).run(model, torch.zeros(2, 1), noise=Silent())
    assert all(label.dtype == torch.int64 and label.shape == (2,) for label in net.seen)
    assert [int(label[0]) for label in net.seen] == list(range(steps - 1, -1, -1))


BETAS = (0.02, 0.3, 0.05, 0.4)
CHAIN = DiscreteVPSDE(BETAS)


def conditional(t: float, s: float, x0: float, x: float) -> tuple[float, float]:
    """Mean and variance of x_s given x_t = x and x_0 = x0, by conditioning the joint Gaussian."""
    a, b = CHAIN.level(t), CHAIN.level(s)
    cross = a.alpha / b.alpha * b.sigma**2
    mean = b.alpha * x0 + cross / a.sigma**2 * (x - a.alpha * x0)
    return mean, b.sigma**2 - cross**2 / a.sigma**2


@pytest.mark.parametrize(("t", "s"), [(1.0, 0.75), (1.0, 0.25), (0.75, 0.5), (0.9, 0.3)])
def test_posterior_is_the_conditional_of_the_joint_law(t: float, s: float) -> None:
    c0, c1, small, _ = posterior(CHAIN.level(t), CHAIN.level(s))
    for x0, x in ((1.0, 0.0), (0.0, 1.0), (-0.7, 2.0)):
        mean, variance = conditional(t, s, x0, x)
        assert c0 * x0 + c1 * x == pytest.approx(mean, abs=1e-13)
        assert small == pytest.approx(variance, abs=1e-13)


def test_posterior_is_ho_et_als() -> None:
    bars = [1.0]
    for beta in BETAS:
        bars.append(bars[-1] * (1 - beta))
    for i, beta in enumerate(BETAS):
        bar, before = bars[i + 1], bars[i]
        t = CHAIN.level((i + 1) / 4)
        c0, c1, small, large = posterior(t, CHAIN.level(i / 4))
        assert c0 == pytest.approx(math.sqrt(before) * beta / (1 - bar), rel=1e-12)
        assert c1 == pytest.approx(math.sqrt(1 - beta) * (1 - before) / (1 - bar), abs=1e-13)
        assert small == pytest.approx(beta * (1 - before) / (1 - bar), abs=1e-13)
        assert large == pytest.approx(beta if i else 1 - bar, rel=1e-12)
        # the mean in terms of eps: (x - beta / sqrt(1 - bar) eps) / sqrt(1 - beta)
        x, eps = 0.8, -1.3
        x0 = (x - t.sigma * eps) / t.alpha
        by_eps = (x - beta / math.sqrt(1 - bar) * eps) / math.sqrt(1 - beta)
        assert c0 * x0 + c1 * x == pytest.approx(by_eps, abs=1e-12)


@pytest.mark.parametrize("variance", [0.0, 0.3, 1.0, 4.0])
@pytest.mark.parametrize(("t", "s"), [(1.0, 0.75), (0.75, 0.25)])
def test_exact_reverse_kernel_is_the_mean_posterior_and_marginalises(variance, t, s) -> None:
    a, b = CHAIN.level(t), CHAIN.level(s)
    ct, cs = (lv.alpha**2 * variance + lv.sigma**2 for lv in (a, b))
    r = a.alpha / b.alpha
    gain, left = r * cs / ct, cs - r**2 * cs**2 / ct  # by conditioning (x_s, x_t) with x_0 free
    c0, c1, small, large = posterior(a, b)
    assert c0 * a.alpha * variance / ct + c1 == pytest.approx(gain, abs=1e-12)
    spread = variance * a.sigma**2 / ct
    assert small + c0**2 * spread == pytest.approx(left, abs=1e-12)
    assert gain**2 * ct + left == pytest.approx(cs, abs=1e-12)
    # "large" is exact for unit data and "small" for a point
    assert (large == pytest.approx(left, abs=1e-12)) == (variance == 1.0)
    assert (small == pytest.approx(left, abs=1e-12)) == (variance == 0.0)


def test_posterior_at_the_ends() -> None:
    rectified = RectifiedSDE()
    c0, c1, small, large = posterior(rectified.level(1.0), rectified.level(0.4))
    assert (c0, c1, small, large) == pytest.approx((0.6, 0.0, 0.16, 1.0))
    assert posterior(rectified.level(0.4), rectified.level(0.0))[:3] == (1.0, 0.0, 0.0)


def test_ancestral_large_reproduces_unit_data_and_small_a_point() -> None:
    sampler = Sampler(Ancestral("large"), Knots())
    assert output_variance(sampler, gaussian(CHAIN, 1.0), 1.0) == pytest.approx(
        1 - CHAIN.level(0.25).sigma ** 2, abs=1e-12
    )  # the last move returns the mean of x0, which lacks Var(x0 | x_1)
    point = Sampler(Ancestral("small"), Knots())
    assert output_variance(point, gaussian(CHAIN, 0.0), 1.0) == pytest.approx(0.0, abs=1e-15)


REFUSED = [
    (lambda: DiscreteVPSDE(()), "number of betas"),
    (lambda: DiscreteVPSDE((1.0, 0.1)), r"betas\[0\]"),
    (lambda: DiscreteVPSDE((0.1, 1.1)), r"betas\[1\]"),
    (lambda: DiscreteVPSDE((0.1, 0.0)), r"betas\[1\]"),
    (lambda: DiscreteVPSDE((0.1, -0.2)), r"betas\[1\]"),
    (lambda: DiscreteVPSDE((math.nan,)), r"betas\[0\]"),
    (lambda: DiscreteVPSDE.linear(0), "steps"),
    (lambda: DiscreteVPSDE.from_alpha_bar([0.9, 0.95]), "index 1"),
    (lambda: DiscreteVPSDE.from_alpha_bar([0.9, 0.0, 0.0]), "index 2"),
    (lambda: DiscreteVPSDE.from_alpha_bar([1.0]), "index 0"),
    (lambda: DiscreteVPSDE.exact(SubVPSDE(), 10), "preserve variance"),
    (lambda: DiscreteVPSDE.exact(EDMSDE(), 10), "preserve variance"),
    (lambda: DiscreteVESDE((0.5, 0.4)), r"sigmas\[1\]"),
    (lambda: DiscreteVESDE((0.0, 0.4)), r"sigmas\[0\]"),
    (lambda: DiscreteVESDE.geometric(5, 0.0, 1.0), "sigma_min"),
    (lambda: DiscreteVESDE.geometric(5, 2.0, 1.0), r"sigmas\[1\]"),
]


@pytest.mark.parametrize(("act", "word"), REFUSED, ids=[w for _, w in REFUSED])
def test_wrong_tables_are_refused_by_index(act, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        act()


def test_chains_compare_hash_and_are_equal_by_value() -> None:
    a, b = DiscreteVPSDE.linear(50), DiscreteVPSDE.linear(50)
    assert a == b
    assert hash(a) == hash(b)
    assert a != DiscreteVPSDE.linear(51)
    assert isinstance(a, DiscreteSDE)


ENDS = [(0.3, 1.0), (0.1, 0.2, 0.4, 1.0), (1.0,), (*DiscreteVPSDE.linear(20, 0.01, 0.2).betas, 1.0)]


@pytest.mark.parametrize("betas", ENDS, ids=len)
def test_chains_may_end_without_signal(betas: tuple[float, ...]) -> None:
    sde = DiscreteVPSDE(betas)
    n = len(betas)
    last = sde.level(1.0)
    assert (last.alpha, last.sigma, last.lam) == (0.0, 1.0, -math.inf)
    for i, log in enumerate(products(betas[:-1])):
        assert sde.level((i + 1) / n).alpha == pytest.approx(math.exp(log / 2), rel=1e-12)
    # over the last interval alpha falls linearly
    before = sde.level((n - 1) / n).alpha
    t = tensor(*((n - 1 + u) / n for u in (0.0, 0.25, 0.5, 0.9, 1.0)))
    want = before * tensor(1.0, 0.75, 0.5, 0.1, 0.0)
    torch.testing.assert_close(sde.alpha(t), want, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(sde.sigma(t) ** 2, 1 - want**2)
    inner = tensor(*(0.013 + 0.97 * i / 30 for i in range(30)))
    torch.testing.assert_close(sde.time(sde.lam(inner)), inner, rtol=1e-6, atol=1e-9)
    assert float(sde.time(tensor(-math.inf))) == 1.0
    assert sde.rates_at(1.0) == pytest.approx((-before * n, 0.0))
    late = tensor((n - 0.4) / n, (n - 0.1) / n)
    for closed, scale in zip(sde.rates(late), (sde.alpha, sde.sigma), strict=True):
        slope = (scale(late + 1e-6) - scale(late - 1e-6)) / 2e-6
        torch.testing.assert_close(closed, slope, rtol=1e-6, atol=1e-8)
    assert DiscreteVPSDE.from_alpha_bar([*(math.exp(v) for v in products(betas[:-1])), 0.0])


class ExactV(torch.nn.Module):
    """v of data N(1, variance), which is finite without signal."""

    def __init__(self, sde: DiscreteVPSDE) -> None:
        super().__init__()
        self.sde = sde
        self.variance = tensor(0.05, 0.5, 2.0)

    def forward(self, x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        a = self.sde.alpha((i.double() + 1) / self.sde.steps)[:, None]
        s2 = 1 - a * a
        d, total = x - a, a * a * self.variance + s2
        return a * s2.sqrt() * d / total - s2.sqrt() * (1 + a * self.variance * d / total)


def test_v_networks_start_from_pure_noise_and_eps_networks_are_refused() -> None:
    """DDIM of Lin et al. (2023), 2305.08891, written out on a table that ends at 0."""
    bars = [0.95 - 0.05 * i for i in range(19)] + [0.0]
    sde = DiscreteVPSDE.from_alpha_bar(bars)
    net, x = ExactV(sde), normal(50, 3)
    want = x
    for i in range(19, -1, -1):
        bar, before = bars[i], bars[i - 1] if i else 1.0
        v = net(want, torch.full((50,), i))
        x0 = math.sqrt(bar) * want - math.sqrt(1 - bar) * v
        eps = math.sqrt(bar) * v + math.sqrt(1 - bar) * want
        want = math.sqrt(before) * x0 + math.sqrt(1 - before) * eps
    for stride in (Strided(20), Knots()):
        model = ScoreNetwork(net, sde, V(), Index())
        got = Sampler(DDIM(), stride).run(model, x, noise=Silent())
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    model = ScoreNetwork(net, sde, Eps(), Index())
    with pytest.raises(ValueError, match="zero signal"):
        Sampler(DDIM(), Knots()).run(model, x, noise=Silent())


def test_a_cosine_process_that_reaches_noise_is_a_chain_too() -> None:
    made = DiscreteVPSDE.exact(CosineVPSDE(t_max=1.0), 10)
    assert made.betas[-1] == 1.0
    knots = tensor(*made.knots)
    torch.testing.assert_close(
        made.alpha(knots), CosineVPSDE(t_max=1.0).alpha(knots), atol=1e-12, rtol=0
    )


NAMED = [
    (DiscreteVPSDE.linear(1000), "DiscreteVPSDE.linear(1000)"),
    (DiscreteVPSDE.linear(50, 1e-3, 0.1), "DiscreteVPSDE.linear(50, 0.001, 0.1)"),
    (DiscreteVPSDE.scaled_linear(), "DiscreteVPSDE.scaled_linear(1000)"),
    (DiscreteVPSDE.cosine(100), "DiscreteVPSDE.cosine(100)"),
    (DiscreteVPSDE.first_order(VPSDE(), 500), "DiscreteVPSDE.linear(500, 0.0002, 0.04)"),
    (DiscreteVPSDE((0.5, 0.9)), "DiscreteVPSDE(betas=(0.5, 0.9))"),
    (DiscreteVESDE.geometric(10, 0.01, 5.0), "DiscreteVESDE.geometric(10, 0.01, 5.0)"),
    (DiscreteVESDE.geometric(), "DiscreteVESDE.geometric(232)"),
]


@pytest.mark.parametrize(("sde", "text"), NAMED, ids=[text for _, text in NAMED])
def test_chains_print_the_constructor_that_makes_them(sde: DiscreteSDE, text: str) -> None:
    assert repr(sde) == text
    scope = {"DiscreteVPSDE": DiscreteVPSDE, "DiscreteVESDE": DiscreteVESDE}
    assert eval(text, scope) == sde


def test_other_long_chains_print_shortly_and_unlike_each_other() -> None:
    """Their text cannot be evaluated: a thousand numbers in every error and table serve nobody."""
    a = DiscreteVPSDE.exact(CosineVPSDE(), 1000)
    b = DiscreteVPSDE((*a.betas[:500], a.betas[500] * (1 + 1e-12), *a.betas[501:]))
    assert len(repr(a)) < 120
    assert "1000 betas" in repr(a)
    assert repr(a) != repr(b)
    assert repr(a) == repr(DiscreteVPSDE(a.betas))
    c = DiscreteVESDE(tuple(0.01 * (i + 1) for i in range(100)))
    assert "100 sigmas, 0.01 to 1" in repr(c)
