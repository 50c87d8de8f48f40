"""Networks: shapes, conditions, derivatives of every kind, and rebuilding from their config."""

import inspect
import json
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import jacfwd, jacrev, jvp, vmap

from scoregen.networks.embedding import Conditioning, Sinusoids
from scoregen.networks.mlp import MLP
from scoregen.networks.unet import UNet

SMALL = {
    "vector": (lambda: MLP((3,), hidden=16, depth=2, classes=4), (3,)),
    "scalar": (lambda: MLP((), hidden=8, depth=1, classes=4), ()),
    "image": (
        lambda: UNet(2, 8, (1, 2, 2), attention=(False, True, True), heads=2, classes=4),
        (2, 5, 7),
    ),
}


pytestmark = pytest.mark.usefixtures("own_generator")


def awake(net: nn.Module, seed: int = 0) -> nn.Module:
    """The net with every parameter random, so that no zero initialisation hides a branch."""
    generator = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        nn.init.normal_(p, std=0.3, generator=generator)
    return net


def batch(event: tuple[int, ...], n: int = 3, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *event, generator=generator, dtype=torch.float64)
    return x, torch.linspace(-4, 5, n, dtype=torch.float64)


@pytest.fixture(params=SMALL)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, tuple[int, ...]]:
    build, event = SMALL[request.param]
    return awake(build()).double().eval(), event


# Sinusoids


def test_sinusoids_are_the_formula() -> None:
    clock = torch.tensor([0.3, 7.0], dtype=torch.float64)
    out = Sinusoids(6, min_period=2.0, max_period=200.0)(clock)
    for row, c in zip(out.tolist(), clock.tolist(), strict=True):
        phases = [2 * math.pi * c / period for period in (2.0, 20.0, 200.0)]
        expected = [math.cos(p) for p in phases] + [math.sin(p) for p in phases]
        assert row == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize(
    "clock",
    [torch.linspace(-10, 10, 401), torch.arange(1000), torch.linspace(0, 1, 101)],
    ids=["half-log-SNR", "index", "unit time"],
)
def test_sinusoids_tell_neighbours_apart(clock: Tensor) -> None:
    out = Sinusoids(48)(clock)
    distance = torch.cdist(out, out) + 10 * torch.eye(len(out))
    assert distance.min() > 0.05


def test_sinusoids_keep_float32_in_a_half_precision_network() -> None:
    net = Sinusoids(32)
    clock = torch.arange(1000.0)
    assert torch.equal(net.half()(clock), Sinusoids(32)(clock))
    assert net(clock.half()).dtype == torch.float32


@pytest.mark.parametrize("features", [0, 2, 5])
def test_sinusoids_refuse_odd_sizes(features: int) -> None:
    with pytest.raises(ValueError, match=f"even number >= 4, got {features}"):
        Sinusoids(features)


@pytest.mark.parametrize("periods", [(0.0, 1.0), (2.0, 1.0), (1.0, math.inf)])
def test_sinusoids_refuse_bad_periods(periods: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="min_period"):
        Sinusoids(8, min_period=periods[0], max_period=periods[1])


# Shapes


@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(1, 5), max_size=3), st.integers(0, 3), st.integers(1, 2))
def test_mlp_takes_any_event(event: list[int], n: int, outputs: int) -> None:
    outputs = outputs if event else 1
    net = MLP(event, hidden=8, depth=1, outputs=outputs)
    expected = (outputs * event[0], *event[1:]) if event else ()
    assert net(torch.ones(n, *event), torch.zeros(n)).shape == (n, *expected)
    assert net.output_event == expected


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 11), st.integers(1, 11), st.integers(1, 3), st.sampled_from([0, 1, 2]))
def test_unet_takes_any_size(height: int, width: int, blocks: int, n: int) -> None:
    net = UNet(3, 4, (1, 2, 3), blocks, (False, True, False), out_channels=6)
    x = torch.ones(n, 3, height, width)
    assert net(x, torch.zeros(n)).shape == (n, 6, height, width)


