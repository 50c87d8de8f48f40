"""Microseconds per step beyond the network, beside other libraries, as ratios of one run.

    python benchmarks/samplers/overhead.py [--rounds 11] [--steps 50] [--out runs/overhead]

Every loop gets the same denoiser D(x) = x / 2, one kernel, whose own time is subtracted on the
small state and left in on the large one, where the caches make it depend on its neighbours.
Rounds are interleaved, so that drift of the machine hits all alike; the minimum over rounds is
reported, and the ratio to the fastest peer's version of the same method. A cold run computes its
coefficients, a warm one finds them. `hand/2M` is DPM-Solver++(2M) written as one loop over floats,
what a user without a library would write. One thread.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peers import k_diffusion_sampling, versions
from torch import Tensor

import scoregen as sg

STATES = {"(256, 2)": (256, 2), "(64, 3, 32, 32)": (64, 3, 32, 32)}


class Half(sg.ScoreModel):
    """D(x) = x / 2 on EDM's process: one kernel."""

    def __init__(self, sde: sg.SDE) -> None:
        super().__init__()
        self.sde = sde

    def predict(self, x: Tensor, t: sg.Level, **condition: Any) -> sg.models.Prediction:
        return sg.models.Prediction(self.sde, t, x, x0=x * 0.5)


def ours(steps: int) -> dict[str, Callable[[Tensor], object]]:
    """Every exported fixed-grid solver that can be built without arguments, and a few with."""
    model = Half(sg.EDMSDE())
    generator = torch.Generator()
    grid = sg.Karras(steps)
    loops: dict[str, Callable[[Tensor], object]] = {}
    for name, solver in solvers().items():
        sampler = sg.Sampler(solver, grid)
        loops[name] = lambda x, s=sampler: s.run(model, x, noise=sg.noise.TorchNoise(generator))
    ancestral = sg.Sampler(sg.Ancestral(), grid)
    loops["Ancestral, counter-based noise"] = lambda x: ancestral.run(
        model, x, noise=sg.noise.SampleNoise(0)
    )
    return loops


def by_hand(steps: int) -> dict[str, Callable[[Tensor], object]]:
    """DPM-Solver++(2M) (Lu et al. 2022, 2211.01095) as one loop, its sigmas known beforehand."""
    sigmas = sg.Karras(steps)(sg.EDMSDE()).tolist()

    def loop(x: Tensor) -> Tensor:
        before, h_before = x, 0.0
        for i in range(steps):
            sigma, after = sigmas[i], sigmas[i + 1]
            x0 = x * 0.5
            if after == 0:
                return x0
            h = math.log(sigma / after)
            d = x0 if i == 0 else x0 + h / (2 * h_before) * (x0 - before)
            x = after / sigma * x - math.expm1(-h) * d
            before, h_before = x0, h
        return x

    return {"2M": loop}


def forget() -> None:
    """Drop every coefficient that the library remembers, as a new process begins."""
    for name, module in list(sys.modules.items()):
        if name.startswith("scoregen.") and name.split(".")[1] in (
            "solvers",
            "sampling",
            "processes",
        ):
            for thing in vars(module).values():
                if hasattr(thing, "cache_clear"):
                    thing.cache_clear()


# what `recommended` gives networks, by number of evaluations, and exact densities
RECOMMENDED = ("IPNDM(3)", "UniPC(2)", "UniPC(3), Euler start", "AngularAB(4), Euler start")


