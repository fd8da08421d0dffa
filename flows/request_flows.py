"""Flows around requests: the form that Prefect shows, the look into the inbox, the erasure of what is due.

Guarantees:
    1. Each is idempotent, and retried on transient failures only.
    2. Results name requests by identifier and are not persisted; the form's own parameters stay in Prefect's database,
       which holds personal data from then on: give it the same protection, and prune its flow runs.
"""

from prefect import flow

from flows import erasure, inbox, intake
from flows.requests import TakedownRequest
from flows.services import open_services
from flows.steps import step


@step("record request")
def _record(request: TakedownRequest) -> str:
    return intake.add_request(open_services(), request, channel="form")[0]


@step("empty inbox")
def _empty_inbox() -> list[str]:
    return [delivery.request_id for delivery in inbox.take_in(open_services()) if delivery.request_id]


@step("erase what is due")
def _erase() -> list[str]:
    return erasure.erase_due(open_services())


@flow(name="request takedown", persist_result=False, validate_parameters=True)
def request_takedown(request: TakedownRequest) -> str:
    """Records a takedown request and returns its identifier; the same request twice is one request."""
    return _record(request)


@flow(name="take in requests", persist_result=False)
def take_in_requests() -> list[str]:
    """Records the requests that lie in the object store's inbox; returns their identifiers."""
    return _empty_inbox()


@flow(name="erase personal data", persist_result=False)
def erase_personal_data() -> list[str]:
    """Erases personal data whose time is over; returns the identifiers of the requests concerned."""
    return _erase()
