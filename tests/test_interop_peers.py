"""The installed libraries themselves beside what the importers make of their objects.

Needs diffusers, azula, k-diffusion and denoising-diffusion-pytorch: `make test-peers`. The last two
import torchvision, which stands nowhere here: their files are loaded with an empty module of that
name.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import F64, normal
from test_interop_diffusers import Wide, largest
from torch import Tensor, nn

import scoregen as sg
from scoregen import Sampler
from scoregen.interop import (
    as_azula,
    as_k_diffusion,
    as_origin,
    from_azula,
    from_k_diffusion,
    from_lucidrains,
)
from scoregen.noise import ReplayNoise, SampleNoise

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]


class Backbone(nn.Module):
    """A small random function of state and time, in float64."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.inner = nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Linear(16, 2)).double()

    def forward(self, x: Tensor, t: Tensor, **extra: Any) -> Tensor:
        return self.inner(torch.cat([x, t.reshape(-1, 1).expand(len(x), 1).to(x)], 1))


# azula


def test_azula_denoisers_and_samplers() -> None:
    denoise, noise = (importlib.import_module(f"azula.{n}") for n in ("denoise", "noise"))
    sample = importlib.import_module("azula.sample")
    for schedule in (noise.VPSchedule(), noise.VESchedule(0.01, 50.0), noise.CosineSchedule()):
        theirs = denoise.KarrasDenoiser(Backbone(), schedule)
        model, sampler = as_origin(from_azula(theirs), 50)
        start = model.sde.prior_std(1.0) * normal(4, 2)
        made = sample.DDIMSampler(theirs, steps=50, silent=True, dtype=F64)
        with torch.random.fork_rng():
            want = made(start)
        with torch.no_grad():
            got = sampler.run(model, start, noise=SampleNoise(0))
        assert largest(got, want) < 1e-6, type(schedule).__name__


def test_models_as_azula_denoisers() -> None:
    denoise, sample = (
        importlib.import_module("azula.denoise"),
        importlib.import_module("azula.sample"),
    )
    sde = sg.VPSDE()
    exact = sg.Gaussian(sde, torch.full((2,), 0.3, dtype=F64), 0.25)
    theirs = as_azula(exact)
    assert isinstance(theirs, denoise.Denoiser)
    x, t = normal(3, 2), torch.tensor(0.4, dtype=F64)
    torch.testing.assert_close(theirs(x, t).mean, exact(x, 0.4).x0)
    each = torch.tensor([0.2, 0.4, 0.9], dtype=F64)
    torch.testing.assert_close(theirs(x, each).mean, exact(x, each).x0)
    alpha, sigma = theirs.schedule(t)
    level = sde.level(0.4)
    assert (float(alpha), float(sigma)) == (level.alpha, level.sigma)
    times = torch.linspace(1, 1e-3, 11, dtype=F64)
    made = sample.DDIMSampler(theirs, start=1.0, stop=1e-3, steps=10, silent=True, dtype=F64)
    with torch.random.fork_rng():
        want = made(x)
    got = Sampler(sg.DDIM(), sg.Times(*times.tolist())).run(exact, x, noise=SampleNoise(0))
    assert largest(got, want) < 1e-9


# k-diffusion


@pytest.fixture(scope="module")
def k() -> Any:
    """k-diffusion's samplers."""
    folder = str(Path(__file__).parents[1] / "benchmarks" / "samplers")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module("peers").k_diffusion_sampling()
    finally:
        sys.path.remove(folder)


