"""What a ledger says of each request, and what may happen to it."""

import itertools
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.case_states import ACTIVE, DESK, PIPELINE, TRANSITIONS, CaseState, Event
from flows.cases import Case, fold_cases
from flows.deadlines import load_deadlines
from flows.errors import BadRequestError
from infra.chain import EntryKind
from tests.flows.case_entries import START, Tale

TABLE = load_deadlines()


def case_of(tale: Tale, request_id: str = "req-1") -> Case:
    return fold_cases(tale.entries, TABLE)[request_id]


def states(tale: Tale) -> list[str]:
    return [step.state for step in case_of(tale).history]


def test_a_request_passes_through_every_state_in_order():
    tale = Tale().added().accepted().built("req-1")
    tale.tell(EntryKind.JUDGED, key="k", digest="d" * 64, verdict="passed")
    tale.tell(EntryKind.APPROVED, digest="d" * 64, request_ids=["req-1"], approver="ann", expires="2026-04-01")
    tale.promoted("req-1").tell(EntryKind.REVERIFIED, verdict="passed", request_ids=["req-1"], digest="d" * 64)
    tale.desk(EntryKind.REQUEST_CLOSED)
    expected = "received triaged valid queued unlearned judged approved promoted confirmed closed"
    assert states(tale) == expected.split()
    case = case_of(tale)
    assert case.is_active
    assert case.verdict == "passed"
    assert case.history[6].who == "ann"


def test_a_failed_verification_sets_a_confirmed_case_back_to_promoted():
    tale = Tale().added().accepted().built("req-1").promoted("req-1")
    for verdict, state in (("passed", "confirmed"), ("inconclusive", "confirmed"), ("failed", "promoted")):
        tale.tell(EntryKind.REVERIFIED, verdict=verdict, request_ids=["req-1"], digest="d" * 64)
        assert case_of(tale).state == state


def test_a_rollback_sets_back_what_the_restored_champion_does_not_hold():
    tale = Tale().added("req-1").accepted("req-1").built("req-1").promoted("req-1")
    tale.added("req-2").accepted("req-2").built("req-1", "req-2", key="l").promoted("req-1", "req-2", key="l")
    tale.tell(EntryKind.ROLLED_BACK, version="1", digest="d" * 64, reason="regression", request_ids=["req-1"])
    assert case_of(tale, "req-1").state == CaseState.PROMOTED
    assert case_of(tale, "req-2").state == CaseState.JUDGED


def test_a_later_candidate_does_not_set_back_what_is_promoted():
    tale = Tale().added().accepted().built("req-1").promoted("req-1").built("req-1", key="l")
    assert case_of(tale).state == CaseState.PROMOTED


def test_a_contested_request_stays_in_force_until_it_is_reinstated():
    tale = Tale().added().accepted().desk(EntryKind.REQUEST_COUNTER_NOTICED)
    assert case_of(tale).is_active
    tale.built("req-1")
    assert case_of(tale).state == CaseState.COUNTER_NOTICED
    upheld, reinstated = Tale(), Tale()
    upheld.entries, reinstated.entries = list(tale.entries), list(tale.entries)
    assert case_of(upheld.desk(EntryKind.REQUEST_UPHELD)).state == CaseState.UNLEARNED
    assert not case_of(reinstated.desk(EntryKind.REQUEST_REINSTATED)).is_active


def test_a_request_of_before_validation_is_in_force():
    old = {"commitment": "0" * 64, "base": "reference", "ground": "copyright", "jurisdiction": "EU", "concepts": 1}
    tale = Tale().tell(EntryKind.REQUEST_ADDED, request_id="req-1", received="2026-01-05", **old)
    assert case_of(tale).state == CaseState.QUEUED
    assert case_of(Tale().added()).state == CaseState.RECEIVED


@pytest.mark.parametrize(("state", "event"), list(itertools.product(CaseState, Event)))
def test_what_the_table_does_not_hold_is_refused_with_a_next_step(state, event):
    case = Case(**{**vars(case_of(Tale().added())), "state": state})
    if state in TRANSITIONS[event][0]:
        case.require(event)
        return
    with pytest.raises(BadRequestError, match=f"expected request req-1 to be .* found it {state}; "):
        case.require(event)


def test_what_was_written_against_the_table_does_not_count():
    tale = Tale().added().desk(EntryKind.REQUEST_VALIDATED).desk(EntryKind.REQUEST_CLOSED)
    assert case_of(tale).state == CaseState.RECEIVED
    assert len(case_of(tale).history) == 1


def test_pauses_and_extensions_move_deadlines():
    plain = Tale().added(ground="privacy", jurisdiction="EU")
    due = {deadline.name: deadline for deadline in case_of(plain).deadlines}
    assert due["acknowledge"].due_at == START + timedelta(hours=72)
    assert due["decide"].due_at == START.replace(month=4)
    plain.desk(EntryKind.REQUEST_PAUSED).desk(EntryKind.REQUEST_RESUMED, hours=48).desk(EntryKind.REQUEST_EXTENDED)
    moved = {deadline.name: deadline.due_at for deadline in case_of(plain).deadlines}
    assert moved["acknowledge"] == START + timedelta(hours=72 + 48)
    assert moved["decide"] == START.replace(month=6) + timedelta(hours=48)


def test_a_deadline_is_open_then_near_then_missed_and_met_by_its_step():
    tale = Tale().added()
    first = case_of(tale).deadlines[0]
    assert first.name == "acknowledge"
    assert first.state(START) == "open"
    assert first.state(START + timedelta(hours=23)) == "near"
    assert first.state(START + timedelta(hours=25)) == "missed"
    assert case_of(tale.accepted()).deadlines[0].state(START + timedelta(hours=25)) == "met"
    late = Tale().added().desk(EntryKind.REQUEST_TRIAGED, hours=30)
    assert case_of(late).deadlines[0].state(START) == "met_late"
    paused = Tale().added().desk(EntryKind.REQUEST_PAUSED)
    assert case_of(paused).deadlines[0].state(START + timedelta(days=9)) == "paused"


def test_a_counter_notice_opens_a_window_of_business_days():
    tale = Tale().added().accepted().desk(EntryKind.REQUEST_COUNTER_NOTICED)
    due = {deadline.name: deadline.due_at for deadline in case_of(tale).deadlines}
    assert f"{due['put_back_earliest']:%a %d %b}" == "Mon 16 Mar"
    assert f"{due['put_back_latest']:%a %d %b}" == "Fri 20 Mar"


KINDS = st.sampled_from([*DESK, *PIPELINE, EntryKind.REVERIFIED, EntryKind.ROLLED_BACK])


@given(st.lists(st.tuples(KINDS, st.sampled_from(["passed", "failed"])), max_size=30))
def test_whatever_a_ledger_holds_every_step_is_in_the_table(steps):
    tale = Tale().added()
    for kind, verdict in steps:
        if kind in DESK:
            tale.desk(kind)
        else:
            tale.tell(kind, key="k", digest="d" * 64, verdict=verdict, request_ids=["req-1"])
    case = case_of(tale)
    reached = [step.state for step in case.history]
    reachable = {target for _, target in TRANSITIONS.values()} | {CaseState.RECEIVED, CaseState.QUEUED}
    assert set(reached) <= reachable
    assert CaseState.REJECTED not in reached or case.has(EntryKind.REQUEST_TRIAGED)
    if case.is_active:
        assert case.has(EntryKind.REQUEST_VALIDATED)
    assert case.is_active == (case.state in ACTIVE)
