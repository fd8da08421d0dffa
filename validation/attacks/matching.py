"""Matching: vectors that make a model's cross-attention read the stand-in as the base's reads the concept's name.

The cheapest attack with both models at hand: it needs no picture, and undoes whatever an edit of keys and values left
reachable by another embedding.
"""

import torch

from validation.attacks.base import Attempt, Goal, OnStep
from validation.attacks.budget import AttackName, Budget
from validation.attacks.reading import frozen, read_projections
from validation.attacks.vectors import Learner, choose_stand_in, count_tokens, named_vectors, random_vectors, read_as
from validation.rendering import Pipeline

_BATCH = 4


class Matching:
    """Learns vectors whose keys and values in the candidate are those of the name in the base."""

    name: AttackName = "matching"

    def run(self, pipeline: Pipeline, goal: Goal, *, budget: Budget, seed: int, on_step: OnStep) -> Attempt:
        """Returns the vectors after `budget.steps` steps; a second start sets out from another place."""
        tokens = count_tokens(pipeline, goal, budget.tokens)
        stand_in = choose_stand_in(pipeline, goal)
        words = " ".join([stand_in] * tokens)
        prompts, named = goal.prompts(words), goal.prompts(goal.subject.name)
        start = named_vectors(pipeline, goal.subject.name, tokens=tokens)
        moved = random_vectors(start, seed=seed)
        start = {name: 0.9 * own + 0.1 * moved[name].to(own) for name, own in start.items()}
        pipeline.to(goal.device)
        goal.base.to(goal.device)
        wanted: dict[int, tuple[torch.Tensor, ...]] = {}
        loss = torch.tensor(float("nan"))
        with frozen(pipeline, goal.base):
            learner = Learner(pipeline, start, steps=budget.steps)
            for step in range(budget.steps):
                chosen = [(step * _BATCH + i) % len(prompts) for i in range(min(_BATCH, len(prompts)))]
                if chosen[0] not in wanted:
                    with torch.no_grad():
                        wanted[chosen[0]] = _read(goal.base, [named[i] for i in chosen], goal)
                with read_as(pipeline, stand_in, learner.vectors):
                    found = _read(pipeline, [prompts[i] for i in chosen], goal)
                loss = _distance(found, wanted[chosen[0]])
                learner.follow(loss)
                on_step()
            vectors = learner.result()
        return Attempt(words, vectors, budget.steps, float(loss.detach()))

    def control(self, pipeline: Pipeline, goal: Goal, attempt: Attempt, *, seed: int) -> Attempt:  # noqa: ARG002
        """Returns random vectors of the same lengths."""
        return Attempt(attempt.words, random_vectors(attempt.vectors, seed=seed), 0, float("nan"))


def _read(pipeline: Pipeline, prompts: list[str], goal: Goal) -> tuple[torch.Tensor, ...]:
    return read_projections(pipeline, prompts, pixels=goal.pixels)


def _distance(found: tuple[torch.Tensor, ...], wanted: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Returns the mean over layers of the squared distance, as a share of what is wanted."""
    shares = [
        (own - other).float().square().sum() / other.float().square().sum().clamp(min=1e-12)
        for own, other in zip(found, wanted, strict=True)
    ]
    return torch.stack(shares).mean()
