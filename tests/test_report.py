"""The report in a real browser, and figures for papers."""

from __future__ import annotations

import html
import json
import math
import re
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

import scoregen as sg
from scoregen.cli import main
from scoregen.comparison import Comparison, plot_quality, plot_samples
from scoregen.comparison.page import sentence

MODEL = sg.GaussianMixture(
    sg.VPSDE(), torch.ones(2), torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), torch.full((2,), 0.05)
)
REFERENCE = MODEL.sample(300, generator=1).float()
SAMPLERS = {
    "DDIM <b>": sg.Sampler(sg.DDIM(), sg.UniformLam(4)),
    "ancestral": sg.Sampler(sg.Ancestral(), sg.UniformTime(4)),
    "DPM-Solver++ 2M": sg.Sampler(sg.DPMSolverPP(), sg.UniformLam(4)),
}
CHROMIUM = next((p for n in ("chromium", "chromium-browser") if (p := shutil.which(n))), None)


def made(out: Path | None = None, **options: Any) -> Comparison:
    return sg.compare(
        MODEL,
        SAMPLERS,
        steps=(4, 8, 16),
        metrics=[sg.metrics.SlicedWasserstein(16), sg.metrics.MMD(1.0)],
        reference=REFERENCE,
        floor=MODEL.sample(300, generator=2).float(),
        seeds=(0, 1),
        out=out,
        pictures=False,
        progress=False,
        **options,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("study")
    made(where).report(where / "report.html", heading="Two modes")
    return where


def test_the_page_is_one_small_file_that_asks_for_nothing(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    assert len(text.encode()) < 2_000_000
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", text)
    assert not re.search(r"url\((?!#)", text)
    assert "@import" not in text
    assert "<script" not in text
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text


def test_the_page_says_what_the_study_says(folder: Path) -> None:
    study = sg.comparison.load(folder)
    text = (folder / "report.html").read_text()
    verdict = sentence(study, study.metrics[0], 8)
    assert verdict.replace("<", "&lt;").replace(">", "&gt;") in text
    assert "<b>" not in text, "names are escaped"
    assert text.count('class="cell"') == 9  # three samplers at three budgets
    assert text.count("<svg") == 4  # two metrics against two costs
    assert "real data, n = 300" in text
    assert "Exact error on Gaussian data" in text
    assert study.manifest["versions"]["scoregen"] in text


def test_the_sentence_names_ties_and_winners() -> None:
    study = made()
    for metric in study.metrics:
        for budget in (4, 16):
            best, *ties = study.ties(study.at(budget, metric))
            said = sentence(study, metric, budget)
            assert f"{best.name} has the lowest {metric}" in said
            for s in ties:
                assert s.name in said
            assert ("not significantly different" in said) == bool(ties)


@pytest.mark.slow
def test_samples_are_dropped_until_the_page_is_small(tmp_path: Path) -> None:
    model = sg.Gaussian(sg.VPSDE(), torch.zeros(3, 64, 64), 1.0)
    study = sg.compare(
        model,
        {"ddim": sg.Sampler(sg.DDIM(), sg.UniformTime(2))},
        steps=(2, 4),
        metrics=[sg.metrics.SlicedWasserstein(4)],
        reference=model.sample(60, generator=0).float(),
        progress=False,
    )
    page = study.report(tmp_path / "report.html")
    assert page.stat().st_size < 2_000_000
    assert page.read_text().count('class="cell"') == 2


def test_an_unfinished_study_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing is finished"):
        Comparison([], {"metrics": {}}).report(tmp_path / "report.html")


SIZES = {"phone": (400, 5200), "desk": (1200, 3600)}
browser = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no chromium here; `make browser` installs it"
)


def chromium(*options: str, profile: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--no-first-run",
            f"--user-data-dir={profile}",
            *options,
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


@browser
@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_browser_shows_the_page(folder: Path, tmp_path: Path, size: str, dark: bool) -> None:
    width, height = SIZES[size]
    shot = tmp_path / f"{size}.png"
    done = chromium(
        f"--screenshot={shot}",
        f"--window-size={width},{height}",
        "--hide-scrollbars",
        "--enable-logging=stderr",
        *(["--blink-settings=preferredColorScheme=0"] if dark else []),
        (folder / "report.html").as_uri(),
        profile=tmp_path / "profile",
    )
    assert "CONSOLE" not in done.stderr, done.stderr
    image = shot.read_bytes()
    assert image.startswith(b"\x89PNG")
    assert struct.unpack(">II", image[16:24])[0] == width
    from matplotlib.image import imread

    pixels = imread(shot)[..., :3]
    corner = float(pixels[2, 2].mean())
    assert corner < 0.2 if dark else corner > 0.9
    assert float(pixels.std()) > 0.05, "the page is not empty"


MEASURE = """<script>addEventListener('load', () => {
const fill = e => getComputedStyle(e).fill, words = [...document.querySelectorAll('svg text')];
const paper = getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number);
const far = c => Math.max(...c.match(/\\d+/g).slice(0, 3).map((v, i) => Math.abs(v - paper[i])));
const seen = i => i.naturalWidth > 0 && i.getBoundingClientRect().right <= innerWidth;
document.title = JSON.stringify({ inner: innerWidth, width: document.documentElement.scrollWidth,
  images: [...document.images].filter(seen).length, words: words.length,
  faint: words.filter(t => far(fill(t)) < 60).map(t => t.textContent),
  requests: performance.getEntriesByType('resource').filter(r => !r.name.startsWith('data:')).length
}); })</script></body>"""


@browser
@pytest.mark.parametrize("width", [400, pytest.param(1200, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "dark", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["light", "dark"]
)
def test_everything_is_seen(folder: Path, tmp_path: Path, width: int, dark: bool) -> None:
    """A copy of the page with a script that measures it, which the page itself has not."""
    text = (folder / "report.html").read_text()
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    copy = tmp_path / "copy.html"
    copy.write_text(text.replace("</body>", MEASURE))
    done = chromium(
        "--dump-dom",
        f"--window-size={width},900",
        *(["--blink-settings=preferredColorScheme=0"] if dark else []),
        copy.as_uri(),
        profile=tmp_path / "profile",
    )
    found = re.search(r"<title>(\{.*?\})</title>", done.stdout)
    assert found, done.stdout[:500]
    seen = json.loads(html.unescape(found.group(1)))
    assert seen["width"] <= seen["inner"]
    assert seen["images"] == 9, "every cell's samples lie within the window"
    assert seen["words"] > 20
    assert seen["faint"] == [], "every word of a figure stands out from the paper"
    assert seen["requests"] == 0


# Figures


@pytest.mark.parametrize(
    "ending",
    [
        "svg",
        pytest.param("pdf", marks=pytest.mark.slow),
        pytest.param("png", marks=pytest.mark.slow),
    ],
)
def test_figures_for_papers(tmp_path: Path, ending: str) -> None:
    study = made()
    paths = [
        plot_quality(study, tmp_path / f"{i}.{ending}", metrics=study.metrics[:1], width=3.3)
        for i in range(2)
    ]
    one, other = (p.read_bytes() for p in paths)
    assert one == other, "equal results give equal files"
    if ending == "svg":
        text = one.decode()
        width = float(re.search(r'width="([\d.]+)pt"', text).group(1))  # type: ignore[union-attr]
        assert width == pytest.approx(3.3 * 72, rel=1e-3)
        for name in ("DDIM &lt;b&gt;", "ancestral", "DPM-Solver++ 2M", "real data, n = 300"):
            assert f">{name}</text>" in text
        assert "8px" in text
    with pytest.raises(ValueError, match="name must be one of"):
        plot_quality(study, tmp_path / "a.svg", names=["nobody"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"study": "runs/a"}, "study must be a Comparison, as compare"),
        ({"study": Comparison}, "got the class Comparison"),
        ({"path": None}, "path must be a path"),
        ({"metrics": "mmd2"}, "metrics must be a sequence of titles, got 'mmd2'"),
        ({"metrics": ()}, "metrics must list at least one title"),
        ({"names": 3}, "names must be a sequence of names"),
        ({"width": math.nan}, r"width must lie in \[1, 300\]"),
        ({"size": 1e300}, r"size must lie in \[2, 100\]"),
        ({"heading": 3}, "heading must be a str"),
    ],
)
def test_a_figure_that_cannot_be_drawn_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    given = {"study": Comparison([], {"metrics": {}}), "path": tmp_path / "a.svg"}
    with pytest.raises((TypeError, ValueError), match=message):
        plot_quality(**{**given, **change})


def test_the_widest_and_the_narrowest_figure_can_be_drawn(tmp_path: Path) -> None:
    study = made()
    for width, size in ((1.0, 2.0), (300.0, 8.0)):
        path = tmp_path / f"{width}.svg"
        assert plot_quality(study, path, width=width, size=size, heading="all").exists()


@pytest.mark.parametrize(
    ("samples", "options", "message"),
    [
        ({}, {}, "samples must hold at least one entry"),
        (torch.zeros(3, 2), {}, "samples must be a Mapping"),
        ({"ddim": torch.zeros(3, 2)}, {}, r"must be \(name, evaluations\)"),
        ({("ddim", "ten"): torch.zeros(3, 2)}, {}, "the evaluations of ddim must be a real"),
        ({("ddim", 10): [0.0]}, {}, r"samples\[\('ddim', 10\)\] must be a torch.Tensor"),
        ({("ddim", 10): torch.tensor(0.0)}, {}, r"must have shape \(n, \*event\)"),
        ({("ddim", 10): torch.zeros(3, 2)}, {"data_range": (1, 1)}, "with low < high"),
        ({("ddim", 10): torch.zeros(3, 2)}, {"unit": 3}, "unit must be a str"),
    ],
)
def test_samples_that_cannot_be_drawn_are_refused(
    tmp_path: Path, samples: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        plot_samples(samples, tmp_path / "a.png", **options)


def test_a_heading_stays_within_the_figure(tmp_path: Path) -> None:
    words = "one sampler is as close as real data with few evaluations, another with many more"
    path = tmp_path / "a.svg"
    plot_quality(made(), path, names=["ancestral"], width=3.3, heading=words)
    lines = re.findall(r">([^<>]+)</(?:text|tspan)>", path.read_text())
    found = [line for line in lines if line.strip() and line in words]
    assert " ".join(found) == words
    assert max(map(len, found)) < 45


def test_ties_are_shaded() -> None:
    from matplotlib.colors import to_hex

    from scoregen.comparison.figures import _SHADE, quality_figure

    study = made()
    for panel, metric in zip(quality_figure(study).axes, study.metrics, strict=True):
        tied = [b for b in (4, 8, 16) if len(study.ties(study.at(b, metric))) > 1]
        bands = [p for p in panel.patches if to_hex(p.get_facecolor()) == _SHADE]
        assert len(bands) == len(tied)
        for band, budget in zip(bands, tied, strict=True):
            low, high = band.get_y(), band.get_y() + band.get_height()
            for s in study.ties(study.at(budget, metric)):
                assert band.get_x() < s.nfe < band.get_x() + band.get_width()
                assert low <= s.low
                assert s.high <= high + 1e-12


def test_names_at_the_ends_do_not_cover_one_another() -> None:
    from matplotlib.text import Text

    from scoregen.comparison.figures import quality_figure

    same = {f"sampler {i}": SAMPLERS["ancestral"] for i in range(6)}
    study = sg.compare(
        MODEL,
        same,
        steps=(4, 8),
        metrics=[sg.metrics.MMD(1.0)],
        reference=REFERENCE,
        progress=False,
    )
    figure = quality_figure(study, width=3.3)
    figure.canvas.draw()
    (panel,) = figure.axes
    names = [t for t in panel.texts if t.get_text().startswith("sampler")]
    boxes = [Text.get_window_extent(t) for t in names]  # without the line that leads to it
    assert len(boxes) == 6
    frame = figure.bbox
    for i, box in enumerate(boxes):
        assert box.x1 <= frame.x1 + 1
        assert box.y0 >= frame.y0 - 1
        assert box.y1 <= frame.y1 + 1
        for other in boxes[i + 1 :]:
            assert box.y1 <= other.y0 + 2 or other.y1 <= box.y0 + 2


# Command line


def test_versus_and_report_commands(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["versus", str(folder), "ancestral", "--budget", "8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all("8 evaluations" in line for line in lines)
    assert main(["versus", str(folder), "nobody"]) == 2
    assert "nobody" in capsys.readouterr().err
    assert main(["report", "nowhere"]) == 2


@pytest.mark.slow
def test_report_command(folder: Path) -> None:
    assert main(["report", str(folder), "--out", str(folder / "other.html")]) == 0
    assert (folder / "other.html").exists()
