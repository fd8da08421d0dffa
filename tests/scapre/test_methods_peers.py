"""RECE, SPEED and OCE against their formulas, written out in loops, and what each of them promises."""

import itertools
import math
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from scapre import SingularSystemError
from scapre.methods import Problem, find_method, oce, rece, speed
from scapre.responses import ResponseMoments
from tests.scapre.problems import ROWS, WIDTH, assert_close, each_slot, problem_of, solve


def naive_uce(problem: Problem, *, strength: float, kept: float, ridge: float, extra: list[tuple[Tensor, Tensor]]):
    system = ridge * torch.eye(WIDTH, dtype=torch.float64)
    for group in ("named", "found"):
        for feature in problem.statistics.retained.features[group]:
            system = system + kept * torch.outer(feature, feature)
    right = problem.base @ system
    for feature, anchor in [*each_slot(problem.statistics), *extra]:
        system = system + strength * torch.outer(feature, feature)
        right = right + strength * torch.outer(problem.base @ anchor, feature)
    return torch.linalg.solve(system, right.mT).mT - problem.base


def naive_attacks(problem: Problem, delta: Tensor, ridge: float) -> list[tuple[Tensor, Tensor]]:
    edited, width = problem.base + delta, problem.base.shape[1]
    system = torch.zeros(width, width, dtype=torch.float64)
    for row in edited:
        system = system + torch.outer(row, row)
    system = system + ridge * problem.base.square().sum() / width * torch.eye(width, dtype=torch.float64)
    return [
        (torch.linalg.solve(system, edited.mT @ (problem.base @ feature)), anchor)
        for feature, anchor in each_slot(problem.statistics)
    ]


@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_rece_equals_its_rounds_written_out(rounds: int) -> None:
    problem = problem_of()
    dials = {"strength": 1.5, "kept": 0.2, "ridge": 0.7}
    extra: list[tuple[Tensor, Tensor]] = []
    delta = naive_uce(problem, **dials, extra=extra)
    for _ in range(rounds):
        extra += naive_attacks(problem, delta, ridge=0.3)
        delta = naive_uce(problem, **dials, extra=extra)
    given = {"erasure_strength": 1.5, "retention_strength": 0.2, "ridge": 0.7, "attack_ridge": 0.3, "rounds": rounds}
    assert_close(solve(problem, "rece", **given).delta, delta, 1e-7 if rounds == 2 else 1e-9)


