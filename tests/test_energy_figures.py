"""The scripts behind the tables of docs/how-to/energies.md: they judge rightly, their laws hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import benchmark

from scoregen.densities import GaussianMixture

F64 = torch.float64


def test_exact_draws_are_judged_exact_and_others_are_not() -> None:
    """40,000 draws: coverage .9, no distance, no error of the weights; shifted ones fail."""
    posteriors = benchmark("figures/posteriors")
    tasks: list[Any] = list(posteriors.tasks(1))
    for task in (tasks[0], tasks[2], tasks[4]):
        make = posteriors.closed if task.matrix is not None else posteriors.gridded
        exact = make(task, task.y[0])
        draws = exact.draw(40_000, 0)
        cover, error, least, w1, weights = posteriors.judged(draws, exact)
        assert cover == pytest.approx(0.9, abs=0.012)
        assert error / least < 1e-3
        assert w1 < 0.03
        assert weights < 0.02
        std = exact.variance.sqrt()
        _, error, least, w1, _ = posteriors.judged(draws + 0.5 * std, exact)
        assert error / least == pytest.approx(0.25, abs=0.05)
        assert w1 == pytest.approx(0.5, abs=0.05)
        assert posteriors.judged(exact.mean + 0.3 * (draws - exact.mean), exact)[0] < 0.7


def test_gridded_and_closed_posteriors_agree() -> None:
    posteriors = benchmark("figures/posteriors")
    task = list(posteriors.tasks(1))[1]
    exact, grid = (make(task, task.y[0]) for make in (posteriors.closed, posteriors.gridded))
    torch.testing.assert_close(exact.mean, grid.mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(exact.variance, grid.variance, rtol=0, atol=1e-6)
    at = torch.linspace(-2, 2, 9, dtype=F64)
    for i in (0, 1):
        torch.testing.assert_close(exact.cdf(i, at), grid.cdf(i, at), rtol=0, atol=0.02)


@pytest.mark.slow
def test_every_method_is_judged() -> None:
    lines = list(benchmark("figures/posteriors").tables(fast=True))
    rows = [line for line in lines if line.startswith("| ") and "method" not in line]
    assert len(rows) > 50
    assert sum("diverges" in row for row in rows) < 10


@pytest.mark.slow
@pytest.mark.parametrize("name", ["product A B", "tempered A, T = 2", "guided A^3 B^-2"])
def test_composed_laws_hold_over_pooled_runs(name: str) -> None:
    """16 runs of 2,000 particles: mode weight, mean and variance within Student's 1e-6 (15 degrees:
    7.6 standard errors), and the standard error of the weight itself small enough to say so."""
    laws = benchmark("figures/composed_laws")
    model: Any = laws.compositions()[name]
    truth = laws.exact(model, 0.0)
    solver = laws.FeynmanKac(weights="densities", kernel=laws.MOVE)
    found, error = laws.sampled(solver, model, 60, 16)
    assert error[0] < 0.008
    for value, spread, exact in zip(found, error, truth, strict=True):
        assert abs(value - exact) < 7.6 * spread
    assert abs(found[0] - truth[0]) < 0.03


def test_exact_numbers_of_the_laws_are_those_of_closed_forms() -> None:
    """The guided law has .2126 on the right; a product of mixtures is a mixture."""
    laws = benchmark("figures/composed_laws")
    compositions = laws.compositions()
    assert laws.exact(compositions["guided A^3 B^-2"], 0.0)[0] == pytest.approx(0.2126, abs=1e-4)
    product: Any = laws.A * laws.B
    assert isinstance(product, GaussianMixture)
    weights, means = product.log_weights.exp(), product.means[:, 0]
    mean = float(weights @ means)
    variance = float(weights @ (product.variances[:, 0] + means.square())) - mean**2
    assert laws.exact(compositions["product A B"], 0.0)[1:] == pytest.approx(
        (mean, variance), abs=1e-5
    )
    summed = laws.exact(compositions["sum .7 A + .3 B"], 0.0)
    parts = [laws.exact(laws.Product(part), 0.0) for part in (laws.A, laws.B)]
    assert summed[1] == pytest.approx(0.7 * parts[0][1] + 0.3 * parts[1][1], abs=1e-9)


def test_energy_training_reads_weights_and_scores_off_the_exact_energy() -> None:
    training = benchmark("figures/energy_training")
    share, error = training.judged(training.DATA)
    assert share == pytest.approx(0.8, abs=1e-4)
    assert error < 1e-5
