"""Networks: plain modules `net(x, clock, label=None)` that know nothing of diffusion.

`MLP` and `UNet` are for one's own training; `ADM`, `NCSNpp` (DDPM++ as well) and `EDM2` are the
published architectures, which the importers fill from the published weights.
"""

from .adm import ADM
from .edm2 import EDM2
from .embedding import Conditioning, Sinusoids
from .mlp import MLP
from .ncsnpp import NCSNpp
from .unet import UNet

__all__ = ["ADM", "EDM2", "MLP", "Conditioning", "NCSNpp", "Sinusoids", "UNet"]
