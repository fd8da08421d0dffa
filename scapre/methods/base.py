"""What a method is: named dials with their equations, and a function from statistics to weight changes."""

import difflib
import numbers
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from scapre import solver
from scapre.concepts import DialValue, clean_name
from scapre.determinism import Stopwatch, run_parts
from scapre.errors import DialError
from scapre.moments import Reading, Statistics, TargetSlots, target_batches
from scapre.neighbours import NEAREST
from scapre.row_products import add_parts, cross_moments, map_rows, symmetric_product

SURELY_MEANT = 0.8
"""Share of letters in common from which a text is taken for a misspelled word."""


@dataclass(frozen=True)
class Dial:
    """One setting of a method."""

    default: DialValue
    meaning: str
    """What it does, with its place in the equation."""
    minimum: int | float | None = None
    maximum: int | float | None = None
    choices: tuple[str, ...] = ()
    """Words it takes; with a minimum it takes numbers as well."""
    is_text: bool = False
    """Takes any text, but none that looks like one of its words misspelled."""
    is_whole: bool = False
    """Takes whole numbers only, as a dial with a whole number for default always does."""
    read_with: tuple[str, tuple[str, ...]] | None = None
    """Another dial, and the words of it with which this one is read; `None` if it always is."""

    def accept(self, name: str, value: object) -> DialValue:
        """Returns `value` in the dial's own type.

        Raises:
            DialError: it is of another type or out of range.
        """
        if isinstance(value, str) and value in self.choices:
            return value
        if isinstance(value, str) and self.is_text:
            return self._accept_text(name, value)
        if self.minimum is None or isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise DialError(f"dial {name}: expected {self.expected}, found {value!r}")
        try:  # numpy's numbers among them; -0.0 is 0.0
            value = int(value) if isinstance(value, numbers.Integral) else float(value) + 0.0
        except OverflowError:
            raise DialError(f"dial {name}: expected {self.expected}, found {value!r}") from None
        largest = sys.maxsize if self._takes_whole_numbers else sys.float_info.max
        most = largest if self.maximum is None else self.maximum
        if not self.minimum <= value <= most:
            raise DialError(f"dial {name}: expected {self.expected}, found {value!r}")
        if not self._takes_whole_numbers:
            return float(value)
        if value != int(value):
            raise DialError(f"dial {name}: expected {self.expected}, found {value!r}")
        return int(value)

    @property
    def _takes_whole_numbers(self) -> bool:
        return self.is_whole or isinstance(self.default, int)

    def _accept_text(self, name: str, value: str) -> str:
        text = " ".join(value.split())
        if text in self.choices:
            return text
        if text:
            text = clean_name(text, f"dial {name}")
        if meant := difflib.get_close_matches(text.casefold(), self.choices, n=1, cutoff=SURELY_MEANT):
            raise DialError(f"dial {name}: expected {self.expected}, found {value!r}; did you mean {meant[0]!r}?")
        return text

    @property
    def expected(self) -> str:
        """What it takes, in words."""
        words = [repr(choice) for choice in self.choices]
        if self.is_text:
            words.append("any other text" if words else "any text")
        if self.minimum is not None:
            number = "a whole number" if self._takes_whole_numbers else "a number"
            upper = "" if self.maximum is None else f" and at most {self.maximum:g}"
            words.append(f"{number} of at least {self.minimum:g}{upper}")
        return " or ".join(words)


