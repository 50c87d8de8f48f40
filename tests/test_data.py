"""Data: validation, the order of batches, levels, digits, targets, and files of every kind."""

import gzip
import io
import itertools
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import scoregen.data as targets
from scoregen.data.dataset import Data
from scoregen.data.digits import digits
from scoregen.data.files import load
from scoregen.data.levels import from_levels, to_levels
from scoregen.data.targets import sixteen_modes

# Levels


@pytest.mark.parametrize("bins", [2, 3, 16, 17, 255, 256, 1000, 65536])
def test_levels_round_trip_exactly(bins: int) -> None:
    levels = torch.arange(bins)
    x = from_levels(levels, bins)
    assert x.dtype == torch.float32
    assert x[0] == -1
    assert x[-1] == 1
    expected = 2 * levels.double() / (bins - 1) - 1
    torch.testing.assert_close(x.double(), expected, rtol=0, atol=1.2e-7)
    assert torch.equal(to_levels(x, bins), levels)


def test_levels_survive_noise_below_half_a_level() -> None:
    levels = torch.arange(256)
    for shift in (-0.49, 0.49):
        assert torch.equal(to_levels(from_levels(levels, 256) + shift * 2 / 255, 256), levels)


def test_the_nearest_level_outside_is_an_end() -> None:
    assert to_levels(torch.tensor([-7.0, 1.5]), 17).tolist() == [0, 16]


@pytest.mark.parametrize("x", [torch.zeros(2), torch.zeros(2, dtype=torch.bool)])
def test_from_levels_refuses_types(x: torch.Tensor) -> None:
    with pytest.raises(TypeError, match="integer tensor"):
        from_levels(x, 256)


def test_levels_refuse_values() -> None:
    with pytest.raises(ValueError, match=r"0 \.\. 16, got 0 \.\. 17"):
        from_levels(torch.tensor([0, 17]), 17)
    with pytest.raises(ValueError, match=r"got -1 \.\. 3"):
        from_levels(torch.tensor([-1, 3]), 17)
    with pytest.raises(ValueError, match="bins must be at least 2"):
        from_levels(torch.tensor([0]), 1)
    with pytest.raises(ValueError, match="finite"):
        to_levels(torch.tensor([float("nan")]), 256)
    with pytest.raises(TypeError, match="floating"):
        to_levels(torch.tensor([1]), 256)


# Data


def test_data_knows_its_shape() -> None:
    data = Data(torch.zeros(5, 3, 2), torch.tensor([0, 4, 1, 0, 2]))
    assert (len(data), data.event, data.classes) == (5, (3, 2), 5)
    assert Data(torch.zeros(4)).event == ()
    assert Data(torch.zeros(4)).classes == 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.complex64])
def test_data_refuses_types_and_says_the_scale(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=r"from_levels\(x, bins\), with bins=256"):
        Data(torch.zeros(3, 2).to(dtype))


def test_data_names_the_rows_that_are_not_finite() -> None:
    x = torch.zeros(20, 2, 2)
    x[3, 1, 0] = float("nan")
    x[17, 0, 0] = float("-inf")
    with pytest.raises(ValueError, match=r"2 of 20 rows.*: 3, 17;"):
        Data(x)
    with pytest.raises(ValueError, match=r"20 of 20 rows.*8, 9, \.\.\.;"):
        Data(torch.full((20,), float("nan")))


