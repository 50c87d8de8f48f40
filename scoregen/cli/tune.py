"""The command that fits a sampler to a checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch

from .._files import probe
from ..guidance import ClassifierFree
from ..models import ScoreModel
from ..tuning import Tuned, save_sampler
from ..tuning import tune as run_tune
from .inputs import BUNDLED, card_of, model_of


def tune(
    checkpoint: str = BUNDLED,
    *,
    nfe: int = 5,
    label: tuple[int, ...] = (),
    guidance: float = 1.0,
    trajectories: int | None = None,
    seed: int = 0,
    out: Path = Path("runs/tune/sampler.json"),
    device: str | None = None,
) -> None:
    """Fit a sampler of few evaluations to a network's own trajectories, and save it as JSON.

    Args:
        checkpoint: a folder, or "digits" for the bundled network.
        nfe: evaluations of the network per sample, 2 to 20; guidance calls it twice in each.
        label: classes to fit to, repeated over the trajectories; none: without a condition.
        guidance: classifier-free guidance scale, as in `scoregen sample`.
        trajectories: of the fit, and as many for its check; 128 unless given.
        seed: of their noise.
        out: file to write.
        device: cpu, cuda, ...
    """
    model: ScoreModel = model_of(checkpoint, device)
    event = card_of(checkpoint)["event"]
    if event is None:
        raise ValueError(
            f"the card of {checkpoint} does not say which shape a sample has; use "
            "scoregen.tuning.tune(model, nfe, event=...)"
        )
    if guidance != 1.0:
        if not label:
            raise ValueError("guidance needs a --label to guide towards")
        model = ClassifierFree(model, guidance)
    condition = {"label": torch.tensor(label)} if label else None
    probe(out.parent)
    sampler = run_tune(
        model,
        nfe,
        event=tuple(event),
        condition=condition,
        trajectories=trajectories,
        seed=seed,
    )
    if isinstance(sampler.solver, Tuned):
        print(sampler.solver)
    print(f"sampler: {save_sampler(sampler, out, model)}")
