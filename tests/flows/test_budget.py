"""Fitting a re-judgement into a budget."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.budget import fit, pictures_of_others
from flows.errors import BadRequestError
from flows.requests import TakedownRequest
from validation import Policy, parse_policy
from validation.attacks.budget import Budget

POLICY = Policy(further_packs={"paraphrase": 32})


def requests(*sizes: int) -> dict[str, TakedownRequest]:
    return {
        f"req-{number}": TakedownRequest.model_validate(
            {
                "received": "2026-01-06",
                "ground": "copyright",
                "jurisdiction": "EU",
                "requester": {"name": "A", "role": "artist", "contact": "a@example.org"},
                "subjects": [{"concept": f"thing {number} {part}", "kind": "object"} for part in range(size)],
            }
        )
        for number, size in enumerate(sizes)
    }


def test_without_a_budget_everything_is_asked_in_full():
    fitted = fit(requests(1, 2), policy=POLICY, others=100, limit=None)
    assert fitted.left_out == ()
    assert fitted.policy == POLICY
    assert fitted.at_most == 100 + 3 * (158 + 16 + 32 + 16)


def test_attacks_cost_pictures_too():
    attacked = POLICY.model_copy(update={"attacks": {"inversion": Budget(steps=5, pictures=16)}})
    plain, more = (fit(requests(1), policy=policy, others=0, limit=None).at_most for policy in (POLICY, attacked))
    assert more == plain + 3 * 16


@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=8), limit=st.integers(1, 3000))
def test_what_can_be_asked_never_exceeds_the_budget(sizes, limit):
    asked = requests(*sizes)
    try:
        fitted = fit(asked, policy=POLICY, others=50, limit=limit)
    except BadRequestError:
        assert limit < 50 + min(sizes) * 400
        return
    assert fitted.at_most <= limit
    assert set(fitted.requests) | set(fitted.left_out) == set(asked)
    assert not set(fitted.requests) & set(fitted.left_out)
    parse_policy(fitted.policy.model_dump(mode="json"), source="the budget")  # still one that can be satisfied


def test_the_first_in_order_are_taken_first():
    fitted = fit(requests(1, 1, 1), policy=POLICY, others=0, limit=2 * 130)
    assert list(fitted.requests) == ["req-0", "req-1"]
    assert fitted.left_out == ("req-2",)


def test_a_budget_that_holds_no_request_says_what_one_takes():
    with pytest.raises(BadRequestError, match="found 10 pictures; the smallest takes"):
        fit(requests(2), policy=POLICY, others=0, limit=10)


def test_others_are_drawn_by_both_models():
    assert pictures_of_others(POLICY, retained=3, hidden=2) == 2 * (3 * 8 + 2 * 8)