def solvers() -> dict[str, sg.Solver]:
    """Name -> solver, the ones that move down any grid."""
    import inspect

    found: dict[str, sg.Solver] = {}
    for name in sg.solvers.__all__:
        made = getattr(sg.solvers, name)
        if not (inspect.isclass(made) and issubclass(made, sg.Solver)):
            continue
        if inspect.isabstract(made):
            continue
        try:
            solver = made()
        except TypeError:
            continue
        if solver.direction in ("down", "both") and solver.nfe is not None:
            found[name] = solver
    found["ProbabilityFlow(HEUN)"] = sg.ProbabilityFlow(sg.solvers.HEUN)
    found["ProbabilityFlow(RK4)"] = sg.ProbabilityFlow(sg.solvers.RK4)
    found["KarrasHeun(churn=0.1)"] = sg.KarrasHeun(churn=0.1)
    found["DDIM(eta=1.0)"] = sg.DDIM(eta=1.0)
    late = sg.solvers.EulerStart
    found |= {
        "DPMSolverPP(3)": sg.DPMSolverPP(3),
        "DPMSolverSingle(2, eps)": sg.solvers.DPMSolverSingle(2, "eps"),
        "DPMSolverSingle(2, x0)": sg.solvers.DPMSolverSingle(2, "x0"),
        "AncestralODE(2, eps)": sg.solvers.AncestralODE(sg.solvers.DPMSolverSingle(2, "eps")),
        "AncestralODE(2, x0)": sg.solvers.AncestralODE(sg.solvers.DPMSolverSingle(2, "x0")),
        "SDEDPMSolverPP(3)": sg.SDEDPMSolverPP(3),
        "UniPC(2)": sg.UniPC(2),
        "IPNDM(3)": sg.solvers.IPNDM(3),
        "UniPC(3), Euler start": late(sg.UniPC(3)),
        "AngularAB(4), Euler start": late(sg.solvers.AngularAB(4, smooth_end=True)),
        "PNDM(heun)": sg.solvers.PNDM("heun"),
        "DEIS(2)": sg.solvers.DEIS(2),
        "PredictorCorrector(DDIM, Langevin)": sg.solvers.PredictorCorrector(
            sg.DDIM(), sg.Langevin(1e-3), first="corrector"
        ),
    }
    for order in (2, 4):
        found[f"LMS({order})"] = late(sg.solvers.LMS(order))
        found[f"VelocityAB({order})"] = late(sg.solvers.VelocityAB(order))
        found[f"ExponentialAB({order}, eps)"] = late(sg.solvers.ExponentialAB(order, "eps"))
        found[f"ExponentialAB({order}, x0)"] = late(sg.solvers.ExponentialAB(order, "x0"))
    return found


