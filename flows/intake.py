"""Requests on record: the chain holds an opaque identifier and commitments; the text lies beside it, erasable.

Guarantees:
    1. The same request is one entry, whether it comes by command, inbox or form, once or many times.
    2. Who asked and what must go are two records, so that the first can be erased while the second is still needed.
    3. Where the table of deadlines allows it and nothing is lacking, a request is valid at once, by the policy's hand.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from flows.cases import Case, cases, find_case
from flows.deadlines import load_deadlines
from flows.errors import BadRequestError
from flows.requests import ERASED, FORMAT, PERSONAL_FIELDS, TakedownRequest, parse_request
from flows.services import Services
from infra.chain import EntryKind
from infra.errors import LedgerError

Channel = Literal["command", "inbox", "form"]
POLICY = "policy"
"""Who did what the table of deadlines does by itself."""


def add_request(services: Services, request: TakedownRequest, *, channel: Channel = "command") -> tuple[str, bool]:
    """Records a request; returns its identifier and whether it is new. The same request twice is one entry.

    Raises:
        BadRequestError: The table of deadlines has no regime for it.
    """
    table = load_deadlines(services.settings.deadlines)
    request_id, regime = (
        request.request_id,
        table.regime_for(request.ground, request.jurisdiction, named=request.regime),
    )
    is_new = services.ledger.find(_key(request_id)) is None
    lacks = table.find(regime).lacking(request)
    if is_new:
        is_new = _append(services, request, channel=channel, regime=regime, lacks=lacks)
    if table.find(regime).auto_validate and not lacks:
        reason = f"the table of deadlines lets regime {regime} validate itself"
        for kind in (EntryKind.REQUEST_TRIAGED, EntryKind.REQUEST_VALIDATED):
            body = {"request_id": request_id, "by": POLICY, "reason": reason}
            services.ledger.append(kind, body, idempotency_key=f"{kind}/{request_id}/0")
    return request_id, is_new


def active_requests(services: Services) -> dict[str, TakedownRequest]:
    """Returns the requests in force, by identifier, in the order in which they were recorded.

    Raises:
        BadRequestError: The text of a request in force was erased or altered.
    """
    return {request_id: read_request(services, case) for request_id, case in cases(services).items() if case.is_active}


def find_request(services: Services, request_id: str) -> TakedownRequest:
    """Returns one request on record.

    Raises:
        BadRequestError: There is none of that identifier, or its text was erased or altered.
    """
    return read_request(services, find_case(services, request_id))


def read_request(services: Services, case: Case) -> TakedownRequest:
    """Returns the text of a case; `requests.ERASED` stands for a requester whose data was erased on schedule.

    Raises:
        BadRequestError: The text was erased or altered.
    """
    document: dict[str, Any] = {}
    for record, commitment in case.commitments.items():
        if not services.personal.matches(record, commitment):
            raise BadRequestError(
                f"expected the text of request {case.request_id} beside the ledger, found it erased or altered; "
                "finish with `scapre request erase --due`, withdraw the request, or restore the database"
            )
        document |= services.personal.find(record) or {}
    if not document:
        raise BadRequestError(
            f"expected the text of request {case.request_id}, found that it was erased on schedule; "
            "`scapre ledger show` has what is left"
        )
    if "requester" not in document:
        document["requester"] = ERASED.model_dump(exclude_defaults=True)
    return parse_request(document, source=f"the record of {case.request_id}")


def parts_of(request_id: str, identity: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns a request's two records: who asked, under its identifier, and what must go, under `ID/subject`."""
    person = {name: value for name, value in identity.items() if name in PERSONAL_FIELDS}
    return {
        request_id: person,
        f"{request_id}/subject": {n: v for n, v in identity.items() if n not in PERSONAL_FIELDS},
    }


def _append(
    services: Services, request: TakedownRequest, *, channel: Channel, regime: str, lacks: tuple[str, ...]
) -> bool:
    request_id = request.request_id
    parts = parts_of(request_id, json.loads(request.canonical_bytes()))
    person, subject = (services.personal.keep(record, content) for record, content in parts.items())
    body = {
        "format": FORMAT,
        "request_id": request_id,
        "commitment": person,
        "subject_commitment": subject,
        "base": request.base,
        "ground": request.ground,
        "jurisdiction": request.jurisdiction,
        "regime": regime,
        "received_at": (request.received_or or datetime.now(UTC)).isoformat(timespec="seconds"),
        "channel": channel,
        "lacks": list(lacks),
        "concepts": len(request.subjects),
    }
    try:
        services.ledger.append(EntryKind.REQUEST_ADDED, body, idempotency_key=_key(request_id))
    except LedgerError:
        if services.ledger.find(_key(request_id)) is None:
            raise
        return False  # it came in another way in the same moment
    return True


def _key(request_id: str) -> str:
    return f"request/{request_id}"
