"""Steps per second of `fit` beside a bare PyTorch loop and the recipes of other libraries.

    python benchmarks/training/throughput.py [--device cuda] [--batch 128] [--compile] [--out FILE]

Every loop trains the digits U-Net (0.28 M parameters, class-conditional) on the same tensors: a
batch in random order, times and noise, v-prediction or the recipe's own target, the norm of the
gradient clipped at 1, AdamW, an average of the weights.

- `bare`: the loop one writes for this network and loss alone, with fused AdamW and a foreach
  average, and nothing saved, checked or logged.
- `azula`: `SimpleDenoiser.loss` with torch's default AdamW and `AveragedModel`, since azula brings
  neither.
- `diffusers`: the steps of its unconditional training example: `DDPMScheduler.add_noise`, squared
  error of eps, AdamW, `EMAModel`, its rate schedule, the loss logged in every step.

With `--compile` the network of every loop is compiled, on CUDA with its kernels recorded
(`mode="reduce-overhead"`), as it is where a network of many small kernels waits for the host.

Rounds are interleaved, so that drift of the machine hits all alike. On a CPU the processor's time
is counted, which a busy machine stretches less than the clock's. Shown are the medians over the
rounds of the ratio of two loops in the same round, with the quartiles.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import scoregen as sg
from scoregen.objectives import DenoisingScoreMatching, Unit
from scoregen.training import fit

DECAY, CLIP, LR = 0.999, 1.0, 2e-3
Make = Callable[[], nn.Module]


def network(device: torch.device, compiled: bool) -> nn.Module:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        net = sg.UNet(channels=1, width=24, classes=10).to(device)
    if not compiled:
        return net
    mode = "reduce-overhead" if device.type == "cuda" else "default"
    recorded: nn.Module = torch.compile(net, mode=mode)
    return recorded


def tensors(device: torch.device) -> tuple[Tensor, Tensor]:
    data = sg.digits("train")
    assert data.label is not None
    return data.x.to(device), data.label.to(device)


def batches(
    x: Tensor, label: Tensor, batch: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches in a random order, a tenth of their labels replaced by the null class."""
    while True:
        order = torch.randperm(len(x), generator=generator, device=x.device)
        for rows in order.split(batch):
            if len(rows) == batch:
                hidden = torch.rand(batch, generator=generator, device=x.device) < 0.1
                yield x[rows], label[rows].masked_fill(hidden, 10)


def ours(make: Make, device: torch.device, batch: int, steps: int) -> Iterator[None]:
    data = sg.digits("train")
    model = sg.ScoreNetwork(make(), sg.VPSDE(), sg.V())
    objective = DenoisingScoreMatching(weight=Unit(sg.V()))
    for _ in fit(
        model, data, objective, steps=steps, batch=batch, lr=LR, device=device, progress=False
    ):
        yield


def bare(make: Make, device: torch.device, batch: int, steps: int) -> Iterator[None]:
    net, average = make(), make()
    optimizer = torch.optim.AdamW(net.parameters(), LR, weight_decay=0.0, fused=True)
    weights, averages = list(net.parameters()), list(average.parameters())
    generator = torch.Generator(device).manual_seed(0)
    for x0, label in batches(*tensors(device), batch, generator):
        t = 1e-3 + (1 - 1e-3) * torch.rand(batch, generator=generator, device=device)
        eps = torch.randn(x0.shape, generator=generator, device=device)
        log_alpha = -0.25 * 19.9 * t**2 - 0.05 * t
        alpha, sigma = log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()
        a, s = alpha[:, None, None, None], sigma[:, None, None, None]
        out = net(a * x0 + s * eps, (alpha / sigma).log(), label)
        loss = (out - (a * eps - s * x0)).square().flatten(1).sum(1).mean()
        (loss / 64).backward()
        nn.utils.clip_grad_norm_(weights, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, 1 - DECAY)
        yield


