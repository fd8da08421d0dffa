"""Runs, versions and promotion against MLflow's own database."""

import contextlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
from sqlalchemy import Engine

from infra.errors import LockHeldError, NotFoundError, StaleChampionError, TransientFailure
from infra.locks import HeldLock, acquire_lock, hold_lock
from infra.registry import ModelVersion, Registry


@pytest.fixture(scope="session")
def mlflow_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture
def registry(mlflow_home: Path, request: pytest.FixtureRequest) -> Registry:
    """One database for all tests, since creating it takes seconds; one model for each."""
    name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)
    return Registry(
        f"sqlite:///{mlflow_home / 'mlflow.db'}", model_name=name, artifact_location=(mlflow_home / "files").as_uri()
    )


@pytest.fixture
def lock(engine: Engine) -> Iterator[HeldLock]:
    with hold_lock(engine, owner="test") as held:
        yield held


def register(registry: Registry, number: int) -> ModelVersion:
    return registry.register(source=f"s3://bucket/models/{number}", digest=f"{number:064x}", tags={"edit": "e" * 64})


def numbers(registry: Registry) -> tuple[str | None, str | None, str | None]:
    found = (registry.champion(), registry.previous(), registry.candidate())
    champion, previous, candidate = (version.version if version else None for version in found)
    return champion, previous, candidate


def test_a_run_records_what_it_was_given(registry: Registry, mlflow_home: Path, tmp_path: Path):
    from matplotlib.figure import Figure

    (tmp_path / "report.html").write_text("<p>report</p>")
    with registry.start_run("takedown", name="r-17", tags={"request": "r-17"}) as run:
        run.log_params({"method": "scapre", "concepts": 3})
        run.log_metrics({"residual_bound": 0.04})
        run.log_table(pd.DataFrame({"concept": ["c-1"], "hits": [0]}), "concepts.json")
        run.log_figure(Figure(), "bounds.png")
        run.log_artifact(tmp_path / "report.html", "evidence")
        run.set_tags({"verdict": "passed"})
    recorded = registry._client.get_run(run.run_id)
    assert recorded.info.status == "FINISHED"
    assert recorded.data.params == {"method": "scapre", "concepts": "3"}
    assert recorded.data.metrics == {"residual_bound": 0.04}
    assert recorded.data.tags["verdict"] == "passed"
    assert recorded.info.artifact_uri.startswith((mlflow_home / "files" / "takedown").as_uri())
    artifacts = {item.path for item in registry._client.list_artifacts(run.run_id)}
    assert artifacts == {"concepts.json", "bounds.png", "evidence"}
    assert json.loads((next((mlflow_home / "files").rglob("concepts.json"))).read_text())["columns"] == [
        "concept",
        "hits",
    ]


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_a_run_that_ends_early_says_so(registry: Registry, error: type[BaseException], status: str):
    with pytest.raises(error), registry.start_run("takedown") as run:
        raise error
    assert registry._client.get_run(run.run_id).info.status == status


def test_a_version_holds_a_pointer_and_digests(registry: Registry):
    version = register(registry, 1)
    assert (version.version, version.source, version.digest) == ("1", "s3://bucket/models/1", f"{1:064x}")
    assert version.tags["edit"] == "e" * 64
    assert version.aliases == ("candidate",)
    assert registry.version(1) == registry.version("1") == version == registry.candidate()
    assert register(registry, 1).version == "1"
    assert register(registry, 2).version == "2"
    assert [found.version for found in registry.versions()] == ["1", "2"]


def test_nothing_is_champion_before_the_first_promotion(registry: Registry):
    assert numbers(registry) == (None, None, None)
    with pytest.raises(NotFoundError, match="version 9"):
        registry.version(9)


def promote(registry: Registry, number: int, *, lock: HeldLock, expected: int | None = None) -> None:
    registry.point(champion=number, previous=expected, expected=expected, lock=lock)


def test_aliases_move_together_and_back(registry: Registry, lock: HeldLock):
    register(registry, 1)
    promote(registry, 1, lock=lock)
    register(registry, 2)
    promote(registry, 2, expected=1, lock=lock)
    assert numbers(registry) == ("2", "1", None)
    registry.point(champion=1, previous=None, expected=2, lock=lock)
    registry.point_candidate(2)
    assert numbers(registry) == ("1", None, "2")
    registry.point(champion=None, previous=None, expected=1, lock=lock)
    assert numbers(registry) == (None, None, "2")


