"""Ledger entries for tests of what is read off a ledger: numbered and dated, without a database."""

import json
from datetime import UTC, datetime, timedelta

from infra.chain import GENESIS, Entry, EntryKind

START = datetime(2026, 3, 2, 9, tzinfo=UTC)  # a Monday


class Tale:
    """Entries in the order in which they are told."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def tell(self, kind: EntryKind, *, hours: float = 1, **body) -> "Tale":
        at = START if not self.entries else datetime.fromisoformat(self.entries[-1].at) + timedelta(hours=hours)
        text = json.dumps(body, sort_keys=True, separators=(",", ":"))
        self.entries.append(Entry(len(self.entries) + 1, kind, at.isoformat(), text, GENESIS, ""))
        return self

    def added(
        self, request_id: str = "req-1", *, ground: str = "copyright", jurisdiction: str = "US", **more
    ) -> "Tale":
        body = {
            "format": 2,
            "request_id": request_id,
            "commitment": "0" * 64,
            "subject_commitment": "1" * 64,
            "base": "reference",
            "ground": ground,
            "jurisdiction": jurisdiction,
            "received_at": START.isoformat(),
            "concepts": 1,
        }
        return self.tell(EntryKind.REQUEST_ADDED, **(body | more))

    def desk(self, kind: EntryKind, request_id: str = "req-1", **more) -> "Tale":
        return self.tell(kind, request_id=request_id, **({"by": "dana"} | more))

    def accepted(self, request_id: str = "req-1") -> "Tale":
        return self.desk(EntryKind.REQUEST_TRIAGED, request_id).desk(EntryKind.REQUEST_VALIDATED, request_id)

    def built(self, *request_ids: str, key: str = "k") -> "Tale":
        return self.tell(EntryKind.CANDIDATE_BUILT, key=key, digest="d" * 64, request_ids=list(request_ids))

    def promoted(self, *request_ids: str, key: str = "k") -> "Tale":
        return self.tell(EntryKind.PROMOTED, key=key, digest="d" * 64, request_ids=list(request_ids))
