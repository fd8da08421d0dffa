"""What one run would do, as a value, known before anything is changed; its key finds a finished run again."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import rfc8785

from flows.errors import BadRequestError
from flows.requests import Subject, TakedownRequest
from scapre.concepts import name_key


@dataclass(frozen=True)
class Plan:
    """One run: all active requests against one base."""

    base: str
    base_digest: str
    """Digest of the base checkpoint's manifest in the object store."""
    request_ids: tuple[str, ...]
    subjects: tuple[Subject, ...]
    """The union of all active requests, one entry a concept, sorted by name."""
    retain: tuple[str, ...]
    withheld: tuple[str, ...]
    """Names that the engine must not use, so that concepts nobody told it about can be measured."""
    method: str
    dials: dict[str, float | int | str]
    """Every dial of the method with its value, defaults included."""
    policy: dict[str, Any]
    packs: dict[str, str]
    """Digest of every probe pack that the policy asks by, by name."""
    engine: str = field(default_factory=lambda: version("scapre"))
    """Version of the package that solves and judges."""

    @property
    def key(self) -> str:
        """SHA-256 over everything that decides the outcome; the same key is the same run."""
        record = {
            "base_digest": self.base_digest,
            "request_ids": list(self.request_ids),
            "subjects": [subject.model_dump(mode="json") for subject in self.subjects],
            "retain": list(self.retain),
            "withheld": list(self.withheld),
            "method": self.method,
            "dials": dict(self.dials),
            "policy": self.policy,
            "packs": self.packs,
            "engine": self.engine,
        }
        return hashlib.sha256(rfc8785.dumps(record)).hexdigest()


def candidate_key(key: str) -> str:
    """Returns where the object store keeps the candidate of a run."""
    return f"candidates/{key}/checkpoint"


def make_plan(
    requests: dict[str, TakedownRequest],
    *,
    base: str,
    base_digest: str,
    method: str,
    dials: dict[str, float | int | str],
    withheld: tuple[str, ...],
    policy: dict[str, Any],
    packs: dict[str, str],
) -> Plan:
    """Returns the plan that unlearns the union of the active requests for one base.

    Raises:
        BadRequestError: No request is active, or one request retains what another takes down.
        DialError: Unknown method or dial, or a value out of range.
    """
    from scapre.methods import find_method  # torch: the command line's own help must not wait for it

    chosen = {request_id: request for request_id, request in sorted(requests.items()) if request.base == base}
    if not chosen:
        raise BadRequestError(
            f"expected at least one active request for base {base!r}, found none; "
            "add one with `scapre request add FILE`"
        )
    subjects = union(chosen)
    targets = {name_key(name) for subject in subjects for name in (subject.concept, *subject.aliases)}
    # A concept that one request takes down is no longer anybody's to retain, nor what another becomes.
    subjects = tuple(
        subject.model_copy(update={"anchor": None}) if name_key(subject.anchor or "") in targets else subject
        for subject in subjects
    )
    retain = {name for request in chosen.values() for name in request.retain if name_key(name) not in targets}
    return Plan(
        base=base,
        base_digest=base_digest,
        request_ids=tuple(chosen),
        subjects=subjects,
        retain=tuple(sorted(retain)),
        withheld=tuple(sorted(withheld)),
        method=method,
        dials=find_method(method).resolve(dials),
        policy=policy,
        packs=packs,
    )


def union(requests: Mapping[str, TakedownRequest]) -> tuple[Subject, ...]:
    """Returns every concept that requests name, once, sorted by name; another spelling of it is an alias.

    Raises:
        BadRequestError: Two requests disagree on what a concept is or becomes.
    """
    merged: dict[str, Subject] = {}
    for request_id, request in requests.items():
        for subject in request.subjects:
            name = name_key(subject.concept)
            earlier = merged.get(name)
            if earlier is None:
                merged[name] = subject
                continue
            if earlier.kind != subject.kind or earlier.anchor != subject.anchor:
                raise BadRequestError(
                    f"expected requests that name {subject.concept!r} to agree on kind and anchor, found {request_id} "
                    f"to differ from an earlier one; withdraw or correct one of them"
                )
            aliases = tuple(sorted({*earlier.aliases, *subject.aliases, subject.concept} - {earlier.concept}))
            merged[name] = earlier.model_copy(update={"aliases": aliases})
    return tuple(merged[name] for name in sorted(merged))
