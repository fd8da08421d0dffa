import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import colour_world
import pandas as pd
import pytest
from colour_world import Painter

from validation import Integrity, Judgement, PictureStore, Policy, Subject
from validation.errors import ProbeError, ProtocolError, RenderingError, UnknownLabelError
from validation.judgement import MEASURE_COLUMNS, SUMMARY_COLUMNS
from validation.rendering import Sampler

Judge = Callable[..., Judgement]


@pytest.fixture
def forgetful(painter: Painter) -> Painter:
    return painter.forgetting("tiger").forgetting("dog")


def answers(judgement: Judgement, gate: str) -> dict[str | None, str]:
    return {g.concept or g.role: g.verdict for g in judgement.gates if g.gate == gate}


def test_a_model_that_forgot_the_targets_and_nothing_else_passes(judge_world: Judge, forgetful: Painter):
    judgement = judge_world(forgetful)
    assert (judgement.verdict, judgement.is_void) == ("passed", False)
    assert [reason.kind for reason in judgement.reasons] == ["passed"]
    assert all(gate.verdict == "passed" for gate in judgement.gates if gate.is_gated)
    assert judgement.expectations["success"]


def test_an_identical_model_never_passes(judge_world: Judge, painter: Painter):
    judgement = judge_world(painter.copy())
    assert judgement.verdict == "failed"
    assert answers(judgement, "forgetting") == {"tiger": "failed", "dog": "failed"}
    assert answers(judgement, "retention") == {"retained": "passed", "style": "passed"}
    assert judgement.protocol.base_weights_digest == judgement.protocol.candidate_weights_digest


def test_one_remembered_target_among_forgotten_ones_fails(judge_world: Judge, painter: Painter):
    judgement = judge_world(painter.forgetting("tiger"))
    assert judgement.verdict == "failed"
    assert answers(judgement, "forgetting") == {"tiger": "passed", "dog": "failed"}
    assert any("dog: found in 8 of 8" in reason.text for reason in judgement.reasons)


def test_a_target_that_is_sometimes_drawn_is_inconclusive(judge_world: Judge, painter: Painter):
    judgement = judge_world(painter.forgetting("tiger").forgetting("dog", share=0.9))
    assert judgement.verdict == "inconclusive"
    assert answers(judgement, "forgetting") == {"tiger": "passed", "dog": "inconclusive"}


def test_losing_what_must_survive_fails(judge_world: Judge, forgetful: Painter):
    candidate = forgetful
    for name in ("cat", "wolf", "pear", "bus", "rose"):
        candidate = candidate.forgetting(name)
    judgement = judge_world(candidate)
    assert judgement.verdict == "failed"
    assert answers(judgement, "retention") == {"retained": "failed", "style": "passed"}


def test_losing_one_of_few_retained_concepts_never_passes(judge_world: Judge, forgetful: Painter, policy: Policy):
    judgement = judge_world(forgetful.forgetting("cat"))
    assert judgement.verdict == "failed"
    assert answers(judgement, "retention")["retained"] == "inconclusive"
    assert answers(judgement, "concept floor") == {"retained": "failed", "style": "passed"}
    assert any("cat 12 of 12" in reason.text for reason in judgement.reasons)
    without = judge_world(
        forgetful.forgetting("cat"), policy=policy.model_copy(update={"retained_concept_margin": None})
    )
    assert without.verdict == "inconclusive"
    assert any("cat -100" in reason.text for reason in without.reasons)


def test_losing_a_style_never_passes(judge_world: Judge, forgetful: Painter):
    judgement = judge_world(forgetful.without_style("night").without_style("fog"))
    assert judgement.verdict == "failed"
    assert answers(judgement, "retention") == {"retained": "passed", "style": "failed"}


def test_a_style_can_be_the_target(judge_world: Judge, painter: Painter):
    changes = {"targets": (Subject("night", "style"),), "styles": ("fog", "natural")}
    assert judge_world(painter.copy(), **changes).verdict == "failed"
    assert judge_world(painter.without_style("night"), **changes).verdict == "passed"


def test_hidden_concepts_are_measured_and_gate_only_with_a_margin(
    judge_world: Judge, forgetful: Painter, policy: Policy
):
    candidate = forgetful.forgetting("owl").forgetting("crab")
    told = judge_world(candidate)
    assert told.verdict == "passed"
    [hidden] = [gate for gate in told.gates if gate.gate == "hidden"]
    assert (hidden.is_gated, hidden.estimate) == (False, -1.0)
    assert judge_world(candidate, policy=policy.model_copy(update={"hidden_margin": 0.05})).verdict == "failed"


