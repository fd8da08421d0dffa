"""Approval as a flow of its own, and what becomes of a candidate once it is judged.

Guarantees:
    1. A run that must wait for a person ends; the event `scapre.candidate.waiting` or a person starts this flow.
    2. What was approved is promoted in the same run; after a kill the same call goes on.
    3. Each decision is found again: approving, declining and promoting twice is doing it once.
"""

from dataclasses import dataclass
from typing import Literal
from uuid import NAMESPACE_URL, uuid5

from prefect import flow
from prefect.events import emit_event
from pydantic import BaseModel, ConfigDict, Field

from flows import decisions, promotion
from flows.services import Services, open_services
from flows.steps import step
from infra.chain import Entry
from infra.registry import Registry

Decision = Literal["promoted", "refused", "waiting", "declined"]
WAITING_EVENT = "scapre.candidate.waiting"


class ApprovalOrder(BaseModel):
    """A person's yes; the form that Prefect shows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    digest: str = Field(min_length=decisions.SHORTEST_DIGEST, description="of the candidate; its first digits suffice")
    by: str = Field(min_length=1, description="who approves; must be none of the requesters")
    reason: str = Field(default="", description="needed for what was declined or rolled back before")


@dataclass(frozen=True)
class Settled:
    """What became of a judged candidate."""

    decision: Decision
    version: str
    is_repeated: bool
    """Whether that was so before, and nothing was done."""


def settle_candidate(services: Services, registry: Registry, judged: Entry) -> Settled:
    """Promotes what is approved, by the policy or before by a person; refuses what did not pass; else lets it wait.

    Raises:
        StaleApprovalError: The champion honours requests by now that the candidate does not.
    """
    version = register_judged(services, registry, judged)
    candidate = decisions.find_candidate(services, judged)
    if candidate.state == "refused":
        is_repeated = services.ledger.find(promotion.refusal_key(judged)) is not None
        promotion.refuse(services, judged)
        return Settled("refused", version, is_repeated)
    if candidate.state == "champion":
        return Settled("promoted", version, not promotion.finish_interrupted(services, registry))
    if candidate.state == "declined":
        return Settled("declined", version, True)
    approval = decisions.approve_by_policy(services, judged)
    if approval is None:
        return Settled("waiting", version, False)
    promotion.promote(services, registry, approval)
    return Settled("promoted", version, False)


def register_judged(services: Services, registry: Registry, judged: Entry) -> str:
    """Registers a judged candidate as a version that points into the object store; returns its number. Idempotent."""
    body, requests = judged.body, decisions.requests_of(services, judged)
    built = services.ledger.find(f"built/{body['key']}")
    digests = built.body if built else {}
    version = registry.register(
        source=promotion.source_of(services, body["key"]),
        digest=body["digest"],
        run_id=body["run_id"],
        tags={
            "scapre.key": body["key"],
            "scapre.verdict": body["verdict"],
            "scapre.edit_digest": digests.get("edit_digest", ""),
            "scapre.base_digest": digests.get("base_digest", ""),
            "scapre.evidence": body["evidence"],
            "scapre.requests": ",".join(requests),
        },
        description=f"**{body['verdict']}**: unlearned for {len(requests)} active request(s) from base "
        f"`{str(digests.get('base_digest', ''))[:16]}`. Candidate digest `{body['digest']}`, evidence "
        f"`{body['evidence']}`; judged at {judged.at[:19]} UTC, ledger entry `{judged.entry_hash[:16]}`.",
    )
    return version.version


def announce_waiting(judged: Entry) -> None:
    """Sends the event that a candidate waits for a person; the same candidate is the same event."""
    digest = judged.body["digest"]
    emit_event(
        event=WAITING_EVENT,
        resource={"prefect.resource.id": f"scapre.candidate.{digest}", "prefect.resource.name": digest[:16]},
        payload={"digest": digest, "evidence": judged.body["evidence"]},
        id=uuid5(NAMESPACE_URL, judged.entry_hash),
    )


@step("record approval")
def _approve(services: Services, order: ApprovalOrder, judged: Entry) -> tuple[Entry, bool]:
    return decisions.approve(services, judged, by=order.by, reason=order.reason)


@step("promote")
def _promote(services: Services, registry: Registry, judged: Entry, approval: Entry) -> str:
    register_judged(services, registry, judged)
    return str(promotion.promote(services, registry, approval).body["version"])


@flow(name="approve", persist_result=False, validate_parameters=True)
def approve(order: ApprovalOrder) -> Settled:
    """Records a named person's approval of a candidate and promotes it."""
    services = open_services()
    judged = decisions.find_judged(services, order.digest)
    approval, is_new = _approve(services, order, judged)
    registry = services.open_registry()
    is_unfinished = services.ledger.find(promotion.promotion_key(approval)) is None or promotion.has_intent(services)
    version = _promote(services, registry, judged, approval)
    return Settled("promoted", version, not (is_new or is_unfinished))
