"""The model registry: runs, versions and aliases in MLflow.

* Large bytes never pass through MLflow: a version holds the URI of the object store, digests and the run that made it.
* Registering the same digest twice gives the same version.
* `champion` moves only under the promotion lock, and only from the version the caller decided on.
* Versions are compared as text: MLflow gives numbers from a database and text from a server.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from infra.errors import NotFoundError, RegistryError, StaleChampionError
from infra.locks import HeldLock
from infra.tracking import TrackedRun, sorted_failures

CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"
DIGEST_TAG = "scapre.digest"
_PENDING_TAG = "scapre.promotion"


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


@dataclass(frozen=True)
class Promotion:
    """What a promotion changed, and so what undoing it restores."""

    champion: str
    """The version that is champion now."""
    champion_before: str | None
    """The champion until then; None for the first promotion."""
    previous_before: str | None
    """Where `previous` pointed until then."""
    was_candidate: bool
    """Whether `candidate` pointed at the new champion."""


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

    def register(
        self, *, source: str, digest: str, run_id: str | None = None, tags: Mapping[str, str] | None = None
    ) -> ModelVersion:
        """Registers weights that are in the object store and points `candidate` at them.

        Args:
            source: Their URI, from `ObjectStore.locate`.
            digest: Their directory digest, from `ObjectStore.put_directory`.
            run_id: The run that made them.
            tags: Further digests and opaque identifiers.
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
                    self.model_name, source, run_id=run_id, tags={**(tags or {}), DIGEST_TAG: digest}
                )
            )
            self._client.set_registered_model_alias(self.model_name, CANDIDATE, str(created.version))
        return self.version(created.version)

    def version(self, version: str | int) -> ModelVersion:
        """Returns one version.

        Raises:
            NotFoundError: there is none with this number.
        """
        with sorted_failures(f"version {version} of {self.model_name}"):
            found = self._client.get_model_version(self.model_name, str(version))
            aliases = self._aliases()
        return ModelVersion(
            version=str(found.version),
            source=str(found.source),
            digest=found.tags.get(DIGEST_TAG, ""),
            run_id=found.run_id or None,
            tags=dict(found.tags),
            aliases=tuple(sorted(alias for alias, target in aliases.items() if target == str(found.version))),
        )

    def tag_version(self, version: str | int, tags: Mapping[str, str]) -> None:
        """Records digests and opaque identifiers with a version; an empty text says that there is none any more."""
        with sorted_failures(f"version {version} of {self.model_name}"):
            for name, value in tags.items():
                self._client.set_model_version_tag(self.model_name, str(version), name, value)

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

    def promote(self, version: str | int, *, expected_champion: str | int | None, lock: HeldLock) -> Promotion:
        """Makes `version` the champion, and the champion until then `previous`.

        Safe to repeat after a kill at any point: a promotion that already happened is returned as it is.

        Args:
            version: The version to promote.
            expected_champion: The champion the decision was taken against; None for the first promotion.
            lock: The promotion lock, held by the caller.

        Raises:
            StaleChampionError: the champion is another one by now; judge and approve again.
            LockHeldError: the lease of the lock ran out.
            NotFoundError: there is no such version.
        """
        target, expected = self.version(version).version, _as_text(expected_champion)
        lock.ensure_held()
        aliases, promotion = self._aliases(), self._pending()
        is_repeat = promotion is not None and (promotion.champion, promotion.champion_before) == (target, expected)
        if promotion is None or not is_repeat:
            promotion = Promotion(target, expected, aliases.get(PREVIOUS), aliases.get(CANDIDATE) == target)
        found = aliases.get(CHAMPION)
        if found != expected and not (is_repeat and found == target):
            raise StaleChampionError(
                f"expected champion {expected or 'none'} of {self.model_name}, found {found or 'none'}; "
                "somebody promoted in between: judge and approve against the new champion"
            )
        if target == expected:
            raise RegistryError(f"expected a version other than the champion, found {target}; nothing to promote")
        self._note(promotion)
        self._point(PREVIOUS, expected)
        lock.ensure_held()
        self._point(CHAMPION, target)
        if aliases.get(CANDIDATE) == target:
            self._point(CANDIDATE, None)
        return promotion

    def undo(self, promotion: Promotion, *, lock: HeldLock) -> None:
        """Puts all aliases back where a promotion found them; undoing twice is undoing once.

        Raises:
            StaleChampionError: something else happened since; undoing would discard it.
        """
        lock.ensure_held()
        aliases, pending = self._aliases(), self._pending()
        found = aliases.get(CHAMPION)
        if pending is None and found == promotion.champion_before:
            return
        if pending != promotion or found not in (promotion.champion, promotion.champion_before):
            raise StaleChampionError(
                f"expected champion {promotion.champion} as this promotion left it, found {found or 'none'} and later "
                "changes; nothing was undone: roll back instead"
            )
        self._point(CHAMPION, promotion.champion_before)
        self._point(PREVIOUS, promotion.previous_before)
        if promotion.was_candidate and aliases.get(CANDIDATE) is None:
            self._point(CANDIDATE, promotion.champion)
        self._note(None)

    def roll_back(self, *, expected_champion: str | int, lock: HeldLock) -> Promotion:
        """Makes `previous` the champion again, and the champion `previous`.

        Raises:
            RegistryError: there is no previous version.
            StaleChampionError: the champion is not the one the caller means to leave.
        """
        previous = self.previous()
        if previous is None:
            raise RegistryError(f"expected a previous version of {self.model_name}, found none; nothing to return to")
        return self.promote(previous.version, expected_champion=expected_champion, lock=lock)

    def _by_alias(self, alias: str) -> ModelVersion | None:
        target = self._aliases().get(alias)
        return None if target is None else self.version(target)

    def _aliases(self) -> dict[str, str]:
        try:
            with sorted_failures(f"model {self.model_name}"):
                model = self._client.get_registered_model(self.model_name)
        except NotFoundError:
            return {}
        return {alias: str(version) for alias, version in model.aliases.items()}

    def _point(self, alias: str, version: str | None) -> None:
        with sorted_failures(f"alias {alias} of {self.model_name}"):
            if version is None:
                self._client.delete_registered_model_alias(self.model_name, alias)
            else:
                self._client.set_registered_model_alias(self.model_name, alias, version)

    def _pending(self) -> Promotion | None:
        """The promotion begun last, which may have been killed half-way; None once undone."""
        with sorted_failures(f"model {self.model_name}"):
            noted = self._client.get_registered_model(self.model_name).tags.get(_PENDING_TAG)
        return Promotion(**json.loads(noted)) if noted else None

    def _note(self, promotion: Promotion | None) -> None:
        text = "" if promotion is None else json.dumps(asdict(promotion))
        with sorted_failures(f"model {self.model_name}"):
            self._client.set_registered_model_tag(self.model_name, _PENDING_TAG, text)

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
            return self._client.create_experiment(name, artifact_location=location)
        except MlflowException:  # a rival created it in between
            known = self._client.get_experiment_by_name(name)
            if known is None:
                raise
            return known.experiment_id


def _as_text(version: str | int | None) -> str | None:
    return None if version is None else str(version)
