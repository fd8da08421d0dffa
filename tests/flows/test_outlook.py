"""What the next run would do, on the reference model; and that withdrawing gives back the weights, by digest."""

from io import StringIO
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import scapre
from flows import candidate as candidates
from flows import desk, intake
from flows.candidate import build_candidate, fetch_base
from flows.capacity import Curve, Measured, Point, limit_curve, measured_here, predict
from flows.case_states import Event
from flows.commands.plan import _show_curve
from flows.outlook import look_ahead
from flows.requests import TakedownRequest
from flows.services import open_services
from flows.takedown import TakedownOrder, plan_run
from infra.chain import EntryKind
from infra.settings import load_settings
from validation.policy import load_policy

REFERENCE = Path(__file__).parents[2] / "infra" / "reference" / "model"
POLICY = Path(__file__).parents[2] / "flows" / "policy.yaml"
FEW = {"probes_per_target": 32, "probes_per_target_base": 4, "probes_per_retained": 1, "probes_per_hidden": 0}


def request(concept: str, *retain: str) -> TakedownRequest:
    return TakedownRequest.model_validate(
        {
            "ground": "internal",
            "jurisdiction": "EU",
            "requester": {"name": "A", "role": "artist", "contact": "a@example.org"},
            "subjects": [{"concept": concept, "kind": "object"}],
            "retain": retain,
        }
    )


@pytest.fixture(scope="module")
def services(tmp_path_factory):
    services = open_services(load_settings({}, home=tmp_path_factory.mktemp("home"), render_batch=4))
    candidates.register_base(services, "reference", REFERENCE)
    return services


@pytest.fixture(scope="module")
def order(services):
    policy = services.settings.home / "policy.yaml"
    policy.write_text(yaml.safe_dump(FEW), encoding="utf-8")
    return TakedownOrder(dials={"vocabulary": 8}, policy=policy)


def weights(services, order) -> tuple[str, tuple[str, ...]]:
    plan = plan_run(services, order)
    return build_candidate(services, plan, fetch_base(services, "reference")).digest, plan.request_ids


def test_requests_are_batched_and_a_withdrawn_one_gives_back_the_weights_by_digest(services, order):
    first, _ = intake.add_request(services, request("rose", "tulip"))
    alone, ids = weights(services, order)
    assert ids == (first,)
    second, _ = intake.add_request(services, request("tiger", "lion"))
    both, ids = weights(services, order)
    assert set(ids) == {first, second}
    assert both != alone
    desk.decide(services, second, Event.WITHDRAW, by="dana")
    assert weights(services, order) == (alone, (first,))


def test_the_next_run_is_told_without_changing_anything(services, order):
    held, _ = intake.add_request(services, request("violin"))
    services.ledger.append(EntryKind.PROMOTED, {"key": "k", "digest": "d" * 64, "request_ids": [held]})
    desk.decide(services, held, Event.WITHDRAW, by="dana")
    before = services.ledger.entries()
    found = look_ahead(services, order, more=(0, 2))
    assert services.ledger.entries() == before
    assert found.given_back == (held,)
    assert found.queued == found.request_ids
    assert set(found.anchors) == {"rose"}
    assert found.at_risk[0].target == "rose"
    assert not found.is_finished
    assert found.forecast.measured_by == "a batch of pictures drawn just now"
    assert found.forecast.pictures >= FEW["probes_per_target"] + FEW["probes_per_target_base"]
    assert found.curve is not None
    assert [point.more for point in found.curve.points] == [0, 2]
    assert found.curve.points[0].response < found.curve.points[1].response
    assert found.curve.fits is not None


def test_a_method_of_which_nothing_was_measured_is_told_so(services, order):
    intake.add_request(services, request("rose", "tulip"))
    other = order.model_copy(update={"method": "scapre-encoder", "dials": {"vocabulary": 9}})
    found = look_ahead(services, other, more=(0, 2))
    assert found.curve is not None
    assert found.curve.fits is None
    assert "no judgement of this base" in found.curve.ended_by
    told = StringIO()
    _show_curve(found.curve, Console(file=told, width=200))
    assert "nothing can be said, not even of this run" in told.getvalue()


