"""Eight takedowns and two rollbacks at once against one model; nothing may be lost and the ledger must verify."""

from functools import partial
from pathlib import Path
from typing import Any

from flows.audit import audit_registry
from flows.succession import read_succession
from infra.chain import EntryKind
from tests.chaos import processes, world

TAKEDOWNS, ROLLBACKS = 8, 2


def crowd(folder: Path, *, takedowns: int = TAKEDOWNS, rollbacks: int = ROLLBACKS, **settings: Any) -> list[str]:
    """Starts all at once and returns everything that is not as it must be afterwards.

    A rollback may come last, and then takes requests out of force; the next run asks a person, and brings them back.
    """
    log, home = folder / "log", folder / "home"
    settings = {"promotion_lease_seconds": 20.0, **settings}
    faults: list[str] = []
    _must(partial(_prepare, home, settings), log)
    # the last one asks for a concept that is taken down already: another request all the same
    asked = [(concept, "EU") for concept in world.TARGETS[1:]] + [(world.TARGETS[0], "US")]
    works = [partial(_one_takedown, home, one, settings) for one in asked[:takedowns]]
    works += [partial(world.run_rollback, home, f"Grace {number}", **settings) for number in range(rollbacks)]
    children = [processes.start(work, log=folder / f"log-{number}") for number, work in enumerate(works)]
    codes = [processes.finish(child) for child in children]
    for number, code in enumerate(codes[:takedowns]):
        if code:
            faults.append(f"takedown {number}: exit code {code}: {_last(folder / f'log-{number}')}")
    for number, code in enumerate(codes[takedowns:], start=takedowns):
        if code and "expected a previous champion" not in (folder / f"log-{number}").read_text():
            faults.append(f"rollback {number}: exit code {code}: {_last(folder / f'log-{number}')}")
    done = sum(not code for code in codes[takedowns:])
    _must(partial(_settle, home, settings), log)
    report = folder / "report"
    _must(partial(_check, home, settings, report, takedowns, done), log)
    return faults + report.read_text().splitlines()


def _must(work: Any, log: Path) -> None:
    if code := processes.run(work, log=log):
        raise AssertionError(f"exit code {code}: {_last(log)}")


def _last(log: Path) -> str:
    return log.read_text()[-3000:]


def _prepare(home: Path, settings: dict[str, Any]) -> None:
    services = world.open_home(home, **settings)
    world.make_base(home, services)
    world.add_request(services, world.TARGETS[0])
    world.run_takedown(home, **settings)


def _one_takedown(home: Path, asked: tuple[str, str], settings: dict[str, Any]) -> None:
    world.add_request(world.open_home(home, **settings), asked[0], jurisdiction=asked[1])
    world.run_takedown(home, **settings)


def _settle(home: Path, settings: dict[str, Any]) -> None:
    world.run_takedown(home, **settings)
    services = world.open_home(home, **settings)
    champion = read_succession(services).champion
    judged = services.ledger.entries(kind=EntryKind.JUDGED)
    everything = max(judged, key=lambda entry: len(entry.body["request_ids"]))
    if champion is None or champion.key != everything.body["key"]:
        world.run_approve(home, everything.body["digest"], **settings)


def _check(home: Path, settings: dict[str, Any], report: Path, takedowns: int, rollbacks: int) -> None:
    services = world.open_home(home, **settings)
    faults = audit_registry(services, services.open_registry())
    entries = services.ledger.entries()
    requests = {entry.body["request_id"] for entry in entries if entry.kind == EntryKind.REQUEST_ADDED}
    champion = read_succession(services).champion
    if len(requests) != takedowns + 1:
        faults.append(f"expected {takedowns + 1} requests on record, found {len(requests)}")
    if champion is None or set(champion.request_ids) != requests:
        faults.append(f"expected the champion to honour {sorted(requests)}, found {champion}")
    found = sum(entry.kind == EntryKind.ROLLED_BACK for entry in entries)
    if found != rollbacks:
        faults.append(f"expected {rollbacks} rollbacks on record, found {found}")
    report.write_text("\n".join(faults))
