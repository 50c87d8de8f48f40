"""Solvers as schedulers of diffusers: the loop of a pipeline gives what `Sampler.run` gives."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from cases import F64, normal
from test_interop_diffusers import EVENT, UNet2DModel, largest, scheduler, tiny
from torch import Tensor

import scoregen as sg
from scoregen import Sampler
from scoregen.interop import as_diffusers_scheduler, as_k_diffusion, from_diffusers
from scoregen.noise import SampleNoise
from scoregen.sampling import Solver

SOLVERS: dict[str, Solver] = {
    "DDIM": sg.DDIM(),
    "DDIM, noise": sg.DDIM(0.5),
    "DPM++ 2M": sg.DPMSolverPP(2),
    "DPM++ 3M": sg.DPMSolverPP(3),
    "UniPC": sg.UniPC(3),
    "Heun": sg.KarrasHeun(),
    "Heun, churn": sg.KarrasHeun(churn=0.2),
    "ancestral": sg.Ancestral("small"),
    "SDE-DPM++ 2M": sg.SDEDPMSolverPP(2),
    "SDE-DPM++ 2S": sg.solvers.SDEDPMSolverPP2S(),
    "in the angle": sg.solvers.AngularAB(3),
    "PNDM": sg.solvers.PNDM("runge-kutta"),
    "Restart": sg.solvers.Restart(),
}


@torch.no_grad()
def pipeline(unet: Any, made: Any, start: Tensor, steps: int, **arguments: Any) -> Tensor:
    """The loop that diffusers' pipelines run, with their calls in their order."""
    made.set_timesteps(steps)
    x = start * float(made.init_noise_sigma)
    for t in made.timesteps:
        seen = made.scale_model_input(x, t)
        out = unet(seen, t.expand(len(seen)), return_dict=False)[0]
        x = made.step(out, t, x, **arguments).prev_sample
    return x


@pytest.mark.parametrize("name", SOLVERS)
def test_a_pipelines_loop_is_the_sampler(name: str) -> None:
    solver, like = SOLVERS[name], scheduler("DDIMScheduler")
    grid: Any = sg.UniformLam(8)
    if name == "Restart":
        grid = sg.grids.RestartGrid(grid, 0.2, 0.6)
    steps = len(grid(sg.DiscreteVPSDE.linear(1000))) - 1
    model, start = from_diffusers(Label(), like), normal(2, *EVENT)
    want = Sampler(solver, grid).run(model, start, noise=SampleNoise(5))
    made = as_diffusers_scheduler(Sampler(solver, grid), like, seed=5)
    got = pipeline(Label(), made, start, steps)
    assert largest(got, want) < 1e-9
    # a second run with the same object, from the start again
    torch.testing.assert_close(pipeline(Label(), made, start, steps), got)


class Label(UNet2DModel):
    """A smooth function of the state and of a label that need not be whole.

    The label is read in float32, as every network of diffusers reads it (its sinusoids are), and as
    the list of timesteps holds it between the knots.
    """

    def forward(
        self, sample: Tensor, timestep: Tensor, class_labels: Any = None, return_dict: bool = True
    ) -> Any:
        label = timestep.float().double().reshape(-1, 1, 1, 1) / 1000
        return (torch.tanh(sample) * (0.5 + 0.4 * label),)


@pytest.fixture(scope="module")
def fitted() -> tuple[sg.ScoreModel, Sampler]:
    """The imported stand-in, and a sampler of four evaluations fitted to it."""
    model = from_diffusers(Label(), scheduler("DDIMScheduler"))
    return model, sg.tune(model, 4, event=EVENT, trajectories=24, progress=False)


def test_a_tuned_sampler_leaves_as_a_scheduler(fitted: tuple[sg.ScoreModel, Sampler]) -> None:
    (model, tuned), like, noise = fitted, scheduler("DDIMScheduler"), normal(2, *EVENT)
    made = as_diffusers_scheduler(tuned, like)
    got = pipeline(Label(), made, noise, 4)
    solver: Any = tuned.solver
    assert len(made.timesteps) == 5  # its first move needs no evaluation, but has an entry
    assert made.timesteps[1:].tolist() == pytest.approx([1000 * t - 1 for t in solver.times])
    want = tuned.run(model, model.sde.prior_std(1.0) * noise, noise=SampleNoise(0))
    assert largest(got, want) < 1e-6
    torch.testing.assert_close(pipeline(Label(), made, noise, 4), got)
    with pytest.raises(ValueError, match="tuned for 4 evaluations"):
        made.set_timesteps(5)
    with pytest.raises(ValueError, match="fitted to events"):
        pipeline(Label(), made, normal(2, 1, 2, 2), 4)


