"""The pages say what is true: their references exist, their commands run, their formulas hold."""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import inspect
import io
import itertools
import math
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from cases import F64, Silent, mixture, normal, tensor
from torch import Tensor

from scoregen import (
    EDMSDE,
    VPSDE,
    Ancestral,
    DiscreteVPSDE,
    Gaussian,
    GaussianMixture,
    Level,
    Potential,
    RectifiedSDE,
    Sampler,
    ScoreModel,
    Times,
)
from scoregen.analysis import output_law
from scoregen.densities import gaussian_kl, isotropic_kl
from scoregen.likelihood import GaussianDecoder, bound, importance_bound
from scoregen.mcmc import PolynomialDecay
from scoregen.noise import ReplayNoise
from scoregen.solvers import ReverseDiffusion
from scoregen.solvers.ancestral import posterior

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
# those of reference/api are written when the pages are built
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if {"_build", "api"}.isdisjoint(page.parts)]
README = ROOT / "README.md"
MATHEMATICS = (DOCS / "explanation" / "mathematics.md").read_text()

ROWS = range(1, 42)

OBJECT = re.compile(r"\{py:(?:obj|class|func|meth|mod)\}`~?([\w.]+)`")
TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::([\w:]+))?`")
FENCE = re.compile(r"^```([\w{}-]*)[^\n]*\n(.*?)^```", re.M | re.S)


def sections() -> dict[str, str]:
    """{"12": text of that row, "A1": text of that derivation} of the page of formulas."""
    parts = re.split(r"^### ((?:A)?\d+)\. ", MATHEMATICS, flags=re.M)
    texts = [re.split(r"^## ", part, flags=re.M)[0] for part in parts[2::2]]
    return dict(zip(parts[1::2], texts, strict=True))


def blocks(text: str, *languages: str) -> list[str]:
    return [body for language, body in FENCE.findall(text) if language in languages]


# References


def test_every_formula_has_its_row_once() -> None:
    numbers = re.findall(r"^### (\d+)\. ", MATHEMATICS, flags=re.M)
    assert sorted(numbers, key=int) == [str(row) for row in ROWS]


@pytest.mark.parametrize("number", sections())
def test_every_row_has_a_formula_code_and_a_test(number: str) -> None:
    text = sections()[number]
    assert text.count("$$") >= 2
    assert OBJECT.search(text), "name the code that reads like the formula"
    assert TEST.search(text), "name the test that checks it"


def documented() -> set[str]:
    """The modules and functions that the API page lists."""
    text = (DOCS / "reference" / "api.md").read_text()
    packages = {f"scoregen.{name}" for name in re.findall(r"^api/(\w+)$", text, flags=re.M)}
    return packages | set(re.findall(r"auto\w+:: ([\w.]+)", text)) | {"scoregen"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_object_that_a_page_names_is_public(page: Path) -> None:
    wrong = []
    for name in sorted(set(OBJECT.findall(page.read_text()))):
        parts = name.split(".")
        module = next(
            (m for n in range(len(parts), 0, -1) if (m := ".".join(parts[:n])) in documented()),
            None,
        )
        if module is None:
            wrong.append(f"{name}: its module is not on the API page")
            continue
        try:
            loaded: Any = importlib.import_module(module)
        except ModuleNotFoundError:  # a function of its own on the page
            module = module.rpartition(".")[0]
            loaded = importlib.import_module(module)
        inside = parts[len(module.split(".")) :]
        if inside and inside[0] not in loaded.__all__:
            wrong.append(f"{name}: not in the __all__ of {module}")
            continue
        try:
            functools.reduce(getattr, inside, loaded)
        except AttributeError as error:
            wrong.append(f"{name}: {error}")
    assert wrong == []


@functools.cache
def names_in(path: str) -> frozenset[str]:
    """Names of the tests in a file: "test_x", or "TestX::test_y"."""
    found = set()
    for node in ast.parse((ROOT / path).read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            inner = (n for n in node.body if isinstance(n, ast.FunctionDef))
            found |= {f"{node.name}::{n.name}" for n in inner}
    return frozenset(name for name in found if name.split("::")[-1].startswith("test_"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    wrong = [
        f"{path}::{name}"
        for path, name in sorted(set(TEST.findall(page.read_text())))
        if not (ROOT / path).is_file() or (name and name not in names_in(path))
    ]
    assert wrong == []


def public() -> dict[str, Any]:
    """Everything that a package on the API page exports, by its bare name; and the packages."""
    names = sorted(name for name in documented() if "posterior" not in name)
    packages = {name: importlib.import_module(name) for name in names}
    short = {name.rpartition(".")[2]: package for name, package in packages.items()}
    return short | {
        name: getattr(package, name) for package in packages.values() for name in package.__all__
    }


def wrong_code(code: str, known: dict[str, Any]) -> list[str]:
    """Classes, functions and arguments in an expression that do not exist."""
    try:
        tree = ast.parse(code, mode="eval")
    except SyntaxError:
        return [f"{code}: not an expression"]
    wrong = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id[0].isupper() and len(node.id) > 1:
            wrong += [] if node.id in known else [f"{code}: no {node.id}"]
        if isinstance(node, ast.Call):
            called = node.func
            while isinstance(called, ast.Attribute) and not isinstance(called.value, ast.Name):
                called = called.value
            name = ast.unparse(called)
            target: Any = known.get(name.split(".")[0])
            if target is None:
                continue
            target = functools.reduce(getattr, name.split(".")[1:], target)
            try:
                inspect.signature(target).bind(
                    *node.args, **{k.arg: 0 for k in node.keywords if k.arg}
                )
            except TypeError as error:
                wrong.append(f"{code}: {error}")
    return wrong


def test_the_right_column_of_the_dictionary_is_code() -> None:
    text = (DOCS / "reference" / "coming-from.md").read_text()
    rows = [line for line in text.splitlines() if line[:2] == "| "]
    cells = [row.split(" | ")[-1] for row in rows]
    codes = [code for cell in cells for code in re.findall(r"`([^`]+)`", cell)]
    known = public()
    assert len(codes) > 60
    ours = [code for code in codes if "(" in code or code.isidentifier()]
    assert [w for code in ours for w in wrong_code(code, known)] == []


def test_code_that_does_not_exist_is_found() -> None:
    known = public()
    assert wrong_code("DDIM(0.5)", known) == []
    assert wrong_code("DiscreteVPSDE.linear(1000)", known) == []
    for code in ("DDIN(0.5)", "DDIM(0.5, 2)", "DDIM(ETA=1)", "Sampler(DDIM(a=1), Knots())", "("):
        assert len(wrong_code(code, known)) == 1, code


# Commands and code


def commands(text: str) -> list[list[str]]:
    """The shell commands of a page, word by word, without prompts, comments and continuations."""
    found = []
    for language, body in FENCE.findall(text):
        for line in body.replace("\\\n", " ").splitlines():
            if language in ("bash", "sh", "shell") or (
                language == "console" and line.startswith("$ ")
            ):
                found.append(shlex.split(line.removeprefix("$ ").split(" #")[0]))
    return [words for words in found if words and not words[0].startswith("#")]


def inline_commands(text: str) -> list[list[str]]:
    """The same of code within a sentence; of `scoregen sample | compare` each command."""
    found = []
    for code in re.findall(r"`((?:scoregen|make) [^`]*)`", FENCE.sub("", text)):
        first, *others = code.split(" | ")
        found.append(shlex.split(first))
        found += [[found[-1][0], *shlex.split(other)] for other in others]
    return [words for words in found if words[1] not in ("COMMAND", "...")]


def wrong_commands(text: str) -> list[str]:
    """Make targets and subcommands that do not exist, and arguments that these do not take."""
    from scoregen.cli import COMMANDS

    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    wrong = []
    for words in [*commands(text), *inline_commands(text)]:
        if words[0] == "make":
            wrong += [
                f"make {w}" for w in words[1:] if "=" not in w and w[0] != "-" and w not in targets
            ]
        elif words[0].split("/")[-1] == "scoregen" and len(words) > 1 and words[1][0] != "-":
            if words[1] not in COMMANDS:
                wrong.append(f"scoregen {words[1]}")
            elif len(words) > 2:  # without arguments it is only named
                error = refused(words[1], tuple(words[2:]))
                wrong += [f"scoregen {words[1]}: {error}"] if error else []
    return wrong


@functools.cache
def refused(command: str, arguments: tuple[str, ...]) -> str:
    """What the parser of a subcommand has against its arguments; the command is not run."""
    from scoregen.cli import COMMANDS

    @functools.wraps(COMMANDS[command])
    def nothing(*_: Any, **__: Any) -> None: ...

    with (
        contextlib.redirect_stderr(io.StringIO()) as shown,
        contextlib.redirect_stdout(io.StringIO()),
    ):
        try:
            tyro.cli(nothing, args=arguments, prog=f"scoregen {command}")
        except SystemExit as left:
            # without the title, the rules and the advice to read --help
            lines = [line.strip() for line in shown.getvalue().splitlines()]
            kept = [line for line in lines[1:] if line and not line.startswith(("-", "For full"))]
            return " ".join(kept) if left.code else ""
    return ""


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.name)
def test_commands_on_a_page_exist(page: Path) -> None:
    assert wrong_commands(page.read_text()) == []


def test_commands_that_do_not_exist_are_found() -> None:
    text = "```bash\nmake demo\nmake tea  # now\nscoregen sample --seed 1 \\\n  --sugar 2\n"
    text += "scoregen brew\npip install x\n```\n"
    target, option, command = wrong_commands(text)
    assert (target, command) == ("make tea", "scoregen brew")
    assert option.startswith("scoregen sample: Unrecognized options: --sugar")


@pytest.mark.parametrize(
    "code",
    [
        "scoregen tune digits",
        "scoregen tune digits --nfe 5",
        "scoregen tune --nfe five",
        "scoregen tune\n--nfe 5 --steps 3",
        "scoregen sample | brew | ...",
        "make tea",
    ],
)
def test_a_wrong_command_within_a_sentence_is_found(code: str) -> None:
    assert len(wrong_commands(f"Type `{code}`, then read `x`.")) == 1


@pytest.mark.parametrize("code", ["scoregen tune --nfe 5", "scoregen COMMAND --help", "make lint"])
def test_a_right_command_within_a_sentence_passes(code: str) -> None:
    assert wrong_commands(f"Type `{code}`.") == []
    assert wrong_commands("`scoregen versus` is named without its arguments") == []


def test_the_readme_shows_the_two_commands_and_some_python() -> None:
    text = README.read_text()
    if len(text.splitlines()) <= 10:
        return  # a title says nothing that could be wrong
    assert blocks(text, "python"), "the README must show Python that runs"
    shown = commands(text)
    assert ["make", "demo"] in shown
    assert ["make", "test"] in shown


# What the rows of the README's table take for granted.
GIVEN = """
import torch
import scoregen as sg

model, label = sg.digits_model(), torch.tensor([3, 4])
digits = sg.digits("test").x[:2]
sampler = sg.Sampler(sg.DDIM(), sg.UniformLam(4))
samplers, steps = {"DDIM": sampler}, (4,)
metrics = [sg.metrics.SlicedWasserstein()]
net = sg.MLP(event=(2,), hidden=16)
mine = sg.ScoreNetwork(net, sg.VPSDE(), sg.V())
data = sg.Data(sg.data.rings(256, seed=0))
"""
# how far a row is run beyond the line itself
THEN = {
    "sg.from_velocity": "made(torch.zeros(2, 2), 0.5)",
    "sg.ScoreNetwork": "made(torch.zeros(2, 2), 0.5)",
    "sg.ClassifierFree": "sampler.sample(made, (2, 1, 8, 8), condition={'label': label})",
    "sg.Sampler": "made.with_steps(2).sample(sg.Potential(lambda x: (x**2).sum(1) / 2), (2, 1))",
    "sg.energy_from_score": "made(torch.zeros(2, 1, 8, 8), 0.1)",
    "sg.fit": "list(made)",
}


def readme_rows() -> list[str]:
    """The right column of the table "you want to | you type"."""
    return re.findall(r"^\| [^|]+ \| `([^`]+)` \|$", README.read_text(), flags=re.M)


@pytest.mark.parametrize("code", readme_rows())
def test_every_row_of_the_readme_runs(code: str) -> None:
    scope: dict[str, Any] = {}
    with torch.random.fork_rng():
        exec(GIVEN, scope)
        if code.startswith("sg.compare"):
            code = code.replace("model", "mine", 1)[:-1] + ".x, samples=50)"
        if code.startswith("sg.tune"):
            code = code[:-1] + ", trajectories=32, progress=False)"
        if code.startswith("sg.log_prob"):
            code = code[:-1] + ", trace=sg.likelihood.Hutchinson(), rtol=1e-3, atol=1e-3)"
        scope["made"] = eval(code, scope)
        then = THEN.get(code.partition("(")[0])
        if then is not None:
            exec(then, scope)


# The chain

CHAIN = DiscreteVPSDE((0.1, 0.25, 0.4, 0.3))


def chain_levels(sde: DiscreteVPSDE = CHAIN) -> list[Level]:
    """Levels 0, 1 .. T; entry t is that of x_t."""
    return sde.levels((0.0, *sde.knots))


def hermite(nodes: int = 40) -> tuple[Tensor, Tensor]:
    """Nodes and weights that integrate against N(0, 1)."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    return torch.from_numpy(points), torch.from_numpy(weights / weights.sum())


def log_normal(x: Any, mean: Any, variance: Any) -> Tensor:
    gap = torch.as_tensor(x - mean, dtype=F64)
    variance = torch.as_tensor(variance, dtype=F64)
    return -0.5 * (gap**2 / variance + variance.log() + math.log(2 * math.pi))


def test_the_transitions_multiply_to_the_joint_normal_law() -> None:
    # covariance of x_s and x_t from the levels; density from the betas, one transition at a time
    x0, path = 0.7, normal(len(CHAIN.betas), seed=3)
    before = torch.cat([tensor(x0), path[:-1]])
    betas = tensor(*CHAIN.betas)
    product = log_normal(path, (1 - betas).sqrt() * before, betas).sum()
    levels = chain_levels()[1:]
    mean = tensor(*(level.alpha for level in levels)) * x0
    covariance = torch.stack(
        [
            tensor(*(max(a.alpha, b.alpha) ** -2 * a.alpha * b.alpha * least(a, b) for b in levels))
            for a in levels
        ]
    )
    joint = torch.distributions.MultivariateNormal(mean, covariance)
    torch.testing.assert_close(product, joint.log_prob(path), rtol=1e-12, atol=1e-12)


def least(a: Level, b: Level) -> float:
    return min(a.sigma, b.sigma) ** 2


def test_two_steps_add_their_variances() -> None:
    _, first, second, *_ = chain_levels()
    a1, a2 = (1 - beta for beta in CHAIN.betas[1:3])
    start, _, end = first, second, chain_levels()[3]
    kept, fresh = math.sqrt(a1 * a2), 1 - a1 * a2
    assert end.alpha / start.alpha == pytest.approx(kept, rel=1e-14)
    assert posterior(end, start)[3] == pytest.approx(fresh, rel=1e-14)
    assert a2 * (1 - a1) + (1 - a2) == pytest.approx(fresh, rel=1e-14)
    # unit variance stays; without the roots it would not
    assert kept**2 + fresh == pytest.approx(1, rel=1e-14)
    assert abs((a1 * a2) ** 2 + fresh**2 - 1) > 0.1


def test_a_product_of_normal_draws_is_not_normal() -> None:
    z, w = hermite()
    pair = w[:, None] * w[None, :]
    product = z[:, None] * z[None, :]
    assert float((pair * product**2).sum()) == pytest.approx(1)
    assert float((pair * product**4).sum()) == pytest.approx(9)
    total = (0.6 * z[:, None] + 0.8 * z[None, :]) ** 4
    assert float((pair * total).sum()) == pytest.approx(3)


@pytest.mark.parametrize("alpha_bar", [0.9, 0.3])
def test_the_posterior_variance_forgets_what_carries_nothing(alpha_bar: float) -> None:
    # beta -> 1: x_t says nothing of x_{t-1}, whose variance must be that of q(x_{t-1} | x_0)
    sde = DiscreteVPSDE((1 - alpha_bar, 1 - 1e-12))
    _, s, t = chain_levels(sde)
    small = posterior(t, s)[2]
    assert small == pytest.approx(1 - alpha_bar, rel=1e-9)
    assert small != pytest.approx(1 - math.sqrt(alpha_bar), rel=1e-2)
    # and in general precisions add: that of the step, and that of what came before it
    _, s, t, *_ = chain_levels()
    beta = CHAIN.betas[1]
    assert 1 / posterior(t, s)[2] == pytest.approx((1 - beta) / beta + 1 / s.sigma**2, rel=1e-12)


def test_a_state_without_noise_has_a_posterior_mean_without_noise() -> None:
    for s, t in itertools.pairwise(chain_levels()[1:]):
        c0, c1, *_ = posterior(t, s)
        assert c1 > 0
        assert c1 * t.alpha + c0 == pytest.approx(s.alpha, rel=1e-14)


# The reverse chain


@pytest.mark.parametrize("sde", [CHAIN, DiscreteVPSDE.linear(1000)], ids=["short", "DDPM"])
def test_the_ancestral_mean_is_one_number_in_three_forms(sde: DiscreteVPSDE) -> None:
    model = mixture(sde)
    x = normal(16, 2, seed=5)
    for s, t, beta in itertools.islice(
        zip(chain_levels(sde)[1:], chain_levels(sde)[2:], sde.betas[1:], strict=False), 0, None, 37
    ):
        p = model(x, t)
        root, std = math.sqrt(1 - beta), math.sqrt(1 - t.alpha**2)
        by_eps = (x - beta / std * p.eps) / root
        by_score = (x + beta * p.score) / root
        moved, _ = Ancestral("large").step(model, x, t, s, None, Silent())
        torch.testing.assert_close(by_eps, by_score, rtol=0, atol=1e-14 / root)
        torch.testing.assert_close(moved, by_eps, rtol=1e-12, atol=1e-12)


def test_the_chain_is_the_integral_over_its_path() -> None:
    # p(x_1) by integrating out x_2 .. x_T on a lattice, against the law read off the sampler
    sampler = Sampler(Ancestral("large"), Times(*CHAIN.knots[::-1]))
    law = output_law(sampler, CHAIN, (0.3,), 0.5, start="prior")
    model = Gaussian(CHAIN, tensor(0.5), 0.3)
    lattice = torch.linspace(-9, 9, 1201, dtype=F64)
    width = float(lattice[1] - lattice[0])
    density = log_normal(lattice, 0.0, 1.0).exp()
    levels = chain_levels()[:0:-1]
    for t, s in itertools.pairwise(levels):
        x0 = model(lattice[:, None], t).x0[:, 0]
        c0, c1, _, large = posterior(t, s)
        kernel = log_normal(lattice[None, :], (c1 * lattice + c0 * x0)[:, None], large).exp()
        density = width * density @ kernel
    mean = float(width * (density * lattice).sum())
    variance = float(width * (density * (lattice - mean) ** 2).sum())
    assert width * float(density.sum()) == pytest.approx(1, abs=1e-10)
    assert float(law.mean) == pytest.approx(mean, abs=1e-9)
    assert float(law.variance) == pytest.approx(variance, rel=1e-9)


# The bound


def path_terms(model: ScoreModel, x0: Tensor, path: list[Tensor]) -> tuple[Tensor, Tensor]:
    """log p(x_{0:T}) - log q(x_{1:T} | x_0), with q in its forward and in its Bayes form."""
    levels = chain_levels()
    states = [x0, *path]
    forward = sum(
        log_normal(states[i + 1], math.sqrt(1 - beta) * states[i], beta)
        for i, beta in enumerate(CHAIN.betas)
    )
    by_bayes = log_normal(path[-1], levels[-1].alpha * x0, levels[-1].sigma ** 2)
    model_side = log_normal(path[-1], 0.0, 1.0)
    for i in range(len(CHAIN.betas), 0, -1):
        t, s = levels[i], levels[i - 1]
        c0, c1, small, large = posterior(t, s)
        x0_hat = model(states[i], t).x0
        if i > 1:
            by_bayes = by_bayes + log_normal(states[i - 1], c0 * x0 + c1 * states[i], small)
            mean = c0 * x0_hat + c1 * states[i]
            model_side = model_side + log_normal(states[i - 1], mean, large)
        else:
            model_side = model_side + log_normal(x0, x0_hat, large)
    return (model_side - forward).sum(1), (model_side - by_bayes).sum(1)


def test_the_bound_regroups_on_every_path() -> None:
    # conditioning on x_0 and Bayes change no number: not only the means agree, every path does
    model = mixture(CHAIN)
    x0 = normal(5, 2, seed=1)
    draws = [normal(5, 2, seed=10 + i) for i in range(len(CHAIN.betas))]
    levels = chain_levels()
    state = levels[-1].alpha * x0 + levels[-1].sigma * draws[0]
    path = [state]
    for draw, t, s in zip(draws[1:], levels[:1:-1], levels[-2:0:-1], strict=True):
        c0, c1, small, _ = posterior(t, s)
        state = c0 * x0 + c1 * state + math.sqrt(small) * draw
        path.insert(0, state)
    forward, by_bayes = path_terms(model, x0, path)
    torch.testing.assert_close(forward, by_bayes, rtol=1e-12, atol=1e-12)
    ours = importance_bound(model, x0, samples=1, variance="large", noise=ReplayNoise(draws))
    torch.testing.assert_close(-ours, forward, rtol=1e-12, atol=1e-12)


def test_the_terms_of_the_bound_are_the_divergences_they_are_called() -> None:
    model = mixture(CHAIN)
    x0 = normal(6, 2, seed=2)
    draws = [normal(6, 2, seed=20 + i) for i in range(len(CHAIN.betas))]
    terms = bound(
        model, x0, variance="large", decoder=GaussianDecoder(1.0), noise=ReplayNoise(draws)
    )
    levels = chain_levels()[::-1]
    top = isotropic_kl(levels[0].alpha * x0, levels[0].sigma, torch.zeros_like(x0), 1.0)
    torch.testing.assert_close(terms.prior, top)
    for i, (t, s) in enumerate(itertools.pairwise(levels)):
        x = t.alpha * x0 + t.sigma * draws[i]
        said = model(x, t).x0
        c0, c1, small, large = posterior(t, s)
        if s.sigma > 0:
            means = (c0 * x0 + c1 * x, c0 * said + c1 * x)
            step = isotropic_kl(means[0], math.sqrt(small), means[1], math.sqrt(large))
            torch.testing.assert_close(terms.steps[:, i], step)
        else:
            half = (x0 - said).square().sum(1) / 2 + math.log(2 * math.pi)
            torch.testing.assert_close(terms.data, half)
    total = terms.prior + terms.steps.sum(1) + terms.data
    torch.testing.assert_close(terms.total, total)


def test_at_equal_variances_a_step_is_the_distance_of_the_means() -> None:
    model = mixture(CHAIN)
    x0, draws = normal(6, 2, seed=2), [normal(6, 2, seed=20 + i) for i in range(4)]
    steps = bound(model, x0, variance="small", noise=ReplayNoise(draws)).steps
    for i, (t, s) in enumerate(itertools.pairwise(chain_levels()[:0:-1])):
        said = model(t.alpha * x0 + t.sigma * draws[i], t)
        c0, _, small, _ = posterior(t, s)
        gap = (c0 * (x0 - said.x0)).square().sum(1) / (2 * small)
        torch.testing.assert_close(steps[:, i], gap)


def linear_pair() -> tuple[Gaussian, Level, Tensor, Tensor, Tensor]:
    """p(z) Gaussian with z = x_0, p(x | z) the perturbation: model, level, x, mean, covariance."""
    covariance = torch.tensor([[0.8, 0.3], [0.3, 0.5]], dtype=F64)
    model = Gaussian(VPSDE(), tensor(0.4, -0.2), covariance)
    level = model.sde.level(0.4)
    x = normal(3, 2, seed=7)
    total = level.alpha**2 * covariance + level.sigma**2 * torch.eye(2, dtype=F64)
    spread = level.sigma**2 * covariance @ torch.linalg.inv(total)
    return model, level, x, model(x, level).x0, (spread + spread.mT) / 2


def log_joint(model: Gaussian, level: Level, x: Tensor, z: Tensor) -> Tensor:
    return model.log_prob(z) + log_normal(x, level.alpha * z, level.sigma**2).sum(-1)


def test_bayes_rule_gives_the_density_at_any_latent() -> None:
    model, level, x, mean, covariance = linear_pair()
    for seed in range(3):
        z = 3 * normal(3, 2, seed=seed)
        law = torch.distributions.MultivariateNormal(mean, covariance)
        ratio = log_joint(model, level, x, z) - law.log_prob(z)
        torch.testing.assert_close(ratio, model.log_prob(x, level), rtol=1e-12, atol=1e-12)


def test_the_elbo_misses_the_density_by_a_divergence() -> None:
    model, level, x, mean, covariance = linear_pair()
    points, weights = hermite(8)
    u = torch.cartesian_prod(points, points)
    w = torch.cartesian_prod(weights, weights).prod(1)
    guess, scale = tensor(0.1, 0.3), tensor(0.9, 0.5)
    z = guess + scale * u
    log_q = log_normal(z, guess, scale**2).sum(1)
    for row, centre in zip(x, mean, strict=True):
        elbo = (w * (log_joint(model, level, row.expand_as(z), z) - log_q)).sum()
        gap = gaussian_kl(guess, torch.diag(scale**2), centre, covariance)
        truth = model.log_prob(row[None], level)[0]
        assert float(elbo + gap) == pytest.approx(float(truth), rel=1e-12)
        assert float(gap) > 0.01


# Losses


def lattice_expectation(values: Tensor, density: Tensor, width: float) -> float:
    return float(width * (values * density).sum())


def test_hyvarinens_form_needs_no_score_of_the_data() -> None:
    # E_p [|s|^2 / 2 + div s] = E_p |s - grad log p|^2 / 2 - E_p |grad log p|^2 / 2, p a mixture
    sde = EDMSDE()
    data = GaussianMixture(sde, tensor(0.3, 0.7), tensor(-1.0, 1.2)[:, None], tensor(0.2, 0.4))
    level = sde.level(0.5)
    x = torch.linspace(-12, 12, 6001, dtype=F64)
    width, column = float(x[1] - x[0]), x[:, None]
    density = data.log_prob(column, level).exp()
    truth = data(column, level).score[:, 0]
    for mean, variance in ((0.0, 1.0), (0.5, 0.1)):
        model = Gaussian(sde, tensor(mean), variance)
        said = model(column, level).score[:, 0]
        slope = torch.full_like(x, -1 / (variance + level.sigma**2))
        implicit = lattice_expectation(said**2 / 2 + slope, density, width)
        explicit = lattice_expectation((said - truth) ** 2 / 2, density, width)
        own = lattice_expectation(truth**2 / 2, density, width)
        assert implicit == pytest.approx(explicit - own, rel=1e-9)


# Scores, energies, Langevin


def test_the_score_of_an_energy_needs_no_normaliser() -> None:
    def quartic(x: Tensor) -> Tensor:
        return x.pow(4).sum(1) / 4 + x.square().sum(1)

    x = torch.linspace(-6, 6, 4001, dtype=F64)[:, None]
    width = float(x[1] - x[0])
    normaliser = width * float((-quartic(x)).exp().sum())
    log_p = -quartic(x) - math.log(normaliser)
    slope = torch.gradient(log_p, spacing=width)[0][1000:-1000]
    for shift in (0.0, 5.0):
        model = Potential(lambda x, shift=shift: quartic(x) + shift)
        score = model.score(x, 0.0).detach()[1000:-1000, 0]
        torch.testing.assert_close(score, slope, rtol=0, atol=1e-4)


def test_decaying_steps_walk_for_ever_and_quieten() -> None:
    decay, power = PolynomialDecay(1.0, power=0.55), 0.55
    moves = np.array([decay(k) for k in range(100_000)])
    assert moves.sum() / moves[:1000].sum() == pytest.approx(100 ** (1 - power), rel=0.05)
    assert (moves**2).sum() < 1 + 1 / (2 * power - 1)


# Continuous time


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0], ids=["ODE", "half", "SDE"])
@pytest.mark.parametrize("sde", [VPSDE(), EDMSDE(), RectifiedSDE()], ids=lambda s: type(s).__name__)
def test_every_reverse_process_moves_the_density(sde: Any, share: float) -> None:
    # d/dt p = -d/dx [(f x - (1 + share^2)/2 g^2 score) p] - share^2/2 g^2 d^2/dx^2 p
    data = GaussianMixture(sde, tensor(0.3, 0.7), tensor(-1.0, 1.2)[:, None], tensor(0.2, 0.4))
    time, d = 0.4 if sde.t_max == 1 else 0.8, 1e-3
    x = torch.linspace(-3, 3, 41, dtype=F64)

    def density(at: Tensor, t: float) -> Tensor:
        return data.log_prob(at[:, None], t).exp()

    f, g2 = (float(c(tensor(time))) for c in (sde.f, sde.g2))

    def flux(at: Tensor) -> Tensor:
        p = data(at[:, None], time)
        drift = p.velocity[:, 0] - share**2 / 2 * g2 * p.score[:, 0]
        by_rates = f * at - (1 + share**2) / 2 * g2 * p.score[:, 0]
        torch.testing.assert_close(drift, by_rates, rtol=1e-10, atol=1e-10)
        return drift * density(at, time)

    change = (density(x, time + d) - density(x, time - d)) / (2 * d)
    spread = (density(x + d, time) - 2 * density(x, time) + density(x - d, time)) / d**2
    moved = -(flux(x + d) - flux(x - d)) / (2 * d) - share**2 / 2 * g2 * spread
    torch.testing.assert_close(change, moved, rtol=1e-3, atol=3e-5)


def test_reverse_diffusion_differs_from_ddpm_by_a_square_of_beta() -> None:
    for steps in (200, 400):
        sde = DiscreteVPSDE((2 / steps,) * steps)
        model = mixture(sde)
        x = normal(5, 2, seed=1)
        s, t = chain_levels(sde)[100:102]
        mean, other = (
            solver.step(model, x, t, s, None, Silent())[0]
            for solver in (Ancestral("large"), ReverseDiffusion())
        )
        beta = 2 / steps
        expected = beta**2 * (x / 4 + model(x, t).score / 2)
        torch.testing.assert_close(mean - other, expected, rtol=0, atol=10 * beta**3)
        assert float(expected.abs().max()) > 2e-1 * beta**2


# Conditions


def test_bayes_adds_the_score_of_the_likelihood() -> None:
    # p(class | x) of a mixture: its gradient is the conditional score minus the unconditional one
    model = mixture(VPSDE())
    level, x = model.sde.level(0.3), normal(6, 2, seed=3)
    part = Gaussian(model.sde, tensor(1.0, 1.0), torch.tensor([[0.1, 0], [0, 0.1]], dtype=F64))

    def log_posterior(at: Tensor) -> Tensor:
        return math.log(0.5) + part.log_prob(at, level) - model.log_prob(at, level)

    moving = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(log_posterior(moving).sum(), moving)
    expected = part(x, level).score - model(x, level).score
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-9)
