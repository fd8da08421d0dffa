"""Fitting a re-judgement into a budget of pictures.

Guarantees:
    1. The most pictures that can be asked for is known beforehand and is within the budget.
    2. Whole requests are left out, never parts of one, and which ones is part of the answer.
    3. Requests are taken in the order given: give those first that have waited longest.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from flows.errors import BadRequestError
from flows.requests import TakedownRequest
from scapre.concepts import name_key
from validation import Policy
from validation.attacks.budget import AGAINST, drawn_pictures
from validation.statistics import pictures_needed


@dataclass(frozen=True)
class Fitted:
    """What fits."""

    requests: dict[str, TakedownRequest]
    left_out: tuple[str, ...]
    policy: Policy
    """The policy, with no more pictures for each target than there is room for."""
    at_most: int
    """Pictures that can be asked for, those included that are there already."""


def fit(requests: Mapping[str, TakedownRequest], *, policy: Policy, others: int, limit: int | None) -> Fitted:
    """Returns as many requests as the budget holds.

    Args:
        requests: In the order in which they are to be taken.
        policy: What each target costs.
        others: Pictures of everything that is not a target, of both models.
        limit: Pictures in all; None holds everything.

    Raises:
        BadRequestError: Not even one request fits.
    """
    if limit is None or not requests:
        most = others + len(_targets(requests)) * _cost(policy)
        return Fitted(dict(requests), (), policy, most)
    least = _with_targets(policy, _least(policy))
    chosen: dict[str, TakedownRequest] = {}
    for request_id, request in requests.items():
        tried = {**chosen, request_id: request}
        if others + len(_targets(tried)) * _cost(least) <= limit:
            chosen = tried
    if not chosen:
        smallest = min(len(request.subjects) for request in requests.values())
        raise BadRequestError(
            f"expected a budget that holds one request, found {limit} pictures; the smallest takes "
            f"{others + smallest * _cost(least)}: raise the budget or ask for fewer pictures in the policy"
        )
    count = len(_targets(chosen))
    room = (limit - others) // count - (_cost(policy) - policy.probes_per_target)
    fitted = _with_targets(policy, min(policy.probes_per_target, room))
    left_out = tuple(request_id for request_id in requests if request_id not in chosen)
    return Fitted(chosen, left_out, fitted, others + count * _cost(fitted))


def pictures_of_others(policy: Policy, *, retained: int, hidden: int) -> int:
    """Returns the pictures of both models of everything that is not a target."""
    return 2 * (retained * policy.probes_per_retained + hidden * policy.probes_per_hidden)


def _targets(requests: Mapping[str, TakedownRequest]) -> set[str]:
    return {name_key(subject.concept) for request in requests.values() for subject in request.subjects}


def _least(policy: Policy) -> int:
    """Enough for a target that is seen once by chance and still passes."""
    needed = pictures_needed(1, limit=policy.residual_limit, confidence=policy.confidence, sampling=policy.sampling)
    return min(policy.probes_per_target, max(needed, policy.probes_per_target_base, policy.stage_size))


def _with_targets(policy: Policy, count: int) -> Policy:
    return policy.model_copy(update={"probes_per_target": count})


def _cost(policy: Policy) -> int:
    """The most pictures of one target: of both models by all packs, and of every attack."""
    counts = (policy.probes_per_target, *policy.further_packs.values())
    asked = sum(count + min(count, policy.probes_per_target_base) for count in counts)
    return asked + sum(len(AGAINST) * drawn_pictures(budget) for budget in policy.attacks.values())
