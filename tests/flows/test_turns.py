"""Turns at the accelerator, in a real database."""

import time

import pytest

from flows.services import open_services
from flows.turns import take_turn, turn_to_render
from infra.errors import LockHeldError, TransientFailure
from infra.settings import load_settings


@pytest.fixture
def services(tmp_path):
    return open_services(load_settings({}, home=tmp_path / "home", device="cpu"))


def test_a_second_run_waits_for_the_first(services):
    with (
        take_turn(services, "first", lease_seconds=60, wait_seconds=0),
        pytest.raises(LockHeldError, match="first"),
        take_turn(services, "second", lease_seconds=60, wait_seconds=0.2),
    ):
        pass
    with take_turn(services, "second", lease_seconds=60, wait_seconds=0):
        pass


def test_a_run_that_died_gives_its_turn_up_by_itself(services):
    dead = take_turn(services, "dead", lease_seconds=0.3, wait_seconds=0)
    dead.__enter__()  # and never leaves
    with take_turn(services, "next", lease_seconds=60, wait_seconds=5):
        pass


def test_a_turn_is_kept_while_pictures_are_made(services):
    with take_turn(services, "slow", lease_seconds=0.5, wait_seconds=0) as stay:
        for done in range(8):
            time.sleep(0.1)
            stay(done, 8)
        with pytest.raises(LockHeldError), take_turn(services, "other", lease_seconds=60, wait_seconds=0):
            pass


def test_a_run_that_lost_its_turn_stops_and_may_be_retried(services):
    with take_turn(services, "slept", lease_seconds=0.2, wait_seconds=0) as stay:
        time.sleep(0.3)
        with take_turn(services, "other", lease_seconds=60, wait_seconds=1), pytest.raises(TransientFailure):
            stay(1, 2)


def test_runs_on_a_cpu_do_not_wait(services):
    with turn_to_render(services, "first"), turn_to_render(services, "second") as stay:
        stay(1, 1)
