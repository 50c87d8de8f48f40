"""Averages chosen after training, against longhand averages of the same paths."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from scoregen import MLP, VPSDE, ScoreNetwork, V
from scoregen._files import CheckpointError
from scoregen.models import ScoreModel
from scoregen.training import PostHoc, reconstruct, save
from scoregen.training.posthoc import (
    LONGEST,
    PowerEMA,
    Profile,
    collect,
    combination,
    gamma_of,
    store,
)

pytestmark = pytest.mark.usefixtures("own_generator")


def shares(gamma: float, t: int) -> np.ndarray:
    """Of w_1 .. w_t in the average after t, from the recursion written out."""
    held = np.zeros(t)
    for step in range(1, t + 1):
        beta = (1 - 1 / step) ** (gamma + 1)
        held *= beta
        held[step - 1] = 1 - beta
    return held


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.1, 0.2, 0.28, LONGEST])
def test_the_exponent_gives_the_length(sigma_rel: float) -> None:
    """The standard deviation of the profile itself, by its weights on a fine grid."""
    gamma = gamma_of(sigma_rel)
    t = 20_000
    weights = (np.arange(1, t + 1) / t) ** (gamma + 1) - (np.arange(t) / t) ** (gamma + 1)
    at = (np.arange(t) + 0.5) / t
    mean = weights @ at
    assert math.sqrt(weights @ (at - mean) ** 2) == pytest.approx(sigma_rel, rel=1e-5)
    assert (gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)) == pytest.approx(sigma_rel**2, rel=1e-12)


def test_the_exponents_printed_in_the_paper() -> None:
    assert round(gamma_of(0.05), 2) == 16.97
    assert round(gamma_of(0.10), 2) == 6.94
    assert gamma_of(LONGEST) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, LONGEST])
def test_the_average_is_its_weighted_sum(sigma_rel: float) -> None:
    path = torch.randn(300, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    net = nn.Linear(3, 1, bias=False).double()
    average = PowerEMA(net, sigma_rel)
    for value in path:
        with torch.no_grad():
            net.weight.copy_(value)
        average.update_parameters(net)
    gamma = gamma_of(sigma_rel)
    exact = torch.from_numpy(shares(gamma, 300)) @ path
    assert torch.allclose(average.module.weight[0], exact, rtol=1e-11, atol=1e-13)
    s = np.arange(1, 301)
    closed = (s / 300) ** (gamma + 1) - ((s - 1) / 300) ** (gamma + 1)
    assert shares(gamma, 300) == pytest.approx(closed, rel=1e-9, abs=1e-15)


def test_the_products_of_profiles_are_their_integrals() -> None:
    s = (np.arange(200_000) + 0.5) / 200_000 * 9.0
    pairs = [(Profile(9.0, 6.94), Profile(5.0, 16.97)), (Profile(3.0, 0.0), Profile(9.0, 2.5))]
    for first, second in pairs:

        def values(p: Profile) -> np.ndarray:
            inside = (p.gamma + 1) * s**p.gamma / p.t ** (p.gamma + 1)
            return np.where(s <= p.t, inside, 0.0)

        product = (values(first) * values(second)).sum() * 9.0 / 200_000
        assert first.dot(second) == pytest.approx(product, rel=1e-4)
        assert first.dot(second) == pytest.approx(second.dot(first), rel=1e-14)
    late = Profile(1e9, 97.0)  # whose powers alone are beyond float64
    assert late.dot(late) == pytest.approx(98**2 / 195 / 1e9)


def walk(steps: int) -> torch.Tensor:
    """Weights that drift, relax and jitter."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(steps, 12, generator=generator, dtype=torch.float64)
    relaxed = torch.exp(-torch.arange(steps, dtype=torch.float64) / (steps / 10))[:, None]
    return 0.02 * noise.cumsum(0) + 0.3 * noise + relaxed


def trained(
    folder: Path, steps: int, every: int, hidden: int = 8
) -> tuple[ScoreModel, torch.Tensor]:
    """Snapshots of a network whose weights follow `walk`, and the path of its first bias."""
    torch.manual_seed(0)
    model = ScoreNetwork(MLP((2,), 8), VPSDE(), V())
    first = next(p for p in model.parameters() if p.numel() <= 12)
    path = walk(steps)[:, : first.numel()].float()
    kept = PostHoc(every)
    averages = kept.averages(model)
    for step in range(1, steps + 1):
        with torch.no_grad():
            first.copy_(path[step - 1].reshape(first.shape))
        for average in averages:
            average.update_parameters(model)
        if kept.due(step, steps):
            store(folder, step, kept.sigma_rel, collect(averages))
    save(model, folder / "model", steps=steps)
    return model, path