def test_a_stale_expectation_is_refused(registry: Registry, lock: HeldLock):
    for number in (1, 2, 3):
        register(registry, number)
    promote(registry, 1, lock=lock)
    promote(registry, 2, expected=1, lock=lock)
    for stale in (None, 1):
        with pytest.raises(StaleChampionError, match="found 2; somebody promoted in between"):
            promote(registry, 3, expected=stale, lock=lock)
    with pytest.raises(NotFoundError):
        promote(registry, 99, expected=2, lock=lock)
    assert numbers(registry) == ("2", "1", "3")


def test_only_one_of_many_promotions_against_the_same_champion_happens(registry: Registry, engine: Engine):
    for number in range(1, 5):
        register(registry, number)

    def attempt(number: int) -> bool:
        try:
            with hold_lock(engine, owner=f"run-{number}", wait_seconds=60) as held:
                promote(registry, number, lock=held)
        except StaleChampionError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(attempt, range(1, 5))) == 1


def test_a_lost_lease_stops_a_promotion(registry: Registry, lock: HeldLock):
    register(registry, 1)
    lock.release()
    with pytest.raises(LockHeldError):
        promote(registry, 1, lock=lock)
    assert registry.champion() is None


@pytest.mark.parametrize("survived", range(4))
def test_a_promotion_killed_at_any_point_can_be_repeated_and_undone(registry: Registry, engine: Engine, survived: int):
    lock = acquire_lock(engine, owner="test")
    for number in (1, 2, 3):
        register(registry, number)
    promote(registry, 1, lock=lock)
    promote(registry, 2, expected=1, lock=lock)

    class KilledError(BaseException):
        pass

    writes = 0

    def killed_after(original: Callable[..., None]) -> Callable[..., None]:
        def write(self: object, *args: str) -> None:
            nonlocal writes
            if writes == survived:
                raise KilledError
            writes += 1
            original(self, *args)

        return write

    client = type(registry._client)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("set_registered_model_alias", "delete_registered_model_alias"):
            patch.setattr(client, name, killed_after(getattr(client, name)))
        with contextlib.suppress(KilledError):
            promote(registry, 3, expected=2, lock=lock)
    promote(registry, 3, expected=2, lock=lock)
    assert numbers(registry) == ("3", "2", None)
    promote(registry, 3, expected=2, lock=lock)
    registry.point(champion=2, previous=1, expected=3, lock=lock)
    registry.point_candidate(3)
    assert numbers(registry) == ("2", "1", "3")


def test_registering_a_champion_again_does_not_make_it_a_candidate(registry: Registry, lock: HeldLock):
    register(registry, 1)
    promote(registry, 1, lock=lock)
    assert register(registry, 1).aliases == ("champion",)
    assert numbers(registry) == ("1", None, None)


def test_tags_and_descriptions_are_kept_with_a_version(registry: Registry):
    described = registry.register(source="s3://b/k", digest="d" * 64, description="what it is")
    registry.tag_version(described.version, {"standing": "champion", "entry": "e"})
    registry.tag_version(described.version, {"standing": "former"})
    assert {"standing": "former", "entry": "e"}.items() <= registry.version(described.version).tags.items()
    found = registry._client.get_model_version(registry.model_name, described.version)
    assert found.description == "what it is"


def test_runs_that_a_killed_process_left_are_discarded(registry: Registry):
    for key in ("k1", "k1", "k2"):
        with registry.start_run("discarding", tags={"scapre.key": key}):
            pass
    assert len(registry.discard_runs("discarding", tag="scapre.key", value="k1")) == 2
    assert registry.discard_runs("discarding", tag="scapre.key", value="k1") == []
    assert registry.discard_runs("no such experiment", tag="scapre.key", value="k1") == []
    assert len(registry.discard_runs("discarding", tag="scapre.key", value="k2")) == 1


@pytest.mark.parametrize(("refused", "is_settled"), [(1, True), (99, False)])
def test_two_who_point_a_new_alias_at_once_both_succeed(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, refused: int, is_settled: bool
):
    from mlflow.exceptions import MlflowException

    client, calls = registry._client, []
    real = client.set_registered_model_alias

    def late(*arguments: str) -> None:
        calls.append(arguments)
        if len(calls) <= refused:
            raise MlflowException("(sqlite3.IntegrityError) UNIQUE constraint failed: registered_model_aliases.alias")
        real(*arguments)

    monkeypatch.setattr(client, "set_registered_model_alias", late)
    if is_settled:
        register(registry, 1)
        assert numbers(registry) == (None, None, "1")
        assert len(calls) == refused + 1
    else:
        with pytest.raises(TransientFailure, match="UNIQUE"):
            register(registry, 1)
