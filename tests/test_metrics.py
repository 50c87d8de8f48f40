"""Metrics against brute force, closed forms and other libraries; their standard errors against
repetition. Seeds are fixed; tolerances are set so that a fresh seed would fail below once in 1e6.
"""

import importlib.machinery
import importlib.util
import json
import math
import pickle
import sys
import types
from importlib.resources import files

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from torch import nn

from scoregen.data.digits import digits
from scoregen.densities import gaussian_mmd2, gaussian_w2
from scoregen.metrics import (
    C2ST,
    KID,
    MMD,
    ClassAccuracy,
    Coverage,
    DebiasedFrechet,
    Density,
    Diversity,
    Frechet,
    FunctionMetric,
    InceptionFeatures,
    MissingModes,
    ModeCovariances,
    ModeMeans,
    ModeWeights,
    MomentError,
    PosteriorCoverage,
    Precision,
    Recall,
    SlicedWasserstein,
    digits_classifier,
    digits_features,
    median_lengthscale,
    title,
)

WEIGHTS = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
MEANS = torch.tensor([[-10.0, 0.0], [10.0, 0.0], [0.0, 15.0]], dtype=torch.float64)
SPREADS = torch.tensor([[[1.0, 0.4], [0.4, 2.0]]], dtype=torch.float64).repeat(3, 1, 1)
MIXTURE = (WEIGHTS, MEANS, SPREADS)

PLAIN = [
    SlicedWasserstein(projections=16),
    SlicedWasserstein(projections=16, order=1),
    MMD(),
    MMD(lengthscale=(0.5, 2.0)),
    Frechet(),
    MomentError.of(torch.zeros(2), torch.eye(2)),
    ModeWeights.of(*MIXTURE),
    MissingModes.of(*MIXTURE),
    ModeMeans.of(*MIXTURE),
    ModeMeans(*ModeMeans.of(*MIXTURE).tables, reduction="worst"),
    ModeCovariances.of(*MIXTURE),
    ClassAccuracy(0, classifier=lambda x: x),
    Diversity(0, features=lambda x: x),
    DebiasedFrechet(),
    KID(),
    Precision(),
    Recall(),
    Density(),
    Coverage(),
    C2ST(folds=2, classifier=KNeighborsClassifier(3)),
    PosteriorCoverage.of(*MIXTURE),
]


DRAWS = ("debiased", "precision", "recall", "density", "coverage", "c2st")


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixture_samples(seed, n, weights=WEIGHTS):
    generator = torch.Generator().manual_seed(seed)
    k = torch.multinomial(weights, n, replacement=True, generator=generator)
    z = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    lower = torch.linalg.cholesky(SPREADS[0])
    return MEANS[k] + z @ lower.T


@pytest.mark.parametrize("metric", PLAIN, ids=lambda m: m.name)
class TestEveryMetric:
    def test_is_a_value(self, metric):
        assert hash(metric) == hash(metric)
        assert metric.name
        assert metric.direction in ("lower", "higher")
        assert metric.biased == (title(metric, 2000) == f"{metric.name}-2k")

    def test_answers_floats_and_leaves_its_input_and_the_global_stream_alone(self, metric):
        x, y = mixture_samples(0, 60), mixture_samples(1, 80)
        before, state = x.clone(), torch.random.get_rng_state()
        first, again = metric(x, y), metric(x, y)
        assert first == again
        assert type(first.value) is float
        assert math.isfinite(first.value)
        assert 0 <= first.stderr < math.inf
        assert torch.equal(x, before)
        assert torch.equal(state, torch.random.get_rng_state())

    def test_does_not_see_the_order_of_rows(self, metric):
        if metric.name.startswith(DRAWS):
            pytest.skip("its halves, groups or folds are rows drawn once")
        x, y = mixture_samples(0, 60), mixture_samples(1, 80)
        direct, turned = metric(x, y), metric(x.flip(0), y.flip(0))
        assert turned.value == pytest.approx(direct.value, abs=1e-10)
        assert turned.stderr == pytest.approx(direct.stderr, abs=1e-10)

    def test_accepts_float32(self, metric):
        x, y = mixture_samples(0, 60).float(), mixture_samples(1, 80).float()
        assert metric(x, y).value == pytest.approx(metric(x.double(), y.double()).value, rel=1e-4)

    def test_refuses_bad_input(self, metric):
        x = mixture_samples(0, 60)
        with pytest.raises(TypeError, match=r"127\.5"):
            metric((x * 10).to(torch.uint8), x)
        with pytest.raises(TypeError, match="reference must be floating"):
            metric(x, x.long())
        with pytest.raises(ValueError, match="n >= 2"):
            metric(x[:1], x)
        with pytest.raises(ValueError, match="one event shape"):
            metric(x[:, :1], x)
        broken = x.clone()
        broken[7, 1] = math.nan
        with pytest.raises(ValueError, match="1 of 60 rows, the first at row 7"):
            metric(broken, x)


