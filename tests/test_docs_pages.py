"""The pages run and show what they print, and their links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cases import benchmark

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
# those of reference/api are written when the pages are built
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if {"_build", "api"}.isdisjoint(page.parts)]

pages = benchmark("figures/pages")

FENCE = re.compile(r"^```([\w{}-]*)[^\n]*\n(.*?)^```", re.M | re.S)

# The others train, sample and draw for longer.
QUICK = {"README.md"}


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[] if page.name in QUICK else [pytest.mark.slow])
        for page in pages.pages()
    ],
    ids=lambda page: page.name,
)
def test_a_page_runs_and_prints_and_draws_what_it_shows(page: Path, tmp_path: Path) -> None:
    """All blocks of a page, in order, as one program in an empty folder."""
    text = page.read_text()
    assert pages.differences(text, pages.run(text, tmp_path)) == []


def test_a_page_that_shows_something_else_is_found(tmp_path: Path) -> None:
    text = "```python\nprint('a', 0.51)\n```\n\n```text\na 0.51\n```\n"
    run = pages.run(text, tmp_path)
    assert pages.differences(text, run) == []
    assert pages.differences(text.replace("text\na 0.51", "text\na 0.52"), run) == []
    for other in ("b 0.51", "a 0.61", "a", "a 0.51 0.51"):
        assert pages.differences(text.replace("text\na 0.51", f"text\n{other}"), run), other
    picture = "![words](../_static/pages/curve.svg)\n"
    assert pages.differences(text + picture, run) == ["curve.svg is not drawn"]
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        pages.run("```python\n1 / 0\n```\n", tmp_path)


# Languages of blocks that are no code, and of those that are checked without being run.
PLAIN = {"text", "", "{include}", "{literalinclude}", "{toctree}", "{eval-rst}"}
CHECKED = {"console"}  # make targets, subcommands and options: below


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.name)
def test_a_block_that_is_not_run_says_why(page: Path) -> None:
    """Code is `python` and runs; another block of code follows `<!-- not run: why -->`."""
    text = page.read_text()
    wrong = []
    for match in FENCE.finditer(text):
        language = match[1]
        if language in PLAIN | CHECKED | {"python"}:
            continue
        if not re.search(r"<!-- not run: [^>]{10,} -->\n+\Z", text[: match.start()]):
            wrong.append(f"{language}: {match[2].splitlines()[0]}")
    assert wrong == []


# Links


LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
INCLUDED = re.compile(r"^```\{(?:include|literalinclude)\} (\S+)$", re.M)


def slugs(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", text), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def broken(page: Path, text: str) -> list[str]:
    """Links to files and headings that do not exist, and pictures without words."""
    wrong = [f"no words for {target}" for target in re.findall(r"!\[\]\(([^)]+)\)", text)]
    prose = re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))
    targets = [a or b for a, b in LINK.findall(prose)] + INCLUDED.findall(text)
    for target in targets:
        if re.match(r"(https?|mailto):", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        there = text if not path else file.read_text() if target.count(".md#") else ""
        if not file.exists() or (anchor and there and anchor not in slugs(there)):
            wrong.append(target)
    return wrong


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken(page, page.read_text()) == []


def test_links_that_lead_nowhere_are_found() -> None:
    good = "[a](docs/index.md) [b](docs/index.md#seven-words) [c](#here)\n## Here\n"
    assert broken(README, good) == []
    for text in ("[a](docs/no.md)", "[b](docs/index.md#no)", "![](docs/_static/quality.png)"):
        assert len(broken(README, text)) == 1, text


def test_links_to_other_sites_are_of_kinds_we_know() -> None:
    """Nothing checks them here, since tests have no network; papers and packages stay."""
    known = ("https://arxiv.org/abs/", "https://github.com/", "https://pypi.org/")
    found = {
        link
        for page in [README, *PAGES]
        for link in re.findall(r"\]\((https?:[^)]+)", page.read_text())
    }
    assert sorted(link for link in found if not link.startswith(known)) == []
    assert all(re.fullmatch(r".*/abs/\d{4}\.\d{4,5}", link) for link in found if "arxiv" in link)


# Pictures


def test_the_plots_of_accuracy_are_of_the_columns_they_name() -> None:
    plots = benchmark("figures/accuracy_plots")
    text = plots.PAGE.read_text()
    head = [cell.strip() for cell in re.findall(r"^\| NFE (.*)\|$", text, flags=re.M)[0].split("|")]
    for name, column, _ in plots.LINES:  # the figure stands in a column of its own, or after a name
        assert name in head[column - 1 : column + 1], name
        for problem in plots.PROBLEMS:
            for process in plots.PROCESSES:
                table = plots.rows(text, f"{problem}, {process}")
                assert [int(cells[0]) for cells in table] == [5, 8, 10, 15, 20, 30, 50, 100]
                errors = [float(cells[column]) for cells in table]
                assert errors[0] > 10 * errors[-1] > 0
    assert len(plots.rows(text, "Fixed samplers")) > 10
