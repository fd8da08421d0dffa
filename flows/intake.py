"""Requests on record: the chain holds an opaque identifier and a commitment; the text lies beside it, erasable."""

import json

from flows.errors import BadRequestError
from flows.requests import TakedownRequest, parse_request
from flows.services import Services
from infra.chain import EntryKind


def add_request(services: Services, request: TakedownRequest) -> tuple[str, bool]:
    """Records a request; returns its identifier and whether it is new. The same request twice is one entry."""
    request_id = request.request_id
    is_new = services.ledger.find(_key(request_id)) is None
    commitment = services.personal.keep(request_id, json.loads(request.canonical_bytes()))
    body = {
        "request_id": request_id,
        "commitment": commitment,
        "base": request.base,
        "ground": request.ground,
        "jurisdiction": request.jurisdiction,
        "received": request.received.isoformat(),
        "concepts": len(request.subjects),
    }
    services.ledger.append(EntryKind.REQUEST_ADDED, body, idempotency_key=_key(request_id))
    return request_id, is_new


def withdraw_request(services: Services, request_id: str) -> bool:
    """Takes a request out of force; says whether it was in force until now. The next run solves without it.

    Raises:
        BadRequestError: There is no request of that identifier.
    """
    if services.ledger.find(_key(request_id)) is None:
        raise BadRequestError(f"expected a recorded request, found {request_id!r}; `scapre request list` lists them")
    key = f"withdrawn/{request_id}"
    is_new = services.ledger.find(key) is None
    services.ledger.append(EntryKind.REQUEST_WITHDRAWN, {"request_id": request_id}, idempotency_key=key)
    return is_new


def active_requests(services: Services) -> dict[str, TakedownRequest]:
    """Returns the requests in force, by identifier, in the order in which they were recorded.

    Raises:
        BadRequestError: The text of a request in force was erased or altered.
    """
    withdrawn = {e.body["request_id"] for e in services.ledger.entries(kind=EntryKind.REQUEST_WITHDRAWN)}
    added = [e.body for e in services.ledger.entries(kind=EntryKind.REQUEST_ADDED)]
    return {
        body["request_id"]: _read(services, body["request_id"], body["commitment"])
        for body in added
        if body["request_id"] not in withdrawn
    }


def find_request(services: Services, request_id: str) -> TakedownRequest:
    """Returns one request on record.

    Raises:
        BadRequestError: There is none of that identifier, or its text was erased or altered.
    """
    entry = services.ledger.find(_key(request_id))
    if entry is None:
        raise BadRequestError(
            f"expected the identifier of a recorded request, found {request_id!r}; `scapre request list` lists them"
        )
    return _read(services, request_id, entry.body["commitment"])


def _read(services: Services, request_id: str, commitment: str) -> TakedownRequest:
    if not services.personal.matches(request_id, commitment):
        raise BadRequestError(
            f"expected the text of request {request_id} beside the ledger, found it erased or altered; "
            "withdraw the request, or restore the database"
        )
    document = services.personal.find(request_id)
    assert document is not None  # matches() has just read it
    return parse_request(document, source=f"the record of {request_id}")


def _key(request_id: str) -> str:
    return f"request/{request_id}"
