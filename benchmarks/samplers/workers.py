"""What two workers gain: one study of the digits in this process and over a pool of processes.

    python benchmarks/samplers/workers.py [--seeds 28] [--workers 2]

Twenty-eight seeds take two minutes or more with one thread. Printed are the wall time, which on a
machine that others use too says little, and the processor time of all processes, in which waiting
for a processor does not count: workers x (time of one) / (time of all) is the gain on free
processors, apart from the wait for the last cell. The tables must be equal bit for bit.

`apart` is what the machine allows: as many processes that know nothing of one another, each with
its share of the seeds. Cores that share a cache, a memory bus or one physical core are slower
together than alone, and no way of dividing the work brings more than that.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch

import scoregen as sg

SAMPLERS = {
    "DDIM": sg.Sampler(sg.DDIM(), sg.UniformLam(10)),
    "DPM-Solver++ 2M": sg.Sampler(sg.DPMSolverPP(), sg.UniformLam(10)),
}


def study(seeds: int, executor: Any) -> sg.comparison.Comparison:
    train = sg.digits("train")
    return sg.compare(
        sg.digits_model(),
        SAMPLERS,
        steps=(10, 20),
        metrics=[sg.metrics.SlicedWasserstein(64), sg.metrics.Frechet(sg.metrics.digits_features)],
        reference=train,
        samples=297,
        seeds=range(seeds),
        condition={"label": train.label[torch.arange(297)]},
        executor=executor,
        threads=1,
        progress=False,
    )


def timed(run: Callable[[], Any]) -> tuple[Any, float, float]:
    """What a call gives, its wall time, and the processor time of this process and its children."""

    def used() -> float:
        times = os.times()
        return times.user + times.system + times.children_user + times.children_system

    before, began = used(), time.perf_counter()
    result = run()
    return result, time.perf_counter() - began, used() - before


def pooled(seeds: int, workers: int) -> sg.comparison.Comparison:
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return study(seeds, pool)


def apart(seeds: int, workers: int) -> None:
    """The same work without a pool: each process has its share of the seeds."""
    shares = [len(range(k, seeds, workers)) for k in range(workers)]
    processes = [get_context("spawn").Process(target=study, args=(n, None)) for n in shares]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError("a process ended early")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=28)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    one, wall_one, cpu_one = timed(lambda: study(options.seeds, None))
    many, wall_many, cpu_many = timed(lambda: pooled(options.seeds, options.workers))
    _, wall_apart, cpu_apart = timed(lambda: apart(options.seeds, options.workers))
    same = [(r.value, r.stderr) for r in one.rows] == [(r.value, r.stderr) for r in many.rows]
    print(f"{len(one.rows)} rows, equal bit for bit: {same}")
    print(f"one process: wall {wall_one:.1f} s, processors {cpu_one:.1f} s")
    print(f"{options.workers} workers: wall {wall_many:.1f} s, processors {cpu_many:.1f} s")
    print(f"{options.workers} apart: wall {wall_apart:.1f} s, processors {cpu_apart:.1f} s")
    free = [options.workers * cpu_one / cpu for cpu in (cpu_many, cpu_apart)]
    print(f"gain in wall time {wall_one / wall_many:.2f}, apart {wall_one / wall_apart:.2f}")
    print(f"gain on free processors {free[0]:.2f}, apart {free[1]:.2f}")


if __name__ == "__main__":
    main()
