import dataclasses
from datetime import date

import pytest

import scapre
from flows.errors import BadRequestError
from flows.plan import make_plan
from flows.requests import Requester, Subject, TakedownRequest
from scapre.concepts import canonical_concepts
from scapre.methods import find_method


def request(*concepts: str, retain: tuple[str, ...] = (), base: str = "reference", kind: str = "object"):
    return TakedownRequest(
        received=date(2026, 1, 5),
        ground="copyright",
        jurisdiction="EU",
        requester=Requester(name="A", role="artist", contact="a@example.org"),
        subjects=tuple(Subject(concept=c, kind=kind, aliases=(f"{c} alias",)) for c in concepts),
        retain=retain,
        base=base,
    )


def plan(*requests, **changes):
    facts = {
        "base": "reference",
        "base_digest": "0" * 64,
        "method": "scapre",
        "dials": {},
        "withheld": (),
        "policy": {},
        "packs": {},
    }
    return make_plan({r.request_id: r for r in requests}, **(facts | changes))


def test_a_plan_is_the_union_of_all_requests_for_its_base():
    made = plan(request("tiger"), request("rose", "tiger"), request("owl", base="other"))
    assert [s.concept for s in made.subjects] == ["rose", "tiger"]
    assert len(made.request_ids) == 2


def test_what_one_request_takes_down_no_other_retains():
    made = plan(request("tiger"), request("rose", retain=("tiger", "lion")))
    assert made.retain == ("lion",)


def test_another_spelling_is_the_same_concept_and_forgotten_too():
    made = plan(request("tiger"), request("Tigers", "fire engine", retain=("Fire-Engines", "fire", "lions")))
    merged = next(subject for subject in made.subjects if "tiger" in subject.concept.casefold())
    assert {merged.concept, *merged.aliases} >= {"tiger", "Tigers", "tiger alias", "Tigers alias"}
    assert len(made.subjects) == 2
    assert made.retain == ("fire", "lions")
    canonical_concepts(scapre.Concept(s.concept, aliases=s.aliases) for s in made.subjects)  # as the engine takes them


def test_what_one_request_takes_down_no_other_becomes():
    def become(anchor: str):
        asked = request("tiger")
        return asked.model_copy(
            update={"subjects": tuple(s.model_copy(update={"anchor": anchor}) for s in asked.subjects)}
        )

    assert [s.anchor for s in plan(become("Rose"), request("rose")).subjects] == [None, None]
    assert plan(become("Rose"), request("violin")).subjects[0].anchor == "Rose"  # the control


def test_the_key_does_not_depend_on_the_order_of_requests():
    first, second = request("tiger"), request("rose")
    assert plan(first, second).key == plan(second, first).key


@pytest.mark.parametrize(
    "change",
    [
        {"base_digest": "1" * 64},
        {"method": "uce"},
        {"dials": {"ridge": 0.5}},
        {"withheld": ("star",)},
        {"policy": {"residual_limit": 0.2}},
        {"packs": {"direct": "0" * 64}},
    ],
)
def test_the_key_depends_on_all_that_decides_the_outcome(change):
    assert plan(request("tiger")).key != plan(request("tiger"), **change).key


def test_the_key_holds_defaults_and_the_engines_version():
    made = plan(request("tiger"))
    assert made.dials == find_method("scapre").resolve({})
    spelled_out = plan(request("tiger"), dials={"erasure_strength": made.dials["erasure_strength"]})
    assert spelled_out.key == made.key
    another_default = dataclasses.replace(made, dials={**made.dials, "erasure_strength": 7.0})
    assert another_default.key != made.key
    assert dataclasses.replace(made, engine="0.0.0").key != made.key


def test_requests_that_contradict_each_other_are_refused():
    with pytest.raises(BadRequestError, match="to agree on kind"):
        plan(request("tiger"), request("tiger", kind="style"))


def test_no_active_request_is_refused():
    with pytest.raises(BadRequestError, match="request add"):
        plan(request("tiger", base="other"))
