"""What a run's page shows of a judgement of the colour world, and what it keeps to itself."""

import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from flows.evidence import Kept

sys.path.append(str(Path(__file__).parents[1] / "validation"))  # the colour world and its judgements
import judged


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Kept:
    judgement = judged.judged(judged.bad(), tmp_path_factory.mktemp("pictures"))
    return Kept(judgement, Path("bundle"), "e" * 64, "file:///bundle")


def as_kind(kept: Kept, kind: str) -> Any:
    judgement = kept.judgement
    measures = judgement.measures.assign(kind=judgement.measures.kind.where(judgement.measures.role != "target", kind))
    return type(judgement)(**{**vars(judgement), "measures": measures})


def test_what_failed_comes_first_and_objects_are_named(kept):
    from flows.run_page import gate_rows

    rows = gate_rows(kept.judgement, {})
    assert [row["verdict"] for row in rows][:1] == ["failed"]
    assert len(rows) == len(kept.judgement.gates)
    assert {"tiger", "dog"} <= {row["about"] for row in rows}


def test_limits_and_bounds_are_in_the_unit_of_their_gate(kept):
    from flows.run_page import gate_rows

    rows = {(row["gate"], row["about"]): row for row in gate_rows(kept.judgement, {})}
    assert rows["forgetting", "dog"]["limit"].startswith("10")
    assert rows["retention", "retained concepts"]["bounds"].endswith("points")
    assert rows["picture control", "pictures of the base"]["found"].startswith("0 of")


@pytest.mark.parametrize("kind", ["style", "identity", "unsafe"])
def test_what_may_be_a_person_is_called_by_its_place_in_its_request(kept, kind):
    from flows.run_page import gate_rows

    rows = gate_rows(as_kind(kept, kind), {"tiger": ("req-1#1",)})
    about = {row["about"] for row in rows}
    assert "req-1#1" in about
    assert "a target concept" in about
    assert not {"tiger", "dog"} & about


@pytest.mark.parametrize(
    ("kind", "is_shown"), [("object", True), ("style", True), ("identity", False), ("unsafe", False)]
)
def test_pictures_are_shown_of_objects_and_styles_only(kept, kind, is_shown):
    from flows.run_page import picture_uri

    uri = picture_uri(as_kind(kept, kind))
    assert (uri is not None) is is_shown
    assert uri is None or uri.startswith("data:image/jpeg;base64,")


def test_large_pictures_are_made_small_and_small_ones_larger(kept):
    from flows.tracking import before_and_after

    judgement = kept.judgement
    assert before_and_after(judgement, ["tiger"]).height == 2 * 3 * 8
    assert before_and_after(judgement, ["tiger", "dog"], side=4).height == 4 * 4
    assert before_and_after(judgement, []).size == (3, 3)


def test_a_page_that_cannot_be_written_stops_nothing(kept, monkeypatch):
    from flows import run_page

    def unreachable(*_arguments: Any, **_options: Any) -> None:
        raise httpx.ConnectError("no server")

    monkeypatch.setattr(run_page, "create_markdown_artifact", unreachable)
    monkeypatch.setattr(run_page, "create_progress_artifact", unreachable)
    run_page.show_judgement(kept, purpose="takedown", names={})
    with run_page.shown_progress("rendering") as on_progress:
        on_progress(1, 2)


@pytest.mark.parametrize(("after", "shown"), [(0.0, [50.0, 100.0]), (1e9, [])])
def test_the_page_shows_progress_of_what_takes_long_and_nothing_of_the_rest(monkeypatch, after, shown):
    from flows import run_page

    told: list[float] = []
    monkeypatch.setattr(run_page, "create_progress_artifact", lambda share, **_: told.append(share) or uuid4())
    monkeypatch.setattr(run_page, "update_progress_artifact", lambda _, progress: told.append(progress))
    with run_page.shown_progress("reading", of="texts", after=after) as on_progress:
        on_progress(1, 2)
        on_progress(2, 2)
    assert told == shown
