"""Augmentation: each map against its closed form, and what it is a function of."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from scoregen import MLP, VPSDE, Data, ScoreNetwork, V
from scoregen.data import Augmented, FromDataset, HorizontalFlip, NonLeaking
from scoregen.data.order import stream
from scoregen.models import Conditions
from scoregen.training import fit

X = torch.randn(24, 2, 6, 6, generator=torch.Generator().manual_seed(0))
DATA = Data(X, torch.arange(24) % 3)


def numbers(**a: float) -> Tensor:
    """a0 .. a7 of one image."""
    return torch.tensor([[a.get(f"a{k}", 0.0) for k in range(8)]], dtype=torch.float64)


def plane(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Coordinates of the pixels from the centre, in pixels."""
    v = torch.arange(height, dtype=torch.float64) - (height - 1) / 2
    u = torch.arange(width, dtype=torch.float64) - (width - 1) / 2
    return u[None].expand(height, width), v[:, None].expand(height, width)


def picture(u: Tensor, v: Tensor) -> Tensor:
    """A smooth picture without any symmetry, as a function of the point."""
    return torch.sin(0.11 * u + 0.3) * torch.cos(0.07 * v - 0.2) + 0.02 * u - 0.01 * v


# What stands at the point (u, v) of the changed picture, in pixels from the centre: the picture at
# the point that was moved there.
W, H, S, A, M = 48, 40, 0.3, 0.25, 0.06


