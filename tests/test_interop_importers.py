"""Networks of other libraries, each in its own convention, against one exact answer.

The data are N(MEAN, VAR). Every stand-in below computes its own library's output for them from its
own library's inputs; whatever the convention, the imported model must predict the same x0.
"""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cases import F64, NoFloat64, normal, tensor
from torch import Tensor, nn

from scoregen import DDIM, EDMSDE, VESDE, ClassifierFree, DPMSolverPP, Gaussian, Sampler, UniformLam
from scoregen.interop import (
    Card,
    Imported,
    ScheduleSDE,
    as_origin,
    from_azula,
    from_edm,
    from_guided_diffusion,
    from_k_diffusion,
    from_lucidrains,
    from_score_sde,
    from_velocity,
)
from scoregen.models import X0, RawTime
from scoregen.noise import ReplayNoise, SampleNoise

MEAN, VAR = 0.3, 0.25


def denoised(x: Tensor, alpha: Any, sigma: Any) -> Tensor:
    """E[x0 | x] for the data, by Bayes' rule."""
    return MEAN + alpha * VAR / (alpha**2 * VAR + sigma**2) * (x - alpha * MEAN)


def noise_in(x: Tensor, alpha: Any, sigma: Any) -> Tensor:
    return (x - alpha * denoised(x, alpha, sigma)) / sigma


def column(values: Tensor, x: Tensor) -> Tensor:
    return values.double().reshape(-1, *(1,) * (x.dim() - 1))


def agrees(model: Imported, times: list[float], x: Tensor | None = None) -> None:
    """The imported model predicts what the exact one does, at floats and at one time a sample."""
    x = normal(len(times), 2, seed=3) if x is None else x
    exact = Gaussian(
        model.sde, torch.full(x.shape[1:], MEAN, dtype=F64), torch.full(x.shape[1:], VAR)
    )
    for t in times:
        torch.testing.assert_close(model(x, t).x0, exact(x, t).x0, rtol=1e-9, atol=1e-9)
    each = tensor(*times)
    torch.testing.assert_close(model(x, each).x0, exact(x, each).x0, rtol=1e-9, atol=1e-9)


# Flows


def flow(x: Tensor, u: Tensor) -> Tensor:
    """dx/du of x = u data + (1 - u) noise."""
    u = column(u, x)
    return denoised(x, u, 1 - u) - noise_in(x, u, 1 - u)


def test_a_flow_with_data_at_one() -> None:
    agrees(from_velocity(flow), [0.9, 0.5, 0.1])
    agrees(from_velocity(lambda u, x: flow(x, u), first="t"), [0.9, 0.5, 0.1])


def test_a_flow_with_data_at_zero_and_times_to_a_thousand() -> None:
    def sd3(x: Tensor, timestep: Tensor) -> Tensor:
        s = column(timestep, x) / 1000
        return noise_in(x, 1 - s, s) - denoised(x, 1 - s, s)

    agrees(from_velocity(sd3, data_at=0.0, time_scale=1000.0), [0.9, 0.5, 0.1])


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_origin_of_a_flow_is_eulers_method_on_shifted_times(shift: float) -> None:
    model, sampler = as_origin(from_velocity(flow, shift=shift), 7)
    x = start = normal(3, 2, seed=5)
    for i in range(7):  # in the origin's own time, from noise to data
        u, after = (1 - shift * (1 - k / 7) / (1 + (shift - 1) * (1 - k / 7)) for k in (i, i + 1))
        x = x + (after - u) * flow(x, torch.full((3,), u, dtype=F64))
    got = sampler.run(model, start, noise=SampleNoise(0))
    torch.testing.assert_close(got, x, rtol=1e-12, atol=1e-12)


# k-diffusion, EDM


def test_k_diffusion_denoisers() -> None:
    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        return denoised(x, 1.0, column(sigma, x))

    model = from_k_diffusion(denoiser, sigma_min=0.02, sigma_max=10.0)
    agrees(model, [9.0, 1.0, 0.03])
    assert (model.sde.t_min, model.sde.t_max) == (0.02, 10.0)
    with pytest.raises(TypeError, match="sigma_min"):
        from_k_diffusion(denoiser, sigma_max=10.0)

    class Discrete(nn.Module):
        sigma_min, sigma_max = torch.tensor(0.03), torch.tensor(14.6)

        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            return denoiser(x, sigma)

    assert from_k_diffusion(Discrete()).sde == EDMSDE(float(torch.tensor(0.03)), 14.600000381469727)


