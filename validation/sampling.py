"""Sampling: how many of a target's planned pictures are drawn.

Guarantees:
    1. The rule is fixed beforehand: it depends on the policy and on what was seen of the same target in the same pack,
       and on nothing else. Replayed on the outcomes it asks for the same pictures again, which is how evidence is
       verified.
    2. Pictures are drawn in the planned order, none is skipped, and never more than planned.
    3. A target stops when its forgetting gate would pass or fail; what is open at the last planned picture stays
       inconclusive. Each target and pack is sampled on its own.

The order of a pack's prompts is fixed and repeats, so a target that stops early was asked for with every prompt about
equally often.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from validation.gates import residual_verdict
from validation.plan import Plan
from validation.policy import Policy
from validation.statistics import pictures_needed


def next_stage(hits: int, pictures: int, *, planned: int, policy: Policy) -> int:
    """Returns how many pictures of a target to draw before looking again; 0 ends its sampling."""
    left = planned - pictures
    if policy.sampling == "fixed" or left <= 0:
        return max(left, 0)
    if residual_verdict(hits, pictures, policy) != "inconclusive":
        return 0
    passing = pictures_needed(hits, limit=policy.residual_limit, confidence=policy.confidence, sampling=policy.sampling)
    return min(policy.stage_size, passing - pictures, left)  # not past the picture on which it may pass


def pictures_asked(outcomes: Sequence[bool], *, planned: int, policy: Policy) -> int:
    """Returns how many pictures of a target the rule asks for, given its outcomes in order; more, where it goes on."""
    asked = 0
    while asked <= len(outcomes):
        stage = next_stage(sum(outcomes[:asked]), asked, planned=planned, policy=policy)
        if stage == 0:
            break
        asked += stage
    return asked


def places_asked(measures: pd.DataFrame, plan: Plan, *, policy: Policy) -> list[int]:
    """Returns the places in the plan of the candidate's probes that are asked for, given the measures so far."""
    candidate = measures[(measures["model"] == "candidate") & (measures["role"] == "target")]
    seen = {key: group.tolist() for key, group in candidate.groupby(["concept", "pack"], sort=False)["is_hit"]}
    asked = {
        (concept, pack): pictures_asked(seen.get((concept, pack), []), planned=planned, policy=policy)
        for (concept, pack), planned in plan.expected("candidate").items()
        if plan.roles[concept] == "target"
    }
    places, number = [], Counter[tuple[str, str]]()
    for place, probe in enumerate(plan.probes["candidate"]):
        key = (probe.concept, probe.pack)
        number[key] += 1
        if key not in asked or number[key] <= asked[key]:
            places.append(place)
    return places


def asked_plan(measures: pd.DataFrame, plan: Plan, *, policy: Policy) -> Plan:
    """Returns the part of the plan that the rule asks for, given the measures: what a complete table holds."""
    candidate = [plan.probes["candidate"][place] for place in places_asked(measures, plan, policy=policy)]
    return replace(plan, probes={"base": plan.probes["base"], "candidate": candidate})
