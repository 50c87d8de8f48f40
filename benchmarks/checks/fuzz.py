"""Call every public function and class with bad arguments, and see what comes back.

    make fuzz           (or: python benchmarks/checks/fuzz.py [-k NAME] [--every N] [--show])

Each callable is first called with good arguments, taken from a table by the parameter's name. Then
one argument at a time is replaced: by NaN, infinities, zero, negative and huge numbers, strings,
None, tensors with NaN, of the wrong shape, of whole or complex numbers, empty ones. Objects are
used after they are built: solvers sample, grids give times, metrics measure. An outcome is one of

    refused   an error that scoregen raises on purpose (ValueError, TypeError, ...)
    finite    an answer without NaN or infinity
    silent    NaN or infinity in the answer to a call with NaN or infinity in it, or to a finite one
    overflow  the same in the answer to a number that no float32 holds
    obscure   an error from somewhere inside
    hang      more than 8 seconds of work, or 80 of waiting

Exits with 1 when there is a silent answer, a hang, or more than 2 % of obscure errors.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import inspect
import itertools
import linecache
import math
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import scoregen as sg

PACKAGE = str(Path(sg.__file__).parent)
PACKAGES = (
    "processes", "noise", "grids", "models", "densities", "networks", "sampling", "solvers",
    "guidance", "energies", "inverse", "mcmc", "likelihood", "analysis", "objectives", "metrics",
    "flowmaps", "latent", "baselines", "data", "training", "tuning", "interop", "comparison",
)  # fmt: skip
MODEL_LOSSES = (
    sg.DenoisingScoreMatching, sg.objectives.ImplicitScoreMatching,
    sg.objectives.SlicedScoreMatching, sg.objectives.ContrastiveDivergence,
    sg.objectives.NoiseContrastive, sg.objectives.PersistentContrastiveDivergence,
    sg.objectives.DiffusionRecovery, sg.objectives.NoiseClassification,
)  # fmt: skip
NOISY_LOSSES = (
    sg.DenoisingScoreMatching, sg.objectives.DiffusionRecovery, sg.objectives.NoiseClassification,
)  # fmt: skip
RESULTS = (
    tuple, list, sg.analysis.Amplification, sg.analysis.OutputLaw, sg.tuning.Tuned,
    sg.comparison.Cell, sg.comparison.Comparison, sg.comparison.Interval, sg.comparison.Row,
    sg.comparison.Summary, sg.comparison.Verdict, sg.training.TrainStep, sg.sampling.Compiled,
    sg.sampling.Sharded,
)  # fmt: skip
# What takes a file or an object of another program, which its own tests have.
FOREIGN = {
    "metrics.InceptionFeatures", "data.cifar10", "interop.as_azula", "interop.from_azula",
    "interop.as_diffusers_scheduler", "interop.from_diffusers", "interop.from_diffusers_vae",
    "interop.DiffusersAutoEncoder", "interop.from_lucidrains", "interop.from_torchebm",
    "interop.to_torchebm", "interop.read_pickle", "interop.Imported",
}  # fmt: skip
SECONDS = 8
OWN_ERRORS = (
    ValueError, TypeError, sg.DivergenceError, sg.training.CheckpointError, NotImplementedError,
    OSError,
)  # fmt: skip


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator())


VP = sg.VPSDE()
EXACT = sg.Gaussian(VP, torch.zeros(2), 0.25)
WELL = sg.Potential(lambda x: x.square().sum(1) / 2)

# What a good argument is, by the name of the parameter; callables, so that each call has its own.
GOOD: dict[str, Callable[[], Any]] = {
    "model": lambda: EXACT, "sde": lambda: VP, "x": lambda: normal(4, 2),
    "x0": lambda: normal(4, 2), "y": lambda: normal(4, 2), "eps": lambda: normal(4, 2),
    "t": lambda: 0.5, "s": lambda: 0.2, "samples": lambda: normal(50, 2),
    "reference": lambda: normal(60, 2), "shape": lambda: (4, 2), "steps": lambda: 5,
    "sampler": lambda: sg.Sampler(sg.DDIM(), sg.UniformTime(4)), "solver": lambda: sg.DDIM(),
    "grid": lambda: sg.UniformTime(4), "times": lambda: (0.9, 0.5, 0.0),
    "noise": lambda: sg.noise.SampleNoise(0), "seed": lambda: 0, "generator": generator,
    "like": lambda: normal(4, 2), "mean": lambda: torch.zeros(2), "variance": lambda: 0.25,
    "variances": lambda: (0.1, 1.0), "covariance": lambda: torch.eye(2),
    "betas": lambda: (0.1, 0.2), "sigmas": lambda: (0.1, 1.0),
    "weights": lambda: torch.tensor([0.5, 0.5]),
    "means": lambda: torch.tensor([[0.0, 0.0], [1.0, 1.0]]), "points": lambda: normal(20, 2),
    "covariances": lambda: torch.tensor([0.1, 0.2]), "m1": lambda: torch.zeros(2),
    "energy": lambda: WELL, "m2": lambda: torch.ones(2), "c1": lambda: torch.eye(2),
    "c2": lambda: torch.eye(2), "step_size": lambda: 0.05, "n": lambda: 5,
    "kernel": lambda: sg.MALA(0.05), "chains": lambda: normal(4, 50), "event": lambda: (2,),
    "data": lambda: normal(20, 2), "net": lambda: sg.MLP(event=(2,), hidden=8),
    "parameterization": lambda: sg.V(), "clock": lambda: sg.HalfLogSNR(), "repeats": lambda: 2,
    "levels": lambda: 4, "scale": lambda: 1.0, "order": lambda: 2,
    "tableau": lambda: sg.solvers.HEUN, "low": lambda: 0.25, "high": lambda: 0.75,
    "a": lambda: 0.5, "b": lambda: 1.5, "h": lambda: 0.1,
    "log_prob": lambda: lambda x, t: x.sum(1), "measure": lambda: lambda x: x[:, :1],
    "measurement": lambda: sg.inverse.LinearMeasurement(torch.eye(2)[:1], torch.tensor([1.0]), 0.5),
    "mask": lambda: torch.tensor([True, False]), "known": lambda: torch.zeros(2),
    "draws": lambda: normal(4, 50), "rows": lambda: [], "bins": lambda: 256,
    "data_range": lambda: (-1.0, 1.0), "power": lambda: 2, "temperature": lambda: 2.0,
    "features": lambda: 8, "width": lambda: 8, "sigma_min": lambda: 0.1,
    "lengthscale": lambda: 1.0, "v1": lambda: torch.ones(2), "v2": lambda: torch.ones(2),
    "s1": lambda: 1.0, "s2": lambda: 2.0, "weaker": lambda: EXACT, "target": lambda: WELL,
    "potential": lambda: lambda x: x.square().sum(1) / 2, "condition": dict,
    "warmup": lambda: 3, "first": lambda: 0.1,
}  # fmt: skip

CHAIN = sg.DiscreteVPSDE.linear(20)
with torch.random.fork_rng():
    LABELLED = sg.ScoreNetwork(sg.MLP(event=(2,), hidden=8, classes=3), VP, sg.V())
MOVES = sg.Sampler(sg.MALA(0.05), sg.Constant(0.0, 6))
POSTERIOR = sg.mcmc.PosteriorEnergy(
    lambda x: x.square().sum(1) / 2,
    lambda x, y: (x.unsqueeze(1) - y).square().sum(2) / 2,
    normal(5, 2),
)
EVIDENCE = sg.mcmc.Evidence(0.0, -1.0, 1.0, 9.0, torch.zeros(9), torch.zeros(9, 1), -1.0, 2.0)

MAP = sg.flowmaps.GaussianFlowMap(VP, torch.zeros(2), 0.25)
PATHS = sg.flowmaps.trajectories(MAP, 4, moves=4, progress=False).x
LABELS = sg.Data(normal(20, 2), torch.arange(20) % 2)
PCA = sg.latent.LinearAutoEncoder(torch.zeros(2), torch.eye(2)[:1])
IMAGES = sg.Data(normal(20, 1, 4, 4).tanh())


def labelled() -> sg.ScoreNetwork:
    """A network that a training may change."""
    with torch.random.fork_rng():
        return sg.ScoreNetwork(sg.MLP(event=(2,), hidden=8, classes=2), VP, sg.V())


NAMES = (f"new{k}" for k in itertools.count())


def checkpoint() -> Path:
    """Of a training that leaves averages too; made once in the current folder."""
    folder = Path("trained")
    if not folder.exists():
        averages = sg.training.PostHoc(2)
        for _ in sg.fit(
            labelled(), LABELS, steps=4, batch=5, out=folder, posthoc=averages, progress=False
        ):
            pass
    return folder


def sampler_file() -> Path:
    path = Path("sampler.json")
    if not path.exists():
        sg.tuning.save_sampler(table(), path)
    return path


def table() -> sg.Sampler:
    """A sampler as `tune` makes them."""
    solver = sg.tuning.as_table(sg.Sampler(sg.DDIM(), sg.UniformTime(3)), EXACT, (2,))
    return sg.Sampler(solver, sg.Times(*solver.times))


def array_file() -> Path:
    path = Path("array.npy")
    if not path.exists():
        np.save(path, np.zeros((3, 2), dtype=np.float32))
    return path


def study(out: str | None = None) -> sg.comparison.Comparison:
    return sg.compare(
        EXACT, {"ddim": sg.Sampler(sg.DDIM(), sg.UniformTime(4))}, steps=(2, 3),
        metrics=[sg.metrics.SlicedWasserstein(4)], reference=normal(20, 2), out=out, progress=False,
    )  # fmt: skip


@functools.cache
def finished() -> sg.comparison.Comparison:
    """A study in memory; what draws it leaves it as it is."""
    return study()


def study_folder() -> Path:
    folder = Path("study")
    if not folder.exists():
        study(str(folder))
    return folder


def linear(inputs: int, outputs: int) -> torch.nn.Module:
    return torch.nn.Linear(inputs, outputs)


# What one callable needs where the table above has something else, by its full name.
OWN: dict[str, dict[str, Callable[[], Any]]] = {
    "noise.ReplayNoise": {"draws": lambda: [normal(4, 2)]},
    "grids.Times": {"times": lambda: (0.9, 0.5, 0.0)},
    "grids.Strided": {"steps": lambda: 4},
    "sampling.sharded": {"rank": lambda: 0, "world": lambda: 2},
    "models.Shared": {"value": lambda: torch.ones(2)},
    "models.Given": {"model": lambda: LABELLED, "condition": lambda: {"label": torch.arange(3)}},
    "densities.energy_distance_1d": {"m1": lambda: torch.zeros(2)},
    "guidance.ClassifierFree": {"model": lambda: LABELLED},
    "guidance.Switch": {"models": lambda: {0.0: EXACT, 0.5: EXACT}},
    "guidance.Reconstruction": {"y": lambda: torch.tensor([1.0])},
    "inverse.DPS": {"y": lambda: torch.tensor([1.0])},
    "inverse.exact_posterior": {"prior": lambda: EXACT},
    "inverse.LinearMeasurement": {
        "matrix": lambda: torch.eye(2)[:1], "y": lambda: torch.tensor([1.0]), "noise": lambda: 0.5,
    },
    "energies.EnergyNetwork": {"net": lambda: lambda x, clock: x.square().sum(1)},
    "energies.GeometricPath": {"reference": lambda: WELL},
    "energies.EnergyPrediction": {"t": lambda: VP.level(0.5), "score": lambda: normal(4, 2)},
    "energies.PathEnergy": {"frozen": lambda: sg.energies.energy_from_score(EXACT, 0.5)},
    "energies.energy_change": {
        "before": lambda: EXACT(normal(4, 2), 0.5), "after": lambda: EXACT(normal(4, 2), 0.5),
        "t": lambda: VP.level(0.5),
    },
    "flowmaps.ConsistencyDistillation": {"teacher": lambda: EXACT},
    "flowmaps.Draw": {"first": lambda: torch.ones(4), "last": lambda: torch.zeros(4)},
    "flowmaps.ConsistencyModel": {
        "net": lambda: sg.MLP(event=(2,), hidden=8, second_clock=True),
    },
    "flowmaps.FlowMap": {"net": lambda: sg.MLP(event=(2,), hidden=8, second_clock=True)},
    "flowmaps.GrowingPairs": {"calls": lambda: 3},
    "flowmaps.flow_map": {"model": lambda: MAP},
    "flowmaps.from_score_network": {"model": lambda: LABELLED},
    "flowmaps.jump": {"model": lambda: MAP, "t": lambda: VP.level(0.5), "s": lambda: VP.level(0.2)},
    "flowmaps.log_prob": {"model": lambda: MAP},
    "flowmaps.trajectories": {
        "teacher": lambda: EXACT, "count": lambda: 4, "moves": lambda: 3, "progress": lambda: False,
    },
    "latent.LatentModel": {
        "model": lambda: sg.Gaussian(VP, torch.zeros(1), 0.25), "autoencoder": lambda: PCA,
        "units": lambda: sg.data.Units((0.0,), (1.0,)),
    },
    "latent.LinearAutoEncoder": {"basis": lambda: torch.eye(2)[:1]},
    "latent.check_autoencoder": {"autoencoder": lambda: PCA},
    "latent.encoded": {"autoencoder": lambda: PCA, "data": lambda: sg.Data(normal(20, 2))},
    "baselines.BoltzmannMachine": {"hidden": lambda: 2},
    "baselines.ConditionalGAN": {
        "generator": lambda: sg.baselines.Perceptron((1,), (2,), classes=2),
        "critic": lambda: sg.baselines.Perceptron((2,), (), classes=2),
        "latent": lambda: 1, "classes": lambda: 2,
    },
    **{
        f"baselines.{name}": {
            "generator": lambda: linear(1, 2), "critic": lambda: sg.baselines.Perceptron((2,), ()),
            "latent": lambda: 1,
        }
        for name in ("GAN", "WassersteinGAN")
    },
    "baselines.HierarchicalVAE": {
        "encoders": lambda: [linear(2, 2), linear(1, 2)],
        "decoders": lambda: [linear(1, 2), linear(1, 2)], "sizes": lambda: (1, 1),
    },
    "baselines.MixtureFit": {"components": lambda: 2},
    "baselines.NaiveBayes": {"classes": lambda: 2},
    "baselines.Perceptron": {"inputs": lambda: (2,), "outputs": lambda: (2,)},
    "baselines.VAE": {
        "encoder": lambda: linear(2, 2), "decoder": lambda: linear(1, 2), "latent": lambda: 1,
    },
    "energies.Mixture": {"models": lambda: (WELL, WELL)},
    "energies.Product": {"models": lambda: (WELL, WELL)},
    "likelihood.bound": {"model": lambda: sg.Gaussian(CHAIN, torch.zeros(2), 0.25)},
    "likelihood.importance_bound": {"model": lambda: sg.Gaussian(CHAIN, torch.zeros(2), 0.25)},
    "mcmc.DualAveraging": {"solver": lambda: sg.MALA(0.05)},
    "mcmc.NCSNStep": {"eps": lambda: 2e-5},
    "mcmc.NCSNv2Step": {"eps": lambda: 2e-5},
    "mcmc.PolynomialDecay": {"first": lambda: 0.1},
    "mcmc.PosteriorEnergy": {
        "prior": lambda: lambda x: x.square().sum(1) / 2,
        "term": lambda: lambda x, y: (x.unsqueeze(1) - y).square().sum(2) / 2,
        "data": lambda: (normal(5, 2),),
    },
    "mcmc.ReplicaExchange": {"times": lambda: (0.7, 0.9)},
    "mcmc.RewardSteering": {"reward": lambda: lambda x: x.sum(1)},
    "mcmc.Scaled": {"rule": lambda: lambda t: t.sigma, "factor": lambda: 0.5},
    "mcmc.both_directions": {"forward": lambda: EVIDENCE, "backward": lambda: EVIDENCE},
    "mcmc.chain_report": {"chains": lambda: sg.mcmc.run_chains(MOVES, WELL, normal(4, 2))},
    "mcmc.effective": {"log_weights": lambda: normal(3, 8)},
    "mcmc.leapfrog": {
        "model": lambda: WELL, "here": lambda: WELL(normal(4, 2), 0.0),
        "momentum": lambda: normal(4, 2), "t": lambda: WELL.sde.level(0.0),
    },
    "mcmc.run_chains": {"sampler": lambda: MOVES, "model": lambda: WELL},
    "mcmc.systematic": {"log_weights": lambda: normal(3, 8), "u": lambda: torch.full((3,), 0.5)},
    "mcmc.tilt_rate": {"reward": lambda: lambda x, t: x.sum(1) * t},
    "mcmc.thermodynamic_integration": {"grid": lambda: sg.UniformTime(4, stop=0.5)},
    "mcmc.transition_log_prob": {
        "solver": lambda: sg.Ancestral("large"), "x_t": lambda: normal(4, 2),
        "x_s": lambda: normal(4, 2), "t": lambda: VP.level(0.5), "s": lambda: VP.level(0.4),
    },
    "likelihood.bits_per_dim": {
        "nats": lambda: normal(4), "dims": lambda: 2, "dequantised": lambda: True,
    },
    "analysis.plot": {"path": lambda: "w2.png"},
    "likelihood.bits_report": {
        "progress": lambda: False,"x": lambda: torch.ones(4, 2), "knots": lambda: 5},
    "likelihood.dequantise": {"x": lambda: torch.ones(4, 2)},
    "analysis.analyse": {
        "samplers": lambda: {"ddim": sg.Sampler(sg.DDIM(), sg.UniformTime(4))},
        "steps": lambda: (4, 8),
    },
    "analysis.mode_errors": {
        "model": lambda: sg.GaussianMixture(VP, torch.ones(2), torch.eye(2), torch.ones(2)),
    },
    "metrics.FunctionMetric": {
        "function": lambda: lambda x, y: 0.0, "direction": lambda: "lower", "biased": lambda: False,
    },
    "metrics.C2ST": {"features": lambda: None},
    "metrics.ClassAccuracy": {"labels": lambda: 0, "classifier": lambda: lambda x: x},
    "metrics.Diversity": {"features": lambda: lambda x: x},
    "metrics.digits_features": {"x": lambda: -torch.ones(4, 1, 8, 8)},
    "metrics.title": {"metric": sg.metrics.Frechet},
    **{
        f"metrics.{name}": {
            "weights": lambda: (0.5, 0.5), "means": lambda: ((0.0, 0.0), (1.0, 1.0)),
            "covariances": lambda: (((0.1, 0.0), (0.0, 0.1)), ((0.2, 0.0), (0.0, 0.2))),
        }
        for name in (
            "MissingModes", "ModeCovariances", "ModeMeans", "ModeWeights", "PosteriorCoverage",
        )
    },
    "metrics.MomentError": {
        "mean": lambda: (0.0, 0.0), "covariance": lambda: ((1.0, 0.0), (0.0, 1.0)),
    },
    "data.Augmented": {
        "source": lambda: IMAGES, "augmentation": lambda: sg.data.HorizontalFlip(),
    },
    "data.Data": {"x": lambda: normal(4, 2)},
    "data.FromBatches": {"batches": lambda: sg.data.replayed([{"x": normal(4, 2)}])},
    "data.FromDataset": {"dataset": lambda: torch.utils.data.TensorDataset(normal(20, 2), LABELS.label)},
    "data.as_source": {"data": lambda: LABELS},
    "data.from_levels": {"levels": lambda: torch.arange(4)},
    "data.load": {"path": array_file},
    "data.replayed": {"iterable": lambda: [normal(4, 2)]},
    "data.to_levels": {"x": lambda: normal(4, 2)},
    "training.PostHoc": {"every": lambda: 2},
    "training.Watch": {
        "every": lambda: 2, "sampler": lambda: sg.Sampler(sg.DDIM(), sg.UniformTime(2)),
    },
    "training.card": {"folder": lambda: checkpoint() / "model"},
    "training.fit": {
        "model": labelled, "data": lambda: LABELS, "steps": lambda: 2, "batch": lambda: 5,
        "progress": lambda: False,
    },
    "training.load": {"folder": lambda: checkpoint() / "model"},
    "training.reconstruct": {"folder": checkpoint, "sigma_rel": lambda: 0.1},
    "training.save": {"model": lambda: LABELLED, "folder": lambda: next(NAMES)},
    "training.validate": {
        "model": lambda: LABELLED, "batch": lambda: sg.data.Batch(normal(6, 2), {}),
    },
    "tuning.OptimalGaussian": {"steps": lambda: 2, "variances": lambda: (1.0,)},
    "tuning.as_table": {"sampler": lambda: sg.Sampler(sg.DDIM(), sg.UniformTime(4))},
    "tuning.candidates": {"nfe": lambda: 3},
    "tuning.load_sampler": {"path": sampler_file},
    "tuning.recommended": {"nfe": lambda: 5},
    "tuning.save_sampler": {"sampler": table, "path": lambda: f"{next(NAMES)}.json"},
    "tuning.tune": {
        "nfe": lambda: 2, "trajectories": lambda: 24, "progress": lambda: False,
    },
    "interop.Card": {"origin": lambda: "my code"},
    "interop.Record": {"name": lambda: "a.B"},
    "interop.ScheduleSDE": {"schedule": lambda: lambda t: (1 - t, t)},
    "interop.as_origin": {"model": lambda: sg.from_velocity(lambda x, t: -x)},
    "interop.from_distribution": {
        "distribution": lambda: torch.distributions.MultivariateNormal(
            torch.zeros(2), torch.eye(2)
        ),
    },
    "interop.from_edm": {
        "net": lambda: lambda x, sigma, label=None: x / 2, "sigma_min": lambda: 0.002,
        "sigma_max": lambda: 80.0, "classes": lambda: 0,
    },
    "interop.from_guided_diffusion": {
        "net": lambda: lambda x, t: torch.cat((x, x), 1), "class_cond": lambda: False,
    },
    "interop.from_k_diffusion": {
        "denoiser": lambda: lambda x, sigma: x / 2, "sigma_min": lambda: 0.01,
        "sigma_max": lambda: 80.0,
    },
    "interop.from_score_sde": {
        "net": lambda: lambda x, t: x / 2, "kind": lambda: "vp", "centered": lambda: True,
    },
    "interop.from_velocity": {"net": lambda: lambda x, t: -x},
    "comparison.compare": {
        "samplers": lambda: {"ddim": sg.Sampler(sg.DDIM(), sg.UniformTime(4))},
        "steps": lambda: (2, 3), "metrics": lambda: [sg.metrics.SlicedWasserstein(4)],
        "progress": lambda: False,
    },
    "comparison.load": {"folder": study_folder},
    "comparison.plan": {
        "samplers": lambda: {"ddim": sg.Sampler(sg.DDIM(), sg.UniformTime(4))},
        "budgets": lambda: (2, 3),
    },
    "comparison.plot_quality": {"study": finished, "path": lambda: "quality.svg"},
    "comparison.plot_samples": {
        "samples": lambda: {("ddim", 4.0): IMAGES.x[:4]}, "path": lambda: "samples.png",
    },
    "comparison.write_page": {"study": finished, "path": lambda: "page.html"},
    "objectives.ContrastiveDivergence": {"sampler": lambda: MOVES},
    "objectives.DiffusionRecovery": {"grid": lambda: sg.UniformLam(3, stop=0.1)},
    "objectives.NoiseContrastive": {
        "noise": lambda: sg.Gaussian(sg.StaticSDE(), torch.zeros(2), 2.0),
    },
    "objectives.PersistentContrastiveDivergence": {
        "sampler": lambda: MOVES,
        "buffer": lambda: sg.objectives.ReplayBuffer(normal(20, 2)),
    },
}  # fmt: skip

NONFINITE = {
    "nan": math.nan, "inf": math.inf, "-inf": -math.inf,
    "nan tensor": torch.full((4, 2), math.nan), "one inf": torch.tensor([[0.0, math.inf]] * 4),
}  # fmt: skip
WRONG = {
    "0": 0, "-1": -1, "-0.5": -0.5, "1e300": 1e300, "none": None, "text": "text", "true": True,
    "empty tuple": (), "integers": torch.ones(4, 2, dtype=torch.long),
    "complex": torch.ones(4, 2) * 1j, "other shape": torch.arange(15.0).reshape(3, 5).sin(),
    "no rows": torch.ones(0, 2), "scalar": torch.tensor(1.0),
}  # fmt: skip


# What holds a value of any kind as it is, for others to check (a record what a file states, whose
# weights are checked where they fill a network); and what a Metropolis kernel or a resampling
# evaluates at states that may have diverged: NaN stays in its row there and is rejected.
HANDED_ON = {
    "models.Shared", "interop.Record", "energies.energy_of", "mcmc.leapfrog", "mcmc.effective",
}  # fmt: skip
# What is a value of its own.
MEANT = {
    ("solvers.TauInterval", "high", "inf"),  # churn at every noise level
    ("training.TrainSettings", "grad_clip", "inf"),  # gradients are not clipped
    # the squared error, as the limit of the pseudo-Huber distance
    *((f"flowmaps.{name}", "c", "inf") for name in (
        "Consistency", "ConsistencyDistillation", "Lagrangian", "LagrangianSteps", "MeanFlow",
        "Shortcut", "Trajectories",
    )),
    # samplers jump from states that may have diverged: NaN stays in its row, and is found there
    *(("flowmaps.jump", "x", label) for label in ("nan tensor", "one inf")),
}  # fmt: skip


class Outcome(NamedTuple):
    call: str
    argument: str
    value: str
    kind: str
    detail: str


def public() -> Iterator[tuple[str, Any]]:
    for package in PACKAGES:
        module = import_module(f"scoregen.{package}")
        for name in module.__all__:
            thing = getattr(module, name)
            ours = getattr(thing, "__module__", "").startswith("scoregen")
            if ours and callable(thing) and not inspect.isabstract(thing):
                if inspect.isclass(thing) and issubclass(thing, (*RESULTS, Enum, Exception)):
                    continue  # results, which nobody builds by hand
                if getattr(thing, "_is_protocol", False):
                    continue  # no instance can be made
                if f"{package}.{name}" not in FOREIGN:
                    yield f"{package}.{name}", thing


def arguments(name: str, thing: Any) -> dict[str, Any] | None:
    """Good arguments for the parameters without a default; None where the tables lack one."""
    own = OWN.get(name, {})
    found = {}
    for parameter in inspect.signature(thing).parameters.values():
        if parameter.name in own:
            found[parameter.name] = own[parameter.name]()
        elif parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        elif parameter.default is parameter.empty:
            if parameter.name not in GOOD:
                return None
            found[parameter.name] = GOOD[parameter.name]()
    return found


def call(thing: Any, given: dict[str, Any]) -> Any:
    """The call; what is given for `*values` is passed one by one."""
    parameters = inspect.signature(thing).parameters
    several = [p.name for p in parameters.values() if p.kind is p.VAR_POSITIONAL]
    if not several or several[0] not in given:
        return thing(**given)
    ahead = list(parameters)[: list(parameters).index(several[0])]
    rest = {name: value for name, value in given.items() if name not in (*ahead, *several)}
    return thing(*(given[name] for name in ahead), *given[several[0]], **rest)


def use(thing: Any, made: Any) -> Any:
    """What an object is for, done once; a function's answer is used already."""
    if not inspect.isclass(thing):
        return list(itertools.islice(made, 3)) if isinstance(made, Iterator) else made
    if isinstance(made, sg.data.Source):
        return next(made.serve(4, 0)).x
    if thing in (sg.data.HorizontalFlip, sg.data.NonLeaking):
        return made(IMAGES.x[:3], made.draw(3, np.random.default_rng(0)))
    if isinstance(made, sg.SDE):
        # without lam, which is infinite by definition where alpha or sigma is 0
        return [made.level(f * made.t_max)[:3] for f in (1.0, 0.5, 0.1)]
    if thing in (sg.flowmaps.Jump, sg.flowmaps.Renoise):
        return sg.Sampler(made, sg.UniformTime(3, start=0.9)).sample(MAP, (3, 2))
    if isinstance(made, sg.flowmaps.ConsistencyModel):
        return sg.Sampler(sg.flowmaps.Jump(), sg.Times(0.9, 0.0)).sample(made, (3, 2))
    if isinstance(made, sg.flowmaps.FlowMap):
        return sg.Sampler(sg.flowmaps.Jump(), sg.Times(0.9, 0.5, 0.0)).sample(made, (3, 2))
    if isinstance(made, sg.Solver):
        if isinstance(made, sg.mcmc.SGLD):
            return sg.Sampler(made, sg.Constant(0.0, 3)).sample(POSTERIOR, (3, 2))
        if isinstance(made, sg.baselines.BlockGibbs):
            machine = sg.baselines.BoltzmannMachine((2,), 2)
            return sg.Sampler(made, sg.Constant(0.0, 3)).sample(machine, (3, 2))
        if made.direction == "fixed":
            return sg.Sampler(made, sg.Constant(0.5, 3)).sample(EXACT, (3, 2))
        grid = (
            sg.Times(0.9, 0.5, 0.7, 0.0)
            if made.direction == "any"
            else sg.UniformTime(3, start=0.9)
        )
        return sg.Sampler(made, grid).sample(EXACT, (3, 2))
    if isinstance(made, sg.flowmaps.JumpObjective):
        return [made, made(MAP, normal(4, 2), generator=generator())]
    if isinstance(made, sg.flowmaps.Trajectories):
        return [made, made(MAP, PATHS, generator=generator())]
    if isinstance(made, sg.flowmaps.Pairs | sg.flowmaps.GrowingPairs):
        return [made, made(VP, 5, generator())]
    if isinstance(made, sg.baselines.MixtureFit | sg.baselines.NaiveBayes):
        made.fit(LABELS if made.classes else LABELS.unlabelled())
    if isinstance(made, sg.baselines.Generator):
        return made.sample(3, seed=0)
    if isinstance(made, sg.baselines.Perceptron):
        return made(torch.zeros(3, *made.inputs), torch.zeros(3).long() if made.classes else None)
    if isinstance(made, sg.latent.LatentModel):
        return made.sample(sg.Sampler(sg.DDIM(), sg.UniformTime(3)), 3)
    if isinstance(made, sg.Sampler):
        return made.sample(EXACT, (3, 2))
    if isinstance(made, sg.guidance.ClassifierFree):
        made = made.given(label=torch.arange(3))
    if isinstance(made, sg.ScoreModel):
        return made(normal(3, *((2,) if made.event is None else made.event)), 0.5).score
    if isinstance(made, sg.models.Parameterization):
        return made.coefficients(VP, VP.level(0.5))
    if isinstance(made, sg.MLP):
        return made(torch.zeros(3, *made.event), torch.zeros(3))
    if isinstance(made, MODEL_LOSSES):
        model = EXACT if isinstance(made, NOISY_LOSSES) else WELL
        return made(model, normal(4, 2), generator=generator())
    package = thing.__module__.split(".")[1]
    if package == "grids" or thing in (sg.tuning.Interior, sg.tuning.OptimalGaussian):
        return made(CHAIN if "knots" in thing.__module__ else VP)
    if package == "noise":
        return made(normal(4, 2), VP.level(0.9), VP.level(0.5))
    if thing.__module__.endswith("clocks"):
        return made(CHAIN, CHAIN.level(0.5), normal(4, 2))
    if thing.__module__.endswith(("laws", "normal")):
        return made(CHAIN, 5, generator())
    if thing.__module__.endswith("weights"):
        level = VP.level_of(torch.tensor([0.5, 0.7], dtype=torch.float64), torch.zeros(2))
        return made(LABELLED, level, sg.objectives.UniformLaw())
    if isinstance(made, sg.metrics.TwoSample):
        return made(normal(50, 2), normal(60, 2))
    return made


