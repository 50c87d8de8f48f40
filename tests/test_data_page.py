"""The blocks of "Train on your images" that need other packages, or files: `py`, not `python`."""

from __future__ import annotations

import gc
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import scoregen as sg
from scoregen.data import FromBatches, FromDataset, replayed

PAGE = Path(__file__).resolve().parents[1] / "docs" / "tutorials" / "train-on-your-images.md"
BLOCKS = re.findall(r"^```py\n(.*?)^```", PAGE.read_text(), re.M | re.S)
LEVELS = np.random.default_rng(0).integers(0, 256, (64, 3, 16, 16), dtype=np.uint8)
LABELS = np.arange(64) % 10


def run(word: str, changes: dict[str, str]) -> dict[str, Any]:
    """The block that holds a word, executed, with what is smaller here replaced."""
    (body,) = [body for body in BLOCKS if word in body]
    for page, small in changes.items():
        assert page in body
        body = body.replace(page, small)
    scope: dict[str, Any] = {
        "sg": sg, "FromBatches": FromBatches, "FromDataset": FromDataset, "replayed": replayed,
        "levels": LEVELS, "labels": LABELS,
    }  # fmt: skip
    exec(body, scope)
    return scope


def test_hugging_face() -> None:
    pytest.importorskip("datasets")
    source = run("from_dict", {"workers=2": "workers=0"})["source"]
    expected = next(sg.Data(source._rows()[np.arange(64)].x, bins=256).serve(64, 0)).x
    assert (source.event, source.conditions) == ((3, 16, 16), ("label",))
    assert np.array_equal(source._rows()[np.arange(64)].x.numpy(), LEVELS)
    assert expected.equal(next(source.serve(64, 0)).x)


def test_webdataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("PIL.Image")
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, about streams it leaves open
        wds = pytest.importorskip("webdataset")
        for shard in range(2):
            with wds.TarWriter(f"faces-00{shard}.tar") as tar:
                for i in range(8 * shard, 8 * shard + 8):
                    image = LEVELS[i].transpose(1, 2, 0)
                    tar.write({"__key__": f"{i}", "png": image, "cls": int(LABELS[i])})
        changes = {"{000..127}": "{000..001}", "64, 64": "16, 16", "batched(64": "batched(4"}
        source = run("import webdataset", changes)["source"]
        served = source.serve(4, 0, first_step=1)
        for k, batch in zip((1, 2, 3, 0), served, strict=False):
            rows = slice(4 * k, 4 * k + 4)
            assert np.array_equal(sg.data.to_levels(batch.x, 256).numpy(), LEVELS[rows])
            assert batch.condition["label"].tolist() == LABELS[rows].tolist()
        del source, served
        gc.collect()


def test_the_two_sets_of_real_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("skimage")
    scope = run("held_out", {})
    text = " ".join(PAGE.read_text().split())
    assert f"cuts {len(scope['train']):,} patches" in text
    assert f"and {len(scope['held_out']):,} test patches" in text
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    images = {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 9]}
    for k in range(1, 6):
        (folder / f"data_batch_{k}").write_bytes(pickle.dumps(images))
    monkeypatch.chdir(tmp_path)
    assert len(run("cifar10", {})["train"]) == 10


def test_every_block_is_run_here() -> None:
    assert len(BLOCKS) == 4
