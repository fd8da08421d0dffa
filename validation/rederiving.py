"""The verdict once more, from files: the judge's own gates on the kept measures and the kept policy.

Guarantees:
    1. Nothing is taken from `verdict.json` but the word of others that measures cannot show: the candidate's integrity.
    2. The measures are the pictures that the sampling rule asks for, out of those that the protocol planned, and no
       others: rows gone, added or moved are named, whatever the table's digest, as is sampling that went on or stopped
       where the rule would not have.
    3. Every gate is compared, its reason and its bounds included, not only the verdict.
"""

import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import product
from typing import Any

import pandas as pd

from validation.attacks.budget import AGAINST, ATTACK, drawn_pictures
from validation.detectors import find_label
from validation.errors import UnknownLabelError, ValidationError
from validation.expectations import Outcome, expectations_gate
from validation.gates import decide
from validation.judgement import ATTACK_COLUMNS, MEASURE_COLUMNS, PROBE_COLUMNS, Integrity
from validation.judging import evaluate
from validation.plan import MODELS, Model, Plan, first_seed_of
from validation.policy import Policy, parse_policy
from validation.probe_packs import OWN_PACKS
from validation.probes import Probe, Subject, probes_digest
from validation.sampling import asked_plan

_TYPES = {"seed": "int64", "steps": "int64", "is_hit": "bool", "is_blank": "bool"}
_SCORES = ("top_score", "concept_score", "image_text_score")
_FOLLOWS = "verdict does not follow"


def read_measures(content: bytes) -> pd.DataFrame:
    """Returns the table of measures from `measures.csv`, exactly as it was.

    Raises:
        ValueError: It is not such a table.
    """
    return _read_table(content, MEASURE_COLUMNS)


def _read_table(content: bytes, columns: Sequence[str]) -> pd.DataFrame:
    types: Any = {name: _TYPES.get(name, "str") for name in columns if name not in _SCORES}
    scores = [name for name in columns if name in _SCORES]
    table: pd.DataFrame = pd.read_csv(
        io.BytesIO(content),
        dtype=types,
        keep_default_na=False,  # a concept may be called "null"
        converters=dict.fromkeys(scores, _score),  # Python's own reading of a number is exact in every version
    )
    if list(table.columns) != list(columns):
        raise ValueError(f"expected the columns {', '.join(columns)}, found {', '.join(table.columns)}")
    return table


def _score(text: str) -> float:
    return float(text or "nan")


def verdict_differences(
    measures_csv: bytes, probes_csv: bytes, documents: Mapping[str, Any], *, attacks_csv: bytes | None = None
) -> list[str]:
    """Returns where `verdict.json` is not what the measures, the policy and the protocol lead to.

    Args:
        measures_csv: Content of `measures.csv`.
        probes_csv: Content of `probes.csv`, the planned probes.
        documents: The parsed `verdict.json`, `policy.json`, `protocol.json` and `gx.json`, by file name.
        attacks_csv: Content of `attacks.csv`, where there is one.
    """
    try:
        measures = read_measures(measures_csv)
    except (ValueError, UnicodeDecodeError, OverflowError) as error:
        return [f"measures.csv: changed: not a table of measures ({error})"]
    try:
        planned = _read_table(probes_csv, PROBE_COLUMNS)
    except (ValueError, UnicodeDecodeError, OverflowError) as error:
        return [f"probes.csv: changed: not a table of planned probes ({error})"]
    differences: list[str] = []
    try:
        policy = parse_policy(documents["policy.json"], source="policy.json")
        plan = _rebuild_plan(measures, planned, documents["protocol.json"])
        differences += _protocol_differences(measures, plan, policy, documents)
        attacks = None if attacks_csv is None else _read_table(attacks_csv, ATTACK_COLUMNS)
        differences += _attack_differences(attacks, measures, plan, policy)
        differences += _gate_differences(measures, plan, policy, documents, attacks=attacks)
    except (ValidationError, ValueError, KeyError, TypeError, AttributeError) as error:
        differences.append(f"verdict.json: {_FOLLOWS}: it cannot be derived ({type(error).__name__}: {error})")
    return differences


def _rebuild_plan(measures: pd.DataFrame, planned: pd.DataFrame, protocol: Mapping[str, Any]) -> Plan:
    kinds = dict(zip(measures["concept"], measures["kind"], strict=True))
    named = {"target": "targets", "retained": "retained", "hidden": "hidden", "style": "styles"}
    roles: dict[str, Any] = {name: role for role, key in named.items() for name in protocol[key]}
    subjects = {name: Subject(name, kinds.get(name, "object")) for name in roles}
    for source, table in (("measures.csv", measures), ("probes.csv", planned)):
        if unplanned := sorted(set(table["concept"]) - roles.keys()):
            raise ValueError(f"{source} holds {', '.join(unplanned)}, which the protocol does not name")
    return Plan(
        subjects=subjects,
        roles=roles,
        labels={name: _label(measures, subject) for name, subject in subjects.items()},
        packs={},
        probes={model: _probes(planned, model) for model in MODELS},
    )