@pytest.mark.parametrize("shape", [(), (0,), (0, 2), (3, 0)])
def test_data_refuses_to_be_empty(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        Data(torch.zeros(shape))


@pytest.mark.parametrize(
    ("label", "error", "says"),
    [
        (torch.zeros(4, dtype=torch.int64), ValueError, r"shape \(3,\).*got \(4,\)"),
        (torch.zeros(3, 1, dtype=torch.int64), ValueError, r"got \(3, 1\)"),
        (torch.zeros(3), TypeError, "int64"),
        ([0, 1, 2], TypeError, "got list"),
        (torch.tensor([0, -1, 2]), ValueError, "got -1"),
    ],
)
def test_data_refuses_labels(label: torch.Tensor, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        Data(torch.zeros(3, 2), label)


def test_data_keeps_to_its_range() -> None:
    Data(torch.tensor([0.0, 0.1]), range=(0.0, 0.1))
    with pytest.raises(ValueError, match=r"\[-1, 1\], got 0.0 .. 255.0; 8-bit"):
        Data(torch.tensor([0.0, 255.0]), range=(-1, 1))
    with pytest.raises(ValueError, match=r"got -2.0"):
        Data(torch.tensor([0.0, -2.0]), range=(-1, 1))
    with pytest.raises(ValueError, match="low < high"):
        Data(torch.zeros(2), range=(1, -1))


def test_data_stands_on_its_bins() -> None:
    x = from_levels(torch.arange(256), 256)
    Data(x, range=(-1, 1), bins=256)
    Data(x.half(), range=(-1, 1), bins=256)
    Data(torch.arange(256) / 255, range=(0, 1), bins=256)
    for wrong in (255, 257):
        with pytest.raises(ValueError, match=f"bins={wrong}.*leave bins out"):
            Data(x, range=(-1, 1), bins=wrong)
    with pytest.raises(ValueError, match="needs the range"):
        Data(x, bins=256)
    with pytest.raises(ValueError, match="bins must be at least 2"):
        Data(x, range=(-1, 1), bins=1)


@given(st.integers(2, 40), st.integers(0, 2**64 - 1), st.data())
def test_split_parts_everything_once(n: int, seed: int, draw: st.DataObject) -> None:
    count = draw.draw(st.integers(1, n - 1))
    data = Data(torch.arange(float(n)), torch.arange(n), (0, n), None, "rows")
    train, test = data.split(count, seed)
    assert len(test) == count
    assert sorted(torch.cat((train.x, test.x)).tolist()) == list(range(n))
    for part in (train, test):
        assert torch.equal(part.x.long(), part.label)
        assert part.range == (0, n)
    assert torch.equal(test.x, data.split(count, seed)[1].x)
    assert (train.name, test.name) == ("rows/train", "rows/test")


def test_split_by_fraction_and_by_seed() -> None:
    data = Data(torch.arange(100.0))
    assert len(data.split(0.25, 0)[1]) == 25
    assert not torch.equal(data.split(25, 0)[1].x, data.split(25, 1)[1].x)
    for bad in (100, 0.0, 1.0, 0.001, 1.5, -0.5):
        with pytest.raises(ValueError, match="at least one of the 100 samples on either side"):
            data.split(bad, 0)
    for few in (0, -1):
        with pytest.raises(ValueError, match=f"test must be at least 1, got {few}"):
            data.split(few, 0)


@pytest.mark.parametrize("share", [np.float32(0.25), np.float64(0.25), torch.tensor(0.25)])
def test_a_fraction_of_every_library_is_one(share: float) -> None:
    data = Data(torch.arange(100.0))
    assert torch.equal(data.split(share, 0)[1].x, data.split(0.25, 0)[1].x)


@pytest.mark.parametrize("count", [np.int64(25), torch.tensor(25)], ids=repr)
def test_a_count_of_every_library_is_one(count: int) -> None:
    data = Data(torch.arange(100.0))
    assert torch.equal(data.split(count, count)[1].x, data.split(25, 25)[1].x)


@pytest.mark.parametrize("bad", ["25", None, True, torch.arange(2), (25,)], ids=repr)
def test_what_is_no_count_of_samples_is_refused(bad: object) -> None:
    with pytest.raises(TypeError, match="test must be an integer, got"):
        Data(torch.arange(100.0)).split(bad, 0)  # type: ignore[arg-type]


@given(st.integers(1, 12), st.integers(0, 30), st.integers(0, 100), st.data())
def test_a_resumed_order_continues(n: int, first: int, seed: int, draw: st.DataObject) -> None:
    batch = draw.draw(st.integers(1, n))
    data = Data(torch.arange(float(n)), torch.arange(n))
    whole = list(itertools.islice(data.batches(batch, seed), first + 3))
    resumed = list(itertools.islice(data.batches(batch, seed, first), 3))
    for (a, la), (b, lb) in zip(whole[first:], resumed, strict=True):
        assert a.shape == (batch,)
        assert torch.equal(a, b)
        assert torch.equal(la, lb)
        assert torch.equal(la, a.long())


@given(st.integers(1, 12), st.integers(0, 100), st.data())
def test_every_epoch_sees_every_sample_once(n: int, seed: int, draw: st.DataObject) -> None:
    batch = draw.draw(st.integers(1, n))
    data = Data(torch.arange(float(n)))
    rows = torch.cat([x for x, _ in itertools.islice(data.batches(batch, seed), 3 * n)])
    for epoch in range(3):
        assert sorted(rows[epoch * n : (epoch + 1) * n].tolist()) == list(range(n))


def test_orders_differ_by_epoch_and_seed() -> None:
    data = Data(torch.arange(50.0))
    first, second = (x for x, _ in itertools.islice(data.batches(50, 0), 2))
    other, _ = next(data.batches(50, 1))
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)


def test_batches_leave_the_global_generators_alone() -> None:
    before, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    data = Data(torch.arange(50.0))
    next(data.batches(7, 0))
    data.split(0.5, 0)
    targets.rings(5, 0)
    sixteen_modes().sample(5, 0)
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(before_numpy, np.random.get_state()[1])  # noqa: NPY002


def test_batches_refuse_at_once() -> None:
    data = Data(torch.zeros(5))
    for bad in (0, 6):
        with pytest.raises(ValueError, match=rf"1 \.\. 5, the number of samples, got {bad}"):
            data.batches(bad, 0)
    with pytest.raises(ValueError, match="first_step must be at least 0"):
        data.batches(2, 0, -1)
    with pytest.raises(ValueError, match="seed must be at least 0"):
        data.batches(2, -1)


def test_levels_are_kept_as_bytes_and_train_the_same_bits() -> None:
    levels = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (50, 3, 4, 4), dtype=np.uint8)
    )
    label = torch.arange(50) % 4
    small = Data(levels, label, bins=256)
    large = Data(from_levels(levels, 256), label, (-1.0, 1.0), 256)
    assert small.stored.dtype == torch.uint8
    assert torch.equal(small.x, large.x)
    assert (small.range, small.event, len(small)) == ((-1.0, 1.0), (3, 4, 4), 50)
    for (x, y), (u, v), _ in zip(small.batches(7, 3), large.batches(7, 3), range(12), strict=False):
        assert x.dtype == torch.float32
        assert torch.equal(x, u)
        assert torch.equal(y, v)
    assert small.split(9, 0)[1].stored.dtype == torch.uint8
    assert torch.equal(small.split(9, 0)[1].x, large.split(9, 0)[1].x)
    assert small.mean_square() == pytest.approx(float(large.x.double().square().mean()), rel=1e-12)
    with pytest.raises(ValueError, match=r"0 \.\. 16"):
        Data(levels, bins=17)
    with pytest.raises(ValueError, match="leave range"):
        Data(levels, range=(0, 255), bins=256)


