"""From a base model and concepts to an edit: encode, statistics, solve, refine, measure, build."""

import contextlib
import functools
import itertools
import json
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from scapre.architectures import BaseModel, alone_with
from scapre.checkpoint import read_base
from scapre.concepts import (
    Concept,
    DialValue,
    EditSpec,
    canonical_concepts,
    canonical_json,
    canonical_names,
    check_disjoint,
)
from scapre.determinism import Stopwatch, exact_arithmetic, side_by_side, single_threaded
from scapre.diagnosis import NAMES_SHOWN, Preflight, examine, refuse_unknown_words
from scapre.edit import Edit, build_edit
from scapre.embeddings import OnProgress, PromptEncoder
from scapre.errors import CheckpointError, UnlearningWarning, UnsupportedArchitectureError
from scapre.feature_cache import CachedFeatures, FeatureCache
from scapre.memories import read_memories
from scapre.methods import Method, Problem, Solution, find_method
from scapre.methods.base import reading_of
from scapre.moments import (
    Passage,
    Reading,
    Statistics,
    count_of_memories,
    encode_sentences,
    gather_memories,
    gather_statistics,
    read_text,
)
from scapre.responses import MemoryResponses, ResponseMoments, root_ratio
from scapre.text import TextSource
from scapre.vocabulary import proposable_names

WITHOUT_FLOAT64 = frozenset({"mps"})
"""Kinds of devices whose numbers have at most 32 bits."""
FAR_FROM_REACH = 0.1
"""Of the way to another name's answer, from which a target that missed `reach` is reported."""
ROOM_FOR_A_TARGET = 16
"""Numbers of a text feature per target: with so many, 89 % of what nobody named was left, with twice as many 96 %."""
MUCH_LEFT = 0.7
"""Residual response from which a target is reported as a warning; 0.2 to 0.6 is usual."""


def unlearn(
    pipeline_or_path: Any,
    concepts: Sequence[Concept | str],
    retain: Sequence[str] | None = None,
    method: str = "scapre",
    *,
    withheld: Sequence[str] = (),
    cache: Path | str | None = None,
    on_progress: OnProgress | None = None,
    **dials: DialValue,
) -> Edit:
    """Returns the edit that makes a model forget `concepts`; the model itself is not changed.

    Args:
        pipeline_or_path: a loaded pipeline, or a checkpoint folder of which only text encoder and projections are read.
        concepts: what to forget, a bare name standing for an object; none gives an edit that changes nothing.
        retain: names that must survive, in addition to those found in the engine's own vocabulary.
        method: name of the method, see `scapre.methods.METHODS`.
        withheld: names the vocabulary must not propose, so that what nobody named can be measured.
        cache: file in which features are kept for the next edit of the same base, which then encodes only what no edit
            before it asked for; with `None` all text is encoded anew. The edit is the same. What memories read takes
            five to seven times as much of it.
        on_progress: called with how many prompts are encoded and how many are known to be needed; both grow.
        **dials: settings of the method; unknown ones are refused.

    Raises:
        InvalidConceptError: contradictory concepts or names.
        DialError: unknown method or dial, or a value out of range.
        CheckpointError: the folder cannot be used.
        SingularSystemError: no finite, unique answer; the message says which dial to raise.
        UnsupportedArchitectureError: no adapter for the model, or a model of which only a part is in memory.

    Warns with `UnlearningWarning` of what is doubtful, such as an anchor that nobody vouches for. What an edit cannot
    reach, as pooled text, is listed in `diagnostics["not_covered"]`.

    No randomness is consumed; the same input gives the same bytes whatever the number of CPU threads. On another kind
    of processor, or with another release of torch, sums are taken in another order and the last bits differ.
    """
    order = _Order.of(concepts, retain, withheld, method, dials)
    clock = Stopwatch()
    with alone_with(pipeline_or_path), single_threaded(), exact_arithmetic():
        with clock.phase("encode"):
            base = _read_base(pipeline_or_path, order.method)
            with _open_cache(cache, base) as kept_of:
                encoder = PromptEncoder(base.text, kept_of(base.text), on_progress)
                passage, found = order.read(encoder, base)
                for doubt in found.warnings:  # at once, for it may take minutes yet
                    warnings.warn(doubt, UnlearningWarning, stacklevel=2)
                if not order.method.edits_memories:  # these read sentences in a way of their own
                    encode_sentences(encoder, passage, padding_slots=order.reading.padding_slots)
                parts = order.read_memories(base, encoder, passage, kept_of)
        with clock.phase("statistics"):
            parts = parts or [(base.weights.projections, order.gather_statistics(base, encoder, passage))]
            weights = base.weights.only(itertools.chain(*(changing for changing, _ in parts)))
            not_covered = list(base.architecture.left_open(memories=order.method.edits_memories))
            del base, encoder  # encoder and features take more memory than anything that follows
            problems = [Problem.of(*part) for part in parts]
        solutions = [order.method.solve(problem, order.dials, clock) for problem in problems]
        spec = EditSpec(
            method=order.method.name,
            concepts=order.concepts,
            retain=(*found.retain_named, *found.retain_found),
            dials=order.dials,
            base_digest=weights.digest,
            withheld=order.withheld,
        )
        told = {**json.loads(canonical_json(asdict(found))), "neighbours": _neighbours(passage)}
        with clock.phase("measure"):
            measured = _together([_diagnose(*one) for one in zip(problems, solutions, strict=True)])
            said = _together([solution.diagnostics for solution in solutions])
        doubts = _warn_of_much_left(measured["residual_response"]) if order.method.leads_to_anchor else []
        for gone in filter(None, (solution.diagnostics.get("answers_gone") for solution in solutions)):
            doubts += _warn_of_answers(gone, float(order.dials["reach"]))
        diagnostics = {
            **told,
            **measured,
            **said,
            "warnings": [*found.warnings, *doubts],
            "not_covered": not_covered,
        }
        deltas = {
            name: solution.delta[rows]
            for problem, solution in zip(problems, solutions, strict=True)
            for name, rows in problem.parts.items()
        }
        with clock.phase("build"):
            edit = build_edit(weights, spec, deltas=deltas, diagnostics={**diagnostics, "seconds": clock.seconds})
    for doubt in doubts:
        warnings.warn(doubt, UnlearningWarning, stacklevel=2)
    return edit


