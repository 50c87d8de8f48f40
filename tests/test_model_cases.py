"""Cases that once gave a wrong number in silence or a refusal: each with its right value."""

from __future__ import annotations

import importlib
import itertools
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cases import F64, NoFloat64, normal, tensor
from torch import Tensor, nn

import scoregen as sg
from scoregen.grids import Times
from scoregen.inverse import Replacement
from scoregen.noise import BrownianNoise, SampleNoise


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0, 5.0])
def test_a_condition_shared_by_the_batch_is_guided(scale: float) -> None:
    """u + w (c - u) with u = 0 and c = 1 is w, whatever the batch."""

    class Net(nn.Module):
        def forward(self, x: Tensor, t: Tensor, emb: Tensor) -> Tensor:
            return emb.mean((1, 2)).reshape(-1, 1).expand(len(x), 1).expand_as(x)

    model = sg.ScoreNetwork(Net(), sg.VPSDE(), sg.X0(), sg.RawTime(1000.0))
    guided = sg.ClassifierFree(model, scale, null={"emb": torch.zeros(7, 6)})
    x, emb = torch.zeros(4, 3), torch.ones(1, 7, 6)
    for rows in (x, x[:1]):
        assert guided(rows, 0.5, emb=emb).x0.flatten().tolist() == pytest.approx(
            [scale] * rows.numel(), abs=1e-6
        )


def test_a_network_of_int8_weights_gets_floating_inputs() -> None:
    class Quantised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            eye = 127 * torch.eye(2, dtype=torch.int8)
            self.weight = nn.Parameter(eye, requires_grad=False)
            self.scale = nn.Parameter(torch.tensor(0.5 / 127))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return x.float() @ (self.weight.float() * self.scale)

    model = sg.ScoreNetwork(Quantised(), sg.VPSDE(), sg.X0(), sg.RawTime(1000.0))
    x = torch.tensor([[0.9, -1.7], [2.6, 0.3]])
    torch.testing.assert_close(model(x, 0.5).x0, x / 2)


def test_a_bfloat16_network_reads_unrounded_times() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.seen = nn.Parameter(torch.ones(1)), []

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            self.seen.append(float(t[0]))
            return x * self.w

    net = Net().bfloat16()
    model = sg.ScoreNetwork(net, sg.RectifiedSDE(), sg.Velocity(), sg.RawTime(1000.0))
    want = [999.0, 937.0, 833.0, 625.0]  # the grid of a distilled video model
    grid = Times(*(t / 1000 for t in want), 0.0)
    sg.Sampler(sg.DDIM(), grid).sample(model, (2, 4), seed=0)
    assert net.seen == pytest.approx(want, abs=1e-3)


def test_a_process_of_ones_own_starts_at_its_noise_level() -> None:
    """4000 samples of N(0, 1/4): the standard deviation has error 0.0056, here within 6 of it."""

    @dataclass(frozen=True)
    class MyVE(sg.SDE):
        t_min: float = 0.01
        t_max: float = 20.0

        def alpha(self, t: Tensor) -> Tensor:
            return torch.ones_like(t)

        def sigma(self, t: Tensor) -> Tensor:
            return t * 1.0

    model = sg.Gaussian(MyVE(), torch.zeros(2), 0.25)
    x = sg.Sampler(sg.DDIM(), sg.UniformLam(500)).sample(model, (4000, 2), seed=0)
    assert float(x.std()) == pytest.approx(0.5, abs=0.024)


def test_a_plain_function_is_a_network() -> None:
    model = sg.ScoreNetwork(lambda x, t: 0 * x, sg.VPSDE(), sg.Eps())
    got = model(torch.ones(2, 3), 0.5)
    torch.testing.assert_close(got.x0, torch.ones(2, 3) / model.sde.level(0.5).alpha)


class ExactV(nn.Module):
    """v for N(1, var) on a chain, finite where no signal is left."""

    def __init__(self, table: Tensor, var: Tensor) -> None:
        super().__init__()
        self.table, self.var = table, var

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        a2 = self.table[index].reshape(-1, 1).to(x.dtype)
        a, s = a2.sqrt(), (1 - a2).sqrt()
        d, total = x - a, a2 * self.var + s * s
        return a * (s * d / total) - s * (1 + a * self.var * d / total)


def zero_snr_table() -> Tensor:
    """Betas of Stable Diffusion, sqrt(alpha-bar) moved and stretched to end at 0 (2305.08891)."""
    root = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=F64) ** 2, 0)
    root = root.sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])).square()


