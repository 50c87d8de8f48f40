"""Sphinx settings. The build needs no network; examples run only where asked for."""

from __future__ import annotations

import importlib.metadata
import os
import re

project = "scoregen"
author = copyright = "The scoregen authors"
release = importlib.metadata.version("scoregen")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
]
exclude_patterns = ["_build", "jupyter_execute"]
html_theme = "furo"
html_title = f"scoregen {release}"

myst_enable_extensions = ["dollarmath", "amsmath", "deflist"]
myst_heading_anchors = 3

# "off" builds the pages; `make docs-run` sets "force" and executes every notebook page.
nb_execution_mode = os.environ.get("SCOREGEN_DOCS_EXECUTE", "off")
nb_execution_raise_on_error = True
nb_execution_timeout = 300

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


def setup(app):
    # before napoleon (priority 500), which writes markup of its own
    app.connect("autodoc-process-docstring", _plain, priority=400)
