"""The training loop: a generator, so that the caller's `for` is where logging and stopping live."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch.utils.data import Dataset

from .._checks import (
    check_callable,
    check_count,
    check_device,
    check_flag,
    check_kind,
    check_number,
    check_path,
    check_range,
    shown,
)
from .._files import probe
from .._identity import recipe, structure
from ..data import Source, as_source
from ..models import Conditions, ScoreModel, conditions_of
from ..models.base import check_model
from ..objectives import DenoisingScoreMatching, Objective
from .batches import ConditionDropout, warn_of_scale
from .card import describe_model, undescribed
from .checkpoint import check_target
from .ema import EMA
from .engine import Engine, Shard, divisible
from .loop import RESUME, Kept, Loop, TrainingError, TrainStep
from .posthoc import PostHoc
from .resume import Moments, Run, restore_moments
from .settings import TrainSettings, learning_rate
from .watch import Look, Watch

__all__ = ["TrainStep", "TrainingError", "fit", "learning_rate"]


def fit(
    model: ScoreModel,
    data: Source | Dataset | Iterable[Any],
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
    dropout: Mapping[str, float] | None = None,
    patience: int = 10,
    out: str | os.PathLike[str] | None = None,
    save_every: int = 1000,
    resume: bool = True,
    objective_name: str | None = None,
    posthoc: PostHoc | None = None,
    watch: Watch | None = None,
    accumulate: int | None = None,
    accelerator: Any = None,
    shard: Shard | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Iterator[TrainStep]:
    """Train a model in place, one step per turn of the caller's loop.

    AdamW with a warmed-up cosine rate and an average of the weights (Ho et al. 2020, 2006.11239,
    Algorithm 1, for the default objective). Order of data, times, noise, dropped conditions and
    dropout are functions of (seed, step), so a training that was stopped and resumed ends, on a
    CPU, with the same bits as one that was not. Ctrl-C, SIGTERM, SIGHUP, and leaving the loop,
    save; a killed process loses at most `save_every` steps.

    Args:
        model: what to train; it is moved to the device and left with the last weights.
        data: the samples: `Data`, a map-style dataset of floats, an iterable of batches of floats,
            or a source of `scoregen.data`. Their conditions go to the model, which must declare
            them; labels are a condition with classes.
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
        dropout: name -> share, for conditions of any name: each is replaced by the null value that
            the network declares, independently of the others.
        patience: steps in a row without a finite gradient, each skipped, before giving up.
        out: folder for `resume.safetensors` and the checkpoint `model` with the averaged weights,
            both written at every save, and `log.jsonl`; None writes nothing.
        save_every: steps between two saves.
        resume: continue from the resume file, if there is one and it is of this training: the same
            data by content, the same network by its settings, the same objective by its fields and
            code.
        objective_name: stands for an objective that has no such description, as one that
            reads an open file; change it whenever the objective changes.
        posthoc: averages whose length is chosen afterwards, by `reconstruct`; needs `out`.
        watch: held-out loss, best checkpoint, samples and pictures on the way; needs `out`.
        accumulate: backward passes per update, each of an equal part of a process's share of the
            batch, where memory is short; the Accelerator's own number, or 1, unless given.
        accelerator: an `accelerate.Accelerator`, for several processes, bf16, or trackers.
        shard: divides the weights among the processes of the Accelerator before the first step,
            for instance `lambda model: torch.distributed.fsdp.fully_shard(model)`; an Accelerator
            with an FSDP2 plugin needs none.
        device: where to train; the model's own device unless given.
        progress: show a bar, on a terminal.

    A `DenoisingScoreMatching` draws times and noise for the whole batch, so that any number of
    processes and of parts trains the same, but for the order of sums; it may change when a
    training is resumed. Dropout inside the network, and the draws of other objectives, are made
    part by part: there, p processes with a parts each train as one process with p a parts does.

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
    check_model(model)
    objective = DenoisingScoreMatching() if objective is None else objective
    _check_objective(objective)
    for name, value, kind, example in (
        ("objective_name", objective_name, str, '"my loss, version 1"'),
        ("posthoc", posthoc, PostHoc, "PostHoc(every=100)"),
        ("watch", watch, Watch, "Watch(every=100, data=held_out)"),
        ("accelerator", accelerator, Accelerator, "accelerate.Accelerator()"),
    ):
        if value is not None:
            check_kind(name, value, kind, example)
    if shard is not None:
        check_callable("shard", shard, "(model), such as torch.distributed.fsdp.fully_shard")
    check_flag("resume", resume)
    check_flag("progress", progress)
    folder = None if out is None else check_path("out", out)
    steps = check_count("steps", steps)
    known = conditions_of(model) or Conditions()
    source = as_source(data, known.classes)
    _check_conditions(model, source, known)
    dropped = ConditionDropout(_shares(source, label_dropout, dropout), known)
    settings = TrainSettings(
        steps=steps,
        batch=batch,
        lr=lr,
        seed=seed,
        warmup=min(500, steps // 10) if warmup is None else warmup,
        weight_decay=weight_decay,
        grad_clip=grad_clip,
        ema_decay=ema_decay,
        dropout=dropped.share,
        patience=patience,
        save_every=save_every,
        accumulate=_accumulate(accelerator, accumulate),
    )
    parts = _world(accelerator, settings, shard) * settings.accumulate
    source.serve(settings.batch, settings.seed)
    if accelerator is not None:
        device = accelerator.device
    place = model.placement()[0] if device is None else check_device("device", device)
    power = source.mean_square()
    if power is not None:
        warn_of_scale(model, power)
    kept = None
    if folder is not None:
        folder = probe(folder)
        check_target(folder / "model", overwrite=True)
        identity = source.identity()
        if identity is None:
            raise ValueError(
                f"nothing identifies the data {source.name!r}, so that out={str(folder)!r} could "
                "be continued with other data unnoticed: declare an identity, or leave `out` out"
            )
        if source.range is not None:
            check_range("data.range", source.range)  # of a source of one's own: for the card
        _warn_of_own_parts(model, folder)
        description = {
            **settings.fixed(),
            "processes": 1 if divisible(objective) else parts,
            "data": identity,
            "model": structure(model),
            "objective": recipe(objective) if objective_name is None else objective_name,
            **({} if posthoc is None else {"posthoc": posthoc.sigma_rel}),
        }
        look = None
        if watch is not None:
            look = Look(watch, source, known.classes, objective, folder, place)
            if look.held_out is not None:
                _check_conditions(model, look.held_out, known)
        kept = Kept(folder, description, posthoc, look)
    elif posthoc is not None or watch is not None:
        raise ValueError("posthoc and watch write files: give fit a folder for them, out=...")
    model.to(place)
    averages = [] if posthoc is None else posthoc.averages(model)
    done = {"step": 0, "skipped": 0, "failed": 0}
    run = Run(model, EMA(model, settings.ema_decay), averages, objective, done, {})
    moments: Moments = {}
    if kept is not None:
        run.remember_start()
        if resume and (kept.folder / RESUME).exists():
            moments = run.read(kept.folder / RESUME, kept.identity)
    every = [run.ema, *averages]
    engine = Engine(model, objective, every, settings, source.event, place, accelerator, shard)
    if moments:
        restore_moments(engine.optimizer, moments)
    return Loop(run, source, settings, dropped, engine, kept).steps(progress)


@runtime_checkable
class Accelerator(Protocol):
    """What an `accelerate.Accelerator` is known by, which is not imported here."""

    gradient_accumulation_steps: int
    mixed_precision: str


def _check_objective(objective: object) -> None:
    """An objective is called as it is given: a class would be made in every step."""
    if isinstance(objective, type):
        raise TypeError(
            f"objective must be an instance, such as DenoisingScoreMatching(); got "
            f"{shown(objective)}: make an instance of it"
        )
    check_callable("objective", objective, "(model, x0, *, generator, **condition) of losses")


def _check_conditions(model: ScoreModel, source: Source, known: Conditions) -> None:
    """Conditions that are given must be taken: dropped ones train another model."""
    if source.classes and not known.classes:
        raise ValueError(
            f"the data have labels of {source.classes} classes, and {type(model).__name__} "
            f"declares none: build the network with classes={source.classes}, declare those of a "
            "network of your own by ScoreNetwork(..., conditions=Conditions.labels("
            f"{source.classes})), or leave the labels out by data.unlabelled()"
        )
    if source.classes > known.classes:
        raise ValueError(f"the data have {source.classes} classes and the network {known.classes}")
    unknown = [name for name in source.conditions if name not in known.null]
    if unknown:
        names = ", ".join(map(repr, known.null)) or "none"
        raise ValueError(
            f"the data come with the conditions {unknown}, and the network declares {names}: "
            "declare each with its null value, by ScoreNetwork(..., conditions=Conditions({name: "
            "null})), or leave it out of the data"
        )


def _shares(
    source: Source, label_dropout: float | None, dropout: Mapping[str, float] | None
) -> dict[str, float]:
    """The share of each condition that is replaced by its null value."""
    if dropout is not None:
        check_kind("dropout", dropout, Mapping, '{"label": 0.1}')
    shares = {
        name: check_number(f"dropout[{name!r}]", share, 0.0, 1.0)
        for name, share in (dropout or {}).items()
    }
    if label_dropout is not None:
        label_dropout = check_number("label_dropout", label_dropout, 0.0, 1.0)
        if "label" in shares:
            raise ValueError("give either label_dropout or dropout['label'], not both")
        if label_dropout and "label" not in source.conditions:
            raise ValueError("label_dropout needs labelled data and a network with classes")
        shares["label"] = label_dropout
    elif "label" in source.conditions:
        shares.setdefault("label", 0.1)
    unserved = [name for name, share in shares.items() if share and name not in source.conditions]
    if unserved:
        names = ", ".join(map(repr, source.conditions)) or "none"
        raise ValueError(f"dropout of {unserved}, which the data do not have; they have {names}")
    return {name: share for name, share in shares.items() if name in source.conditions}


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


def _accumulate(accelerator: Any, accumulate: int | None) -> int:
    """Parts of a process's share: the argument, or what the Accelerator was set to."""
    own = 1 if accelerator is None else accelerator.gradient_accumulation_steps
    if accumulate is None:
        return int(own)
    accumulate = check_count("accumulate", accumulate)
    if own not in (1, accumulate):
        raise ValueError(
            f"accumulate = {accumulate}, and the Accelerator has gradient_accumulation_steps = "
            f"{own}: give one of the two"
        )
    return accumulate


def _world(accelerator: Any, settings: TrainSettings, shard: Shard | None) -> int:
    """The number of processes, which share the batch."""
    if shard is not None and accelerator is None:
        raise ValueError("shard divides weights among the processes of an Accelerator: give one")
    if accelerator is not None and accelerator.mixed_precision == "fp16":
        raise ValueError(
            "fit takes an Accelerator with bf16 instead of fp16, whose loss scale could not be "
            "resumed"
        )
    world: int = 1 if accelerator is None else accelerator.num_processes
    if settings.batch % (world * settings.accumulate):
        raise ValueError(
            f"batch = {settings.batch} must be a multiple of the {world} processes sharing it, "
            f"times {settings.accumulate} parts of each"
        )
    return world
