"""The same method, network, start, grid and noise as in other libraries gives the same samples.

Needs diffusers, azula and k-diffusion: `make test-peers`. Where a library's method is not the same,
a test says in which respect, and that putting that right makes both agree.
"""

from __future__ import annotations

import importlib
import inspect
import math
import sys
import textwrap
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import scoregen as sg

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore:__array__")]

F64 = torch.float64
EXACT = 1e-9
ROWS = 12


def load(name: str) -> Any:
    """A module that must be there: `make test-peers` installs it."""
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def k() -> Any:
    """k-diffusion's samplers."""
    folder = str(Path(__file__).parents[1] / "benchmarks" / "samplers")
    sys.path.insert(0, folder)
    try:
        return load("peers").k_diffusion_sampling()
    finally:
        sys.path.remove(folder)


class Wide:
    """The module torch, with float64 where a library asks for float32."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def network(sde: sg.SDE) -> sg.GaussianMixture:
    """The exact denoiser of three Gaussians."""
    means = torch.tensor([[-1.0, 0.3], [0.8, 0.9], [0.4, -1.1]], dtype=F64)
    variances = torch.tensor([[0.05, 0.2], [0.3, 0.04], [0.1, 0.1]], dtype=F64)
    return sg.GaussianMixture(sde, torch.tensor([1.0, 2.0, 1.5]), means, variances)


def draws(count: int, seed: int = 1) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(ROWS, 2, generator=g, dtype=F64) for _ in range(count)]


def gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


EDM_TIMES = sg.Karras(20)(sg.EDMSDE(t_min=0.02)).tolist()  # 80 ... 0.02, 0
VP = sg.VPSDE(t_min=1e-3)
VP_TIMES = sg.UniformLam(20)(VP).tolist()  # 1 ... 0.001, 0


def ours(
    solver: sg.Solver, sde: sg.SDE, times: list[float], noise: sg.noise.Noise | None = None
) -> Tensor:
    """The run from one fixed start; draws(...)[0] is the start, the rest is noise."""
    std = sde.prior_std(times[0])
    noise = sg.noise.ReplayNoise(draws(60)[1:]) if noise is None else noise
    return sg.Sampler(solver, sg.Times(*times)).run(network(sde), std * draws(1)[0], noise=noise)


def kdiff(sample: Callable[..., Tensor], times: list[float], **arguments: Any) -> Tensor:
    """One of k-diffusion's samplers on the sigmas `times`."""
    sde = sg.EDMSDE()
    model = network(sde)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return model(x, float(sigma[0])).x0

    sigmas = torch.tensor(times, dtype=F64)
    return sample(denoise, times[0] * draws(1)[0], sigmas, disable=True, **arguments)


def replayed() -> Callable[[Any, Any], Tensor]:
    """A noise sampler for k-diffusion: the draws in order."""
    rest = iter(draws(60)[1:])
    return lambda sigma, after: next(rest)


PLAIN = {
    "euler": sg.DDIM(),
    "heun": sg.KarrasHeun(),
    "dpm_2": sg.solvers.DPMSolverSingle(2, "eps"),
    "dpmpp_2m": sg.DPMSolverPP(2),
}


@pytest.mark.moves_global_rng
@pytest.mark.parametrize("name", PLAIN)
def test_k_diffusion_deterministic(k: Any, name: str) -> None:
    theirs = kdiff(getattr(k, f"sample_{name}"), EDM_TIMES)
    assert gap(ours(PLAIN[name], sg.EDMSDE(), EDM_TIMES), theirs) < EXACT


NOISY: dict[str, tuple[sg.Solver, dict[str, Any]]] = {
    "euler_ancestral": (sg.solvers.AncestralODE(sg.DDIM()), {}),
    "euler_ancestral, eta 0.5": (sg.solvers.AncestralODE(sg.DDIM(), eta=0.5), {"eta": 0.5}),
    "dpm_2_ancestral": (sg.solvers.AncestralODE(sg.solvers.DPMSolverSingle(2, "eps")), {}),
    "dpmpp_2s_ancestral": (sg.solvers.AncestralODE(sg.solvers.DPMSolverSingle(2, "x0")), {}),
    "dpmpp_2m_sde": (sg.SDEDPMSolverPP(2), {}),
    "dpmpp_2m_sde, eta 0.5": (sg.SDEDPMSolverPP(2, eta=0.5), {"eta": 0.5}),
    "dpmpp_2m_sde, heun, eta 0": (
        sg.solvers.ExponentialAB(2, "x0"),
        {"eta": 0.0, "solver_type": "heun"},
    ),
    "dpmpp_2m_sde, eta 0": (sg.DPMSolverPP(2), {"eta": 0.0}),
}