def k_diffusion(steps: int) -> dict[str, Callable[[Tensor], object]]:
    """k-diffusion's samplers on the same denoiser and sigmas."""
    k = k_diffusion_sampling()
    sigmas = k.get_sigmas_karras(steps - 1, 0.002, 80.0)

    def model(x: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
        return x * 0.5

    def loop(name: str, **arguments: Any) -> Callable[[Tensor], object]:
        sample = getattr(k, f"sample_{name}")
        return lambda x: sample(model, x, sigmas, disable=True, **arguments)

    def randn(sigma: Any, after: Any) -> Tensor:
        return torch.randn(shape, generator=generator)

    generator = torch.Generator()
    shape = [0]

    def noisy(name: str, **arguments: Any) -> Callable[[Tensor], object]:
        sample = getattr(k, f"sample_{name}")

        def run(x: Tensor) -> object:
            shape[:] = list(x.shape)
            return sample(model, x, sigmas, disable=True, noise_sampler=randn, **arguments)

        return run

    loops = {n: loop(n) for n in ("euler", "heun", "dpm_2", "dpmpp_2m", "lms")}
    names = (
        "euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m_sde",
        "dpmpp_3m_sde",
    )  # fmt: skip
    loops |= {n: noisy(n) for n in names}
    loops["heun, churn"] = loop("heun", s_churn=0.1 * steps)
    return loops


def diffusers(steps: int) -> dict[str, Callable[[Tensor], object]]:
    """diffusers' schedulers in the loop its pipelines write."""
    import diffusers as d

    made = {
        "DDPM": d.DDPMScheduler(clip_sample=False),
        "DDIM": d.DDIMScheduler(clip_sample=False),
        "Euler": d.EulerDiscreteScheduler(),
        "EulerAncestral": d.EulerAncestralDiscreteScheduler(),
        "Heun": d.HeunDiscreteScheduler(),
        "KDPM2": d.KDPM2DiscreteScheduler(),
        "DPM++ 2M": d.DPMSolverMultistepScheduler(),
        "DPM++ 3M": d.DPMSolverMultistepScheduler(solver_order=3),
        "SDE-DPM++ 2M": d.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
        "DPM++ 2S": d.DPMSolverSinglestepScheduler(),
        "SDE-DPM++ 3M": d.DPMSolverMultistepScheduler(
            algorithm_type="sde-dpmsolver++", solver_order=3, solver_type="heun"
        ),
        "SASolver": d.SASolverScheduler(),
        "UniPC-2": d.UniPCMultistepScheduler(),
        "DEIS-2": d.DEISMultistepScheduler(),
        "PNDM": d.PNDMScheduler(skip_prk_steps=True),
    }
    generator = torch.Generator()

    def loop(scheduler: Any, noisy: bool) -> Callable[[Tensor], object]:
        extra = {"generator": generator} if noisy else {}

        def run(x: Tensor) -> object:
            scheduler.set_timesteps(steps)
            for t in scheduler.timesteps:
                seen = scheduler.scale_model_input(x, t)
                x = scheduler.step(seen * 0.5, t, x, **extra).prev_sample
            return x

        return run

    noisy = {"DDPM", "EulerAncestral", "SDE-DPM++ 2M", "SDE-DPM++ 3M", "SASolver"}
    return {name: loop(s, name in noisy) for name, s in made.items()}


def azula(steps: int) -> dict[str, Callable[[Tensor], object]]:
    """azula's samplers on the same denoiser and sigmas; time is sigma."""
    from azula import denoise, sample

    class Model(denoise.Denoiser):
        def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
            return torch.ones_like(t), t

        def forward(self, x: Tensor, t: Tensor, **extra: Any) -> Any:
            return denoise.DiracPosterior(x * 0.5)

    times = sg.Karras(steps + 1)(sg.EDMSDE())[:-1].float()
    made = {
        **{name: {} for name in ("DDPM", "DDIM", "Euler", "Heun", "Ito", "PC")},
        **{f"{n}{k}": {"order": k} for n in ("zAB", "vAB", "zEAB", "xEAB") for k in (2, 4)},
    }
    loops: dict[str, Callable[[Tensor], object]] = {}
    for name, arguments in made.items():
        cls = getattr(sample, name.rstrip("24") + "Sampler")
        gridded = type(name, (cls,), {"timesteps": property(lambda self: times)})
        loops[name] = gridded(Model(), silent=True, **arguments)
    return loops


# our method -> peers' versions of the same method
TWINS = {
    "DDIM": ["k-diffusion/euler", "diffusers/DDIM", "diffusers/Euler", "azula/Euler", "azula/DDIM"],
    "Ancestral": [
        "k-diffusion/euler_ancestral",
        "diffusers/DDPM",
        "diffusers/EulerAncestral",
        "azula/DDPM",
    ],
    "AncestralODE": ["k-diffusion/euler_ancestral"],
    "ExponentialEuler": ["azula/Ito"],
    "DPMSolverPP": ["k-diffusion/dpmpp_2m", "diffusers/DPM++ 2M"],
    "DPMSolverPP(3)": ["diffusers/DPM++ 3M"],
    "DPMSolver3MAsPublished": ["diffusers/DPM++ 3M"],
    "DPMSolverSingle(2, eps)": ["k-diffusion/dpm_2", "diffusers/KDPM2"],
    "AncestralODE(2, eps)": ["k-diffusion/dpm_2_ancestral"],
    "AncestralODE(2, x0)": ["k-diffusion/dpmpp_2s_ancestral"],
    "KarrasHeun": ["k-diffusion/heun", "diffusers/Heun", "azula/Heun"],
    "KarrasHeun(churn=0.1)": ["k-diffusion/heun, churn"],
    "UniPC(2)": ["diffusers/UniPC-2"],
    "DEIS(2)": ["diffusers/DEIS-2"],
    "PNDM(heun)": ["diffusers/PNDM"],
    "LMS(2)": ["azula/zAB2"],
    "LMS(4)": ["k-diffusion/lms", "azula/zAB4"],
    "VelocityAB(2)": ["azula/vAB2"],
    "VelocityAB(4)": ["azula/vAB4"],
    "ExponentialAB(2, eps)": ["azula/zEAB2", "diffusers/DEIS-2"],
    "ExponentialAB(4, eps)": ["azula/zEAB4"],
    "ExponentialAB(2, x0)": ["azula/xEAB2"],
    "ExponentialAB(4, x0)": ["azula/xEAB4"],
    "SDEDPMSolverPP": ["k-diffusion/dpmpp_2m_sde", "diffusers/SDE-DPM++ 2M"],
    "SDEDPMSolverPP(3)": ["k-diffusion/dpmpp_3m_sde", "diffusers/SDE-DPM++ 3M"],
    "SDEDPMSolverPP2S": ["k-diffusion/dpmpp_sde"],
    "SASolver": ["diffusers/SASolver"],
    "PredictorCorrector(DDIM, Langevin)": ["azula/PC"],
}


def measure(
    loops: dict[str, Callable[[Tensor], object]], shape: tuple[int, ...], steps: int, rounds: int
) -> dict[str, float]:
    """Microseconds per step, minimum over interleaved rounds."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 80
    best = dict.fromkeys(loops, math.inf)
    for run in loops.values():
        run(x)
    for _ in range(rounds):
        for name, run in loops.items():
            run(x)  # the loop before it left its own lines in the caches
            began = time.perf_counter()
            run(x)
            best[name] = min(best[name], time.perf_counter() - began)
    return {name: seconds / steps * 1e6 for name, seconds in best.items()}


def measure_cold(
    loops: dict[str, Callable[[Tensor], object]], shape: tuple[int, ...], steps: int, rounds: int
) -> dict[str, float]:
    """Microseconds per step of runs that remember nothing."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 80
    best = dict.fromkeys(loops, math.inf)
    for _ in range(rounds):
        for name, run in loops.items():
            run(x)
            forget()
            began = time.perf_counter()
            run(x)
            best[name] = min(best[name], time.perf_counter() - began)
    return {name: seconds / steps * 1e6 for name, seconds in best.items()}


def evaluations(steps: int) -> dict[str, float]:
    """Evaluations per step of our loops, so that the network's own time can be subtracted."""
    model, x = Half(sg.EDMSDE()), torch.ones(1, 2)
    counts = {}
    for name, solver in solvers().items():
        with sg.models.Counted(model) as counted:
            sg.Sampler(solver, sg.Karras(steps)).run(model, x, noise=sg.noise.SampleNoise(0))
        counts[name] = counted.rows / steps
    return counts


PEER_EVALUATIONS = {
    "heun": 2.0,
    "dpm_2": 2.0,
    "Heun": 2.0,
    "KDPM2": 2.0,
    "2s": 2.0,
    "pp_sde": 2.0,
    "azula/PC": 2.0,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--state", choices=list(STATES), help="this state alone")
    parser.add_argument("--out", type=Path, default=Path("runs/overhead"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    loops = {f"scoregen/{k}": v for k, v in ours(options.steps).items()}
    loops |= {f"hand/{k}": v for k, v in by_hand(options.steps).items()}
    for origin, build in (
        ("k-diffusion", k_diffusion),
        ("diffusers", diffusers),
        ("azula", azula),
    ):
        try:
            loops |= {f"{origin}/{k}": v for k, v in build(options.steps).items()}
        except ModuleNotFoundError as error:
            print(f"{origin} is left out: {error}")
    counts = {f"scoregen/{k}": v for k, v in evaluations(options.steps).items()}
    kept: list[str] = []

    def keep(line: str) -> None:
        print(line)
        kept.append(line)

    report: dict[str, Any] = {"versions": versions(), "machine": platform.processor()}
    for label in [options.state] if options.state else STATES:
        shape = STATES[label]
        few = options.rounds if len(shape) == 2 else max(3, options.rounds // 3)
        once = measure(
            {"net": lambda x: [x * 0.5 for _ in range(options.steps)]}, shape, options.steps, few
        )["net"]
        raw = measure(loops, shape, options.steps, few)
        beyond = {}
        for name, value in raw.items():
            rows = counts.get(
                name, next((v for k, v in PEER_EVALUATIONS.items() if k in name), 1.0)
            )
            beyond[name] = value - rows * once if len(shape) == 2 else value
        kind = "beyond the network" if len(shape) == 2 else "in all"
        print(f"\nstate {label}: microseconds per step {kind}\n")
        print("| loop | us/step |\n|---|---|")
        for name, value in sorted(beyond.items(), key=lambda pair: pair[1]):
            print(f"| {name} | {value:.1f} |")
        keep(f"\nState {label}, {kind}\n")
        keep("| method | us/step | fastest peer | ratio | ratio to k-diffusion |")
        keep("|---|---|---|---|---|")
        ratios = {}
        for name, twins in TWINS.items():
            there = {t: beyond[t] for t in twins if t in beyond}
            mine = beyond.get(f"scoregen/{name}")
            if not there or mine is None:
                continue
            fastest = min(there, key=lambda t: there[t])
            ratios[name] = mine / there[fastest]
            own = [mine / v for t, v in there.items() if t.startswith("k-diffusion")]
            shown = f"{own[0]:.2f}" if own else ""
            keep(
                f"| {name} | {mine:.1f} | {fastest} {there[fastest]:.1f} | {ratios[name]:.2f} "
                f"| {shown} |"
            )
        keep("\n| recommended multistep | us/step | / hand-written 2M | cold |")
        keep("|---|---|---|---|")
        few_loops = {n: loops[f"scoregen/{n}"] for n in RECOMMENDED}
        base = beyond["hand/2M"]
        own = once if len(shape) == 2 else 0.0
        for name, value in measure_cold(few_loops, shape, options.steps, max(3, few // 3)).items():
            warm = beyond[f"scoregen/{name}"]
            cold = value - own * counts[f"scoregen/{name}"]
            keep(f"| {name} | {warm:.1f} | {warm / base:.2f} | {cold / base:.2f} |")
        report[label] = {"us_per_step": beyond, "ratio_to_fastest_peer": ratios}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "overhead.json").write_text(json.dumps(report, indent=1))
    (options.out / "summary.md").write_text("\n".join(kept).strip() + "\n")
    print(f"\nwritten to {options.out / 'overhead.json'}")


if __name__ == "__main__":
    main()
