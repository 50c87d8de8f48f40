"""The rules that a machine can check: order of imports, sizes, forbidden calls, names."""

from __future__ import annotations

import ast
import graphlib
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "scoregen"

# A package imports only from those before its own; a trailing slash means a folder, whole.
LAYERS = (
    "_version",
    "_checks",
    "_families",
    "_files",
    "_figures",
    "_rows",
    "_identity/",
    "_ode",
    "processes/",
    "noise/",
    "grids/",
    "models/",
    "densities/",
    "networks/",
    "sampling/",
    "solvers/",
    "guidance/",
    "energies/",
    "inverse/",
    "mcmc/",
    "likelihood/",
    "analysis/",
    "objectives/",
    "metrics/",
    "data/",
    "training/",
    "flowmaps/",
    "latent/",
    "baselines/",
    "tuning/",
    "comparison/",
    "interop/",
    "cli/",
    "__init__",
    "__main__",
)
LONGEST = 400
TIMELESS = ("solvers/", "sampling/", "models/")

FORBIDDEN_IMPORTS = {
    "pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal",
    "random", "torchvision", "tensorflow", "jax", "mpi4py",
}  # fmt: skip
GLOBAL_SEEDS = {
    "torch.manual_seed", "torch.seed", "torch.random.manual_seed", "torch.random.seed",
    "torch.cuda.manual_seed", "torch.cuda.manual_seed_all",
}  # fmt: skip
TORCH_DRAWS = {
    "rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like",
    "normal", "bernoulli", "multinomial", "poisson", "binomial",
}  # fmt: skip
INPLACE_DRAWS = {
    "normal_", "uniform_", "bernoulli_", "exponential_", "random_", "cauchy_", "geometric_",
    "log_normal_", "trunc_normal_", "xavier_uniform_", "xavier_normal_", "kaiming_uniform_",
    "kaiming_normal_", "orthogonal_", "sparse_",
}  # fmt: skip
NUMPY_STREAMS = {
    "Generator", "Philox", "PCG64", "SeedSequence", "BitGenerator", "default_rng",
}  # fmt: skip


def python_files(package: Path) -> list[Path]:
    return sorted(package.rglob("*.py"))


def module_parts(path: Path, package: Path) -> tuple[str, ...]:
    """("solvers", "ddim") for solvers/ddim.py, ("solvers", "__init__") for its __init__."""
    return path.relative_to(package).with_suffix("").parts


def layer_of(parts: tuple[str, ...]) -> str:
    return parts[0] if len(parts) == 1 else f"{parts[0]}/"


def resolve(parts: list[str], package: Path) -> tuple[str, ...] | None:
    """The file that a dotted path below the package stands for, or None if there is none."""
    if parts and package.joinpath(*parts).with_suffix(".py").is_file():
        return tuple(parts)
    if package.joinpath(*parts, "__init__.py").is_file():
        return (*parts, "__init__")
    return None