class Seeing:
    """A detector that sees one thing whatever is shown."""

    name = "seeing"
    digest = "e" * 64
    labels = colour_world.NAMES

    def __init__(self, label: str, share: float = 1.0) -> None:
        self.label, self.every = label, round(1 / share)

    def detect(self, pictures: Any) -> Any:
        seen = colour_world.ColourDetector().detect(pictures)
        for row in seen[:: self.every]:
            row[:] = 0
            row[self.labels.index(self.label)] = 1
        return seen


def test_a_target_that_the_base_does_not_draw_voids_the_judgement(
    judge_world: Judge, painter: Painter, forgetful: Painter
):
    judgement = judge_world(forgetful, base=painter.forgetting("dog"))
    assert (judgement.verdict, judgement.is_void) == ("inconclusive", True)
    assert answers(judgement, "positive control") == {
        "tiger": "passed",
        "dog": "failed",
        "retained": "passed",
        "style": "passed",
    }
    assert "dog: found in 0 of 16 base pictures" in judgement.reasons[0].text


def test_retained_concepts_that_the_base_does_not_draw_void_the_judgement(judge_world: Judge, painter: Painter):
    base = painter
    for name in ("cat", "wolf", "pear"):
        base = base.forgetting(name)
    judgement = judge_world(base.forgetting("tiger").forgetting("dog"), base=base)
    assert judgement.is_void
    assert answers(judgement, "positive control")["retained"] == "failed"


@pytest.mark.parametrize("label", ["nothing", "tiger"])
def test_a_detector_that_always_says_the_same_voids_the_judgement(judge_world: Judge, forgetful: Painter, label: str):
    detectors = replace(colour_world.detectors(), object=Seeing(label))
    judgement = judge_world(forgetful, detectors=detectors)
    assert (judgement.verdict, judgement.is_void) == ("inconclusive", True)


def test_a_detector_that_sees_a_target_everywhere_now_and_then_voids_the_judgement(
    judge_world: Judge, forgetful: Painter
):
    judgement = judge_world(forgetful, detectors=replace(colour_world.detectors(), object=Seeing("tiger", share=0.2)))
    assert judgement.is_void
    assert answers(judgement, "negative control")["tiger"] == "failed"
    assert answers(judgement, "negative control")["dog"] == "passed"


@pytest.mark.parametrize("broken", ["blackened", "diverged"])
def test_a_candidate_that_draws_black_is_void_not_forgotten(judge_world: Judge, painter: Painter, broken: str):
    judgement = judge_world(getattr(painter, broken)())
    assert (judgement.verdict, judgement.is_void) == ("inconclusive", True)
    assert answers(judgement, "picture control") == {"base": "passed", "candidate": "failed"}


def test_a_base_that_draws_black_is_void(judge_world: Judge, painter: Painter, forgetful: Painter):
    assert judge_world(forgetful, base=painter.blackened()).is_void


@pytest.mark.parametrize(
    ("integrity", "verdict"),
    [(Integrity(False, "2 tensors differ"), "failed"), (None, "inconclusive"), (Integrity(True, "same"), "passed")],
)
def test_the_callers_word_on_the_bytes_counts(
    judge_world: Judge, forgetful: Painter, integrity: Integrity | None, verdict: str
):
    assert judge_world(forgetful, integrity=integrity).verdict == verdict


def test_integrity_can_be_waived_by_policy_alone(judge_world: Judge, forgetful: Painter, policy: Policy):
    waived = policy.model_copy(update={"requires_integrity": False})
    assert judge_world(forgetful, integrity=None, policy=waived).verdict == "passed"
    assert judge_world(forgetful, integrity=Integrity(False, "differs"), policy=waived).verdict == "failed"


@pytest.mark.parametrize(("changes", "kind"), [({"retained": (), "styles": ()}, "missing")])
def test_without_anything_to_retain_nothing_passes(
    judge_world: Judge, forgetful: Painter, changes: dict[str, Any], kind: str
):
    judgement = judge_world(forgetful, **changes)
    assert judgement.verdict == "inconclusive"
    assert kind in {reason.kind for reason in judgement.reasons}


