"""Examples of request files, one per regime: each holds all that the regime asks for."""

from collections.abc import Iterator

import yaml

from flows.deadlines import DeadlineTable, Duration
from flows.requests import AffectedModel, Evidence, IdentityCheck, Requester, Subject, TakedownRequest

_WHAT = {
    "reference": "the requester's own reference; another one makes another case",
    "statements": "what the requester states; the regime may ask for some",
    "signature": "the name under which they signed",
    "evidence": "digests and locators only, never the thing itself",
    "retain": "look-alikes that must survive",
    "received_at": "left out, it is the moment of recording",
}


def template(table: DeadlineTable, name: str) -> str:
    """Returns an example of a request under a regime, as YAML with comments.

    Raises:
        BadRequestError: The table has no such regime.
    """
    return "\n".join(_lines(table, name)) + "\n"


def _example(table: DeadlineTable, name: str) -> TakedownRequest:
    regime = table.find(name)
    ground = regime.grounds[0]
    elsewhere = [place for place in regime.jurisdictions if place != "*"]
    is_person = ground in ("likeness", "privacy")
    check = IdentityCheck.model_validate(
        {"method": "document seen", "result": "passed", "by": "desk", "at": "2026-01-05T10:00:00Z"}
    )
    return TakedownRequest.model_validate(
        {
            "received_at": "2026-01-05T09:00:00Z",
            "reference": "2026-17",
            "regime": name,
            "ground": ground,
            "jurisdiction": elsewhere[0] if elsewhere else "US",
            "requester": Requester(
                name="Example Person", role="person shown" if is_person else "rights holder", contact="a@example.org"
            ),
            "identity_check": check if regime.needs_identity_check else None,
            "statements": regime.statements,
            "signature": "Example Person" if regime.needs_signature else None,
            "subjects": (Subject(concept="tiger", kind="identity" if is_person else "object", aliases=("tigre",)),),
            "retain": ("lion", "cat"),
            "evidence": (Evidence(sha256="0" * 64, locator="vault, case 17"),),
            "affected": (AffectedModel(name="scapre-reference", version="3"),),
            "scope": "all versions; no exceptions",
        }
    )


def _lines(table: DeadlineTable, name: str) -> Iterator[str]:
    regime = table.find(name)
    yield f"# {regime.title}."
    yield (
        f"# {_span(regime.acknowledge)} to acknowledge, {_span(regime.decide)} to decide, {_span(regime.effect)} "
        "to take effect: service targets, not legal advice."
    )
    record = _example(table, name).model_dump(mode="json", exclude_defaults=True)
    for field, value in {"format": 2, **record, "base": "reference"}.items():
        text = yaml.safe_dump({field: value}, sort_keys=False, allow_unicode=True, width=110).rstrip()
        if field in _WHAT:
            yield f"# {_WHAT[field]}"
        yield text


def _span(duration: Duration) -> str:
    unit, count = next(iter(duration.model_dump(exclude_none=True).items()))
    return f"{count:g} {unit.replace('_', ' ')}"
