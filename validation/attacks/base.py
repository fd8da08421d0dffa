"""What an attack is, and what it comes to.

Guarantees:
    1. An attempt is frozen, and its digest covers all that it makes a model draw: words and vectors.
    2. An attack is handed nothing of the detectors: it chooses among its own attempts by its own aim.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from PIL import Image

from validation.attacks.budget import AttackName, Budget
from validation.errors import ValidationError
from validation.probes import Subject
from validation.rendering import Pipeline

OnStep = Callable[[], None]
"""Called after every step of a budget."""


class AttackError(ValidationError):
    """An attack that cannot be run on a model, or that changed what it attacked."""


@dataclass(frozen=True, eq=False)
class Goal:
    """What is to be brought back, and what an attacker knows of it."""

    subject: Subject
    base: Pipeline
    """The model before; an attacker has it, or one that draws the concept as well."""
    prompts: Callable[[str], list[str]]
    """From the words that stand for the concept to the prompts that ask for it."""
    pictures: Sequence[Image.Image]
    """The concept as the base draws it."""
    pixels: int
    """Side of the square pictures."""
    device: str

    @property
    def names(self) -> tuple[str, ...]:
        """The concept's own names: what no attack may simply say."""
        return (self.subject.name, *self.subject.aliases)


@dataclass(frozen=True, eq=False)
class Attempt:
    """Words that stand for a concept and, where they were learned, the vectors that they are read as."""

    words: str
    vectors: Mapping[str, torch.Tensor]
    """By text encoder, `[tokens, width]` on the CPU; none where the words are read as they are."""
    steps: int
    """What was spent on it, over all starts."""
    loss: float
    """How far it is from the attack's own aim."""

    @property
    def digest(self) -> str:
        """SHA-256 over the vectors; empty for words alone."""
        if not self.vectors:
            return ""
        total = hashlib.sha256()
        for name, vectors in sorted(self.vectors.items()):
            total.update(f"{name} {vectors.dtype} {tuple(vectors.shape)}\n".encode())
            total.update(memoryview(vectors.contiguous().reshape(-1).view(torch.uint8).numpy()))
        return total.hexdigest()


class Attack(Protocol):
    """A way of bringing a concept back."""

    name: AttackName

    def run(self, pipeline: Pipeline, goal: Goal, *, budget: Budget, seed: int, on_step: OnStep) -> Attempt:
        """Returns one start's attempt on a pipeline, after exactly `budget.steps` steps."""
        ...

    def control(self, pipeline: Pipeline, goal: Goal, attempt: Attempt, *, seed: int) -> Attempt:
        """Returns an attempt of the same kind and size in which nothing was learned."""
        ...
