"""A small installation to kill processes in: everything is real but the pictures, which a world of colours paints.

The engine unlearns a tiny Stable Diffusion of the real classes; judge, evidence, store, ledger, MLflow and locks are
the real ones. Tasks are called without Prefect's server, whose start would take longer than the rest together.
"""

import time
from contextlib import nullcontext
from pathlib import Path
from random import Random
from typing import Any

import torch
import yaml
from prefect.tasks import Task

import flows.approval
import flows.judgement
import flows.takedown
import scapre
from flows import candidate, cli, intake
from flows.requests import Requester, Subject, TakedownRequest
from flows.rollback import roll_back
from flows.services import Services, open_services
from infra.settings import load_settings
from tests.scapre import tiny_pipelines
from tests.validation import colour_world
from validation import PictureStore, Sampler

TARGETS = ("tiger", "dog", "rose", "owl", "crab", "pear", "bus", "wolf")
APPROVER = "Grace Hopper"
LARGE_FILE = "samples.dat"
POLICY = {
    "residual_limit": 0.5,
    "probes_per_target": 6,
    "stage_size": 3,
    "probes_per_target_base": 2,
    "probes_per_retained": 2,
    "probes_per_hidden": 0,
    "probes_per_style": 1,
    "retained_concept_margin": 0.95,
    "retained_margin": 0.95,
}


class RepeatedPictureError(AssertionError):
    """A picture was drawn again that this process had drawn, or that was there when it began."""


def use_colours() -> None:
    """Has this process paint with colours, do without Prefect's server, and notice pictures drawn twice."""
    flows.judgement.load_pipeline = _load  # ty: ignore[invalid-assignment]
    flows.judgement.default_sampler = lambda _: Sampler(1, 1.0, "DDIMScheduler", colour_world.PIXELS)
    flows.takedown.load_detectors = lambda *_: colour_world.detectors()
    for module in (flows.takedown, flows.approval):
        for name, value in list(vars(module).items()):
            if isinstance(value, Task):
                setattr(module, name, value.fn)
    flows.takedown.announce_waiting = lambda _: None
    flows.takedown.show_judgement = lambda *_, **__: None
    flows.takedown.shown_progress = lambda *_, **__: nullcontext(lambda *_: None)
    write, began, own = PictureStore.write, time.time_ns(), set[str]()

    def write_once(store: PictureStore, address: str, pixels: Any) -> None:
        is_held = store.holds(address, pixels=colour_world.PIXELS)
        # two processes may draw the same picture at the same time: whoever began first did not see the other's
        if address in own or (is_held and store.path(address).stat().st_mtime_ns < began):
            raise RepeatedPictureError(address)
        own.add(address)
        write(store, address, pixels)

    PictureStore.write = write_once


def _load(folder: Path, _device: str) -> colour_world.Painter:
    painter, edit = colour_world.Painter(), folder.parent / "edit.safetensors"
    if edit.exists():
        for concept in scapre.Edit.load(edit).spec.concepts:
            painter = painter.forgetting(concept.name)
    return painter


def open_home(home: Path, **settings: Any) -> Services:
    """Opens the installation in a folder."""
    return open_services(load_settings({}, home=home, **{"promotion_lease_seconds": 4.0, "device": "cpu", **settings}))


def make_base(home: Path, services: Services, *, large_file: int = 0) -> None:
    """Puts a tiny model into the store as the base, with one more file of so many bytes."""
    folder = home / "tiny"
    tiny_pipelines.build("stable-diffusion-1", dtype=torch.float32).save_pretrained(folder, safe_serialization=True)
    if large_file:
        (folder / LARGE_FILE).write_bytes(Random(0).randbytes(large_file))
    candidate.register_base(services, "reference", folder)
    (home / "policy.yaml").write_text(yaml.safe_dump(POLICY), encoding="utf-8")


def add_request(services: Services, concept: str, *, jurisdiction: str = "EU") -> str:
    """Records a request that is in force at once."""
    request = TakedownRequest(
        ground="internal",
        jurisdiction=jurisdiction,
        requester=Requester(name="Ada", role="product team", contact="ada@example.org"),
        subjects=(Subject(concept=concept, kind="object"),),
        retain=("cat", "nothing"),
    )
    return intake.add_request(services, request)[0]


def run_takedown(home: Path, **settings: Any) -> None:
    """What `scapre takedown run` does."""
    flows.takedown.open_services = lambda: open_home(home, **settings)
    order = flows.takedown.TakedownOrder(dials={"vocabulary": 0}, policy=home / "policy.yaml")
    outcome = flows.takedown.takedown.fn(order)
    if outcome.decision not in ("promoted", "waiting"):
        raise AssertionError(f"{outcome.decision}: {outcome.reasons}")


def run_approve(home: Path, digest: str, **settings: Any) -> None:
    """What `scapre approve DIGEST --by NAME --reason TEXT` does."""
    flows.approval.open_services = lambda: open_home(home, **settings)
    flows.approval.approve.fn(flows.approval.ApprovalOrder(digest=digest, by=APPROVER, reason="looked again"))


def run_rollback(home: Path, by: str = APPROVER, **settings: Any) -> None:
    """What `scapre rollback --reason TEXT --by NAME --reopen` does."""
    services = open_home(home, **settings)
    roll_back(services, services.open_registry(), reason="worse than before", by=by, reopens=True)


def run_command(*arguments: str) -> int:
    """What `scapre` does with these arguments and the settings in the environment; returns its exit code."""
    flows.takedown.takedown = flows.takedown.takedown.fn
    flows.approval.approve = flows.approval.approve.fn
    return cli.run(list(arguments))
