"""The other families of models, each a row of a comparison and each with its link to scores.

Start with `Generator`, what a row is, and `MixtureFit`, the strongest baseline on 2-D data. The
fits of scikit-learn and zuko need the extra `families`.
"""

from .base import Generator, Normal, Trained
from .boltzmann import BlockGibbs, BoltzmannMachine
from .flows import Autoregressive, Flow
from .gan import GAN, ConditionalGAN, WassersteinGAN
from .mixtures import MixtureFit, NaiveBayes
from .perceptron import Perceptron
from .ratio import DensityRatio
from .sampled import Sampled
from .vae import VAE, HierarchicalVAE

__all__ = [
    "Autoregressive",
    "BlockGibbs",
    "BoltzmannMachine",
    "ConditionalGAN",
    "DensityRatio",
    "Flow",
    "GAN",
    "Generator",
    "HierarchicalVAE",
    "MixtureFit",
    "NaiveBayes",
    "Normal",
    "Perceptron",
    "Sampled",
    "Trained",
    "VAE",
    "WassersteinGAN",
]
