"""Features of the Inception network that FID, KID, precision and recall are published with."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._checks import check_tensor

__all__ = ["InceptionFeatures"]

_WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"


class InceptionFeatures:
    """The 2,048 pooled features of InceptionV3, by torch-fidelity, from a local file of weights.

    Images are rounded to the 256 levels that the network was trained on; values beyond
    `data_range` become black or white there, as in a saved picture, and grey images get three equal
    channels. The file is read without running anything in it, and nothing is downloaded.

    Args:
        weights: ``weights-inception-2015-12-05-6726825d.pth``, from the releases of
            github.com/toshas/torch-fidelity.
        data_range: Values of black and white.

    Raises:
        ImportError: Without torch-fidelity.
        ValueError: Where there is no such file, or it holds something else.
        pickle.UnpicklingError: For a file that would run code when it is read.

    Source: Heusel et al. (2017), arXiv 1706.08500.

    >>> InceptionFeatures("nowhere.pth")
    Traceback (most recent call last):
        ...
    ValueError: there are no Inception weights at nowhere.pth: put weights-inception-2015-12-05-...
    """

    def __init__(self, weights: str | Path, *, data_range: tuple[float, float] = (-1.0, 1.0)):
        path = Path(weights)
        if not path.is_file():
            raise ValueError(
                f"there are no Inception weights at {weights}: put {_WEIGHTS}, from the releases "
                "of github.com/toshas/torch-fidelity, there; nothing is downloaded"
            )
        if importlib.util.find_spec("torch_fidelity") is None:
            raise ImportError(
                "InceptionFeatures need torch-fidelity: pip install torch-fidelity (it requires "
                "torchvision, which must fit the torch that is installed)"
            )
        if not data_range[0] < data_range[1]:
            raise ValueError(f"data_range must be (black, white) with black below: {data_range}")
        self.weights, self.data_range = str(path), data_range
        self.net = _network(path)

    def __reduce__(self) -> tuple[Any, ...]:
        # workers read the file: a hundred megabytes a task need not travel
        return _again, (self.weights, self.data_range)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Features (n, 2048) of images (n, 1 or 3, height, width)."""
        check_tensor("images", x)
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise ValueError(f"images must have shape (n, 1 or 3, h, w), got {tuple(x.shape)}")
        low, high = self.data_range
        levels = ((x - low) * (255 / (high - low))).round().clamp(0, 255).to(torch.uint8)
        self.net.to(x.device)
        features: Tensor = self.net(levels.expand(-1, 3, -1, -1))[0]
        return features.flatten(1)


def _again(weights: str, data_range: tuple[float, float]) -> InceptionFeatures:
    return InceptionFeatures(weights, data_range=data_range)


def _network(path: Path) -> Any:
    torch.load(path, map_location="cpu", weights_only=True)  # refuses a file that would run code
    fidelity: Any = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn, then replaced
        try:
            net = fidelity.FeatureExtractorInceptionV3("inception", ["2048"], str(path))
        except RuntimeError as error:
            raise ValueError(f"{path} holds other weights than Inception's: {error}") from error
    return net.eval().requires_grad_(False)
