"""Who is champion, who was before, and who was rolled back: read from the ledger, never stored a second time.

Guarantees:
    1. The ledger alone decides; aliases, tags and the object store's pointer follow it.
    2. A promotion adds to the line of champions, a rollback takes its last one off.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from flows.services import Services
from infra.chain import Entry, EntryKind


@dataclass(frozen=True)
class Champion:
    """A version that was promoted."""

    version: str
    digest: str
    key: str
    """Key of the run that made it."""
    evidence: str
    request_ids: tuple[str, ...]
    """Requests that it honours."""
    entry_hash: str
    """The promotion in the ledger."""


@dataclass(frozen=True)
class Succession:
    """The line of champions of one registered model."""

    line: tuple[Champion, ...] = ()
    """Oldest first; the last one is the champion."""
    newest: Entry | None = None
    """The entry that moved the champion last."""
    rolled_back: Mapping[str, Entry] = field(default_factory=dict)
    """By run key: the entry that took a champion off, unless it was promoted again."""
    retired: frozenset[str] = frozenset()
    """Versions that a rollback took off the line."""

    @property
    def champion(self) -> Champion | None:
        """The version in production; None before the first promotion."""
        return self.line[-1] if self.line else None

    @property
    def previous(self) -> Champion | None:
        """The version that a rollback restores."""
        return self.line[-2] if len(self.line) > 1 else None

    def moved(self, kind: EntryKind, body: Mapping[str, Any]) -> "Succession":
        """Returns the line as a promotion or rollback will leave it, before that is recorded."""
        if kind == EntryKind.PROMOTED:
            return replace(self, line=(*self.line, _as_champion(body, entry_hash="")))
        return replace(self, line=self.line[:-1], retired=self.retired | {self.line[-1].version})

    def standing_of(self, version: str) -> str:
        """Returns what a version is: champion, previous, former, or candidate if it never was promoted."""
        if self.champion is not None and self.champion.version == version:
            return "champion"
        if self.previous is not None and self.previous.version == version:
            return "previous"
        was_promoted = self.retired | {champion.version for champion in self.line}
        return "former" if version in was_promoted else "candidate"


def read_succession(services: Services) -> Succession:
    """Returns the line of champions as the ledger has it now."""
    return fold_succession(services.ledger.entries(), model=services.settings.registered_model_name)


def fold_succession(entries: Iterable[Entry], *, model: str) -> Succession:
    """Returns the line of champions that entries tell of one registered model."""
    line: list[Champion] = []
    rolled_back: dict[str, Entry] = {}
    retired: set[str] = set()
    newest: Entry | None = None
    for entry in entries:
        if entry.kind not in (EntryKind.PROMOTED, EntryKind.ROLLED_BACK) or entry.body.get("model", model) != model:
            continue
        newest = entry
        if entry.kind == EntryKind.PROMOTED:
            line.append(_as_champion(entry.body, entry_hash=entry.entry_hash))
            rolled_back.pop(line[-1].key, None)
        elif line:
            left = line.pop()
            rolled_back[left.key] = entry
            retired.add(left.version)
    return Succession(tuple(line), newest, rolled_back, frozenset(retired))


def _as_champion(body: Mapping[str, Any], *, entry_hash: str) -> Champion:
    return Champion(
        version=str(body["version"]),
        digest=body["digest"],
        key=body["key"],
        evidence=body["evidence"],
        request_ids=tuple(body["request_ids"]),
        entry_hash=entry_hash,
    )
