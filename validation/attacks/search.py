"""Prompt search: ordinary words that a model's text encoders read nearly as the base's read the concept's name.

Greedy coordinate gradient (Zou et al. 2023) on the text encoders alone; the denoiser is never asked. The concept's
names, their tokens and anything that spells them are out of bounds, so what is found is another way of saying it.
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch

from validation.attacks.base import AttackError, Attempt, Goal, OnStep
from validation.attacks.budget import AttackName, Budget
from validation.attacks.reading import frozen, read_prompts
from validation.attacks.vectors import (
    choose_stand_in,
    count_tokens,
    name_tokens,
    read_as,
    text_encoders,
    token_table,
    token_text,
)
from validation.rendering import Pipeline

_TRIED = 64
"""Prompts read in one step."""
_SHORTLIST = 64
"""Tokens per place among which the gradient lets a step choose."""
_SPELLS = 3
"""Letters from which on a piece of a name is a hint at it."""


class Search:
    """Searches words, one changed in each step, by the distance between readings."""

    name: AttackName = "search"

    def run(self, pipeline: Pipeline, goal: Goal, *, budget: Budget, seed: int, on_step: OnStep) -> Attempt:
        """Returns the words after `budget.steps` steps, each of which reads one batch of prompts.

        Raises:
            AttackError: No word is allowed.
        """
        encoder, tokenizer = next(iter(text_encoders(pipeline).values()))
        allowed = allowed_words(tokenizer, goal.names)
        table = token_table(encoder)[list(allowed)].float()
        numbers, spelled = torch.tensor(list(allowed)), list(allowed.values())
        tokens, stand_in = count_tokens(pipeline, goal, budget.tokens), choose_stand_in(pipeline, goal)
        generator = torch.Generator("cpu").manual_seed(seed)
        now = torch.randint(len(numbers), (tokens,), generator=generator)
        pipeline.to(goal.device)
        goal.base.to(goal.device)
        with frozen(pipeline, goal.base):
            with torch.no_grad():
                wanted = read_prompts(goal.base, _first(goal, goal.subject.name), pixels=goal.pixels)
            best = float("inf")
            for _ in range(budget.steps):
                shortlist = _shortlist(pipeline, goal, wanted, table=table, vectors=table[now], stand_in=stand_in)
                tried = _changed(now, shortlist, generator=generator)
                words = [" ".join(spelled[i] for i in own) for own in tried]
                losses = _distances(pipeline, goal, words, wanted)
                losses = [
                    float("inf") if says(own, goal.names) else loss for own, loss in zip(words, losses, strict=True)
                ]
                first = min(range(len(losses)), key=losses.__getitem__)
                if losses[first] < best:
                    best, now = losses[first], tried[first]
                on_step()
        return Attempt(" ".join(spelled[i] for i in now), {}, budget.steps, best)

    def control(self, pipeline: Pipeline, goal: Goal, attempt: Attempt, *, seed: int) -> Attempt:
        """Returns as many random words."""
        _, tokenizer = next(iter(text_encoders(pipeline).values()))
        spelled = list(allowed_words(tokenizer, goal.names).values())
        generator = torch.Generator("cpu").manual_seed(seed)
        drawn = torch.randint(len(spelled), (len(attempt.words.split()),), generator=generator)
        return Attempt(" ".join(spelled[i] for i in drawn), {}, 0, float("nan"))


def allowed_words(tokenizer: Any, names: Collection[str]) -> dict[int, str]:
    """Returns the tokens that may be used, with the word each stands for: read back, it is that very token.

    Tokens of the names are out, and so is every word that holds a name, or is a piece of one with three letters or
    more.

    Raises:
        AttackError: None is left.
    """
    own = {token for name in names for token in name_tokens(tokenizer, name)}
    squeezed = [_squeeze(name) for name in names]
    special = set(tokenizer.all_special_ids)
    numbers = [number for number in range(len(tokenizer)) if number not in own and number not in special]
    texts = [token_text(tokenizer, number) for number in numbers]
    read = tokenizer([f"a {text} {text}" for text in texts], add_special_tokens=False).input_ids
    allowed = {}
    for number, text, back in zip(numbers, texts, read, strict=True):
        word = _squeeze(text)
        hints = any(name in word or (len(word) >= _SPELLS and word in name) for name in squeezed)
        if back[-2:] == [number, number] and text.split() == [text] and any(map(str.isalnum, word)) and not hints:
            allowed[number] = text
    if not allowed:
        raise AttackError("expected words beside the concept's names in the tokenizer, found none; leave search out")
    return allowed


def says(words: str, names: Collection[str]) -> bool:
    """Whether words spell a name, in one piece or over several."""
    return any(_squeeze(name) in _squeeze(words) for name in names)


def _squeeze(text: str) -> str:
    return "".join(text.casefold().split())


def _first(goal: Goal, words: str) -> list[str]:
    return goal.prompts(words)[:1]


def _changed(now: torch.Tensor, shortlist: torch.Tensor, *, generator: torch.Generator) -> list[torch.Tensor]:
    """Returns the words as they are and variants of them, each with one word out of the shortlist of its place."""
    tried = [now]
    for _ in range(_TRIED - 1):
        place = int(torch.randint(len(now), (), generator=generator))
        other = now.clone()
        other[place] = shortlist[place, int(torch.randint(shortlist.shape[1], (), generator=generator))]
        tried.append(other)
    return tried


def _shortlist(
    pipeline: Pipeline,
    goal: Goal,
    wanted: Sequence[torch.Tensor],
    *,
    table: torch.Tensor,
    vectors: torch.Tensor,
    stand_in: str,
) -> torch.Tensor:
    """Returns, `[places, shortlist]`, the allowed words that the gradient promises most of, in the first encoder."""
    name = next(iter(text_encoders(pipeline)))
    vectors = vectors.clone().requires_grad_()
    with read_as(pipeline, stand_in, {name: vectors}):
        found = read_prompts(pipeline, _first(goal, " ".join([stand_in] * len(vectors))), pixels=goal.pixels)
    _distance(found, wanted)[0].backward()
    assert vectors.grad is not None
    promise = -(vectors.grad @ table.T)
    return promise.topk(min(_SHORTLIST, len(table)), dim=1).indices.cpu()


@torch.no_grad()
def _distances(pipeline: Pipeline, goal: Goal, words: list[str], wanted: Sequence[torch.Tensor]) -> list[float]:
    prompts = [prompt for own in words for prompt in _first(goal, own)]
    return _distance(read_prompts(pipeline, prompts, pixels=goal.pixels), wanted).tolist()


def _distance(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> torch.Tensor:
    """Returns, per prompt, the squared distance of readings as a share of what is wanted."""
    shares = [
        (own - other).float().square().flatten(1).sum(dim=1) / other.float().square().sum().clamp(min=1e-12)
        for own, other in zip(found, wanted, strict=True)
    ]
    return torch.stack(shares).mean(dim=0)
