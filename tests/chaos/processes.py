"""Child processes that are killed for good: forked, so that they start at once, and ended by SIGKILL, so that nothing
tidies up. The code under test holds no hooks: a point is a function by its dotted name, and which of its calls."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from infra.settings import load_settings, quiet_environment
from tests.chaos import world

SLOW_IMPORTS = ("great_expectations", "matplotlib.pyplot", "mlflow.store.tracking.sqlalchemy_store")
"""Needed by every child: imported once before the fork, they cost each of them nothing."""


@dataclass(frozen=True)
class Point:
    """Where a process dies: before or after the n-th call of a function."""

    phase: str
    target: str
    """Dotted name of a function or method."""
    when: str = "before"
    call: int = 1
    kind: str | None = None
    """Count only calls that have this among their arguments."""

    @property
    def name(self) -> str:
        """What a table shows."""
        of = f" ({self.kind})" if self.kind else ""
        return f"{self.when} {self.target.split('.', 1)[1]}{of} {self.call}"

    def arm(self) -> None:
        """Has this process die there."""
        owner, attribute = _resolve(self.target)
        function, calls = getattr(owner, attribute), 0

        def dying(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            given = (*arguments, *options.values())
            calls += self.kind is None or any(str(value) == self.kind for value in given)
            is_it = calls == self.call and (self.kind is None or any(str(value) == self.kind for value in given))
            if is_it and self.when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*arguments, **options)
            if is_it:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, attribute, dying)


def _resolve(target: str) -> tuple[Any, str]:
    parts = target.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            owner: Any = import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:-1]:
            owner = getattr(owner, part)
        return owner, parts[-1]
    raise AssertionError(f"expected a dotted name, found {target}")


def start(work: Callable[[], None], *, log: Path, point: Point | None = None) -> int:
    """Starts a process that does some work and returns its number."""
    quiet_environment(load_settings({}, home=log.parent))
    for name in SLOW_IMPORTS:
        import_module(name)
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout = sys.stderr = os.fdopen(descriptor, "w")  # pytest puts its own in their place
        world.use_colours()
        if point is not None:
            point.arm()
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)  # the parent's own cleaning up is not this process's


def finish(process: int) -> int:
    """Waits for a process; returns its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def run(work: Callable[[], None], *, log: Path, point: Point | None = None) -> int:
    """Starts a process and waits for it."""
    return finish(start(work, log=log, point=point))