def test_a_tuned_sampler_leaves_for_k_diffusion(fitted: tuple[sg.ScoreModel, Sampler]) -> None:
    """Its state is x / alpha, its sigmas are those of the tuned times, rounded to float32."""
    model, tuned = fitted
    solver: Any = tuned.solver
    levels = [model.sde.level(t) for t in tuned.grid(model.sde).tolist()]
    sigmas = torch.tensor([v.sigma / v.alpha for v in levels])

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        place = int((sigmas - float(sigma[0])).abs().argmin())
        return model.predict(levels[place].alpha * x, levels[place]).x0

    noise = normal(2, *EVENT)
    start = model.sde.prior_std(1.0) * noise / levels[0].alpha
    got = as_k_diffusion(solver)(denoiser, start, sigmas, disable=True)
    want = tuned.run(model, model.sde.prior_std(1.0) * noise, noise=SampleNoise(0))
    assert largest(got, want) < 1e-6
    with pytest.raises(ValueError, match="own times"):
        as_k_diffusion(solver)(denoiser, start, 1.01 * sigmas, disable=True)


def test_the_default_grids() -> None:
    made = as_diffusers_scheduler(sg.DDIM(), scheduler("DDIMScheduler"))
    made.set_timesteps(4)
    assert made.timesteps.tolist() == [999, 749, 499, 249]
    assert made.timesteps.dtype == torch.long
    flow = scheduler("FlowMatchEulerDiscreteScheduler", shift=3.0)
    made = as_diffusers_scheduler(sg.ProbabilityFlow(), flow)
    made.set_timesteps(4)
    assert made.timesteps.tolist() == pytest.approx([1000, 900, 750, 500])
    made.set_timesteps(sigmas=[1.0, 0.5], mu=0.0)
    assert made.timesteps.tolist() == [1000, 500]
    edm = scheduler("EDMEulerScheduler", sigma_min=0.002, sigma_max=80.0, sigma_data=0.5)
    made = as_diffusers_scheduler(sg.DDIM(), edm)
    made.set_timesteps(18)
    assert len(made.timesteps) == 18
    assert made.init_noise_sigma == 80.0
    seen = made.scale_model_input(torch.ones(1), made.timesteps[0])
    assert float(seen) == pytest.approx(1 / (80**2 + 0.25) ** 0.5)


def test_image_to_image_starts_in_the_middle() -> None:
    like = scheduler("DDIMScheduler")
    for solver in (sg.DPMSolverPP(2), sg.KarrasHeun()):
        made = as_diffusers_scheduler(solver, like)
        made.set_timesteps(10)
        begin = next(i for i, t in enumerate(made.timesteps.tolist()) if t == 499)
        if isinstance(solver, sg.KarrasHeun):
            begin += 1  # 499 is first where the move before it is corrected
        times = made.timesteps[begin:]
        made.set_begin_index(begin)
        clean, z = normal(2, *EVENT), normal(2, *EVENT, seed=1)
        x = made.add_noise(clean, z, times[:1].expand(2))
        model = from_diffusers(Label(), like)
        level = model.sde.level(0.5)
        torch.testing.assert_close(x, level.alpha * clean + level.sigma * z)
        want = Sampler(solver, sg.Times(0.5, 0.4, 0.3, 0.2, 0.1, 0.0)).run(
            model, x, noise=SampleNoise(0)
        )
        with torch.no_grad():
            for t in times:
                out = Label()(made.scale_model_input(x, t), t.expand(2))[0]
                x = made.step(out, t, x, return_dict=False)[0]
        torch.testing.assert_close(x, want, rtol=1e-6, atol=1e-6)


def test_a_state_edited_between_the_steps_is_taken() -> None:
    """Inpainting pipelines overwrite the known part of the state after every step."""
    like, start = scheduler("DDIMScheduler"), normal(2, *EVENT)
    made, model = as_diffusers_scheduler(sg.DPMSolverPP(2), like), from_diffusers(Label(), like)
    made.set_timesteps(5)
    x, y, state = start, start, None
    levels = Sampler(sg.DDIM(), sg.Strided(5)).levels(model.sde)
    for i, t in enumerate(made.timesteps):
        x = made.step(Label()(x, t.expand(2))[0], t, x).prev_sample.clone()
        y, state = sg.DPMSolverPP(2).step(model, y, levels[i], levels[i + 1], state, SampleNoise(0))
        y = y.clone()
        x[:, :, :2], y[:, :, :2] = 0.3, 0.3
    torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)