def test_a_chain_without_signal_at_its_end() -> None:
    table, var = zero_snr_table(), tensor(0.05, 0.5, 2.0)
    net, x = ExactV(table, var), normal(100, 3)
    want, index = x, torch.arange(999, -1, -50)
    for i in index.tolist():  # DDIM by hand, on trailing timesteps
        a, s = table[i].sqrt(), (1 - table[i]).sqrt()
        v = net(want, torch.full((100,), i))
        x0, eps = a * want - s * v, s * want + a * v
        after = table[i - 50] if i >= 50 else torch.ones((), dtype=F64)
        want = after.sqrt() * x0 + (1 - after).sqrt() * eps
    sde = sg.DiscreteVPSDE.from_alpha_bar(table.tolist())
    assert sde.level(1.0).alpha == 0
    model = sg.ScoreNetwork(net, sde, sg.V(), sg.Index())
    got = sg.Sampler(sg.DDIM(), sg.Strided(20)).run(model, x, noise=SampleNoise(0))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_a_chain_without_signal_at_its_end_as_in_diffusers() -> None:
    library: Any = importlib.import_module("diffusers")
    sched = library.DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
        rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing",
    )  # fmt: skip
    table = sched.alphas_cumprod.double()
    torch.testing.assert_close(table, zero_snr_table(), rtol=1e-4, atol=1e-6)
    net, x = ExactV(table, tensor(0.05, 0.5, 2.0)), normal(100, 3)
    want = x
    sched.set_timesteps(20)
    for t in sched.timesteps:
        want = sched.step(net(want, t.expand(len(want))), t, want).prev_sample
    sde = sg.DiscreteVPSDE.from_alpha_bar(table.tolist())
    model = sg.ScoreNetwork(net, sde, sg.V(), sg.Index())
    got = sg.Sampler(sg.DDIM(), sg.Strided(20)).run(model, x, noise=SampleNoise(0))
    # its square roots of alpha-bar are of float32: 1e-6 of values of up to 8
    torch.testing.assert_close(got, want.double(), rtol=1e-5, atol=1e-5)