def test_title_names_n_where_the_value_depends_on_it():
    assert title(Frechet(), 2000) == "frechet-2k"
    assert title(Frechet(digits_features), 1500) == "frechet(digits_features)-1.5k"
    assert title(Frechet(), 1797) == "frechet-1797"
    assert title(MMD(), 100) == "mmd2"

    def mine(samples, reference):
        return None

    assert title(FunctionMetric(mine, direction="lower", biased=True), 10) == "mine-10"
    with pytest.raises(TypeError, match="the metric mine must declare"):
        title(mine, 10)


def calibration(metric, draw, repeats=300):
    estimates = [metric(*draw(seed)) for seed in range(repeats)]
    values = np.array([e.value for e in estimates])
    claimed = math.sqrt(np.mean([e.stderr**2 for e in estimates]))
    return claimed / values.std(ddof=1)


def shifted(seed):
    return 1.5 * normal(2 * seed, 60, 2) + 1, normal(2 * seed + 1, 90, 2)


def equal(seed):
    return normal(2 * seed, 60, 2), normal(2 * seed + 1, 90, 2)


def skewed(seed):
    x = mixture_samples(seed, 200, torch.tensor([0.3, 0.4, 0.3], dtype=torch.float64))
    return MEANS.mean(0) + 1.2 * (x - MEANS.mean(0)), x


def off_centre(seed):
    x = mixture_samples(seed, 200)
    return x + torch.tensor([0.5, 1.0]), x


def widened(seed):
    x = mixture_samples(seed, 300)
    nearest = torch.cdist(x, MEANS).argmin(1)
    return MEANS[nearest] + 1.5 * (x - MEANS[nearest]), x


def conditional(seed):
    x = normal(seed, 60, 2)
    return x, x


@pytest.mark.parametrize(
    ("metric", "draw"),
    [
        (SlicedWasserstein(projections=8), shifted),
        (SlicedWasserstein(projections=8, order=1), shifted),
        (MMD(lengthscale=1.0), shifted),
        (MMD(lengthscale=(0.7, 2.0)), equal),
        (Frechet(), shifted),
        (MomentError.of(torch.ones(2), torch.eye(2)), shifted),
        (ModeWeights.of(*MIXTURE), skewed),
        (ModeMeans.of(*MIXTURE), off_centre),
        (ModeCovariances.of(*MIXTURE), widened),
        (ClassAccuracy(0, classifier=lambda x: x + torch.tensor([0.8, 0.0])), conditional),
        (Diversity((0,) * 30 + (1,) * 30, features=lambda x: x), conditional),
    ],
    ids=lambda v: getattr(v, "name", None) or v.__name__,
)
def test_standard_error_is_the_spread_over_repetitions(metric, draw):
    assert 0.75 < calibration(metric, draw) < 1.35


@pytest.mark.parametrize(
    "metric",
    [SlicedWasserstein(projections=8), Frechet(), MomentError.of(torch.zeros(2), torch.eye(2))],
    ids=lambda m: m.name,
)
def test_standard_error_stays_of_the_right_size_where_the_truth_is_zero(metric):
    assert 0.5 < calibration(metric, equal, repeats=200) < 2.5


@pytest.mark.parametrize(("n", "m"), [(7, 7), (5, 8), (12, 8), (2, 31)])
def test_sliced_wasserstein_on_a_line_is_exact(n, m):
    x, y = normal(0, n), 2 * normal(1, m) + 0.5
    first = SlicedWasserstein(order=1)(x, y).value
    assert first == pytest.approx(scipy.stats.wasserstein_distance(x, y), abs=1e-12)
    # Every point repeated until both have n m: then sorting pairs them.
    xs, ys = (v.repeat_interleave(k).sort().values for v, k in ((x, m), (y, n)))
    for order in (2, 3):
        expected = ((xs - ys).abs() ** order).mean().item() ** (1 / order)
        assert SlicedWasserstein(order=order)(x, y).value == pytest.approx(expected, abs=1e-12)


def test_sliced_wasserstein_of_gaussian_quantiles_is_the_closed_form():
    def quantiles(n, mean, std):
        u = (np.arange(n) + 0.5) / n
        return torch.from_numpy(scipy.stats.norm(mean, std).ppf(u))

    value = SlicedWasserstein()(quantiles(20000, 1.0, 2.0), quantiles(30000, 0.0, 1.0)).value
    m1, v1, m2, v2 = torch.tensor([[1.0], [4.0], [0.0], [1.0]])
    assert value == pytest.approx(gaussian_w2(m1, v1, m2, v2).item(), rel=1e-3)


def test_sliced_wasserstein_averages_over_the_sphere():
    x = normal(3, 50, 3)
    shift = torch.tensor([1.0, -2.0, 2.0], dtype=torch.float64)
    metric = SlicedWasserstein(projections=4096)
    # Mean of (u . s)^2 over the sphere is |s|^2 / d; its error here is 1.4 %, its root's 0.7 %.
    assert metric(x + shift, x).value == pytest.approx(3 / math.sqrt(3), rel=0.04)
    centred = x - x.mean(0)
    spread = (centred**2).sum().item() / 50 / 3
    assert metric(3 * centred, centred).value == pytest.approx(2 * math.sqrt(spread), rel=0.04)
    assert metric(x.reshape(50, 1, 3) + shift, x.reshape(50, 1, 3)).value == pytest.approx(
        metric(x + shift, x).value
    )


