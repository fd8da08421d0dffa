"""Failures of the outside world, sorted by what to do about them.

* `TransientFailure` is the only class worth retrying: the same call may succeed later.
* Everything else is a `PermanentFailure`: the same call would fail again.
* Messages say what was expected, what was found and the next step.
"""

from __future__ import annotations


class InfraError(Exception):
    """Anything that storage, ledger, locks, registry or settings raise on purpose."""


class TransientFailure(InfraError):  # noqa: N818  the class says whether to retry, and reads as that claim
    """A time-out, a busy database, a server error or a cut connection: retry the same call."""


class PermanentFailure(InfraError):  # noqa: N818
    """Retrying the same call cannot help; the message says what would."""


class LockHeldError(TransientFailure):
    """Somebody else holds the lock, or took it over when its lease ran out."""


class NotFoundError(PermanentFailure):
    """The object, entry, record or model version does not exist."""


class DigestMismatchError(PermanentFailure):
    """Content is there, but it is not the content that was stored."""


class NoSpaceError(PermanentFailure):
    """The disk, quota or database is full."""


class LedgerError(PermanentFailure):
    """An entry that cannot be recorded as asked."""


class RegistryError(PermanentFailure):
    """The model registry refused, or is not in the state the caller expected."""


class StaleChampionError(RegistryError):
    """The champion is not the version the caller decided on."""


class SettingsError(PermanentFailure):
    """A setting that is unknown, malformed or contradicts another."""