def imported(path: Path, root: Path) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(line, file) for every import of the package's own files, also inside functions."""
    package = [root.name, *path.relative_to(root).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        targets: list[list[str]] = []
        if isinstance(node, ast.Import):
            targets = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            # `from . import sde` names a file, `from .sde import SDE` a thing in one
            targets = [[*base, alias.name] for alias in node.names]
        for target in targets:
            if target[0] != root.name:
                continue
            found = resolve(target[1:], root) or resolve(target[1:-1], root)
            if found is None:
                yield node.lineno, ("missing", ".".join(target))
            else:
                yield node.lineno, found


def order_violations(package: Path) -> list[str]:
    wrong: list[str] = []
    folders: dict[str, graphlib.TopologicalSorter] = {}
    for path in python_files(package):
        here = module_parts(path, package)
        layer, name = layer_of(here), path.relative_to(package)
        if layer not in LAYERS:
            wrong.append(f"{name}: not in the list of layers; add it to LAYERS where it belongs")
            continue
        for line, there in imported(path, package):
            if there[0] == "missing":
                wrong.append(f"{name}:{line}: imports {there[1]}, which does not exist")
                continue
            other = layer_of(there)
            if other not in LAYERS:
                continue  # reported where that file is visited
            if other == layer:
                folders.setdefault(layer, graphlib.TopologicalSorter()).add(here, there)
            elif LAYERS.index(other) > LAYERS.index(layer):
                wrong.append(f"{name}:{line}: imports {'/'.join(there)}, which stands after it")
    for layer, graph in folders.items():
        try:
            graph.prepare()
        except graphlib.CycleError as error:
            cycle = " -> ".join("/".join(parts) for parts in reversed(error.args[1]))
            wrong.append(f"{layer}: the imports go in a circle: {cycle}")
    return wrong


def aliases(tree: ast.Module) -> dict[str, str]:
    """What each imported name stands for: {"np": "numpy", "randn": "torch.randn"}."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.split(".")[0]
                names[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def dotted(node: ast.expr, names: dict[str, str]) -> str:
    """`torch.randn` for the expression, through the file's own aliases; "" where it is no name."""
    if isinstance(node, ast.Name):
        return names.get(node.id, "")
    if isinstance(node, ast.Attribute):
        base = dotted(node.value, names)
        return f"{base}.{node.attr}" if base else ""
    return ""


def call_violation(node: ast.Call, names: dict[str, str]) -> str | None:
    called = dotted(node.func, names)
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    module, _, last = called.rpartition(".")
    if called in GLOBAL_SEEDS:
        return f"{called} moves the global generator: take a torch.Generator"
    if module == "numpy.random" and last not in NUMPY_STREAMS:
        return f"{called} uses numpy's global generator: take numpy.random.Generator"
    if called == "numpy.random.default_rng" and not node.args and not given:
        return "default_rng() without a seed cannot be repeated"
    attribute = node.func.attr if isinstance(node.func, ast.Attribute) else last
    draws = (module == "torch" and last in TORCH_DRAWS) or attribute in INPLACE_DRAWS
    if draws and "generator" not in given:
        return f"{attribute} draws from the global generator: pass generator="
    if called == "torch.load":
        value = given.get("weights_only")
        if not (isinstance(value, ast.Constant) and value.value is True):
            return "torch.load executes what it reads: pass weights_only=True"
    if called == "numpy.load" and "allow_pickle" in given:
        value = given["allow_pickle"]
        if not (isinstance(value, ast.Constant) and value.value is False):
            return "numpy.load with pickles executes what it reads: pass allow_pickle=False"
    return None


def source_violations(source: str, timeless: bool = False) -> list[str]:
    """Forbidden statements, calls and literals of one file, as "line: reason"."""
    tree = ast.parse(source)
    names = aliases(tree)
    wrong: list[str] = []
    for node in ast.walk(tree):
        reason: str | None = None
        if isinstance(node, ast.Assert):
            reason = "assert disappears under -O: raise ValueError or TypeError"
        elif isinstance(node, ast.ExceptHandler):
            kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            caught = {kind.id for kind in kinds if isinstance(kind, ast.Name)}
            if node.type is None or caught & {"Exception", "BaseException"}:
                reason = "catches everything: name the errors"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            tops = [module] if module else [alias.name for alias in node.names]
            outside = not (isinstance(node, ast.ImportFrom) and node.level)
            found = {top.split(".")[0] for top in tops} & FORBIDDEN_IMPORTS if outside else set()
            if found:
                reason = f"imports {', '.join(sorted(found))}"
        elif isinstance(node, ast.Call):
            reason = call_violation(node, names)
        elif timeless and isinstance(node, ast.Constant) and node.value in (999, 1000):
            reason = f"{node.value} looks like a hard-coded time: take it from the SDE"
        if reason:
            wrong.append(f"{node.lineno}: {reason}")
    return wrong


METAPHORS = re.compile(
    r"\b(rooms?|storeys?|doors?|microscopes?|walks?|walked|walking|leaps?|asked|told|tells)\b",
    re.IGNORECASE,
)


def word_violations(source: str) -> list[str]:
    """Metaphors where the field has a word: package, argument check, evaluated, given, runs."""
    return [
        f"{number}: {found[0]!r} where the field has a word"
        for number, line in enumerate(source.splitlines(), 1)
        if (found := METAPHORS.search(line))
    ]


def name_violations(source: str) -> list[str]:
    """Public names with get_, num_ or _fn: functions, methods, arguments and fields."""

    # what the interface of another library calls it
    theirs = {"num_inference_steps"}

    def bad(name: str) -> bool:
        foreign = name.startswith(("get_", "num_")) or (name.endswith("_fn") and name[0] != "_")
        return foreign and name not in theirs

    wrong: list[str] = []
    todo: list[ast.AST] = [ast.parse(source)]
    while todo:
        for node in ast.iter_child_nodes(todo.pop()):
            found: list[str] = []
            if isinstance(node, ast.ClassDef):
                if not node.name.startswith("_"):
                    todo.append(node)
                found = [node.name]
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                # of the underscored functions, these two have public arguments
                if node.name in ("__init__", "__call__") or node.name[0] != "_":
                    every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                    found = [node.name, *(argument.arg for argument in every)]
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found = [node.target.id]
            elif isinstance(node, ast.Assign):
                found = [target.id for target in node.targets if isinstance(target, ast.Name)]
            wrong += [f"{node.lineno}: {name}" for name in found if bad(name)]
    return wrong


FILES = python_files(PACKAGE)


def test_files_import_only_from_layers_above() -> None:
    assert order_violations(PACKAGE) == []


def test_files_follow_the_rules() -> None:
    """Length, forbidden statements, names: every file of the package, by file and line."""
    wrong = []
    for path in FILES:
        name, text = path.relative_to(PACKAGE), path.read_text()
        if (lines := len(text.splitlines())) > LONGEST:
            wrong.append(f"{name}: {lines} lines: two ideas? split it")
        timeless = layer_of(module_parts(path, PACKAGE)) in TIMELESS
        wrong += [f"{name}:{line}" for line in source_violations(text, timeless)]
        wrong += [f"{name}:{line}" for line in name_violations(text)]
        wrong += [f"{name}:{line}" for line in word_violations(text)]
    assert wrong == []


def public_modules() -> list[str]:
    """Every package and every module with an `__all__`."""
    found = []
    for path in FILES:
        parts = [part for part in module_parts(path, PACKAGE) if part != "__init__"]
        text = path.read_text()
        if "__main__" not in parts and (path.name == "__init__.py" or "\n__all__" in text):
            found.append(".".join(["scoregen", *parts]))
    return found


def test_public_names_exist_and_show_an_example() -> None:
    wrong = []
    for module in public_modules():
        loaded = importlib.import_module(module)
        public = getattr(loaded, "__all__", [])
        if len(public) != len(set(public)):
            wrong.append(f"{module}: a name stands twice in __all__")
        wrong += [f"{module}.{name} does not exist" for name in public if not hasattr(loaded, name)]
        for name in public:
            thing = inspect.unwrap(getattr(loaded, name))
            ours = getattr(thing, "__module__", "").startswith("scoregen")
            shown = inspect.isclass(thing) or inspect.isroutine(thing)
            if ours and shown and ">>>" not in (thing.__doc__ or ""):
                wrong.append(f"{module}.{name}: no example (>>>) in the docstring")
    assert wrong == []


def test_the_top_level_stays_small() -> None:
    """What a reader of the README needs; everything else stands in its package."""
    top = importlib.import_module("scoregen").__all__
    assert len(top) <= 80
    assert top == sorted(top)


def test_the_package_is_marked_as_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()


LIGHT_IMPORT = """
import sys
import torch

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise SystemExit(f"the import went to the network: {event} {arguments}")

sys.addaudithook(refuse)
state = torch.get_rng_state()
import MODULE
heavy = {"matplotlib", "sklearn", "PIL", "accelerate", "diffusers", "torchsde", "tensorboard",
         "torchvision", "tensorflow", "jax", "mpi4py"}
problems = sorted(heavy & set(sys.modules))
if torch.get_default_dtype() != torch.float32:
    problems.append(f"the default dtype became {torch.get_default_dtype()}")
if not torch.equal(state, torch.get_rng_state()):
    problems.append("the global generator moved")
sys.exit(f"importing MODULE: {problems}" if problems else 0)
"""
LIGHT = ["scoregen", *(["scoregen.cli"] if (PACKAGE / "cli.py").is_file() else [])]


@pytest.mark.parametrize("module", LIGHT)
def test_import_is_light(module: str) -> None:
    code = LIGHT_IMPORT.replace("MODULE", module)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_api_page_names_every_package() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    tops = {layer_of(module_parts(path, PACKAGE)).rstrip("/") for path in FILES}
    missing = [name for name in sorted(tops) if name[0] != "_" and f"scoregen.{name}\n" not in page]
    assert missing == [], f"add an automodule entry to docs/api.md for {', '.join(missing)}"


# The checks are themselves checked: a rule that can no longer fail protects nothing.

REFUSED = [
    "assert x > 0",
    "try:\n    pass\nexcept:\n    pass",
    "try:\n    pass\nexcept Exception:\n    pass",
    "try:\n    pass\nexcept (ValueError, BaseException):\n    pass",
    "import pickle",
    "from pickle import loads",
    "def later():\n    import torchvision.models",
    "import jax.numpy as jnp",
    "import torch\ntorch.manual_seed(0)",
    "from torch import manual_seed\nmanual_seed(0)",
    "import numpy as np\nnp.random.seed(0)",
    "import numpy\nnumpy.random.randn(3)",
    "import numpy as np\nrng = np.random.default_rng()",
    "import torch\ntorch.randn(3)",
    "import torch\ntorch.randn_like(x)",
    "import torch as th\nth.randint(0, 2, (3,))",
    "from torch import rand\nrand(3)",
    "x.normal_()",
    "from torch import nn\nnn.init.xavier_uniform_(w)",
    "import torch\ntorch.load(path)",
    "import torch\ntorch.load(path, weights_only=False)",
    "import numpy as np\nnp.load(path, allow_pickle=True)",
]
ALLOWED = [
    "import torch\ntorch.randn(3, generator=g)",
    "import torch\ng = torch.Generator().manual_seed(0)",
    "import numpy as np\nnp.random.Generator(np.random.Philox(key=1)).standard_normal(3)",
    "import torch\ntorch.load(path, weights_only=True)",
    "import numpy as np\nnp.load(path, allow_pickle=False)",
    "x.normal_(generator=g)",
    "noise.randn(3)",
    "try:\n    pass\nexcept (ValueError, OSError):\n    pass",
    "from .data import random",
]


@pytest.mark.parametrize("source", REFUSED)
def test_forbidden_source_is_found(source: str) -> None:
    assert source_violations(source) != []


@pytest.mark.parametrize("source", ALLOWED)
def test_proper_source_passes(source: str) -> None:
    assert source_violations(source) == []


@pytest.mark.parametrize("literal", ["999", "1000", "1000.0", "1e3"])
def test_hard_coded_times_are_found_where_they_matter(literal: str) -> None:
    assert source_violations(f"t = {literal}", timeless=True) != []
    assert source_violations(f"t = {literal}") == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def get_score(x): ...", 1),
        ("def sample(num_steps): ...", 1),
        ("class A:\n    num_steps: int", 1),
        ("class A:\n    def __init__(self, *, score_fn): ...", 1),
        ("class A:\n    def get_t(self, num_x): ...", 2),
        ("class _A:\n    num_steps: int", 0),
        ("def _get_score(num_x): ...", 0),
        ("def steps(grid):\n    num_moves = 3", 0),
    ],
)
def test_foreign_names_are_found(source: str, expected: int) -> None:
    assert len(name_violations(source)) == expected