@pytest.mark.parametrize("name", NOISY)
def test_k_diffusion_stochastic(k: Any, name: str) -> None:
    solver, arguments = NOISY[name]
    sample = getattr(k, "sample_" + name.split(",")[0])
    theirs = kdiff(sample, EDM_TIMES, noise_sampler=replayed(), **arguments)
    assert gap(ours(solver, sg.EDMSDE(), EDM_TIMES), theirs) < EXACT


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_k_diffusion_dpmpp_sde_on_one_brownian_path(k: Any, eta: float) -> None:
    """Two stages a move: the second one's noise contains the first one's."""
    rest = iter(draws(60)[1:])
    first: list[tuple[float, float, Tensor]] = []

    def path(sigma: Tensor, after: Tensor) -> Tensor:
        high, low = float(sigma), float(after)
        if not first:
            first.append((high, low, next(rest)))
            return first[0][2]
        _, inner, z = first.pop()
        share = (high**2 - inner**2) / (high**2 - low**2)
        return math.sqrt(share) * z + math.sqrt(1 - share) * next(rest)

    theirs = kdiff(k.sample_dpmpp_sde, EDM_TIMES, noise_sampler=path, eta=eta)
    assert gap(ours(sg.solvers.SDEDPMSolverPP2S(eta=eta), sg.EDMSDE(), EDM_TIMES), theirs) < EXACT


def rewritten(function: Callable[..., Any], old: str, new: str) -> Callable[..., Any]:
    """The same function with one expression of its source replaced, in its own module."""
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1
    space = vars(sys.modules[function.__module__]).copy()
    exec(source.replace(old, new), space)
    return space[function.__name__]


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_k_diffusion_3m_lacks_a_factor_two(k: Any, eta: float) -> None:
    """Its second difference is half of what it is to be; with the factor put in both agree."""
    solver = sg.SDEDPMSolverPP(3, eta=eta)
    mine = ours(solver, sg.EDMSDE(), EDM_TIMES)
    sample = k.sample_dpmpp_3m_sde
    fixed = rewritten(sample, "d2 = (d1_0", "d2 = 2 * (d1_0")
    theirs = kdiff(sample, EDM_TIMES, noise_sampler=replayed(), eta=eta)
    assert gap(mine, kdiff(fixed, EDM_TIMES, noise_sampler=replayed(), eta=eta)) < EXACT
    assert gap(mine, theirs) > 1e-3
    if eta == 0:
        assert (
            gap(mine, ours(sg.solvers.EulerStart(sg.DPMSolverPP(3)), sg.EDMSDE(), EDM_TIMES))
            < EXACT
        )


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_k_diffusion_lms(k: Any, order: int) -> None:
    times = EDM_TIMES[:-1]
    theirs = kdiff(k.sample_lms, times, order=order)
    assert (
        gap(ours(sg.solvers.EulerStart(sg.solvers.LMS(order)), sg.EDMSDE(), times), theirs) < EXACT
    )


def test_k_diffusion_lms_extrapolates_to_zero(k: Any) -> None:
    """Its last move, to sigma = 0, is multistep too; scoregen's returns x0, Euler's value there."""
    theirs = kdiff(k.sample_lms, EDM_TIMES, order=4)
    mine = ours(sg.solvers.EulerStart(sg.solvers.LMS(4)), sg.EDMSDE(), EDM_TIMES)
    assert 1e-6 < gap(mine, theirs) < 1e-2