def turned(angle: float, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    c, s = math.cos(angle), math.sin(angle)
    return c * u - s * v, s * u + c * v


def narrowed(a: float, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return u / 2 ** (A * a), v * 2 ** (A * a)


MAPS: dict[str, tuple[dict[str, float], Any]] = {
    "mirrored": ({"a0": 1.0}, lambda u, v: (-u, v)),
    "upside down": ({"a1": 1.0}, lambda u, v: (u, -v)),
    "scaled up": ({"a2": 0.8}, lambda u, v: (u / 2 ** (S * 0.8), v / 2 ** (S * 0.8))),
    "scaled down": ({"a2": -0.7}, lambda u, v: (u * 2 ** (S * 0.7), v * 2 ** (S * 0.7))),
    "rotated": ({"a3": 0.5}, lambda u, v: turned(0.5, u, v)),
    "stretched": ({"a5": 0.9}, lambda u, v: narrowed(0.9, u, v)),
    "stretched along 1.1": (
        {"a4": 1.1, "a5": 0.9},
        lambda u, v: turned(1.1, *narrowed(0.9, *turned(-1.1, u, v))),
    ),
    "moved": ({"a6": 0.5, "a7": -0.8}, lambda u, v: (u - 0.5 * M * W, v + 0.8 * M * H)),
    # the mirror image first, then the rotation, then the translation
    "all": (
        {"a0": 1.0, "a3": 0.5, "a6": 0.5},
        lambda u, v: (lambda p, q: (-p, q))(*turned(0.5, u - 0.5 * M * W, v)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MAPS)
def test_each_map_is_its_closed_form(name: str) -> None:
    a, back = MAPS[name]
    u, v = plane(H, W)
    x = picture(u, v)[None, None].float()
    augmentation = NonLeaking(p=1.0, scale=S, stretch=A, move=M)
    changed, _ = augmentation(x, numbers(**a))
    p, q = back(u, v)
    inside = (p.abs() < W / 2 - 3) & (q.abs() < H / 2 - 3)
    assert int(inside.sum()) > H * W / 3
    error = (changed[0, 0].double() - picture(p, q))[inside].abs().max()
    assert float(error) < 0.01  # bicubic interpolation; a shift by a tenth of a pixel gives 0.013
    assert float((picture(p, q) - picture(u, v)).abs().max()) > 0.1


def test_quarter_turns_and_whole_pixels_are_exact_permutations() -> None:
    x = X[:1]
    quarter, _ = NonLeaking()(x, numbers(a3=math.pi / 2))
    torch.testing.assert_close(quarter, torch.rot90(x, 1, (2, 3)), atol=1e-5, rtol=0)
    # 0.125 of 8 pixels is one; what enters at the edge is reflected
    wide = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    right, _ = NonLeaking()(wide, numbers(a6=1.0))
    expected = torch.cat((wide[..., :1], wide[..., :-1]), 3)
    torch.testing.assert_close(right, expected, atol=1e-5, rtol=0)
    down, _ = NonLeaking()(wide, numbers(a7=2.0))
    expected = torch.cat((wide[:, :, [1, 0]], wide[:, :, :-2]), 2)
    torch.testing.assert_close(down, expected, atol=1e-5, rtol=0)


def test_the_condition_is_the_table_of_the_paper_and_zero_where_nothing_happened() -> None:
    a = numbers(a0=1, a1=1, a2=0.3, a3=0.7, a4=-1.2, a5=0.4, a6=-0.6, a7=0.9)
    both = torch.cat((a, torch.zeros(1, 8, dtype=torch.float64)))
    changed, condition = NonLeaking()(X[:2], both)
    expected = [
        1, 1, 0.3, math.cos(0.7) - 1, math.sin(0.7), 0.4 * math.cos(-1.2), 0.4 * math.sin(-1.2),
        -0.6, 0.9,
    ]  # fmt: skip
    torch.testing.assert_close(condition["augment"][0], torch.tensor(expected), rtol=1e-6, atol=0)
    assert condition["augment"].dtype == torch.float32
    assert condition["augment"][1].tolist() == [0.0] * 9
    assert torch.equal(changed[1], X[1])
    assert not torch.equal(changed[0], X[0])


def test_flips_keep_every_value() -> None:
    changed, _ = NonLeaking()(X[:1], numbers(a0=1, a1=1))
    assert torch.equal(changed, X[:1].flip(2, 3))
    flipped, condition = HorizontalFlip()(X, torch.arange(24) % 2 == 0)
    assert condition == {}
    assert torch.equal(flipped[::2], X[::2].flip(3))
    assert torch.equal(flipped[1::2], X[1::2])


def test_the_laws_of_the_numbers() -> None:
    n, p = 40_000, 0.12
    a = NonLeaking(p).draw(n, stream(5)).numpy()
    share = (a != 0).mean(0)
    # five standard deviations of every share and moment: a false alarm below 1e-6 for each
    for k, expected in enumerate((0.5, p / 2, p, p, p, p, p, p)):
        assert abs(share[k] - expected) < 5 * math.sqrt(expected * (1 - expected) / n)
    assert ((a[:, 6] != 0) == (a[:, 7] != 0)).all()
    assert ((a[:, 4] != 0) == (a[:, 5] != 0)).all()
    for i, j in itertools.combinations((0, 2, 3, 4, 6), 2):
        both = ((a[:, i] != 0) & (a[:, j] != 0)).mean()
        expected = share[i] * share[j]
        assert abs(both - expected) < 5 * math.sqrt(expected / n)
    for k in (2, 5, 6, 7):
        z = a[:, k][a[:, k] != 0]
        assert abs(z.mean()) < 5 / math.sqrt(len(z))
        assert abs(z.var() - 1) < 5 * math.sqrt(2 / len(z))
    for k in (3, 4):
        angle = a[:, k][a[:, k] != 0]
        assert abs(angle).max() < math.pi
        assert abs(angle.mean()) < 5 * math.pi / math.sqrt(3 * len(angle))
        assert abs((angle**2).mean() - math.pi**2 / 3) < 5 * math.pi**2 * 0.3 / math.sqrt(
            len(angle)
        )
    assert (NonLeaking(1.0, upside_down=False).draw(100, stream(0))[:, 1] == 0).all()
    none = NonLeaking(0.0).draw(100, stream(0))
    assert (none[:, 1:] == 0).all()
    flips = HorizontalFlip(0.25).draw(n, stream(5)).double().mean()
    assert abs(float(flips) - 0.25) < 5 * math.sqrt(0.25 * 0.75 / n)


@given(st.integers(1, 24), st.integers(0, 40), st.integers(0, 50), st.data())
def test_what_happens_to_a_row_depends_on_the_seed_the_step_and_the_row_alone(
    batch: int, first: int, seed: int, draw: st.DataObject
) -> None:
    cut = draw.draw(st.integers(0, batch))
    source = Augmented(Augmented(DATA, NonLeaking(0.5)), HorizontalFlip())
    whole = list(itertools.islice(source.serve(batch, seed), first + 2))[first:]
    parts = [
        itertools.islice(source.serve(batch, seed, first, rows), 2)
        for rows in (slice(0, cut), slice(cut, batch))
    ]
    for all_, low, high in zip(whole, *parts, strict=True):
        torch.testing.assert_close(torch.cat((low.x, high.x)), all_.x, rtol=0, atol=1e-5)
        for name in ("label", "augment"):
            joined = torch.cat((low.condition[name], high.condition[name]))
            assert torch.equal(joined, all_.condition[name])


def test_flips_differ_by_step_seed_and_depth_and_leave_the_order_alone() -> None:
    counting = Data(torch.arange(24.0).reshape(24, 1, 1, 1).expand(24, 1, 1, 2).clone())
    ramp = Data(counting.x + torch.tensor([0.0, 0.5]))
    once, twice = (
        Augmented(ramp, HorizontalFlip()),
        Augmented(Augmented(ramp, HorizontalFlip()), HorizontalFlip()),
    )
    served = [b.x for b in itertools.islice(once.serve(24, 0), 3)]
    plain = [b.x for b in itertools.islice(ramp.serve(24, 0), 3)]
    flipped = [(a[..., 0] > a[..., 1]).flatten().tolist() for a in served]
    for a, b in zip(served, plain, strict=True):
        assert torch.equal(a.amin(3), b.amin(3))
    other = next(once.serve(24, 1)).x
    second = next(twice.serve(24, 0)).x
    flipped += [(x[..., 0] > x[..., 1]).flatten().tolist() for x in (other, second)]
    # two draws of one stream would undo each other: the second flip has its own
    assert flipped[4] != [False] * 24
    assert len({tuple(f) for f in flipped}) == 5


def test_an_augmented_source_is_what_the_source_is() -> None:
    levels = torch.zeros(6, 1, 4, 4, dtype=torch.uint8)
    data = Data(levels, torch.arange(6), bins=256, name="six")
    source = Augmented(data, NonLeaking())
    assert (source.name, source.event, source.range, source.bins) == (
        "six",
        (1, 4, 4),
        (-1, 1),
        256,
    )
    assert (source.conditions, source.classes, source.units) == (("label", "augment"), 6, None)
    assert source.mean_square() == data.mean_square()
    known = [
        Augmented(data, a).identity() for a in (NonLeaking(), NonLeaking(0.3), HorizontalFlip())
    ]
    assert len({data.identity(), *known}) == 4
    assert Augmented(data, NonLeaking()).identity() == known[0]
    labelled = FromDataset([(x, k) for k, x in enumerate(data.x)])
    inner = Augmented(labelled, HorizontalFlip()).with_classes(3)
    with pytest.raises(ValueError, match=r"0 \.\. 2"):
        next(inner.serve(6, 0))


def test_what_an_augmentation_does_not_suit_is_refused() -> None:
    flat = Data(torch.zeros(5, 2))
    for augmentation in (HorizontalFlip(), NonLeaking()):
        with pytest.raises(ValueError, match=r"images \(C, H, W\), got \(2,\)"):
            Augmented(flat, augmentation)
    with pytest.raises(ValueError, match=r"\['augment'\] already"):
        Augmented(Augmented(DATA, NonLeaking()), NonLeaking())
    with pytest.raises(TypeError, match="Data"):
        Augmented(torch.zeros(4, 1, 2, 2), HorizontalFlip())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"such as HorizontalFlip\(\)"):
        Augmented(DATA, None)  # type: ignore[arg-type]
    for bad in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"p must lie in \[0, 1\]"):
            NonLeaking(bad)
        with pytest.raises(ValueError, match=r"p must lie in \[0, 1\]"):
            HorizontalFlip(bad)
    with pytest.raises(ValueError, match="move must lie in"):
        NonLeaking(move=-1.0)


class Net(torch.nn.Module):
    """A network of a user that takes the description of the augmentation."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = MLP((2, 6, 6), 8, classes=3)
        self.augment = torch.nn.Linear(9, 1)

    def forward(self, x: Tensor, clock: Tensor, label: Tensor, augment: Tensor) -> Tensor:
        return self.mlp(x, clock, label=label) + self.augment(augment)[:, :, None, None]


def test_a_training_learns_with_the_description_and_resumes(tmp_path: Path) -> None:
    def model() -> ScoreNetwork:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            known = Conditions({"label": 3, "augment": torch.zeros(9)}, classes=3)
            return ScoreNetwork(Net(), VPSDE(), V(), conditions=known)

    source = Augmented(Augmented(DATA, NonLeaking(0.4)), HorizontalFlip())
    arguments: dict[str, Any] = {"steps": 6, "batch": 8, "progress": False}
    whole, resumed = model(), model()
    list(fit(whole, source, **arguments))
    for stop in (3, None):
        with pytest.warns(UserWarning, match="not the code of Net"):
            training = fit(resumed if stop is None else model(), source, **arguments, out=tmp_path)
        list(itertools.islice(training, stop))
    assert all(map(torch.equal, whole.parameters(), resumed.parameters()))
    with torch.random.fork_rng():
        bare = ScoreNetwork(MLP((2, 6, 6), 8, classes=3), VPSDE(), V())
    with pytest.raises(ValueError, match=r"conditions \['augment'\]"):
        fit(bare, source, **arguments)


def test_an_augmentation_of_ones_own() -> None:
    class Brighter:
        """Adds a number of its own to every sample, and describes it."""

        conditions = ("light",)

        def draw(self, batch: int, generator: np.random.Generator) -> Tensor:
            return torch.from_numpy(generator.random(batch).astype(np.float32))

        def __call__(self, x: Tensor, drawn: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            return x + drawn[:, None], {"light": drawn}

    source = Augmented(Data(torch.zeros(6, 3)), Brighter())
    batch = next(source.serve(4, 0))
    assert torch.equal(batch.x, batch.condition["light"][:, None].expand(4, 3))
    assert source.identity() == Augmented(Data(torch.zeros(6, 3)), Brighter()).identity()
