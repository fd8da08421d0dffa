"""Token slots of an encoded prompt: which hold words, which end it, which only fill it up.

Legend: a *slot* is a place in the context an encoder was given, a *row* the place where its feature is kept. A *run* is
what one tokenizer filled; prompts of models with encoders one after another have several.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Run:
    """The slots one tokenizer filled."""

    context: int
    """Number of slots the encoder may be given, padding included."""
    end: int
    """Slot of the last token that is no padding."""
    padding: tuple[int, ...] = ()
    """Padding slots whose features were kept, ascending; none where the model masks padding."""
    first_row: int = 0
    lead: int = 1
    """Slots before the first word."""
    has_end_token: bool = True
    """Whether slot `end` closes the prompt; otherwise it is the last word."""
    is_causal: bool = True
    """Whether a slot carries only what stands before it; otherwise every slot carries the whole prompt."""

    @property
    def last_word(self) -> int:
        """Slot of the last word; `lead` - 1 when there is none."""
        return self.end - self.has_end_token

    @property
    def row_count(self) -> int:
        """Number of rows that hold the run."""
        return self.end + 1 + len(self.padding)

    @property
    def token_rows(self) -> range:
        """The rows of all slots up to the end."""
        return range(self.first_row, self.first_row + self.end + 1)

    def row(self, slot: int) -> int:
        """Returns the row of `slot`; of the nearest kept padding when it is padding that was not kept."""
        if slot <= self.end or not self.padding:
            return self.first_row + min(slot, self.end)
        right = min(bisect_left(self.padding, slot), len(self.padding) - 1)
        left = max(right - 1, 0)
        nearest = right if self.padding[right] - slot < slot - self.padding[left] or left == right else left
        return self.first_row + self.end + 1 + nearest

    def slot(self, row: int) -> int:
        """Returns the slot whose feature is kept in `row`."""
        place = row - self.first_row
        return place if place <= self.end else self.padding[place - self.end - 1]

    def padding_rows(self, count: int) -> list[int]:
        """Returns the rows of up to `count` kept padding slots, spread evenly, the first and last included."""
        kept, first = len(self.padding), self.first_row + self.end + 1
        if kept <= count:
            return list(range(first, first + kept))
        if count == 1:
            return [first]
        return [first + (step * (kept - 1)) // (count - 1) for step in range(count)]

    def padding_beside(self, other: "Run") -> list[int]:
        """Returns the rows of the padding slots that play the part of some slot of `other`."""
        rows = {self.row(other.aligned(slot, self)) for slot in (*range(other.end + 1), *other.padding)}
        return sorted(rows.difference(self.token_rows))

    def aligned(self, slot: int, other: "Run") -> int:
        """Returns the slot of `other` that plays the part of `slot`, see `aligned_slot`."""
        if slot < self.lead or other.last_word < other.lead:
            return slot
        if slot == self.end:
            return other.end
        if slot > self.end:
            return max(slot, other.end)
        return max(other.end - (self.end - slot), other.lead)


Kept = int | tuple[Run, ...]
"""What of a prompt's padding is kept: so many slots of each run, or what plays a part of another prompt's runs."""


@dataclass(frozen=True)
class EncodedPrompt:
    """Token features of one prompt."""

    features: Float[Tensor, "rows d_in"]
    runs: tuple[Run, ...]

    @property
    def end(self) -> int:
        """Row of the last token of the first run that is no padding."""
        return self.runs[0].row(self.runs[0].end)

    @property
    def ends(self) -> list[int]:
        """Rows of the last token of every run."""
        return [run.row(run.end) for run in self.runs]

    def padding(self, count: int) -> list[int]:
        """Returns the rows of up to `count` padding slots of each run, spread evenly over the padding."""
        return [row for run in self.runs for row in run.padding_rows(count)]

    def thinned(self, kept: Kept) -> "EncodedPrompt":
        """Returns every token, and of the padding what is to be kept, in memory of its own."""
        runs: list[Run] = []
        rows: list[int] = []
        for place, run in enumerate(self.runs):
            if isinstance(kept, int):
                padding = run.padding_rows(kept)
            else:  # a run that the other prompt lacks plays no part of it
                padding = run.padding_beside(kept[place]) if place < len(kept) else []
            runs.append(replace(run, padding=tuple(map(run.slot, padding)), first_row=len(rows)))
            rows += [*run.token_rows, *padding]
        return EncodedPrompt(self.features[rows], tuple(runs))

    def rows_read(self, padding: int) -> list[int]:
        """Returns the rows of every token, and of up to `padding` padding slots of each run."""
        return [row for run in self.runs for row in (*run.token_rows, *run.padding_rows(padding))]

    def rows_from(self, starts: Sequence[int], padding: int) -> list[int]:
        """Returns the rows of each run from its slot in `starts` on, and of up to `padding` padding slots."""
        return [
            row
            for run, start in zip(self.runs, starts, strict=True)
            for row in (*range(run.row(start), run.row(run.end) + 1), *run.padding_rows(padding))
        ]


def aligned_slot(row: int, prompt: EncodedPrompt, other: EncodedPrompt) -> int:
    """Returns the row of `other` that plays the part of `row` in `prompt`, within the same run.

    End goes to end, padding to padding at the same position; words are counted back from the end, so that last word
    goes to last word. A prompt without words is aligned position by position.
    """
    index = max(number for number, run in enumerate(prompt.runs) if run.first_row <= row)
    run, counterpart = prompt.runs[index], other.runs[index]
    return counterpart.row(run.aligned(run.slot(row), counterpart))


def shifted(runs: Sequence[Run], rows: int) -> list[Run]:
    """Returns the runs as they are after `rows` other rows."""
    return [replace(run, first_row=run.first_row + rows) for run in runs]
