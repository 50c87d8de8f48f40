"""Sampling on a GPU: equal to the CPU, recorded runs beside moves one by one, noise, throughput.

    python benchmarks/samplers/gpu.py [--out docs/_generated/gpu.txt] [--device cuda] [--seconds 110]

1. Every solver with default noise on a network of elementwise operations and one matrix product:
   the largest difference between devices, and between a recorded run and the same run move by
   move, in units of the largest value; milliseconds of both. No move may wait for the device:
   CUDA's own check is on while they are made.
2. What default noise costs: a draw on the host, with its copy, beside the device's generator.
3. A U-Net of 32 x 32 images: images a second at several batch sizes, beside the network alone.

Minimum over rounds, in wall time between synchronisations. Rows that do not fit into the time are
left out and named.
"""

from __future__ import annotations

import argparse
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from overhead import solvers
from torch import Tensor, nn

import scoregen as sg
from scoregen.noise import SampleNoise, TorchNoise

STEPS = 20
LEVEL = sg.Level(1.0, 0.0, 1.0, 0.0)


class Mixing(nn.Module):
    """A denoiser of few kernels: elementwise but for one product, so that devices round alike."""

    def __init__(self, size: int) -> None:
        super().__init__()
        weight = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
        self.weight = nn.Parameter(weight / size**0.5, requires_grad=False)

    def forward(self, x: Tensor, clock: Tensor) -> Tensor:
        flat = x.flatten(1)
        return (torch.tanh(flat @ self.weight + 0.1 * clock[:, None]) - 0.3 * flat).view_as(x)


def filled(net: nn.Module) -> nn.Module:
    """A network whose layers that begin at zero have weights too."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            if not bool(p.any()):
                p.copy_(0.02 * torch.randn(p.shape, generator=g))
    return net.requires_grad_(False).eval()


class Clock:
    """Wall time between synchronisations, and what is left of a budget."""

    def __init__(self, device: torch.device, seconds: float) -> None:
        self.device, self.end = device, time.perf_counter() + seconds
        self.skipped: list[str] = []

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def ms(self, act: Callable[[], object], rounds: int = 5) -> float:
        act()
        best = float("inf")
        for _ in range(rounds):
            start = self.now()
            act()
            best = min(best, self.now() - start)
        return 1e3 * best

    def left(self, what: str, need: float = 0.0) -> bool:
        if time.perf_counter() + need < self.end:
            return True
        self.skipped.append(what)
        return False


@contextmanager
def waiting_refused(device: torch.device) -> Iterator[None]:
    """CUDA raises where the host waits for it."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def solvers_table(clock: Clock) -> Iterator[str]:
    device, shape = clock.device, (64, 3, 8, 8)
    sde = sg.VPSDE()
    here = sg.ScoreNetwork(Mixing(192), sde, sg.V())
    there = sg.ScoreNetwork(Mixing(192).to(device), sde, sg.V())
    yield f"Every solver, {STEPS} moves, state {shape}, default noise, seed 3\n"
    yield "| solver | device - CPU | recorded - moves | ms, moves | ms, recorded | ratio |"
    yield "|---|---|---|---|---|---|"
    worst = [0.0, 0.0]
    ratios = []
    for name, solver in sorted(solvers().items()):
        if not clock.left(f"solver {name}"):
            continue
        sampler = sg.Sampler(solver, sg.UniformLam(STEPS))
        try:
            cpu = sampler.sample(here, shape, seed=3)
            gpu = sampler.sample(there, shape, seed=3)
            x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
            with waiting_refused(device), torch.no_grad():
                for _ in sampler.iterate(there, x, noise=SampleNoise(3)):
                    pass
            run = sampler.compiled(there, shape)
            graph = run(seed=3)
            size = float(cpu.abs().max())
            gaps = [float((gpu.cpu() - cpu).abs().max()), float((graph - gpu).abs().max())]
            gaps = [gap / size for gap in gaps]
            g = torch.Generator(device).manual_seed(0)
            eager = clock.ms(lambda s=sampler, g=g: s.sample(there, shape, seed=g), 3)
            fast = clock.ms(lambda r=run, g=g: r(seed=g), 3)
        except Exception as error:  # one solver must not hide the others
            yield f"| {name} | {type(error).__name__}: {' '.join(str(error).split())[:160]} |||||"
            continue
        worst = [max(pair) for pair in zip(worst, gaps, strict=True)]
        ratios.append(eager / fast)
        yield (
            f"| {name} | {gaps[0]:.1e} | {gaps[1]:.1e} | {eager:.2f} | {fast:.2f} "
            f"| {eager / fast:.1f} |"
        )
    if ratios:
        yield (
            f"\nLargest difference between devices {worst[0]:.1e}, of recorded runs {worst[1]:.1e} "
            f"of the largest value; moves / recorded: {min(ratios):.1f} to {max(ratios):.1f} in "
            "time."
        )