class Denoiser(nn.Module):
    """Karras' preconditioning with sigma_data 1, as k-diffusion's class has it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Backbone()

    def forward(self, x: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
        s = sigma.reshape(-1, 1)
        root = (s**2 + 1).sqrt()
        return self.inner(x / root, s.log()) * s / root + x / (s**2 + 1)


def test_k_diffusions_own_evaluation(k: Any) -> None:
    denoiser = Denoiser()
    model, sampler = as_origin(from_k_diffusion(denoiser, sigma_min=0.01, sigma_max=80.0), 50)
    start = 80 * normal(4, 2)
    sigmas = sampler.grid(model.sde)
    with torch.no_grad(), torch.random.fork_rng():
        want = k.sample_dpmpp_2m_sde(
            denoiser, start, sigmas, eta=0.0, solver_type="heun", disable=True,
            noise_sampler=lambda *s: 0,
        )  # fmt: skip
        got = sampler.run(model, start, noise=SampleNoise(0))
    assert largest(got, want) < 1e-6


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        ("sample_euler", sg.DDIM()),
        ("sample_heun", sg.KarrasHeun()),
        ("sample_dpmpp_2m", sg.DPMSolverPP(2)),
        ("sample_euler_ancestral", sg.solvers.AncestralODE(sg.DDIM())),
        ("sample_dpmpp_2m_sde", sg.SDEDPMSolverPP(2)),
    ],
)
def test_solvers_in_place_of_k_diffusions(k: Any, name: str, solver: Any) -> None:
    """The same call with ours and with theirs: sigmas, callback and noise_sampler included."""
    denoiser, start = Denoiser(), 80 * normal(4, 2)
    sigmas = sg.Karras(50)(sg.EDMSDE(t_min=0.01))
    found = []
    for sample in (getattr(k, name), as_k_diffusion(solver)):
        rest = iter([normal(4, 2, seed=60 + i) for i in range(60)])
        arguments: dict[str, Any] = {}
        if name.endswith(("ancestral", "sde")):
            arguments["noise_sampler"] = lambda sigma, after, rest=rest: next(rest)
        seen: list[Any] = []
        with torch.no_grad(), torch.random.fork_rng():
            out = sample(
                denoiser, start, sigmas, extra_args={"aug": 1}, callback=seen.append,
                disable=True, **arguments,
            )  # fmt: skip
        found.append((out, seen))
    (want, theirs), (got, ours) = found
    assert largest(got, want) < 1e-6
    assert [c["i"] for c in ours] == [c["i"] for c in theirs]
    assert largest(ours[20]["x"], theirs[20]["x"]) < 1e-6
    if name != "sample_heun":  # its callback reports the first of two evaluations
        assert largest(ours[20]["denoised"], theirs[20]["denoised"]) < 1e-6


# denoising-diffusion-pytorch


@pytest.fixture
def lucidrains(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Its module of GaussianDiffusion, without torchvision and its average of weights."""
    for name in ("torchvision", "torchvision.transforms", "torchvision.utils", "ema_pytorch"):
        module: Any = types.ModuleType(name)
        module.EMA = module.transforms = module.utils = None
        monkeypatch.setitem(sys.modules, name, module)
    name = "denoising_diffusion_pytorch"
    spec = importlib.util.find_spec(name)
    assert spec is not None, "make test-peers installs it"
    assert spec.submodule_search_locations is not None
    package: Any = types.ModuleType(name)  # the package's own __init__ imports the rest
    package.__path__ = list(spec.submodule_search_locations)
    monkeypatch.setitem(sys.modules, name, package)
    yield importlib.import_module(f"{name}.denoising_diffusion_pytorch")
    for loaded in [key for key in sys.modules if key.startswith(f"{name}.")]:
        del sys.modules[loaded]