def azula(make: Make, device: torch.device, batch: int, steps: int) -> Iterator[None]:
    from azula.denoise import SimpleDenoiser
    from azula.noise import VPSchedule

    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = make()

        def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
            return self.net(x, t, label)

    denoiser = SimpleDenoiser(Backbone(), VPSchedule()).to(device)
    optimizer = torch.optim.AdamW(denoiser.parameters(), LR, weight_decay=0.0)
    average = torch.optim.swa_utils.AveragedModel(
        denoiser, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(DECAY)
    )
    generator = torch.Generator(device).manual_seed(0)
    for x0, label in batches(*tensors(device), batch, generator):
        t = torch.rand(batch, device=device)
        denoiser.loss(x0, t, label=label).backward()
        nn.utils.clip_grad_norm_(denoiser.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(denoiser)
        yield


def diffusers(make: Make, device: torch.device, batch: int, steps: int) -> Iterator[None]:
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    net = make()
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    average = EMAModel(net.parameters(), decay=DECAY, use_ema_warmup=True)
    average.to(device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=0.0)
    rates = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=steps)
    generator = torch.Generator(device).manual_seed(0)
    logged = []
    for x0, label in batches(*tensors(device), batch, generator):
        noise = torch.randn(x0.shape, device=device)
        t = torch.randint(0, 1000, (batch,), device=device)
        noisy = scheduler.add_noise(x0, noise, t)
        loss = mse_loss(net(noisy, t.float(), label), noise)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), CLIP)
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
        average.step(net.parameters())
        logged.append(loss.detach().item())
        yield


LOOPS: dict[str, Callable[[Make, torch.device, int, int], Iterator[None]]] = {
    "scoregen": ours,
    "bare": bare,
    "azula": azula,
    "diffusers": diffusers,
}


def measured(
    names: list[str],
    make: Make,
    device: torch.device,
    batch: int,
    rounds: int,
    seconds: float,
) -> dict[str, list[float]]:
    """Milliseconds per step of each loop, one number for each round."""
    running: dict[str, Iterator[None]] = {}
    for name in names:
        try:
            loop = LOOPS[name](make, device, batch, 10**6)
            for _ in range(10):
                next(loop)
            running[name] = loop
        except ImportError as error:
            print(f"{name}: left out, {error}")

    def wait() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def run(loop: Iterator[None], count: int) -> float:
        start = wait()
        for _ in range(count):
            next(loop)
        return (wait() - start) / count * 1e3

    once = max(run(loop, 3) for loop in running.values()) / 1e3
    count = max(3, round(seconds / once))
    found: dict[str, list[float]] = {name: [] for name in running}
    for k in range(rounds):
        order = list(running)
        for name in order[k % len(order) :] + order[: k % len(order)]:
            found[name].append(run(running[name], count))
    return found


def ratio(above: list[float], below: list[float]) -> str:
    """Median and quartiles of the ratio within rounds."""
    values = [a / b for a, b in zip(above, below, strict=True)]
    if len(values) < 2:
        return f"{values[0]:.3f}"
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def report(found: dict[str, list[float]], device: torch.device, batch: int, compiled: bool) -> str:
    place = platform.processor() or platform.machine()
    if device.type == "cuda":
        place = torch.cuda.get_device_name(device)
    how = "compiled networks" if compiled else "networks as they are"
    lines = [
        f"torch {torch.__version__}, {place}, {torch.get_num_threads()} thread(s), batch {batch}, {how}",
        "loop        ms per step, median   scoregen's speed over it, median (quartiles)",
    ]
    for name, times in found.items():
        relative = "" if name == "scoregen" else ratio(times, found["scoregen"])
        lines.append(f"{name:11s} {statistics.median(times):19.3f}   {relative}")
    peers = [name for name in found if name not in ("scoregen", "bare")]
    if peers:
        best = min(peers, key=lambda name: statistics.median(found[name]))
        lines.append(f"best peer: {best}")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, nargs="+", default=[128])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a loop in a round, about")
    parser.add_argument("--loops", nargs="+", default=list(LOOPS), choices=list(LOOPS))
    parser.add_argument("--compile", action="store_true", help="the networks of all loops")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    device, text = torch.device(args.device), ""
    for batch in args.batch:
        make = partial(network, device, args.compile)
        found = measured(args.loops, make, device, batch, args.rounds, args.seconds)
        shown = report(found, device, batch, args.compile)
        text += shown
        print(shown, flush=True)
    if args.out is not None:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