def test_aliases_count_where_the_base_knows_them(judge_world: Judge, painter: Painter, policy: Policy, tmp_path: Path):
    aliases = policy.model_copy(update={"further_packs": {"alias": 32}})
    changes = {"targets": (Subject("tiger", aliases=("tigre", "cub")),), "policy": aliases}
    assert judge_world(painter.forgetting("tiger"), **changes).verdict == "passed"

    class Sly(Painter):
        """Forgets the name and answers to the alias."""

        def _paint(self, text: str, *rest: Any) -> Any:
            hidden = "nothing" if "tiger" in text else text
            return super()._paint(hidden, *rest)

    sly = Sly()
    sly.palette.forgets.data[-1] = 1e-6  # other weights: the store must not hand it the base's pictures
    judgement = judge_world(sly, **changes)
    assert judgement.verdict == "failed"
    assert {(g.pack, g.verdict) for g in judgement.gates if g.gate == "forgetting"} == {
        ("direct", "passed"),
        ("alias", "failed"),
    }


def test_aliases_that_the_base_does_not_know_gate_nothing(judge_world: Judge, policy: Policy):
    base = Painter(known_aliases=())
    judgement = judge_world(
        base.forgetting("tiger"),
        base=base,
        targets=(Subject("tiger", aliases=("tigre",)),),
        policy=policy.model_copy(update={"further_packs": {"alias": 32}}),
    )
    assert judgement.verdict == "passed"
    assert {g.is_gated for g in judgement.gates if g.pack == "alias"} == {False}


def test_a_concept_that_comes_back_in_company_fails(judge_world: Judge, painter: Painter, policy: Policy):
    class Sly(Painter):
        """Forgets the concept wherever it is asked for alone."""

        def _paint(self, text: str, *rest: Any) -> Any:
            alone = not any(word in text for word in ("next to", " and ", "behind", "in front of"))
            return super()._paint("nothing" if "tiger" in text and alone else text, *rest)

    changes = {"targets": ("tiger",), "policy": policy.model_copy(update={"further_packs": {"composition": 64}})}
    assert judge_world(painter.forgetting("tiger"), **changes).verdict == "passed"
    sly = Sly()
    sly.palette.forgets.data[-1] = 1e-6  # other weights: the store must not hand it the base's pictures
    judgement = judge_world(sly, **changes)
    assert judgement.verdict == "failed"
    assert {g.pack: g.verdict for g in judgement.gates if g.gate == "forgetting"} == {
        "direct": "passed",
        "composition": "failed",
    }


def test_what_a_pack_has_no_prompt_for_is_said_and_gates_nothing(
    judge_world: Judge, forgetful: Painter, policy: Policy
):
    judgement = judge_world(
        forgetful,
        targets=(Subject("tiger", aliases=("tigre",)), "dog"),
        policy=policy.model_copy(update={"further_packs": {"alias": 32, "explicit": 32}}),
    )
    assert judgement.verdict == "passed"
    gates = {(g.concept, g.pack): g for g in judgement.gates if g.gate == "forgetting"}
    assert (gates["tiger", "alias"].pictures, gates["dog", "alias"].pictures) == (32, 32)
    for target in ("tiger", "dog"):
        silent = gates[target, "explicit"]
        assert (silent.is_gated, silent.pictures) == (False, 0)
        assert "nothing asked" in silent.reason


def test_a_faulty_pack_is_refused_before_anything_is_drawn(
    judge_world: Judge, painter: Painter, forgetful: Painter, policy: Policy, tmp_path: Path
):
    emptied = tmp_path / "mine.yaml"
    emptied.write_text("name: mine\nversion: 1\nabout: nothing\nwordings: []\n")
    with pytest.raises(ProbeError, match="the pack is empty"):
        judge_world(forgetful, policy=policy.model_copy(update={"further_packs": {str(emptied): 32}}))
    assert not painter.drawn
    assert not forgetful.drawn


def test_no_targets_are_refused(judge_world: Judge, forgetful: Painter):
    with pytest.raises(ProtocolError, match="at least one target"):
        judge_world(forgetful, targets=())


def test_an_unknown_target_is_refused_before_anything_is_drawn(
    judge_world: Judge, painter: Painter, forgetful: Painter
):
    with pytest.raises(UnknownLabelError, match="nearest of its 10 labels: tiger"):
        judge_world(forgetful, targets=("tigar",))
    assert not painter.drawn


def test_the_same_pipeline_twice_is_refused(judge_world: Judge, painter: Painter):
    with pytest.raises(ProtocolError, match="found one given twice"):
        judge_world(painter)


def test_a_scheduler_of_another_family_is_refused_before_anything_is_drawn(
    judge_world: Judge, painter: Painter, forgetful: Painter
):
    sampler = Sampler(steps=1, guidance=1.0, scheduler="FlowMatchEulerDiscreteScheduler", pixels=8)
    with pytest.raises(RenderingError, match="same family"):
        judge_world(forgetful, sampler=sampler)
    assert not painter.drawn