def test_the_identity_of_data_is_their_content() -> None:
    x, label = torch.arange(12.0).reshape(6, 2), torch.arange(6) % 2
    other = x.clone()
    other[3, 1] += 1e-6
    every = [
        Data(x),
        Data(x, label),
        Data(x, 1 - label),
        Data(other),
        Data(x.double()),
        Data(x.reshape(6, 2, 1)),
        Data(x[:5]),
    ]
    assert len({data.identity() for data in every}) == len(every)
    assert Data(x.clone(), label.clone(), name="b").identity() == every[1].identity()
    assert Data(x.t().contiguous().t(), label).identity() == every[1].identity()


@pytest.mark.parametrize("shape", [(40,), (40, 3), (40, 3, 4, 4)])
def test_standardised_data_have_unit_channels_and_come_back(shape: tuple[int, ...]) -> None:
    x = 5e4 + 1.2e4 * torch.from_numpy(np.random.default_rng(0).standard_normal(shape))
    data = Data(x, torch.arange(40) % 2, name="far", class_names=("a", "b"))
    new = data.standardised()
    channels = new.x.transpose(0, 1).flatten(1) if len(shape) > 1 else new.x[None]
    torch.testing.assert_close(channels.mean(1), torch.zeros(len(channels)).double())
    torch.testing.assert_close(channels.std(1, correction=0), torch.ones(len(channels)).double())
    torch.testing.assert_close(new.unstandardised(new.x), x)
    assert new.class_names == ("a", "b")
    assert new.split(0.5, 0)[0].units == new.units
    assert data.unstandardised(x) is x
    with pytest.raises(ValueError, match=r"do not: \[1\]"):
        Data(torch.tensor([[1.0, 2.0], [3.0, 2.0]])).standardised()


def test_data_print_what_they_are_and_not_their_numbers() -> None:
    assert repr(digits("test")) == (
        "Data('digits/test': 297 samples of shape (1, 8, 8), float32, 17 levels on [-1, 1], "
        "10 classes)"
    )
    assert repr(Data(torch.zeros(3, 2))) == "Data('data': 3 samples of shape (2,), float32)"


def test_names_of_classes_cover_the_labels() -> None:
    with pytest.raises(ValueError, match="class_names must name every label"):
        Data(torch.zeros(3, 2), torch.tensor([0, 1, 2]), class_names=("a", "b"))


# Digits

FIRST_TEST_LABELS = [0, 7, 9, 3, 5, 9, 6, 5, 1, 2, 3, 6]


def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    data = digits("all")
    bunch = load_digits()
    assert data.x.shape == (1797, 1, 8, 8)
    assert np.array_equal(data.x[:, 0].numpy(), (bunch.images / 8 - 1).astype(np.float32))
    assert np.array_equal(data.label.numpy(), bunch.target)
    assert (data.range, data.bins, data.classes) == ((-1.0, 1.0), 17, 10)


def test_digits_are_split_once_and_for_all() -> None:
    train, test, every = digits(), digits("test"), digits("all")
    assert (len(train), len(test)) == (1500, 297)
    together = torch.cat((train.x, test.x)).flatten(1)
    assert sorted(together.tolist()) == sorted(every.x.flatten(1).tolist())
    share = torch.bincount(every.label) * 297 / 1797
    assert (torch.bincount(test.label) - share).abs().max() < 1
    assert torch.equal(test.x, digits("test").x)
    assert test.label[:12].tolist() == FIRST_TEST_LABELS


def test_digits_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="'train', 'test', 'all'; got 'valid'"):
        digits("valid")
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'scoregen\[data\]'"):
        digits()