def test_sliced_wasserstein_keeps_its_lines():
    x, y = normal(0, 20, 3), normal(1, 30, 3)
    assert SlicedWasserstein(seed=1)(x, y) == SlicedWasserstein(seed=1)(x, y)
    assert SlicedWasserstein(seed=1)(x, y) != SlicedWasserstein(seed=2)(x, y)
    assert SlicedWasserstein()(x, x) == (0.0, 0.0)


def test_mmd_is_the_u_statistic():
    x, y = normal(0, 5, 2), normal(1, 7, 2) + 1
    expected = 0.0
    for scale in (0.5, 2.0):

        def k(a, b, scale=scale):
            return math.exp(-float(((a - b) ** 2).sum()) / (2 * scale**2))

        expected += np.mean([k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
        expected += np.mean([k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
        expected -= 2 * np.mean([k(a, b) for a in x for b in y])
    assert MMD(lengthscale=(0.5, 2.0))(x, y).value == pytest.approx(expected / 2, abs=1e-12)


def test_mmd_finds_the_closed_form_within_its_error():
    x, y = 1.3 * normal(0, 1500, 2) + 0.6, normal(1, 2000, 2)
    zero, one = torch.zeros(2), torch.ones(2)
    exact = gaussian_mmd2(zero + 0.6, 1.69 * one, zero, one, lengthscale=1.0).item()
    estimate = MMD(lengthscale=1.0)(x, y)
    assert abs(estimate.value - exact) < 5.5 * estimate.stderr
    assert exact > 10 * estimate.stderr, "the test must be able to tell a wrong value"


def test_mmd_is_unbiased_at_small_n():
    values = [
        MMD(lengthscale=1.0)(normal(2 * s, 6, 2), normal(2 * s + 1, 4, 2)).value for s in range(400)
    ]
    assert abs(np.mean(values)) < 5.5 * np.std(values) / math.sqrt(400)


def test_mmd_does_not_depend_on_its_blocks_and_survives_an_offset():
    x, y = normal(0, 3000, 1), normal(1, 2500, 1) + 0.2
    whole = MMD(lengthscale=1.0)(x, y)
    squared = (x - y.T) ** 2
    cross = torch.exp(-squared / 2).mean().item()
    within = [
        (torch.exp(-((v - v.T) ** 2) / 2).sum().item() - len(v)) / (len(v) * (len(v) - 1))
        for v in (x, y)
    ]
    assert whole.value == pytest.approx(sum(within) - 2 * cross, abs=1e-12)
    assert MMD(lengthscale=1.0)(x + 1e6, y + 1e6).value == pytest.approx(whole.value, abs=1e-8)


def test_mmd_error_is_the_jackknifes_where_the_laws_are_far_apart():
    x, y = normal(0, 80, 1), normal(1, 120, 1) + 2
    metric = MMD(lengthscale=1.0)
    variance = 0.0
    for fixed, moving in ((y, x), (x, y)):
        n = len(moving)
        left_out = [metric(torch.cat((moving[:i], moving[i + 1 :])), fixed).value for i in range(n)]
        variance += (n - 1) * np.var(left_out)
    # What the estimate leaves out, the degenerate part, is about a hundredth here.
    assert metric(x, y).stderr == pytest.approx(math.sqrt(variance), rel=0.02)


def test_median_lengthscale_looks_at_the_reference_alone():
    x, y = normal(0, 50, 2), normal(1, 3000, 2)
    assert MMD()(x, y) == MMD(lengthscale=median_lengthscale(y))(x, y)
    # |x - y|^2 / 2 is chi-squared with two degrees of freedom; its median is 2 log 2.
    assert median_lengthscale(y) == pytest.approx(math.sqrt(4 * math.log(2)), rel=0.1)
    with pytest.raises(ValueError, match="give a lengthscale"):
        MMD()(x, torch.zeros(10, 2))


def numpy_frechet(x, y):
    c1, c2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    cross = np.sqrt(np.maximum(np.linalg.eigvals(c1 @ c2).real, 0)).sum()
    shift = ((x.mean(0) - y.mean(0)) ** 2).sum()
    return shift + np.trace(c1) + np.trace(c2) - 2 * cross


@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_frechet_is_numpy_in_float64_even_for_float32_features(offset):
    mix = normal(5, 6, 6)
    x, y = (normal(0, 200, 6) @ mix + offset).float(), (normal(1, 300, 6) + 1 + offset).float()
    expected = numpy_frechet(x.double().numpy(), y.double().numpy())
    assert Frechet()(x, y).value == pytest.approx(expected, abs=1e-6)
    assert Frechet(lambda v: v[:, :, None])(x, y).value == pytest.approx(expected, abs=1e-6)
    assert Frechet()(x, x).value < 1e-6


def test_frechet_of_singular_fits_is_finite_and_warns():
    x, y = normal(0, 8, 12), normal(1, 10, 12) + 1
    with pytest.warns(UserWarning, match="for 12 features give a singular") as caught:
        estimate = Frechet()(x, y)
    assert sorted(str(w.message).split(" for")[0] for w in caught) == [
        "10 reference points",
        "8 samples",
    ]
    assert estimate.value == pytest.approx(numpy_frechet(x.numpy(), y.numpy()), rel=1e-5)
    assert math.isfinite(estimate.stderr)
    with pytest.warns(UserWarning, match="singular"):
        assert Frechet()(x, x).value < 1e-6
    flat = torch.zeros(50, 3)
    assert Frechet()(flat, flat) == (0.0, 0.0)


def test_frechet_refuses_features_that_lose_rows():
    x = normal(0, 20, 2)
    with pytest.raises(ValueError, match="features must map"):
        Frechet(lambda v: v.sum())(x, x)
    with pytest.raises(ValueError, match="features of the reference must be finite"):
        Frechet(lambda v: v / 0)(x, x)


def test_moment_error_is_the_distance_of_the_fit():
    mean, covariance = torch.tensor([1.0, 2.0]), torch.tensor([[2.0, 0.5], [0.5, 1.0]])
    x = normal(0, 100, 2)
    expected = gaussian_w2(x.mean(0), torch.cov(x.T), mean, covariance).item()
    assert MomentError.of(mean, covariance)(x, x).value == pytest.approx(expected, rel=1e-12)
    variances = MomentError.of(mean, torch.tensor([2.0, 1.0]))
    assert variances == MomentError.of(mean, torch.diag(torch.tensor([2.0, 1.0])))
    with pytest.raises(ValueError, match="2 numbers per event"):
        variances(x[:, :1], x[:, :1])
    with pytest.raises(ValueError, match="rows of 2"):
        MomentError((0.0, 0.0), ((1.0,),))


def constructed(counts, shift=0.0, scale=1.0):
    """Each mode filled with points whose mean and covariance are exactly the mode's."""
    rows = []
    for mean, covariance, count in zip(MEANS, SPREADS, counts, strict=True):
        z = normal(count, count, 2)
        z = z - z.mean(0)
        z = torch.linalg.solve_triangular(
            torch.linalg.cholesky(z.T @ z / (count - 1)), z.T, upper=False
        ).T
        root = torch.linalg.cholesky(covariance)
        rows.append(mean + (scale * z + shift) @ root.T)
    return torch.cat(rows)


def test_mode_metrics_read_constructed_errors_exactly():
    perfect = constructed((20, 30, 50))
    for metric in (ModeWeights, MissingModes, ModeMeans, ModeCovariances):
        assert metric.of(*MIXTURE)(perfect, perfect).value == pytest.approx(0, abs=1e-12)
    moved = constructed((20, 30, 50), shift=0.3)
    for reduction in ("mean", "worst"):
        means = ModeMeans(*ModeMeans.of(*MIXTURE).tables, reduction=reduction)
        assert means(moved, moved).value == pytest.approx(0.3, abs=1e-12)
    wide = constructed((20, 30, 50), scale=1.2)
    assert ModeCovariances.of(*MIXTURE)(wide, wide).value == pytest.approx(0.44, abs=1e-12)
    uneven = constructed((50, 30, 20))
    assert ModeWeights.of(*MIXTURE)(uneven, uneven).value == pytest.approx(0.3, abs=1e-12)


def test_worst_mode_is_not_the_mean_mode():
    x = constructed((20, 30, 50))
    x[:20] += torch.linalg.cholesky(SPREADS[0]) @ torch.tensor([0.6, 0.6], dtype=torch.float64)
    tables = ModeMeans.of(*MIXTURE).tables
    assert ModeMeans(*tables, reduction="worst")(x, x).value == pytest.approx(0.6, abs=1e-12)
    assert ModeMeans(*tables, reduction="mean")(x, x).value == pytest.approx(0.2, abs=1e-12)


def test_a_missing_mode_is_counted_and_has_no_moments():
    x = constructed((20, 30, 50))[20:]
    assert MissingModes.of(*MIXTURE)(x, x).value == 1
    assert ModeWeights.of(*MIXTURE)(x, x).value == pytest.approx(0.2)
    assert ModeMeans.of(*MIXTURE)(x, x).value == math.inf
    assert ModeCovariances.of(*MIXTURE)(x, x).value == math.inf


def test_overlapping_modes_find_no_error_in_perfect_samples():
    means = torch.tensor([[-0.7], [0.7]], dtype=torch.float64)
    k = torch.arange(20000) % 2
    x = means[k] + normal(0, 20000, 1)
    truth = (torch.tensor([0.5, 0.5]), means, torch.ones(2, 1))
    # A hard choice of mode would be off by 0.47 here; sharing leaves an error of about 0.01.
    assert ModeMeans.of(*truth)(x, x).value < 0.06
    assert ModeCovariances.of(*truth)(x, x).value < 0.12


def test_overlapping_modes_of_unlike_size_and_width_find_no_error_either():
    means = torch.tensor([[-0.7], [0.7]], dtype=torch.float64)
    first = (torch.arange(20000) % 5 == 0)[:, None]
    z = normal(0, 20000, 1)
    x = torch.where(first, means[0] + 0.4 * z, means[1] + z)
    truth = (torch.tensor([0.2, 0.8]), means, torch.tensor([0.16, 1.0]))
    assert ModeWeights.of(*truth)(x, x).value < 0.03
    assert ModeMeans.of(*truth)(x, x).value < 0.06
    assert ModeCovariances.of(*truth)(x, x).value < 0.12


def test_mode_tables_are_checked():
    tables = ModeWeights.of(*MIXTURE).tables
    with pytest.raises(ValueError, match="sum to 1"):
        ModeWeights((0.2, 0.3, 0.3), *tables[1:])
    with pytest.raises(ValueError, match="one weight, mean and covariance"):
        ModeWeights((0.5, 0.5), *tables[1:])
    with pytest.raises(ValueError, match="positive definite"):
        ModeWeights.of(WEIGHTS, MEANS, 0 * SPREADS)
    with pytest.raises(ValueError, match="2 numbers per event"):
        ModeWeights.of(*MIXTURE)(normal(0, 9, 3), normal(0, 9, 3))
    with pytest.raises(ValueError, match="'best'"):
        ModeMeans(*tables, reduction="best")
    with pytest.raises(ValueError, match="fraction"):
        MissingModes(*tables, fraction=0.0)
    assert ModeWeights.of(WEIGHTS, MEANS, torch.ones(3)) == ModeWeights.of(
        WEIGHTS, MEANS, torch.ones(3, 2)
    )


def test_bundled_classifier_reads_held_out_digits():
    test = digits("test")
    right = (digits_classifier()(test.x).argmax(1) == test.label).double().mean().item()
    assert right >= 0.97
    raw = files("scoregen.metrics").joinpath("digits_classifier.safetensors").read_bytes()
    assert len(raw) < 150_000
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert float(header["__metadata__"]["held-out accuracy"]) == pytest.approx(right, abs=1e-3)
    accuracy = ClassAccuracy(tuple(test.label.tolist()))(test.x, test.x)
    assert accuracy.value == pytest.approx(right)
    assert 0 < accuracy.stderr < 0.02


def test_digit_features_rank_what_looks_worse_as_worse():
    train, test = digits("train").x, digits("test").x
    metric = Frechet(digits_features)
    noise = normal(0, *test.shape).float()
    values = [metric(test + s * noise, train).value for s in (0.0, 0.3, 0.6, 1.2)]
    assert values == sorted(values)
    assert values[3] > 10 * values[0]


def test_digit_features_are_smooth_and_alone():
    x = digits("test").x[:40]
    features = digits_features(x)
    assert features.shape == (40, 32)
    torch.testing.assert_close(digits_features(x[3:5]), features[3:5], rtol=1e-5, atol=1e-5)
    nudged = digits_features(x + 1e-3 * normal(0, *x.shape).float())
    assert ((nudged - features).norm(dim=1) < 0.01 * features.norm(dim=1)).all()
    assert not features.requires_grad


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(3, 8, 8), ValueError, r"\(n, 1, 8, 8\)"),
        (torch.rand(3, 1, 8, 8), ValueError, "x / 8 - 1"),
        (torch.zeros(3, 1, 8, 8, dtype=torch.uint8), TypeError, "floating"),
        (torch.full((3, 1, 8, 8), math.nan), ValueError, "finite"),
    ],
)
def test_digit_features_refuse_other_images(x, error, message):
    with pytest.raises(error, match=message):
        digits_features(x)


def test_accuracy_and_diversity_refuse_labels_that_do_not_fit():
    x = normal(0, 4, 2)
    with pytest.raises(ValueError, match="got 3 for 4"):
        ClassAccuracy((0, 1, 1), classifier=lambda v: v)(x, x)
    with pytest.raises(ValueError, match="more than 5 classes"):
        ClassAccuracy(5, classifier=lambda v: v)(x, x)
    with pytest.raises(ValueError, match="at least 0"):
        ClassAccuracy(-1)
    with pytest.raises(ValueError, match="at least three"):
        Diversity((0, 0, 0, 1), features=lambda v: v)(x, x)


def test_perfect_accuracy_is_not_certainty():
    x = torch.eye(2).repeat(5, 1)
    estimate = ClassAccuracy((0, 1) * 5, classifier=lambda v: v)(x, x)
    assert estimate == (1.0, pytest.approx(math.sqrt(11 / 12 * (1 / 12) / 10)))


def test_diversity_is_the_mean_distance_of_pairs_within_classes():
    x = normal(0, 9, 2)
    labels = (0, 1, 0, 1, 1, 0, 1, 0, 1)
    means = []
    for k in (0, 1):
        own = [row for row, label in zip(x, labels, strict=True) if label == k]
        means.append(np.mean([float((a - b).norm()) for a in own for b in own if a is not b]))
    value = Diversity(labels, features=lambda v: v)(x, x).value
    assert value == pytest.approx(np.mean(means), rel=1e-12)


@pytest.mark.peers
def test_sliced_wasserstein_agrees_with_pot():
    ot = pytest.importorskip("ot")
    x, y = normal(0, 60, 3), normal(1, 80, 3) + 1
    lines = SlicedWasserstein(projections=20)._directions(3)
    expected = ot.sliced_wasserstein_distance(x.numpy(), y.numpy(), projections=lines.T.numpy())
    value = SlicedWasserstein(projections=20)(x, y).value
    assert value == pytest.approx(float(expected), rel=1e-9)


# Standard errors where the laws agree, and influences


@pytest.mark.parametrize("metric", [ModeWeights, ModeMeans, ModeCovariances])
def test_mode_errors_where_the_laws_agree(metric):
    made = metric.of(*MIXTURE)

    def draw(seed):
        x = mixture_samples(seed, 300)
        return x, x

    # weights sum to 1, which the folding of each alone does not know: 1.3 there
    assert 0.85 < calibration(made, draw, repeats=200) < 1.4


def offset_scale(x):
    return 1.5 * x + 1


@pytest.mark.parametrize(
    "metric",
    [
        SlicedWasserstein(projections=8),
        MMD(lengthscale=1.0),
        KID(),
        Frechet(),
        DebiasedFrechet(),
        MomentError.of(torch.zeros(2), torch.eye(2)),
        pytest.param(Precision(), marks=pytest.mark.slow),
        pytest.param(Density(), marks=pytest.mark.slow),
        ClassAccuracy(0, classifier=lambda x: x),
        Diversity(0, features=lambda x: x),
    ],
    ids=lambda m: m.name,
)
def test_influence_predicts_the_spread_over_samples(metric):
    """Given the reference, sd(influence) / sqrt(n) is the spread of the value."""
    measure = metric.against(normal(10**6, 200, 2))
    found = [measure(offset_scale(normal(seed, 100, 2))) for seed in range(150)]
    values = np.array([m.estimate.value for m in found])
    claimed = math.sqrt(np.mean([float(m.influence.var()) / 100 for m in found]))
    # the ratio of a spread over 150 has a standard deviation of 6 %
    assert 0.7 < claimed / values.std(ddof=1) < 1.4


@pytest.mark.slow
def test_coverage_knows_which_samples_it_hangs_on():
    measure = Coverage().against(normal(10**6, 300, 2))
    found = [measure(0.6 * normal(seed, 60, 2)) for seed in range(150)]
    values = np.array([m.estimate.value for m in found])
    claimed = math.sqrt(np.mean([float(m.influence.var()) / 60 for m in found]))
    # losing a sample costs less than gaining one brings: the jackknife is on the large side
    assert 0.7 < claimed / values.std(ddof=1) < 1.8


def test_paired_influence_against_the_closed_form():
    """Two maps of common noise: the difference of Frechet distances to an exact reference."""
    a, b, n = 1.2, 1.25, 400
    y = normal(10**6, 200, 1)
    measure = Frechet().against((y - y.mean()) / y.std())  # its moments are exact
    differences, claimed, single = [], [], []
    for seed in range(200):
        z = normal(seed, n, 1)
        one, other = measure(a * z), measure(b * z)
        differences.append(one.estimate.value - other.estimate.value)
        claimed.append(float((one.influence - other.influence).var()) / n)
        single.append(one.estimate.stderr)
    # with m, s the mean and standard deviation of z: FD_a - FD_b = (a^2 - b^2) (m^2 + s^2)
    # - 2 (a - b) s, and s has the standard error 1 / sqrt(2 n)
    slope = 2 * (a**2 - b**2) - 2 * (a - b)
    exact = abs(slope) / math.sqrt(2 * n)
    assert math.sqrt(np.mean(claimed)) == pytest.approx(exact, rel=0.1)
    assert np.std(differences, ddof=1) == pytest.approx(exact, rel=0.25)
    assert np.mean(single) > 2 * exact, "single errors must be wider, or pairing shows nothing"


def test_debiased_frechet_removes_the_bias_that_is_known():
    """E FD = FD + c (1 / n + 1 / m) with c = l d (d + 5) / 4 for equal laws l I, both sampled."""
    d, n, m, repeats = 2, 60, 80, 400
    pairs = [(normal(2 * s, n, d), normal(2 * s + 1, m, d)) for s in range(repeats)]
    plain, debiased = (
        np.array([metric(x, y).value for x, y in pairs])
        for metric in (Frechet(), DebiasedFrechet())
    )
    bias = d * (d + 5) / 4 * (1 / n + 1 / m)
    assert plain.mean() == pytest.approx(bias, abs=5.5 * plain.std() / 20)
    assert plain.mean() > 10 * plain.std() / 20, "the test must see the bias"
    assert abs(debiased.mean()) < 5.5 * debiased.std() / 20  # what is left is O(1 / n^2)
    assert abs(debiased.mean()) < bias / 4
    with pytest.raises(ValueError, match="at least four"):
        DebiasedFrechet()(normal(0, 3, 1), normal(0, 9, 1))


# New metrics against implementations of their own


def test_kid_is_the_u_statistic():
    x, y = normal(0, 5, 3), normal(1, 7, 3) + 1

    def k(a, b):
        return (float(a @ b) / 3 + 1) ** 3

    expected = np.mean([k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    expected += np.mean([k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    expected -= 2 * np.mean([k(a, b) for a in x for b in y])
    assert KID()(x, y).value == pytest.approx(expected, abs=1e-10)
    assert KID(lambda v: v[:, None])(x, y).value == pytest.approx(expected, abs=1e-10)


def longhand(x, y, k):
    """Precision, recall, density and coverage by scikit-learn's neighbours, point by point."""
    x, y = x.numpy(), y.numpy()
    rx = NearestNeighbors(n_neighbors=k + 1).fit(x).kneighbors(x)[0][:, -1]
    ry = NearestNeighbors(n_neighbors=k + 1).fit(y).kneighbors(y)[0][:, -1]
    apart = np.linalg.norm(x[:, None] - y[None], axis=2)
    return {
        Precision: np.mean([(apart[j] <= ry).any() for j in range(len(x))]),
        Recall: np.mean([(apart[:, i] <= rx).any() for i in range(len(y))]),
        Density: np.mean([(apart[j] < ry).sum() / k for j in range(len(x))]),
        Coverage: np.mean([(apart[:, i] < ry[i]).any() for i in range(len(y))]),
    }


@pytest.mark.parametrize("k", [1, 3, 5])
def test_neighbour_metrics_agree_with_longhand(k):
    x, y = 0.7 * normal(0, 60, 2) + 0.5, normal(1, 80, 2)
    for metric, expected in longhand(x, y, k).items():
        assert metric(neighbours=k)(x, y).value == pytest.approx(expected, abs=1e-12), metric
        assert 0 < expected < 1.5


@pytest.mark.slow
@pytest.mark.parametrize("metric", [Precision(), Recall(), Density(), Coverage()])
def test_neighbour_errors_are_of_the_size_of_the_spread(metric):
    def draw(seed):
        return 0.8 * normal(2 * seed, 150, 2) + 0.4, normal(2 * seed + 1, 150, 2)

    # measured 0.86 to 1.17; the spread of a ratio of 200 repeats is 5 %
    assert 0.75 < calibration(metric, draw, repeats=200) < 1.4


def test_neighbour_metrics_say_what_they_need():
    with pytest.raises(ValueError, match="at least 26 samples"):
        Precision()(normal(0, 20, 2), normal(1, 50, 2))
    with pytest.raises(ValueError, match="neighbours must be at least 1"):
        Recall(neighbours=0)


def test_c2st_is_the_accuracy_of_the_best_rule():
    """Two Gaussians 2 apart: the best rule is right with probability Phi(1)."""
    x, y = normal(0, 600, 1) + 2, normal(1, 900, 1)
    estimate = C2ST(classifier=LogisticRegression())(x, y)
    assert estimate.value == pytest.approx(scipy.stats.norm.cdf(1), abs=5 * estimate.stderr)
    assert 0.005 < estimate.stderr < 0.02
    assert C2ST(classifier=LogisticRegression())(x, y) == estimate


def test_c2st_of_equal_laws_is_a_half_whatever_the_numbers():
    values = [
        C2ST(classifier=KNeighborsClassifier(9))(normal(2 * s, 60, 2), normal(2 * s + 1, 120, 2))
        for s in range(40)
    ]
    mean = np.mean([v.value for v in values])
    spread = np.std([v.value for v in values], ddof=1)
    # nearest neighbours favour the larger class in both shares, which balance
    assert mean == pytest.approx(0.5, abs=5.5 * spread / math.sqrt(40))
    assert 0.5 < math.sqrt(np.mean([v.stderr**2 for v in values])) / spread < 1.6


@pytest.mark.slow
def test_c2st_with_its_own_classifier():
    x, y = normal(0, 500, 2) + 1, normal(1, 500, 2)
    best = scipy.stats.norm.cdf(math.sqrt(2) / 2)
    assert C2ST()(x, y).value == pytest.approx(best, abs=0.06)
    assert C2ST()(x - 1, y).value == pytest.approx(0.5, abs=0.06)


class Dropping(nn.Module):
    """Features that are noise in training mode."""

    def __init__(self):
        super().__init__()
        self.drop, self.norm = nn.Dropout(0.9), nn.BatchNorm1d(2)

    def forward(self, x):
        return self.drop(self.norm(x.float()))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda net: net,
        lambda net: net.forward,
        lambda net: lambda x: net(x),
        lambda net: [net][0].__call__,
    ],
    ids=["module", "method", "closure", "call"],
)
@pytest.mark.parametrize("metric", [Frechet, KID, Precision])
def test_feature_networks_are_in_evaluation_mode(metric, wrap):
    with torch.random.fork_rng():
        net = Dropping().train()
        x, y = normal(0, 60, 2), normal(1, 80, 2) + 1
        before = {k: v.clone() for k, v in net.state_dict().items()}
        value = metric(wrap(net))(x, y).value
        assert net.training
        assert net.drop.training
        for key, kept in net.state_dict().items():
            assert torch.equal(kept, before[key]), key
        net.eval()
        assert metric(net.forward)(x, y).value == pytest.approx(value)


def test_features_see_a_part_of_the_rows_at_a_time():
    seen = []

    def features(x):
        seen.append(len(x))
        return x

    KID(features)(normal(0, 3000, 1), normal(1, 10, 1))
    assert max(seen) <= 2048
    assert sum(seen) == 3010


# Posterior coverage


@pytest.mark.parametrize("width", [0.6, 1.0, 1.7])
def test_posterior_coverage_of_a_gaussian_is_the_closed_form(width):
    """R_c is |x| < z_c; samples of another width put 2 Phi(z_c / width) - 1 into it."""
    law = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0)
    metric = PosteriorCoverage.of(torch.ones(1), torch.zeros(1, 1), torch.ones(1, 1))
    x = width * normal(3, 20_000, 1)
    shares = metric.shares(x)
    exact = []
    for c, share in shares.items():
        z = law.icdf(torch.tensor((1 + c) / 2, dtype=torch.float64))
        exact.append(float(2 * law.cdf(z / width) - 1))
        assert share == pytest.approx(exact[-1], abs=5 / math.sqrt(20_000) / 2 + 5 / 512)
    wanted = float(np.mean(np.abs(np.array(exact) - np.array(list(shares)))))
    assert metric(x, x).value == pytest.approx(wanted, abs=0.01)


def test_posterior_coverage_sees_overconfidence_in_every_mode():
    metric = PosteriorCoverage.of(*MIXTURE)
    x = mixture_samples(0, 2000)
    nearest = torch.cdist(x, MEANS).argmin(1)
    tight = MEANS[nearest] + 0.7 * (x - MEANS[nearest])
    value, stderr = metric(x, x)
    assert value < 0.03
    assert metric(tight, x).value > value + 10 * stderr
    assert metric.shares(tight)[0.5] > 0.6


@pytest.mark.parametrize("width", [1.0, 1.3])
def test_posterior_coverage_has_calibrated_errors(width):
    metric = PosteriorCoverage.of(torch.ones(1), torch.zeros(1, 1), torch.ones(1, 1))
    measure = metric.against(torch.zeros(2, 1))
    found = [measure(width * normal(seed, 200, 1)).estimate for seed in range(200)]
    claimed = math.sqrt(np.mean([e.stderr**2 for e in found]))
    # the ratio of a spread over 200 has a standard deviation of 5 %
    assert 0.7 < claimed / np.std([e.value for e in found], ddof=1) < 1.5


# Inception features


class Extractor(nn.Module):
    """Signature and checks of torch-fidelity's extractor, and a network that fits in a test."""

    def __init__(self, name, features_list, feature_extractor_weights_path=None):
        super().__init__()
        self.linear = nn.Linear(3, 2048)
        state = torch.load(feature_extractor_weights_path, weights_only=False)
        self.load_state_dict(state)

    def forward(self, x):
        assert x.dtype == torch.uint8
        assert x.shape[1] == 3
        return (self.linear(x.float().mean((2, 3))),)


@pytest.fixture
def inception(monkeypatch, tmp_path):
    package = types.ModuleType("torch_fidelity")
    package.__spec__ = importlib.machinery.ModuleSpec("torch_fidelity", None)
    module = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = Extractor
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    path = tmp_path / "weights.pth"
    weight = torch.zeros(2048, 3)
    weight[:3] = torch.eye(3)
    torch.save({"linear.weight": weight, "linear.bias": torch.zeros(2048)}, path)
    return path


def test_inception_features_are_of_256_levels(inception):
    features = InceptionFeatures(inception)
    x = torch.tensor([-1.0, 0.0, 0.501, 9.0]).reshape(4, 1, 1, 1).expand(-1, 1, 4, 4)
    out = features(x)
    assert out.shape == (4, 2048)
    assert out[:, :3].tolist() == [[v] * 3 for v in (0.0, 128.0, 191.0, 255.0)]
    assert InceptionFeatures(inception, data_range=(0, 1))(x[:3])[:, 0].tolist() == [0, 0, 128]
    again = pickle.loads(pickle.dumps(features))
    assert torch.equal(again(x), out)
    assert len(pickle.dumps(features)) < 500
    assert Frechet(features).name == "frechet(InceptionFeatures)"
    with pytest.raises(ValueError, match="shape"):
        features(torch.zeros(2, 4, 8, 8))


def test_inception_is_refused_before_any_work(inception, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no Inception weights at"):
        InceptionFeatures(tmp_path / "nowhere.pth")
    bad = tmp_path / "bad.pth"
    torch.save({"other": torch.zeros(1)}, bad)
    with pytest.raises(ValueError, match="other weights than Inception's"):
        InceptionFeatures(bad)

    bad.write_bytes(pickle.dumps(print, protocol=2))  # a pickle that names a function
    with pytest.raises(pickle.UnpicklingError):
        InceptionFeatures(bad)
    with pytest.raises(ValueError, match="black below"):
        InceptionFeatures(inception, data_range=(1.0, 0.0))
    monkeypatch.delitem(sys.modules, "torch_fidelity")
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "torch_fidelity" else real(n, *a)
    )
    with pytest.raises(ImportError, match="pip install torch-fidelity"):
        InceptionFeatures(inception)
