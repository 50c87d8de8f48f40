"""One rank under torchrun: its part of a batch, gathered and compared by the first rank."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from scoregen import MLP, VPSDE, Ancestral, Sampler, ScoreNetwork, UniformTime, V
from scoregen.guidance import ClassifierFree
from scoregen.sampling import sharded

BATCH, CHUNK = 16, 4


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.manual_seed(0)
    net = MLP(event=(2,), classes=3)
    scales = torch.linspace(0.5, 3.0, BATCH)
    model = ClassifierFree(ScoreNetwork(net, VPSDE(), V()), scales)
    sampler, shape = Sampler(Ancestral(), UniformTime(5)), (BATCH, 2)
    condition = {"label": torch.arange(BATCH) % 3}
    part = sharded(sampler, rank, world).sample(
        model, shape, seed=7, condition=condition, chunk=CHUNK
    )
    parts = [None] * world if rank == 0 else None
    dist.gather_object(part, parts)
    if parts is not None:
        whole = sampler.sample(model, shape, seed=7, condition=condition, chunk=CHUNK)
        same = torch.equal(torch.cat(parts), whole)
        Path(sys.argv[1]).write_text(f"{world} ranks, equal: {same}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
