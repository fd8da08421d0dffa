"""Where processes are killed, and what must hold once the same command was run again."""

import json
import shutil
from collections import Counter
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from flows.audit import audit_registry
from flows.promotion import pointer_key
from flows.services import Services
from flows.succession import read_succession
from infra.chain import EntryKind
from tests.chaos import processes, world
from tests.chaos.processes import Point

P = Point
_LEDGER, _CLIENT, _STORE = "infra.ledger.Ledger.append", "mlflow.MlflowClient", "infra.storage.LocalStore"
PROMOTION = (
    P("promote", "flows.promotion.require_stored", "after"),
    P("promote", "flows.promotion.note_intent"),
    P("promote", "flows.promotion.note_intent", "after"),
    P("promote", f"{_CLIENT}.set_registered_model_alias", "after", 1, "previous"),
    P("promote", f"{_CLIENT}.set_registered_model_alias", "after", 1, "champion"),
    P("promote", f"{_CLIENT}.delete_registered_model_alias", "after"),
    P("promote", f"{_CLIENT}.set_model_version_tag", "after"),
    P("promote", f"{_CLIENT}.set_model_version_tag", "after", 2),
    P("promote", _LEDGER, "before", 1, EntryKind.PROMOTED),
    P("promote", _LEDGER, "after", 1, EntryKind.PROMOTED),
    P("promote", "flows.promotion._write_pointer", "after"),
    P("promote", "flows.promotion.clear_intent"),
    P("promote", "flows.promotion.clear_intent", "after"),
)
TAKEDOWN = (
    P("fetch", f"{_STORE}.get_file", "before", 2),
    P("fetch", "infra.storage._copy", "after", 3),
    P("fetch", "flows.candidate.fetch_base", "after"),
    P("solve", "scapre.unlearn"),
    P("solve", "scapre.unlearn", "after"),
    P("save", "scapre.merge"),
    P("save", "scapre.merge", "after"),
    P("save", "scapre.Edit.save", "after"),
    P("save", f"{_STORE}.put_file"),
    P("save", f"{_STORE}.put_bytes"),
    P("save", f"{_STORE}.put_file", "after", 2),
    P("save", _LEDGER, "after", 1, EntryKind.CANDIDATE_BUILT),
    P("render", "validation.PictureStore.write"),
    P("render", "validation.PictureStore.write", "after", 3),
    P("render", "validation.PictureStore.write", "after", 8),
    P("judge", "flows.takedown.keep_evidence"),
    P("judge", "flows.evidence.write_evidence", "after"),
    P("judge", "validation.evidence._write", "before", 3),
    P("judge", f"{_STORE}.put_directory", "after", 2),
    P("register", "flows.takedown.track_judgement"),
    P("register", "infra.tracking.TrackedRun.log_metrics", "after"),
    P("register", "flows.takedown.track_judgement", "after"),
    P("register", _LEDGER, "before", 1, EntryKind.JUDGED),
    P("register", _LEDGER, "after", 1, EntryKind.JUDGED),
    P("register", f"{_CLIENT}.create_model_version", "after"),
    P("register", f"{_CLIENT}.set_registered_model_alias", "after", 1, "candidate"),
    P("approve", _LEDGER, "before", 1, EntryKind.APPROVED),
    P("approve", _LEDGER, "after", 1, EntryKind.APPROVED),
    *PROMOTION,
)
APPROVE = (
    P("approve", "infra.personal.PersonalRecords.keep", "after"),
    P("approve", _LEDGER, "before", 1, EntryKind.APPROVED),
    P("approve", _LEDGER, "after", 1, EntryKind.APPROVED),
    *PROMOTION[3:5],
)
ROLLBACK = (
    P("roll back", "infra.personal.PersonalRecords.keep", "after"),
    P("roll back", "flows.promotion.note_intent", "after"),
    P("roll back", f"{_CLIENT}.delete_registered_model_alias", "after"),
    P("roll back", f"{_CLIENT}.set_registered_model_alias", "after", 1, "champion"),
    P("roll back", _LEDGER, "before", 1, EntryKind.ROLLED_BACK),
    P("roll back", _LEDGER, "after", 1, EntryKind.ROLLED_BACK),
    P("roll back", "flows.promotion._write_pointer", "after"),
    P("roll back", "flows.promotion.clear_intent", "after"),
)
POINTS = {"takedown": TAKEDOWN, "approve": APPROVE, "rollback": ROLLBACK}
SHORT = {"takedown": (TAKEDOWN[14], PROMOTION[4], PROMOTION[9]), "rollback": (ROLLBACK[3],)}


