"""The training loop: a generator, so that the caller's `for` is where logging and stopping live."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .._checks import check_count, check_number
from .._files import probe
from ..data.dataset import Data
from ..models import ScoreModel
from ..objectives import DenoisingScoreMatching, Objective
from .ema import EMA
from .loop import RESUME, Loop, Loss, TrainingError, TrainStep, learning_rate, network_classes
from .resume import Run

__all__ = ["TrainStep", "TrainingError", "fit", "learning_rate"]


def fit(
    model: ScoreModel,
    data: Data,
    objective: Objective | None = None,
    *,
    steps: int,
    batch: int = 128,
    lr: float = 2e-3,
    seed: int = 0,
    warmup: int | None = None,
    weight_decay: float = 0.0,
    grad_clip: float = 1.0,
    ema_decay: float = 0.999,
    label_dropout: float | None = None,
    patience: int = 10,
    out: str | Path | None = None,
    save_every: int = 1000,
    resume: bool = True,
    accelerator: Any = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Iterator[TrainStep]:
    """Train a model in place, one step per turn of the caller's loop.

    AdamW with a warmed-up cosine rate and an average of the weights (Ho et al. 2020, 2006.11239,
    Algorithm 1, for the default objective). Order of data, times, noise, dropped labels and dropout
    are functions of (seed, step), so a training that was stopped and resumed ends, on a CPU, with
    the same bits as one that was not; Ctrl-C, or leaving the loop, saves.

    Args:
        model: what to train; it is moved to the device and left with the last weights.
        data: the samples; labels are used if the network has classes.
        objective: the loss per sample; `DenoisingScoreMatching()` unless given.
        steps: updates in all, those before a resume included.
        batch: samples per update, over all processes together.
        lr: largest learning rate of AdamW.
        seed: of everything random.
        warmup: steps of rising rate; a tenth of `steps`, at most 500, unless given.
        weight_decay: of AdamW.
        grad_clip: largest norm of the gradient of the loss per coordinate; inf for none.
        ema_decay: decay of the average in the long run.
        label_dropout: share of labels replaced by the null class; 0.1 with classes unless given.
        patience: steps in a row without a finite gradient, each skipped, before giving up.
        out: folder for `resume.safetensors` and, at the end, the checkpoint `model` with the
            averaged weights; None writes nothing.
        save_every: steps between two resume files.
        resume: continue from the resume file, if there is one.
        accelerator: an `accelerate.Accelerator`, for several processes or mixed precision.
        device: where to train; the model's own device unless given.
        progress: show a bar.

    Yields:
        A `TrainStep` after every update.

    Raises:
        TrainingError: if `patience` steps in a row have no finite gradient.
        CheckpointError: if `out` cannot be written, or holds another training.
        ValueError, TypeError: for arguments that do not fit.

    >>> from scoregen import MLP, V, VPSDE, Data, ScoreNetwork
    >>> from scoregen.data.targets import rings
    >>> model = ScoreNetwork(MLP(hidden=16), VPSDE(), V())
    >>> last = [*fit(model, Data(rings(64, 0)), steps=3, batch=32, progress=False)][-1]
    >>> last.step, last.ema.sde == model.sde
    (3, True)
    """
    check_count("steps", steps)
    check_count("save_every", save_every)
    check_count("patience", patience)
    check_number("lr", lr, 0.0, open_low=True)
    check_number("grad_clip", grad_clip, 0.0, open_low=True)
    check_number("weight_decay", weight_decay, 0.0)
    warmup = min(500, steps // 10) if warmup is None else check_count("warmup", warmup, 0)
    if not isinstance(data, Data):
        raise TypeError(f"data must be scoregen Data, got {type(data).__name__}; use Data(x)")
    classes = network_classes(model)
    if label_dropout is None:
        label_dropout = 0.1 if classes and data.label is not None else 0.0
    check_number("label_dropout", label_dropout, 0.0, 1.0)
    if classes and data.label is not None and data.classes > classes:
        raise ValueError(f"the data have {data.classes} classes and the network {classes}")
    if label_dropout and not (classes and data.label is not None):
        raise ValueError("label_dropout needs labelled data and a network with classes")
    world = _world(accelerator, batch)
    data.batches(batch, seed)
    loss = Loss(model, objective or DenoisingScoreMatching())
    settings = {
        "steps": steps,
        "batch": batch,
        "lr": lr,
        "seed": seed,
        "warmup": warmup,
        "weight_decay": weight_decay,
        "grad_clip": str(grad_clip),
        "ema_decay": ema_decay,
        "label_dropout": label_dropout,
        "objective": repr(loss.objective),
        "data": [data.name, len(data), *data.event],
        "model": {k: list(v.shape) for k, v in model.state_dict().items()},
        "process": [repr(vars(model).get(k)) for k in ("sde", "parameterization", "clock")],
        "processes": world,
    }
    if accelerator is not None:
        device = accelerator.device
    place = model.placement()[0] if device is None else torch.device(device)
    model.to(place)
    parameters = [p for p in model.parameters() if p.requires_grad]
    fused = place.type in ("cpu", "cuda") and all(p.is_floating_point() for p in parameters)
    optimizer = torch.optim.AdamW(parameters, lr, weight_decay=weight_decay, fused=fused)
    run = Run(model, EMA(model, ema_decay), optimizer, {"step": 0, "skipped": 0})
    folder = None if out is None else probe(out)
    if folder is not None and resume and (folder / RESUME).exists():
        run.read(folder / RESUME, settings)
    loop = Loop(run, data, loss, place, settings, folder, save_every, patience, accelerator)
    return loop.steps(progress)


def _world(accelerator: Any, batch: int) -> int:
    """The number of processes, which share the batch."""
    if accelerator is None:
        return 1
    if accelerator.gradient_accumulation_steps != 1 or accelerator.mixed_precision == "fp16":
        raise ValueError(
            "fit takes an Accelerator without gradient accumulation, and bf16 instead of fp16, "
            "whose loss scale could not be resumed"
        )
    world: int = accelerator.num_processes
    if batch % world:
        raise ValueError(f"batch = {batch} must be a multiple of the {world} processes sharing it")
    return world