def test_noise_has_a_source() -> None:
    like, start = scheduler("DDIMScheduler"), normal(2, *EVENT)
    made = as_diffusers_scheduler(sg.Ancestral(), like)
    with pytest.raises(ValueError, match="generator="):
        pipeline(Label(), made, start, 3)
    runs = [
        pipeline(Label(), made, start, 3, generator=torch.Generator().manual_seed(1))
        for _ in range(2)
    ]
    assert torch.equal(*runs)


def test_refusals() -> None:
    like = scheduler("DDIMScheduler")
    with pytest.raises(TypeError, match="Solver"):
        as_diffusers_scheduler("DDIM", like)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="like must be a scheduler of diffusers"):
        as_diffusers_scheduler(sg.DDIM(), sg.DDIM())
    with pytest.raises(TypeError, match="seed must be an integer"):
        as_diffusers_scheduler(sg.DDIM(), like, seed=0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="RePaint"):
        as_diffusers_scheduler(sg.DDIM(), scheduler("RePaintScheduler"))
    made = as_diffusers_scheduler(sg.DDIM(), like)
    with pytest.raises(ValueError, match="num_inference_steps"):
        made.set_timesteps()
    with pytest.raises(ValueError, match="flows"):
        made.set_timesteps(sigmas=[1.0])
    coarse = sg.solvers.AdaptiveDPM(rtol=0.05, atol=0.05)
    with pytest.raises(ValueError, match="fixed steps"):
        as_diffusers_scheduler(coarse, like).set_timesteps(3)
    odd = as_diffusers_scheduler(Sampler(sg.DDIM(), sg.Times(1.0, 0.5, 0.0)), like)
    with pytest.raises(ValueError, match="no count of steps"):
        odd.set_timesteps(3)
    made.set_timesteps(3)
    x = normal(1, *EVENT)
    with pytest.raises(ValueError, match="eta"):
        made.step(x, made.timesteps[0], x, eta=1.0)
    with pytest.raises(ValueError, match="not in timesteps"):
        made.step(x, torch.tensor(500), x)
    made.step(x, made.timesteps[0], x)
    with pytest.raises(ValueError, match="the next timestep"):
        made.step(x, made.timesteps[2], x)


# The library itself


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "Restart"])
def test_inside_a_real_pipeline(name: str) -> None:
    """DDIMPipeline with the solver as its scheduler, against the sampler on the imported model."""
    library: Any = importlib.import_module("diffusers")
    unet, like = tiny(), library.DDIMScheduler()
    pipe = library.DDIMPipeline(unet, like)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = as_diffusers_scheduler(SOLVERS[name], like, seed=3)
    assert isinstance(pipe.scheduler, library.SchedulerMixin)
    start = torch.randn((2, 3, 8, 8), generator=torch.Generator().manual_seed(2), dtype=F64)
    images = pipe(
        batch_size=2, generator=torch.Generator().manual_seed(2), num_inference_steps=10,
        output_type="np",
    ).images  # fmt: skip
    model = from_diffusers(unet, like)
    solver = SOLVERS[name]
    with torch.no_grad():
        want = Sampler(solver, sg.Strided(10)).run(model, start, noise=SampleNoise(3))
    want = (want / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    assert largest(torch.from_numpy(images).double(), want) < 2e-6


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_inside_a_conditional_loop_with_guidance() -> None:
    library: Any = importlib.import_module("diffusers")
    unet, like = tiny(conditional=True), library.DPMSolverMultistepScheduler()
    text, empty = normal(2, 5, 8, seed=3), normal(2, 5, 8, seed=4)
    made, start = as_diffusers_scheduler(sg.DPMSolverPP(2), like), normal(2, 3, 8, 8, seed=1)
    made.set_timesteps(10)
    x = start
    with torch.no_grad():
        for t in made.timesteps:
            both = unet(torch.cat([x, x]), t, torch.cat([empty, text])).sample
            off, on = both.chunk(2)
            x = made.step(off + 3.0 * (on - off), t, x).prev_sample
        guided = sg.ClassifierFree(
            from_diffusers(unet, like), 3.0, null={"encoder_hidden_states": empty}
        )
        bound = guided.given(encoder_hidden_states=text)
        want = Sampler(sg.DPMSolverPP(2), sg.Strided(10)).run(bound, start, noise=SampleNoise(0))
    assert largest(x, want) < 1e-6