@dataclass(frozen=True)
class Outcome:
    """What is left when a killed command was run again."""

    digest: str | None
    aliases: dict[str, str]
    entries: dict[str, int]
    versions: int
    runs: int
    pointer: dict[str, Any]
    pictures: int


def read_outcome(services: Services) -> Outcome:
    """Returns what an installation holds."""
    registry = services.open_registry()
    client = registry._client
    experiment = client.get_experiment_by_name("scapre")
    champion = read_succession(services).champion
    pointer = json.loads(services.store.get_bytes(pointer_key(services)))
    return Outcome(
        digest=champion.digest if champion else None,
        aliases=registry.aliases(),
        entries=dict(Counter(str(entry.kind) for entry in services.ledger.entries())),
        versions=len(registry.versions()),
        runs=len(client.search_runs([experiment.experiment_id])),
        pointer={name: pointer[name] for name in ("version", "digest")},
        pictures=len(list(services.pictures.rglob("*.png"))),
    )


class Bench:
    """Makes the installations that commands are killed in, each once, and lays each out anew for every kill.

    All at the same path, since registry and ledger name places in the store by their whole path.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.home, self.log = folder, folder / "home", folder / "log"
        folder.mkdir(parents=True, exist_ok=True)
        self._digest = folder / "digest"
        self._must(self._make_first, "making the installation")
        self._keep("takedown")
        self._must(partial(world.run_takedown, self.home), "the second takedown")
        self._keep("rollback")
        self._must(self._make_approvable, "the rollback")
        self._keep("approve")
        self._expected: dict[str, Outcome] = {}

    def command(self, name: str) -> Any:
        """Returns what a command does."""
        if name == "takedown":
            return partial(world.run_takedown, self.home)
        if name == "approve":
            return partial(world.run_approve, self.home, self._digest.read_text())
        return partial(world.run_rollback, self.home)

    def expected(self, name: str) -> Outcome:
        """Returns what a command leaves when nobody kills it."""
        if name not in self._expected:
            self._lay_out(name)
            self._must(self.command(name), name)
            self._expected[name] = self.read()
        return self._expected[name]

    def kill(self, name: str, point: Point) -> list[str]:
        """Kills a command at a point, runs it again twice, and returns everything that is not as it must be."""
        expected = self.expected(name)
        self._lay_out(name)
        code = processes.run(self.command(name), log=self.log, point=point)
        if code != -9:
            return [f"expected the process to be killed there, found exit code {code}"]
        for attempt in ("again", "a third time"):
            code = processes.run(self.command(name), log=self.log)
            if code:
                return [f"expected the command to succeed {attempt}, found exit code {code}; see {self.log}"]
        found = self.read()
        faults = [
            f"{field}: expected {wanted}, found {getattr(found, field)}"
            for field, wanted in vars(expected).items()
            if getattr(found, field) != wanted
        ]
        audit = self.home / "audit"
        self._must(partial(self._audit, self.home, audit), "the audit")
        return faults + json.loads(audit.read_text())

    def _keep(self, name: str) -> None:
        shutil.copytree(self.home, self.folder / name)

    def _lay_out(self, name: str) -> None:
        shutil.rmtree(self.home)
        shutil.copytree(self.folder / name, self.home)

    def read(self) -> Outcome:
        """Returns what the installation holds."""
        place = self.home / "outcome.json"
        self._must(partial(self._read, self.home, place), "reading the outcome")
        return Outcome(**json.loads(place.read_text()))

    def _must(self, work: Any, what: str) -> None:
        if code := processes.run(work, log=self.log):
            raise AssertionError(f"{what} ended with exit code {code}:\n{self.log.read_text()[-4000:]}")

    def _make_first(self) -> None:
        home = self.home
        services = world.open_home(home)
        world.make_base(home, services)
        world.add_request(services, world.TARGETS[0])
        world.run_takedown(home)
        shutil.rmtree(home / "cache")  # the next run fetches again
        world.add_request(services, world.TARGETS[1])

    def _make_approvable(self) -> None:
        world.run_rollback(self.home)
        judged = world.open_home(self.home).ledger.entries(kind=EntryKind.JUDGED)[-1]
        self._digest.write_text(judged.body["digest"])

    @staticmethod
    def _audit(home: Path, place: Path) -> None:
        services = world.open_home(home)
        place.write_text(json.dumps(audit_registry(services, services.open_registry())))

    @staticmethod
    def _read(home: Path, place: Path) -> None:
        place.write_text(json.dumps(asdict(read_outcome(world.open_home(home)))))