@pytest.mark.moves_global_rng
def test_k_diffusion_churn(k: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It raises sigma above the first of the grid too; scoregen only below t_max."""
    times = sg.Karras(20, start=60.0)(sg.EDMSDE(t_min=0.02)).tolist()
    rest = iter(draws(60)[1:])
    monkeypatch.setattr(torch, "randn_like", lambda x: next(rest))
    theirs = kdiff(k.sample_heun, times, s_churn=0.1 * (len(times) - 1))
    monkeypatch.undo()
    mine = ours(sg.KarrasHeun(churn=0.1), sg.EDMSDE(), times)
    assert gap(mine, theirs) < EXACT


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Schedulers that compute in float64 and take their noise from draws(...)."""
    rest = iter(draws(60)[1:])

    def made(name: str, module: str, **arguments: Any) -> Any:
        home = load(f"diffusers.schedulers.scheduling_{module}")
        monkeypatch.setattr(home, "torch", Wide())
        if hasattr(home, "randn_tensor"):
            monkeypatch.setattr(home, "randn_tensor", lambda *a, **b: next(rest))
        return getattr(home, name)(**arguments)

    return made


def ratios(times: list[float], sde: sg.SDE) -> Tensor:
    """sigma / alpha at the times."""
    return torch.tensor([t.sigma / t.alpha for t in sde.levels(times)], dtype=F64)


def diffuse(scheduler: Any, times: list[float], scaled: bool) -> Tensor:
    """A scheduler on given sigmas; `scaled` says that its state is x / alpha."""
    sigmas = ratios(times, VP)
    x, model = draws(1)[0], network(VP)
    scheduler.set_timesteps(len(times) - 1)
    if scheduler.order == 2:
        sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
    assert len(scheduler.sigmas) == len(sigmas)
    scheduler.sigmas = sigmas
    scheduler.set_begin_index(0)
    x = x * math.hypot(1, sigmas[0]) if scaled else x
    for i, t in enumerate(scheduler.timesteps):
        seen = scheduler.scale_model_input(x, t)
        p = model(seen, VP.level_at(-math.log(float(sigmas[i]))))
        x = scheduler.step(p.eps, t, x).prev_sample
    return x / math.hypot(1, sigmas[-1]) if scaled else x


CHAIN_STEPS = 25
CHAIN = sg.DiscreteVPSDE.linear(1000)


def walk(scheduler: Any) -> Tensor:
    """A scheduler of the discrete chain, in the loop of its pipelines."""
    scheduler.set_timesteps(CHAIN_STEPS)
    model, x = network(CHAIN), draws(1)[0]
    for t in scheduler.timesteps:
        p = model(x, CHAIN.knots[int(t)])
        x = scheduler.step(p.eps, int(t), x).prev_sample
    return x


@pytest.mark.parametrize("variance", ["small", "large"])
def test_diffusers_ddpm(wide: Callable[..., Any], variance: Any) -> None:
    made = wide("DDPMScheduler", "ddpm", variance_type=f"fixed_{variance}", clip_sample=False)
    times = sg.Strided(CHAIN_STEPS, "leading")(CHAIN).tolist()
    assert gap(ours(sg.Ancestral(variance), CHAIN, times), walk(made)) < EXACT


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_diffusers_ddim(wide: Callable[..., Any], spacing: Any) -> None:
    made = wide("DDIMScheduler", "ddim", clip_sample=False, timestep_spacing=spacing)
    times = sg.Strided(CHAIN_STEPS, spacing)(CHAIN).tolist()
    assert gap(ours(sg.DDIM(), CHAIN, times), walk(made)) < EXACT


def dpm(wide: Callable[..., Any], **arguments: Any) -> Any:
    return wide("DPMSolverMultistepScheduler", "dpmsolver_multistep", **arguments)


MULTISTEP: dict[str, tuple[sg.Solver, dict[str, Any]]] = {
    "dpmsolver++ 1": (sg.DDIM(), {"solver_order": 1}),
    "dpmsolver++ 2": (sg.DPMSolverPP(2), {"solver_order": 2}),
    "dpmsolver++ 2 heun": (
        sg.solvers.ExponentialAB(2, "x0"),
        {"solver_order": 2, "solver_type": "heun"},
    ),
    "dpmsolver++ 3": (sg.solvers.DPMSolver3MAsPublished("x0"), {"solver_order": 3}),
    "sde-dpmsolver++ 1": (
        sg.SDEDPMSolverPP(1),
        {"solver_order": 1, "algorithm_type": "sde-dpmsolver++"},
    ),
    "sde-dpmsolver++ 2": (
        sg.SDEDPMSolverPP(2),
        {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"},
    ),
}


@pytest.mark.parametrize("name", MULTISTEP)
def test_diffusers_dpm_multistep(wide: Callable[..., Any], name: str) -> None:
    solver, arguments = MULTISTEP[name]
    theirs = diffuse(dpm(wide, **arguments), VP_TIMES, False)
    assert gap(ours(solver, VP, VP_TIMES), theirs) < EXACT


@pytest.mark.parametrize("order", [2, 3])
def test_diffusers_dpm_multistep_in_eps(wide: Callable[..., Any], order: int) -> None:
    """In this form it cannot move to sigma = 0: the grid ends above."""
    made = dpm(
        wide, solver_order=order, algorithm_type="dpmsolver", final_sigmas_type="sigma_min",
        lower_order_final=False,
    )  # fmt: skip
    solver = sg.solvers.DPMSolver(2) if order == 2 else sg.solvers.DPMSolver3MAsPublished("eps")
    times = VP_TIMES[:-1]
    assert gap(ours(solver, VP, times), diffuse(made, times, False)) < EXACT


def test_diffusers_3m_lacks_a_factor_two(wide: Callable[..., Any]) -> None:
    """As `DPMSolver3MAsPublished`; with the factor put in it is the right method, Euler start."""
    made = dpm(wide, solver_order=3, solver_type="heun")
    mine = ours(sg.solvers.EulerStart(sg.DPMSolverPP(3)), VP, VP_TIMES)
    assert gap(mine, diffuse(made, VP_TIMES, False)) > 1e-3
    third = type(made).multistep_dpm_solver_third_order_update
    fixed = rewritten(third, "D2 = (1.0 /", "D2 = (2.0 /")
    made = dpm(wide, solver_order=3, solver_type="heun")
    made.multistep_dpm_solver_third_order_update = types.MethodType(fixed, made)
    assert gap(mine, diffuse(made, VP_TIMES, False)) < EXACT


def test_diffusers_sde_3m_is_not_consistent_to_second_order(wide: Callable[..., Any]) -> None:
    """Besides the factor a sign is wrong: the right one, put in with it, gives scoregen's."""
    arguments = {"solver_order": 3, "algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}
    mine = ours(sg.SDEDPMSolverPP(3), VP, VP_TIMES)
    made = dpm(wide, **arguments)
    third = type(made).multistep_dpm_solver_third_order_update
    fixed = rewritten(third, "D2 = (1.0 /", "D2 = (2.0 /")
    source = textwrap.dedent(inspect.getsource(third))
    right = source.replace("D2 = (1.0 /", "D2 = (2.0 /")
    wrong_term = "- 2.0 * h) / (2.0 * h) ** 2 - 0.5)) * D2"
    assert right.count(wrong_term) == 1
    # int_0^h 2 exp(2(u - h)) u^2 / 2 du / h^2 = 1/2 - 1/(2h) + (1 - exp(-2h)) / (4 h^2)
    right = right.replace(wrong_term, "- 2.0 * h) / (2.0 * h) ** 2 + 0.5)) * D2")
    space = vars(sys.modules[type(made).__module__]).copy()
    exec(right, space)
    made.multistep_dpm_solver_third_order_update = types.MethodType(space[fixed.__name__], made)
    assert gap(mine, diffuse(made, VP_TIMES, False)) < EXACT


def test_diffusers_sde_3m_as_shipped_differs(wide: Callable[..., Any]) -> None:
    made = dpm(wide, solver_order=3, algorithm_type="sde-dpmsolver++", solver_type="heun")
    theirs = diffuse(made, VP_TIMES, False)
    assert gap(ours(sg.SDEDPMSolverPP(3), VP, VP_TIMES), theirs) > 1e-2


def unipc(wide: Callable[..., Any], p: int, variant: str) -> Any:
    return wide(
        "UniPCMultistepScheduler", "unipc_multistep", solver_order=p, solver_type=variant,
        lower_order_final=False, final_sigmas_type="sigma_min",
    )  # fmt: skip


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("p", [1, 2, 3])
def test_diffusers_unipc(wide: Callable[..., Any], p: int, variant: Any) -> None:
    solver = sg.UniPC(p, "x0", variant)
    times = VP_TIMES[:-1]
    theirs = diffuse(unipc(wide, p, variant), times, False)
    assert gap(ours(sg.solvers.EulerStart(solver), VP, times), theirs) < EXACT


def test_diffusers_unipc_bh1_is_nan_at_zero_and_scoregen_is_not(wide: Callable[..., Any]) -> None:
    made = wide("UniPCMultistepScheduler", "unipc_multistep", solver_type="bh1")
    assert not bool(torch.isfinite(diffuse(made, VP_TIMES, False)).all())
    mine = ours(sg.solvers.EulerStart(sg.UniPC(2, "x0", "bh1")), VP, VP_TIMES)
    assert bool(torch.isfinite(mine).all())


def test_diffusers_unipc_bh2_to_zero(wide: Callable[..., Any]) -> None:
    """Its last two moves are of falling order: with p = 2 only the one to zero, as here."""
    made = wide("UniPCMultistepScheduler", "unipc_multistep", solver_order=2)
    theirs = diffuse(made, VP_TIMES, False)
    assert gap(ours(sg.UniPC(2, "x0", "bh2"), VP, VP_TIMES), theirs) < EXACT


VE_SCALED: dict[str, tuple[sg.Solver, str, str]] = {
    "Euler": (sg.DDIM(), "EulerDiscreteScheduler", "euler_discrete"),
    "Heun": (sg.KarrasHeun(), "HeunDiscreteScheduler", "heun_discrete"),
    "EulerAncestral": (
        sg.Ancestral("small"),
        "EulerAncestralDiscreteScheduler",
        "euler_ancestral_discrete",
    ),
}


@pytest.mark.parametrize("name", VE_SCALED)
def test_diffusers_in_the_frame_of_ve(wide: Callable[..., Any], name: str) -> None:
    """Their state is x / alpha, so the noise they add counts in that scale too."""
    solver, cls, module = VE_SCALED[name]
    assert gap(ours(solver, VP, VP_TIMES), diffuse(wide(cls, module), VP_TIMES, True)) < EXACT


def test_diffusers_pndm(wide: Callable[..., Any]) -> None:
    """The start that repeats a time is Heun's; only the last move, to zero, is another one."""
    made = wide("PNDMScheduler", "pndm", skip_prk_steps=True, set_alpha_to_one=True)
    made.set_timesteps(20)
    model, x, path = network(CHAIN), draws(1)[0], []
    for t in made.timesteps:
        x = made.step(model(x, CHAIN.knots[int(t)]).eps, int(t), x).prev_sample
        path.append(x)
    times = sg.Strided(20, "leading")(CHAIN).tolist()
    assert gap(ours(sg.solvers.PNDM("heun"), CHAIN, times[:-1]), path[-2]) < EXACT
    # to zero it combines old values of eps; scoregen returns x0 there
    assert 1e-3 < gap(ours(sg.solvers.PNDM("heun"), CHAIN, times), path[-1]) < 0.1


def azula(name: str, sde: sg.SDE, times: list[float], **arguments: Any) -> Tensor:
    """One of azula's samplers on our process, grid and denoiser."""
    sample, denoise = load("azula.sample"), load("azula.denoise")
    model = network(sde)

    class Denoiser(denoise.Denoiser):
        def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
            return sde.alpha(t), sde.sigma(t)

        def forward(self, x: Tensor, t: Tensor, **extra: Any) -> Any:
            return denoise.DiracPosterior(model(x, float(t)).x0)

    class Gridded(getattr(sample, name)):
        @property
        def timesteps(self) -> Tensor:
            return torch.tensor(times, dtype=F64)

    made = Gridded(Denoiser(), silent=True, **arguments)
    return made(sde.prior_std(times[0]) * draws(1)[0])


AZULA: dict[str, tuple[sg.Solver, str, dict[str, Any]]] = {
    "DDPM": (sg.Ancestral("small"), "DDPMSampler", {}),
    "DDIM": (sg.DDIM(), "DDIMSampler", {}),
    "DDIM, eta 1": (sg.DDIM(1.0), "DDIMSampler", {"eta": 1.0}),
    "DDIM, their eta is our eta squared": (sg.DDIM(0.5), "DDIMSampler", {"eta": 0.25}),
    "Euler": (sg.DDIM(), "EulerSampler", {}),
    "Heun": (sg.KarrasHeun(), "HeunSampler", {}),
    "Ito": (sg.solvers.ExponentialEuler(), "ItoSampler", {}),
    **{
        f"{theirs}{order}": (sg.solvers.EulerStart(made), f"{theirs}Sampler", {"order": order})
        for order in (2, 3, 4)
        for theirs, made in {
            "zAB": sg.solvers.LMS(order),
            "zEAB": sg.solvers.ExponentialAB(order, "eps"),
            "xEAB": sg.solvers.ExponentialAB(order, "x0"),
        }.items()
    },
}


@pytest.mark.parametrize("name", AZULA)
def test_azula(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    solver, cls, arguments = AZULA[name]
    rest = iter(draws(60)[1:])
    monkeypatch.setattr(torch, "randn_like", lambda x: next(rest))
    times = VP_TIMES[:-1]
    theirs = azula(cls, VP, times, **arguments)
    monkeypatch.undo()
    # azula solves Vandermonde systems, which costs digits
    assert gap(ours(solver, VP, times), theirs) < (1e-7 if "AB" in name else EXACT)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_azula_velocity(order: int) -> None:
    """Its velocity is that of straight paths: the same method on rectified flow."""
    sde = sg.RectifiedSDE()
    times = torch.linspace(0.999, 0.01, 21, dtype=F64).tolist()
    theirs = azula("vABSampler", sde, times, order=order)
    assert gap(ours(sg.solvers.EulerStart(sg.solvers.VelocityAB(order)), sde, times), theirs) < 1e-7
