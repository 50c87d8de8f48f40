"""Sums over samples, by loops in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from cases import SHAPES, normal

from scoregen._rows import against, flat, row_finite, row_mean, row_norm, row_rms, row_sum


@pytest.mark.parametrize("event", SHAPES)
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_each_row_is_summed_on_its_own(batch: int, event: tuple[int, ...]) -> None:
    x = normal(batch, *event)
    rows = [row.flatten().tolist() for row in x]
    squares = [math.fsum(v * v for v in row) for row in rows]
    wanted = {
        row_sum: [math.fsum(row) for row in rows],
        row_mean: [math.fsum(row) / len(row) for row in rows],
        row_norm: [math.sqrt(q) for q in squares],
        row_rms: [math.sqrt(q / len(row)) for q, row in zip(squares, rows, strict=True)],
    }
    for function, values in wanted.items():
        got = function(x)
        assert got.shape == (batch,)
        assert got.tolist() == pytest.approx(values, rel=1e-12, abs=1e-12)
    assert flat(x).shape == (batch, max(1, math.prod(event)))


@pytest.mark.parametrize("event", SHAPES)
def test_one_number_a_sample_meets_its_sample_alone(event: tuple[int, ...]) -> None:
    x = normal(3, *event)
    value = torch.tensor([1.0, -2.0, 0.5], dtype=x.dtype)
    product = against(value, x) * x
    assert product.shape == x.shape
    for row, number in enumerate(value.tolist()):
        assert torch.equal(product[row], number * x[row])


def test_a_row_is_finite_only_where_all_of_it_is() -> None:
    x = torch.zeros(4, 2, 2)
    x[1, 0, 1], x[2, 1, 1], x[3, 0, 0] = math.nan, math.inf, -math.inf
    assert row_finite(x).tolist() == [True, False, False, False]
    assert row_finite(torch.zeros(0, 3)).tolist() == []
    assert row_finite(torch.tensor([1.0, math.nan])).tolist() == [True, False]


def test_samples_without_coordinates() -> None:
    x = torch.zeros(2, 0)
    assert row_sum(x).tolist() == [0.0, 0.0]
    assert row_finite(x).tolist() == [True, True]
    assert bool(row_mean(x).isnan().all())