@dataclass(frozen=True)
class Problem:
    """The rows to change and what text says about them."""

    base: Float[Tensor, "rows d_in"]
    """All projections' rows on top of each other, float64."""
    parts: Mapping[str, slice]
    """Rows of each projection."""
    statistics: Statistics

    @cached_property
    def base_moment(self) -> Float[Tensor, "d_in d_in"]:
        """W0ᵀ W0 over the rows of all projections."""
        return cross_moments((self.base, self.base))[0]

    @classmethod
    def of(cls, projections: Mapping[str, Tensor], statistics: Statistics) -> "Problem":
        """Returns the problem that projections `[d_out, d_in]` of any type pose, in the order given."""
        parts, first = {}, 0
        for name, weight in projections.items():
            parts[name] = slice(first, first + len(weight))
            first += len(weight)
        example = next(iter(projections.values()))
        rows = torch.empty(first, example.shape[1], dtype=torch.float64, device=example.device)

        def fill(placed: tuple[slice, Tensor]) -> None:
            rows[placed[0]] = placed[1]  # in place: all of them as float64 twice would be the peak

        run_parts(fill, zip(parts.values(), projections.values(), strict=True), on_cpu=rows.is_cpu)
        return cls(rows, parts, statistics)


@dataclass(frozen=True)
class Solution:
    """What a method answers."""

    delta: Float[Tensor, "rows d_in"]
    diagnostics: Mapping[str, Any] = field(default_factory=dict)
    shared_map: Float[Tensor, "d_in d_in"] | None = None
    """M with Δ = W0 M, where all rows are treated alike: it tells what rows do without a look at them."""

    @classmethod
    def of_map(
        cls, base: Float[Tensor, "rows d_in"], shared_map: Float[Tensor, "d_in d_in"], diagnostics: Mapping[str, Any]
    ) -> "Solution":
        """Returns the solution Δ = W0 M."""
        return cls(map_rows(base, shared_map), diagnostics, shared_map)


Dials = Mapping[str, DialValue]


@dataclass(frozen=True)
class Method:
    """A named way to compute an edit."""

    name: str
    summary: str
    dials: Mapping[str, Dial]
    solve: Callable[[Problem, Dials, Stopwatch], Solution]
    edits_memories: bool = False
    """Whether the text encoders' memories are what is changed (`scapre.memories`), instead of the projections."""
    leads_to_anchor: bool = True
    """Whether targets answer as their anchors do once forgotten; some methods only turn them away from themselves."""

    def resolve(self, given: Mapping[str, object]) -> dict[str, DialValue]:
        """Returns every dial of the method with its value, defaults included.

        Raises:
            DialError: an unknown dial, or a value out of range.
        """
        if unknown := sorted(set(given) - set(self.dials)):
            raise DialError(
                f"method {self.name} has no dial {', '.join(unknown)}; it has {', '.join(sorted(self.dials))}"
            )
        return {
            name: dial.accept(name, given[name]) if name in given else dial.default
            for name, dial in sorted(self.dials.items())
        }

    def unread(self, dials: Mapping[str, DialValue]) -> list[str]:
        """Returns which dials were turned though another one keeps them from being read, and with what they would be.

        Those that play no part for want of text, as the vocabulary's where there is none, are not told.
        """
        found = []
        for name, dial in self.dials.items():
            if dial.read_with is None or dials[name] == dial.default:
                continue
            other, words = dial.read_with
            if dials[other] not in words:
                found.append(f"dial {name} plays no part: it is read with {other}={' or '.join(words)} only")
        return found


def scaled_kept_moment(problem: Problem, dials: Dials) -> Float[Tensor, "d_in d_in"]:
    """Returns λ_p K0 + λ (E/d_in) I with E = tr K0, what holds the rows at W0."""
    retained = problem.statistics.retained.second_moment
    return solver.add_ridge(
        float(dials["retention_strength"]) * retained,
        float(dials["ridge"]) * float(torch.trace(retained)) / len(retained),
    )