def test_measurements_that_ship_are_of_the_reference_model(services):
    assert len(measured_here(services, scapre.base_digest(REFERENCE))) >= 3
    assert measured_here(services, "0" * 64) == ()


def curve_of(*losses: tuple[float | None, float | None], hidden_margin: float | None) -> tuple[Curve, str]:
    """The curve of points with such losses of retained and hidden concepts, and what people are told of it."""
    points = [
        Point(more, response=0.1, neighbour_response=0.1, retained_loss=retained, hidden_loss=hidden, seconds=1.0)
        for more, (retained, hidden) in enumerate(losses)
    ]
    measured = [Measured(base="0" * 64, task="a task", response=0.2, retained_loss=0.01)]
    policy = load_policy(POLICY).model_copy(update={"retained_margin": 0.05, "hidden_margin": hidden_margin})
    curve = limit_curve(points, measured, policy, ended_by="no more were tried")
    told = StringIO()
    _show_curve(curve, Console(file=told, width=200))
    return curve, told.getvalue()


@pytest.mark.parametrize(
    ("losses", "hidden_margin", "fits", "told"),
    [
        pytest.param([(0.01, None), (0.02, None)], None, 1, "1 more concepts; no more were tried", id="all fit"),
        pytest.param([(0.01, None), (0.06, None)], None, 0, "0 more concepts; 1 more would cost 6.0%", id="limit"),
        pytest.param([(0.01, None), (None, None)], None, 0, "0 more concepts; 1 more would move", id="beyond"),
        pytest.param(
            [(0.06, None)], None, None, "not even this run; 0 more would cost 6.0% of retained", id="too much"
        ),
        pytest.param(
            [(0.01, 0.2)], 0.1, None, "not even this run; 0 more would cost 20.0% of hidden", id="hidden lost"
        ),
        pytest.param([(0.01, None)], 0.1, None, "not even of this run; no judgement of this base", id="hidden unknown"),
        pytest.param([(None, None)], None, None, "not even of this run; 0 more would move", id="unknown"),
    ],
)
def test_a_curve_ends_at_the_first_limit_and_says_which_or_that_nothing_is_known(losses, hidden_margin, fits, told):
    curve, said = curve_of(*losses, hidden_margin=hidden_margin)
    assert curve.fits == fits
    assert told in said
    assert curve.is_predicted == ("nothing can be said" not in said)


LOSSES = st.lists(st.tuples(st.floats(0.01, 1), st.floats(0, 1)), min_size=1, max_size=8)


@given(LOSSES, st.lists(st.floats(0, 1), min_size=2, max_size=20))
def test_a_larger_change_is_never_predicted_to_cost_less(pairs, responses):
    known = [response for response in sorted(responses) if predict(pairs, response) is not None]
    for one, other in pairwise(known):
        assert predict(pairs, one) <= predict(pairs, other) + 1e-12


def test_beyond_what_was_measured_nothing_is_predicted():
    assert predict([], 0.1) is None
    assert predict([(0.2, None)], 0.1) is None
    assert predict([(0.2, 0.1)], 0.1) == pytest.approx(0.05)
    assert predict([(0.2, 0.1)], 0.21) is None


def test_a_candidate_tells_how_much_of_its_text_is_read_if_it_is_made(services, order):
    intake.add_request(services, request("tiger", "lion"))
    other = order.model_copy(update={"dials": {"vocabulary": 9, "slots": 3}})  # slots that no run before has read
    plan, base, told = plan_run(services, other), fetch_base(services, "reference"), []
    for _ in range(2):
        build_candidate(services, plan, base, on_progress=lambda done, known: told.append((done, known)))
    assert told
    assert told == sorted(told)
