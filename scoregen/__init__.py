"""Score-based generative modelling: processes, models, solvers, grids and what they cost."""

# The names are packed, so that this page can be read at a glance.
# ruff: noqa: I001
# fmt: off
from ._checks import DivergenceError
from .sde import Level, SDE
from .processes import CosineVPSDE, EDMSDE, RectifiedSDE, StaticSDE, SubVPSDE, VESDE, VPSDE
from .chain import Chain, DiscreteVESDE, DiscreteVPSDE
from .noise import Noise, ReplayNoise, SampleNoise, TorchNoise
from .brownian import BrownianNoise
from .grids import (
    BetaQuantiles, Constant, Focused, Grid, Interpolated, Karras, Knots, PolyExponential,
    Polynomial, Quadratic, RestartGrid, Reversed, Staircase, Strided, Times, UniformLam,
    UniformTime,
)
from .prediction import Prediction
from .parameterization import EDM, Eps, LearnedVariance, Parameterization, Score, V, Velocity, X0
from .clocks import Clock, HalfLogSNR, Index, LogSigma, Raw
from .model import Counted, Given, ScoreModel, ScoreNetwork
from .divergences import (
    energy_distance_1d, gaussian_fisher, gaussian_kl, gaussian_mmd2, gaussian_w2,
    isotropic_kl, ot_map,
)
from .analytic import Analytic, Empirical, Gaussian, GaussianMixture
from .energy import (
    Distance, EnergyModel, EnergyNetwork, EnergyPrediction, Potential, energy_change,
    energy_of,
)
from .composition import Bridge, Mixture, Negated, Product, Tempered
from .conservative import (
    Curl, LineIntegral, ScoreEnergy, check_energy_sign, curl, energy_from_score,
    line_integral,
)
from .guidance import (
    AutoGuidance, Clamped, Classifier, ClassifierFree, DynamicThreshold, Reconstruction,
)
from .networks import Conditioning, MLP, Sinusoids, UNet
from .solvers import (
    AdaptiveDPM, AdaptiveHeun, AdaptiveSDE, AdaptiveSDEState, AdaptiveState, Ancestral,
    AncestralODE, AngleAdams, BAOAB, ChainState, DDIM, DEIS, DPMSolver,
    DPMSolver3MAsPublished, DPMSolverPP, DPMSolverSingle, Dopri5, DualAveraging, EULER,
    EulerMaruyama, EulerStart, ExponentialAB, ExponentialEuler, GammaAveraging, HEUN, HMC,
    History, IPNDM, KarrasHeun, Kinetic, KineticState, LMS, Langevin, MALA, MIDPOINT,
    Metropolis, Multistep, NCSNStep, NCSNv2Step, Noisy, OBABO, PNDM, PolynomialDecay,
    PredictorCorrector, ProbabilityFlow, RK4, Restart, ReverseDiffusion, SASolver,
    SDEDPMSolverPP, SDEDPMSolverPP2S, SEEDS2, SGLD, SNRLangevin, Solver, Status, StepSize,
    StochasticHeun, SumOfTerms, Tableau, TauBand, TunedState, UniPC, VelocityAB, leapfrog,
)
from .sampler import Sampler, Step
from .picard import Picard, PicardState
from .inverse import (
    DPS, DiffPIR, GuidedAncestral, LinearMeasurement, Particles, PiGDM, RePaint,
    Replacement, TMPD, TwistedSMC,
)
from .mcmc import (
    ChainReport, Chains, autocorrelation, autocorrelation_time, chain_report, ess,
    rank_normalised, run_chains, split_rhat,
)
from .evidence import Evidence, annealed_importance, thermodynamic_integration
from .likelihood import (
    BitsRow, Bound, Decoder, DiscretisedGaussian, Exact, GaussianDecoder, Hutchinson,
    LogProb, Variance, bits_per_dim, bits_report, bits_table, bound, continuous_bound,
    decode, dequantise, encode, importance_bound, log_prob,
)
from .analysis import (
    ErrorRow, ErrorTable, ModeErrors, NotAffineError, Order, OutputLaw, PolynomialModel,
    ZigZag, analyse, exact_flow, gaussian_error, gaussian_model, is_affine,
    last_move_defect, mode_errors, observed_order, output_law, strong_error,
)
from .schedules import OptimalGaussian, trajectory_grid
from .objectives import (
    AtKnots, ContrastiveDivergence, DenoisingScoreMatching, EDMWeight, Hybrid,
    ImplicitScoreMatching, Likelihood, LogNormalSigma, LogitNormal, LossAwareKnots, MinSNR,
    NoiseContrastive, Objective, PersistentContrastiveDivergence, ReplayBuffer, Simple,
    SlicedScoreMatching, Stratified, TimeLaw, UniformLamLaw, UniformLaw, Unit,
    VariationalBound, Weight,
)
from .metrics import (
    ClassAccuracy, DigitsClassifier, Direction, Diversity, Estimate, Frechet, MMD, Metric,
    MissingModes, ModeCovariances, ModeMeans, ModeWeights, MomentError, SlicedWasserstein,
    digits_classifier, digits_features, title,
)
from .data import (
    Data, Modes, checkerboard, digits, eight_gaussians, eight_gaussians_modes, from_levels,
    grid_modes, moons, rings, sixteen_modes, swiss_roll, to_levels,
)
from .ema import EMA
from .checkpoint import CheckpointError, card, digits_model, fingerprint, load, save
from .train import TrainStep, TrainingError, fit
from .compare import Cell, Comparison, Row, compare, markdown, plot_quality, plot_samples
from .importers import from_distribution, from_torchebm, to_torchebm

