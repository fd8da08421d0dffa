"""Commands against an S3 server on a bad line: how they must end while it is bad, and once it is mended.

Everything is as in `tests.chaos.world`, but the store is a real server behind a `FaultyProxy`, and what runs is the
command line itself: its exit code and what it says are looked at.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

from flows.audit import audit_registry
from flows.exit_codes import ExitCode
from flows.services import Services
from infra.chain import EntryKind
from infra.digests import sha256_bytes
from infra.manifests import MANIFEST_NAME
from infra.registry import CHAMPION, PREVIOUS
from infra.storage import ObjectStore
from tests.chaos import processes, world
from tests.chaos.kills import Outcome, read_outcome
from tests.chaos.proxy import Fault, FaultyProxy, Kind

BUCKET, PREFIX = "faults", "scapre"
PART_BYTES, PARTS = 5 << 20, 3
_KEYS = {"region_name": "us-east-1", "aws_access_key_id": "key", "aws_secret_access_key": "secret"}
_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Bad:
    """A fault at one of `StoreBench.places`."""

    kind: Kind
    method: str
    place: str
    times: int | None = None
    """None: for good."""


@dataclass(frozen=True)
class Scenario:
    """Faults that meet one command, and how it must end."""

    name: str
    bad: tuple[Bad, ...]
    code: ExitCode = ExitCode.OK
    says: str = ""
    """Pattern of the line that says why."""
    command: str = "takedown"
    is_recorded: bool = False
    """Whether the ledger holds the promotion already when the fault comes: then it stands, and is finished later."""


_READ = ("base manifest", "base weights", "candidate weights", "evidence")
_WRITTEN = ("candidate weights", "candidate manifest", "evidence", "pointer")


def _passing(kind: Kind, *, times: int) -> Scenario:
    reads = tuple(Bad(kind, "GET", place, times) for place in _READ)
    writes = tuple(Bad(kind, "PUT", place, times) for place in _WRITTEN if kind != "cut")
    return Scenario(f"{kind} that passes", reads + writes)


def _lasting(kind: Kind, method: str, place: str, **options: Any) -> Scenario:
    says = "expected room for the object, found .*; free space" if kind == "full" else "try again"
    name = f"{kind} for good: {method} {place}, {options.get('command', 'takedown')}"
    return Scenario(name, (Bad(kind, method, place),), ExitCode.INFRASTRUCTURE, says, **options)


def _altered(kind: Kind, place: str, **options: Any) -> Scenario:
    name = f"{kind}: {place}, {options.get('command', 'takedown')}"
    return Scenario(name, (Bad(kind, "GET", place, 1),), ExitCode.BAD_INPUT, **options)


SCENARIOS = (
    _passing("500", times=2),
    _passing("503", times=2),
    _passing("silence", times=1),
    _passing("cut", times=1),
    _lasting("500", "GET", "base record"),
    *(_lasting(kind, "GET", "base weights") for kind in ("500", "silence", "cut")),
    *(_lasting(kind, "PUT", "candidate weights") for kind in ("500", "silence", "full")),
    *(_lasting(kind, "PUT", "evidence") for kind in ("503", "full")),
    *(_lasting(kind, "GET", "candidate weights") for kind in ("500", "silence", "cut")),
    *(_lasting(kind, "PUT", "pointer", is_recorded=True) for kind in ("500", "full")),
    _lasting("cut", "GET", "candidate weights", command="approve"),
    *(
        _altered(kind, place)
        for place in ("base manifest", "base weights", "candidate manifest", "candidate weights", "evidence")
        for kind in ("flip", "swap")
    ),
    _altered("swap", "candidate weights", command="approve"),
)


@dataclass(frozen=True)
class Place:
    """An object of the store, and what a refusal of altered content must say of it."""

    key: str
    says: str


@dataclass(frozen=True)
class After:
    """What is left when a command has ended."""

    code: int
    said: str
    """Everything it printed."""
    outcome: Outcome
    audit: list[str]


@contextmanager
def open_bench(folder: Path) -> Iterator["StoreBench"]:
    """Serves an S3 bucket on loopback, with the proxy before it, and makes the installation."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line for each request costs more than the request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        url = "http://{}:{}".format(*server.get_host_and_port())
        with FaultyProxy(url) as proxy:
            yield StoreBench(folder, url, proxy)
    finally:
        server.stop()


