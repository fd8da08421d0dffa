"""Locks with a lease, in the ledger's database.

* At most one holder at a time, across processes and machines that share the database.
* A lease that ran out may be taken over, so a killed holder blocks nobody for long.
* A holder asks `ensure_held` right before each irreversible step: a lease that was lost stops it.
* A lock for long work can be renewed by a thread while its process lives, so that the lease may stay short.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Column, Connection, Engine, Float, String, Table, exc, insert, select, text, update

from infra.database import METADATA, migrate, reading, writing
from infra.errors import InfraError, LockHeldError

PROMOTION = "promotion"

LOCKS = Table(
    "locks",
    METADATA,
    Column("name", String(64), primary_key=True),
    Column("owner", String(255), nullable=False),
    Column("token", String(64), nullable=False),
    Column("expires_at", Float(53), nullable=False),
)


@dataclass(frozen=True)
class HeldLock:
    """A lock that was acquired; it stays held until released or until its lease runs out."""

    engine: Engine
    name: str
    owner: str
    token: str
    lease_seconds: float

    def ensure_held(self) -> None:
        """Extends the lease, or stops a holder that lost it.

        Raises:
            LockHeldError: the lease ran out and somebody took over, who may already have acted.
        """
        with writing(self.engine) as connection:
            now = _now(connection)
            # whoever takes over writes a token of its own: a lease that ran out unnoticed is still ours
            mine = (LOCKS.c.name == self.name) & (LOCKS.c.token == self.token)
            extended = connection.execute(update(LOCKS).where(mine).values(expires_at=now + self.lease_seconds))
            if extended.rowcount != 1:
                raise LockHeldError(
                    f"expected {self.owner} to hold the {self.name} lock, found its lease of {self.lease_seconds:g} s "
                    "over and taken; start again from the current state"
                )

    def release(self) -> None:
        """Gives the lock back; nothing happens when it is no longer ours."""
        mine = (LOCKS.c.name == self.name) & (LOCKS.c.token == self.token)
        with writing(self.engine) as connection:
            connection.execute(update(LOCKS).where(mine).values(owner="", token="", expires_at=0.0))


def acquire_lock(
    engine: Engine, *, owner: str, name: str = PROMOTION, lease_seconds: float = 300.0, wait_seconds: float = 0.0
) -> HeldLock:
    """Returns the lock once it is ours.

    Args:
        engine: The ledger's database.
        owner: Shown to whoever finds the lock held: an opaque run identifier, not a person's name.
        name: Which lock.
        lease_seconds: How long it holds without `ensure_held`.
        wait_seconds: How long to wait for another holder.

    Raises:
        LockHeldError: another holder kept it for all of `wait_seconds`.
    """
    migrate(engine)
    lock = HeldLock(engine, name, owner, secrets.token_hex(16), lease_seconds)
    deadline = time.monotonic() + wait_seconds
    while not _take(lock):
        if time.monotonic() >= deadline:
            raise LockHeldError(_who_holds(engine, name))
        time.sleep(min(0.1, max(deadline - time.monotonic(), 0.001)))
    return lock


@contextmanager
def hold_lock(
    engine: Engine, *, owner: str, name: str = PROMOTION, lease_seconds: float = 300.0, wait_seconds: float = 0.0
) -> Generator[HeldLock]:
    """Holds the lock while the block runs; see `acquire_lock`."""
    lock = acquire_lock(engine, owner=owner, name=name, lease_seconds=lease_seconds, wait_seconds=wait_seconds)
    try:
        yield lock
    finally:
        lock.release()


@contextmanager
def keep_lock(
    engine: Engine, *, owner: str, name: str, lease_seconds: float = 300.0, wait_seconds: float = 0.0
) -> Generator[HeldLock]:
    """Holds a lock for long work: a thread renews it, so the lease may be short and a killed holder soon replaced."""
    ended = threading.Event()

    def renew(lock: HeldLock) -> None:
        while not ended.wait(lease_seconds / 3):
            try:
                lock.ensure_held()
            except LockHeldError:
                return  # lost for good: the holder's own `ensure_held` says so
            except InfraError:
                continue  # a busy database: the lease outlives two missed renewals

    with hold_lock(engine, owner=owner, name=name, lease_seconds=lease_seconds, wait_seconds=wait_seconds) as lock:
        thread = threading.Thread(target=renew, args=(lock,), name=f"renews {name}", daemon=True)
        thread.start()
        try:
            yield lock
        finally:
            ended.set()
            thread.join()


def _take(lock: HeldLock) -> bool:
    try:
        with writing(lock.engine) as connection:
            now = _now(connection)
            mine = {"owner": lock.owner, "token": lock.token, "expires_at": now + lock.lease_seconds}
            is_free = (LOCKS.c.name == lock.name) & (LOCKS.c.expires_at <= now)
            if connection.execute(update(LOCKS).where(is_free).values(mine)).rowcount == 1:
                return True
            if connection.execute(select(LOCKS.c.name).where(LOCKS.c.name == lock.name)).one_or_none() is None:
                connection.execute(insert(LOCKS).values(name=lock.name, **mine))
                return True
            return False
    except exc.IntegrityError:  # a rival inserted the very first row
        return False


def _who_holds(engine: Engine, name: str) -> str:
    with reading(engine) as connection:
        row = connection.execute(select(LOCKS).where(LOCKS.c.name == name)).one_or_none()
        left = 0.0 if row is None else max(row.expires_at - _now(connection), 0.0)
    holder = row.owner if row is not None and row.owner else "nobody any more"
    return f"expected the {name} lock to be free, found it held by {holder} for another {left:.0f} s; try again then"


def _now(connection: Connection) -> float:
    if connection.dialect.name == "sqlite":
        return time.time()  # all users of the file share this machine's clock
    return float(connection.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())
