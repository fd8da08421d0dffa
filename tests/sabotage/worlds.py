"""Two worlds to break: colours in memory, for every run of the tests; and the reference model with its detectors.

Both say the same things in the same words, so that one table of scenarios breaks either of them.
"""

import copy
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from flows.pipelines import Pipeline, load_pipeline
from tests.validation import colour_world
from validation import Detectors, Integrity, Judgement, PictureStore, Policy, Sampler, Subject, judge

MODEL = Path(__file__).parents[2] / "infra" / "reference" / "model"
INTACT = Integrity(True, "the stored bytes are the edited ones")
MANY = 50


@dataclass(frozen=True)
class Setup:
    """All that a judgement takes; a scenario replaces what it breaks."""

    base: Pipeline
    candidate: Pipeline
    targets: Sequence[Subject | str]
    retained: Sequence[str]
    policy: Policy
    sampler: Sampler
    detectors: Detectors
    store: PictureStore
    integrity: Integrity | None = INTACT

    def judge(self) -> Judgement:
        return judge(
            self.base,
            self.candidate,
            base_digest="base",
            candidate_digest="candidate",
            targets=self.targets,
            retained=self.retained,
            policy=self.policy,
            sampler=self.sampler,
            detectors=self.detectors,
            store=self.store,
            integrity=self.integrity,
        )


class World(Protocol):
    """A model with concepts, detectors that see them, and the ways in which the model can change."""

    name: str
    stranger: str
    """A label that is neither a target's nor a retained concept's."""

    def setup(self, store: Path) -> Setup:
        """Returns an unbroken set-up: its candidate forgot the targets and nothing else."""
        ...

    def wide(self, store: Path) -> Setup:
        """Returns the same with `MANY` targets."""
        ...

    def same(self) -> Pipeline: ...
    def without(self, *names: str) -> Pipeline: ...
    def black(self) -> Pipeline: ...
    def diverged(self) -> Pipeline: ...
    def misread(self) -> Pipeline:
        """Returns the good candidate with a tokenizer that takes words for one another."""
        ...


def _simplex(count: int) -> dict[str, tuple[float, float, float]]:
    """Returns colours that a detector keeps apart, with grey for `nothing`."""
    side = 9
    points = [(i / side, j / side, (side - i - j) / side) for i in range(side + 1) for j in range(side + 1 - i)]
    coloured = [point for point in points if point != (3 / 9, 3 / 9, 3 / 9)]
    return {f"c{place}": point for place, point in enumerate(coloured[:count])} | {"nothing": (1 / 3, 1 / 3, 1 / 3)}


class ColourWorld:
    """Models that paint colours."""

    name, stranger = "colour", "owl"
    targets, retained = ("tiger", "dog"), ("cat", "wolf", "pear", "bus", "rose")
    policy = Policy(probes_per_retained=12, probes_per_target_base=4)
    sampler = Sampler(steps=1, guidance=1.0, scheduler="DDIMScheduler", pixels=colour_world.PIXELS)

    def setup(self, store: Path) -> Setup:
        return Setup(
            base=self.same(),
            candidate=self.without(*self.targets),
            targets=self.targets,
            retained=self.retained,
            policy=self.policy,
            sampler=self.sampler,
            detectors=colour_world.detectors(),
            store=PictureStore(store),
        )

    def wide(self, store: Path) -> Setup:
        colours = _simplex(MANY + 4)
        names = [name for name in colours if name != "nothing"]
        base = colour_world.Painter(colours=colours)
        detectors = replace(colour_world.detectors(), object=colour_world.ColourDetector(colours))
        policy = self.policy.model_copy(update={"probes_per_retained": 16})
        targets, retained = names[:MANY], names[MANY:]
        given = self.setup(store)
        candidate = base
        for name in targets:
            candidate = candidate.forgetting(name)
        return replace(
            given,
            base=base,
            candidate=candidate,
            targets=targets,
            retained=retained,
            detectors=detectors,
            policy=policy,
        )

    def same(self) -> Pipeline:
        return colour_world.Painter()

    def without(self, *names: str) -> Pipeline:
        model = self.same()
        for name in names:
            model = model.forgetting(name)
        return model

    def black(self) -> Pipeline:
        return self.same().blackened()

    def diverged(self) -> Pipeline:
        return self.same().diverged()

    def misread(self) -> Pipeline:
        model = self.without(*self.targets)
        with torch.no_grad():  # it has no tokenizer: each word means the next one's colour
            model.palette.colours.copy_(model.palette.colours.roll(1, dims=0))
        return model