# Targets

PLANE = ["rings", "moons", "checkerboard", "swiss_roll", "eight_gaussians"]


@pytest.mark.parametrize("name", PLANE)
def test_targets_are_functions_of_n_and_seed(name: str) -> None:
    target = getattr(targets, name)
    x = target(2000, 5)
    assert x.shape == (2000, 2)
    assert x.dtype == torch.float32
    assert torch.equal(x, target(2000, 5))
    assert torch.equal(x[:300], target(300, 5))
    assert not torch.equal(x, target(2000, 6))
    assert 0.4 < x.std() < 1.2
    # The roll's mean is that of a (cos a, sin a) / 9; six standard errors of 1 / sqrt(2000).
    centre = (2 / 9, 2 / (27 * np.pi)) if name == "swiss_roll" else (0.0, 0.0)
    assert (x.mean(0) - torch.tensor(centre)).abs().max() < 6 / 2000**0.5
    with pytest.raises(ValueError, match="n must be at least 1"):
        target(0, 5)
    with pytest.raises(ValueError, match="seed"):
        target(3, -1)


def test_rings_have_four_radii() -> None:
    radius = targets.rings(4000, 0).norm(dim=1)
    nearest = (radius / 0.4).round().clamp(1, 4)
    assert (radius - 0.4 * nearest).abs().max() < 0.04 * 6
    # Binomial(4000, 1/4): a standard deviation is 27.
    assert (torch.bincount(nearest.long())[1:] - 1000).abs().max() < 27 * 6


def test_checkerboard_fills_the_dark_squares_alone() -> None:
    cell = ((targets.checkerboard(4000, 0) + 1.6) / 0.8).floor().long()
    assert cell.min() == 0
    assert cell.max() == 3
    assert (cell.sum(1) % 2 == 0).all()
    counts = torch.bincount(4 * cell[:, 0] + cell[:, 1])
    # Binomial(4000, 1/8): a standard deviation is 21.
    assert (counts[counts > 0] - 500).abs().max() < 21 * 6
    assert (counts > 0).sum() == 8


def test_moons_lie_on_two_half_circles() -> None:
    x = targets.moons(4000, 0).double()
    upper = x + torch.tensor([0.5, 0.25])
    lower = -x + torch.tensor([0.5, 0.25])
    off = torch.minimum((upper.norm(dim=1) - 1).abs(), (lower.norm(dim=1) - 1).abs())
    assert off.max() < 0.06 * 6


def test_swiss_roll_turns_one_and_a_half_times() -> None:
    x = targets.swiss_roll(4000, 0)
    radius = x.norm(dim=1)
    assert radius.min() > 1.5 * np.pi / 9 - 0.2
    assert radius.max() < 4.5 * np.pi / 9 + 0.2
    phase = torch.remainder(torch.atan2(x[:, 1], x[:, 0]) - 9 * radius + np.pi, 2 * np.pi) - np.pi
    # Noise 0.04 moves the radius term by 0.36 and the angle by at most 0.08 (one std).
    assert phase.abs().quantile(0.99) < 0.45 * 3


@pytest.mark.parametrize(
    "modes",
    [targets.eight_gaussians_modes(), targets.grid_modes(3, 0.8, 0.05), sixteen_modes()],
    ids=["eight", "grid", "sixteen"],
)
def test_modes_are_a_mixture_and_sampled_as_one(modes: targets.Modes) -> None:
    k = len(modes.weights)
    assert modes.means.shape == (k, 2)
    assert modes.covariances.shape == (k, 2, 2)
    assert all(t.dtype == torch.float64 for t in modes)
    assert float(modes.weights.sum()) == pytest.approx(1, abs=1e-14)
    assert torch.equal(modes.covariances, modes.covariances.mT)
    assert torch.linalg.eigvalsh(modes.covariances).min() > 0
    n = 40_000
    x = modes.sample(n, 0).double()
    mode = torch.cdist(x, modes.means).argmin(1)
    for i in range(k):
        mine = x[mode == i]
        w = float(modes.weights[i])
        assert abs(len(mine) / n - w) < 6 * (w / n) ** 0.5 + 0.002
        spread = modes.covariances[i].diagonal().max().sqrt()
        assert (mine.mean(0) - modes.means[i]).abs().max() < 8 * spread / len(mine) ** 0.5
        # Relative error of a variance: sqrt(2 / len); 0.02 for points nearer another mode.
        error = (mine.T.cov() - modes.covariances[i]).abs().max() / spread**2
        assert error < 6 * (2 / len(mine)) ** 0.5 + 0.02


