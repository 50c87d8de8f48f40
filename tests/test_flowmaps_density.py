"""Inversion and likelihood of flow maps: closed forms of Gaussian maps, and a trained one."""

from __future__ import annotations

import pytest
import torch
from cases import F64, normal, tensor
from torch import Tensor

import scoregen as sg
from scoregen import EDMSDE, MLP, VESDE, VPSDE, RectifiedSDE, Reversed, Sampler, Times, V
from scoregen.flowmaps import (
    AngleSpan,
    ConsistencyModel,
    Draw,
    FlowMap,
    GaussianFlowMap,
    GrowingPairs,
    Jump,
    Lagrangian,
    Pairs,
    Shortcut,
    Trajectories,
    from_score_network,
    log_prob,
    trajectories,
)
from scoregen.noise import SampleNoise

SDES = [VPSDE(), EDMSDE(), VESDE(), RectifiedSDE()]
each_sde = pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
COVARIANCE = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=F64)


def exact(sde: sg.SDE) -> GaussianFlowMap:
    return GaussianFlowMap(sde, tensor(0.4, -1.0), COVARIANCE)


@each_sde
def test_the_density_of_the_exact_map_is_the_data_s(sde: sg.SDE) -> None:
    """With the exact law at the end; with N(0, prior_std^2) it is that of an affine image of it."""
    model, x = exact(sde), normal(6, 2)
    low, high = sde.level(0.01 * sde.t_max), sde.level(sde.t_max)
    for middle in ((), (0.5 * sde.t_max,)):
        found = log_prob(
            model, x, times=(low.t, *middle, high.t), prior=lambda z: model.log_prob(z, high.t)
        )
        torch.testing.assert_close(found.value, model.log_prob(x, low.t), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found.latent, model.flow(x, low.t, high.t), rtol=1e-9, atol=1e-9)
        assert float(found.gap.max()) < 1e-9
    # z = A x + b, A from the two covariances: x ~ N(-A^-1 b, s^2 (A^T A)^-1) for z ~ N(0, s^2)
    mean = tensor(0.4, -1.0)
    roots = []
    for level in (low, high):
        total = level.alpha**2 * COVARIANCE + level.sigma**2 * torch.eye(2, dtype=F64)
        values, vectors = torch.linalg.eigh(total)
        roots.append(vectors @ torch.diag(values.sqrt()) @ vectors.T)
    gain = roots[1] @ torch.linalg.inv(roots[0])
    back = torch.linalg.inv(gain)
    centre = low.alpha * mean - back @ (high.alpha * mean)
    law = torch.distributions.MultivariateNormal(centre, sde.prior_std(high.t) ** 2 * back @ back.T)
    found = log_prob(model, x, times=(low.t, high.t))
    torch.testing.assert_close(found.value, law.log_prob(x), rtol=1e-9, atol=1e-9)


def test_jumps_both_ways_are_inverse_and_reach_the_latent() -> None:
    model, x = exact(VPSDE()), normal(5, 2)
    up = Sampler(Jump(), Reversed(Times(1.0, 0.4, 0.01)))
    latent = up.run(model, x, noise=SampleNoise(0))
    torch.testing.assert_close(latent, model.flow(x, 0.01, 1.0), rtol=1e-10, atol=1e-10)
    back = Sampler(Jump(), Times(1.0, 0.01)).run(model, latent, noise=SampleNoise(0))
    torch.testing.assert_close(back, x, rtol=1e-10, atol=1e-10)


