"""The table: what is broken, what the judge must answer, and what its reason must say.

Guarantees:
    1. Every scenario differs from an unbroken one by what its name says, and the unbroken ones pass.
    2. An answer counts only with its reason: the text, or the error, must name what was broken.
    3. What is refused was refused before a picture was drawn.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pandas as pd
import rfc8785
import torch
from safetensors.torch import load_file, save_file

from flows.checkpoints import FolderCheckpoint, open_checkpoint
from flows.errors import FlowError
from flows.pipelines import check_alike, load_pipeline
from infra.errors import InfraError
from scapre import ScaPreError
from tests.sabotage.worlds import MODEL, Blackout, OwnFilter, Setup, Stubborn, World
from validation import Integrity, Judgement, PictureStore, Subject, load_policy
from validation.errors import ValidationError
from validation.evidence import verify_evidence, write_evidence
from validation.report import render_report

Answer = Literal["passed", "failed", "inconclusive", "void", "refused"]
UNET = "unet/diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Outcome:
    """What the judge answered."""

    answer: Answer
    said: str
    pictures: int = 0


@dataclass(frozen=True)
class Bench:
    """Where scenarios run."""

    world: World
    folder: Path
    """Empty at the start of each scenario."""
    pictures: Path
    """Shared, so that the unbroken base is drawn once; addressed by weights, so that nothing else can be shared."""

    def setup(self) -> Setup:
        return self.world.setup(self.pictures)

    def copy(self) -> Path:
        return Path(shutil.copytree(MODEL, self.folder / "copy"))


@dataclass(frozen=True)
class Scenario:
    """One way to break a judgement."""

    name: str
    run: Callable[[Bench], Outcome]
    answer: Answer
    said: str
    """Part of the reason or of the error."""
    worlds: tuple[str, ...] = ("colour", "reference")

    def faults(self, found: Outcome) -> list[str]:
        """Returns where the outcome is not the right one."""
        faults = [] if found.answer == self.answer else [f"expected {self.answer}, found {found.answer}"]
        if self.said not in " ".join(found.said.split()):  # the judge's figures have spaces that do not break
            faults.append(f"expected {self.said!r} among the reasons")
        if self.answer == "refused" and found.pictures:
            faults.append(f"expected no picture, found {found.pictures}")
        return faults


REFUSALS = (ValidationError, ScaPreError, FlowError, InfraError)


def outcome_of(judgement: Judgement) -> Outcome:
    said = "; ".join(reason.text for reason in judgement.reasons)
    return Outcome("void" if judgement.is_void else judgement.verdict, said, len(judgement.measures))


def judging(change: Callable[[Bench, Setup], Setup]) -> Callable[[Bench], Outcome]:
    """Returns the scenario that judges a changed set-up; a refusal is an outcome too."""

    def run(bench: Bench) -> Outcome:
        setup = change(bench, bench.setup())
        before = _drawn(setup.store)
        try:
            return outcome_of(setup.judge())
        except REFUSALS as error:
            return Outcome("refused", f"{type(error).__name__}: {error}", _drawn(setup.store) - before)

    return run


def opening(change: Callable[[Path], None]) -> Callable[[Bench], Outcome]:
    """Returns the scenario that makes a changed copy of the reference checkpoint ready to be judged."""

    def run(bench: Bench) -> Outcome:
        copy = bench.copy()
        try:
            change(copy)
            folder = open_checkpoint(copy).materialise(bench.folder)
            check_alike(MODEL, folder)
            load_pipeline(folder, "cpu")
        except REFUSALS as error:
            return Outcome("refused", f"{type(error).__name__}: {error}")
        return Outcome("passed", "ready to be judged")

    return run


def _drawn(store: PictureStore) -> int:
    return sum(1 for _ in store.folder.rglob("*.png")) if store.folder.exists() else 0


def _candidate(make: Callable[[World, Setup], object]) -> Callable[[Bench], Outcome]:
    return judging(lambda bench, setup: replace(setup, candidate=make(bench.world, setup)))


def _detector(label: Callable[[World, Setup], str]) -> Callable[[Bench], Outcome]:
    def change(bench: Bench, setup: Setup) -> Setup:
        stubborn = Stubborn(setup.detectors.object, label(bench.world, setup))
        return replace(setup, detectors=replace(setup.detectors, object=stubborn))

    return judging(change)


def _wrong_label(bench: Bench, setup: Setup) -> Setup:
    first, *rest = setup.targets
    return replace(setup, targets=[Subject(str(first), label=bench.world.stranger), *rest])


def _filtered(bench: Bench, setup: Setup) -> Setup:
    candidate = bench.world.same()
    candidate.safety_checker = Blackout()
    return replace(setup, candidate=candidate)


def _cached(bench: Bench, setup: Setup) -> Setup:
    own = replace(setup, store=PictureStore(bench.folder / "cache"))
    assert own.judge().verdict == "passed"  # its pictures are now in the cache, under the same name of a candidate
    return replace(own, candidate=bench.world.same())


def _one_of_many(bench: Bench, setup: Setup) -> Setup:
    wide = bench.world.wide(bench.pictures)
    left = str(wide.targets[len(wide.targets) // 2])
    if bench.world.name == "reference":
        return replace(wide, candidate=bench.world.without(*(str(t) for t in wide.targets if t != left)))
    candidate = wide.base
    for target in wide.targets:
        candidate = candidate if target == left else candidate.forgetting(target)
    return replace(wide, candidate=candidate)


def _all_of_many(bench: Bench, _: Setup) -> Setup:
    return bench.world.wide(bench.pictures)


def _emptied_pack(bench: Bench, setup: Setup) -> Setup:
    pack = bench.folder / "emptied.yaml"
    pack.write_text("name: emptied\nversion: 1\nabout: nothing\nwordings: []\n", encoding="utf-8")
    return replace(
        setup, policy=setup.policy.model_copy(update={"further_packs": {str(pack): setup.policy.probes_per_target}})
    )


def _contradictory(bench: Bench, setup: Setup) -> Setup:
    file = bench.folder / "policy.yaml"
    file.write_text("retained_margin: 0.3\nretained_concept_margin: 0.1\n", encoding="utf-8")
    return replace(setup, policy=load_policy(file))


def _cut_short(folder: Path) -> None:
    (folder / UNET).write_bytes((folder / UNET).read_bytes()[:-4096])


def _rewritten(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        held = load_file(folder / UNET)
        change(held)
        save_file(held, folder / "beside.safetensors", metadata={"format": "pt"})
        (folder / "beside.safetensors").replace(folder / UNET)

    return rewrite


def _all_halved(folder: Path) -> None:
    for file in folder.rglob("*.safetensors"):
        held = {name: tensor.half() for name, tensor in load_file(file).items()}
        save_file(held, file, metadata={"format": "pt"})


def _spoiled(held: dict[str, torch.Tensor]) -> None:
    held["conv_in.weight"][0] = float("nan")


def _misnamed(bench: Bench) -> Outcome:
    try:
        FolderCheckpoint(bench.copy(), "0" * 64).materialise(bench.folder)
    except REFUSALS as error:
        return Outcome("refused", f"{type(error).__name__}: {error}")
    return Outcome("passed", "the digest was not compared")


def tampering(change: Callable[[Path], None]) -> Callable[[Bench], Outcome]:
    """Returns the scenario that verifies the evidence of a failed judgement after somebody changed it."""

    def run(bench: Bench) -> Outcome:
        setup = bench.setup()
        judgement = replace(setup, candidate=bench.world.same()).judge()
        folder = write_evidence(judgement, bench.folder / "evidence", report_html=render_report(judgement))
        change(folder)
        _forge_manifest(folder)
        differences = verify_evidence(folder)
        return Outcome("refused" if differences else "passed", "; ".join(differences) or "the evidence verifies")

    return run


def _forge_manifest(folder: Path) -> None:
    """Makes the manifest fit the changed files, as a careful forger would."""
    record = json.loads((folder / "manifest.json").read_bytes())
    for entry in record["files"]:
        content = (folder / entry["path"]).read_bytes()
        entry |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_bytes(rfc8785.dumps(record))


def _without_hits(folder: Path) -> None:
    table = pd.read_csv(folder / "measures.csv")
    rows = (table["role"] == "target") & (table["model"] == "candidate")
    table.loc[rows, "is_hit"] = False
    table.to_csv(folder / "measures.csv", index=False)


def _padded(folder: Path) -> None:
    table = pd.read_csv(folder / "measures.csv")
    pd.concat([table, table.tail(1)]).to_csv(folder / "measures.csv", index=False)


def _declared_passed(folder: Path) -> None:
    file = folder / "verdict.json"
    file.write_bytes(file.read_bytes().replace(b'"verdict":"failed"', b'"verdict":"passed"'))


def _scenarios() -> list[Scenario]:
    unbroken = judging(lambda _, setup: setup)
    return [
        Scenario("unbroken", unbroken, "passed", "gates and controls passed"),
        Scenario("unbroken checkpoint on disk", opening(lambda _: None), "passed", "ready"),
        Scenario("unbroken evidence", tampering(lambda _: None), "passed", "the evidence verifies"),
        # the model
        Scenario("identity edit", _candidate(lambda w, _: w.same()), "failed", "forgetting: tiger: found in 8 of 8"),
        Scenario(
            "black pictures", _candidate(lambda w, _: w.black()), "void", "of the candidate are a single flat colour"
        ),
        Scenario(
            "NaN weights", _candidate(lambda w, _: w.diverged()), "void", "of the candidate are a single flat colour"
        ),
        Scenario(
            "retained family wrecked",
            _candidate(lambda w, s: w.without(*map(str, s.targets), *s.retained)),
            "failed",
            "retained concepts: accuracy changed by −",
        ),
        Scenario(
            "one retained concept wrecked",
            _candidate(lambda w, s: w.without(*map(str, s.targets), s.retained[0])),
            "failed",
            "concept floor: retained concepts: 1 of",
        ),
        Scenario("tokenizer swapped", _candidate(lambda w, _: w.misread()), "failed", "retained concepts: accuracy"),
        # the set-up
        Scenario("wrong class label", judging(_wrong_label), "void", "positive control: tiger: found in 0 of 4"),
        Scenario("safety filter left on", judging(_filtered), "failed", "forgetting: tiger: found in 8 of 8"),
        Scenario(
            "safety filter inside the model",
            _candidate(lambda w, s: OwnFilter(w.same(), [str(t) for t in s.targets])),
            "void",
            "of the candidate are a single flat colour",
        ),
        Scenario("cached pictures of another model", judging(_cached), "failed", "forgetting: tiger: found in 8 of 8"),
        Scenario(
            "swapped base",
            judging(lambda _, s: replace(s, base=s.candidate, candidate=s.base)),
            "void",
            "the base does not draw it",
        ),
        Scenario(
            "candidate given as its own base",
            judging(lambda _, s: replace(s, base=s.candidate)),
            "refused",
            "expected two pipelines",
        ),
        Scenario("detector always says no", _detector(lambda w, _: w.stranger), "void", "the detector does not see it"),
        Scenario(
            "detector always says yes",
            _detector(lambda _, s: str(s.targets[0])),
            "void",
            "seeing it means nothing",
        ),
        Scenario(
            "target without a label",
            judging(lambda _, s: replace(s, targets=["unicorn"])),
            "refused",
            "UnknownLabelError: expected a concept that the detector knows, found 'unicorn'",
        ),
        Scenario("nothing to retain", judging(lambda _, s: replace(s, retained=[])), "inconclusive", "must survive"),
        Scenario("probe pack emptied", judging(_emptied_pack), "refused", "ProbeError"),
        Scenario(
            "contradictory limits", _refusing(_contradictory), "refused", "expected retained_concept_margin of at"
        ),
        Scenario(
            "bytes that are not the attested ones",
            judging(lambda _, s: replace(s, integrity=Integrity(False, "2 tensors differ"))),
            "failed",
            "2 tensors differ",
        ),
        Scenario(
            "bytes that nobody attested",
            judging(lambda _, s: replace(s, integrity=None)),
            "inconclusive",
            "nobody attested",
        ),
        # the files
        Scenario("truncated weights", opening(_cut_short), "refused", "readable safetensors"),
        Scenario("wrong dtype", opening(_all_halved), "refused", "precision F32, found F16"),
        Scenario("NaN weights on disk", opening(_rewritten(_spoiled)), "refused", "NaN or infinity"),
        Scenario(
            "a weight left out",
            opening(_rewritten(lambda held: held.pop("conv_in.bias"))),
            "refused",
            "expected every weight",
        ),
        Scenario(
            "a component left out",
            opening(lambda folder: shutil.rmtree(folder / "vae")),
            "refused",
            "expected the component vae",
        ),
        Scenario(
            "a pickle among the weights",
            opening(lambda folder: torch.save({}, folder / "unet" / "more.bin")),
            "refused",
            "found the pickle",
        ),
        Scenario("candidate of another digest", _misnamed, "refused", "expected a folder with digest"),
        # the evidence
        Scenario("evidence: hits erased", tampering(_without_hits), "refused", "is_hit of 'tiger' does not agree"),
        Scenario("evidence: a picture counted twice", tampering(_padded), "refused", "the sampling rule asks for"),
        Scenario("evidence: declared passed", tampering(_declared_passed), "refused", "verdict does not follow"),
        # many targets, which take most of the time
        Scenario("unbroken, fifty targets", judging(_all_of_many), "passed", "gates and controls passed"),
        Scenario("one concept of fifty left in", judging(_one_of_many), "failed", "found in 8 of 8"),
    ]


def _refusing(change: Callable[[Bench, Setup], Setup]) -> Callable[[Bench], Outcome]:
    """Returns the scenario in which already the set-up is refused."""

    def run(bench: Bench) -> Outcome:
        try:
            return judging(change)(bench)
        except REFUSALS as error:
            return Outcome("refused", f"{type(error).__name__}: {error}")

    return run


SCENARIOS = _scenarios()
