"""Sphinx settings. The build needs no network; `make docs-run` runs the examples."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import re
from pathlib import Path

project = "scoregen"
author = copyright = "The scoregen authors"
release = importlib.metadata.version("scoregen")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
]
exclude_patterns = ["_build", "_generated"]
html_theme = "furo"
pygments_dark_style = "monokai"
html_title = f"scoregen {release}"
html_static_path = ["_static"]
html_css_files = ["scoregen.css"]
html_js_files = ["filter.js"]

myst_enable_extensions = ["dollarmath", "amsmath", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": True}
# dataclass fields described under Attributes would otherwise be listed twice
napoleon_use_ivar = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False


# Docstrings are plain text first: (batch, *event) and |x| are shapes and norms, not markup.
_LITERAL = re.compile(r"(:\w+:`[^`]*`|``.*?``|`[^`]*`|\*\*[^*]+\*\*)")


def _plain(app, what, name, obj, options, lines):
    """Escape what reStructuredText would take for markup, outside literals and examples."""
    example = False
    for number, line in enumerate(lines):
        example = line.lstrip().startswith(">>>") or (example and bool(line.strip()))
        if not example:
            parts = _LITERAL.split(line)
            parts[::2] = [re.sub(r"\*|\||(?<=\w)_(?!\w)", r"\\\g<0>", part) for part in parts[::2]]
            lines[number] = "".join(parts)


# The reference of the packages: a page each, written from what its `__all__` lists.

API = Path(__file__).parent / "reference" / "api"


def _first_sentence(thing) -> str:
    """Of the docstring, for a table; of a type alias or a constant, what it is."""
    if inspect.isclass(thing) or inspect.isroutine(thing):
        text = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
        return re.sub(r"([|*_<$\[])", r"\\\1", text)
    shown = repr(thing) if hasattr(thing, "__origin__") else type(thing).__name__
    return "`" + re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", shown).replace("|", "or") + "`"


def _package_page(name: str) -> str:
    """Its docstring, a table of its names, and each of them in full."""
    package = importlib.import_module(name)
    things = {public: getattr(package, public) for public in package.__all__}
    full = [key for key, x in things.items() if inspect.isclass(x) or inspect.isroutine(x)]
    lines = [f"# {name}", "", "```{eval-rst}", f".. automodule:: {name}", "   :no-members:", "```"]
    lines += ["", "| name | what it is |", "|---|---|"]
    for public, thing in things.items():
        link = f"[`{public}`](#{name}.{public})" if public in full else f"`{public}`"
        lines.append(f"| {link} | {_first_sentence(thing)} |")
    lines += ["", "```{eval-rst}"]
    for public in full:
        kind = "class" if inspect.isclass(things[public]) else "function"
        lines += [f".. auto{kind}:: {name}.{public}", ""]
    return "\n".join([*lines, "```", ""])


def _package_pages(app) -> None:
    API.mkdir(exist_ok=True)
    index = (API.parent / "api.md").read_text()
    wanted = {f"{name}.md" for name in re.findall(r"^api/(\w+)$", index, flags=re.M)}
    for path in API.glob("*.md"):
        if path.name not in wanted:
            path.unlink()
    for page in sorted(wanted):
        path, text = API / page, _package_page(f"scoregen.{page[:-3]}")
        if not path.is_file() or path.read_text() != text:  # what is unchanged is not read again
            path.write_text(text)


def setup(app):
    app.connect("builder-inited", _package_pages)
    # before napoleon (priority 500), which writes markup of its own
    app.connect("autodoc-process-docstring", _plain, priority=400)