def test_sixteen_modes_are_apart_narrow_and_unequal() -> None:
    modes = sixteen_modes()
    apart = torch.cdist(modes.means, modes.means) + 10 * torch.eye(16)
    assert apart.min() >= 0.55
    assert modes.means.abs().max() <= 1.6
    std = torch.linalg.eigvalsh(modes.covariances).sqrt()
    assert std[:, 0].min() >= 0.04
    assert std[:, 0].max() <= 0.08
    assert std[:, 1].min() >= 0.08
    assert std[:, 1].max() <= 0.18
    assert modes.weights.max() > 1.5 * modes.weights.min()
    major = torch.linalg.eigh(modes.covariances).eigenvectors[:, :, 1].abs()
    assert (major > 0.2).all(dim=1).sum() >= 8, "the modes point in every direction"


def test_sixteen_modes_never_change() -> None:
    modes = sixteen_modes()
    assert modes.means[0].tolist() == pytest.approx([-0.014942189, -0.378797961], abs=1e-8)
    assert float(modes.weights[0]) == pytest.approx(0.040028929, abs=1e-8)
    first = [[0.009849645054, -0.001688739457], [-0.001688739457, 0.006039293288]]
    torch.testing.assert_close(
        modes.covariances[0], torch.tensor(first, dtype=torch.float64), rtol=0, atol=1e-11
    )


def test_grid_modes_are_a_grid() -> None:
    modes = targets.grid_modes(3, 0.5, 0.1)
    assert sorted(modes.means.tolist()) == [[a, b] for a in (-0.5, 0, 0.5) for b in (-0.5, 0, 0.5)]
    torch.testing.assert_close(modes.covariances[4], 0.01 * torch.eye(2, dtype=torch.float64))
    for name, bad in (
        ("side", (0, 1.0, 1.0)),
        ("spacing", (3, 0.0, 1.0)),
        ("spacing", (3, 1e308, 1.0)),
        ("std", (3, 1.0, -1.0)),
        ("std", (3, 1.0, 1e155)),
        ("std", (3, 1.0, 1e-155)),
    ):
        with pytest.raises(ValueError, match=f"{name} must"):
            targets.grid_modes(*bad)


# Files


GREY = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5) * 4
LABELS = np.array([2, 0, 1], dtype=np.uint8)


def idx(array: np.ndarray, code: int = 0x08) -> bytes:
    header = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write(path: Path, values: np.ndarray, label: np.ndarray | None = None) -> Path:
    """Writes values, and labels where the format has room for them, by the path's suffix."""
    name = path.name
    if name.endswith(".npy"):
        np.save(path, values)
    elif name.endswith(".npz"):
        np.savez(path, images=values, **({} if label is None else {"labels": label}))
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(idx(values)))
    elif name.endswith("ubyte"):
        path.write_bytes(idx(values))
    else:
        tensors = {"x": torch.from_numpy(values)}
        if label is not None:
            tensors["y"] = torch.from_numpy(label)
        if name.endswith(".safetensors"):
            save_file(tensors, path)
        else:
            torch.save(tensors, path)
    return path


KINDS = ["a.npy", "a.npz", "a.pt", "a.pth", "a.safetensors", "a-idx3-ubyte", "a-idx3-ubyte.gz"]


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_become_images_on_the_unit_range(tmp_path: Path, kind: str) -> None:
    inside = kind in ("a.npz", "a.pt", "a.pth", "a.safetensors")
    path = write(tmp_path / kind, GREY, LABELS if inside else None)
    labels = None if inside else write(tmp_path / "b-idx1-ubyte", LABELS)
    data = load(path, labels=labels)
    assert data.x.dtype == torch.float32
    assert data.x.shape == (3, 1, 4, 5)
    assert torch.equal(to_levels(data.x[:, 0], 256), torch.from_numpy(GREY).long())
    assert data.label.tolist() == [2, 0, 1]
    assert (data.range, data.bins, data.name) == ((-1.0, 1.0), 256, kind)


@pytest.mark.parametrize("kind", ["a.npy", "a.npz", "a.pt", "a.safetensors"])
def test_floats_are_kept_as_they_are(tmp_path: Path, kind: str) -> None:
    values = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32) * 100
    data = load(write(tmp_path / kind, values))
    assert np.array_equal(data.x.numpy(), values)
    assert (data.range, data.bins, data.label) == (None, None, None)
    assert load(write(tmp_path / kind, values.astype(np.float64))).x.dtype == torch.float32


def test_a_bare_tensor_and_labels_given_as_one(tmp_path: Path) -> None:
    torch.save(torch.ones(3, 2, requires_grad=True), tmp_path / "a.pt")
    data = load(tmp_path / "a.pt", labels=torch.tensor([1, 0, 1]), range=(0, 1))
    assert (data.classes, data.range) == (2, (0, 1))
    assert not data.x.requires_grad


@pytest.mark.parametrize("dtype", ["<i2", ">i2", "u2", "i8", "u4"])
def test_levels_of_any_integer_type(tmp_path: Path, dtype: str) -> None:
    path = write(tmp_path / "a.npy", np.arange(17).astype(dtype)[:, None])
    with pytest.raises(TypeError, match="pass bins=K"):
        load(path)
    data = load(path, bins=17)
    assert torch.equal(data.x[:, 0], torch.arange(17) / 8 - 1)
    assert (data.range, data.bins) == ((-1.0, 1.0), 17)
    with pytest.raises(ValueError, match=r"0 \.\. 15, got 0 \.\. 16"):
        load(path, bins=16)


