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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_states_do_not_round_the_time(dtype: torch.dtype) -> None:
    """bfloat16 has 1000 where the clock shows 999, and 936 for 937."""
    sde, x = RectifiedSDE(), torch.zeros(3, 2, dtype=dtype)
    times = tensor(0.999, 0.937, 0.833)
    for clock, want in ((RawTime(1000.0), 1000 * times), (HalfLogSNR(), sde.lam(times))):
        many = clock(sde, sde.level_of(times, x), x)
        assert many.dtype == torch.float32
        torch.testing.assert_close(many, want.float(), rtol=1e-6, atol=0)
        for t, w in zip(times.tolist(), want.tolist(), strict=True):
            one = clock(sde, sde.level(t), x)
            assert one.dtype == torch.float32
            assert one.tolist() == pytest.approx([w] * 3, rel=1e-6)


def test_an_index_may_be_rescaled() -> None:
    """improved-diffusion's 4000 steps with rescale_timesteps: index * 1000 / 4000."""
    sde, x = DiscreteVPSDE.cosine(4000), torch.zeros(1, 2)
    clock = Index(scale=0.25)
    assert float(clock(sde, sde.level(1000 / 4000), x)) == 999 * 1000 / 4000
    assert float(clock(sde, sde.level_of(tensor(0.25), x), x)) == 999 * 1000 / 4000
    assert clock(sde, sde.level(0.25), x).is_floating_point()
    assert Index()(sde, sde.level(0.25), x).dtype == torch.int64
    half = Index(fractional=True, scale=0.25)
    assert float(half(sde, sde.level(1000.5 / 4000), x)) == pytest.approx(999.5 / 4)
    with pytest.raises(ValueError, match="nearest"):
        clock(sde, sde.level(1000.5 / 4000), x)


@pytest.mark.parametrize("kind", [HalfLogSNR, LogSigma, RawTime, lambda s: Index(scale=s)])
@pytest.mark.parametrize("scale", [0.0, math.nan, math.inf])
def test_a_clock_needs_a_scale(kind, scale: float) -> None:
    with pytest.raises(ValueError, match="scale"):
        kind(scale)
