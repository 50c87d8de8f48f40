"""The training loop: a generator, so that the caller's `for` is where logging and stopping live."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .._files import probe
from .._identity import recipe, structure
from ..data.dataset import Data
from ..models import ScoreModel, conditions_of
from ..objectives import DenoisingScoreMatching, Objective
from ..processes import StaticSDE
from .card import describe_model, undescribed
from .checkpoint import check_target
from .ema import EMA
from .loop import RESUME, Loop, TrainingError, TrainStep
from .resume import Run
from .settings import TrainSettings, learning_rate

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
    objective_name: str | None = None,
    accelerator: Any = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Iterator[TrainStep]:
    """Train a model in place, one step per turn of the caller's loop.

    AdamW with a warmed-up cosine rate and an average of the weights (Ho et al. 2020, 2006.11239,
    Algorithm 1, for the default objective). Order of data, times, noise, dropped labels and dropout
    are functions of (seed, step), so a training that was stopped and resumed ends, on a CPU, with
    the same bits as one that was not. Ctrl-C, SIGTERM, SIGHUP, and leaving the loop, save; a killed
    process loses at most `save_every` steps.

    Args:
        model: what to train; it is moved to the device and left with the last weights.
        data: the samples. Their labels go to the model, which must declare its classes.
        objective: the loss per sample; `DenoisingScoreMatching()` unless given.
        steps: updates in all, those before a resume included.
        batch: samples per update, over all processes together.
        lr: largest learning rate of AdamW.
        seed: of everything random.
        warmup: steps of rising rate; a tenth of `steps`, at most 500, unless given.
        weight_decay: of AdamW.
        grad_clip: largest norm of the gradient of the loss per coordinate; inf for none.
        ema_decay: decay of the average in the long run.
        label_dropout: share of labels replaced by the null class; 0.1 with labels unless given.
        patience: steps in a row without a finite gradient, each skipped, before giving up.
        out: folder for `resume.safetensors` and the checkpoint `model` with the averaged weights,
            both written at every save; None writes nothing.
        save_every: steps between two saves.
        resume: continue from the resume file, if there is one and it is of this training: the same
            data by content, the same network by its settings, the same objective by its fields and
            code.
        objective_name: stands for an objective that has no such description, as one that
            reads an open file; change it whenever the objective changes.
        accelerator: an `accelerate.Accelerator`, for several processes or mixed precision.
        device: where to train; the model's own device unless given.
        progress: show a bar, on a terminal.

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
    if not isinstance(model, ScoreModel):
        raise TypeError(
            f"model must be a ScoreModel, got {type(model).__name__}; wrap a network: "
            "ScoreNetwork(net, VPSDE(), V())"
        )
    if not isinstance(data, Data):
        raise TypeError(f"data must be scoregen Data, got {type(data).__name__}; use Data(x)")
    labelled = data.label is not None
    known = conditions_of(model)
    classes = 0 if known is None else known.classes
    _check_labels(model, data, classes)
    if label_dropout and not labelled:
        raise ValueError("label_dropout needs labelled data and a network with classes")
    settings = TrainSettings(
        steps=steps,
        batch=batch,
        lr=lr,
        seed=seed,
        warmup=_warmup(steps) if warmup is None else warmup,
        weight_decay=weight_decay,
        grad_clip=grad_clip,
        ema_decay=ema_decay,
        label_dropout=0.1 * labelled if label_dropout is None else label_dropout,
        patience=patience,
        save_every=save_every,
    )
    world = _world(accelerator, batch)
    data.batches(batch, seed)
    _warn_of_scale(model, data)
    objective = DenoisingScoreMatching() if objective is None else objective
    folder, description = None, {}
    if out is not None:
        folder = probe(out)
        check_target(folder / "model", overwrite=True)
        _warn_of_own_parts(model, folder)
        description = {
            **settings.fixed(),
            "processes": world,
            "data": data.identity(),
            "model": structure(model),
            "objective": recipe(objective) if objective_name is None else objective_name,
        }
    if accelerator is not None:
        device = accelerator.device
    place = model.placement()[0] if device is None else torch.device(device)
    model.to(place)
    parameters = [p for p in model.parameters() if p.requires_grad]
    fused = place.type in ("cpu", "cuda") and all(p.is_floating_point() for p in parameters)
    optimizer = torch.optim.AdamW(parameters, lr, weight_decay=weight_decay, fused=fused)
    done = {"step": 0, "skipped": 0, "failed": 0}
    run = Run(model, EMA(model, ema_decay), optimizer, objective, done, {})
    if folder is not None:
        run.remember_start()
        if resume and (folder / RESUME).exists():
            run.read(folder / RESUME, description)
    loop = Loop(run, data, place, settings, classes, folder, description, accelerator)
    return loop.steps(progress)


def _warmup(steps: int) -> int:
    return min(500, steps // 10) if isinstance(steps, int) else 0


def _check_labels(model: ScoreModel, data: Data, classes: int) -> None:
    """Labels that are given must be taken: dropped ones train another model."""
    if data.label is None:
        return
    if not classes:
        raise ValueError(
            f"the data have labels of {data.classes} classes, and {type(model).__name__} declares "
            f"none: build the network with classes={data.classes}, declare those of a network of "
            f"your own by ScoreNetwork(..., conditions=Conditions.labels({data.classes})), or "
            "leave the labels out by data.unlabelled()"
        )
    if data.classes > classes:
        raise ValueError(f"the data have {data.classes} classes and the network {classes}")


def _warn_of_scale(model: ScoreModel, data: Data) -> None:
    """The data must have vanished at t_max, or samples start from the wrong law."""
    if isinstance(model.sde, StaticSDE):
        return
    last = model.sde.level(model.sde.t_max)
    left = (last.alpha / last.sigma) ** 2 * data.mean_square()
    if left > 1e-2:
        warnings.warn(
            f"at t_max = {last.t:g} the data still have {left:.2g} of the noise's power, "
            "alpha^2 E|x|^2 / (d sigma^2), and sampling starts as if it were 0: train on "
            "data.standardised(), or take a process with more noise",
            UserWarning,
            stacklevel=3,
        )


def _warn_of_own_parts(model: ScoreModel, folder: Path) -> None:
    describe_model(model)
    missing = undescribed(model)
    if missing:
        warnings.warn(
            f"{folder / 'model'} will hold weights and not the code of {missing.what}: keep it, "
            f"and read the checkpoint with load(folder, {missing.argument}=...)",
            UserWarning,
            stacklevel=3,
        )


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