_READING = Reading()
READING_DIALS: Mapping[str, Dial] = {
    "anchor": Dial(
        _READING.anchor,
        "c': what targets without an anchor of their own become: nearest takes the nearest retained name, named "
        "ones first ('a photo' for styles, the empty prompt for unsafe content); another text is a prompt, an empty "
        "one the empty prompt",
        choices=(NEAREST,),
        is_text=True,
    ),
    "anchor_cosine": Dial(
        _READING.anchor_cosine, "found names with a higher centred cosine are too like a target to be its anchor", 0, 1
    ),
    "slots": Dial(
        _READING.padding_slots,
        "number of padding slots per prompt in S and K0, spread over the padding; 0 reads words and end only",
        0,
    ),
    "vocabulary": Dial(
        _READING.vocabulary, "how many names of the engine's own vocabulary enter K0, nearest first; 0 for none", 0
    ),
    "longest_word": Dial(
        _READING.longest_word,
        "vocabulary entries with a word of more tokens are unknown to the encoder and stay out; 0 lets all in",
        0,
    ),
    "neighbours": Dial(
        _READING.neighbours, "number of nearest retained names a channel must tell a target from, e in d'", 1
    ),
    "synonym_cosine": Dial(
        _READING.synonym_cosine, "vocabulary entries with a higher centred cosine to a target count as synonyms", 0, 1
    ),
}
"""Dials every method shares: how text is read."""
PUBLISHED_READING_DIALS: Mapping[str, Dial] = {
    **READING_DIALS,
    "anchor": replace(READING_DIALS["anchor"], default=""),
    "vocabulary": replace(READING_DIALS["vocabulary"], default=0),
}
"""The same for methods as their authors publish them: targets become the empty prompt, and only named text is kept."""


def reading_of(dials: Dials) -> Reading:
    """Returns the part of the dials that says how text is read."""
    return Reading(
        anchor=str(dials["anchor"]),
        padding_slots=int(dials["slots"]),
        vocabulary=int(dials["vocabulary"]),
        neighbours=int(dials["neighbours"]),
        synonym_cosine=float(dials["synonym_cosine"]),
        anchor_cosine=float(dials["anchor_cosine"]),
        longest_word=int(dials["longest_word"]),
    )


@dataclass(frozen=True)
class SlotBatch:
    """The slots of some targets on top of each other."""

    features: Float[Tensor, "slots d_in"]
    anchors: Float[Tensor, "slots d_in"]
    weights: Float[Tensor, " slots"]
    """Weights ω, which sum to 1 per target."""

    @classmethod
    def of(cls, targets: Sequence[TargetSlots]) -> "SlotBatch":
        """Returns the slots of these targets."""
        return cls(
            torch.cat([target.features for target in targets]),
            torch.cat([target.anchors for target in targets]),
            torch.cat([target.weights for target in targets]),
        )


def slot_batches(statistics: Statistics) -> Iterator[SlotBatch]:
    """Yields the targets' slots, so many at once that products are fast and memory is bounded."""
    return (SlotBatch.of(batch) for _, batch in target_batches(statistics.targets))


def slot_moments(
    statistics: Statistics, *, averaged: bool = True
) -> tuple[Float[Tensor, "d_in d_in"], Float[Tensor, "d_in d_in"]]:
    """Returns S = Σ_k Σ_t ω c cᵀ and N = Σ_k Σ_t ω (c' − c) cᵀ; ω sums to 1 per target, or is 1 if not `averaged`."""

    def multiply(targets: Sequence[TargetSlots]) -> tuple[Tensor, Tensor]:
        batch = SlotBatch.of(targets)
        weighted = batch.weights.unsqueeze(1) * batch.features if averaged else batch.features
        return symmetric_product(batch.features, weighted), (batch.anchors - batch.features).mT @ weighted

    like = statistics.retained.sums["general"]
    batches = (batch for _, batch in target_batches(statistics.targets))
    gram, shift = add_parts(multiply, batches, (torch.zeros_like(like), torch.zeros_like(like)))
    return gram, shift


def mean_features(statistics: Statistics) -> Float[Tensor, "d_in targets"]:
    """Returns C: each target's mean slot, stacked (ScaPre sec. 3)."""
    if not statistics.targets:
        return statistics.retained.sums["general"][:, :0]
    return torch.stack([target.weights @ target.features for target in statistics.targets], dim=1)