def test_unet_starts_at_zero_and_learns_from_there() -> None:
    net = UNet(1, 8, classes=2)
    x, clock = torch.randn(4, 1, 8, 8), torch.zeros(4)
    out = net(x, clock)
    assert torch.equal(out, torch.zeros_like(x))
    (out - x).square().sum().backward()
    assert net.outlet.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_has_an_effect(name: str) -> None:
    build, event = SMALL[name]
    net = awake(build()).double()
    x, clock = batch(event)
    labels = [None, torch.tensor([0, 1, 2]), torch.tensor([3, 4, 3])]
    sum(net(x, clock, label).square().sum() for label in labels).backward()
    for key, p in net.named_parameters():
        assert p.grad is not None, key
        assert p.grad.abs().sum() > 0, key


def test_the_recommended_digits_network_is_small() -> None:
    net = UNet(channels=1, width=24, mults=(1, 2), attention=(False, True), classes=10)
    assert 250_000 < sum(p.numel() for p in net.parameters()) < 350_000


def test_attention_reaches_every_pixel() -> None:
    x, clock = batch((1, 32, 32), n=1)

    def reach(attention: tuple[bool, bool]) -> int:
        net = awake(UNet(1, 4, (1, 1), attention=attention, heads=2)).double()
        x.requires_grad_(True)
        # Group norms see every pixel as well, through two numbers only; freeze them.
        for module in net.modules():
            if isinstance(module, nn.GroupNorm):
                module.forward = lambda h: h
        (grad,) = torch.autograd.grad(net(x, clock)[0, 0, 0, 0], x)
        return int((grad != 0).sum())

    assert reach((False, False)) < 1024
    assert reach((False, True)) == 1024


def test_mlp_is_the_formula() -> None:
    net = awake(MLP((2,), hidden=6, depth=1)).double()
    x, clock = batch((2,))
    p = dict(net.named_parameters())

    def linear(name: str, h: Tensor) -> Tensor:
        return h @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def silu(h: Tensor) -> Tensor:
        return h / (1 + torch.exp(-h))

    phase = clock[:, None] * 2 * math.pi / torch.tensor([1.0, 100.0, 10_000.0]).double()
    c = linear("condition.inner", torch.cat((phase.cos(), phase.sin()), dim=1))
    c = silu(linear("condition.outer", silu(c)))
    h = linear("inlet", x)
    scale, shift = linear("layers.0.modulation", c).chunk(2, dim=1)
    normed = (h - h.mean(1, keepdim=True)) / (h.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    inner = silu(linear("layers.0.inner", normed * (1 + scale) + shift))
    expected = linear("outlet", silu(h + linear("layers.0.outer", inner)))
    torch.testing.assert_close(net(x, clock), expected, rtol=1e-12, atol=1e-12)


def test_unet_is_scaled_and_shifted_by_the_condition() -> None:
    net = awake(UNet(1, 8, (1,), attention=(False,))).double().eval()
    x, clock = batch((1, 4, 4))
    block = net.middle.block
    out = net(x, clock)

    def changed(half: slice) -> bool:
        with torch.no_grad():
            block.modulation.bias[half] += 1
            moved = not torch.allclose(net(x, clock), out)
            block.modulation.bias[half] -= 1
        return moved

    assert changed(slice(0, 8)), "scale"
    assert changed(slice(8, 16)), "shift"


# Precision


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SMALL)
def test_parameters_govern_the_precision(name: str, dtype: torch.dtype) -> None:
    build, event = SMALL[name]
    net = awake(build()).to(dtype)
    x, clock = batch(event)
    for given_dtype in (torch.float64, torch.float32):
        assert net(x.to(given_dtype), clock.to(given_dtype)).dtype == dtype


def test_an_index_clock_may_be_an_integer() -> None:
    net = awake(MLP((2,), hidden=8))
    x = torch.ones(3, 2)
    index = torch.tensor([0, 500, 999])
    assert torch.equal(net(x, index), net(x, index.float()))
    assert not torch.equal(net(x, index)[0], net(x, index)[1])


