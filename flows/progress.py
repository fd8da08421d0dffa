"""Progress for people: a bar with the time left on a terminal, a line every tenth elsewhere."""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

QUIET_SECONDS = 2.0
"""What is often done sooner shows progress from then on only."""
OnProgress = Callable[[int, int], None]
"""Called with how many are done and how many there are."""


def console() -> Console:
    """Returns the console for people: standard error, so that output can be piped."""
    return Console(stderr=True, highlight=False)


def both(first: OnProgress, second: OnProgress) -> OnProgress:
    """Returns a callback that tells two."""

    def tell(done: int, total: int) -> None:
        first(done, total)
        second(done, total)

    return tell


@contextmanager
def progress_bar(description: str, console: Console, *, after: float = 0.0) -> Generator[OnProgress]:
    """Yields a callback that shows progress until the block ends, from `after` seconds on."""
    with progress_bars((description,), console, after=after) as [show]:
        yield show


@contextmanager
def progress_bars(descriptions: Sequence[str], console: Console, *, after: float = 0.0) -> Generator[list[OnProgress]]:
    """Yields a callback for each description, as `progress_bar` does."""
    if not console.is_terminal:
        yield [_from(after, _line_printer(description, console)) for description in descriptions]
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=False) as progress:
        yield [_from(after, _bar(progress, description)) for description in descriptions]


def _from(seconds: float, show: OnProgress) -> OnProgress:
    started = time.monotonic()

    def show_late(done: int, total: int) -> None:
        if time.monotonic() - started >= seconds:
            show(done, total)

    return show_late


def _bar(progress: Progress, description: str) -> OnProgress:
    task = progress.add_task(description, total=None, start=False, visible=False)

    def show(done: int, total: int) -> None:
        progress.start_task(task)
        progress.update(task, completed=done, total=total, visible=True)

    return show


def _line_printer(description: str, console: Console) -> OnProgress:
    started: float | None = None
    first_done: int | None = None
    last_tenth = -1

    def show(done: int, total: int) -> None:
        nonlocal started, first_done, last_tenth
        started = time.monotonic() if started is None else started
        first_done = done if first_done is None else first_done
        tenth = done * 10 // max(total, 1)
        if tenth == last_tenth:
            return
        last_tenth = tenth
        spent = time.monotonic() - started
        fresh = done - first_done  # pictures found in the store say nothing about speed
        left = f", about {spent / fresh * (total - done):.0f} s left" if fresh > 0 and done < total else ""
        console.print(f"{description}: {done} of {total}{left}")

    return show
