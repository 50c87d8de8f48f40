"""Train every family of models on the digits and on rings in the plane, and compare them.

    OMP_NUM_THREADS=2 python benchmarks/training/families.py [--only NAME ...] [--data digits rings]
        [--out runs/families] [--page docs/_generated]

At most fifteen minutes on two CPU cores. What is trained is kept under `--out`, and a second call
goes on where the first one stopped. Writes families.md, the tables, families.json, the figures in
them, and families.png, samples of every row. Every row sees the training split alone; quality is
measured against the held-out digits, or rings of another seed, and so is the likelihood.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

import scoregen as sg
from scoregen import likelihood
from scoregen.baselines import (
    GAN,
    VAE,
    Autoregressive,
    BlockGibbs,
    BoltzmannMachine,
    ConditionalGAN,
    Flow,
    HierarchicalVAE,
    MixtureFit,
    NaiveBayes,
    Perceptron,
    Sampled,
    WassersteinGAN,
)
from scoregen.energies import GeometricPath
from scoregen.latent import LatentModel, encoded
from scoregen.mcmc import annealed_importance
from scoregen.noise import SampleNoise
from scoregen.objectives import (
    PersistentContrastiveDivergence,
    ReplayBuffer,
    Stratified,
    Unit,
)

OUT, PAGE = Path("runs/families"), Path(__file__).parents[2] / "docs" / "_generated"
FEW = sg.Sampler(sg.DPMSolverPP(), sg.UniformLam(20))


@dataclass(frozen=True)
class Set:
    """A data set: what is trained on, and what is measured against."""

    name: str
    train: sg.Data
    test: sg.Data

    @property
    def digits(self) -> bool:
        return self.name == "digits"

    @property
    def d(self) -> int:
        return math.prod(self.train.event)


def rings(n: int, seed: int) -> sg.Data:
    """Points on four rings; the class is the ring."""
    x = sg.data.rings(n, seed)
    return sg.Data(x, (x.norm(dim=1) / 0.4).round().long().sub(1).clamp(0, 3), name="rings")


def data_set(name: str) -> Set:
    if name == "digits":
        return Set(name, sg.digits("train"), sg.digits("test"))
    return Set(name, rings(4000, 0), rings(1000, 1))


# How each family is built and trained: (data) -> module, (module, data) -> None.
# All of about 0.1 M parameters on the digits where the family has a choice, and half a minute.


def mixture(s: Set) -> nn.Module:
    return MixtureFit(s.train.event, 24, "diag") if s.digits else MixtureFit((2,), 48)


def naive(s: Set) -> nn.Module:
    return NaiveBayes(s.train.event, 10 if s.digits else 4)


def autoregressive(s: Set) -> nn.Module:
    return Autoregressive(s.train.event, (96,) if s.digits else (128, 128), bins=8)


def flow(s: Set) -> nn.Module:
    return Flow(s.train.event, 4, (48,), bins=4) if s.digits else Flow((2,), 6, (64, 64))


def machine(s: Set) -> nn.Module:
    mean = s.train.x.mean(0)
    return (
        BoltzmannMachine(s.train.event, 64, std=0.4, mean=mean)
        if s.digits
        else (BoltzmannMachine((2,), 12, std=0.3, mean=mean))
    )


def autoencoder(s: Set) -> nn.Module:
    k, wide = (16, 128) if s.digits else (2, 128)
    nets = Perceptron(s.train.event, (2 * k,), wide), Perceptron((k,), s.train.event, wide)
    return VAE(
        *nets, s.train.event, k, variance=torch.full(s.train.event, 0.05), noisy=not s.digits
    )


def hierarchy(s: Set) -> nn.Module:
    k, wide = ((24, 8), 128) if s.digits else ((2, 2), 128)
    up = [Perceptron(s.train.event, (2 * k[0],), wide), Perceptron((k[0],), (2 * k[1],), wide)]
    down = [Perceptron((k[0],), s.train.event, wide), Perceptron((k[1],), (2 * k[0],), wide)]
    variance = torch.full(s.train.event, 0.05)
    return HierarchicalVAE(up, down, s.train.event, k, variance=variance, noisy=not s.digits)


def adversarial(s: Set, classes: int = 0) -> tuple[nn.Module, nn.Module, tuple[int, ...], int]:
    k, wide = (16, 160) if s.digits else (2, 128)
    up = Perceptron((k,), s.train.event, wide, 3, classes)
    return up, Perceptron(s.train.event, (), wide, 3, classes), s.train.event, k


def gan(s: Set) -> nn.Module:
    return GAN(*adversarial(s), penalty=0.2 if s.digits else 0.02)


def conditional(s: Set) -> nn.Module:
    classes = 10 if s.digits else 4
    return ConditionalGAN(*adversarial(s, classes), classes, penalty=0.2 if s.digits else 0.02)


def wasserstein(s: Set) -> nn.Module:
    return WassersteinGAN(*adversarial(s), penalty=10.0 if s.digits else 0.5)


def diffusion(s: Set) -> nn.Module:
    if s.digits:
        return sg.digits_model()
    return sg.ScoreNetwork(sg.MLP((2,), hidden=96, depth=3), sg.VPSDE(), sg.V())


def latent(s: Set) -> nn.Module:
    """Diffusion of the codes of the VAE, which is trained first."""
    inner = trained("VAE", s)[0]
    k = inner.latent[0]
    net = sg.MLP((k,), hidden=96, depth=3, classes=10 if s.digits else 4)
    units = encoded(inner, s.train, seed=0).units
    return LatentModel(sg.ScoreNetwork(net, sg.VPSDE(), sg.V()), inner, units)


def descent(**options: Any) -> Callable[[Any, Set], None]:
    return lambda model, s: model.fit(s.train.unlabelled(), **options)


def labelled(**options: Any) -> Callable[[Any, Set], None]:
    return lambda model, s: model.fit(s.train, **options)


def contrast(model: Any, s: Set) -> None:
    chains = ReplayBuffer(s.train.x[:512].clone(), restart=0.02)
    gibbs = sg.Sampler(BlockGibbs(), sg.Constant(0.0, 5))
    objective = PersistentContrastiveDivergence(gibbs, chains)
    steps = sg.fit(
        model,
        s.train.unlabelled(),
        objective,
        steps=6000 if s.digits else 8000,
        batch=128,
        lr=2e-3 if s.digits else 5e-3,
    )
    averaged(model, steps)


def averaged(model: nn.Module, steps: Any) -> None:
    last = None
    for step in steps:
        last = step if step.step % 200 else (step, step.ema)[0]
    if last is not None:
        model.load_state_dict(last.ema.state_dict())


def denoise(model: Any, s: Set) -> None:
    objective = sg.DenoisingScoreMatching(law=Stratified(), weight=Unit(sg.V()))
    if not s.digits:
        averaged(model, sg.fit(model, s.train.unlabelled(), objective, steps=6000, batch=256))


def denoise_codes(model: Any, s: Set) -> None:
    objective = sg.DenoisingScoreMatching(law=Stratified(), weight=Unit(sg.V()))
    codes = encoded(model.autoencoder, s.train, seed=0)
    averaged(model.model, sg.fit(model.model, codes, objective, steps=5000, batch=256))


RECIPES: dict[str, tuple[Callable[[Set], Any], Callable[[Any, Set], Any]]] = {
    "Gaussian mixture (EM)": (mixture, descent()),
    "naive Bayes": (naive, labelled()),
    "autoregressive (MADE splines)": (autoregressive, descent(steps=2000, lr=3e-3)),
    "flow (spline coupling)": (flow, descent(steps=2000, lr=3e-3)),
    "Boltzmann machine": (machine, contrast),
    "VAE": (autoencoder, descent(steps=8000, lr=2e-3)),
    "hierarchical VAE": (hierarchy, descent(steps=6000, lr=2e-3)),
    "GAN": (gan, descent(steps=8000)),
    "conditional GAN": (conditional, labelled(steps=8000)),
    "Wasserstein GAN": (wasserstein, descent(steps=4000, critic_steps=3)),
    "diffusion": (diffusion, denoise),
    "latent diffusion (of the VAE)": (latent, denoise_codes),
}


def trained(name: str, s: Set, out: Path = OUT) -> tuple[Any, float]:
    """A family, trained now or before, and the seconds of CPU time that took."""
    build, train = RECIPES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(s)
    stem = out / f"{s.name} {name}"
    if stem.with_suffix(".safetensors").is_file():
        model.load_state_dict(safetensors.torch.load_file(stem.with_suffix(".safetensors")))
        return model.eval(), json.loads(stem.with_suffix(".json").read_text())["seconds"]
    began = time.process_time()
    train(model, s)
    seconds = time.process_time() - began
    out.mkdir(parents=True, exist_ok=True)
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    safetensors.torch.save_file(state, stem.with_suffix(".safetensors"))
    stem.with_suffix(".json").write_text(json.dumps({"seconds": seconds}))
    print(f"{s.name} {name}: {seconds:.0f} s of CPU time", flush=True)
    return model.eval(), seconds


def rows_of(name: str, model: Any, s: Set) -> dict[str, Any]:
    """The rows of a trained family."""
    if name == "Boltzmann machine":
        chain = sg.Sampler(BlockGibbs(), sg.Constant(0.0, 1000))
        return {name: Sampled(model, chain, s.train.event, evaluations=1000)}
    if name == "diffusion":
        return {name: Sampled(model, FEW, s.train.event)}
    if name == "latent diffusion (of the VAE)":
        return {name: Sampled(model, FEW, model.event, decode=model.decode)}
    if name == "GAN":
        chain = sg.Sampler(sg.MALA(0.05), sg.Constant(0.0, 60))
        energy = sg.Potential(model.latent_energy)
        moved = Sampled(energy, chain, (model.latent,), decode=model.generated)
        return {name: model, "GAN, latent MALA on the critic": moved}
    return {name: model}


def log_density(name: str, model: Any, s: Set) -> tuple[Tensor, str] | None:
    """(log p of the held-out data, how it is known); of dequantised digits."""
    x = s.test.x
    if s.digits:
        g = torch.Generator().manual_seed(1)
        x = likelihood.dequantise(x, bins=17, data_range=(-1.0, 1.0), generator=g)
    if name == "Boltzmann machine":
        if len(model.c) <= 20:
            return model.log_prob(x).detach(), "exact"
        start = sg.Gaussian(sg.StaticSDE(), s.train.x.mean(0), 0.5)
        path = GeometricPath(start, model)
        found = annealed_importance(
            sg.MALA(0.02),
            sg.UniformTime(1000),
            path,
            start.sample(200).float(),
            noise=SampleNoise(0),
        )
        print(
            f"log Z {found.log_z:.2f} in [{found.low:.2f}, {found.high:.2f}], ESS {found.ess:.0f}"
        )
        return -sg.energies.energy_of(model, x).detach() - found.log_z, "annealed"
    if name == "diffusion":
        found = likelihood.log_prob(model, x, trace=likelihood.Hutchinson(1), rtol=1e-3, atol=1e-3)
        return found.value.detach(), "ODE"
    kind = getattr(type(model), "likelihood", "none")
    if kind == "exact":
        with torch.no_grad():
            return model.log_prob(x), kind
    if kind == "bound":
        return model.importance_bound(x, samples=100), kind
    return None


def units(value: Tensor, s: Set) -> tuple[float, float]:
    """Mean and standard error: bits per dimension of the digits, nats of points."""
    if s.digits:
        value = likelihood.bits_per_dim(
            value, s.d, bins=17, data_range=(-1.0, 1.0), dequantised=True
        )
    return float(value.mean()), float(value.std()) / math.sqrt(len(value))


def parameters(model: nn.Module) -> int:
    """Trained numbers; the fitted ones of a mixture stand in buffers."""
    count = sum(p.numel() for p in model.parameters())
    return count or sum(b.numel() for b in model.buffers())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument(
        "--data", nargs="+", choices=["digits", "rings"], default=["digits", "rings"]
    )
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    for name in options.data:
        s = data_set(name)
        for family in options.only:
            model, seconds = trained(family, s, options.out)
            found = log_density(family, model, s)
            if found is not None:
                value, error = units(found[0], s)
                print(
                    f"  {name} {family}: {value:.3f} +- {error:.3f} ({found[1]}), {parameters(model)} parameters, {seconds:.0f} s"
                )


if __name__ == "__main__":
    main()