@pytest.mark.parametrize(
    ("objective", "steps"), [("pred_noise", 50), ("pred_v", 50), ("pred_x0", 50), ("pred_v", 100)]
)
def test_denoising_diffusion_pytorch(
    lucidrains: Any,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    objective: str,
    steps: int,
) -> None:
    draws = [normal(2, 3, 8, 8, seed=80 + i) for i in range(110)]
    rest = iter(draws)

    class Drawn(Wide):
        randn = staticmethod(lambda *a, **b: next(rest))
        randn_like = staticmethod(lambda *a, **b: next(rest))

    monkeypatch.setattr(lucidrains, "torch", Wide())
    torch.set_default_dtype(F64)  # its embedding of the time is of the default dtype
    request.addfinalizer(lambda: torch.set_default_dtype(torch.float32))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = lucidrains.Unet(dim=8, dim_mults=(1, 2), channels=3)
        origin = lucidrains.GaussianDiffusion(
            unet, image_size=8, timesteps=100, sampling_timesteps=steps, objective=objective
        )
    origin = origin.double().eval()
    monkeypatch.setattr(lucidrains, "torch", Drawn())
    want = origin.sample(2).clone()
    model, sampler = as_origin(from_lucidrains(origin), steps)
    with torch.no_grad():
        got = sampler.run(model, draws[0], noise=ReplayNoise(draws[1:]))
    assert largest((got + 1) / 2, want) < 1e-6


# smalldiffusion


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Any:
    """smalldiffusion's schedules, sampler and mixin; its data module alone needs torchvision."""
    name = "smalldiffusion"
    spec = importlib.util.find_spec(name)
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("smalldiffusion is not installed: pip install --no-deps smalldiffusion")
    package: Any = types.ModuleType(name)
    package.__path__ = list(spec.submodule_search_locations)
    monkeypatch.setitem(sys.modules, name, package)
    diffusion, model = (importlib.import_module(f"{name}.{m}") for m in ("diffusion", "model"))
    yield types.SimpleNamespace(
        samples=diffusion.samples,
        ScheduleLogLinear=diffusion.ScheduleLogLinear,
        ModelMixin=model.ModelMixin,
    )
    for loaded in [key for key in sys.modules if key.startswith(f"{name}.")]:
        del sys.modules[loaded]


@pytest.mark.parametrize("kind", ["DDIM", "DDPM", "guided DDIM"])
def test_smalldiffusion(small: Any, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Its sampler, down to its least sigma, on a network that predicts eps at (x, sigma)."""
    draws = [normal(4, 2, seed=30 + i) for i in range(60)]
    rest = iter(draws)

    class Net(nn.Module, small.ModelMixin):
        input_dims = (2,)

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.cond_embed = Backbone(), types.SimpleNamespace(null_cond=3)

        def rand_input(self, batchsize: int) -> Tensor:
            return next(rest)[:batchsize]

        def forward(self, x: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
            shift = 0 if cond is None else cond.reshape(-1, 1) / 4
            return self.inner(x / (1 + sigma.reshape(-1, 1) ** 2).sqrt(), sigma.log()) + shift

    net, schedule = Net(), small.ScheduleLogLinear(N=500, sigma_min=0.01, sigma_max=20.0)
    sigmas = schedule.sample_sigmas(50).double()
    label = torch.tensor([0, 1, 2, 0])
    more: dict[str, Any] = {"cond": label, "cfg_scale": 2.0} if kind[:6] == "guided" else {}
    start, mu = 20 * normal(4, 2), 0.5 if kind == "DDPM" else 0.0
    *_, want = small.samples(net, sigmas, gam=1.0, mu=mu, xt=start, batchsize=4, **more)
    sde = sg.EDMSDE(float(sigmas[-1]), float(sigmas[0]))

    def evaluated(x: Tensor, sigma: Tensor, label: Any = None) -> Tensor:
        return net(x, sigma[:1].reshape(()), cond=label)

    model: Any = sg.ScoreNetwork(evaluated, sde, sg.Eps(), sg.RawTime())
    if more:  # its scale counts from the conditional prediction
        model = sg.ClassifierFree(model, 3.0, null={"label": 3}).given(label=label)
    solver = sg.Ancestral("small") if kind == "DDPM" else sg.DDIM()
    grid = sg.Times(*sigmas.tolist())
    got = Sampler(solver, grid).run(model, start, noise=ReplayNoise(draws))
    assert largest(got, want) < 1e-9