@pytest.mark.parametrize(
    ("code", "dtype"), [(0x09, "i1"), (0x0B, "i2"), (0x0C, "i4"), (0x0D, "f4"), (0x0E, "f8")]
)
def test_idx_of_every_type(tmp_path: Path, code: int, dtype: str) -> None:
    values = np.arange(6).astype(dtype).reshape(3, 2)
    (tmp_path / "a.idx").write_bytes(idx(values, code))
    data = load(tmp_path / "a.idx", bins=None if "f" in dtype else 6)
    expected = values if "f" in dtype else 2 * values / 5 - 1
    np.testing.assert_allclose(data.x.numpy(), expected, atol=1e-7)


def test_colour_is_moved_to_the_front(tmp_path: Path) -> None:
    last = np.random.default_rng(0).integers(0, 256, (2, 6, 5, 3), dtype=np.uint8)
    data = load(write(tmp_path / "a.npy", last))
    assert torch.equal(to_levels(data.x, 256), torch.from_numpy(last).permute(0, 3, 1, 2).long())
    first = np.ascontiguousarray(last.transpose(0, 3, 1, 2))
    assert torch.equal(load(write(tmp_path / "b.npy", first)).x, data.x)
    with pytest.raises(ValueError, match=r"C = 1, 3 or 4, got \(2, 6, 5, 2\)"):
        load(write(tmp_path / "c.npy", last[..., :2]))


def save_image(path: Path, array: np.ndarray, mode: str | None = None) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(path)


@pytest.mark.parametrize("height", [3, 6])
def test_a_folder_of_images_by_class(tmp_path: Path, height: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, height, 5, 3), dtype=np.uint8)
    save_image(tmp_path / "dog" / "1.png", images[2])
    save_image(tmp_path / "cat" / "b.png", images[1])
    save_image(tmp_path / "cat" / "a.png", images[0])
    (tmp_path / ".hidden").write_text("")
    data = load(tmp_path)
    assert torch.equal(to_levels(data.x, 256), torch.from_numpy(images).permute(0, 3, 1, 2).long())
    assert data.label.tolist() == [0, 0, 1]
    assert data.bins == 256
    assert data.class_names == ("cat", "dog")
    assert data.stored.dtype == torch.uint8
    assert data.split(1, 0)[0].class_names == ("cat", "dog")


def test_a_flat_folder_of_grey_images(tmp_path: Path) -> None:
    for i in range(3):
        save_image(tmp_path / f"{i}.png", GREY[i])
    data = load(tmp_path, labels=torch.from_numpy(LABELS))
    assert torch.equal(to_levels(data.x[:, 0], 256), torch.from_numpy(GREY).long())
    assert data.label.tolist() == [2, 0, 1]


def test_folders_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="holds no images"):
        load(tmp_path)
    save_image(tmp_path / "size" / "0.png", GREY[0])
    save_image(tmp_path / "size" / "1.png", GREY[0])
    save_image(tmp_path / "size" / "2.png", GREY[0, :3])
    with pytest.raises(ValueError, match=r"0\.png has shape \(4, 5\), .*2\.png has \(3, 5\)"):
        load(tmp_path / "size")
    save_image(tmp_path / "colour" / "0.png", GREY[0])
    save_image(tmp_path / "colour" / "1.png", GREY[0], "RGB")
    with pytest.raises(ValueError, match=r"1\.png has \(4, 5, 3\)"):
        load(tmp_path / "colour")
    save_image(tmp_path / "alpha" / "0.png", GREY[0], "RGBA")
    with pytest.raises(ValueError, match="mode RGBA; say what to convert it to"):
        load(tmp_path / "alpha")
    (tmp_path / "alpha" / "labels.csv").write_text("0")
    with pytest.raises(ValueError, match=r"labels\.csv is not an image"):
        load(tmp_path / "alpha")
    save_image(tmp_path / "mixed" / "cat" / "0.png", GREY[0])
    save_image(tmp_path / "mixed" / "1.png", GREY[0])
    with pytest.raises(ValueError, match=r"both subfolders and files \(cat, 1\.png\)"):
        load(tmp_path / "mixed")
    (tmp_path / "bare" / "cat").mkdir(parents=True)
    with pytest.raises(ValueError, match="cat is empty"):
        load(tmp_path / "bare")
    content = (tmp_path / "size" / "0.png").read_bytes()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "0.png").write_bytes(content[:-25])
    with pytest.raises(ValueError, match=r"0\.png is truncated or not an image"):
        load(tmp_path / "cut")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"pip install 'scoregen\[data\]'"):
        load(tmp_path / "size")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(orientation: int, tmp_path: Path) -> None:
    """Every EXIF orientation, against its definition: what is the first row, what the first column.

    1 top left, 2 top right, 3 bottom right, 4 bottom left, 5 left top, 6 right top,
    7 right bottom, 8 left bottom.
    """
    from PIL import Image

    stored = np.random.default_rng(0).integers(0, 256, (6, 4), dtype=np.uint8)
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.T,
        6: stored[::-1].T,
        7: stored[::-1, ::-1].T,
        8: stored[:, ::-1].T,
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(load(tmp_path).stored[0, 0].numpy(), upright)


