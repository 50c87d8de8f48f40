"""Networks: plain modules `net(x, clock, label=None)` that know nothing of diffusion."""

from scoregen.networks.embedding import Conditioning, Sinusoids
from scoregen.networks.mlp import MLP
from scoregen.networks.unet import UNet

__all__ = ["MLP", "Conditioning", "Sinusoids", "UNet"]