def test_ve_networks_are_evaluated_inside_their_range_alone() -> None:
    seen: list[float] = []

    def net(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(float(sigma[0]))
        return -x / (0.25 + sigma.reshape(-1, 1) ** 2)

    for model in (
        sg.from_score_sde(net, "ve", centered=False),
        sg.ScoreNetwork(net, sg.EDMSDE(0.01, 50.0), sg.Score(), sg.RawTime()),
    ):
        seen.clear()
        sg.Sampler(sg.DPMSolverPP(), sg.UniformLam(20)).sample(model, (4, 2), seed=0)
        assert 0.00999 < min(seen) < max(seen) < 50.01


def test_the_index_of_a_rescaled_chain() -> None:
    sde = sg.DiscreteVPSDE.cosine(4000)
    level, x = sde.level(1000 / 4000), torch.zeros(1, 2)
    assert float(sg.Index(scale=0.25)(sde, level, x)) == 999 * 1000 / 4000


def factor(t: sg.Level, s: sg.Level, var: Tensor) -> Tensor:
    """What DDIM's move does to a coordinate of N(0, var); from t = 0 eps is that at s."""
    if t.sigma == 0:
        return s.alpha + s.sigma**2 / (s.alpha**2 * var + s.sigma**2)
    return (s.alpha * t.alpha * var + s.sigma * t.sigma) / (t.alpha**2 * var + t.sigma**2)


@pytest.mark.parametrize("clean", [True, False])
def test_inversion_of_clean_data_by_ddim_has_its_exact_error(clean: bool) -> None:
    """There and back is a product of factors, one for each move, to the last digit."""
    sde, var = sg.DiscreteVPSDE.linear(1000), tensor(0.01, 0.05, 0.5)
    model = sg.Gaussian(sde, torch.zeros(3, dtype=F64), var)
    up, down = sg.Reversed(sg.Strided(50), clean=clean), sg.Strided(50)
    x0 = var.sqrt() * normal(40, 3)
    got, want = x0, torch.ones(3, dtype=F64)
    for grid in (up, down):
        sampler = sg.Sampler(sg.DDIM(), grid)
        got = sampler.run(model, got, noise=SampleNoise(0))
        levels = sampler.levels(sde)
        for t, s in itertools.pairwise(levels):
            want = want * factor(t, s, var)
    torch.testing.assert_close(got, want * x0, rtol=1e-10, atol=1e-10)
    # of the order of the steps, and twice as far where the first move is left out
    error = (want - 1).abs()
    assert bool((error < 0.26).all()) == clean


def test_inversion_of_clean_data_to_second_order() -> None:
    sde, var = sg.DiscreteVPSDE.linear(1000), tensor(0.01, 0.05, 0.5)
    model = sg.Gaussian(sde, torch.zeros(3, dtype=F64), var)
    x0 = torch.ones(1, 3, dtype=F64)
    errors = []
    for clean in (True, False):
        x = x0
        for grid in (sg.Reversed(sg.Strided(50), clean=clean), sg.Strided(50)):
            x = sg.Sampler(sg.DPMSolverPP(), grid).run(model, x, noise=SampleNoise(0))
        errors.append(float((x - x0)[0, 1].abs()))
    assert errors[0] < 0.03 < 0.1 < errors[1]


def test_scales_and_negatives_of_each_sample_go_with_its_chunk() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
            return label.reshape(-1, 1).float() + 0 * x

    model = sg.ScoreNetwork(Net(), sg.VPSDE(), sg.X0(), sg.RawTime(1000.0))
    sampler, label = sg.Sampler(sg.DDIM(), sg.UniformLam(5)), torch.full((8,), 5)
    scales = torch.linspace(1, 3, 8)
    by_scale = sg.ClassifierFree(model, scales, null={"label": 0})
    by_negative = sg.ClassifierFree(model, 2.0, null={"label": torch.arange(8)})
    wants = (5 * scales, 2.0 * 5 - torch.arange(8.0))
    for guided, want in zip((by_scale, by_negative), wants, strict=True):
        whole = sampler.sample(guided, (8, 3), seed=0, condition={"label": label})
        torch.testing.assert_close(whole, want[:, None].expand(8, 3))
        parts = sampler.sample(guided, (8, 3), seed=0, condition={"label": label}, chunk=4)
        assert torch.equal(whole, parts)


def test_masks_of_each_image_and_of_one_channel() -> None:
    model = sg.Gaussian(sg.VPSDE(), torch.zeros(3, 4, 4), 1.0)
    known, masks = torch.full((2, 3, 4, 4), 0.7), torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    masks[0, :, :2], masks[1, :, 2:] = True, True
    for mask in (masks, masks[0]):
        sampler = sg.Sampler(Replacement(sg.DDIM(), mask, known), sg.UniformLam(10))
        x = sampler.sample(model, (2, 3, 4, 4), seed=0)
        whole = mask.expand(2, 3, 4, 4)
        assert torch.equal(x[whole], known[whole])
        assert not torch.any(x[~whole] == 0.7)


def test_complex_data_are_refused_with_a_way_that_keeps_them() -> None:
    x = torch.ones(1, 2, dtype=torch.complex64) * 1j
    with pytest.raises(TypeError, match="view_as_real"):
        sg.Gaussian(sg.VPSDE(), torch.zeros(2), 1.0)(x, 0.5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: sg.UNet(width=8, attention=(False, False)),
        lambda: sg.networks.ADM(1, 8, (1, 2), 1, (False, True), head_channels=8),
        lambda: sg.networks.NCSNpp(1, 8, (1, 2), 1, (False, True)),
        lambda: sg.networks.NCSNpp(1, 8, (1, 2), 1, (False, True), embedding="fourier"),
        lambda: sg.networks.EDM2(1, 8, (1, 2), 1, (False, True), head_channels=8),
    ],
    ids=["UNet", "ADM", "DDPM++", "NCSN++", "EDM2"],
)
def test_no_float64_is_made_on_the_device(make: Any) -> None:
    with torch.random.fork_rng():
        model = sg.ScoreNetwork(make(), sg.VPSDE(), sg.V()).to("meta")
    x = torch.empty(2, 1, 8, 8, device="meta")
    with NoFloat64():
        model(x, 0.5)
        model(x, torch.tensor([0.5, 0.2]))
        sg.DenoisingScoreMatching()(model, x, generator=torch.Generator())


def test_brownian_paths_below_their_resolution_are_refused() -> None:
    sde = sg.EDMSDE(t_min=1e-9)
    a, b = sde.level(4e-6), sde.level(2e-6)
    with pytest.raises(ValueError, match=r"."):
        BrownianNoise(5)(torch.zeros(10, 1, dtype=F64), a, b)


def test_labels_reach_networks_and_energies_that_do_not_declare_them() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor, clock: Tensor, label: Any = None) -> Tensor:
            return 0 * x + label[:, None]

    model = sg.ScoreNetwork(Net(), sg.VPSDE(), sg.Eps())
    y = torch.tensor([0, 1])
    torch.testing.assert_close(
        model.given(label=y)(torch.zeros(2, 2), 0.5).eps, torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    )
    assert math.isfinite(float(model.given(label=y)(torch.zeros(2, 2), 0.5).x0.sum()))
