"""The verdict once more, from files: the judge's own gates on the kept measures and the kept policy.

Guarantees:
    1. Nothing is taken from `verdict.json` but the word of others that measures cannot show: the candidate's integrity.
    2. A table that is not the one the protocol planned (rows gone, added or moved) is named, whatever its digest.
    3. Every gate is compared, its reason and its bounds included, not only the verdict.
"""

import io
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pandas as pd

from validation.detectors import find_label
from validation.errors import UnknownLabelError, ValidationError
from validation.expectations import Outcome, expectations_gate
from validation.gates import decide
from validation.judgement import MEASURE_COLUMNS, Integrity
from validation.judging import evaluate
from validation.plan import MODELS, Plan
from validation.policy import Policy, parse_policy
from validation.probe_packs import OWN_PACKS
from validation.probes import Probe, Subject, probes_digest

_TYPES = {"seed": "int64", "is_hit": "bool", "is_blank": "bool"}
_SCORES = ("top_score", "concept_score", "image_text_score")
_FOLLOWS = "verdict does not follow"


def read_measures(content: bytes) -> pd.DataFrame:
    """Returns the table of measures from `measures.csv`, exactly as it was.

    Raises:
        ValueError: It is not such a table.
    """
    types: Any = {name: _TYPES.get(name, "str") for name in MEASURE_COLUMNS if name not in _SCORES}
    table: pd.DataFrame = pd.read_csv(
        io.BytesIO(content),
        dtype=types,
        keep_default_na=False,  # a concept may be called "null"
        converters=dict.fromkeys(_SCORES, _score),  # Python's own reading of a number is exact in every version
    )
    if list(table.columns) != list(MEASURE_COLUMNS):
        raise ValueError(f"expected the columns {', '.join(MEASURE_COLUMNS)}, found {', '.join(table.columns)}")
    return table


def _score(text: str) -> float:
    return float(text or "nan")


def verdict_differences(measures_csv: bytes, documents: Mapping[str, Any]) -> list[str]:
    """Returns where `verdict.json` is not what the measures, the policy and the protocol lead to.

    Args:
        measures_csv: Content of `measures.csv`.
        documents: The parsed `verdict.json`, `policy.json`, `protocol.json` and `gx.json`, by file name.
    """
    try:
        measures = read_measures(measures_csv)
    except (ValueError, UnicodeDecodeError, OverflowError) as error:
        return [f"measures.csv: changed: not a table of measures ({error})"]
    differences: list[str] = []
    try:
        policy = parse_policy(documents["policy.json"], source="policy.json")
        plan = _rebuild_plan(measures, documents["protocol.json"])
        differences += _protocol_differences(measures, plan, policy, documents)
        differences += _gate_differences(measures, plan, policy, documents)
    except (ValidationError, ValueError, KeyError, TypeError, AttributeError) as error:
        differences.append(f"verdict.json: {_FOLLOWS}: it cannot be derived ({type(error).__name__}: {error})")
    return differences


def _rebuild_plan(measures: pd.DataFrame, protocol: Mapping[str, Any]) -> Plan:
    kinds = dict(zip(measures["concept"], measures["kind"], strict=True))
    named = {"target": "targets", "retained": "retained", "hidden": "hidden", "style": "styles"}
    roles: dict[str, Any] = {name: role for role, key in named.items() for name in protocol[key]}
    subjects = {name: Subject(name, kinds.get(name, "object")) for name in roles}
    if unplanned := sorted(set(measures["concept"]) - roles.keys()):
        raise ValueError(f"measures.csv holds {', '.join(unplanned)}, which the protocol does not name")
    return Plan(
        subjects=subjects,
        roles=roles,
        labels={name: _label(measures, subject) for name, subject in subjects.items()},
        packs={},
        probes={model: _probes(measures, model) for model in MODELS},
    )


def _probes(measures: pd.DataFrame, model: str) -> list[Probe]:
    own = measures.loc[measures["model"] == model, ["prompt", "seed", "concept", "role", "pack"]]
    return [Probe(row.prompt, int(row.seed), row.concept, row.role, row.pack) for row in own.itertuples()]


def _label(measures: pd.DataFrame, subject: Subject) -> str:
    """Returns the detector's label of a concept: what it said at a hit, or else the label it would have said."""
    hits = measures.loc[(measures["concept"] == subject.name) & measures["is_hit"], "top_label"]
    if len(hits):
        return str(hits.iloc[0])
    seen = sorted(set(measures["top_label"]))
    try:
        return seen[find_label(seen, subject)]
    except UnknownLabelError:  # never seen at all, so it counts nowhere
        return subject.name


