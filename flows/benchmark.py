"""Quality of methods side by side on the reference world: how much is forgotten, and how much of the rest is left.

Guarantees:
    1. Every method of an arena is measured on the same prompts and seeds, the base among them.
    2. Results are appended one line at a time and pictures are kept, so that an interrupted run goes on.
    3. A result belongs to the digest of the model and to the number of pictures: a changed method, or another number,
       is measured again.
"""

import contextlib
import json
import math
import statistics
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

import scapre
from flows.arenas import Arena
from flows.errors import BadRequestError
from flows.judgement import default_sampler
from flows.progress import OnProgress
from infra.reference import world
from scapre.concepts import DialValue
from validation.detectors import Detectors, find_label
from validation.probe_packs import load_pack
from validation.probes import Probe, Subject, build_probes
from validation.rendering import PictureStore, render

BASE_METHOD = "none"
FIRST_SEED = 5_000_000
SEED_STRIDE = 10_000
PACKS = {"object": "direct", "style": "style"}
"""Probe pack for each head of the detectors."""


@dataclass(frozen=True)
class Contestant:
    """A method at one setting of its dials."""

    method: str
    dials: Mapping[str, DialValue]

    @property
    def label(self) -> str:
        """Method and dials in one line."""
        shown = (f"{name}={value if value != '' else 'none'}" for name, value in self.dials.items())
        return " ".join([self.method, *shown])


@dataclass(frozen=True)
class Result:
    """What one contestant left of one arena, with one seed of probes."""

    arena: str
    contestant: str
    seed: int
    model: str
    """Digest of the weights that drew the pictures."""
    each: int
    """Pictures of every target and retained concept."""
    hits: Mapping[str, int]
    """Pictures in which the concept was found, by role."""
    pictures: Mapping[str, int]
    image_text: float
    """Mean cosine of picture and prompt over all that was to be kept."""

    def rate(self, role: str) -> float:
        """Returns the share of a role's pictures in which the concept was found, in percent; NaN without pictures."""
        return 100 * self.hits[role] / self.pictures[role] if self.pictures.get(role) else float("nan")

    @property
    def overall(self) -> float:
        """Harmonic mean of 100 − residual rate and retained accuracy (told or hidden), in percent."""
        kept = self.rate("told" if self.pictures.get("told") else "hidden")
        gone = 100 - self.rate("target")
        return 2 * gone * kept / (gone + kept) if gone + kept > 0 else 0.0


class Bench:
    """The reference model, its detectors, and what was measured before."""

    def __init__(
        self,
        pipeline: StableDiffusionPipeline,
        detectors: Detectors,
        *,
        pictures: Path,
        results: Path,
        features: Path | None = None,
        batch: int = 64,
    ) -> None:
        self._pipeline, self._detectors, self._batch = pipeline, detectors, batch
        if detectors.image_text is None:
            raise BadRequestError("expected an image-text model among the detectors, found none; add a folder clip/")
        self._features, self._image_text = features, detectors.image_text
        self._store, self._results = PictureStore(pictures), results
        self._sampler = default_sampler(pipeline)
        self._packs = {head: load_pack(pack) for head, pack in PACKS.items()}
        self._done = {_key(result): result for result in read_results(results)}

    def measure(
        self, arena: Arena, contestant: Contestant, *, seeds: Sequence[int], each: int, on_progress: OnProgress | None
    ) -> list[Result]:
        """Returns one result per seed, `each` pictures of every concept; the pipeline is left as it was found."""
        with self._wearing(arena, contestant) as model:
            found = []
            for done, seed in enumerate(seeds, start=1):
                pictures = {
                    role: len(names) * (1 if role == "other" else each)  # there are many of them
                    for role, names in arena.measured.items()
                }
                asked = Result(arena.name, contestant.label, seed, model, each, {}, pictures, math.nan)
                found.append(self._done.get(_key(asked)) or self._measure(arena, asked))
                if on_progress:
                    on_progress(done, len(seeds))
        return found

    @contextlib.contextmanager
    def _wearing(self, arena: Arena, contestant: Contestant) -> Generator[str]:
        """Puts the contestant's edit on the pipeline for the block; yields the digest of the weights."""
        if contestant.method == BASE_METHOD:
            yield scapre.base_digest(self._pipeline)
            return
        edit = scapre.unlearn(
            self._pipeline,
            arena.concepts,
            retain=arena.retain,
            method=contestant.method,
            withheld=arena.hidden,
            cache=self._features,
            on_progress=None,
            **contestant.dials,
        )
        edit.apply(self._pipeline)
        try:
            yield edit.edited_digest
        finally:
            edit.revert(self._pipeline)

    def _measure(self, arena: Arena, asked: Result) -> Result:
        hits, fits = {}, []
        for role, names in arena.measured.items():
            count = asked.pictures[role] // len(names)
            hits[role], fit = self._look([_subject(name) for name in names], asked, count)
            fits += fit if role != "target" else []
        found = replace(asked, hits=hits, image_text=statistics.mean(fits))
        self._done[_key(found)] = found
        self._append(found)
        return found

    def _look(self, subjects: Sequence[Subject], asked: Result, count: int) -> tuple[int, list[float]]:
        """Returns in how many pictures the concept is seen, and how well each picture fits its prompt."""
        probes = [probe for subject in subjects for probe in self._probes(subject, asked.seed, count)]
        addresses = render(
            self._pipeline,
            probes,
            store=self._store,
            model_digest=asked.model,
            sampler=self._sampler,
            batch_size=self._batch,
            device=str(self._pipeline.device),
        )
        drawn = [self._store.read(address) for address in addresses]
        wanted = [subject for subject in subjects for _ in range(count)]
        hits = 0
        for head in {subject.head for subject in subjects}:  # its detector sees all its pictures at once
            own = [place for place, subject in enumerate(wanted) if subject.head == head]
            detector = self._detectors.of(wanted[own[0]])
            seen = detector.detect([drawn[place] for place in own]).argmax(axis=1)
            hits += sum(top == find_label(detector.labels, wanted[place]) for top, place in zip(seen, own, strict=True))
        return int(hits), self._image_text.score(drawn, [probe.prompt for probe in probes]).tolist()

    def _probes(self, subject: Subject, seed: int, count: int) -> list[Probe]:
        prompts = self._packs[subject.head].prompts(subject)
        start = seed * count % len(prompts)
        return build_probes(
            subject.name,
            "hidden",
            prompts=prompts[start:] + prompts[:start],
            count=count,
            first_seed=FIRST_SEED + seed * SEED_STRIDE,
            pack=PACKS[subject.head],
        )

    def _append(self, result: Result) -> None:
        self._results.parent.mkdir(parents=True, exist_ok=True)
        with self._results.open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps(asdict(result), sort_keys=True))  # a line cut short by a kill ends here


def _subject(name: str) -> Subject:
    return Subject(name, kind="style" if name in world.load_styles() else "object")


def _key(result: Result) -> tuple[str, str, int, str, tuple[tuple[str, int], ...]]:
    return result.arena, result.contestant, result.seed, result.model, tuple(sorted(result.pictures.items()))


def read_results(path: Path) -> list[Result]:
    """Returns the results in a file of JSON lines; a last line that a killed run left incomplete is passed over."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(Result(**json.loads(line)))
        except (ValueError, TypeError):  # cut short, or written by another version
            continue
    return found
