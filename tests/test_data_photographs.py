"""Patches of photographs, and CIFAR-10 from files that other programs wrote."""

import io
import pickle
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from scoregen.data import cifar10, patches, photographs


def photograph(package: str, file: str) -> np.ndarray:
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip(package)
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    with image.open(Path(spec.origin).parent / file) as opened:
        return np.asarray(opened.convert("RGB")).astype(int)


@pytest.fixture(scope="module")
def train() -> Any:
    photograph("skimage", "data/astronaut.png")
    return patches("train")


@pytest.fixture(scope="module")
def held_out() -> Any:
    photograph("skimage", "data/astronaut.png")
    return patches("test")


def test_patches_are_counted_and_split_by_photograph(train: Any, held_out: Any) -> None:
    # reduced by 2 and 4, at every eighth pixel: ((side // 2 - 32) // 4 + 1) and so on
    sizes = [(512, 512), (300, 451), (427, 640), (427, 640), (500, 741), (400, 600), (427, 640)]
    counts = [
        sum(((h // f - 32) // (8 // f) + 1) * ((w // f - 32) // (8 // f) + 1) for f in (2, 4))
        for h, w in sizes
    ]
    assert torch.bincount(train.label).tolist() == counts[:5]
    assert torch.bincount(held_out.label, minlength=7).tolist() == [0] * 5 + counts[5:]
    assert (len(train), len(held_out)) == (27_972, 10_852)
    for data, name in ((train, "patches/train"), (held_out, "patches/test")):
        assert (data.name, data.event, data.bins, data.range) == (name, (3, 32, 32), 256, (-1, 1))
        assert data.stored.dtype == torch.uint8
    assert train.class_names == held_out.class_names
    assert train.class_names[2:6] == ("china", "flower", "motorcycle", "coffee")


@pytest.mark.parametrize(
    ("label", "package", "file"),
    [(0, "skimage", "data/astronaut.png"), (3, "sklearn", "datasets/images/flower.jpg")],
)
def test_a_patch_is_a_square_of_means_of_the_photograph(
    label: int, package: str, file: str, train: Any
) -> None:
    pixels = photograph(package, file)
    found = train.stored[train.label == label]
    height, width = pixels.shape[:2]
    at = 0
    for factor in (2, 4):
        rows, columns = (((n // factor - 32) // (8 // factor) + 1) for n in (height, width))
        for i, j in ((0, 0), (3, 7), (rows - 1, columns - 1)):
            square = pixels[8 * i : 8 * i + 32 * factor, 8 * j : 8 * j + 32 * factor]
            for y, x, c in ((0, 0, 0), (5, 31, 1), (31, 2, 2)):
                block = square[y * factor : (y + 1) * factor, x * factor : (x + 1) * factor, c]
                level = int(found[at + i * columns + j, c, y, x])
                assert abs(level - block.mean()) <= 0.5
        at += rows * columns
    assert at == len(found)


def test_patches_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="split must be one of 'train', 'test'"):
        patches("all")  # type: ignore[arg-type]
    monkeypatch.setattr(photographs, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"scoregen\[data\]"):
        patches()


# CIFAR-10

LEVELS = np.random.default_rng(0).integers(0, 256, (60, 3, 32, 32), dtype=np.uint8)
LABELS = np.arange(60) % 10


class Python2(pickle._Pickler):
    """Writes bytes and strings as Python 2 did, whose strings were bytes."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, value: Any) -> None:
        raw = value if isinstance(value, bytes) else value.encode("latin-1")
        short = len(raw) < 256
        self.write(b"U" + bytes([len(raw)]) if short else b"T" + len(raw).to_bytes(4, "little"))
        self.write(raw)
        self.memoize(value)

    dispatch[bytes] = dispatch[str] = save_string


def as_python2(content: Any, path: Path) -> None:
    buffer = io.BytesIO()
    Python2(buffer, 2).dump(content)
    path.write_bytes(buffer.getvalue())


def as_python3(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


def as_bytes_keys(content: dict[str, Any], path: Path) -> None:
    path.write_bytes(pickle.dumps({k.encode(): v for k, v in content.items()}, protocol=2))


def archive(folder: Path, write: Any) -> None:
    """The files of the archive, ten images each."""
    for k, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        part = slice(10 * k, 10 * k + 10)
        content = {
            "batch_label": f"training batch {k + 1} of 5",
            "labels": LABELS[part].tolist(),
            "data": LEVELS[part].reshape(10, 3072),
            "filenames": [f"{i}.png" for i in range(10)],
        }
        if write is None:
            rows = np.concatenate((LABELS[part, None].astype(np.uint8), content["data"]), 1)
            rows.tofile(folder / f"{name}.bin")
        else:
            write(content, folder / name)


@pytest.mark.parametrize("write", [as_python2, as_python3, as_bytes_keys, None])
def test_cifar10_is_read_from_its_own_files(write: Any, tmp_path: Path) -> None:
    archive(tmp_path, write)
    train, test = cifar10(tmp_path), cifar10(tmp_path, "test")
    assert np.array_equal(train.stored.numpy(), LEVELS[:50])
    assert np.array_equal(test.stored.numpy(), LEVELS[50:])
    assert train.label.tolist() == LABELS[:50].tolist()
    assert test.label.tolist() == LABELS[50:].tolist()
    assert (train.name, train.bins, train.range) == ("cifar10/train", 256, (-1, 1))
    assert (train.class_names[0], train.class_names[9]) == ("airplane", "truck")


class Hostile:
    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('run')",)


def test_damaged_and_hostile_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither data_batch_1 nor data_batch_1\.bin"):
        cifar10(tmp_path)
    with pytest.raises(ValueError, match="split must be one of"):
        cifar10(tmp_path, "valid")  # type: ignore[arg-type]
    good = {"data": LEVELS[:3].reshape(3, 3072), "labels": [0, 1, 2]}
    for content, words in [
        ({**good, "labels": [0, 1]}, r"uint8 of shape \(n, 3072\)"),
        ({**good, "labels": [0, 1, 10]}, r"labels 0 \.\. 9, got 10"),
        ({**good, "labels": [0, 1, -1]}, "n whole"),
        ({**good, "labels": [0, 1, 2.5]}, "n whole"),
        ({**good, "data": LEVELS[:3].reshape(3, 3072) / 255}, "uint8"),
        ({**good, "data": LEVELS[:3]}, "uint8"),
        ({"fine_labels": [1], "data": LEVELS[:1].reshape(1, -1)}, r"'data', 'fine_labels'"),
        ([1, 2], "got list"),
        ({**good, "extra": Hostile()}, "names builtins.exec"),
    ]:
        as_python3(content, tmp_path / "test_batch")
        with pytest.raises(ValueError, match=words):
            cifar10(tmp_path, "test")
    whole = (tmp_path / "test_batch").read_bytes()
    (tmp_path / "test_batch").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="test_batch"):
        cifar10(tmp_path, "test")
    (tmp_path / "test_batch").unlink()
    for size in (0, 3072, 3074):
        (tmp_path / "test_batch.bin").write_bytes(bytes(size))
        with pytest.raises(ValueError, match="3073 bytes each"):
            cifar10(tmp_path, "test")
    (tmp_path / "test_batch.bin").write_bytes(bytes([10] * 3073))
    with pytest.raises(ValueError, match="got 10"):
        cifar10(tmp_path, "test")


@pytest.mark.slow
def test_the_training_script_goes_on_where_it_was(tmp_path: Path) -> None:
    archive(tmp_path, as_python2)
    script = Path(__file__).parents[1] / "benchmarks/training/train_patches.py"
    arguments = [
        *("--cifar", str(tmp_path), "--out", str(tmp_path / "out"), "--steps", "4"),
        *("--batch", "8", "--width", "8", "--save-every", "2", "--device", "cpu"),
    ]
    for minutes, words in (("0.0000001", "after 1 steps"), ("9", "after 4 steps")):
        done = subprocess.run(
            [sys.executable, str(script), *arguments, "--minutes", minutes],
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        assert words in done.stdout
    image = pytest.importorskip("PIL.Image")
    assert image.open(tmp_path / "out" / "samples.png").size == (12 * 96, 10 * 96)