def numbers(answer: Any, depth: int = 3) -> Iterator[bool]:
    """Whether each number inside an answer is finite."""
    if isinstance(answer, Tensor):
        if answer.is_floating_point() or answer.is_complex():
            yield bool(torch.isfinite(answer).all())
    elif isinstance(answer, float):
        yield math.isfinite(answer)
    elif isinstance(answer, tuple | list) and depth:
        for value in answer:
            yield from numbers(value, depth - 1)
    elif is_dataclass(answer) and not isinstance(answer, type) and depth:
        for field in fields(answer):
            yield from numbers(getattr(answer, field.name), depth - 1)


def _late(*_: object) -> None:
    raise TimeoutError


def _stop() -> None:
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.alarm(0)


def attempt(thing: Any, given: dict[str, Any]) -> tuple[str, str]:
    """(kind, detail) of one call."""
    for name in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(name, _late)
    # work is counted in processor time: on a busy machine nothing hangs that would not elsewhere
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(10 * SECONDS)
    try:
        answer = use(thing, call(thing, given))
        _stop()
        return ("finite", "") if all(numbers(answer)) else ("nonfinite", repr(answer)[:80])
    except TimeoutError:
        return "hang", f"more than {SECONDS} s"
    except Exception as error:
        _stop()
        last = traceback.extract_tb(error.__traceback__)[-1]
        meant = last.filename.startswith(PACKAGE) and "raise" in linecache.getline(
            last.filename, last.lineno or 0
        )
        kind = "refused" if meant and isinstance(error, OWN_ERRORS) else "obscure"
        return kind, f"{type(error).__name__}: {error}"[:120]
    finally:
        _stop()