class EDMNet(nn.Module):
    """EDMPrecond's interface; its answer depends on the class, by as much as its mean moves."""

    sigma_min, sigma_max, label_dim, img_channels, img_resolution = 0, float("inf"), 3, 1, 4

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor | None] = []

    def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        self.seen.append(class_labels)
        moved = 0.0 if class_labels is None else class_labels @ torch.tensor([1.0, 2.0, 3.0])
        sigma, moved = column(sigma, x), column(torch.as_tensor(moved), x)
        return denoised(x - moved, 1.0, sigma) + moved

    def round_sigma(self, sigma: Any) -> Tensor:
        return torch.as_tensor(sigma)


def test_edm_networks_return_the_denoised_data_themselves() -> None:
    model = from_edm(EDMNet())
    x = normal(3, 1, 4, 4, seed=2)
    agrees(model, [70.0, 0.5, 0.003], x)
    assert model.card.event == (1, 4, 4)
    assert model.sde == EDMSDE(0.002, 80.0)
    one_hot = torch.eye(3)
    for by in ({"label": torch.arange(3)}, {"class_labels": one_hot}):
        got = model(x, 0.5, **by).x0
        for k in range(3):
            want = denoised(x[k] - (k + 1), 1.0, 0.5) + k + 1
            torch.testing.assert_close(got[k], want)
    null = model(x, 0.5, label=torch.full((3,), 3)).x0
    torch.testing.assert_close(null, model(x, 0.5).x0)
    with pytest.raises(TypeError, match="not both"):
        model(x, 0.5, label=torch.arange(3), class_labels=one_hot)
    with pytest.raises(TypeError, match="colour"):
        model(x, 0.5, colour=1)


def test_edm_networks_are_guided_by_their_null_class() -> None:
    model = ClassifierFree(from_edm(EDMNet()), 2.0, null={"label": 3})
    x = normal(2, 1, 4, 4, seed=2)
    got = model(x, 0.5, label=torch.tensor([0, 0])).x0
    with_, without = denoised(x - 1, 1.0, 0.5) + 1, denoised(x, 1.0, 0.5)
    torch.testing.assert_close(got, without + 2 * (with_ - without))


def test_the_range_of_an_edm_network_is_its_own() -> None:
    class VP(EDMNet):
        sigma_min, sigma_max = 0.00736, 152.7

    assert from_edm(VP()).sde == EDMSDE(0.00736, 80.0)
    assert from_edm(VP(), sigma_max=200.0).sde == EDMSDE(0.00736, 152.7)
    with pytest.raises(ValueError, match="sigma_max"):
        from_edm(VP(), sigma_max=0.001)
    with pytest.raises(TypeError, match="label_dim"):
        from_edm(lambda x, sigma: x)


