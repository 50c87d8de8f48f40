"""Map-style datasets as a source: read by workers, in the order that `Data` has."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from .._checks import check_count, check_device
from .._identity import identity as digest
from .batch import Batch
from .items import Items, ItemSource, Stored
from .order import order

__all__ = ["FromDataset"]

# What an identity is computed over; another number would make another identity of the same data.
_CHUNK = 256
_MOST = 1024


class FromDataset(ItemSource):
    """Samples of a map-style dataset: anything with a length and items.

    The same samples, seed and batch train the same bits as from `Data`, for every number of
    workers and after a resume: an item must be a function of its index. Random transforms belong
    in `Augmented`.

    Args:
        dataset: Such as a `torch.utils.data.Dataset`, a Hugging Face dataset, an array or memory
            map of shape (N, *event), or a dict of arrays of N rows each. An item is x, (x,), a pair
            (x, label), or a dict.
        x: The key of x in items that are dicts.
        conditions: Names of the conditions, or a dict from each name to its key in the items; None
            for every other key (of a pair, for its label), () for none. Labels are whole numbers
            under the name "label".
        bins: Number of levels of whole numbers, 256 for 8-bit images: they are kept as they are
            until they lie on the device, and become 2 level / (bins - 1) - 1 there. None for
            floats, which are kept as they are.
        range: The interval that floats cannot leave; (-1, 1) for levels.
        classes: Labels are in 0 .. classes - 1; those of the network that is trained unless given.
        mode: What PIL images are converted to, as in `load`.
        channels_last: Whether arrays and tensors are (H, W, C); they become (C, H, W), as PIL
            images always do.
        name: What tables and checkpoints call it.
        identity: Changes whenever the data do, for datasets too large to be read once before a
            training that writes; their content is read unless given.
        workers: Processes that read ahead; 0 reads in this one.

    Raises:
        TypeError: If the dataset has no length or no items, or its items are of another kind.
        ValueError: If it is empty, or an argument does not fit.

    Example:
        >>> pairs = [(torch.tensor([0, 255], dtype=torch.uint8), k % 3) for k in range(6)]
        >>> source = FromDataset(pairs, bins=256)
        >>> next(source.serve(2, seed=0)).x
        tensor([[-1.,  1.],
                [-1.,  1.]])
    """

    def __init__(
        self,
        dataset: Any,
        *,
        x: str = "x",
        conditions: Mapping[str, str] | Sequence[str] | None = None,
        bins: int | None = None,
        range: tuple[float, float] | None = None,
        classes: int | None = None,
        mode: str | None = None,
        channels_last: bool = False,
        name: str = "dataset",
        identity: str | None = None,
        workers: int = 0,
    ) -> None:
        super().__init__(
            Items(x, conditions, bins, range, classes, mode, channels_last), name, identity
        )
        self.dataset = dataset
        self.workers = check_count("workers", workers, 0)
        if self.workers > _MOST:
            raise ValueError(f"workers must be at most {_MOST}, got {workers}")
        self.size = _size(dataset)
        first = self._rows()[np.arange(1)]
        self.event = tuple(first.x.shape[1:])
        self.conditions = tuple(first.condition)

    def __repr__(self) -> str:
        return f"FromDataset({self.name!r}: {self.size} samples of shape {self.event})"

    def __len__(self) -> int:
        return self.size

    def identity(self) -> str:
        """The declared one, or SHA-256 over all samples and conditions, which are read once."""
        if self.declared is not None:
            return f"declared: {self.declared}"
        total = hashlib.sha256(f"{self.size} {self.bins}".encode())
        chunks = np.split(np.arange(self.size), np.arange(_CHUNK, self.size, _CHUNK))
        label = f"reading {self.name} once, to identify it"
        parts = self._loader(chunks, torch.device("cpu"))
        for part in tqdm(parts, label, len(chunks), disable=None, delay=2):
            total.update(digest((part.x, part.condition)).encode())
        return total.hexdigest()

    def serve(
        self,
        batch: int,
        seed: int,
        first_step: int = 0,
        rows: slice = slice(None),
        device: torch.device | str = "cpu",
    ) -> Iterator[Batch]:
        """Batches without end, as a training reads them: see `Source`.

        Args:
            batch: Samples per step, at most the number there is.
            seed: Of the order.
            first_step: The step to begin with.
            rows: Which rows of each batch; only they are read.
            device: Where the batches are put.

        Raises:
            ValueError: If `batch` is not in 1 .. N, or `first_step` is negative.
        """
        wanted = order(self.size, batch, seed, first_step, rows)
        place = check_device("device", device)
        return (self.items.serve(stored, place) for stored in self._loader(wanted, place))

    def _rows(self) -> _Rows:
        return _Rows(self.dataset, self.items)

    def _loader(self, wanted: Any, place: torch.device) -> Iterator[Stored]:
        """Reads rows by rows, ahead of their use where there are workers."""
        loader: DataLoader[Stored] = DataLoader(
            self._rows(),
            sampler=wanted,
            batch_size=None,
            num_workers=self.workers,
            collate_fn=_unchanged,
            pin_memory=place.type == "cuda",
            worker_init_fn=_quiet,
            # the loader draws a seed for its workers; the global generator stays where it is
            generator=torch.Generator().manual_seed(0),
        )
        yield from loader


class _Rows(Dataset[Stored]):
    """Several rows of a dataset as one batch, by a single index."""

    def __init__(self, dataset: Any, items: Items) -> None:
        self.dataset, self.items = dataset, items

    def __len__(self) -> int:
        return _size(self.dataset)

    def __getitem__(self, rows: Any) -> Stored:
        data = self.dataset
        if isinstance(data, Mapping):
            wanted = {self.items.x, *self.items.keys(data).values()}
            return self.items.read_batch({key: _taken(data[key], rows) for key in wanted})
        if isinstance(data, np.ndarray | Tensor):
            return self.items.read_batch(_taken(data, rows))
        index = rows.tolist()
        several = getattr(type(data), "__getitems__", None)  # torch's protocol for many rows
        items = [data[i] for i in index] if several is None else several(data, index)
        return self.items.read(list(items))


def _taken(column: Any, rows: np.ndarray) -> Any:
    """Some rows of an array; of a memory map, only they are read."""
    if isinstance(column, Tensor):
        return column[torch.from_numpy(rows)]
    if isinstance(column, np.ndarray):
        return np.asarray(column[rows])
    return [column[i] for i in rows.tolist()]


def _size(dataset: Any) -> int:
    if isinstance(dataset, Mapping):
        sizes = {str(key): len(column) for key, column in dataset.items()}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"the arrays of a dataset must be of one length, got {sizes}")
        size = next(iter(sizes.values()))
    elif (
        isinstance(dataset, str)
        or getattr(dataset, "shape", None) == ()
        or not all(hasattr(type(dataset), name) for name in ("__len__", "__getitem__"))
    ):
        raise TypeError(
            "a dataset must have a length and items (__len__ and __getitem__), got "
            f"{type(dataset).__name__}; use FromBatches for a stream of batches"
        )
    else:
        size = len(dataset)
    if size < 1:
        raise ValueError("a dataset must hold at least one sample")
    return size


def _unchanged(stored: Any) -> Any:
    return stored


def _quiet(worker: int) -> None:
    """Signals are the training's to handle: a worker ends with it."""
    for name in ("SIGINT", "SIGHUP"):
        number = getattr(signal, name, None)  # there is no SIGHUP on Windows
        if number is not None:
            signal.signal(number, signal.SIG_IGN)