def test_attack_minimizes_its_objective() -> None:
    base, edited = problem_of().base, problem_of(seed=5).base
    moments = ResponseMoments.of(base, edited - base)
    feature = torch.randn(WIDTH, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    penalty = 0.4 * base.square().sum() / WIDTH
    attack = (rece.attack_map(moments, 0.4) @ feature).requires_grad_(True)
    value = (edited @ attack - base @ feature).square().sum() + penalty * attack.square().sum()
    gradient = torch.autograd.grad(value, attack)[0]
    assert gradient.norm() < 1e-9 * (2 * edited.mT @ (base @ feature)).norm()


def test_every_round_of_rece_leaves_less_to_regain() -> None:
    regained = solve(problem_of(found=0), "rece", rounds=4).diagnostics["regained_response"]
    assert len(regained) == 4
    assert all(later < earlier for earlier, later in itertools.pairwise(regained))
    assert regained[-1] < 0.7 * regained[0]


def test_rece_without_rounds_is_uce() -> None:
    assert torch.equal(solve(problem_of(), "rece", rounds=0).delta, solve(problem_of(), "uce").delta)


def naive_null_space_edit(problem: Problem, basis: Tensor, strength: float, ridge: float) -> Tensor:
    """Least squares in the coordinates of the null space, by the normal equations of every slot."""
    inner, rows = basis.shape[1], []
    for row in problem.base:
        system, right = ridge * torch.eye(inner, dtype=torch.float64), torch.zeros(inner, dtype=torch.float64)
        for feature, anchor in each_slot(problem.statistics):
            inside = basis.mT @ feature
            system = system + strength * torch.outer(inside, inside)
            right = right + strength * (row @ (anchor - feature)) * inside
        rows.append(basis @ torch.linalg.solve(system, right))
    return torch.stack(rows)


def test_speed_equals_least_squares_in_the_null_space() -> None:
    problem = problem_of(found=1, width=96)
    retained = problem.statistics.retained
    counted = torch.cat([retained.features["named"], retained.features["found"], retained.features["general"]])
    basis = torch.linalg.svd(counted).Vh[int(torch.linalg.matrix_rank(counted)) :].mT
    assert 0 < basis.shape[1] < 96
    expected = naive_null_space_edit(problem, basis, strength=2.0, ridge=0.3)
    found = solve(problem, "speed", null_share=0, filter_factor=0, erasure_strength=2.0, ridge=0.3)
    assert found.diagnostics["null_dimensions"] == basis.shape[1]
    assert_close(found.delta, expected, 1e-7)


def test_speed_leaves_retained_responses_as_they_are() -> None:
    problem = problem_of(found=1, width=96)
    retained = problem.statistics.retained
    kept = torch.cat([retained.features[group] for group in ("named", "found", "general")])
    delta = solve(problem, "speed", null_share=0, filter_factor=0).delta
    assert delta.norm() > 0
    before = (problem.base @ kept.mT).norm()
    assert (delta @ kept.mT).norm() < 1e-8 * before
    assert (solve(problem, "uce").delta @ kept.mT).norm() > 1e-3 * before  # the control: others do move them


def test_speed_keeps_what_would_shift_and_lets_the_rest_go() -> None:
    problem = problem_of(found=30)
    counts = [
        solve(problem, "speed", filter_factor=factor).diagnostics["slots_that_count"] for factor in (0.0, 1.0, 2.0, 1e6)
    ]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == problem.statistics.retained.counts["named"] + problem.statistics.retained.counts["found"]
    assert counts[-1] == 0 < counts[1] < counts[0]


@given(seed=st.integers(0, 500), share=st.floats(1e-6, 0.5))
def test_null_space_holds_no_more_than_its_share(seed: int, share: float) -> None:
    features = torch.randn(40, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    moment = features.mT @ features
    basis = speed.null_space(moment, share)
    assert float(torch.trace(basis.mT @ moment @ basis)) <= share * float(torch.trace(moment)) * (1 + 1e-9)
    assert torch.allclose(basis.mT @ basis, torch.eye(basis.shape[1], dtype=torch.float64), atol=1e-12)


def test_speed_without_a_null_space_changes_nothing() -> None:
    problem = problem_of(found=200)
    found = solve(problem, "speed", null_share=0, filter_factor=0)
    assert found.diagnostics["null_dimensions"] == 0
    assert not found.delta.any()


def rotations(problem: Problem, **dials: float) -> list[Tensor]:
    statistics = problem.statistics
    empty = statistics.retained.features["general"]
    moments = {
        "retained": statistics.retained.second_moment + empty.mT @ empty / len(empty),
        "targets": sum(t.features.mT @ (t.weights[:, None] * t.features) for t in statistics.targets),
        "anchors": sum(t.anchors.mT @ (t.weights[:, None] * t.anchors) for t in statistics.targets),
    }
    resolved = find_method("oce").resolve(dials)
    return [matrix_of(oce.rotation(problem.base[rows], **moments, dials=resolved)) for rows in ROWS.values()]


def matrix_of(found: oce.Rotation) -> Tensor:
    return torch.eye(len(found.basis), dtype=torch.float64) + found.basis @ found.turn @ found.basis.mT


@given(seed=st.integers(0, 500), strength=st.floats(0.01, 100.0))
def test_oce_is_orthogonal_and_keeps_norms_and_angles(seed: int, strength: float) -> None:
    problem = problem_of(seed)
    for turned in rotations(problem, erasure_strength=strength):
        assert_close(turned.mT @ turned, torch.eye(len(turned), dtype=torch.float64), 1e-12)
    delta = solve(problem, "oce", erasure_strength=strength).delta
    for turned, rows in zip(rotations(problem, erasure_strength=strength), ROWS.values(), strict=True):
        base, edited = problem.base[rows], problem.base[rows] + delta[rows]
        assert_close(edited, turned @ base)
        assert_close(edited.mT @ edited, base.mT @ base)


def test_oce_maximizes_its_trace() -> None:
    problem = problem_of()
    rows, statistics = ROWS["second"], problem.statistics
    base, source = problem.base[rows], torch.Generator().manual_seed(0)
    dials = find_method("oce").resolve({"empty_strength": 0, "erasure_strength": 2.0})
    targets = sum(t.features.mT @ (t.weights[:, None] * t.features) for t in statistics.targets)
    anchors = sum(t.anchors.mT @ (t.weights[:, None] * t.anchors) for t in statistics.targets)
    retained = statistics.retained.second_moment
    turned = matrix_of(oce.rotation(base, retained=retained, targets=targets, anchors=anchors, dials=dials))
    leaving = oce.leading_projector(base @ targets @ base.mT, energy=0.9, most=math.ceil(0.5 * len(base)))
    allowed = oce.leading_projector(base @ anchors @ base.mT, energy=0.9, most=len(base))
    kept = base @ retained @ base.mT
    matrix = kept * len(base) / torch.trace(kept) - 2.0 * leaving @ (torch.eye(len(base)).double() - allowed)
    best = torch.trace(turned.mT @ matrix)
    for _ in range(20):
        other = torch.linalg.qr(torch.randn(len(base), len(base), generator=source, dtype=torch.float64)).Q
        assert torch.trace(other.mT @ matrix) < best
    assert torch.trace(matrix) < best  # and better than to stay


@pytest.mark.parametrize("dials", [{"subspace_energy": 1}, {"erasure_strength": 1e9}, {"empty_strength": 1e9}, {}])
@pytest.mark.parametrize("targets", [1, 3])
def test_oce_is_not_decided_by_rounding_at_the_ends_of_its_dials(dials: dict[str, float], targets: int) -> None:
    problem, source = problem_of(targets=targets, found=0), torch.Generator().manual_seed(0)
    noise = torch.randn(problem.base.shape, generator=source, dtype=torch.float64)
    nudged = replace(problem, base=problem.base * (1 + 1e-12 * noise))
    first, second = (solve(one, "oce", **dials).delta for one in (problem, nudged))
    assert float((first - second).norm()) < 1e-4 * float(first.norm())


def test_oce_that_has_nothing_to_leave_changes_nothing() -> None:
    assert not solve(problem_of(), "oce", subspace_share=0).delta.any()


@pytest.mark.parametrize(("method", "dials"), [("rece", {}), ("scapre-released", {"ridge": 0}), ("oce", {})])
def test_weights_that_are_all_zero_are_refused_or_left(method: str, dials: dict[str, float]) -> None:
    problem = problem_of()
    try:
        delta = solve(replace(problem, base=torch.zeros_like(problem.base)), method, **dials).delta
    except SingularSystemError:
        return
    assert not delta.any()


@pytest.mark.parametrize(("method", "dial"), [("oce", "empty_strength"), ("uce", "ridge"), ("rece", "attack_ridge")])
def test_dials_at_the_end_of_their_range_are_refused_in_words(method: str, dial: str) -> None:
    with pytest.raises(SingularSystemError, match="finite"):
        solve(problem_of(), method, **{dial: sys.float_info.max})


@pytest.mark.parametrize(("least_turn", "is_steady"), [(oce.LEAST_TURN, True), (0.0, False)])
def test_oce_is_not_decided_by_rounding_where_text_is_scarce(monkeypatch, least_turn: float, is_steady: bool) -> None:
    source = torch.Generator().manual_seed(0)
    base, *text = (torch.randn(rows, 9, generator=source, dtype=torch.float64) for rows in (12, 2, 1, 1))
    monkeypatch.setattr(oce, "LEAST_TURN", least_turn)
    dials = find_method("oce").resolve({})

    def turned(size: float) -> Tensor:
        retained, targets, anchors = (features.mT @ features * size for features in text)
        return matrix_of(oce.rotation(base, retained=retained, targets=targets, anchors=anchors, dials=dials))

    assert (float((turned(1 / 3) - turned(1)).norm()) < 1e-6) == is_steady  # e takes the size of text out


def test_oce_turns_targets_more_than_retained_text() -> None:
    problem = problem_of(found=30)
    delta = solve(problem, "oce").delta

    def moved(features: Tensor) -> float:
        return float((delta @ features.mT).norm() / (problem.base @ features.mT).norm())

    targets = torch.cat([t.features - t.anchors for t in problem.statistics.targets])
    assert moved(targets) > 1.2 * moved(problem.statistics.retained.features["found"])