def test_any_length_is_reconstructed(tmp_path: Path) -> None:
    """Errors relative to the size of the average; measured 6e-4, 2e-7, 3e-5, 6e-8, 5e-5, 3e-4."""
    model, path = trained(tmp_path, 1000, 25)
    names = [name for name, p in model.net.named_parameters() if p.numel() <= 12]
    bounds = {0.03: 1e-3, 0.05: 1e-6, 0.07: 5e-5, 0.10: 1e-6, 0.15: 3e-4, 0.20: 5e-3}
    for sigma_rel, bound in bounds.items():
        exact = torch.from_numpy(shares(gamma_of(sigma_rel), 1000)) @ path.double()
        made = reconstruct(tmp_path, sigma_rel)
        found = made.net.get_parameter(names[0]).detach().double().flatten()
        assert float((found - exact).norm() / exact.norm()) < bound, sigma_rel
        assert not made.training
    # weights that never moved stay where they are, since the shares sum to almost one
    made, still = reconstruct(tmp_path, 0.12), dict(model.net.named_parameters())
    for name, p in made.net.named_parameters():
        if name != names[0]:
            assert torch.allclose(p, still[name], rtol=1e-3, atol=1e-6)


def test_an_earlier_end_uses_what_was_stored_until_then(tmp_path: Path) -> None:
    model, path = trained(tmp_path, 400, 20)
    name = next(name for name, p in model.net.named_parameters() if p.numel() <= 12)
    exact = torch.from_numpy(shares(gamma_of(0.08), 200)) @ path[:200].double()
    found = (
        reconstruct(tmp_path, 0.08, step=200).net.get_parameter(name).detach().double().flatten()
    )
    assert float((found - exact).norm() / exact.norm()) < 5e-3
    with pytest.raises(CheckpointError, match=r"no snapshot of step 210; there are \[20, 40"):
        reconstruct(tmp_path, 0.08, step=210)


def test_profiles_at_hand_are_found_again() -> None:
    kept = [Profile(t, gamma_of(length)) for t in (10.0, 20.0, 30.0) for length in (0.05, 0.1)]
    for i, profile in enumerate(kept):
        assert combination(kept, profile) == pytest.approx([float(i == j) for j in range(6)])


def test_bad_lengths_and_snapshots_are_refused(tmp_path: Path) -> None:
    for sigma_rel in (0.0, 0.3, math.nan, -0.1):
        with pytest.raises(ValueError, match="sigma_rel"):
            PowerEMA(nn.Linear(1, 1), sigma_rel)
        with pytest.raises(ValueError, match="sigma_rel"):
            PostHoc(10, (0.05, sigma_rel))
    for lengths in ((), (0.1, 0.1)):
        with pytest.raises(ValueError, match="each once"):
            PostHoc(10, lengths)
    with pytest.raises(ValueError, match="every"):
        PostHoc(0)
    trained(tmp_path, 40, 20)
    path = tmp_path / "posthoc" / "000000040.safetensors"
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[-1] ^= 1
    path.write_bytes(bytes(flipped))
    with pytest.raises(CheckpointError, match="SHA-256 differs"):
        reconstruct(tmp_path, 0.1)
    path.write_bytes(content[:50])
    with pytest.raises(CheckpointError, match="truncated or no snapshot"):
        reconstruct(tmp_path, 0.1)
    path.write_bytes(safetensors.torch.save({"a": torch.zeros(1)}))  # another program's
    with pytest.raises(CheckpointError, match="not a snapshot of averages"):
        reconstruct(tmp_path, 0.1)
    path.write_bytes(content)
    other = ScoreNetwork(MLP((2,), 8, classes=2), VPSDE(), V())
    save(other, tmp_path / "model", overwrite=True)
    with pytest.raises(CheckpointError, match="of another network"):
        reconstruct(tmp_path, 0.1)


def test_half_precision_is_stored_wide_and_own_networks_are_given(tmp_path: Path) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))
            self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

        def forward(self, x: torch.Tensor, clock: torch.Tensor) -> torch.Tensor:
            return self.scale * x

    net = Own().bfloat16()
    model = ScoreNetwork(net, VPSDE(), V())
    averages = PostHoc(5).averages(model)
    for step in range(1, 21):
        with torch.no_grad():
            net.scale.fill_(1 + step / 16)
            net.seen.fill_(step)
        for average in averages:
            average.update_parameters(model)
        if step % 5 == 0:
            store(tmp_path, step, (0.05, 0.1), collect(averages))
    save(model, tmp_path / "model")
    with safetensors.safe_open(tmp_path / "posthoc/000000020.safetensors", framework="pt") as file:
        assert file.get_tensor("0/scale").dtype == torch.float32
    made = reconstruct(tmp_path, 0.1, net=Own().bfloat16())
    exact = shares(gamma_of(0.1), 20) @ (1 + np.arange(1, 21) / 16)
    assert made.net.scale[0].item() == pytest.approx(exact, rel=2**-8)
    assert int(made.net.seen) == 20