# Batch mates, vmap and derivatives


def test_batch_mates_do_not_matter(case: tuple[nn.Module, tuple[int, ...]]) -> None:
    net, event = case
    x, clock = batch(event, n=5)
    label = torch.tensor([0, 1, 2, 3, 4])
    whole = net(x, clock, label)
    alone = torch.cat([net(x[i : i + 1], clock[i : i + 1], label[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(whole, alone, rtol=1e-12, atol=1e-12)


def test_vmap_over_single_samples(case: tuple[nn.Module, tuple[int, ...]]) -> None:
    net, event = case
    x, clock = batch(event)
    label = torch.tensor([0, 3, 4])

    def single(a: Tensor, c: Tensor, y: Tensor) -> Tensor:
        return net(a[None], c[None], y[None])[0]

    torch.testing.assert_close(
        vmap(single)(x, clock, label), net(x, clock, label), rtol=1e-12, atol=1e-12
    )


def test_forward_and_reverse_mode_agree_with_differences(
    case: tuple[nn.Module, tuple[int, ...]],
) -> None:
    net, event = case
    x, clock = batch(event, n=1)
    direction = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(3))

    def f(y: Tensor) -> Tensor:
        return net(y, clock)

    _, forward = jvp(f, (x,), (direction,))
    h = 1e-5
    central = (f(x + h * direction) - f(x - h * direction)) / (2 * h)
    torch.testing.assert_close(forward, central, rtol=1e-6, atol=1e-7)
    reverse = jacrev(f)(x)
    torch.testing.assert_close(reverse, jacfwd(f)(x), rtol=1e-10, atol=1e-12)
    product = reverse.reshape(x.numel(), x.numel()) @ direction.flatten()
    torch.testing.assert_close(product, forward.flatten(), rtol=1e-10, atol=1e-12)


def test_derivatives_where_a_fused_kernel_would_serve() -> None:
    # With one pixel, or with channels last, torch would choose an attention kernel that has
    # no forward mode and no second derivative.
    net = awake(UNet(1, 8)).double()
    x, clock = batch((1, 1, 1))
    _, forward = jvp(lambda y: net(y, clock), (x,), (torch.ones_like(x),))
    h = 1e-5
    central = (net(x + h, clock) - net(x - h, clock)) / (2 * h)
    torch.testing.assert_close(forward, central, rtol=1e-5, atol=1e-6)
    net = net.to(memory_format=torch.channels_last)
    x, clock = batch((1, 8, 8))
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_(True)
    (grad,) = torch.autograd.grad(net(x, clock).square().sum(), x, create_graph=True)
    grad.square().sum().backward()
    assert x.grad.isfinite().all()


def test_forward_mode_through_the_clock(case: tuple[nn.Module, tuple[int, ...]]) -> None:
    net, event = case
    x, clock = batch(event)
    _, rate = jvp(lambda c: net(x, c), (clock,), (torch.ones_like(clock),))
    h = 1e-5
    central = (net(x, clock + h) - net(x, clock - h)) / (2 * h)
    torch.testing.assert_close(rate, central, rtol=1e-5, atol=1e-6)


def test_second_derivatives(case: tuple[nn.Module, tuple[int, ...]]) -> None:
    net, event = case
    x, clock = batch(event, n=1)
    x.requires_grad_(True)
    (grad,) = torch.autograd.grad(net(x, clock).square().sum(), x, create_graph=True)
    grad.square().sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


def test_inputs_are_not_written_to(case: tuple[nn.Module, tuple[int, ...]]) -> None:
    net, event = case
    x, clock = batch(event)
    before = x.clone(), clock.clone()
    net(x, clock)
    assert torch.equal(x, before[0])
    assert torch.equal(clock, before[1])


# Config


@pytest.mark.parametrize(
    "build",
    [
        lambda: MLP((2, 3), 16, 1, classes=3, outputs=2, min_period=0.5, max_period=50.0),
        lambda: UNet(3, 8, (1, 3), 2, (True, False), 2, 5, 6, 0.1, max_period=50.0),
    ],
    ids=["mlp", "unet"],
)
def test_config_rebuilds_the_network(build: Callable[[], nn.Module]) -> None:
    net = build()
    again = type(net)(**json.loads(json.dumps(net.config)))
    assert again.config == net.config
    again.load_state_dict(awake(net).state_dict())
    event = (3, 6, 6) if isinstance(net, UNet) else (2, 3)
    x, clock = (t.float() for t in batch(event))
    assert torch.equal(again.eval()(x, clock), net.eval()(x, clock))


def test_config_names_every_argument() -> None:
    for net in (MLP(), UNet()):
        named = list(inspect.signature(type(net)).parameters)
        # whether activations are computed again changes no number
        assert list(net.config) == [name for name in named if name != "checkpoint"]


# Conditions


def test_no_label_means_the_null_class(case: tuple[nn.Module, tuple[int, ...]]) -> None:
    net, event = case
    x, clock = batch(event)
    null = torch.full((3,), 4)
    torch.testing.assert_close(net(x, clock), net(x, clock, null), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(net(x, clock), net(x, clock, null - 1))


def test_the_table_has_a_null_row() -> None:
    assert Conditioning(8, 16, classes=10).table.weight.shape == (11, 16)
    assert Conditioning(8, 16).table is None


@pytest.mark.parametrize("name", SMALL)
def test_legal_conditions_pass(name: str) -> None:
    net = SMALL[name][0]()
    net.check_condition()
    net.check_condition(label=None)
    net.check_condition(label=torch.tensor([0, 3, 4]))
    net.check_condition(label=torch.empty(0, dtype=torch.int64))


@pytest.mark.parametrize(
    ("condition", "error", "says"),
    [
        ({"text": "two"}, TypeError, r"unknown condition \['text'\].*'label'"),
        ({"label": [1, 2]}, TypeError, "int64 tensor, got list"),
        ({"label": torch.tensor([1.0])}, TypeError, "int64 tensor, got torch.float32"),
        ({"label": torch.tensor([1], dtype=torch.int32)}, TypeError, r"label\.to\(torch\.int64\)"),
        ({"label": torch.tensor(1)}, ValueError, r"shape \(batch,\)"),
        ({"label": torch.tensor([[1]])}, ValueError, r"got \(1, 1\)"),
        ({"label": torch.tensor([1, 5])}, ValueError, r"0 \.\. 4, where 4 is the null.*\[5\]"),
        ({"label": torch.tensor([-1])}, ValueError, r"got \[-1\]"),
    ],
)
@pytest.mark.parametrize("name", SMALL)
def test_illegal_conditions_are_refused(
    name: str, condition: dict[str, object], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        SMALL[name][0]().check_condition(**condition)


@pytest.mark.parametrize("build", [lambda: MLP(hidden=8), lambda: UNet(2, 4)], ids=["mlp", "unet"])
def test_a_label_without_classes_is_refused(build: Callable[[], nn.Module]) -> None:
    net = build()
    x, clock = batch((2,) if isinstance(net, MLP) else (2, 4, 4))
    label = torch.tensor([0, 1, 2])
    with pytest.raises(TypeError, match="classes=K"):
        net.check_condition(label=label)
    with pytest.raises(TypeError, match="classes=K"):
        net(x, clock, label)
    with pytest.raises(TypeError, match=r"unknown condition.*takes: none"):
        net.check_condition(image=x)


# Faults


@pytest.mark.parametrize(
    ("x", "clock", "label", "says"),
    [
        (torch.zeros(3, 4), torch.zeros(3), None, r"\(3,\).*got x of shape \(3, 4\)"),
        (torch.zeros(3, 3, 1), torch.zeros(3), None, r"got x of shape \(3, 3, 1\)"),
        (torch.zeros(()), torch.zeros(3), None, r"got x of shape \(\)"),
        (torch.zeros(2, 3), torch.zeros(3), None, r"shape \(2,\), got \(3,\)"),
        (torch.zeros(2, 3), torch.tensor(0.0), None, "expand"),
        (torch.zeros(2, 3), torch.zeros(2), torch.tensor([1]), r"shape \(2,\), got \(1,\)"),
    ],
)
def test_mlp_refuses_shapes(x: Tensor, clock: Tensor, label: Tensor | None, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SMALL["vector"][0]()(x, clock, label)


def test_a_scalar_event_needs_a_batch_axis() -> None:
    with pytest.raises(ValueError, match=r"got x of shape \(\)"):
        SMALL["scalar"][0]()(torch.tensor(0.0), torch.tensor(0.0))


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((3, 1, 8, 8), "takes 2 channel.*got 1"),
        ((3, 2, 8), "4 axes.*got 3 axes"),
        ((3, 1, 2, 8, 8), "got 5 axes"),
    ],
)
def test_unet_refuses_shapes(shape: tuple[int, ...], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SMALL["image"][0]()(torch.zeros(shape), torch.zeros(3))


def test_unet_refuses_a_clock_of_another_length() -> None:
    with pytest.raises(ValueError, match=r"shape \(3,\), got \(2,\)"):
        SMALL["image"][0]()(torch.zeros(3, 2, 8, 8), torch.zeros(2))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"mults": ()}, "one entry per level"),
        ({"mults": (1, 2, 2)}, "one entry per level, got 3 and 2"),
        ({"channels": 0}, "channels must be at least 1"),
        ({"blocks": 0}, "blocks must be at least 1"),
        ({"mults": (1, 0)}, r"mults\[1\] must be at least 1"),
        ({"width": 3}, "even number >= 4, got 3"),
        ({"width": 32, "heads": 3}, "got 3 heads and 64 channels"),
        ({"dropout": 1.0}, r"\[0, 1\), got 1"),
        ({"classes": -1}, "classes must be at least 0"),
    ],
)
def test_unet_refuses_arguments(arguments: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        UNet(**arguments)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"event": (0,)}, r"event\[0\] must be at least 1"),
        ({"depth": -1}, "depth must be at least 0"),
        ({"outputs": 0}, "outputs must be at least 1"),
        ({"event": (), "outputs": 2}, r"event=\(1,\)"),
        ({"hidden": 7}, "got 7"),
    ],
)
def test_mlp_refuses_arguments(arguments: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        MLP(**arguments)


def test_dropout_acts_in_training_only() -> None:
    net = awake(UNet(1, 8, dropout=0.5))
    x, clock = torch.ones(2, 1, 4, 4), torch.zeros(2)
    assert not torch.equal(net(x, clock), net(x, clock))
    net.eval()
    assert torch.equal(net(x, clock), net(x, clock))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputed_activations_give_the_same_gradients(dropout: float) -> None:
    """The same bits, dropout included; nothing but the flag differs, and the card has none."""
    gradients, counts = [], []
    for checkpoint in (False, True):
        torch.manual_seed(0)
        net = UNet(channels=2, width=8, classes=2, dropout=dropout, checkpoint=checkpoint)
        for p in net.parameters():
            torch.nn.init.normal_(p, std=0.1)
        calls: list[int] = []
        net.middle.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        x = torch.linspace(-1, 1, 2 * 2 * 5 * 7).reshape(2, 2, 5, 7).requires_grad_()
        torch.manual_seed(1)
        out = net(x, torch.tensor([0.1, 0.7]), torch.tensor([0, 2]))
        grads = torch.autograd.grad(out.square().sum(), [x, *net.parameters()])
        gradients.append(grads)
        net.eval()
        net(x, torch.tensor([0.1, 0.7]))
        counts.append(len(calls))
        assert "checkpoint" not in net.config
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    # forward, forward again on the way back, and once in evaluation mode
    assert counts == [2, 3]
    with pytest.raises(TypeError, match="checkpoint"):
        UNet(checkpoint=1)
