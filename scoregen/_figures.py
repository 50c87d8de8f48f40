"""Pictures on disk: what every page, report and training draws with."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._files import write

__all__ = ["figure", "tile_images", "written"]


def figure(width: float, height: float) -> Any:
    """A figure that touches no global state and needs no display; width and height in inches.

    >>> figure(4.0, 3.0).get_size_inches().tolist()
    [4.0, 3.0]
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'scoregen[bench]'") from error
    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    return made


def written(made: Any, path: Path) -> Path:
    """Write a figure in the format of the path's ending, whole or not at all.

    >>> import tempfile
    >>> written(figure(1.0, 1.0), Path(tempfile.mkdtemp()) / "empty.svg").name
    'empty.svg'
    """
    content = io.BytesIO()
    kind = path.suffix[1:] or "png"
    # no date, so that equal results give equal files
    stamp = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "scoregen"}):
        made.savefig(content, dpi=200, format=kind, metadata=stamp)
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, content.getvalue())
    return path


def tile_images(
    x: Tensor,
    data_range: tuple[float, float] = (-1.0, 1.0),
    pad: int = 1,
    columns: int | None = None,
) -> Tensor:
    """Images (n, channels, height, width) in a tile in [0, 1], 1 or 3 channels.

    Args:
        x: the images.
        data_range: what is black, and what is white.
        pad: white pixels between two images.
        columns: images side by side; as many as make the tile near-square unless given.

    >>> tile_images(torch.zeros(4, 1, 8, 8)).shape
    torch.Size([1, 19, 19])
    """
    low, high = data_range
    x = ((x if x.shape[1] in (1, 3) else x[:, :1]) - low) / (high - low)
    n, channels, height, width = x.shape
    columns = math.ceil(math.sqrt(n)) if columns is None else columns
    lines = math.ceil(n / columns)
    tile = torch.ones((channels, lines * (height + pad) + pad, columns * (width + pad) + pad))
    for k in range(n):
        top = pad + (k // columns) * (height + pad)
        left = pad + (k % columns) * (width + pad)
        tile[:, top : top + height, left : left + width] = x[k]
    return tile.nan_to_num(0.5).clamp(0, 1)
