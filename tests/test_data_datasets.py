"""Datasets and streams of batches: the same bits as from `Data`, and what is refused."""

import gc
import itertools
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from scoregen import MLP, VPSDE, Data, ScoreNetwork, V
from scoregen.data import FromBatches, FromDataset, as_source, replayed, rings
from scoregen.models import Conditions
from scoregen.training import fit

N, CLASSES = 40, 7
LEVELS = np.random.default_rng(0).integers(0, 256, (N, 3, 8, 8), dtype=np.uint8)
LABELS = np.arange(N) % CLASSES
DATA = Data(torch.from_numpy(LEVELS), torch.from_numpy(LABELS), bins=256)


class Own(Dataset):
    """A user's dataset, whose items are dicts of uint8 arrays."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": LEVELS[index], "digit": int(LABELS[index]), "file": f"{index}.png"}


def images() -> ScoreNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MLP((3, 8, 8), 16, classes=CLASSES)
    return ScoreNetwork(net, VPSDE(), V())


def bits(model: ScoreNetwork) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(map(torch.equal, a, b))


def pil() -> list[tuple[Any, int]]:
    image = pytest.importorskip("PIL.Image")
    return [
        (image.fromarray(x.transpose(1, 2, 0)), int(y)) for x, y in zip(LEVELS, LABELS, strict=True)
    ]


def hugging_face() -> Any:
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("PIL.Image")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "digit": datasets.Value("int64"),
            "file": datasets.Value("string"),
        }
    )
    rows = {
        "image": [image for image, _ in pil()],
        "digit": LABELS.tolist(),
        "file": [f"{i}.png" for i in range(N)],
    }
    return datasets.Dataset.from_dict(rows, features=features)


def memory_map(folder: Path) -> dict[str, np.ndarray]:
    np.save(folder / "x.npy", LEVELS)
    return {"x": np.load(folder / "x.npy", mmap_mode="r"), "label": LABELS, "rest": np.zeros(N)}


# How the same forty images may come: (dataset, arguments).
KINDS: dict[str, Any] = {
    "pairs": lambda folder: ([(torch.from_numpy(x), y) for x, y in zip(LEVELS, LABELS)], {}),  # noqa: B905
    "tensors": lambda folder: (TensorDataset(torch.from_numpy(LEVELS), DATA.label), {}),
    "subset": lambda folder: (Subset(KINDS["tensors"](folder)[0], range(N)), {}),
    "own": lambda folder: (Own(), {"x": "image", "conditions": {"label": "digit"}}),
    "pil": lambda folder: (pil(), {}),
    "hugging face": lambda folder: (
        hugging_face(), {"x": "image", "conditions": {"label": "digit"}},
    ),
    "channels last": lambda folder: (
        {"x": LEVELS.transpose(0, 2, 3, 1), "label": LABELS}, {"channels_last": True},
    ),
    "memory map": lambda folder: (memory_map(folder), {"conditions": ["label"]}),
    "big-endian": lambda folder: ({"x": LEVELS.astype(">u2"), "label": LABELS.astype(">i4")}, {}),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_dataset_serves_the_bits_of_data(kind: str, tmp_path: Path) -> None:
    dataset, arguments = KINDS[kind](tmp_path)
    source = FromDataset(dataset, bins=256, **arguments)
    assert (source.event, source.conditions, source.bins) == ((3, 8, 8), ("label",), 256)
    assert (source.range, len(source), source.units) == ((-1.0, 1.0), N, None)
    for rows in (slice(None), slice(5, 12)):
        served = source.serve(16, 3, 4, rows)
        for a, b in itertools.islice(zip(DATA.serve(16, 3, 4, rows), served, strict=False), 6):
            assert torch.equal(a.x, b.x)
            assert torch.equal(a.condition["label"], b.condition["label"])
            assert (b.x.dtype, b.condition["label"].dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataset_trains_the_bits_of_data_and_resumes(workers: int, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"steps": 5, "batch": 16, "progress": False}
    whole = images()
    losses = [step.loss for step in fit(whole, DATA, **arguments)]
    source = FromDataset(Own(), bins=256, x="image", conditions={"label": "digit"}, workers=workers)
    model = images()
    assert [step.loss for step in fit(model, source, **arguments)] == losses
    assert same(bits(model), bits(whole))
    stopped = images()
    list(itertools.islice(fit(stopped, source, **arguments, out=tmp_path), 2))
    resumed = images()
    assert [step.loss for step in fit(resumed, source, **arguments, out=tmp_path)] == losses[2:]
    assert same(bits(resumed), bits(whole))


def test_the_identity_is_the_content_for_every_number_of_workers() -> None:
    def identity(workers: int = 0, **change: Any) -> str:
        columns = {"x": LEVELS, "label": LABELS, **change}
        return FromDataset(columns, bins=256, workers=workers).identity()

    assert identity() == identity(2)
    other, label = LEVELS.copy(), LABELS.copy()
    other[N - 1, 2, 7, 7] ^= 1
    label[N // 2] = (label[N // 2] + 1) % CLASSES
    different = {
        identity(), identity(x=other), identity(label=label), identity(x=LEVELS[::-1]),
        FromDataset({"x": LEVELS}, bins=256).identity(),
        FromDataset({"x": LEVELS, "label": LABELS}, bins=512).identity(),
    }  # fmt: skip
    assert len(different) == 6
    declared = FromDataset({"x": LEVELS}, bins=256, identity="forty-1")
    assert declared.identity() == "declared: forty-1"


def test_a_declared_identity_reads_no_more_than_the_batches(tmp_path: Path) -> None:
    read: list[int] = []

    class Counting(Own):
        def __getitem__(self, index: int) -> dict[str, Any]:
            read.append(index)
            return super().__getitem__(index)

    source = FromDataset(
        Counting(), bins=256, x="image", conditions={"label": "digit"}, identity="forty"
    )
    list(fit(images(), source, steps=2, batch=8, out=tmp_path, progress=False))
    assert len(read) == 1 + 16  # the first item, for its shape


def test_other_data_are_not_resumed_into(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"steps": 3, "batch": 8, "progress": False, "out": tmp_path}
    source = FromDataset({"x": LEVELS, "label": LABELS}, bins=256)
    list(itertools.islice(fit(images(), source, **arguments), 1))
    for other in (
        FromDataset({"x": LEVELS[::-1], "label": LABELS}, bins=256),
        FromDataset({"x": LEVELS, "label": LABELS}, bins=256, identity="forty"),
        DATA,
    ):
        with pytest.raises(ValueError, match=r"other settings \(data:"):
            fit(images(), other, **arguments)
    assert len(list(fit(images(), source, **arguments))) == 2


def test_floats_need_no_wrapper_and_conditions_may_be_anything() -> None:
    x = rings(N, 0)
    batch = next(as_source([*x, *x][:0] or TensorDataset(x, torch.arange(N) % 3)).serve(N, 0))
    reference = next(Data(x, torch.arange(N) % 3).serve(N, 0))
    assert torch.equal(batch.x, reference.x)
    assert torch.equal(batch.condition["label"], reference.condition["label"])
    assert torch.equal(next(as_source(x.numpy()).serve(N, 0)).x, reference.x)
    items = [
        {"x": row, "text": {"tokens": [k, 2 * k], "raw": f"{k}"}, "size": (k, float(k)), "w": k / 2}
        for k, row in enumerate(x)
    ]
    for workers in (0, 1):
        source = FromDataset(items, workers=workers)
        assert source.conditions == ("text", "size", "w")
        found, condition = next(source.serve(N, 0))
        k = torch.tensor([int((x == row).all(1).nonzero()) for row in found])
        assert torch.equal(condition["text"]["tokens"], torch.stack((k, 2 * k), 1))
        assert condition["text"]["raw"] == [f"{int(i)}" for i in k]
        assert torch.equal(condition["size"][0], k)
        assert condition["size"][1].dtype == condition["w"].dtype == torch.float32
        assert torch.equal(condition["w"], k / 2)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_dataset_of_tuples_of_one_holds_x_alone(workers: int) -> None:
    """As torch's TensorDataset of one tensor gives them."""
    x = rings(N, 0)
    source = FromDataset(TensorDataset(x), workers=workers)
    assert (source.event, source.conditions, len(source)) == ((2,), (), N)
    assert torch.equal(next(source.serve(N, 3)).x, next(Data(x).serve(N, 3)).x)
    assert torch.equal(next(as_source(TensorDataset(x)).serve(N, 3)).x, next(source.serve(N, 3)).x)
    levels = FromDataset([[row] for row in LEVELS], bins=256)
    assert torch.equal(next(levels.serve(N, 3)).x, next(DATA.serve(N, 3)).x)
    with torch.random.fork_rng():
        model = ScoreNetwork(MLP((2,), 8), VPSDE(), V())
    assert len(list(fit(model, TensorDataset(x), steps=2, batch=5, progress=False))) == 2


