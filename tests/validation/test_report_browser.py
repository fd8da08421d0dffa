"""The report in a real browser. Needs Chromium: `apt-get install -y --no-install-recommends chromium`."""

import html
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import judged as worlds
import numpy as np
import pytest
from PIL import Image

from validation import Judgement
from validation.report import render_report

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not shutil.which("chromium") and os.environ.get("CI") != "true", reason="chromium is not installed"
    ),
]

PHONE_PIXELS = 360
NARROWEST_WINDOW_PIXELS = 500
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--virtual-time-budget=5000",
    "--enable-logging=stderr",
)
LONG_NAME = "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft"
FRAME = """<body style="margin:0"><iframe width="{width}" height="600" style="border:0" srcdoc="{page}" onload="
  const inner = this.contentDocument, root = inner.documentElement;
  inner.querySelectorAll('details').forEach(each => each.open = true);
  document.body.dataset.clientWidth = root.clientWidth;
  document.body.dataset.scrollWidth = root.scrollWidth;
  document.body.dataset.requests = this.contentWindow.performance.getEntriesByType('resource').length;
  document.body.dataset.broken = [...inner.images].filter(each => !each.naturalWidth).length;
  document.body.dataset.images = inner.images.length;
"></iframe></body>"""


@dataclass(frozen=True)
class Visit:
    """What a browser made of a page."""

    dom: str
    console: list[str]

    def measured(self, name: str) -> int:
        found = re.search(rf'data-{name}="(\d+)"', self.dom)
        assert found, f"the frame did not report {name}"
        return int(found[1])


@pytest.fixture
def browse(tmp_path: Path) -> Callable[..., Visit]:
    def visit(page: str, *options: str) -> Visit:
        path = tmp_path / "page.html"
        path.write_text(page, encoding="utf-8")
        profile = tmp_path / "profile"
        shutil.rmtree(profile, ignore_errors=True)
        done = subprocess.run(
            ["chromium", *FLAGS, f"--user-data-dir={profile}", *(options or ["--dump-dom"]), path.as_uri()],
            capture_output=True,
            text=True,
            timeout=180,
            check=True,
        )
        console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        return Visit(done.stdout, console)

    return visit


@pytest.fixture(scope="module")
def judgement(tmp_path_factory: pytest.TempPathFactory) -> Judgement:
    """A failed judgement, so that every part of the page is there, with names that are hard to lay out."""
    judgement = worlds.judged(worlds.bad(), tmp_path_factory.mktemp("pictures"))
    hostile = worlds.renamed(judgement, "tiger", "<script>console.error('ran')</script>")
    return worlds.renamed(hostile, "dog", LONG_NAME)


@pytest.fixture(scope="module")
def page(judgement: Judgement) -> str:
    edit = {"method": "scapre", "edit_digest": "c" * 64, "diagnostics": {"drift": {"unet." + "blocks." * 20: 0.1}}}
    return render_report(judgement, edit=edit, judged_at=datetime(2026, 11, 24, tzinfo=UTC))


def framed(page: str, width: int = PHONE_PIXELS) -> str:
    return FRAME.format(width=width, page=html.escape(page))


def test_the_watch_on_console_and_requests_sees_what_it_should(browse: Callable[..., Visit]):
    loud = browse("<script>console.error('heard')</script>")
    assert any("heard" in line for line in loud.console)
    leaky = browse(framed('<link rel="stylesheet" href="https://example.invalid/x.css"><p>x</p>'))
    assert leaky.measured("requests") == 1


def test_no_console_message_and_no_request(browse: Callable[..., Visit], page: str):
    direct = browse(page)
    assert direct.console == []
    assert 'data-verdict="failed"' in direct.dom
    inside = browse(framed(page))
    assert inside.console == []
    assert inside.measured("requests") == 0


def test_all_pictures_are_drawn(browse: Callable[..., Visit], page: str):
    visit = browse(framed(page))
    assert visit.measured("images") >= 16
    assert visit.measured("broken") == 0


@pytest.mark.parametrize("width", [PHONE_PIXELS, 500, 768, 1280])
def test_nothing_is_wider_than_the_window(browse: Callable[..., Visit], page: str, width: int):
    visit = browse(framed(page, width), f"--window-size={max(width, NARROWEST_WINDOW_PIXELS)},900", "--dump-dom")
    assert visit.measured("client-width") == width
    assert visit.measured("scroll-width") == width


@pytest.mark.parametrize(("setting", "is_dark"), [(0, True), (1, False)])
def test_the_page_follows_the_readers_colour_scheme(
    browse: Callable[..., Visit], page: str, tmp_path: Path, setting: int, is_dark: bool
):
    shot = tmp_path / "shot.png"
    browse(page, f"--blink-settings=preferredColorScheme={setting}", "--window-size=1280,1600", f"--screenshot={shot}")
    pixels = np.asarray(Image.open(shot).convert("L"))
    assert bool(pixels[:, :20].mean() < 60) is is_dark
    assert pixels.std() > 10, "an empty page"


def test_it_prints(browse: Callable[..., Visit], judgement: Judgement, tmp_path: Path):
    paper = tmp_path / "paper.pdf"
    page = render_report(judgement, judged_at=datetime(2026, 11, 24, tzinfo=UTC))
    browse(page, "--blink-settings=preferredColorScheme=0", "--no-pdf-header-footer", f"--print-to-pdf={paper}")
    assert paper.read_bytes().startswith(b"%PDF")
    assert paper.stat().st_size > 20_000


def test_safe_mode_is_whole_too(browse: Callable[..., Visit], judgement: Judgement):
    unsafe = replace(judgement, measures=judgement.measures.assign(kind="unsafe"))
    visit = browse(framed(render_report(unsafe)))
    assert visit.console == []
    assert visit.measured("images") == 0
    assert visit.measured("requests") == 0
