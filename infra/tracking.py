"""MLflow runs: what a flow logs while it works, and what MLflow's errors mean.

* A run is addressed by its identifier, never as a global active run: tasks in parallel do not mix.
* Tags and names carry digests and opaque identifiers, never concept names.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.errors import NotFoundError, RegistryError, TransientFailure

if TYPE_CHECKING:
    import matplotlib.figure
    import pandas as pd
    from mlflow import MlflowClient

_MISSING = {"RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"}
_TRANSIENT = {"TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "DEADLINE_EXCEEDED", "ABORTED", "RESOURCE_CONFLICT"}
_TRANSIENT_TEXTS = ("database is locked", "UniqueViolation", "UNIQUE constraint", "API request to")


class TrackedRun:
    """One MLflow run, addressed explicitly."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client = client
        self.run_id = run_id

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Records what the run was started with."""
        with sorted_failures("parameters"):
            for name, value in params.items():
                self._client.log_param(self.run_id, name, value)

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Records numbers the run came to."""
        with sorted_failures("metrics"):
            for name, value in metrics.items():
                self._client.log_metric(self.run_id, name, float(value), step=step)

    def log_table(self, table: pd.DataFrame, name: str) -> None:
        """Records a table, such as one row per concept, as `name` (ending in .json)."""
        with sorted_failures(name):
            self._client.log_table(self.run_id, table, name)

    def log_figure(self, figure: matplotlib.figure.Figure, name: str) -> None:
        """Records a figure as `name`, whose ending chooses the format."""
        with sorted_failures(name):
            self._client.log_figure(self.run_id, figure, name)

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Records a small file or folder; weights belong in the object store."""
        with sorted_failures(str(path)):
            if path.is_dir():
                self._client.log_artifacts(self.run_id, str(path), folder)
            else:
                self._client.log_artifact(self.run_id, str(path), folder)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Records what to find the run by: digests and opaque identifiers, never concept names."""
        with sorted_failures("tags"):
            for name, value in tags.items():
                self._client.set_tag(self.run_id, name, value)


@contextmanager
def sorted_failures(what: str) -> Generator[None]:
    """Turns what MLflow raises about `what` into this package's errors."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code in _MISSING:
            raise NotFoundError(f"expected {what} in the registry, found none; check the name and number") from error
        if error.error_code in _TRANSIENT or any(text in str(error) for text in _TRANSIENT_TEXTS):
            raise TransientFailure(f"{what}: expected the registry to answer, found {error}; try again") from error
        raise RegistryError(f"{what}: expected success, found {error}; check SCAPRE_MLFLOW_TRACKING_URI") from error
