"""ADM, DDPM++ and NCSN++, EDM2: what they are built of, take, refuse, and how they are kept.

Their numbers stand beside the origins' own in `test_interop_origins`.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import jvp, vjp, vmap

import scoregen as sg
from scoregen.networks import ADM, EDM2, NCSNpp
from scoregen.networks.stages import stages

SMALL: dict[str, Any] = {
    "ADM": lambda **more: ADM(3, 8, (1, 2), 1, (False, True), head_channels=8, **more),
    "ADM, conv": lambda **more: ADM(
        3, 8, (1, 2), 1, (False, True), heads=2, sizing="conv", modulation="add", **more
    ),
    "DDPM++": lambda **more: NCSNpp(3, 8, (1, 2), 1, (False, True), **more),
    "NCSN++": lambda **more: NCSNpp(
        3, 8, (1, 2), 1, (False, True), embedding="fourier", encoder="residual",
        taps=(1, 3, 3, 1), **more,
    ),
    "NCSN++, skip": lambda **more: NCSNpp(
        3, 8, (1, 2), 1, (False, True), embedding="fourier", encoder="skip", decoder="skip",
        taps=(1, 3, 3, 1), **more,
    ),
    "EDM2": lambda **more: EDM2(3, 8, (1, 2), 1, (False, True), head_channels=8, **more),
}  # fmt: skip


def made(name: str, **more: Any) -> nn.Module:
    """The network in float64 with every parameter random, so that no zero hides a branch."""
    with torch.random.fork_rng():
        net: nn.Module = SMALL[name](**more)
    g = torch.Generator().manual_seed(0)
    for p in net.parameters():
        nn.init.normal_(p, std=0.3, generator=g)
    return net.double().eval()


def batch(n: int = 2, size: int = 8) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, 3, size, size, generator=g, dtype=torch.float64)
    return x, torch.linspace(0.5, 2.0, n, dtype=torch.float64)


@pytest.mark.parametrize("name", SMALL)
def test_the_config_rebuilds_the_network(name: str) -> None:
    net, (x, clock) = made(name, classes=4), batch()
    config: Any = net.config
    with torch.random.fork_rng():
        again = type(net)(**json.loads(json.dumps(config))).double().eval()
    again.load_state_dict(net.state_dict())
    label = torch.tensor([0, 4])
    assert torch.equal(again(x, clock, label), net(x, clock, label))


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_rows_are_independent_and_the_null_class_is_no_label(name: str) -> None:
    net, (x, clock) = made(name, classes=4), batch()
    label = torch.tensor([1, 4])
    whole = net(x, clock, label)
    alone = torch.cat([net(x[i : i + 1], clock[i : i + 1], label[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(whole, alone)
    torch.testing.assert_close(whole[1:], net(x[1:], clock[1:]))
    rows = torch.tensor([[0.0, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(net(x, clock, rows), whole)
    assert float((net(x, clock) - whole)[0].abs().max()) > 1e-3
    assert float((net(x, clock + 0.5, label) - whole).abs().max()) > 1e-3


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own, of jvp
@pytest.mark.parametrize("name", SMALL)
def test_derivatives_of_every_kind(name: str) -> None:
    """Forward and reverse mode agree, and vectorised pulls are the single ones."""
    net, (x, clock) = made(name), batch()
    for p in net.parameters():
        p.requires_grad_(False)
    v, w = torch.sin(7 * x), torch.cos(3 * x)

    def f(y: Tensor) -> Tensor:
        return net(y, clock)

    _, forward = jvp(f, (x,), (v,))
    _, pull = vjp(f, x)
    torch.testing.assert_close((forward * w).sum(), (v * pull(w)[0]).sum())
    both = vmap(lambda u: pull(u)[0])(torch.stack([v, w]))
    torch.testing.assert_close(both[1], pull(w)[0])


@pytest.mark.parametrize("name", SMALL)
def test_wrong_inputs_are_refused(name: str) -> None:
    net, (x, clock) = made(name), batch()
    with pytest.raises(ValueError, match="that 2 divides"):
        net(x[:, :, :7], clock)
    with pytest.raises(ValueError, match="batch, 3,"):
        net(x[:, :2], clock)
    with pytest.raises(ValueError, match="one entry per sample"):
        net(x, clock[:1])
    with pytest.raises(TypeError, match="without classes"):
        net(x, clock, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="whole numbers"):
        made(name, classes=4)(x, clock, torch.tensor([0, 1, 2]))


def test_activations_may_be_of_any_size() -> None:
    """A file of EDM2 without clip_act has no bound."""
    with torch.random.fork_rng(devices=[]):
        free, bounded = (
            EDM2(3, 8, (1,), 1, (True,), head_channels=8, clip=c) for c in (math.inf, 1e6)
        )
    bounded.load_state_dict(free.state_dict())
    x, clock = batch()
    torch.testing.assert_close(free(x, clock), bounded(x, clock), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: ADM(heads=2, head_channels=64), "heads=2 and head_channels=64"),
        (lambda: ADM(3, 16, (1, 2), 1, (False, True), head_channels=5), "do not divide"),
        (lambda: ADM(3, 8, (1, 2), 1, (False, True), heads=3), "do not divide"),
        (lambda: ADM(3, 8, (1, 2), 1, (True,), heads=1), "a width and a flag"),
        (lambda: ADM(3, 7, (1,), 1, (True,), heads=1), "even"),
        (lambda: ADM(3, 8, (1,), 1, (True,), heads=1, sizing="pool"), "sizing"),  # type: ignore[arg-type]
        (lambda: NCSNpp(3, 8, (1,), 1, (True,), taps=(1, 2, 1)), "even length"),
        (lambda: NCSNpp(3, 6, (1,), 1, (True,)), "divisible by 4"),
        (lambda: NCSNpp(3, 8, (1,), 1, (True,), encoder="pool"), "encoder"),  # type: ignore[arg-type]
        (lambda: EDM2(3, 12, (1,), 1, (True,), head_channels=8), "do not divide"),
        (lambda: EDM2(3, 8, (1,), 1, (True,), head_channels=8, clip=0.0), "clip"),
        (lambda: stages(3, 8, (), 1, ()), "a width and a flag"),
    ],
)
def test_arguments_that_do_not_fit(make: Any, word: str) -> None:
    with torch.random.fork_rng(), pytest.raises(ValueError, match=word):
        make()


def test_edm2_keeps_magnitudes() -> None:
    """Unit inputs stay of unit size up to the last layer, whatever the weights' own sizes."""
    net: Any = made("EDM2")
    seen: list[float] = []
    for part in (*net.encoder, *net.decoder):
        part.register_forward_hook(lambda m, i, out: seen.append(float(out.square().mean())))
    x, clock = batch(16)
    with torch.no_grad():
        net(x, clock.log() / 4)
        first = list(seen)
        for p in net.parameters():
            p.mul_(3.0 if p.ndim else 1.0)
        net(x, clock.log() / 4)
    assert all(0.2 < value < 2.5 for value in first)
    assert seen[len(first) :] == pytest.approx(first, rel=1e-2)  # eps of 1e-4


def test_edm2_brings_its_weights_back_in_training() -> None:
    net: Any = made("EDM2")
    net.train()
    x, clock = batch()
    net(x, clock)
    weight = net.encoder[1].conv1.weight.detach()
    size = weight.square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(size, torch.ones_like(size), rtol=1e-3, atol=1e-3)
    before = net.eval()(x, clock)
    assert torch.equal(net.encoder[1].conv1.weight.detach(), weight)
    assert torch.isfinite(before).all()


@pytest.mark.parametrize("name", ["ADM", "NCSN++", "EDM2"])
def test_checkpoints_keep_them(name: str, tmp_path: Path) -> None:
    net = made(name).float()
    model = sg.ScoreNetwork(net, sg.VPSDE(), sg.V())
    sg.save(model, tmp_path / "model", event=(3, 8, 8))
    with torch.random.fork_rng():
        again: Any = sg.load(tmp_path / "model")
    assert type(again.net) is type(net)
    x = batch()[0].float()
    with torch.no_grad():
        torch.testing.assert_close(again(x, 0.5).x0, model(x, 0.5).x0)
