"""The promotion lock: one holder at a time, and none forever."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine

from infra.errors import LockHeldError
from infra.locks import acquire_lock, hold_lock, keep_lock


def test_a_held_lock_refuses_others_and_says_who_holds_it(engine: Engine):
    with hold_lock(engine, owner="run-1"):
        with pytest.raises(LockHeldError, match=r"held by run-1 for another \d+ s"):
            acquire_lock(engine, owner="run-2")
        acquire_lock(engine, owner="run-2", name="another").release()
    acquire_lock(engine, owner="run-2").release()


def test_the_lock_is_given_back_on_an_error(engine: Engine):
    with pytest.raises(ZeroDivisionError), hold_lock(engine, owner="run-1"):
        raise ZeroDivisionError
    acquire_lock(engine, owner="run-2")


def test_a_lease_that_ran_out_is_taken_over_and_stops_its_first_holder(engine: Engine):
    first = acquire_lock(engine, owner="run-1", lease_seconds=0.05)
    time.sleep(0.06)
    second = acquire_lock(engine, owner="run-2")
    with pytest.raises(LockHeldError, match="expected run-1 to hold"):
        first.ensure_held()
    first.release()  # must not release what run-2 holds
    second.ensure_held()


def test_a_holder_that_works_on_keeps_its_lease(engine: Engine):
    lock = acquire_lock(engine, owner="run-1", lease_seconds=0.5)
    for _ in range(4):
        time.sleep(0.2)
        lock.ensure_held()
    with pytest.raises(LockHeldError):
        acquire_lock(engine, owner="run-2")


def test_a_lease_that_nobody_took_over_is_still_the_holders(engine: Engine):
    lock = acquire_lock(engine, owner="run-1", lease_seconds=0.05)
    time.sleep(0.06)
    lock.ensure_held()
    with pytest.raises(LockHeldError):
        acquire_lock(engine, owner="run-2")


def test_long_work_keeps_its_lock_by_itself_and_gives_it_back(engine: Engine):
    with keep_lock(engine, owner="run-1", name="work", lease_seconds=0.3):
        time.sleep(0.6)
        with pytest.raises(LockHeldError):
            acquire_lock(engine, owner="run-2", name="work")
    acquire_lock(engine, owner="run-2", name="work").release()


def test_waiting_outlasts_a_short_holder(engine: Engine):
    acquire_lock(engine, owner="run-1", lease_seconds=0.2)
    acquire_lock(engine, owner="run-2", wait_seconds=5).ensure_held()


def test_rivals_are_never_inside_together(engine: Engine):
    inside: list[int] = []

    def work(number: int) -> int:
        with hold_lock(engine, owner=f"run-{number}", wait_seconds=30):
            inside.append(number)
            time.sleep(0.01)
            alone = inside == [number]
            inside.remove(number)
        return int(alone)

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(work, range(8))) == 8