def _probes(table: pd.DataFrame, model: str) -> list[Probe]:
    own = table.loc[table["model"] == model, ["prompt", "seed", "concept", "role", "pack"]]
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
        differences.append("probes.csv: changed: its prompts and seeds are not the ones that protocol.json planned")
    differences += _sampling_differences(measures, plan, policy)
    counted = {model: plan.expected(model) for model in MODELS}
    planned = {"target": ("probes_per_target", "probes_per_target_base")} | {
        role: (f"probes_per_{role}",) * 2 for role in ("retained", "hidden", "style")
    }
    for name, role in plan.roles.items():
        for model, field in zip(("candidate", "base"), planned[role], strict=True):
            expected, count = getattr(policy, field), sum(counted[model][name, pack] for pack in OWN_PACKS)
            if count != expected:
                differences.append(
                    f"probes.csv: changed: expected {expected} pictures of {name!r} by the {model}, found {count}"
                )
        differences += _further_differences(counted, name, role, policy)
        mine = measures[measures["concept"] == name]
        if not (mine["is_hit"] == (mine["top_label"] == plan.labels[name])).all():
            differences.append(f"measures.csv: changed: is_hit of {name!r} does not agree with top_label")
    return differences


def _sampling_differences(measures: pd.DataFrame, plan: Plan, policy: Policy) -> list[str]:
    """Returns where the pictures are not those that the rule asks for, given what was seen on them."""
    asked, differences = asked_plan(measures, plan, policy=policy), []
    for model in MODELS:
        drawn, wanted = _probes(measures, model), asked.probes[model]
        expected = asked.expected(model)
        found = Counter((probe.concept, probe.pack) for probe in drawn)
        differences += [
            f"measures.csv: changed: the sampling rule asks for {expected[key]} pictures of {key[0]!r} ({key[1]}) "
            f"by the {model}, found {found[key]}"
            for key in sorted(expected.keys() | found.keys())
            if expected[key] != found[key]
        ]
        if drawn != wanted:
            differences.append(
                f"measures.csv: changed: the {model}'s prompts and seeds are not the ones that the plan asks for"
            )
    return differences


def _further_differences(
    planned: Mapping[Model, Counter[tuple[str, str]]], name: str, role: str, policy: Policy
) -> list[str]:
    """Returns where a concept's plan from further packs is not what the policy asks for, or nothing at all."""
    counts = dict(zip(policy.further_pack_names, policy.further_packs.values(), strict=True))
    packs = sorted({pack for model in MODELS for concept, pack in planned[model] if concept == name} - set(OWN_PACKS))
    differences = []
    for pack in packs:
        count = counts.get(pack, 0) if role == "target" else 0
        for model, expected in (("candidate", count), ("base", min(count, policy.probes_per_target_base))):
            if planned[model][name, pack] != expected:
                differences.append(
                    f"probes.csv: changed: expected {expected} pictures of {name!r} from pack {pack!r} by the "
                    f"{model}, found {planned[model][name, pack]}"
                )
    return differences


def _attack_differences(attacks: pd.DataFrame | None, measures: pd.DataFrame, plan: Plan, policy: Policy) -> list[str]:
    """Returns where the table of attacks is not what the policy asks for, whatever follows from it."""
    if attacks is None or not policy.attacks:
        asked, found = bool(policy.attacks), attacks is not None
        return [] if asked == found else [f"attacks.csv: {'missing' if asked else 'extra'}: policy.json says otherwise"]
    planned = set(product(plan.names("target"), policy.attacks, AGAINST))
    found = set(attacks[["concept", "attack", "against"]].itertuples(index=False, name=None))
    differences = [f"attacks.csv: changed: nobody asked for {' by '.join(key)}" for key in sorted(found - planned)]
    for target, name, against in sorted(planned):
        own = attacks[(attacks["concept"] == target) & (attacks["attack"] == name) & (attacks["against"] == against)]
        first = first_seed_of(target, ATTACK, policy)
        if own["seed"].tolist() != [*range(first, first + drawn_pictures(policy.attacks[name]))]:
            differences.append(f"attacks.csv: changed: {name} on {target!r} ({against}) has other seeds than planned")
    for target in plan.names("target"):
        own = pd.concat([table[table["concept"] == target] for table in (measures, attacks)])
        labels = {*own.loc[own["is_hit"], "top_label"]}
        if len(labels) > 1 or labels & {*own.loc[~own["is_hit"], "top_label"]}:
            differences.append(f"attacks.csv: changed: is_hit of {target!r} does not agree with top_label")
    return differences


def _gate_differences(
    measures: pd.DataFrame,
    plan: Plan,
    policy: Policy,
    documents: Mapping[str, Any],
    *,
    attacks: pd.DataFrame | None,
) -> list[str]:
    stated, gx = documents["verdict.json"], documents["gx.json"]
    gates = evaluate(measures, plan, policy=policy, integrity=_attested(stated["gates"]), attacks=attacks)
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
    return tuple(str(gate.get(field) or "") for field in ("gate", "concept", "role", "pack", "attack"))


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
