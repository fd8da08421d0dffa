"""What every step of a flow has in common.

Guarantees:
    1. Only a transient failure is retried; a failed gate, a bad request or a wrong digest never is.
    2. Results of steps with effects stay in memory: large bytes go to the object store, effects are found again by
       their ledger keys.
    3. A result is remembered between runs only under the digest of all that it follows from, and as JSON: nothing is
       unpickled.
"""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from infra.errors import TransientFailure

P = ParamSpec("P")
R = TypeVar("R")


def is_transient(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether a failed task may succeed when it is tried again."""
    return isinstance(state.result(raise_on_failure=False), TransientFailure)


def remembered_step(name: str, *, digest_of: Callable[[dict[str, Any]], str]) -> Callable[[Callable[P, R]], Task[P, R]]:
    """A task without effects whose result is kept under a digest of its parameters and found again by it.

    Args:
        name: What the page calls it.
        digest_of: From the parameters by name to a digest that covers everything the result follows from.
    """
    return task(
        name=name,
        cache_key_fn=lambda _context, parameters: f"{name}-{digest_of(parameters)}",
        persist_result=True,
        result_serializer="json",
        retries=2,
        retry_delay_seconds=[1, 10],
        retry_condition_fn=is_transient,
    )


def step(name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """A task with the retries and without the cache that effects need."""
    return task(
        name=name,
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=2,
        retry_delay_seconds=[1, 10],
        retry_condition_fn=is_transient,
    )