__version__ = "0.1.0"

__all__ = [
    "AdaptiveDPM", "AdaptiveHeun", "AdaptiveSDE", "AdaptiveSDEState", "AdaptiveState",
    "Analytic", "Ancestral", "AncestralODE", "AngleAdams", "AtKnots", "AutoGuidance", "BAOAB",
    "BetaQuantiles", "BitsRow", "Bound", "Bridge", "BrownianNoise", "Cell", "Chain",
    "ChainReport", "ChainState", "Chains", "CheckpointError", "Clamped", "ClassAccuracy",
    "Classifier", "ClassifierFree", "Clock", "Comparison", "Conditioning", "Constant",
    "ContrastiveDivergence", "CosineVPSDE", "Counted", "Curl", "DDIM", "DEIS", "DPMSolver",
    "DPMSolver3MAsPublished", "DPMSolverPP", "DPMSolverSingle", "DPS", "Data", "Decoder",
    "DenoisingScoreMatching", "DiffPIR", "DigitsClassifier", "Direction", "DiscreteVESDE",
    "DiscreteVPSDE", "DiscretisedGaussian", "Distance", "DivergenceError", "Diversity",
    "Dopri5", "DualAveraging", "DynamicThreshold", "EDM", "EDMSDE", "EDMWeight", "EMA", "EULER",
    "Empirical", "EnergyModel", "EnergyNetwork", "EnergyPrediction", "Eps", "ErrorRow",
    "ErrorTable", "Estimate", "EulerMaruyama", "EulerStart", "Evidence", "Exact",
    "ExponentialAB", "ExponentialEuler", "Focused", "Frechet", "GammaAveraging", "Gaussian",
    "GaussianDecoder", "GaussianMixture", "Given", "Grid", "GuidedAncestral", "HEUN", "HMC",
    "HalfLogSNR", "History", "Hutchinson", "Hybrid", "IPNDM", "ImplicitScoreMatching", "Index",
    "Interpolated", "Karras", "KarrasHeun", "Kinetic", "KineticState", "Knots", "LMS",
    "Langevin", "LearnedVariance", "Level", "Likelihood", "LineIntegral", "LinearMeasurement",
    "LogNormalSigma", "LogProb", "LogSigma", "LogitNormal", "LossAwareKnots", "MALA",
    "MIDPOINT", "MLP", "MMD", "Metric", "Metropolis", "MinSNR", "MissingModes", "Mixture",
    "ModeCovariances", "ModeErrors", "ModeMeans", "ModeWeights", "Modes", "MomentError",
    "Multistep", "NCSNStep", "NCSNv2Step", "Negated", "Noise", "NoiseContrastive", "Noisy",
    "NotAffineError", "OBABO", "Objective", "OptimalGaussian", "Order", "OutputLaw", "PNDM",
    "Parameterization", "Particles", "PersistentContrastiveDivergence", "PiGDM", "Picard",
    "PicardState", "PolyExponential", "Polynomial", "PolynomialDecay", "PolynomialModel",
    "Potential", "Prediction", "PredictorCorrector", "ProbabilityFlow", "Product", "Quadratic",
    "RK4", "Raw", "RePaint", "Reconstruction", "RectifiedSDE", "Replacement", "ReplayBuffer",
    "ReplayNoise", "Restart", "RestartGrid", "ReverseDiffusion", "Reversed", "Row", "SASolver",
    "SDE", "SDEDPMSolverPP", "SDEDPMSolverPP2S", "SEEDS2", "SGLD", "SNRLangevin", "SampleNoise",
    "Sampler", "Score", "ScoreEnergy", "ScoreModel", "ScoreNetwork", "Simple", "Sinusoids",
    "SlicedScoreMatching", "SlicedWasserstein", "Solver", "Staircase", "StaticSDE", "Status",
    "Step", "StepSize", "StochasticHeun", "Stratified", "Strided", "SubVPSDE", "SumOfTerms",
    "TMPD", "Tableau", "TauBand", "Tempered", "TimeLaw", "Times", "TorchNoise", "TrainStep",
    "TrainingError", "TunedState", "TwistedSMC", "UNet", "UniPC", "UniformLam", "UniformLamLaw",
    "UniformLaw", "UniformTime", "Unit", "V", "VESDE", "VPSDE", "Variance", "VariationalBound",
    "Velocity", "VelocityAB", "Weight", "X0", "ZigZag", "analyse", "annealed_importance",
    "autocorrelation", "autocorrelation_time", "bits_per_dim", "bits_report", "bits_table",
    "bound", "card", "chain_report", "check_energy_sign", "checkerboard", "compare",
    "continuous_bound", "curl", "decode", "dequantise", "digits", "digits_classifier",
    "digits_features", "digits_model", "eight_gaussians", "eight_gaussians_modes", "encode",
    "energy_change", "energy_distance_1d", "energy_from_score", "energy_of", "ess",
    "exact_flow", "fingerprint", "fit", "from_distribution", "from_levels", "from_torchebm",
    "gaussian_error", "gaussian_fisher", "gaussian_kl", "gaussian_mmd2", "gaussian_model",
    "gaussian_w2", "grid_modes", "importance_bound", "is_affine", "isotropic_kl",
    "last_move_defect", "leapfrog", "line_integral", "load", "log_prob", "markdown",
    "mode_errors", "moons", "observed_order", "ot_map", "output_law", "plot_quality",
    "plot_samples", "rank_normalised", "rings", "run_chains", "save", "sixteen_modes",
    "split_rhat", "strong_error", "swiss_roll", "thermodynamic_integration", "title",
    "to_levels", "to_torchebm", "trajectory_grid",
]
# fmt: on
