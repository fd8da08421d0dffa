"""Progress: nothing for what is quick, a line every tenth for what is not."""

import io

import pytest
from rich.console import Console

from flows import progress


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def shown(clock: Clock, calls: list[tuple[float, int, int]], *, after: float = 0.0) -> list[str]:
    written = io.StringIO()
    with progress.progress_bar("reading text", Console(file=written, width=120), after=after) as on_progress:
        for seconds, done, total in calls:
            clock.now += seconds
            on_progress(done, total)
    return written.getvalue().splitlines()


def test_what_may_be_quick_is_shown_once_it_is_not(clock: Clock) -> None:
    assert shown(clock, [(0.9, 5, 10), (0.9, 10, 10)], after=2.0) == []
    assert shown(clock, [(0.9, 5, 10), (1.2, 10, 10)], after=2.0) == ["reading text: 10 of 10"]
    assert shown(clock, [(0.0, 0, 10)]) == ["reading text: 0 of 10"]  # what is slow says so at once


def test_a_line_every_tenth_says_how_long_the_rest_takes(clock: Clock) -> None:
    lines = shown(clock, [(3.0, done, 200) for done in range(1, 201)])
    assert len(lines) == 11
    assert lines[:2] == ["reading text: 1 of 200", "reading text: 20 of 200, about 540 s left"]
    assert lines[-1] == "reading text: 200 of 200"


def test_more_may_turn_out_to_be_needed(clock: Clock) -> None:
    lines = shown(clock, [(10.0, 10, 10), (10.0, 20, 40), (20.0, 40, 40)])
    assert lines == ["reading text: 10 of 10", "reading text: 20 of 40, about 20 s left", "reading text: 40 of 40"]


def test_a_terminal_gets_a_bar(clock: Clock) -> None:
    written = io.StringIO()
    console = Console(file=written, width=120, force_terminal=True)
    with progress.progress_bars(("reading text", "capacity curve"), console, after=2.0) as [on_read, _]:
        on_read(1, 4)
        clock.now += 2.5
        on_read(3, 4)
    assert "3/4" in written.getvalue()
    assert "1/4" not in written.getvalue()
    assert "capacity curve" not in written.getvalue()