def test_a_tuple_of_one_has_no_label() -> None:
    with pytest.raises(ValueError, match=r"hold x alone, and conditions=\['label'\] are wanted"):
        FromDataset(TensorDataset(rings(N, 0)), conditions=("label",))
    mixed = [(torch.zeros(2),), (torch.zeros(2), 1)]
    with pytest.raises(ValueError, match="same keys in every sample"):
        next(FromDataset(mixed).serve(2, 0))
    with pytest.raises(ValueError, match="got 0 parts"):
        FromDataset([()])


def test_levels_cross_to_the_device_as_bytes() -> None:
    crossed: list[torch.dtype] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = kwargs or {}
            if "_to_copy" in str(func) and str(kwargs.get("device")) == "meta":
                crossed.append(args[0].dtype)
            return func(*args, **kwargs)

    source = FromDataset({"x": LEVELS, "label": LABELS}, bins=256)
    with Watch():
        batch = next(source.serve(8, 0, device="meta"))
    assert crossed == [torch.uint8, torch.int64]
    assert (batch.x.dtype, batch.x.device.type) == (torch.float32, "meta")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's own account")
def test_a_memory_map_is_not_read_into_memory(tmp_path: Path) -> None:
    def used() -> int:
        # without the pages of files: how many of them the kernel maps at once is its own affair
        resident, files = map(int, Path("/proc/self/statm").read_text().split()[1:3])
        return (resident - files) * os.sysconf("SC_PAGE_SIZE")

    shape = (60_000, 3, 64, 64)  # 737 MB, of which the file system stores nothing
    np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.uint8, shape).flush()
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    served = FromDataset(mapped, bins=256, identity="zeros").serve(64, 0)
    next(served)
    before = used()
    for batch in itertools.islice(served, 30):
        assert batch.x.shape == (64, 3, 64, 64)
    # a batch of floats holds 3 MB
    assert used() - before < 150e6