def both_ways(steps: int) -> tuple[sg.GaussianMixture, FlowMap]:
    teacher = sg.GaussianMixture(
        VPSDE(), tensor(0.5, 0.5), torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), tensor(0.1, 0.1)
    )
    data = trajectories(teacher, 1024, moves=8, progress=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MLP(event=(2,), hidden=32, second_clock=True)
    model = FlowMap(net, VPSDE(), V(), span=AngleSpan(inverts=True))
    last = None
    for step in sg.fit(
        model, data, Trajectories((2,), inverts=0.5), steps=steps, batch=128, lr=3e-3,
        ema_decay=0.98, progress=False,
    ):  # fmt: skip
        last = step
    assert last is not None
    return teacher, last.ema


@pytest.mark.slow
def test_a_trained_map_runs_both_ways_and_states_its_gap() -> None:
    teacher, model = both_ways(300)
    x = teacher.draw(200, torch.Generator().manual_seed(3)).float()
    found = log_prob(model, x)
    truth = teacher.log_prob(x.double(), 1e-3)
    assert float((found.value.double() - truth).abs().median()) < 0.5
    spread = float(x.std())
    assert float(found.gap.median()) < 0.2 * spread
    start = Sampler(sg.DDIM(), Reversed(sg.UniformLam(60))).run(teacher, x, noise=SampleNoise(0))
    assert float((found.latent - start).square().mean().sqrt()) < 0.25


def test_a_map_that_folds_has_no_small_gap() -> None:
    """The density is of the inverse of the upward jump: a map that forgets must be seen."""

    class Forgets(GaussianFlowMap):
        def predict(self, x: Tensor, t: sg.Level, *, to: sg.Level | None = None, **c: object):
            p = super().predict(x, t, to=to, **c)
            down = to is not None and float(to.t) < float(t.t)
            return super().predict(0 * x, t, to=to, **c) if down else p

    model = Forgets(VPSDE(), torch.zeros(2, dtype=F64), 0.3)
    assert float(log_prob(model, normal(4, 2)).gap.min()) > 0.1


def test_one_way_maps_and_bad_times_are_refused() -> None:
    with torch.random.fork_rng():
        net, plain = MLP(event=(2,), hidden=8, second_clock=True), MLP(event=(2,), hidden=8)
    x = torch.zeros(2, 2)
    with pytest.raises(ValueError, match="both ways"):
        log_prob(FlowMap(net, VPSDE(), V()), x)
    with pytest.raises(ValueError, match="t = 0 alone"):
        log_prob(ConsistencyModel(net, VPSDE(), V()), x)
    with pytest.raises(TypeError, match="knows no jumps"):
        log_prob(sg.ScoreNetwork(plain, VPSDE(), V()), x)
    model = exact(VPSDE())
    for times in ((1.0, 0.1), (0.5,), (0.1, 2.0)):
        with pytest.raises(ValueError, match="times"):
            log_prob(model, x.double(), times=times)
    with pytest.raises(ValueError, match="finite"):
        log_prob(model, x.double() * float("nan"))
    score = sg.ScoreNetwork(plain, VPSDE(), V())
    assert from_score_network(score, inverts=True).jump(x, 0.1, 0.9).shape == (2, 2)


def test_training_on_jumps_that_a_map_does_not_know_is_refused() -> None:
    with torch.random.fork_rng():
        net = MLP(event=(2,), hidden=8, second_clock=True)
    one, both = (FlowMap(net, VPSDE(), V(), span=AngleSpan(k)) for k in (False, True))
    x, draws = normal(8, 2, dtype=torch.float32), torch.Generator().manual_seed(0)
    data = trajectories(exact(VPSDE()), 8, moves=5, progress=False).x.float()
    for loss, given in (
        (Trajectories((2,), inverts=0.5), data),
        (Shortcut(Pairs(inverts=0.5)), x),
        (Lagrangian(GrowingPairs(3, pairs=Pairs(inverts=1.0))), x),
    ):
        with pytest.raises(ValueError, match="does not know"):
            loss(one, given, generator=draws)
        assert torch.isfinite(loss(both, given, generator=draws)).all()


@each_sde
def test_losses_of_jumps_both_ways_vanish_at_the_exact_map(sde: sg.SDE) -> None:
    model = exact(sde)
    first, last = Pairs(inverts=0.5)(sde, 64, torch.Generator().manual_seed(0))
    assert bool((last > first).any())
    assert bool((last < first).any())
    draw = Draw(normal(64, 2, seed=1), normal(64, 2, seed=2), first, last)
    for loss in (Lagrangian(diagonal=None), Shortcut(diagonal=None)):
        assert float(loss.at(model, draw).sqrt().max()) < 1e-11


def test_the_density_takes_conditions_wide_events_and_chunks() -> None:
    """Bound labels, an image event, and few products at a time: the same numbers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = sg.ScoreNetwork(
            sg.UNet(channels=1, width=8, blocks=1, mults=(1,), attention=(True,), classes=3),
            VPSDE(), V(),
        )  # fmt: skip
    model = from_score_network(teacher, inverts=True).eval()
    x = normal(2, 1, 4, 4, dtype=torch.float32)
    bound = model.given(label=torch.tensor([0, 2]))
    whole, parts = log_prob(bound, x), log_prob(bound, x, chunk=5)
    torch.testing.assert_close(whole.value, parts.value)
    one = log_prob(model.given(label=torch.tensor([2])), x[1:])
    torch.testing.assert_close(whole.value[1:], one.value, rtol=1e-4, atol=1e-4)
