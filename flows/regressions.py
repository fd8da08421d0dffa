"""What got worse since a model was promoted: today's gates beside the gates it was promoted on.

Guarantees:
    1. A regression is shown, not suspected: a gate that fails today and did not then, or bounds that no longer overlap.
    2. A rule that was not asked at promotion (a new pack, a new attack) regresses when the champion fails it.
    3. What goes on record names no concept: a subject is `REQUEST#NUMBER`, its place in its request.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flows.requests import TakedownRequest
from scapre.concepts import name_key
from validation import GateResult
from validation.formats import percent_down, percent_up, points_down, points_up


@dataclass(frozen=True)
class Regression:
    """One rule that the champion kept at promotion and breaks today."""

    gate: str
    role: str | None
    asked_by: str | None
    """Probe pack or attack."""
    subjects: tuple[str, ...]
    """Opaque names of the concept, one for each request that names it; none for a rule about a whole role."""
    found: str
    """The bounds of today and of then, without the concept."""

    def describe(self) -> dict[str, Any]:
        """Returns what the ledger keeps."""
        return {
            "gate": self.gate,
            "role": self.role,
            "asked_by": self.asked_by,
            "subjects": list(self.subjects),
            "found": self.found,
        }

    @property
    def identity(self) -> str:
        """What makes this the same regression when it is found again."""
        return "/".join([self.gate, self.role or "", self.asked_by or "", *self.subjects])

    def __str__(self) -> str:
        what = ", ".join(self.subjects) or f"{self.role or 'all'} concepts"
        return f"{_rule(self.gate, self.asked_by)}: {what}: {self.found}"


def subject_names(requests: Mapping[str, TakedownRequest]) -> dict[str, tuple[str, ...]]:
    """Returns the opaque names of every concept, by its `name_key`."""
    names: dict[str, tuple[str, ...]] = {}
    for request_id, request in sorted(requests.items()):
        for number, subject in enumerate(sorted(request.subjects, key=lambda each: each.concept), start=1):
            key = name_key(subject.concept)
            names[key] = (*names.get(key, ()), f"{request_id}#{number}")
    return names


def subjects_of(gate: GateResult, names: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Returns the opaque names, from `subject_names`, of the concept that a gate is about; none without one."""
    return names.get(name_key(gate.concept), ()) if gate.concept else ()


def find_regressions(
    now: Iterable[GateResult], then: Sequence[Mapping[str, Any]], *, names: Mapping[str, tuple[str, ...]]
) -> list[Regression]:
    """Returns what got worse.

    Args:
        now: Today's gates.
        then: The gates of the promotion's evidence, as `GateResult.describe` wrote them.
        names: From `subject_names`.
    """
    before = {(g["gate"], g["role"], g["concept"], g["pack"], g.get("attack")): g for g in then if g["is_gated"]}
    found = []
    for gate in now:
        if not gate.is_gated or gate.is_control or gate.gate in ("integrity", "expectations"):
            continue
        earlier = before.get((gate.gate, gate.role, gate.concept, gate.pack, gate.attack))
        if _is_worse(gate, earlier):
            asked_by = gate.attack or gate.pack
            found.append(Regression(gate.gate, gate.role, asked_by, subjects_of(gate, names), _found(gate, earlier)))
    return found


def list_not_passed(gates: Iterable[GateResult], *, names: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Returns one line for each gate that counts and did not pass, without naming a concept."""
    lines = []
    for gate in gates:
        if gate.is_gated and gate.verdict != "passed":
            what = ", ".join(subjects_of(gate, names)) or f"{gate.role or 'all'} concepts"
            lines.append(f"{_rule(gate.gate, gate.attack or gate.pack)}: {what}: {gate.verdict}")
    return lines


def _rule(gate: str, asked_by: str | None) -> str:
    return f"{gate} by {asked_by}" if asked_by else gate


def _is_worse(now: GateResult, then: Mapping[str, Any] | None) -> bool:
    if now.verdict == "failed" and (then is None or then["verdict"] != "failed"):
        return True
    if then is None or now.lower is None or now.upper is None or then["lower"] is None or then["upper"] is None:
        return False
    return now.lower > then["upper"] if now.role == "target" else now.upper < then["lower"]


def _found(now: GateResult, then: Mapping[str, Any] | None) -> str:
    if now.role == "target":
        today = "" if now.lower is None else f"drawn in at least {percent_down(now.lower)}"
        before = then and then["upper"] is not None and f"at promotion in at most {percent_up(then['upper'])}"
    else:
        today = "" if now.upper is None else f"changed by at most {points_up(now.upper)} points"
        before = then and then["lower"] is not None and f"at promotion by at least {points_down(then['lower'])} points"
    return f"{today or now.verdict}, {before or 'not asked at promotion'}"