def test_images_of_other_modes_are_converted_as_said(tmp_path: Path) -> None:
    from PIL import Image

    clear = np.zeros((2, 2, 4), np.uint8)
    clear[0, 0] = (200, 100, 0, 255)
    clear[0, 1] = (200, 100, 0, 0)
    clear[1, 0] = (0, 0, 0, 51)
    (tmp_path / "clear").mkdir()
    Image.fromarray(clear).save(tmp_path / "clear" / "a.png")
    over = load(tmp_path / "clear", mode="RGB").stored[0].permute(1, 2, 0)
    # alpha c + (1 - alpha) 255
    assert over[0].tolist() == [[200, 100, 0], [255, 255, 255]]
    assert over[1].tolist() == [[204, 204, 204], [255, 255, 255]]
    kept = load(tmp_path / "clear", mode="RGBA").stored[0].permute(1, 2, 0)
    assert np.array_equal(kept.numpy(), clear)
    deep = np.array([[0, 128, 129], [65534, 65535, 32896]], np.uint16)
    (tmp_path / "deep").mkdir()
    Image.fromarray(deep).save(tmp_path / "deep" / "a.png")
    with pytest.raises(ValueError, match=r"of mode I;16; say what.*mode="):
        load(tmp_path / "deep")
    data = load(tmp_path / "deep", mode="I;16")
    assert data.bins == 65536
    assert torch.equal(to_levels(data.x[0, 0], 65536), torch.from_numpy(deep.astype(np.int64)))
    grey = load(tmp_path / "deep", mode="L").stored[0, 0]
    assert grey.tolist() == np.round(deep.astype(float) * 255 / 65535).astype(int).tolist()
    (tmp_path / "palette").mkdir()
    Image.fromarray(clear[..., :3]).quantize(4).save(tmp_path / "palette" / "a.png")
    assert load(tmp_path / "palette", mode="RGB").event == (3, 2, 2)
    with pytest.raises(ValueError, match="mode must be one of 'L', 'RGB', 'RGBA', 'I;16'"):
        load(tmp_path / "palette", mode="CMYK")
    with pytest.raises(ValueError, match="for folders of images"):
        load(write(tmp_path / "a.npy", GREY), mode="L")


def test_bombs_pipes_and_damaged_pictures_are_refused(tmp_path: Path) -> None:
    bomb = np.zeros((1 << 22,), np.uint8)
    np.savez_compressed(tmp_path / "a.npz", x=bomb)
    (tmp_path / "a-ubyte.gz").write_bytes(gzip.compress(idx(bomb)))
    torch.save(torch.zeros(1).expand(1 << 22), tmp_path / "a.pt")
    for name in ("a.npz", "a-ubyte.gz", "a.pt"):
        assert (tmp_path / name).stat().st_size < 20_000
        with pytest.raises(ValueError, match=r"unpacks to .*largest=100,000"):
            load(tmp_path / name, largest=100_000)
        assert len(load(tmp_path / name, bins=256 if name != "a.pt" else None)) == 1 << 22
    header = b"\0\0\x08\x02" + struct.pack(">2I", 1 << 31, 1 << 31)
    (tmp_path / "b-ubyte").write_bytes(header)
    with pytest.raises(ValueError, match="unpacks to"):
        load(tmp_path / "b-ubyte")
    announced = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        announced, {"descr": "<f8", "fortran_order": False, "shape": (1 << 40,)}
    )
    (tmp_path / "b.npy").write_bytes(announced.getvalue())
    with pytest.raises(ValueError, match="truncated"):
        load(tmp_path / "b.npy")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "c.npy")
        with pytest.raises(ValueError, match="neither a file nor a folder"):
            load(tmp_path / "c.npy")
        (tmp_path / "pipes").mkdir()
        os.mkfifo(tmp_path / "pipes" / "c.png")
        with pytest.raises(ValueError, match="no file but a pipe"):
            load(tmp_path / "pipes")
    tags = [(256, 4, 200000), (257, 4, 200000), (258, 3, 8), (259, 3, 1), (262, 3, 1)]
    tags += [(273, 4, 200), (277, 3, 1), (278, 4, 200000), (279, 4, 16)]
    body = b"II*\0" + struct.pack("<IH", 8, len(tags))
    body += b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    (tmp_path / "tiff").mkdir()
    (tmp_path / "tiff" / "a.tiff").write_bytes(body + b"\0" * 200)
    with pytest.raises(ValueError, match=r"a\.tiff is truncated or not an image"):
        load(tmp_path / "tiff")