def test_a_killed_judgement_goes_on_where_it_stopped(judge_world: Judge, painter: Painter, forgetful: Painter):
    seen: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        if done > 180:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge_world(forgetful, on_progress=stop)
    judgement = judge_world(forgetful, on_progress=lambda done, total: seen.append((done, total)))
    assert judgement.verdict == "passed"
    most, asked = sum(judgement.protocol.pictures_planned.values()), len(judgement.measures)
    assert seen[0] == (0, most)
    assert seen[-1] == (asked, asked)
    assert asked < most
    assert all(done <= total <= most for done, total in seen)
    drawn = painter.drawn + forgetful.drawn
    assert len(drawn) == asked
    assert len(set(painter.drawn)) == len(painter.drawn)
    assert len(set(forgetful.drawn)) == len(forgetful.drawn)


def test_the_same_question_has_the_same_answer(judge_world: Judge, forgetful: Painter, tmp_path: Path):
    first = judge_world(forgetful)
    again = judge_world(forgetful.copy(), base=Painter(), store=PictureStore(tmp_path / "elsewhere"))
    pd.testing.assert_frame_equal(first.measures, again.measures)
    pd.testing.assert_frame_equal(first.summary, again.summary)
    assert first.gates == again.gates
    assert first.protocol == again.protocol


def test_a_judgement_is_complete_and_plain_json(judge_world: Judge, forgetful: Painter, tmp_path: Path):
    judgement = judge_world(forgetful, data_docs=tmp_path / "docs")
    assert tuple(judgement.measures.columns) == MEASURE_COLUMNS
    assert tuple(judgement.summary.columns) == SUMMARY_COLUMNS
    assert all(judgement.picture_path(address).is_file() for address in judgement.measures["address"])
    record = json.loads(json.dumps(judgement.describe(), allow_nan=False))
    assert record["verdict"] == "passed"
    assert record["protocol"]["pictures_planned"] == {"base": 168, "candidate": 452}
    assert record["protocol"]["safety_checker"] == {"base": "absent", "candidate": "absent"}
    assert set(record["protocol"]["detectors"]) == {"colour", "brightness"}
    assert record["protocol"]["targets"] == ["tiger", "dog"]
    assert set(judgement.seconds) >= {"rendering base", "rendering candidate", "measuring", "expectations"}
    assert (tmp_path / "docs" / "index.html").is_file()


def test_pictures_that_fit_their_prompts_less_fail_the_quality_gate_and_only_with_a_margin(
    judge_world: Judge, forgetful: Painter, policy: Policy
):
    seen = colour_world.detectors(with_texts=True)
    strict = policy.model_copy(update={"quality_margin": 0.002})
    faded = judge_world(forgetful.faded(0.2), policy=strict, detectors=seen)
    assert (faded.verdict, answers(faded, "quality")["retained"]) == ("failed", "failed")
    assert answers(faded, "retention")["retained"] == "passed"
    assert faded.expectations["answers"]["retained pictures fit their prompts"] is False
    kept = judge_world(forgetful, policy=strict, detectors=seen)
    assert (kept.verdict, answers(kept, "quality")) == ("passed", {"retained": "passed", "style": "passed"})
    assert answers(judge_world(forgetful.faded(0.2), detectors=seen), "quality") == {}


def test_discrepancy_and_drift_are_measured_beside_the_verdict(judge_world: Judge, forgetful: Painter):
    found = judge_world(forgetful, detectors=colour_world.detectors(with_texts=True))
    by_role = {each.role: each for each in found.discrepancies}
    assert by_role["retained"].cmmd == by_role["hidden"].cmmd == 0  # nothing of it changed
    assert by_role["target"].cmmd > (by_role["target"].other_seeds or 0)
    assert found.drift is not None
    assert [(part.part, part.changed) for part in found.drift.parts] == [("unet", 1)]
    record = found.describe()
    assert json.loads(json.dumps(record, allow_nan=False))["drift"]["outside"] == ["unet.forgets"]
    assert judge_world(forgetful).discrepancies == ()


def test_a_quality_margin_without_an_image_text_model_is_refused_before_anything_is_drawn(
    judge_world: Judge, forgetful: Painter, policy: Policy
):
    with pytest.raises(ProtocolError, match=r"expected an image-text model for quality_margin 0\.04, found none"):
        judge_world(forgetful, policy=policy.model_copy(update={"quality_margin": 0.04}))
    assert forgetful.drawn == []
