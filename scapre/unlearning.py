"""From a base model and concepts to an edit: encode, statistics, solve, refine."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from scapre.architectures import BaseModel
from scapre.checkpoint import read_base
from scapre.concepts import Concept, DialValue, EditSpec, canonical_concepts, canonical_names, check_disjoint
from scapre.determinism import Stopwatch, single_threaded
from scapre.edit import Edit, build_edit
from scapre.embeddings import PromptEncoder
from scapre.methods import Problem, find_method
from scapre.methods.base import reading_of
from scapre.moments import Statistics, encode_text, gather_statistics
from scapre.responses import ResponseMoments
from scapre.vocabulary import proposable_names

LARGE_DRIFT = 1.0
"""‖W − W0‖ / ‖W0‖ from which a projection is reported as a warning."""


def unlearn(
    pipeline_or_path: Any,
    concepts: Sequence[Concept],
    retain: Sequence[str] | None = None,
    method: str = "scapre",
    *,
    withheld: Sequence[str] = (),
    **dials: DialValue,
) -> Edit:
    """Returns the edit that makes a model forget `concepts`; the model itself is not changed.

    Args:
        pipeline_or_path: a loaded pipeline, or a checkpoint folder of which only text encoder and projections are read.
        concepts: what to forget; none gives an edit that changes nothing.
        retain: names that must survive, in addition to those found in the engine's own vocabulary.
        method: name of the method, see `scapre.methods.METHODS`.
        withheld: names the vocabulary must not propose, so that what nobody named can be measured.
        **dials: settings of the method; unknown ones are refused.

    Raises:
        InvalidConceptError: contradictory concepts or names.
        DialError: unknown method or dial, or a value out of range.
        CheckpointError: the folder cannot be used.
        SingularSystemError: no finite, unique answer; the message says which dial to raise.

    No randomness is consumed; the same input gives the same bytes whatever the number of CPU threads.
    """
    chosen = find_method(method)
    settings = chosen.resolve(dials)
    forgotten = canonical_concepts(concepts)
    named, kept_out = canonical_names(retain or (), "retained name"), canonical_names(withheld, "withheld name")
    check_disjoint(forgotten, named, kept_out)
    clock = Stopwatch()
    with single_threaded(), torch.no_grad():
        with clock.phase("encode"):
            base = read_base(pipeline_or_path)
            encoder, reading = PromptEncoder(base.text), reading_of(settings)
            proposable = proposable_names(forgotten, named, kept_out)
            encode_text(encoder, forgotten, named=named, proposable=proposable, reading=reading)
        with clock.phase("statistics"):
            device = next(iter(base.projections.values())).device
            statistics = gather_statistics(
                encoder, forgotten, named=named, proposable=proposable, reading=reading, device=device
            )
            problem = _stack_rows(base, statistics)
        solution = chosen.solve(problem, settings, clock)
        spec = EditSpec(
            method=chosen.name,
            concepts=forgotten,
            retain=(*statistics.retained.named, *statistics.retained.found),
            dials=settings,
            base_digest=base.digest,
            withheld=kept_out,
        )
        diagnostics = {**_diagnose(problem, solution.delta), **solution.diagnostics}
        deltas = {name: solution.delta[rows] for name, rows in problem.parts.items()}
        return build_edit(base, spec, deltas=deltas, diagnostics={**diagnostics, "seconds": clock.seconds})


def _stack_rows(base: BaseModel, statistics: Statistics) -> Problem:
    parts, first = {}, 0
    for name, weight in base.projections.items():
        parts[name] = slice(first, first + len(weight))
        first += len(weight)
    rows = torch.cat([weight.detach().double() for weight in base.projections.values()])
    return Problem(rows, parts, statistics)


def _diagnose(problem: Problem, delta: Float[Tensor, "rows d_in"]) -> dict[str, Any]:
    statistics, base = problem.statistics, problem.base
    moments = ResponseMoments.of(base, delta)
    drift = {
        name: _ratio(delta[rows].square().sum(), base[rows].square().sum()) for name, rows in problem.parts.items()
    }
    kept = statistics.retained.second_moment
    moved, response = ((weight @ kept * weight).sum() for weight in (delta, base))
    warnings = list(statistics.warnings)
    if large := [name for name, value in drift.items() if value > LARGE_DRIFT]:
        warnings.append(
            f"{len(large)} projections drift by more than their own norm; raise ridge or retention_strength"
        )
    return {
        "drift": drift,
        "residual_response": {t.concept.name: moments.residual(t) for t in statistics.targets},
        "retained_response": _ratio(moved, response),
        "neighbour_response": {t.concept.name: moments.neighbour_change(t) for t in statistics.targets},
        "neighbours": {t.concept.name: list(t.neighbours) for t in statistics.targets},
        "retain_named": list(statistics.retained.named),
        "retain_found": list(statistics.retained.found),
        "synonyms_left_out": list(statistics.retained.synonyms),
        "warnings": warnings,
    }


def _ratio(squared: Float[Tensor, ""], reference: Float[Tensor, ""]) -> float:
    return float((squared / reference).sqrt()) if float(reference) > 0 else 0.0


def describe_dials(method: str = "scapre") -> Mapping[str, str]:
    """Returns the meaning and default of each dial of a method."""
    return {
        name: f"{dial.meaning} (default {dial.default!r})" for name, dial in sorted(find_method(method).dials.items())
    }
