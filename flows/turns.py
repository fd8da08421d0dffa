"""Turns at the accelerator: one run draws at a time, and a run that died gives its turn up by itself.

Guarantees:
    1. Among the runs that share a ledger, at most one draws on a GPU; runs on a CPU do not wait for one another.
    2. A turn is a lease in the ledger's database, renewed while pictures are made: a killed run holds it for no longer
       than the lease, whatever Prefect knows of it.
    3. A run that lost its turn stops before the next batch, and goes on from the finished pictures when it is retried.
"""

import time
from collections.abc import Generator
from contextlib import contextmanager

from flows.progress import OnProgress
from flows.services import Services
from infra.locks import hold_lock

RENDERING = "rendering"
LEASE_SECONDS = 600.0
"""Longer than the slowest batch, with what is loaded before the first one."""
WAIT_SECONDS = 3600.0
_RENEWALS = 4
"""Renewals within one lease."""


@contextmanager
def turn_to_render(services: Services, key: str) -> Generator[OnProgress]:
    """Waits for the turn of the run with this key, and yields a callback that keeps it.

    Raises:
        LockHeldError: Others kept it for all of `WAIT_SECONDS`, or the lease was lost; the step is retried.
    """
    if services.settings.resolve_device() == "cpu":
        yield lambda _done, _total: None
        return
    with take_turn(services, key, lease_seconds=LEASE_SECONDS, wait_seconds=WAIT_SECONDS) as stay:
        yield stay


@contextmanager
def take_turn(services: Services, key: str, *, lease_seconds: float, wait_seconds: float) -> Generator[OnProgress]:
    """Holds the turn while the block runs; see `turn_to_render`."""
    engine = services.ledger.engine
    with hold_lock(
        engine, owner=key[:16], name=RENDERING, lease_seconds=lease_seconds, wait_seconds=wait_seconds
    ) as lock:
        renewed_at = time.monotonic()

        def stay(_done: int, _total: int) -> None:
            nonlocal renewed_at
            if time.monotonic() - renewed_at >= lease_seconds / _RENEWALS:
                lock.ensure_held()
                renewed_at = time.monotonic()

        yield stay