def preflight(
    pipeline_or_path: Any,
    concepts: Sequence[Concept | str],
    retain: Sequence[str] | None = None,
    method: str = "scapre",
    *,
    withheld: Sequence[str] = (),
    cache: Path | str | None = None,
    on_progress: OnProgress | None = None,
    **dials: DialValue,
) -> Preflight:
    """Returns what `unlearn` would do, as far as text can tell: anchors, names at risk, warnings.

    Raises as `unlearn` does, except for what only the solve can find; nothing is solved and nothing is changed.
    """
    order = _Order.of(concepts, retain, withheld, method, dials)
    with alone_with(pipeline_or_path), single_threaded(), exact_arithmetic():
        base = _read_base(pipeline_or_path, order.method)
        with _open_cache(cache, base) as kept_of:
            return order.read(PromptEncoder(base.text, kept_of(base.text), on_progress), base)[1]


def _read_base(pipeline_or_path: Any, method: Method) -> BaseModel:
    base = read_base(pipeline_or_path)
    if method.edits_memories:
        read_memories(base)  # refuses before text is read, which may take minutes
    for name, held in base.weights.editable.items():
        if held.device.type in WITHOUT_FLOAT64:
            raise UnsupportedArchitectureError(
                f"expected weights on a device that has float64, as cpu and cuda, found {name!r} on {held.device}; "
                "compute the edit with the pipeline on the CPU (pipeline.to('cpu')), and move it back with the edit on"
            )
    for name, held in ({} if method.edits_memories else base.weights.projections).items():
        if not bool(held.double().isfinite().all()):  # float8 cannot tell
            raise CheckpointError(f"expected finite weights, found NaN or infinity in {name!r}; restore the checkpoint")
    return base


_KeptOf = Callable[[TextSource], CachedFeatures | None]
"""What is kept of one way to read prompts."""


@contextlib.contextmanager
def _open_cache(file: Path | str | None, base: BaseModel) -> Generator[_KeptOf]:
    if file is None:
        yield lambda _: None
        return
    with contextlib.closing(FeatureCache(Path(file))) as cache:
        yield functools.partial(cache.of, base)


_Told = tuple[Mapping[str, Tensor], Statistics]
"""Weights that read the same features, and what text says of these."""