def test_the_origin_of_edm_is_algorithm_1() -> None:
    class Rounded(EDMNet):
        def round_sigma(self, sigma: Any) -> Tensor:
            return (torch.as_tensor(sigma) * 1000).round() / 1000

    for net in (EDMNet(), Rounded()):
        n, rho = 9, 7
        steps = torch.arange(n, dtype=F64)
        sigmas = (80 ** (1 / rho) + steps / (n - 1) * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho
        sigmas = torch.cat([net.round_sigma(sigmas), torch.zeros(1, dtype=F64)])
        x = start = 80 * normal(2, 1, 4, 4, seed=4)
        for i in range(n):
            d = (x - net(x, sigmas[i])) / sigmas[i]
            moved = x + (sigmas[i + 1] - sigmas[i]) * d
            if i < n - 1:
                ahead = (moved - net(moved, sigmas[i + 1])) / sigmas[i + 1]
                moved = x + (sigmas[i + 1] - sigmas[i]) * (d + ahead) / 2
            x = moved
        model, sampler = as_origin(from_edm(net), n)
        got = sampler.run(model, start, noise=SampleNoise(0))
        torch.testing.assert_close(got, x, rtol=1e-10, atol=1e-10)


# score_sde


def vp_scales(t: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    log_mean = -0.25 * t**2 * (20 - 0.1) - 0.5 * t * 0.1
    std = torch.sqrt(1 - torch.exp(2 * log_mean))
    return log_mean.exp(), std if kind == "vp" else 1 - torch.exp(2 * log_mean)


@pytest.mark.parametrize("kind", ["vp", "subvp"])
def test_score_sde_in_continuous_time(kind: Any) -> None:
    def net(x: Tensor, labels: Tensor) -> Tensor:
        return noise_in(x, *vp_scales(column(labels, x) / 999, kind))

    agrees(from_score_sde(net, kind, centered=True), [0.95, 0.4, 0.05])


def test_score_sde_on_its_chain() -> None:
    betas = torch.linspace(0.1 / 1000, 20 / 1000, 1000, dtype=F64)
    table = torch.cumprod(1 - betas, 0)

    def net(x: Tensor, labels: Tensor) -> Tensor:
        bar = column(table[labels.round().long()], x)
        return noise_in(x, bar.sqrt(), (1 - bar).sqrt())

    model = from_score_sde(net, "vp", continuous=False, centered=True)
    agrees(model, [1.0, 0.5, 0.001])


def test_score_sde_ve_is_evaluated_inside_its_range_alone() -> None:
    seen: list[float] = []

    def net(x: Tensor, sigma: Tensor) -> Tensor:
        seen.extend(sigma.tolist())
        s = column(sigma, x)
        return -noise_in(x, 1.0, s) / s

    model = from_score_sde(net, "ve", centered=False)
    agrees(model, [49.0, 1.0, 0.011])
    assert model.card.data_range == (0.0, 1.0)
    seen.clear()
    Sampler(DPMSolverPP(), UniformLam(20)).sample(model, (4, 2), seed=0)
    assert min(seen) == pytest.approx(0.01, rel=1e-6)
    assert max(seen) == pytest.approx(50.0, rel=1e-6)
    # and so is a network on the paper's own process
    assert VESDE(0.01, 50.0).level(VESDE(0.01, 50.0).t_min).sigma == pytest.approx(0.01, rel=1e-12)


def test_score_sde_ve_on_descending_levels() -> None:
    sigmas = torch.exp(torch.linspace(math.log(50), math.log(0.01), 10, dtype=F64))

    def net(x: Tensor, labels: Tensor) -> Tensor:
        s = column(sigmas[labels.round().long()], x)
        return -noise_in(x, 1.0, s) / s

    model = from_score_sde(net, "ve", continuous=False, centered=True, levels=10)
    agrees(model, [1.0, 0.5, 0.1])


def test_score_sde_refuses() -> None:
    net = nn.Identity()
    with pytest.raises(ValueError, match="kind"):
        from_score_sde(net, "vpx", centered=True)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="continuous"):
        from_score_sde(net, "subvp", continuous=False, centered=True)
    with pytest.raises(TypeError, match="centered"):
        from_score_sde(net, "vp", centered=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="discrete training"):
        as_origin(from_score_sde(net, "vp", centered=True, continuous=False), 10)


# guided-diffusion, denoising-diffusion-pytorch


def guided_table(steps: int, schedule: str) -> Tensor:
    if schedule == "linear":
        scale = 1000 / steps
        betas = torch.linspace(scale * 1e-4, scale * 0.02, steps, dtype=F64)
    else:

        def bar(u: float) -> float:
            return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

        betas = tensor(
            *(min(1 - bar((i + 1) / steps) / bar(i / steps), 0.999) for i in range(steps))
        )
    return torch.cumprod(1 - betas, 0)


@pytest.mark.parametrize("predict_xstart", [False, True])
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize(("steps", "schedule"), [(1000, "linear"), (4000, "cosine")])
def test_guided_diffusion(steps: int, schedule: Any, rescale: bool, predict_xstart: bool) -> None:
    table = guided_table(steps, schedule)

    def net(x: Tensor, labels: Tensor) -> Tensor:
        index = labels * steps / 1000 if rescale else labels
        torch.testing.assert_close(index, index.round(), rtol=0, atol=1e-6)
        bar = column(table[index.round().long()], x)
        form = denoised if predict_xstart else noise_in
        out = form(x, bar.sqrt(), (1 - bar).sqrt())
        return torch.cat([out, torch.full_like(out, 0.5)], 1)

    model = from_guided_diffusion(
        net, steps, schedule, rescale_timesteps=rescale, predict_xstart=predict_xstart
    )
    agrees(model, [0.99, 0.5, 0.25])
    assert float(model(normal(2, 2), 0.5).spread.mean()) == 0.75


def test_the_origin_of_guided_diffusion() -> None:
    """p_sample with learned variance, x0 clipped, on evenly spaced knots with respaced betas."""
    table, n = guided_table(1000, "linear"), 10

    def net(x: Tensor, labels: Tensor) -> Tensor:
        bar = column(table[labels.round().long()], x)
        out = noise_in(x, bar.sqrt(), (1 - bar).sqrt())
        return torch.cat([out, torch.sin(3 * out)], 1)

    used = [round(i * 999 / (n - 1)) for i in range(n)]
    bars = table[used]
    x = start = 3 * normal(4, 2, seed=8)
    draws = [normal(4, 2, seed=20 + i) for i in range(n)]
    for k, i in enumerate(reversed(range(n))):
        before = float(bars[i - 1]) if i else 1.0
        bar = float(bars[i])
        beta = 1 - bar / before
        eps, raw = net(x, torch.full((4,), used[i])).chunk(2, 1)
        x0 = ((x - math.sqrt(1 - bar) * eps) / math.sqrt(bar)).clamp(-1, 1)
        mean = (
            math.sqrt(before) * beta * x0 + math.sqrt(1 - beta) * (1 - before) * x
        ) / (1 - bar)  # fmt: skip
        if i == 0:
            x = mean
            break
        share = (raw + 1) / 2
        small = beta * (1 - before) / (1 - bar)
        x = mean + (0.5 * (share * math.log(beta) + (1 - share) * math.log(small))).exp() * draws[k]
    model, sampler = as_origin(from_guided_diffusion(net), n)
    got = sampler.run(model, start, noise=ReplayNoise(draws))
    torch.testing.assert_close(got, x, rtol=1e-9, atol=1e-9)


def test_classes_of_guided_diffusion_are_required() -> None:
    def net(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return y.reshape(-1, 1) + 0 * x

    model = from_guided_diffusion(net, learned=False, class_cond=True)
    torch.testing.assert_close(
        model(normal(2, 2), 0.5, y=torch.tensor([1, 2])).eps[:, 0], tensor(1, 2)
    )
    with pytest.raises(TypeError, match="'y'"):
        model(normal(2, 2), 0.5)
    with pytest.raises(TypeError, match="label"):
        model(normal(2, 2), 0.5, label=1)


def lucid(objective: str, steps: int = 100, eta: float = 0.0) -> Any:
    table = torch.cumprod(1 - torch.linspace(1e-3, 0.1, steps, dtype=F64), 0)

    def net(x: Tensor, t: Tensor) -> Tensor:
        bar = column(table[t.round().long()], x)
        alpha, sigma = bar.sqrt(), (1 - bar).sqrt()
        x0, eps = denoised(x, alpha, sigma), noise_in(x, alpha, sigma)
        return {"pred_noise": eps, "pred_x0": x0, "pred_v": alpha * eps - sigma * x0}[objective]

    return SimpleNamespace(
        model=net, objective=objective, alphas_cumprod=table, image_size=(4, 4), channels=3,
        self_condition=False, ddim_sampling_eta=eta,
    )  # fmt: skip


@pytest.mark.parametrize("objective", ["pred_noise", "pred_x0", "pred_v"])
def test_lucidrains(objective: str) -> None:
    agrees(from_lucidrains(lucid(objective)), [1.0, 0.5, 0.01])


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_the_origin_of_lucidrains_is_ddim_below_all_its_steps(eta: float) -> None:
    origin = lucid("pred_noise", eta=eta)
    n, table = 7, origin.alphas_cumprod
    times = torch.linspace(-1, 99, n + 1).int().tolist()[::-1]
    x = start = 2 * normal(3, 2, seed=6)
    draws = [normal(3, 2, seed=40 + i) for i in range(n)]
    for k in range(n):
        now, after = times[k], times[k + 1]
        bar = table[now]
        eps = origin.model(x, torch.full((3,), now))
        x0 = ((x - (1 - bar).sqrt() * eps) / bar.sqrt()).clamp(-1, 1)
        eps = (x - bar.sqrt() * x0) / (1 - bar).sqrt()
        if after < 0:
            x = x0
            break
        next_ = table[after]
        sigma = eta * ((1 - bar / next_) * (1 - next_) / (1 - bar)).sqrt()
        x = next_.sqrt() * x0 + (1 - next_ - sigma**2).sqrt() * eps + sigma * draws[k]
    model, sampler = as_origin(from_lucidrains(origin), n)
    got = sampler.run(model, start, noise=ReplayNoise(draws))
    torch.testing.assert_close(got, x, rtol=1e-9, atol=1e-9)


def test_lucidrains_refuses() -> None:
    odd = lucid("pred_noise")
    odd.objective = "pred_score"
    with pytest.raises(ValueError, match="pred_score"):
        from_lucidrains(odd)
    odd = lucid("pred_noise")
    odd.self_condition = True
    with pytest.raises(ValueError, match="self-conditioning"):
        from_lucidrains(odd)
    with pytest.raises(TypeError, match="alphas_cumprod"):
        from_lucidrains(nn.Identity())
    with pytest.raises(ValueError, match="at most 100"):
        as_origin(from_lucidrains(lucid("pred_v")), 101)


# azula


class Azula(nn.Module):
    """A denoiser on a schedule with noise left at t = 0, as azula's are."""

    def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha = torch.exp(math.log(1e-3) * t**2)
        return alpha, torch.sqrt(1 - alpha**2 + 1e-6)

    def forward(self, x: Tensor, t: Tensor) -> Any:
        alpha, sigma = (column(v, x) for v in self.schedule(t))
        return SimpleNamespace(mean=denoised(x, alpha, sigma))


def test_azula() -> None:
    model = from_azula(Azula())
    agrees(model, [1.0, 0.5, 0.0])
    n, x = 6, normal(3, 2, seed=9)
    start, times = x, torch.linspace(1, 0, n + 1, dtype=F64)
    for t, s in itertools.pairwise(times):
        (a, b), (c, d) = Azula().schedule(t), Azula().schedule(s)
        x0 = denoised(x, a, b)
        x = c * x0 + d / b * (x - a * x0)
    model_, sampler = as_origin(model, n)
    got = sampler.run(model_, start, noise=SampleNoise(0))
    torch.testing.assert_close(got, x, rtol=1e-9, atol=1e-9)
    with pytest.raises(TypeError, match="schedule"):
        from_azula(nn.Identity())


def test_a_process_from_any_schedule() -> None:
    sde = ScheduleSDE(lambda t: (torch.cos(t), torch.sin(t)), t_min=1e-3, t_max=1.5)
    exact = Gaussian(sde, tensor(0.0, 0.0), 1.0)
    out = Sampler(DDIM(), UniformLam(8)).run(exact, normal(3, 2), noise=SampleNoise(0))
    # unit data on a circle: each of DDIM's moves multiplies by the cosine of the angle it makes
    factor = UniformLam(8)(sde).diff().cos().prod()
    torch.testing.assert_close(out, factor * normal(3, 2), rtol=1e-9, atol=1e-9)


# Cards and the way back


def test_cards_print_what_was_found() -> None:
    shown = str(from_edm(EDMNet()).card)
    for part in ("EDM, EDMNet", "1 x 4 x 4", "[-1, 1]", "null: 3", "null: zeros", "Karras(steps)"):
        assert part in shown
    assert "Shifted(UniformTime(n), 3)" in str(from_velocity(flow, shift=3.0).card)


def test_as_origin_keeps_a_bound_condition() -> None:
    model = from_edm(EDMNet()).given(label=torch.tensor([1, 1]))
    bound, _ = as_origin(model, 5)
    x = normal(2, 1, 4, 4)
    torch.testing.assert_close(bound(x, 0.5).x0, denoised(x - 2, 1.0, 0.5) + 2)


def test_as_origin_refuses_what_was_not_imported() -> None:
    slots: Any = (nn.Identity(), EDMSDE(), X0(), RawTime())
    wrong: Any = "a library"
    with pytest.raises(TypeError, match="card must be a Card"):
        Imported(*slots, wrong, "no sampler")
    wrong = 3
    with pytest.raises(TypeError, match="origin must be a function"):
        Imported(*slots, Card("a library"), wrong)
    with pytest.raises(TypeError, match="from_diffusers"):
        as_origin(Gaussian(EDMSDE(), tensor(0.0), 1.0), 5)
    with pytest.raises(ValueError, match="steps"):
        as_origin(from_velocity(flow), 0)


@pytest.mark.parametrize(
    ("act", "error", "word"),
    [
        (lambda: from_velocity(flow, data_at=0.5), ValueError, "0 or 1"),
        (lambda: from_velocity(flow, shift=-1.0), ValueError, "shift"),
        (lambda: from_velocity(flow, first="z"), ValueError, "first"),  # type: ignore[arg-type]
        (lambda: from_velocity(flow, data_range=(1.0, 0.0)), ValueError, "data_range"),
        (lambda: from_velocity(3), TypeError, "callable"),  # type: ignore[arg-type]
        (lambda: from_velocity(flow, data_range=3), TypeError, "data_range must be a sequence"),  # type: ignore[arg-type]
        (lambda: from_velocity(flow, event=(3, 0)), ValueError, r"event\[1\] must be at least 1"),
        (lambda: from_edm(flow, sigma_max=math.nan), ValueError, "sigma_max must lie in"),
        (lambda: from_edm(flow, classes=2.5), TypeError, "classes must be an integer"),  # type: ignore[arg-type]
        (lambda: from_edm(nn.Linear, classes=0), TypeError, "net must be a callable"),
        (lambda: from_k_diffusion(flow, sigma_min="a"), TypeError, "sigma_min must be a real"),  # type: ignore[arg-type]
        (lambda: from_score_sde(flow, "vp", centered=True, beta=(0.1,)), ValueError, "beta_max"),  # type: ignore[arg-type]
        (lambda: from_score_sde(flow, "ve", centered=True, sigma=(9.0, 1.0)), ValueError, "sigma"),
        (lambda: from_guided_diffusion(flow, learned=1), TypeError, "learned must be True or"),  # type: ignore[arg-type]
        (lambda: from_guided_diffusion(flow, heads=0), ValueError, "heads must be at least 1"),
        (lambda: ScheduleSDE(3), TypeError, r"schedule must be a function t -> \(alpha, sigma\)"),  # type: ignore[arg-type]
        (lambda: ScheduleSDE(lambda t: t), TypeError, r"schedule must give \(alpha, sigma\)"),  # type: ignore[arg-type, return-value]
        (lambda: ScheduleSDE(lambda t: (1 - t, t.log())), ValueError, "sigma at t = 0 must be"),
        (lambda: ScheduleSDE(lambda t: (1 - t, t / 0.0)), ValueError, "sigma at t = 0 must be"),
        (lambda: Card("a", (0.0, math.inf)), ValueError, r"data_range\[1\] must be finite"),
        (lambda: Card("a", conditions=("label", "none")), TypeError, r"conditions\[0\] must be"),  # type: ignore[arg-type]
        (lambda: Card("a", dropped="clipped"), TypeError, "dropped must be a sequence of lines"),  # type: ignore[arg-type]
        (lambda: from_guided_diffusion(flow, 1), ValueError, "steps"),
        (lambda: from_guided_diffusion(flow, schedule="sqrt"), ValueError, "schedule"),  # type: ignore[arg-type]
    ],
)
def test_wrong_arguments_are_refused(act: Any, error: type[Exception], word: str) -> None:
    with pytest.raises(error, match=word):
        act()


def test_no_float64_is_made_on_the_device() -> None:
    def same(x: Tensor, clock: Tensor, *rest: Any, **more: Any) -> Tensor:
        return x * clock.reshape(-1, 1, 1, 1)

    models = [
        from_velocity(same),
        from_edm(same, classes=3).given(label=torch.zeros(2, dtype=torch.long, device="meta")),
        from_score_sde(same, "ve", centered=True),
        from_score_sde(same, "vp", centered=True),
        from_guided_diffusion(same, learned=False),
        from_k_diffusion(same, sigma_min=0.1, sigma_max=2.0),
    ]
    x = torch.empty(2, 1, 4, 4, device="meta")
    with NoFloat64():
        for model in models:
            assert model(x, 0.5).x0.shape == x.shape