def noise_table(clock: Clock) -> Iterator[str]:
    device = clock.device
    yield "\nOne draw of default noise, milliseconds\n"
    yield "| shape | host | 4 threads | 8 threads | host and copy | device generator |"
    yield "|---|---|---|---|---|---|"
    for shape in ((64, 3, 32, 32), (512, 3, 32, 32)):
        if not clock.left(f"noise {shape}"):
            continue
        like = torch.empty(shape, device=device)
        sources = [SampleNoise(0, first=i * shape[0] // 8) for i in range(8)]

        def part(source: SampleNoise, count: int, event: Any = shape[1:]) -> Tensor:
            return source.rows(count, event, 0)

        def parts(
            map_: Callable[..., Any], count: int, own: Any = sources, n: int = shape[0]
        ) -> Any:
            return list(map_(part, own[:count], [n // count] * count))

        times = [clock.ms(lambda parts=parts: parts(map, 1))]
        for threads in (4, 8):
            with ThreadPoolExecutor(threads) as pool:
                times.append(clock.ms(lambda p=pool, n=threads, parts=parts: parts(p.map, n)))
        whole = SampleNoise(0)
        times.append(clock.ms(lambda like=like, n=whole: n(like, LEVEL, LEVEL)))
        torch_noise = TorchNoise(torch.Generator(device).manual_seed(0))
        times.append(clock.ms(lambda like=like, n=torch_noise: n(like, LEVEL, LEVEL)))
        yield f"| {shape} | " + " | ".join(f"{t:.2f}" for t in times) + " |"


def unet_table(clock: Clock, batches: tuple[int, ...], width: int) -> Iterator[str]:
    device = clock.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = filled(
            sg.UNet(channels=3, width=width, mults=(1, 2, 2), attention=(False, True, True))
        )
    model = sg.ScoreNetwork(net.to(device), sg.VPSDE(), sg.V())
    count = sum(p.numel() for p in net.parameters())
    yield f"\nU-Net of {count / 1e6:.1f} M parameters, 32 x 32 x 3, {STEPS} moves, images a second\n"
    yield "| batch | network alone | sampler | default noise | device noise | recorded | compiling |"
    yield "|---|---|---|---|---|---|---|"
    for batch in batches:
        shape = (batch, 3, 32, 32)
        x, t = torch.randn(shape, device=device), torch.zeros(batch, device=device)

        def alone(x: Tensor = x, t: Tensor = t) -> None:
            with torch.no_grad():
                for _ in range(STEPS):
                    net(x, t)

        for solver in (sg.UniPC(2), sg.Ancestral()):
            if not clock.left(f"U-Net, batch {batch}, {solver}", 4.0):
                continue
            sampler = sg.Sampler(solver, sg.UniformLam(STEPS))
            g = torch.Generator(device).manual_seed(0)
            bare = clock.ms(alone, 3)
            default = clock.ms(lambda s=sampler, h=shape: s.sample(model, h, seed=0), 3)
            fast = clock.ms(lambda s=sampler, h=shape, g=g: s.sample(model, h, seed=g), 3)
            start = clock.now()
            run = sampler.compiled(model, shape)
            made = clock.now() - start
            graph = clock.ms(lambda r=run: r(seed=0), 3)
            del run
            rates = " | ".join(f"{1e3 * batch / ms:.0f}" for ms in (default, fast, graph))
            name = type(solver).__name__
            yield f"| {batch} | {1e3 * batch / bare:.0f} | {name} | {rates} | {made:.1f} s |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=110.0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    device = torch.device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    clock = Clock(device, options.seconds)
    card = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor()
    lines = [f"{card}, torch {torch.__version__}, CUDA {torch.version.cuda}\n"]
    print(lines[0])
    batches, width = ((16, 64, 256), 128) if device.type == "cuda" else ((2,), 16)
    for part in (
        solvers_table(clock),
        noise_table(clock),
        unet_table(clock, batches, width),
    ):
        try:
            for line in part:
                print(line, flush=True)
                lines.append(line)
        except Exception as error:  # the other parts still tell something
            lines.append(f"\nstopped: {type(error).__name__}: {error}")
            print(lines[-1], flush=True)
    if clock.skipped:
        lines.append("\nLeft out for want of time: " + "; ".join(clock.skipped))
        print(lines[-1])
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
