"""The inbox: requests dropped as files into the object store.

Guarantees:
    1. A file is recorded, then copied, then removed from the inbox: whatever is killed where, the next look goes on.
    2. What is no request is moved aside with the reason beside it, and stops nobody else's.
    3. A failure of the store or the database refuses nothing: the file stays for the next look.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime

from flows.errors import BadRequestError
from flows.intake import add_request
from flows.requests import LARGEST_BYTES, read_request_file
from flows.services import Services
from infra.digests import sha256_bytes

INBOX, TAKEN, REFUSED = "inbox/", "inbox-taken/", "inbox-refused/"
_REASON = ".reason.json"


@dataclass(frozen=True)
class Delivery:
    """What became of one dropped file."""

    key: str
    request_id: str | None
    """None if it was refused."""
    is_new: bool
    reason: str
    """Why it was refused."""


def take_in(services: Services) -> list[Delivery]:
    """Records every request in the inbox, in the order of the files' names, and clears the inbox."""
    keys = [key for key in services.store.list_keys(INBOX) if not key.endswith("/")]
    return [_take(services, key) for key in keys]


def reason_key(refused_key: str) -> str:
    """Returns the key of the reason beside a refused file."""
    return f"{refused_key}{_REASON}"


def refused_files(services: Services) -> list[tuple[str, datetime]]:
    """Returns refused files with the time at which each was refused."""
    keys = services.store.list_keys(REFUSED)
    found = []
    for key in keys:
        if key.endswith(_REASON) and key.removesuffix(_REASON) in keys:
            at = json.loads(services.store.get_bytes(key))["at"]
            found.append((key.removesuffix(_REASON), datetime.fromisoformat(at)))
    return found


def _take(services: Services, key: str) -> Delivery:
    name = key.removeprefix(INBOX)
    size = services.store.size_bytes(key)
    try:
        if size is not None and size > LARGEST_BYTES:
            raise BadRequestError(f"expected a request of at most {LARGEST_BYTES} bytes, found {size} in {key}")
        content = services.store.get_bytes(key)
        request_id, is_new = add_request(services, read_request_file(content, name=key), channel="inbox")
    except BadRequestError as error:
        _refuse(services, key, str(error))
        return Delivery(key, None, False, str(error))
    services.store.put_bytes(f"{TAKEN}{request_id}/{name}", content)
    services.store.discard(key)
    return Delivery(key, request_id, is_new, "")


def _refuse(services: Services, key: str, reason: str) -> None:
    content = services.store.get_bytes(key)
    moved = f"{REFUSED}{sha256_bytes(content)[:16]}/{key.removeprefix(INBOX)}"
    at = datetime.now(UTC).isoformat(timespec="seconds")
    services.store.put_bytes(moved, content)
    services.store.put_bytes(reason_key(moved), json.dumps({"at": at, "reason": reason}, ensure_ascii=False).encode())
    services.store.discard(key)