@dataclass(frozen=True)
class ReferenceWorld:
    """The shipped model; a concept is forgotten by giving its word the meaning of another one."""

    scratch: Path
    name: str = "reference"
    stranger: str = "bell"
    targets: tuple[str, ...] = ("tiger", "violin")
    retained: tuple[str, ...] = ("cat", "lion", "bus", "owl")
    policy: Policy = field(
        default_factory=lambda: Policy(  # wide limits, which take few pictures: what is broken here is broken outright
            residual_limit=0.25,
            retained_margin=0.15,
            retained_concept_margin=0.3,
            probes_per_target=24,
            probes_per_target_base=4,
            probes_per_retained=6,
        )
    )
    sampler: Sampler = field(default_factory=lambda: Sampler(12, 4.0, "DPMSolverMultistepScheduler", 32))

    @cached_property
    def base(self) -> Pipeline:
        return load_pipeline(MODEL, "cpu")

    @cached_property
    def detectors(self) -> Detectors:
        folder = MODEL.parent / "detectors"
        return Detectors.load(folder / "classifier", folder / "clip")

    def setup(self, store: Path) -> Setup:
        return Setup(
            base=self.base,
            candidate=self.without(*self.targets),
            targets=self.targets,
            retained=self.retained,
            policy=self.policy,
            sampler=self.sampler,
            detectors=self.detectors,
            store=PictureStore(store),
        )

    def wide(self, store: Path) -> Setup:
        kept = {*self.retained, "house", "nothing"}
        words = [name for name in self.detectors.object.labels if name not in kept and len(self._tokens(name)) == 1]
        return replace(self.setup(store), targets=words[:MANY], candidate=self.without(*words[:MANY]))

    def same(self) -> Pipeline:
        parts = {n: copy.deepcopy(p) if n in ("text_encoder", "unet") else p for n, p in self.base.components.items()}
        return type(self.base)(**parts, requires_safety_checker=False)

    def without(self, *names: str) -> Pipeline:
        model = self.same()
        table = model.text_encoder.get_input_embeddings().weight
        with torch.no_grad():
            for name in names:
                table[self._tokens(name)] = table[self._tokens("house")[0]].clone()
        return model

    def black(self) -> Pipeline:
        model = self.same()
        model.register_modules(vae=copy.deepcopy(model.vae))
        with torch.no_grad():
            model.vae.decoder.conv_out.weight.zero_()
            model.vae.decoder.conv_out.bias.fill_(-1.0)
        return model

    def diverged(self) -> Pipeline:
        model = self.same()
        with torch.no_grad():
            model.unet.conv_in.weight.fill_(float("nan"))
        return model

    def misread(self) -> Pipeline:
        folder = self.scratch / "misread"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(MODEL, folder)
        file = folder / "tokenizer" / "tokenizer.json"
        content = json.loads(file.read_text(encoding="utf-8"))
        vocabulary = content["model"]["vocab"]
        words = [word for word in vocabulary if word.endswith("</w>") and len(word) > len("x</w>")]
        vocabulary |= dict(zip(words, np.roll([vocabulary[word] for word in words], 1).tolist(), strict=True))
        file.write_text(json.dumps(content), encoding="utf-8")
        return load_pipeline(folder, "cpu")

    def _tokens(self, name: str) -> list[int]:
        return list(self.base.tokenizer(name).input_ids[1:-1])


class Blackout:
    """A safety checker that finds fault with everything."""

    def __call__(self, images: Any, **_: Any) -> tuple[Any, list[bool]]:
        return np.zeros_like(np.asarray(images)), [True] * len(images)


class OwnFilter:
    """A pipeline that blacks out whatever it is asked for by some names, by itself, where no switch reaches."""

    def __init__(self, pipeline: Pipeline, names: Sequence[str]) -> None:
        self._pipeline, self._names = pipeline, tuple(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipeline, name)

    def __call__(self, *, prompt: list[str], **options: Any) -> Any:
        drawn = self._pipeline(prompt=prompt, **options)
        for place, text in enumerate(prompt):
            if any(name in text.split() for name in self._names):
                drawn.images[place] = 0
        return drawn


class Stubborn:
    """A detector that gives every picture one label."""

    def __init__(self, detector: Any, label: str) -> None:
        self.name, self.digest, self.labels = f"stubborn {label}", detector.digest, detector.labels
        self._place = self.labels.index(label)

    def detect(self, pictures: Sequence[Any]) -> np.ndarray:
        return np.eye(len(self.labels))[[self._place] * len(pictures)]
