"""Clocks: one number per sample, from float and tensor levels alike."""

from __future__ import annotations

import math

import pytest
import torch
from cases import CLOCKS, F64, NOISY, inner_times, name, tensor

from scoregen import SDE, VPSDE, DiscreteVPSDE, HalfLogSNR, Index, LogSigma, RawTime, RectifiedSDE
from scoregen.processes import DiscreteSDE


@pytest.mark.parametrize("sde", NOISY, ids=name)
@pytest.mark.parametrize("clock", CLOCKS, ids=name)
def test_float_and_tensor_levels_tell_the_same_time(clock, sde: SDE) -> None:
    if isinstance(clock, Index) and not isinstance(sde, DiscreteSDE):
        pytest.skip("no knots")
    t = inner_times(sde, 3)
    if isinstance(clock, Index) and not clock.fractional:
        t = tensor(*(sde.knots[i] for i in (0, len(sde.knots) // 2, -1)))
    for dtype in (torch.float32, F64):
        x = torch.zeros(3, 2, 2, dtype=dtype)
        many = clock(sde, sde.level_of(t, x), x)
        assert many.shape == (3,)
        assert many.dtype == (torch.int64 if clock == Index() else dtype)
        for i in range(3):
            one = clock(sde, sde.level(float(t[i])), x[:2])
            assert one.shape == (2,)
            assert one.dtype == many.dtype
            torch.testing.assert_close(one, many[i].expand(2), rtol=1e-5, atol=1e-5)


def test_what_each_clock_says() -> None:
    sde = VPSDE()
    level, x = sde.level(0.4), torch.zeros(2, 1, dtype=F64)
    half = math.log(level.alpha / level.sigma)
    assert HalfLogSNR()(sde, level, x).tolist() == pytest.approx([half] * 2, rel=1e-12)
    assert HalfLogSNR(3.0)(sde, level, x).tolist() == pytest.approx([3 * half] * 2, rel=1e-12)
    assert LogSigma()(sde, level, x).tolist() == pytest.approx([-half / 4] * 2, rel=1e-12)
    assert RawTime()(sde, level, x).tolist() == [0.4, 0.4]
    assert RawTime(1000.0)(sde, level, x).tolist() == [400.0, 400.0]


@pytest.mark.parametrize("steps", [3, 10, 100, 4000])
def test_every_knot_has_its_index_in_both_kinds_of_level(steps: int) -> None:
    sde = DiscreteVPSDE.linear(steps, 1e-4, 2e-3)
    x = torch.zeros(1, 1)
    told = [int(Index()(sde, level, x)) for level in sde.levels(sde.knots)]
    assert told == list(range(steps))
    many = torch.zeros(steps, 1)  # a float32 state: its times are rounded, its labels are not
    labels = Index()(sde, sde.level_of(torch.tensor(sde.knots), many), many)
    assert labels.dtype == torch.int64
    assert labels.tolist() == list(range(steps))


def test_between_knots_the_index_is_refused_or_fractional() -> None:
    sde, x = DiscreteVPSDE.linear(10), torch.zeros(2, 1, dtype=F64)
    with pytest.raises(ValueError, match=r"nearest are 0\.2 and 0\.3"):
        Index()(sde, sde.level(0.25), x)
    told = Index(fractional=True)(sde, sde.level(0.25), x)
    assert told.tolist() == pytest.approx([1.5, 1.5])
    assert Index(fractional=True)(sde, sde.level_of(tensor(0.25), x), x).tolist() == [1.5, 1.5]
    for clock in (Index(), Index(fractional=True)):
        with pytest.raises(ValueError, match="index"):
            clock(sde, sde.level(0.0), x)


def test_clocks_refuse_where_they_have_no_time() -> None:
    x = torch.zeros(2, 1)
    with pytest.raises(TypeError, match="knots"):
        Index()(VPSDE(), VPSDE().level(0.5), x)
    for clock in (HalfLogSNR(), LogSigma()):
        for t in (0.0, 1.0):
            with pytest.raises(ValueError, match="infinite at t"):
                clock(RectifiedSDE(), RectifiedSDE().level(t), x)
