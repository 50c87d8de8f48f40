"""Networks: plain modules `net(x, clock, label=None)` that know nothing of diffusion."""

from .embedding import Conditioning, Sinusoids
from .mlp import MLP
from .unet import UNet

__all__ = ["MLP", "Conditioning", "Sinusoids", "UNet"]