def test_floats_with_channels_last_are_noticed(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((2, 6, 5, 3))
    with pytest.warns(UserWarning, match=r"channels last, store them as \(N, C, H, W\)"):
        assert load(write(tmp_path / "a.npy", values)).event == (6, 5, 3)


MEMORY = """
import sys, resource
import scoregen as sg
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
data = sg.data.load(sys.argv[1])
next(data.batches(64, 0))
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss in kilobytes")
def test_loading_bytes_needs_little_more_than_their_file(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (10_000, 3, 32, 32), dtype=np.uint8))
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", MEMORY, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    assert int(done.stdout) < 2.5 * path.stat().st_size


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep", [0, 3, 10, -1])
def test_truncated_files_are_refused(tmp_path: Path, kind: str, keep: int) -> None:
    path = write(tmp_path / kind, GREY)
    content = path.read_bytes()
    path.write_bytes(content[:keep])
    with pytest.raises(ValueError, match=r"truncated|no known format"):
        load(path)


def test_an_idx_with_bytes_to_spare_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a-ubyte", GREY)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ValueError, match=r"announces shape \(3, 4, 5\), 60 bytes.*has more"):
        load(path)


@pytest.mark.parametrize("kind", KINDS)
def test_foreign_files_are_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / kind).write_text("Dear reader, this is a letter and no file of numbers.")
    with pytest.raises(ValueError, match=r"another format|no known format|not a gzip file"):
        load(tmp_path / kind)


class Trap:
    sprung = False

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return setattr, (Trap, "sprung", True)


@pytest.mark.parametrize("kind", ["a.npy", "a.npz", "a.pt", "b.pt"])
def test_pickles_are_never_loaded(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "a.npy":
        np.save(path, np.array([Trap()], dtype=object), allow_pickle=True)
    elif kind == "a.npz":
        np.savez(path, x=np.array([Trap()], dtype=object))
    elif kind == "a.pt":
        torch.save({"x": Trap()}, path)
    else:
        path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="never loaded"):
        load(path)
    assert not Trap.sprung


def test_arrays_of_other_names_and_kinds_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", train=GREY, test=GREY)
    with pytest.raises(ValueError, match="found: test, train"):
        load(tmp_path / "a.npz")
    np.save(tmp_path / "a.npy", np.array(["a", "b"]))
    with pytest.raises(ValueError, match="must hold numbers, got an array of type <U1"):
        load(tmp_path / "a.npy")
    torch.save([torch.zeros(2)], tmp_path / "a.pt")
    with pytest.raises(ValueError, match="dict of them, got list"):
        load(tmp_path / "a.pt")
    torch.save({"x": 3}, tmp_path / "b.pt")
    with pytest.raises(ValueError, match="must be tensors"):
        load(tmp_path / "b.pt")
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(ValueError, match=r"no known format; known are \.npy"):
        load(tmp_path / "a.csv")
    with pytest.raises(FileNotFoundError, match="no such file"):
        load(tmp_path / "absent.npy")


def test_labels_are_checked(tmp_path: Path) -> None:
    both = write(tmp_path / "a.npz", GREY, LABELS)
    alone = write(tmp_path / "a.npy", GREY)
    with pytest.raises(ValueError, match="labels of its own"):
        load(both, labels=torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="labels alone"):
        load(alone, labels=both)
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        load(alone, labels=torch.tensor([0, 1]))
    with pytest.raises(TypeError, match=r"whole numbers, got torch\.float32"):
        load(alone, labels=torch.zeros(3))
    with pytest.raises(TypeError, match="got list"):
        load(alone, labels=[0, 1, 2])


def test_declared_scales_are_checked(tmp_path: Path) -> None:
    grey = write(tmp_path / "a.npy", GREY)
    with pytest.raises(ValueError, match=r"leave range=\(0, 1\) out"):
        load(grey, range=(0, 1))
    floats = write(tmp_path / "b.npy", GREY / 255)
    assert load(floats, range=(0, 1), bins=256).bins == 256
    with pytest.raises(ValueError, match="declared range"):
        load(floats, range=(0, 0.5))
    np.save(tmp_path / "c.npy", np.array([[0.0], [np.nan]]))
    with pytest.raises(ValueError, match="1 of 2 rows"):
        load(tmp_path / "c.npy")
    np.save(tmp_path / "d.npy", np.array([True, False]))
    with pytest.raises(TypeError, match=r"torch\.bool"):
        load(tmp_path / "d.npy", bins=2)


@settings(deadline=None, max_examples=30)
@given(st.binary(max_size=60))
def test_no_bytes_crash_the_idx_reader(tmp_path_factory: pytest.TempPathFactory, b: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz-ubyte"
    path.write_bytes(b"\0\0\x08" + b)
    try:
        data = load(path)
    except ValueError:
        return
    assert len(data) > 0