@pytest.mark.parametrize(
    ("dataset", "arguments", "kind", "words"),
    [
        ({"x": LEVELS}, {}, TypeError, r"torch.uint8.*declare bins=256"),
        ({"x": LEVELS / 255}, {"bins": 256}, TypeError, "is for whole numbers"),
        ({"x": LEVELS}, {"bins": 200}, ValueError, r"0 \.\. 199"),
        ({"x": LEVELS > 3}, {"bins": 2}, TypeError, "integer tensor"),
        ({"x": LEVELS}, {"bins": 1}, ValueError, "bins must be at least 2"),
        ({"x": LEVELS}, {"bins": 256, "range": (0, 1)}, ValueError, r"leave range=\(0, 1\) out"),
        ({"x": np.full((3, 2), np.nan)}, {}, ValueError, "finite"),
        (
            {"x": np.full((3, 2), 2.0)},
            {"range": (-1, 1)},
            ValueError,
            r"range \(-1.0, 1.0\), got 2",
        ),
        ({"x": np.zeros((3, 2))}, {"range": (1, -1)}, ValueError, "low < high"),
        ({"x": np.zeros((3, 2)), "label": np.zeros(3)}, {}, TypeError, "whole numbers"),
        ({"x": np.zeros((3, 2)), "label": np.zeros((3, 1), int)}, {}, ValueError, "one number"),
        ({"x": np.zeros((3, 2)), "label": -np.ones(3, int)}, {}, ValueError, "got -1"),
        (
            {"x": np.zeros((3, 2)), "label": np.ones(3, int)},
            {"classes": 1},
            ValueError,
            r"0 \.\. 0",
        ),
        ({"x": np.zeros((3, 2)), "y": np.ones(2)}, {}, ValueError, "one length"),
        ({"image": np.zeros((3, 2))}, {}, ValueError, r"must have \['x'\]"),
        ({"x": np.zeros((3, 2))}, {"conditions": ["label"]}, ValueError, r"must have \['label'\]"),
        ({"x": np.zeros((3, 2))}, {"conditions": "label"}, TypeError, r"names, such as"),
        ({"x": np.zeros((3, 2))}, {"conditions": 3}, TypeError, r"names, such as"),
        ({"x": np.zeros((3, 2))}, {"conditions": [("a",)]}, TypeError, r"names, such as"),
        ({"x": np.zeros((3, 2))}, {"x": ["x"]}, TypeError, "x must be a str"),
        ({"x": np.zeros((3, 2))}, {"range": np.zeros(3)}, ValueError, "range must be"),
        ({"x": np.zeros((3, 2))}, {"mode": "CMYK"}, ValueError, "mode must be one of 'L'"),
        ({"x": np.zeros((3, 2))}, {"name": 3}, TypeError, "name must be a str"),
        ({"x": np.zeros((3, 2))}, {"identity": ""}, ValueError, "identity must not be empty"),
        ({"x": np.zeros((3, 2))}, {"workers": 2**40}, ValueError, "workers must be at most 1024"),
        ({"x": LEVELS}, {"bins": 2**40}, ValueError, r"bins must be at most 2\^24"),
        ({"x": np.zeros((3, 2))}, {"channels_last": True}, ValueError, r"\(H, W, C\)"),
        ({"x": np.zeros((3, 2))}, {"channels_last": 1}, TypeError, "True or False"),
        ({"x": np.zeros((3, 2))}, {"workers": -1}, ValueError, "workers must be at least 0"),
        ({"x": np.array(["a", "b"])}, {}, TypeError, "must hold numbers, got <U1"),
        (np.zeros((3, 2), complex), {}, TypeError, "must hold numbers, got complex128"),
        ([(0.0, 1, 2)], {}, ValueError, "got 3 parts"),
        ([(np.zeros(2), 1)], {"conditions": ["text"]}, ValueError, "need items that are dicts"),
        ([np.zeros(2)], {"conditions": ["label"]}, ValueError, "hold x alone"),
        ([None], {}, TypeError, "must hold numbers, got NoneType"),
        ([], {}, ValueError, "at least one sample"),
        ("abc", {}, TypeError, "length and items"),
        (iter([np.zeros(2)]), {}, TypeError, "use FromBatches"),
        (7, {}, TypeError, "length and items"),
    ],
)
def test_datasets_that_do_not_fit_are_refused(
    dataset: Any, arguments: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        FromDataset(dataset, **arguments)


@pytest.mark.parametrize(
    ("items", "kind", "words"),
    [
        ([torch.zeros(2), torch.zeros(3)], ValueError, "agree in shape and type"),
        ([torch.zeros(2), torch.zeros(2).double()], ValueError, "agree in shape and type"),
        ([torch.zeros(2), torch.full((2,), torch.inf)], ValueError, "finite"),
        ([(torch.zeros(2), 0), (torch.zeros(2), 7)], ValueError, r"0 \.\. 6, got 0 \.\. 7"),
        ([(torch.zeros(2), "a"), (torch.zeros(2), "b")], TypeError, "whole numbers"),
        ([{"x": torch.zeros(2)}, {"x": torch.zeros(2), "label": 1}], ValueError, "same keys"),
        ([{"x": torch.zeros(2), "t": "a"}, {"x": torch.zeros(2), "t": 1}], ValueError, "a string"),
        ([{"x": torch.zeros(2), "t": (1,)}, {"x": torch.zeros(2), "t": 1}], ValueError, "1 parts"),
    ],
)
def test_items_that_do_not_agree_are_refused(
    items: list[Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        next(as_source(FromDataset(items), classes=CLASSES).serve(2, 0))


def test_images_of_another_mode_are_converted_as_declared() -> None:
    image = pytest.importorskip("PIL.Image")
    palette = image.new("P", (4, 4))
    with pytest.raises(ValueError, match="mode P"):
        FromDataset([palette], bins=256)
    assert FromDataset([palette], bins=256, mode="L").event == (1, 4, 4)
    assert FromDataset([image.new("L", (5, 4))], bins=256).event == (1, 4, 5)


def test_labels_are_those_of_the_network(tmp_path: Path) -> None:
    pairs = [(torch.zeros(2), k) for k in range(8)]
    with torch.random.fork_rng():
        model = ScoreNetwork(MLP((2,), 8, classes=7), VPSDE(), V())
        bare = ScoreNetwork(MLP((2,), 8), VPSDE(), V())
    # 7 is the null class of the network, and no label of the data
    with pytest.raises(ValueError, match=r"labels must lie in 0 \.\. 6, got 0 \.\. 7"):
        list(fit(model, FromDataset(pairs), steps=1, batch=8, progress=False))
    with pytest.raises(ValueError, match="the data have 8 classes and the network 7"):
        fit(model, FromDataset(pairs, classes=8), steps=1, batch=8)
    with pytest.raises(ValueError, match=r"conditions \['label'\], and the network declares none"):
        fit(bare, FromDataset(pairs), steps=1, batch=8)
    assert len(list(fit(bare, FromDataset(pairs, conditions=()), steps=1, batch=8))) == 1


def test_serving_leaves_no_worker_and_the_global_generators_where_they_are() -> None:
    import multiprocessing

    source = FromDataset({"x": LEVELS}, bins=256, workers=2)
    before = set(multiprocessing.active_children())
    served = source.serve(8, 0)
    next(served)
    own = set(multiprocessing.active_children()) - before
    assert len(own) == 2
    served.close()
    del served
    deadline = time.monotonic() + 20
    while own & set(multiprocessing.active_children()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not own & set(multiprocessing.active_children())


INTERRUPTED = """
import sys
sys.path[:0] = [sys.argv[2]]
from test_data_datasets import Own, FromDataset, fit, images

source = FromDataset(Own(), bins=256, x="image", conditions={"label": "digit"}, workers=2)
for step in fit(images(), source, steps=100_000, batch=8, out=sys.argv[1], progress=False):
    print(step.step, flush=True)
"""


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_saves_once_and_ends_the_workers(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[1]
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path), str(Path(__file__).parent)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 5:
            break
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    out, error = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in error
    assert "DataLoader worker" not in error
    last = int(out.split()[-1]) if out.split() else 5
    from safetensors import safe_open

    with safe_open(tmp_path / "resume.safetensors", "pt") as file:
        import json

        assert json.loads(file.metadata()["head"])["done"]["step"] in (last, last + 1)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_gpu_is_served_the_bits_of_the_host(workers: int) -> None:
    source = FromDataset({"x": LEVELS, "label": LABELS}, bins=256, workers=workers)
    for bins in (17, 255, 256, 1000, 65536):
        whole = Data(torch.arange(bins).reshape(-1, 1), bins=bins)
        assert torch.equal(
            next(whole.serve(bins, 0, device="cuda")).x.cpu(), next(whole.serve(bins, 0)).x
        )
    for a, b in itertools.islice(
        zip(DATA.serve(16, 0), source.serve(16, 0, device="cuda"), strict=False), 9
    ):
        assert b.x.is_cuda
        assert torch.equal(a.x, b.x.cpu())
        assert torch.equal(a.condition["label"], b.condition["label"].cpu())


# Streams of batches


def batches_of(step: int) -> Iterator[tuple[Tensor, Tensor]]:
    """What the iterable of some other library gives: the batches of `DATA`, as bytes."""
    raw = Data(DATA.x, DATA.label)
    levels = {tuple(x.flatten().tolist()): i for i, x in enumerate(DATA.x)}
    for x, label in raw.batches(16, 0, step):
        rows = [levels[tuple(row.flatten().tolist())] for row in x]
        yield torch.from_numpy(LEVELS[rows]), label


def test_a_stream_trains_the_bits_of_data_and_resumes_by_its_own_function(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"steps": 4, "batch": 16, "progress": False}
    begun: list[int] = []

    def batches(step: int) -> Iterator[Any]:
        begun.append(step)
        return batches_of(step)

    def source(**change: Any) -> FromBatches:
        declared = {"identity": "forty", **change}
        return FromBatches(
            batches, event=(3, 8, 8), bins=256, conditions=("label",), name="forty", **declared
        )

    whole, model = images(), images()
    losses = [step.loss for step in fit(whole, DATA, **arguments)]
    assert [step.loss for step in fit(model, source(), **arguments)] == losses
    assert same(bits(model), bits(whole))
    list(itertools.islice(fit(images(), source(), **arguments, out=tmp_path), 2))
    with pytest.raises(ValueError, match="other settings"):
        fit(images(), source(identity="forty-2"), **arguments, out=tmp_path)
    resumed = images()
    assert [s.loss for s in fit(resumed, source(), **arguments, out=tmp_path)] == losses[2:]
    assert same(bits(resumed), bits(whole))
    assert begun == [0, 0, 2]
    with pytest.raises(ValueError, match="nothing identifies the data 'forty'"):
        fit(images(), source(identity=None), **arguments, out=tmp_path / "other")


def test_rows_of_a_stream_and_streams_of_rows() -> None:
    batch = (torch.arange(12.0).reshape(6, 2), torch.arange(6))
    part = slice(2, 4)
    whole = FromBatches(replayed([batch]), event=(2,), conditions=("label",))
    own = FromBatches(
        replayed([(batch[0][part], batch[1][part])]),
        event=(2,),
        conditions=("label",),
        sharded=True,
    )
    for source in (whole, own):
        served = next(source.serve(6, 0, rows=part))
        assert torch.equal(served.x, batch[0][part])
        assert served.condition["label"].tolist() == [2, 3]
    with pytest.raises(
        ValueError, match=r"batch 0 of batches must have shape \(2, 2\), got \(6, 2\)"
    ):
        next(FromBatches(replayed([batch[0]]), event=(2,), sharded=True).serve(6, 0, rows=part))


def test_a_loader_is_passed_over_again_and_again() -> None:
    x = rings(20, 0)
    loader = DataLoader(
        TensorDataset(x, torch.arange(20) % 3), batch_size=5, generator=torch.Generator()
    )
    source = as_source(loader, classes=3)
    assert (source.event, source.conditions, source.identity()) == ((2,), ("label",), None)
    served = list(itertools.islice(source.serve(5, 0), 9))
    for k, batch in enumerate(served):
        rows = torch.arange(5) + 5 * (k % 4)
        assert torch.equal(batch.x, x[rows])
        assert torch.equal(batch.condition["label"], rows % 3)
    later = FromBatches(replayed(loader), event=(2,), conditions=("label",)).serve(5, 0, 7)
    assert torch.equal(next(later).x, served[7].x)
    with torch.random.fork_rng():
        model = ScoreNetwork(MLP((2,), 8, classes=3), VPSDE(), V())
    assert len(list(fit(model, loader, steps=6, batch=5, progress=False))) == 6


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_loader_of_one_tensor_gives_lists_of_one(kind: Any) -> None:
    """As torch's DataLoader of a TensorDataset of one tensor collates them: [x]."""
    x = rings(20, 0)
    loader = DataLoader(
        TensorDataset(x), batch_size=5, collate_fn=None, generator=torch.Generator()
    )
    assert isinstance(next(iter(loader)), list)
    batches = [kind(batch) for batch in loader]
    for source in (as_source(iter(batches)), FromBatches(replayed(loader), event=(2,))):
        assert (source.event, source.conditions) == ((2,), ())
        for k, batch in enumerate(itertools.islice(source.serve(5, 0), 4)):
            assert torch.equal(batch.x, x[5 * k : 5 * k + 5])
            assert batch.condition == {}
    with torch.random.fork_rng():
        model = ScoreNetwork(MLP((2,), 8), VPSDE(), V())
    assert len(list(fit(model, loader, steps=6, batch=5, progress=False))) == 6


def test_a_batch_without_the_named_key_is_refused_in_words() -> None:
    source = FromBatches(replayed([{"image": torch.zeros(4, 2)}]), event=(2,))
    with pytest.raises(ValueError, match=r"must have \['x'\], and have \['image'\]: name the key"):
        next(source.serve(4, 0))


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_sources_refuse_a_device_that_is_not_here(device: str) -> None:
    x = rings(20, 0)
    for source in (Data(x), FromDataset(TensorDataset(x)), FromBatches(replayed([x]), event=(2,))):
        with pytest.raises(ValueError, match=f"device {device} cannot be used here"):
            source.serve(20, 0, device=device)


def test_an_iterator_loses_no_batch_and_ends() -> None:
    served = as_source(iter([torch.full((3, 2), float(k)) for k in range(4)])).serve(3, 0)
    assert [float(batch.x[0, 0]) for batch in itertools.islice(served, 4)] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"batches ended before batch 4.*replayed\(iterable\)"):
        next(served)


def test_streams_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    class Samples(IterableDataset):
        def __iter__(self) -> Iterator[Tensor]:
            return iter(rings(20, 0))

    with pytest.raises(TypeError, match="samples or batches"):
        as_source(Samples())
    with pytest.raises(ValueError, match="is empty"):
        as_source(iter([]))
    for batches, words in [
        ([torch.zeros(4, 2)], r"batch 0 of batches must have shape \(5, 2\).*drop_last=True"),
        ([torch.zeros(5, 3)], r"must have shape \(5, 2\), got \(5, 3\)"),
        ([torch.zeros(5, 2), torch.zeros(5, 2) / 0], "finite"),
    ]:
        with pytest.raises(ValueError, match=words):
            list(itertools.islice(FromBatches(replayed(batches), event=(2,)).serve(5, 0), 2))
    for bad in (
        lambda: FromBatches([torch.zeros(4, 2)], event=(2,)),  # type: ignore[arg-type]
        lambda: replayed(7),  # type: ignore[arg-type]
        lambda: FromBatches(replayed([]), event=(2,), conditions=None),  # type: ignore[arg-type]
        lambda: FromBatches(replayed([]), event=2),  # type: ignore[arg-type]
        lambda: FromBatches(replayed([]), event=(2,), sharded="no"),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError):
            bad()
    with pytest.raises(ValueError, match="batch must be at least 1"):
        FromBatches(replayed([]), event=(2,)).serve(0, 0)
    bare = as_source(iter([torch.zeros(5, 2)]))
    with torch.random.fork_rng():
        model = ScoreNetwork(MLP((2,), 8), VPSDE(), V())
    with pytest.raises(ValueError, match="declare an identity"):
        fit(model, bare, steps=1, batch=5, out=tmp_path)


def test_webdataset_shards_are_batches(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wds = pytest.importorskip("webdataset")
        for shard in range(2):
            with wds.TarWriter(str(tmp_path / f"{shard}.tar")) as tar:
                for i in range(20 * shard, 20 * shard + 20):
                    tar.write({"__key__": f"{i}", "x.npy": LEVELS[i], "cls": int(LABELS[i])})
        shards = [str(tmp_path / f"{shard}.tar") for shard in range(2)]
        loader = (
            wds.WebDataset(shards, shardshuffle=False).decode().to_tuple("x.npy", "cls")
            .batched(8, partial=False)
        )  # fmt: skip
        source = FromBatches(
            replayed(loader), event=(3, 8, 8), conditions=("label",), bins=256, identity="forty"
        )
        served = list(itertools.islice(source.serve(8, 0), 7))
        resumed = next(source.serve(8, 0, 6))
        gc.collect()  # shards that it leaves open are closed here
    for k, batch in enumerate(served):
        rows = np.arange(8) + 8 * (k % 5)
        assert torch.equal(batch.x, DATA.x[torch.from_numpy(rows)])
        assert batch.condition["label"].tolist() == LABELS[rows].tolist()
    assert torch.equal(resumed.x, served[6].x)


def test_a_network_may_take_what_the_dataset_calls_otherwise() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor, clock: Tensor, caption: Tensor) -> Tensor:
            return self.scale * x * caption[:, :1]

    model = ScoreNetwork(Net(), VPSDE(), V(), conditions=Conditions({"caption": torch.zeros(3)}))
    items = [{"x": x, "embedding": [1.0, 2.0, 3.0]} for x in rings(8, 0)]
    source = FromDataset(items, conditions={"caption": "embedding"})
    steps = list(fit(model, source, steps=3, batch=4, dropout={"caption": 0.5}, progress=False))
    assert len(steps) == 3