@dataclass(frozen=True)
class _Order:
    """What was asked for, checked and in canonical order."""

    method: Method
    dials: Mapping[str, DialValue]
    concepts: tuple[Concept, ...]
    named: tuple[str, ...]
    withheld: tuple[str, ...]

    @classmethod
    def of(
        cls,
        concepts: Sequence[Concept | str],
        retain: Sequence[str] | None,
        withheld: Sequence[str],
        method: str,
        dials: Mapping[str, DialValue],
    ) -> "_Order":
        chosen = find_method(method)
        order = cls(
            method=chosen,
            dials=chosen.resolve(dials),
            concepts=canonical_concepts(concepts),
            named=canonical_names(() if retain is None else retain, "retained name"),
            withheld=canonical_names(withheld, "withheld name"),
        )
        check_disjoint(order.concepts, order.named, order.withheld)
        return order

    @property
    def reading(self) -> Reading:
        return reading_of(self.dials)

    def read(self, encoder: PromptEncoder, base: BaseModel) -> tuple[Passage, Preflight]:
        refuse_unknown_words(encoder, self.concepts, self.named, default_anchor=self.reading.anchor)
        proposable = proposable_names(self.concepts, self.named, self.withheld)
        passage = read_text(encoder, self.concepts, named=self.named, proposable=proposable, reading=self.reading)
        found = examine(encoder, passage, self.reading)
        doubts = self.method.unread(self.dials)
        if not self.method.edits_memories:
            doubts += _warn_of_a_crowd(len(self.concepts), base)
        return passage, replace(found, warnings=(*found.warnings, *doubts))

    def gather_statistics(self, base: BaseModel, encoder: PromptEncoder, passage: Passage) -> Statistics:
        device = next(iter(base.weights.projections.values())).device
        return gather_statistics(encoder, passage, padding_slots=self.reading.padding_slots, device=device)

    def read_memories(self, base: BaseModel, encoder: PromptEncoder, passage: Passage, kept_of: _KeptOf) -> list[_Told]:
        """Returns each memory to be changed and what text says of it; none where projections are."""
        found: list[_Told] = []
        memories = read_memories(base) if self.method.edits_memories else {}
        encoder.expect(len(memories) * count_of_memories(passage))
        for name, memory in memories.items():
            weight = base.weights.encoders[name]
            encoder = encoder.followed_by(memory, kept_of(memory))
            statistics = gather_memories(
                encoder,
                passage,
                padding_slots=self.reading.padding_slots,
                device=weight.device,
                width=memory.memory_width,
            )
            found.append(({name: weight}, statistics))
        return found


def _diagnose(problem: Problem, solution: Solution) -> dict[str, Any]:
    statistics, base, delta = problem.statistics, problem.base, solution.delta
    moments: ResponseMoments | MemoryResponses
    if statistics.retained.output_energies:
        moments = MemoryResponses(delta, statistics.retained)
    elif solution.shared_map is None:
        moments = ResponseMoments.of(base, delta)
    else:
        moments = ResponseMoments.of_map(problem.base_moment, solution.shared_map)
    drift = {
        name: root_ratio(delta[rows].square().sum(), base[rows].square().sum()) for name, rows in problem.parts.items()
    }
    targets = {target.name: target for target in statistics.targets}
    residual, moved = (
        dict(zip(targets, side_by_side(measure, targets.values(), on_cpu=base.is_cpu), strict=True))
        for measure in (moments.residual, moments.neighbour_change)
    )
    return {
        "drift": drift,
        "residual_response": residual,
        "retained_response": moments.retained_change(statistics.retained.second_moment),
        "neighbour_response": moved,
    }


def _together(said: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns what was found of all parts: by name, the worst number where several have said one."""
    together: dict[str, Any] = {}
    for key, first in said[0].items():
        worst, found = min if key == "answers_gone" else max, [one[key] for one in said]
        if isinstance(first, Mapping):
            names = dict.fromkeys(itertools.chain(*found))
            together[key] = {name: worst(one[name] for one in found if name in one) for name in names}
        else:
            together[key] = worst(found)
    return together


def _warn_of_a_crowd(targets: int, base: BaseModel) -> list[str]:
    if targets * ROOM_FOR_A_TARGET <= base.text.width:
        return []
    elsewhere = (
        ", or use method scapre-encoder, which has several times the room" if base.architecture.has_memories else ""
    )
    return [
        f"{targets} targets are many for text features of {base.text.width} numbers: a tenth or more of what nobody "
        f"named may go with them; name what must survive{elsewhere}"
    ]


def _warn_of_much_left(residual: Mapping[str, float]) -> list[str]:
    much = [f"{name} {left:.0%}" for name, left in residual.items() if left > MUCH_LEFT]
    if not much:
        return []
    return [
        f"{len(much)} targets answer nearly as far from their anchors as before ({', '.join(much[:NAMES_SHOWN])}) "
        "and may still be drawn; look at pictures of them, name another anchor, or forget less at once"
    ]


def _warn_of_answers(gone: Mapping[str, float], reach: float) -> list[str]:
    missed = [f"{name} {share:.2f}" for name, share in gone.items() if abs(share - reach) > FAR_FROM_REACH]
    if not missed:
        return []
    return [
        f"{len(missed)} targets' answers went another part of their way than reach = {reach} "
        f"({', '.join(missed[:NAMES_SHOWN])}), since no strength may follow it by more than six times; "
        "change erasure_strength as well, or reach"
    ]


def _neighbours(passage: Passage) -> dict[str, list[str]]:
    return {placed.concept.name: [near.name for near in placed.neighbours] for placed in passage.targets}


def describe_dials(method: str = "scapre") -> Mapping[str, str]:
    """Returns of each dial of a method what it means, what it takes and its default."""
    return {
        name: f"{dial.meaning} ({dial.expected}; default {dial.default!r})"
        for name, dial in sorted(find_method(method).dials.items())
    }
