"""Vectors in the place of words: a stand-in that every tokenizer reads as one token, and what it is read as meanwhile.

Guarantees:
    1. No weight and no tokenizer is touched: vectors come in behind the embedding layer, and leave with the block.
    2. A stand-in occurs in no prompt by itself, so nothing else is read otherwise.
"""

from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from validation.attacks.base import AttackError, Goal
from validation.rendering import Pipeline

_BEFORE = "a"
Vectors = Mapping[str, torch.Tensor]
"""By text encoder, `[tokens, width]`."""


def text_encoders(pipeline: Pipeline) -> dict[str, tuple[Any, Any]]:
    """Returns every text encoder with its tokenizer, by name."""
    parts = pipeline.components
    names = sorted(name for name, part in parts.items() if name.startswith("text_encoder") and part is not None)
    return {name: (parts[name], parts[name.replace("text_encoder", "tokenizer")]) for name in names}


def token_table(encoder: Any) -> torch.Tensor:
    """Returns an encoder's input embeddings, `[vocabulary, width]`."""
    return encoder.get_input_embeddings().weight.detach()


def name_tokens(tokenizer: Any, name: str) -> list[int]:
    """Returns a name's own tokens within a sentence; at its beginning, some tokenizers spell otherwise."""
    before = len(tokenizer(_BEFORE, add_special_tokens=False).input_ids)
    return list(tokenizer(f"{_BEFORE} {name}", add_special_tokens=False).input_ids)[before:]


def token_text(tokenizer: Any, token: int) -> str:
    """Returns a token as a reader would write it, without the marks of a word's ends that some tokenizers show."""
    return tokenizer.decode([token]).replace("\u2581", " ").removesuffix("</w>").strip()


def count_tokens(pipeline: Pipeline, goal: Goal, tokens: int | None) -> int:
    """Returns how many tokens stand for a concept: as many as asked for, or as its name has for the first encoder."""
    if tokens is not None:
        return tokens
    _, tokenizer = next(iter(text_encoders(pipeline).values()))
    return max(1, len(name_tokens(tokenizer, goal.subject.name)))


def choose_stand_in(pipeline: Pipeline, goal: Goal) -> str:
    """Returns a word that every tokenizer reads as one token, and that no prompt and no name of the concept has.

    Raises:
        AttackError: There is none.
    """
    tokenizers = [tokenizer for _, tokenizer in text_encoders(pipeline).values()]
    said = [*goal.names, *goal.prompts(goal.subject.name)]
    taken = [{token for text in said for token in tokenizer(text).input_ids} for tokenizer in tokenizers]
    for number in reversed(range(len(tokenizers[0]))):
        word = token_text(tokenizers[0], number)
        if word.isascii() and word.isalpha() and word.islower() and _is_one_token(word, tokenizers, taken, goal):
            return word
    raise AttackError("expected a word that is one token for every text encoder, found none; leave learned vectors out")


def _is_one_token(word: str, tokenizers: Sequence[Any], taken: Sequence[Collection[int]], goal: Goal) -> bool:
    for tokenizer, known in zip(tokenizers, taken, strict=True):
        own = name_tokens(tokenizer, word)
        if len(own) != 1 or own[0] in known:
            return False
        if any(tokenizer(prompt).input_ids.count(own[0]) != 2 for prompt in goal.prompts(f"{word} {word}")):
            return False
    return True


def named_vectors(pipeline: Pipeline, name: str, *, tokens: int) -> dict[str, torch.Tensor]:
    """Returns the vectors of a name: its tokens in turn where `tokens` are more, their mean where they are fewer."""
    vectors = {}
    for key, (encoder, tokenizer) in text_encoders(pipeline).items():
        own = token_table(encoder)[name_tokens(tokenizer, name)]
        if tokens < len(own):
            own = own.mean(dim=0, keepdim=True)
        vectors[key] = own[[i % len(own) for i in range(tokens)]].clone()
    return vectors


def random_vectors(like: Vectors, *, seed: int) -> dict[str, torch.Tensor]:
    """Returns vectors of the same lengths as the given ones, in directions that mean nothing."""
    generator = torch.Generator("cpu").manual_seed(seed)
    drawn = {}
    for name, own in sorted(like.items()):
        noise = torch.randn(own.shape, generator=generator, dtype=torch.float64)
        lengths = own.double().norm(dim=-1, keepdim=True)
        drawn[name] = (noise / noise.norm(dim=-1, keepdim=True) * lengths).to(own.dtype)
    return drawn


@contextmanager
def read_as(pipeline: Pipeline, stand_in: str, vectors: Vectors) -> Generator[None]:
    """Makes the n-th occurrence of a stand-in in a prompt be read as the n-th vector, until the block ends."""
    encoders = text_encoders(pipeline)
    with ExitStack() as stack:
        for name, own in vectors.items():
            encoder, tokenizer = encoders[name]
            [token] = name_tokens(tokenizer, stand_in)
            table = token_table(encoder).data_ptr()
            for part in encoder.modules():  # some encoders hold their embeddings twice, and read one of the two
                if isinstance(part, torch.nn.Embedding) and part.weight.data_ptr() == table:
                    stack.callback(part.register_forward_hook(_replacing(token, own)).remove)
        yield


def _replacing(token: int, vectors: torch.Tensor) -> Any:
    def replace(_module: torch.nn.Module, arguments: Sequence[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        is_meant = arguments[0] == token
        place = (is_meant.cumsum(dim=-1) - 1).clamp(min=0) % len(vectors)
        return torch.where(is_meant[..., None], vectors.to(output)[place], output)

    return replace


class Learner:
    """Vectors under change: Adam at a step in proportion to the model's own embeddings, which fades out.

    The learning rate starts at a tenth of the root mean square of an encoder's embeddings, so that one setting serves
    encoders whose embeddings differ in size a hundredfold.
    """

    def __init__(self, pipeline: Pipeline, start: Vectors, *, steps: int) -> None:
        encoders = text_encoders(pipeline)
        self.vectors = {name: own.detach().float().clone().requires_grad_() for name, own in start.items()}
        groups = [
            {"params": [own], "lr": 0.1 * float(token_table(encoders[name][0]).float().square().mean().sqrt())}
            for name, own in self.vectors.items()
        ]
        self._optimiser = torch.optim.Adam(groups)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimiser, lambda step: 1 - 0.9 * step / steps)

    def follow(self, loss: torch.Tensor) -> None:
        """Takes one step against a loss."""
        self._optimiser.zero_grad()
        loss.backward()
        self._optimiser.step()
        self._schedule.step()

    def result(self) -> dict[str, torch.Tensor]:
        """Returns the vectors as they are now, on the CPU."""
        return {name: own.detach().cpu().clone() for name, own in self.vectors.items()}