@pytest.mark.parametrize(
    ("files", "word"),
    [
        ({"processes/a.py": "from ..grids import Grid", "grids/b.py": ""}, "after"),
        ({"processes/a.py": "def f():\n    from scoregen import grids", "grids/b.py": ""}, "after"),
        ({"grids/a.py": "import scoregen.solvers.ddim", "solvers/ddim.py": ""}, "after"),
        ({"sampling/a.py": "from ..solvers.b import B", "solvers/b.py": ""}, "after"),
        ({"processes/a.py": "from scoregen import SDE"}, "after"),
        ({"solvers/a.py": "from .b import B", "solvers/b.py": "from . import a"}, "circle"),
        ({"solvers/__init__.py": "from .a import A", "solvers/a.py": "from . import B"}, "circle"),
        ({"attic.py": ""}, "LAYERS"),
        ({"attic/box.py": ""}, "LAYERS"),
        ({"processes/a.py": "from .cellar import wine"}, "exist"),
    ],
)
def test_wrong_order_is_found(tmp_path: Path, files: dict[str, str], word: str) -> None:
    for name, text in {"__init__.py": "", **files}.items():
        path = tmp_path / "scoregen" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(text)
    found = order_violations(tmp_path / "scoregen")
    assert found != []
    assert all(word in line for line in found)


def test_right_order_passes(tmp_path: Path) -> None:
    files = {
        "__init__.py": "from .sampling import Sampler\nfrom scoregen.solvers import DDIM",
        "_checks.py": "import torch\nfrom torch import Tensor",
        "sampling/__init__.py": "from .solver import Solver\nfrom .. import _checks",
        "sampling/solver.py": "from .. import _checks",
        "solvers/__init__.py": "from .ddim import DDIM",
        "solvers/ddim.py": "from scoregen.sampling.solver import Solver\nfrom ..sampling import S",
    }
    for name, text in files.items():
        path = tmp_path / "scoregen" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert order_violations(tmp_path / "scoregen") == []