def fuzz(pattern: str = "", every: int = 1) -> tuple[list[Outcome], list[str]]:
    """All outcomes, and the callables that could not be called well to begin with."""
    # what writes files is given words for paths too: in a folder that goes away
    with (
        torch.random.fork_rng(),
        warnings.catch_warnings(),
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
    ):
        warnings.simplefilter("ignore")
        return _fuzz(pattern, every)


def _fuzz(pattern: str, every: int) -> tuple[list[Outcome], list[str]]:
    outcomes: list[Outcome] = []
    skipped: list[str] = []
    count = 0
    for name, thing in public():
        if pattern not in name:
            continue
        good = arguments(name, thing)
        plain = "" if good is None else attempt(thing, good)[0]
        if plain not in ("finite", "nonfinite"):
            skipped.append(name)
            continue
        for parameter in inspect.signature(thing).parameters.values():
            several = parameter.kind is parameter.VAR_POSITIONAL
            if parameter.kind is parameter.VAR_KEYWORD:
                continue
            for label, bad in [*NONFINITE.items(), *WRONG.items()]:
                count += 1
                if count % every:
                    continue
                given = arguments(name, thing) or {}
                given[parameter.name] = (
                    (bad, *given.get(parameter.name, ())[1:]) if several else bad
                )
                kind, detail = attempt(thing, given)
                meant = name in HANDED_ON or (name, parameter.name, label) in MEANT
                if kind == "nonfinite" and (label == "1e300" or meant):
                    # finite, but beyond the range of a state in float32: nothing was hidden
                    kind = "overflow" if label == "1e300" else "finite"
                elif kind == "nonfinite":
                    # an answer that is infinite for good arguments too (lam at an end) is meant
                    kind = "finite" if plain == "nonfinite" and label not in NONFINITE else "silent"
                outcomes.append(Outcome(name, parameter.name, label, kind, detail))
    return outcomes, skipped


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-k", default="", metavar="NAME", help="only names that hold this")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="every Nth call only")
    parser.add_argument("--show", action="store_true", help="print every outcome that counts")
    options = parser.parse_args()
    outcomes, skipped = fuzz(options.k, options.every)
    tally = collections.Counter(outcome.kind for outcome in outcomes)
    for outcome in outcomes:
        if outcome.kind in ("silent", "hang") or (options.show and outcome.kind == "obscure"):
            call = f"{outcome.call}({outcome.argument}={outcome.value})"
            print(f"{outcome.kind:8s} {call}: {outcome.detail}")
    print(f"{len(outcomes)} calls: " + ", ".join(f"{tally[k]} {k}" for k in sorted(tally)))
    print(f"{len(skipped)} callables without a good call: {', '.join(skipped)}")
    obscure = tally["obscure"] / max(1, len(outcomes))
    print(f"obscure errors: {obscure:.1%}")
    return int(tally["silent"] > 0 or tally["hang"] > 0 or obscure > 0.02)


if __name__ == "__main__":
    sys.exit(main())
