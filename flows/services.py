"""The adapters one command needs, opened once from the settings."""

from dataclasses import dataclass
from pathlib import Path

from infra.database import open_database
from infra.ledger import Ledger
from infra.personal import PersonalRecords
from infra.registry import Registry
from infra.settings import Settings, load_settings, quiet_environment
from infra.storage import ObjectStore, open_store


@dataclass(frozen=True)
class Services:
    """Everything outside this process that a flow touches."""

    settings: Settings
    store: ObjectStore
    ledger: Ledger
    personal: PersonalRecords

    @property
    def cache(self) -> Path:
        """Folder of what can be fetched or made again; deleting it costs time, not records."""
        return self.settings.home / "cache"

    @property
    def pictures(self) -> Path:
        """Folder of rendered pictures, addressed by what made them."""
        return self.settings.home / "pictures"

    @property
    def benchmark(self) -> Path:
        """Folder of the benchmark's pictures and results; deleting it costs time, not records."""
        return self.settings.home / "benchmark"

    @property
    def evidence(self) -> Path:
        """Folder of evidence bundles; copies of those in the object store."""
        return self.settings.home / "evidence"

    def open_registry(self) -> Registry:
        """Returns the model registry; opened late, since it is the slowest to start."""
        return Registry(
            self.settings.mlflow_tracking_uri,
            model_name=self.settings.registered_model_name,
            artifact_location=self.settings.mlflow_artifact_location,
        )


def open_services(settings: Settings | None = None) -> Services:
    """Opens store and ledger for the settings in force, and quiets libraries that would call home."""
    settings = settings or load_settings()
    prefect_home = Path(quiet_environment(settings)["PREFECT_HOME"]).expanduser()
    for folder in (settings.home, prefect_home):  # Prefect's server makes no parents: it hangs until its time is out
        folder.mkdir(parents=True, exist_ok=True)
    engine = open_database(settings.ledger_url)
    return Services(
        settings=settings,
        store=open_store(settings.object_store_uri, settings=settings),
        ledger=Ledger(engine),
        personal=PersonalRecords(engine),
    )
