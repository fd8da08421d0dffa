import base64
import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import judged as worlds
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from validation import Judgement
from validation.evidence import write_evidence
from validation.formats import (
    cosine_change_down,
    cosine_change_up,
    exact_percent,
    exact_points,
    percent_down,
    percent_up,
    points_down,
    points_up,
    typeset,
)
from validation.report import render_report
from validation.report.content import forgotten_targets
from validation.report.errors import ReportError

NOON = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
HOSTILE = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>"
EDIT = {
    "method": "scapre",
    "dials": {"erasure_strength": 1.0},
    "edit_digest": "c" * 64,
    "base_digest": "d" * 64,
    "diagnostics": {"retain_found": ["fern"], "warnings": ["drifts far"]},
}
REQUEST = {"request_ids": ["req-1"], "plan": "e" * 64, "roles": {"unseen": ["marmalade"]}}
VOID_ELEMENTS = {"meta", "link", "img", "br", "line", "circle", "path", "use"}


class Page(HTMLParser):
    """All elements of a page with their attributes, and the text of each kind of element."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(html)
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID_ELEMENTS:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, *tags: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.elements if tag in tags]

    def addresses(self) -> Iterator[str]:
        for _, attributes in self.elements:
            yield from (attributes[name] for name in ("src", "href", "srcset", "action", "data") if name in attributes)

    @property
    def text(self) -> str:
        return spaced(" ".join(text for tag, text in self.texts if tag != "style"))


def spaced(text: str) -> str:
    """Returns a text with single ordinary spaces."""
    return " ".join(text.split())


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory) -> Judgement:
    return worlds.judged(worlds.good(), tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Judgement:
    return worlds.judged(worlds.bad(), tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def void(tmp_path_factory: pytest.TempPathFactory) -> Judgement:
    return worlds.judged(worlds.good().blackened(), tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def quality(tmp_path_factory: pytest.TempPathFactory) -> Judgement:
    """A candidate that forgot, and draws everything else recognisably but paler."""
    policy = worlds.POLICY.model_copy(update={"quality_margin": 0.002})
    return worlds.judged(worlds.good().faded(0.2), tmp_path_factory.mktemp("pictures"), policy=policy, with_texts=True)


@pytest.fixture(scope="module")
def page(passed: Judgement) -> Page:
    links = {"Data Docs": "data_docs/index.html"}
    return Page(render_report(passed, edit=EDIT, request=REQUEST, links=links, judged_at=NOON))


def test_the_verdict_stands_first_and_in_words(page: Page):
    first = next(index for index, (tag, _) in enumerate(page.elements) if tag == "h1")
    assert not any(tag in ("h2", "table", "img") for tag, _ in page.elements[:first])
    assert page.all("html") == [{"lang": "en", "data-verdict": "passed"}]
    assert "Passed: All 2 concepts are forgotten, and what had to survive has survived." in page.text
    assert "24 November 2026, 12:00 UTC" in page.text


def test_a_failure_names_what_failed_and_the_next_step(failed: Judgement):
    page = Page(render_report(failed, judged_at=NOON))
    assert page.all("html")[0]["data-verdict"] == "failed"
    assert "Failed: 1 concept of 2 is still drawn" in page.text
    assert "tiger: found in 8 of 8 pictures" in page.text
    assert "The candidate still draws it: make a stronger edit" in page.text
    assert "not to be promoted" in page.text


def test_an_inconclusive_verdict_says_how_many_pictures_it_would_take(tmp_path: Path):
    judgement = worlds.judged(worlds.unsure(), tmp_path)
    page = Page(render_report(judgement, judged_at=NOON))
    assert "The pictures do not settle whether 1 concept of 2 is forgotten." in page.text
    assert re.search(r"With \d+ hits it takes \d+ pictures to show the limit, and 158 were drawn\.", page.text)


def test_a_void_judgement_claims_nothing_about_the_candidate(void: Judgement):
    page = Page(render_report(void, judged_at=NOON))
    assert "Inconclusive, void: A control failed, so this judgement says nothing about the candidate" in page.text
    assert "not established for 2 targets" in page.text
    assert "A failed control voids every figure on this page" in page.text


def test_every_gate_that_did_not_pass_is_explained(failed: Judgement, void: Judgement):
    for judgement in (failed, void):
        page = Page(render_report(judgement, judged_at=NOON))
        open_gates = [gate for gate in judgement.gates if gate.is_gated and gate.verdict != "passed"]
        assert open_gates
        assert all(spaced(typeset(gate.reason)) in page.text for gate in open_gates)
        assert page.text.count("Next:") >= len(open_gates)


def test_a_target_that_is_drawn_under_another_name_is_not_counted_as_forgotten(passed: Judgement):
    assert forgotten_targets(passed) == list(worlds.TARGETS)
    own = next(gate for gate in passed.gates if gate.gate == "forgetting" and gate.concept == "tiger")
    alias = replace(own, pack="alias", verdict="failed", hits=60, estimate=60 / 64, lower=0.85, upper=0.98)
    assert forgotten_targets(replace(passed, gates=(*passed.gates, alias))) == ["dog"]
    unknown = replace(alias, verdict="inconclusive", is_gated=False)
    assert forgotten_targets(replace(passed, gates=(*passed.gates, unknown))) == list(worlds.TARGETS)


def test_the_figures_are_those_of_the_gates(page: Page, passed: Judgement):
    for gate in passed.gates:
        if gate.gate == "forgetting":
            assert f"{gate.hits} of {gate.pictures}" in page.text
            assert spaced(percent_up(gate.upper)) in page.text
    hidden = next(gate for gate in passed.gates if gate.role == "hidden")
    assert hidden.lower is not None
    assert f"at worst {points_down(hidden.lower)}, no margin set" in page.text


def test_retained_concepts_are_sorted_by_damage(failed: Judgement):
    html = render_report(failed, judged_at=NOON)
    table = html[html.index("Retained concepts, most damaged first") :]
    order = re.findall(r'scope="row">(\w+)</th>', table)[:5]
    assert set(order[:2]) == {"cat", "wolf"}


def test_what_was_not_tested_is_said(page: Page):
    for topic in ("Attacks", "Learning again", "Other names", "no detector has a label for: marmalade"):
        assert topic in page.text


def test_the_facts_of_edit_and_request_are_shown(page: Page):
    for fact in ("req-1", "erasure_strength = 1.0", "c" * 64, "e" * 64, "drifts far"):
        assert fact in page.text


def test_protocol_and_digests_are_shown_as_the_bundle_has_them(page: Page, passed: Judgement, tmp_path: Path):
    protocol = passed.protocol
    digests = [protocol.base_weights_digest, protocol.candidate_weights_digest, protocol.probes_digest]
    for digest in (*digests, *protocol.packs.values(), *protocol.detectors.values()):
        assert digest in page.text
    folder = write_evidence(passed, tmp_path / "bundle", report_html=render_report(passed))
    for name in ("verdict.json", "measures.csv", "policy.json", "protocol.json", "gx.json"):
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() in page.text
    assert "sha256sum manifest.json" in page.text


def test_the_page_reaches_nowhere_and_runs_nothing(page: Page, passed: Judgement):
    own = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    for address in page.addresses():
        if address.startswith("#"):
            assert address[1:] in own
        else:
            assert address.startswith("data:") or re.fullmatch(r"[a-z_]+(/[a-z]+)*\.[a-z]+", address)
    assert not page.all("script", "iframe", "object", "embed", "form", "base")
    style = " ".join(text for tag, text in page.texts if tag == "style")
    assert "url(" not in style
    assert "@import" not in style
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


@pytest.mark.parametrize("hostile", [HOSTILE, "{{ 7 * 7 }}", "</style><script>", "a & b"])
def test_a_hostile_name_is_only_text(passed: Judgement, hostile: str):
    judgement = worlds.renamed(passed, "tiger", hostile)
    facts = {"method": hostile, "dials": {hostile: hostile}, "diagnostics": {"retain_found": [hostile]}}
    request = {"request_ids": [hostile], "plan": hostile, "roles": {"unseen": [hostile]}}
    page = Page(render_report(judgement, edit=facts, request=request, judged_at=NOON))
    assert not page.all("script")
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert all(image["src"].startswith("data:") for image in page.all("img"))
    assert hostile in "".join(text for _, text in page.texts)
    assert any(hostile in attributes.get("aria-label", "") for attributes in page.all("svg"))


@pytest.mark.parametrize(
    "address", ["https://example.org", "//host/x", "/etc/x", "../x", "javascript:alert(1)", "a/../../x"]
)
def test_a_link_outside_the_folder_is_refused(passed: Judgement, address: str):
    with pytest.raises(ReportError, match="expected a relative address"):
        render_report(passed, links={"more": address})


def test_headings_are_in_order(page: Page):
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_tables_pictures_and_plots_can_be_read_aloud(page: Page):
    assert len(page.all("table")) == len(page.all("caption")) > 4
    assert all(cell.get("scope") in ("col", "row") for cell in page.all("th"))
    assert all(image["alt"] for image in page.all("img"))
    assert all(svg.get("aria-label") or svg.get("aria-hidden") == "true" for svg in page.all("svg") if "role" in svg)
    identifiers = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    named = [a["aria-labelledby"] for _, a in page.elements if "aria-labelledby" in a]
    assert set(named) <= set(identifiers)


def test_every_verdict_has_a_word_beside_its_colour(failed: Judgement):
    html = render_report(failed, judged_at=NOON)
    badges = re.findall(r'<span class="badge (\w+)">(.*?)</span>', html, flags=re.DOTALL)
    assert {"passed", "failed"} <= {kind for kind, _ in badges}
    assert all(re.search(r"[A-Z][a-z]+", re.sub(r"<.*?>", "", inner)) for _, inner in badges)


def test_every_target_is_shown_before_and_after_in_its_measured_pictures(page: Page, passed: Judgement):
    images = page.all("img")
    assert len({image["src"] for image in images}) == len(images)
    measured = set(passed.measures["picture"])
    for image in images:
        content = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
        assert hashlib.sha256(content).hexdigest() in measured
    for target in worlds.TARGETS:
        own = [image["alt"] for image in images if re.search(rf"\b{target}\b.*seed", image["alt"])]
        for when in ("Before", "After"):
            seeds = [re.search(r"seed (\d+)", alt)[1] for alt in own if alt.startswith(when)]  # ty: ignore
            assert len(seeds) == 4
        assert len({re.search(r"seed (\d+)", alt)[1] for alt in own}) == 4  # ty: ignore


def test_a_picture_that_is_not_the_measured_one_is_refused(passed: Judgement):
    with pytest.raises(ReportError, match="expected the measured picture"):
        render_report(passed, read_picture=lambda _: b"another")


def test_a_picture_that_is_no_longer_kept_is_said_to_be_gone(passed: Judgement):
    def gone(address: str) -> bytes:
        raise FileNotFoundError(address)

    page = Page(render_report(passed, read_picture=gone, judged_at=NOON))
    assert not page.all("img")
    assert page.text.count("no longer kept") >= 16


def test_a_large_picture_is_carried_small(passed: Judgement, tmp_path: Path):
    path = tmp_path / "large.png"
    Image.effect_noise((512, 512), 90).save(path)
    content = path.read_bytes()
    large = replace(passed, measures=passed.measures.assign(picture=hashlib.sha256(content).hexdigest()))
    html = render_report(large, read_picture=lambda _: content, judged_at=NOON)
    assert "data:image/jpeg;base64," in html
    assert 'class="pixels"' not in html


@pytest.mark.parametrize("is_asked_for", [True, False])
def test_safe_mode_reads_and_carries_no_picture(passed: Judgement, is_asked_for: bool):
    def forbidden(address: str) -> bytes:
        raise AssertionError(f"read {address}")

    kinds = passed.measures["kind"].where(passed.measures["concept"] != "tiger", "unsafe")
    judgement = passed if is_asked_for else replace(passed, measures=passed.measures.assign(kind=kinds))
    html = render_report(judgement, safe_mode=is_asked_for, read_picture=forbidden, judged_at=NOON)
    assert "data:image" not in html
    assert "Safe mode: this report carries no pictures." in html


def test_the_same_judgement_gives_the_same_page(passed: Judgement):
    assert render_report(passed, judged_at=NOON) == render_report(passed, judged_at=NOON)


@given(st.floats(0, 1))
def test_bounds_are_never_rounded_to_look_better(value: float):
    def number(text: str) -> float:
        return float(text.split("\N{NO-BREAK SPACE}")[0].replace("−", "-"))

    noise = 1e-6
    assert number(percent_up(value)) >= 100 * value - noise
    assert number(percent_down(value)) <= 100 * value + noise
    assert number(points_down(-value)) <= -100 * value + noise
    assert number(points_up(-value)) >= -100 * value - noise


@given(st.floats(-1, 1))
def test_bounds_of_cosines_are_never_rounded_to_look_better(value: float):
    down, up = (float(show(value).replace("−", "-")) for show in (cosine_change_down, cosine_change_up))
    assert down - 1e-8 <= value <= up + 1e-8
    assert up - down <= 0.001 + 1e-8


def test_settings_are_never_rounded():
    assert exact_percent(0.9995) == "99.95 %"
    assert exact_percent(0.1) == "10 %"
    assert exact_points(-0.0025) == "−0.25"


def test_the_terminal_shows_the_reports_figures(failed: Judgement, page: Page, passed: Judgement):
    from flows.evidence import summary_lines

    for judgement in (failed, passed):
        text = Page(render_report(judgement, judged_at=NOON)).text
        lines = [spaced(line) for line in summary_lines(judgement)]
        figures = [figure for line in lines for figure in re.findall(r"[−+]?\d[\d.]*(?: %)?", line)]
        assert len(figures) > 20
        assert all(figure in text for figure in figures), [figure for figure in figures if figure not in text]
    hidden = next(line for line in lines if "hidden concepts" in line)
    assert hidden.startswith("reported")  # it gates nothing, so no verdict stands there


def test_damage_is_shown_with_the_target_that_went_the_same_way(failed: Judgement):
    page = Page(render_report(failed, judged_at=NOON))
    table = page.text[page.text.index("Lost pictures, most damaged first") :][:400]
    assert "cat retained 16 of 16 nothing (16) dog (100 %)" in table  # both are drawn as nothing
    assert "None lost a picture" not in page.text


def test_what_targets_became_is_told_without_pictures_too(passed: Judgement):
    assert "tiger nothing 100 %" in Page(render_report(passed, safe_mode=True, judged_at=NOON)).text


def test_drift_is_the_judges_own(page: Page):
    assert "1 of 3 tensors changed, 1 of them outside the layers that read the prompt" in page.text
    assert "unet.forgets" in page.text


def test_words_and_settings_are_explained(page: Page):
    for word in ("Bound What the true rate", "Paired The same prompt", "Hidden A concept", "Control A test"):
        assert word in page.text
    assert "Residual limit residual_limit 10 %" in page.text
    assert "Hidden margin hidden_margin none: reported only" in page.text
    assert "scapre evidence verify . --expect DIGEST" in page.text


def test_quality_is_reported_or_said_to_be_unknown(page: Page, quality: Judgement):
    assert "No image-text model looked at these pictures" in page.text
    own = Page(render_report(quality, judged_at=NOON))
    assert own.all("html")[0]["data-verdict"] == "failed"
    assert "Pictures of retained concepts fit their prompts less than the policy allows." in own.text
    assert "How far the pictures moved as a whole (CMMD)" in own.text
    assert "The edit spoils pictures" in own.text


def test_a_round_bound_stays_round():
    assert percent_up(0.1) == percent_down(0.1) == "10\N{NO-BREAK SPACE}%"
    assert percent_up(0.3 - 0.2) == "10\N{NO-BREAK SPACE}%"
    assert points_down(-0.05) == "−5"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(scheme: str):
    from validation.report import page as module

    css = (Path(module.__file__).parent / "report.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", css, flags=re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#\w{6});", blocks[0]))
    if scheme == "dark":
        colours |= dict(re.findall(r"--([\w-]+): (#\w{6});", blocks[1]))
    pairs = [(text, ground) for text in ("ink", "quiet", "accent") for ground in ("paper", "card", "sunken")]
    pairs += [(verdict, f"{verdict}-tint") for verdict in ("passed", "failed", "inconclusive")]
    pairs += [("ink", f"{verdict}-tint") for verdict in ("passed", "failed", "inconclusive")]
    for text, ground in pairs:
        assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)


def contrast(one: str, other: str) -> float:
    """Returns the contrast of two colours as WCAG 2 defines it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)
