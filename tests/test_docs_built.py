"""The pages as a reader sees them: built without a network, and measured in a browser."""

from __future__ import annotations

import html
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = next((p for n in ("chromium", "chromium-browser") if (p := shutil.which(n))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("sphinx") is None, reason="needs scoregen[docs], as `make docs`"
    ),
]
browser = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no chromium here; `make browser` installs it"
)

SHOWN = (
    "index", "gallery", "tutorials/first-sample", "how-to/few-steps", "how-to/energies",
    "how-to/other-families", "reference/samplers", "reference/coming-from",
    "reference/api/solvers", "explanation/mathematics", "explanation/accuracy",
)  # fmt: skip

NO_NETWORK = """
import sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise OSError(f"the build went to the network: {event} {arguments}")

sys.addaudithook(refuse)
"""

# What is wider than the window or its own box, pictures that are missing, formulas left as text.
MEASURE = """<script>addEventListener('load', async () => {
if (window.MathJax) await MathJax.startup.promise;
const boxes = [...document.querySelectorAll('.table-wrapper, .highlight-python pre')];
const first = t => t.textContent.trim().slice(0, 30);
const prose = [...document.querySelectorAll('p, li, td, h1, h2, h3')].filter(
  e => !e.querySelector('code') && !e.closest('[role="search"]'));
parent.postMessage(JSON.stringify({ inner: innerWidth, width: document.documentElement.scrollWidth,
  wide: boxes.filter(b => b.scrollWidth > b.clientWidth + 1).map(first),
  missing: [...document.images].filter(i => i.naturalWidth == 0).map(i => i.src),
  silent: [...document.images].filter(i => !i.alt).map(i => i.src),
  formulas: document.querySelectorAll('mjx-container').length,
  raw: prose.map(e => e.innerText).filter(t => /\\\\[a-z]+\\b|\\$|\\{py:|\\]\\(/.test(t)),
  elsewhere: performance.getEntriesByType('resource').map(r => r.name).filter(
    n => !/^(file|data):/.test(n))
}), '*'); })</script></body>"""

# A window of a browser without a screen is at least 500 pixels wide; a frame may be narrower.
FRAME = """<!doctype html>
<script>addEventListener('message', e => { document.title = e.data })</script>
<iframe src="NAME" style="width: WIDTHpx; height: 900px; border: 0"></iframe>"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages, built with warnings as errors by a process that may not go to the network."""
    folder = tmp_path_factory.mktemp("html")
    (folder / "sitecustomize.py").write_text(NO_NETWORK)
    paths = os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run(
        [*command, str(ROOT / "docs"), str(folder)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_every_link_between_built_pages_leads_somewhere(built: Path) -> None:
    """Of all pages, those written for the packages included; anchors too."""
    texts = {path.resolve(): path.read_text() for path in built.rglob("*.html")}
    anchors = {path: set(re.findall(r'\bid="([^"]+)"', text)) for path, text in texts.items()}
    wrong = []
    for page, text in texts.items():
        for target in re.findall(r'<a [^>]*href="([^"]+)"', text):
            if re.match(r"(https?|mailto|javascript):", target):
                continue
            path, _, anchor = html.unescape(target).partition("#")
            file = (page.parent / path).resolve() if path else page
            if not file.exists() or (anchor and file in anchors and anchor not in anchors[file]):
                wrong.append(f"{page.relative_to(built)}: {target}")
    assert len(texts) > 50
    assert sorted(set(wrong)) == []


def measured(page: Path, width: int, dark: bool, profile: Path) -> dict[str, Any]:
    """What a script in a copy of the page finds."""
    copy, frame = (page.with_name(f"{name}-{width}-{page.name}") for name in ("copy", "frame"))
    copy.write_text(page.read_text().replace("</body>", MEASURE))
    frame.write_text(FRAME.replace("NAME", copy.name).replace("WIDTH", str(width)))
    options = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        "--no-first-run", "--virtual-time-budget=30000", "--dump-dom",
        f"--user-data-dir={profile}", "--window-size=1600,1000",
        *(["--blink-settings=preferredColorScheme=0"] if dark else []),
    ]  # fmt: skip
    done = subprocess.run(
        [str(CHROMIUM), *options, frame.as_uri()], capture_output=True, text=True, timeout=240
    )
    copy.unlink()
    frame.unlink()
    found = re.search(r"<title>(\{.*?\})</title>", done.stdout, flags=re.S)
    assert found, done.stdout[:500] + done.stderr[-500:]
    return json.loads(html.unescape(found.group(1)))


@browser
@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("page", SHOWN)
def test_nothing_is_cut_or_raw(built: Path, tmp_path: Path, page: str, width: int) -> None:
    seen = measured(built / f"{page}.html", width, width == 400, tmp_path / "profile")
    assert seen["inner"] == width
    assert seen["width"] <= seen["inner"]
    assert seen["missing"] == []
    assert seen["silent"] == []
    assert seen["raw"] == []
    assert seen["elsewhere"] == []
    if page == "explanation/mathematics":
        assert seen["formulas"] > 300
    if width == 1280:
        assert seen["wide"] == [], "a table is wider than the text"


GITHUB = """
body { font: 16px/1.5 sans-serif; margin: 0 } img { max-width: 100% }
pre, code { font: 13.6px/1.45 monospace } pre { padding: 16px; background: #f6f8fa; margin: 0 }
td, th { padding: 6px 13px; border: 1px solid #ddd } table { border-collapse: collapse }
.table-wrapper { overflow: auto; margin: 0 0 16px }
"""


@browser
def test_the_readme_fits_its_window(tmp_path: Path) -> None:
    """Rendered as GitHub does, 838 pixels wide."""
    from markdown_it import MarkdownIt

    text = (ROOT / "README.md").read_text()
    body = MarkdownIt("commonmark").enable("table").render(text)
    for tag in ("table", "pre"):  # they scroll there; here it is measured whether they need to
        body = body.replace(f"<{tag}>", f'<div class="table-wrapper"><{tag}>')
        body = body.replace(f"</{tag}>", f"</{tag}></div>")
    page = ROOT / "readme.html"
    try:
        page.write_text(f"<!doctype html><style>{GITHUB}</style><body>{body}</body>")
        seen = measured(page, 838, False, tmp_path / "profile")
    finally:
        page.unlink()
    assert seen["width"] <= seen["inner"]
    assert seen["missing"] == seen["silent"] == seen["raw"] == seen["wide"] == []
