"""A small digit classifier whose weights come with the library, as a feature extractor.

Trained by ``python benchmarks/training/train_classifier.py`` on the 1,500 training digits alone;
its accuracy on the 297 held-out ones is 99.3 %, stored in the file's metadata.
"""

from functools import lru_cache
from importlib.resources import files

import safetensors.torch
import torch
from torch import Tensor, nn

from .._checks import check_kind
from .estimate import checked_batch

__all__ = ["DigitsClassifier", "digits_classifier", "digits_features"]


class DigitsClassifier(nn.Module):
    """Convolutional classifier of 8x8 digits in [-1, 1], smooth throughout.

    ``logits = W f(x) + b`` with 32 features f after three convolutions and a linear layer, SiLU
    between; no normalisation and no maximum, so that features depend smoothly on each image alone.

    Source: LeCun et al. (1998), Gradient-based learning applied to document recognition (the
    pattern).

    >>> DigitsClassifier()(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(16, 24, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(24, 24, 3, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(24 * 4 * 4, 32),
            nn.SiLU(),
        )
        self.head = nn.Linear(32, 10)

    def features(self, x: Tensor) -> Tensor:
        """Features (n, 32) of images (n, 1, 8, 8)."""
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, 10) of images (n, 1, 8, 8)."""
        return self.head(self.features(x))


@lru_cache(maxsize=8)
def digits_classifier(device: str | torch.device = "cpu") -> DigitsClassifier:
    """The bundled classifier, in evaluation mode and without gradients, read once per device.

    Args:
        device: Where it should live.

    Source: trained by ``benchmarks/training/train_classifier.py``.

    >>> digits_classifier().training
    False
    """
    check_kind("device", device, (str, torch.device), '"cpu"')
    with torch.device("meta"):  # no initial weights are drawn: the global stream stays
        net = DigitsClassifier()
    weights = files("scoregen.metrics").joinpath("digits_classifier.safetensors").read_bytes()
    net.load_state_dict(safetensors.torch.load(weights), assign=True)
    return net.eval().requires_grad_(False).to(device)


def check_digits(x: Tensor) -> Tensor:
    """Images (n, 1, 8, 8) on the scale [-1, 1]; values outside are a sampler's error and pass."""
    checked_batch(x, "digits", least=1)
    if x.shape[1:] != (1, 8, 8):
        raise ValueError(f"digits must have shape (n, 1, 8, 8), got {tuple(x.shape)}")
    if bool((x >= 0).all() & (x > 0).any()):
        raise ValueError(
            f"digits must be on the scale [-1, 1] with a background of -1, got values from "
            f"{float(x.min()):.3g} to {float(x.max()):.3g}, none negative: map 0..16 by x / 8 - 1"
        )
    return x


@torch.no_grad()
def digits_features(x: Tensor) -> Tensor:
    """Features of digit images from the bundled classifier.

    ``f(x)`` in float32, the layer before the classifier's last.

    Args:
        x: Images, (n, 1, 8, 8), on the scale [-1, 1] with a background of -1.

    Returns:
        Features, (n, 32), float32, on the device of x.

    Raises:
        ValueError: Another shape, values that are not finite, or none negative (another scale).
        TypeError: Integer images.

    Source: trained by ``benchmarks/training/train_classifier.py``.

    >>> digits_features(-torch.ones(3, 1, 8, 8)).shape
    torch.Size([3, 32])
    """
    check_digits(x)
    net = digits_classifier(x.device)
    return torch.cat([net.features(part.to(torch.float32)) for part in x.split(2048)])