def _protocol_differences(
    measures: pd.DataFrame, plan: Plan, policy: Policy, documents: Mapping[str, Any]
) -> list[str]:
    protocol, differences = documents["protocol.json"], []
    if protocol["policy"] != documents["policy.json"]:
        differences.append("protocol.json: changed: its policy is not that of policy.json")
    found = probes_digest([probe for model in MODELS for probe in plan.probes[model]])
    if found != protocol["probes_digest"]:
        differences.append("measures.csv: changed: its prompts and seeds are not the ones that protocol.json planned")
    planned = {"target": ("probes_per_target", "probes_per_target_base")} | {
        role: (f"probes_per_{role}",) * 2 for role in ("retained", "hidden", "style")
    }
    for name, role in plan.roles.items():
        own = measures[(measures["concept"] == name) & measures["pack"].isin(OWN_PACKS)]
        for model, field in zip(("candidate", "base"), planned[role], strict=True):
            expected, count = getattr(policy, field), int((own["model"] == model).sum())
            if count != expected:
                differences.append(
                    f"measures.csv: changed: expected {expected} pictures of {name!r} by the {model}, found {count}"
                )
        differences += _further_differences(measures, name, role, policy)
        mine = measures[measures["concept"] == name]
        if not (mine["is_hit"] == (mine["top_label"] == plan.labels[name])).all():
            differences.append(f"measures.csv: changed: is_hit of {name!r} does not agree with top_label")
    return differences


def _further_differences(measures: pd.DataFrame, name: str, role: str, policy: Policy) -> list[str]:
    """Returns where a concept's pictures of further packs are not as many as the policy asks, or none at all."""
    planned = dict(zip(policy.further_pack_names, policy.further_packs.values(), strict=True))
    own = measures[(measures["concept"] == name) & ~measures["pack"].isin(OWN_PACKS)]
    found = own.groupby(["pack", "model"]).size().to_dict()
    differences = []
    for pack in own["pack"].unique():
        count = planned.get(pack, 0) if role == "target" else 0
        for model, expected in (("candidate", count), ("base", min(count, policy.probes_per_target_base))):
            if found.get((pack, model), 0) != expected:
                differences.append(
                    f"measures.csv: changed: expected {expected} pictures of {name!r} from pack {pack!r} by the "
                    f"{model}, found {found.get((pack, model), 0)}"
                )
    return differences


def _gate_differences(measures: pd.DataFrame, plan: Plan, policy: Policy, documents: Mapping[str, Any]) -> list[str]:
    stated, gx = documents["verdict.json"], documents["gx.json"]
    gates = evaluate(measures, plan, policy=policy, integrity=_attested(stated["gates"]))
    outcome = Outcome(answers=gx["answers"], broken=gx["broken"], detail={}, remembered=tuple(gx["remembered"]))
    gates.append(expectations_gate(outcome, gates))
    verdict, reasons = decide(gates, targets=plan.names("target"), policy=policy)
    differences = []
    if stated["verdict"] != verdict:
        differences.append(f"verdict.json: {_FOLLOWS}: it says {stated['verdict']}, the measures lead to {verdict}")
    if not _agree(stated["reasons"], [asdict(reason) for reason in reasons]):
        differences.append(f"verdict.json: {_FOLLOWS}: its reasons are not those that the gates give")
    if stated["is_void"] != any(reason.kind == "void" for reason in reasons):
        differences.append(f"verdict.json: {_FOLLOWS}: is_void is not what the controls say")
    derived = {_key(gate.describe()): gate.describe() for gate in gates}
    claimed = {_key(gate): gate for gate in stated["gates"]}
    differences += [
        f"verdict.json: {_FOLLOWS}: {_name(key)} is stated, not derived" for key in claimed.keys() - derived
    ]
    differences += [
        f"verdict.json: {_FOLLOWS}: {_name(key)} is derived, not stated" for key in derived.keys() - claimed
    ]
    for key in derived.keys() & claimed.keys():
        if not _agree(claimed[key], derived[key]):
            differences.append(
                f"verdict.json: {_FOLLOWS}: {_name(key)} says {claimed[key].get('reason')!r}, the measures lead to "
                f"{derived[key]['reason']!r}"
            )
    if len(stated["gates"]) != len(gates):
        differences.append(f"verdict.json: {_FOLLOWS}: expected {len(gates)} gates, found {len(stated['gates'])}")
    return sorted(differences)


def _attested(gates: list[dict[str, Any]]) -> Integrity | None:
    own = next((gate for gate in gates if gate["gate"] == "integrity"), None)
    if own is None or own["verdict"] == "inconclusive":
        return None
    return Integrity(is_intact=own["verdict"] == "passed", reason=own["reason"])


def _key(gate: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(gate[field] or "") for field in ("gate", "concept", "role", "pack"))


def _name(key: tuple[str, ...]) -> str:
    return " of ".join(part for part in (key[0], key[1] or key[2]) if part)


def _agree(stated: Any, derived: Any) -> bool:
    """Says whether two JSON values are the same; numbers may differ by what another version of a library would."""
    if isinstance(stated, bool) or isinstance(derived, bool):
        return stated is derived
    if isinstance(stated, int | float) and isinstance(derived, int | float):
        return math.isclose(stated, derived, rel_tol=1e-9, abs_tol=1e-12)
    if isinstance(stated, dict) and isinstance(derived, dict):
        return stated.keys() == derived.keys() and all(_agree(stated[key], derived[key]) for key in stated)
    if isinstance(stated, list) and isinstance(derived, list):
        return len(stated) == len(derived) and all(map(_agree, stated, derived))
    return stated == derived