class StoreBench:
    """An installation with a champion and one more request, laid out anew for every scenario."""

    def __init__(self, folder: Path, server: str, proxy: FaultyProxy) -> None:
        self.folder, self.home, self.log, self.proxy = folder, folder / "home", folder / "log", proxy
        self._server, self._swapped = server, dict[str, bytes]()
        self._client = boto3.client("s3", endpoint_url=server, **_KEYS)
        self._client.create_bucket(Bucket=BUCKET)
        self._objects: dict[str, dict[str, bytes]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "person.yaml").write_text("grounds: {}")
        self._work(self._prepare)
        self._keep("takedown")
        self.before = Outcome(**json.loads((folder / "before.json").read_text()))

    @cached_property
    def expected(self) -> Outcome:
        """What a takedown leaves when nothing goes wrong; its objects stay in the bucket until the next lay-out."""
        self.lay_out("takedown")
        after = self.run("takedown")
        assert after.code == 0, after.said
        return after.outcome

    def check(self, scenario: Scenario) -> list[str]:
        """Runs a command through the faults, again without them, and returns everything that is not as it must be."""
        faults = [self._fault(bad) for bad in scenario.bad]
        self.lay_out(scenario.command)
        self.proxy.faults = faults
        after = self.run(scenario.command)
        wrong = [
            f"expected {fault.kind} at {fault.request} {fault.times or 'some'} times, found {fault.met}"
            for fault in faults
            if fault.met < (fault.times or 1)
        ]
        if after.code != scenario.code:
            wrong.append(f"expected exit code {scenario.code}, found {after.code}: {after.said[-2000:]}")
        if scenario.code:
            wrong += self._refusal(scenario, after)
            self.mend()
            after = self.run(scenario.command)
        if after.outcome != self.expected:
            wrong.append(f"expected in the end {self.expected}, found {after.outcome}: {after.said[-2000:]}")
        return wrong + after.audit

    def run(self, command: str) -> After:
        """Runs a command, then looks at what it left, past the proxy."""
        said = len(self.log.read_text())
        place = self.folder / "after.json"
        self._work(partial(self._command, command, place))
        found = json.loads(place.read_text())
        outcome = Outcome(**found.pop("outcome"))
        return After(said=self.log.read_text()[said:], outcome=outcome, **found)

    def lay_out(self, command: str) -> None:
        """Makes installation and bucket what they were before a command."""
        if command not in self._objects:
            assert command == "approve"
            self.lay_out("takedown")
            assert self.run("wait").code == ExitCode.WAITING
            self._keep(command)
        self.mend()
        self.proxy.requests.clear()
        shutil.rmtree(self.home)
        shutil.copytree(self.folder / command, self.home)
        found, wanted = self._list(), self._objects[command]
        for key in found.keys() - wanted.keys():
            self._client.delete_object(Bucket=BUCKET, Key=key)
        for key, content in wanted.items():
            if found.get(key) != hashlib.md5(content).hexdigest():
                self._put(key, content)

    def mend(self) -> None:
        """Takes all faults away, and puts back what was swapped."""
        self.proxy.faults = []
        while self._swapped:
            self._put(*self._swapped.popitem())

    def swap(self, key: str) -> None:
        """Replaces an object by another one that the store finds nothing wrong with."""
        content = self._get(key)
        self._swapped.setdefault(key, content)
        self._put(key, bytes([content[0] ^ 1]) + content[1:])

    def _fault(self, bad: Bad) -> Fault:
        key = self.places[bad.place].key
        return Fault(bad.kind, f"{bad.method} /{BUCKET}/{key}", bad.times, swap=partial(self.swap, key))

    def _refusal(self, scenario: Scenario, after: After) -> list[str]:
        reasons = [line for line in after.said.splitlines() if line.startswith("scapre: ")]
        says = scenario.says or self.places[scenario.bad[0].place].says
        wrong = []
        if len(reasons) != 1 or not re.search(says, reasons[0]) or "Traceback" in after.said:
            wrong.append(f"expected one line that says {says}, found {reasons or after.said[-2000:]}")
        wanted, found = standing(self.expected if scenario.is_recorded else self.before), standing(after.outcome)
        if scenario.is_recorded:
            wanted["pointer"] = self.before.pointer
        if found != wanted:
            wrong.append(f"expected {wanted} after the refusal, found {found}")
        if bool(after.audit) != scenario.is_recorded:
            wrong.append(
                f"expected the audit to find {'the promotion unfinished' if scenario.is_recorded else 'nothing'}"
            )
            wrong += after.audit
        return wrong

    @cached_property
    def places(self) -> dict[str, Place]:
        """Where an undisturbed takedown finds and leaves its objects; the same command leaves them there again."""
        assert self.expected
        store, new = self._services().store, self._list().keys() - self._objects["takedown"].keys()
        (checkpoint,) = (key.removeprefix(f"{PREFIX}/") for key in new if key.endswith("checkpoint/manifest.json"))
        base, run = "bases/reference/files", checkpoint.split("/")[1]
        return {
            "base record": Place(f"{PREFIX}/bases/reference/base.json", ""),
            "base manifest": _manifest(store, base),
            "base weights": _file(store, base, _WEIGHTS),
            "large file": _file(store, base, world.LARGE_FILE),
            "candidate manifest": _manifest(store, f"candidates/{run}/checkpoint"),
            "candidate weights": _file(store, f"candidates/{run}/checkpoint", _WEIGHTS, is_named=True),
            "evidence": _file(store, f"evidence/{run}", "request.json"),
            "pointer": Place(f"{PREFIX}/models/.*/champion.json", ""),
        }

    def _prepare(self) -> None:
        services = self._services()
        world.make_base(self.home, services, large_file=PARTS * PART_BYTES - 1)
        world.add_request(services, world.TARGETS[0])
        assert world.run_command(*self._arguments("takedown")) == 0
        shutil.rmtree(self.home / "cache")  # the next run fetches again
        world.add_request(services, world.TARGETS[1])
        (self.folder / "before.json").write_text(json.dumps(asdict(read_outcome(services))))

    def _command(self, command: str, place: Path) -> None:
        code = world.run_command(*self._arguments(command))
        services = self._services()
        found = {"outcome": asdict(read_outcome(services)), "audit": audit_registry(services, services.open_registry())}
        place.write_text(json.dumps({"code": code, **found}))

    def _arguments(self, command: str) -> tuple[str, ...]:
        """Returns what follows `scapre`, and puts the settings into the environment of this child."""
        os.environ |= {
            "SCAPRE_HOME": str(self.home),
            "SCAPRE_DEVICE": "cpu",
            "SCAPRE_OBJECT_STORE_URI": f"s3://{BUCKET}/{PREFIX}",
            "SCAPRE_S3_ENDPOINT": self.proxy.url,
            "SCAPRE_S3_REGION": _KEYS["region_name"],
            "SCAPRE_S3_ACCESS_KEY_ID": _KEYS["aws_access_key_id"],
            "SCAPRE_S3_SECRET_ACCESS_KEY": _KEYS["aws_secret_access_key"],
            "SCAPRE_S3_PART_BYTES": str(PART_BYTES),
            "SCAPRE_S3_ATTEMPTS": "2",
            "SCAPRE_S3_TIMEOUT_SECONDS": "1",
        }
        if command == "approve":
            return ("approve", self.expected.digest or "", "--by", world.APPROVER)
        if command == "wait":
            os.environ["SCAPRE_APPROVAL_POLICY"] = str(self.folder / "person.yaml")
        return ("takedown", "run", "--dial", "vocabulary=0", "--policy", str(self.home / "policy.yaml"))

    def _services(self) -> Services:
        """Opens the installation past the proxy."""
        store = {"object_store_uri": f"s3://{BUCKET}/{PREFIX}", "s3_endpoint": self._server, "s3_region": "us-east-1"}
        keys = {"s3_access_key_id": "key", "s3_secret_access_key": "secret", "s3_part_bytes": PART_BYTES}
        return world.open_home(self.home, **store, **keys)

    def _work(self, work: Callable[[], None]) -> None:
        if code := processes.run(work, log=self.log):
            raise AssertionError(f"exit code {code}:\n{self.log.read_text()[-4000:]}")

    def _keep(self, command: str) -> None:
        shutil.copytree(self.home, self.folder / command)
        keys = self._list()
        self._objects[command] = {key: self._get(key) for key in keys}

    def _list(self) -> dict[str, str]:
        """Returns the digest (MD5) that the store has of each object."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        return {found["Key"]: found["ETag"].strip('"') for page in pages for found in page.get("Contents", [])}

    def _get(self, key: str) -> bytes:
        return self._client.get_object(Bucket=BUCKET, Key=key)["Body"].read()

    def _put(self, key: str, content: bytes) -> None:
        metadata = {"sha256": sha256_bytes(content)}
        self._client.put_object(Bucket=BUCKET, Key=key, Body=content, Metadata=metadata)


def standing(outcome: Outcome) -> dict[str, Any]:
    """Who is champion, as everybody has it."""
    aliases = {alias: outcome.aliases.get(alias) for alias in (CHAMPION, PREVIOUS)}
    promotions = outcome.entries[EntryKind.PROMOTED]
    return {"digest": outcome.digest, "promotions": promotions, "pointer": outcome.pointer, **aliases}


def _manifest(store: ObjectStore, key: str) -> Place:
    name = f"{key}/{MANIFEST_NAME}"
    return Place(f"{PREFIX}/{name}", _refused(name, store.manifest(key).digest))


def _file(store: ObjectStore, key: str, path: str, *, is_named: bool = False) -> Place:
    """A file of a stored directory; a refusal names its object, or its path in the directory."""
    (digest,) = (entry.sha256 for entry in store.manifest(key).entries if entry.path == path)
    blob = f"blobs/sha256/{digest[:2]}/{digest}"
    return Place(f"{PREFIX}/{blob}", _refused(path if is_named else blob, digest))


def _refused(name: str, digest: str) -> str:
    """What says that content was altered: by our digests, or first by the checksums that S3 sends along."""
    checksums = r"Expected checksum \S+ did not match calculated checksum: \S+"
    return rf"{name}.*(expected SHA-256 {digest}, found [0-9a-f]{{64}}|{checksums})"
