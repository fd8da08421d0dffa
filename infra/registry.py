"""The model registry: runs, versions and aliases in MLflow.

* Large bytes never pass through MLflow: a version holds the URI of the object store, digests and the run that made it.
* Registering the same digest twice gives the same version.
* `champion` and `previous` move only under the promotion lock, and only from the champion the caller decided on.
* What is asked for twice is written once: aliases and tags that are right already are left alone.
* Versions are compared as text: MLflow gives numbers from a database and text from a server.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import tenacity

from infra.errors import NotFoundError, StaleChampionError, TransientFailure
from infra.locks import HeldLock
from infra.tracking import TrackedRun, sorted_failures

CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"
DIGEST_TAG = "scapre.digest"
STANDING_TAG = "scapre.standing"


@dataclass(frozen=True)
class ModelVersion:
    """One version of the registered model."""

    version: str
    """Number, as text."""
    source: str
    """URI of the weights in the object store."""
    digest: str
    """Digest of the weights' directory."""
    run_id: str | None = None
    """The run that made it."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Everything else that was recorded with it."""
    aliases: tuple[str, ...] = ()
    """Which of candidate, champion and previous point here."""


class Registry:
    """Runs, and the versions of one registered model."""

    def __init__(self, tracking_uri: str, *, model_name: str, artifact_location: str | None = None) -> None:
        """Opens the tracking database or server.

        Args:
            tracking_uri: `sqlite:///…`, `postgresql+psycopg2://…` or a server's URL.
            model_name: Name of the registered model.
            artifact_location: Where new experiments keep their small artifacts; the server's choice when None.
        """
        from mlflow import MlflowClient  # two seconds that most commands do not need

        if tracking_uri.startswith("sqlite:///"):
            Path(tracking_uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        self.model_name, self._artifact_location = model_name, artifact_location
        with sorted_failures(tracking_uri.rsplit("@", 1)[-1]):
            self._client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)

    @contextmanager
    def start_run(
        self, experiment: str, *, name: str | None = None, tags: Mapping[str, str] | None = None
    ) -> Generator[TrackedRun]:
        """Opens a run that ends as FINISHED, as FAILED on an error, or as KILLED on an interrupt."""
        with sorted_failures(f"experiment {experiment}"):
            run = self._client.create_run(self._experiment_id(experiment), tags=dict(tags or {}), run_name=name)
        status = "KILLED"
        try:
            yield TrackedRun(self._client, run.info.run_id)
            status = "FINISHED"
        except Exception:
            status = "FAILED"
            raise
        finally:
            with sorted_failures(f"run {run.info.run_id}"):
                self._client.set_terminated(run.info.run_id, status)

    def discard_runs(self, experiment: str, *, tag: str, value: str) -> list[str]:
        """Removes the runs that carry a tag's value: logged by a killed process and never recorded. Returns which.

        MLflow keeps a removed run restorable, but lists it no longer.
        """
        with sorted_failures(f"experiment {experiment}"):
            known = self._client.get_experiment_by_name(experiment)
            if known is None:
                return []
            found = self._client.search_runs([known.experiment_id], filter_string=f"tags.`{tag}` = '{value}'")
            for run in found:
                self._client.delete_run(run.info.run_id)
        return [run.info.run_id for run in found]

    def register(
        self,
        *,
        source: str,
        digest: str,
        run_id: str | None = None,
        tags: Mapping[str, str] | None = None,
        description: str | None = None,
    ) -> ModelVersion:
        """Registers weights that are in the object store and points `candidate` at them, unless they are champion.

        Args:
            source: Their URI, from `ObjectStore.locate`.
            digest: Their directory digest, from `ObjectStore.put_directory`.
            run_id: The run that made them.
            tags: Further digests and opaque identifiers.
            description: What a reader of the registry should know of this version; Markdown.
        """
        self._ensure_model()
        with sorted_failures(f"model {self.model_name}"):
            known = self._client.search_model_versions(
                f"name = '{self.model_name}' and tag.`{DIGEST_TAG}` = '{digest}'"
            )
            same = [version for version in known if version.source == source]
            created = (
                same[0]
                if same
                else self._client.create_model_version(
                    self.model_name,
                    source,
                    run_id=run_id,
                    tags={**(tags or {}), DIGEST_TAG: digest},
                    description=description,
                )
            )
        number, aliases = str(created.version), self.aliases()
        if number not in (aliases.get(CANDIDATE), aliases.get(CHAMPION)):
            self._point(CANDIDATE, number)
        return self.version(number)

    def version(self, version: str | int) -> ModelVersion:
        """Returns one version.

        Raises:
            NotFoundError: there is none with this number.
        """
        with sorted_failures(f"version {version} of {self.model_name}"):
            found = self._client.get_model_version(self.model_name, str(version))
            aliases = self.aliases()
        return ModelVersion(
            version=str(found.version),
            source=str(found.source),
            digest=found.tags.get(DIGEST_TAG, ""),
            run_id=found.run_id or None,
            tags=dict(found.tags),
            aliases=tuple(sorted(alias for alias, target in aliases.items() if target == str(found.version))),
        )

    def versions(self) -> list[ModelVersion]:
        """Returns all versions, oldest first."""
        with sorted_failures(f"model {self.model_name}"):
            found = self._client.search_model_versions(f"name = '{self.model_name}'", max_results=10_000)
        return [self.version(number) for number in sorted(int(version.version) for version in found)]

    def candidate(self) -> ModelVersion | None:
        """Returns the version registered last and not yet promoted."""
        return self._by_alias(CANDIDATE)

    def champion(self) -> ModelVersion | None:
        """Returns the version in production; None before the first promotion."""
        return self._by_alias(CHAMPION)

    def previous(self) -> ModelVersion | None:
        """Returns the version to roll back to."""
        return self._by_alias(PREVIOUS)

    def point(
        self, *, champion: str | int | None, previous: str | int | None, expected: str | int | None, lock: HeldLock
    ) -> None:
        """Makes `champion` and `previous` point where they should, and takes `candidate` off a new champion.

        Safe to repeat after a kill at any point, and its own undo: point back at what was.

        Args:
            champion: The version in production; None for none.
            previous: The version that a rollback restores; None for none.
            expected: The champion the decision was taken against; None for none.
            lock: The promotion lock, held by the caller.

        Raises:
            StaleChampionError: the champion is another one by now; judge and approve again.
            LockHeldError: the lease of the lock ran out.
            NotFoundError: there is no such version.
        """
        wanted = {PREVIOUS: _as_text(previous), CHAMPION: _as_text(champion)}
        for version in filter(None, wanted.values()):
            self.version(version)
        aliases = self.aliases()
        found = aliases.get(CHAMPION)
        if found not in (_as_text(expected), wanted[CHAMPION]):
            raise StaleChampionError(
                f"expected champion {expected or 'none'} of {self.model_name}, found {found or 'none'}; "
                "somebody promoted in between: judge and approve against the new champion"
            )
        for alias, version in wanted.items():
            if aliases.get(alias) != version:
                lock.ensure_held()
                self._point(alias, version)
        if champion is not None and aliases.get(CANDIDATE) == wanted[CHAMPION]:
            self._point(CANDIDATE, None)

    def point_candidate(self, version: str | int) -> None:
        """Points `candidate` at a version again, unless a newer one took its place."""
        if CANDIDATE not in self.aliases():
            self._point(CANDIDATE, str(version))

    def tag_version(self, version: str | int, tags: Mapping[str, str]) -> None:
        """Records digests and opaque identifiers with a version; an empty text says that there is none any more."""
        known = self.version(version).tags
        with sorted_failures(f"version {version} of {self.model_name}"):
            for name, value in tags.items():
                if known.get(name) != value:
                    self._client.set_model_version_tag(self.model_name, str(version), name, value)

    def _by_alias(self, alias: str) -> ModelVersion | None:
        target = self.aliases().get(alias)
        return None if target is None else self.version(target)

    def aliases(self) -> dict[str, str]:
        """Returns the version each alias points at."""
        try:
            with sorted_failures(f"model {self.model_name}"):
                model = self._client.get_registered_model(self.model_name)
        except NotFoundError:
            return {}
        return {alias: str(version) for alias, version in model.aliases.items()}

    @tenacity.retry(  # two who set a new alias at once: the second breaks a constraint, and finds it there next time
        retry=tenacity.retry_if_exception_type(TransientFailure),
        stop=tenacity.stop_after_attempt(5),
        wait=tenacity.wait_random_exponential(multiplier=0.05, max=1.0),
        reraise=True,
    )
    def _point(self, alias: str, version: str | None) -> None:
        with sorted_failures(f"alias {alias} of {self.model_name}"):
            if version is None:
                self._client.delete_registered_model_alias(self.model_name, alias)
            else:
                self._client.set_registered_model_alias(self.model_name, alias, version)

    def _ensure_model(self) -> None:
        from mlflow.exceptions import MlflowException

        with sorted_failures(f"model {self.model_name}"):
            try:
                self._client.create_registered_model(self.model_name)
            except MlflowException as error:
                if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS"):
                    raise

    def _experiment_id(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        known = self._client.get_experiment_by_name(name)
        if known is not None:
            return known.experiment_id
        location = None if self._artifact_location is None else f"{self._artifact_location.rstrip('/')}/{name}"
        try:
            return self._client.create_experiment(name, artifact_location=location, tags=_EXPERIMENT_TAGS)
        except MlflowException:  # a rival created it in between
            known = self._client.get_experiment_by_name(name)
            if known is None:
                raise
            return known.experiment_id


_EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",  # or the web page opens on tools for chat models
    "mlflow.note.content": "One run for each judgement: figures, gates, pictures and the report are in its artifacts.",
}


def _as_text(version: str | int | None) -> str | None:
    return None if version is None else str(version)
