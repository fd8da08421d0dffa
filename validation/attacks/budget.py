"""What an attack may spend, as a policy states it.

Guarantees:
    1. A budget counts steps, never seconds: the same budget and seed give the same attack on a slower machine.
    2. An attack that does not exist is refused by name when a policy is read.
"""

from collections.abc import Mapping
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

AttackName = Literal["search", "matching", "inversion"]
ATTACK_NAMES: tuple[AttackName, ...] = get_args(AttackName)
Against = Literal["base", "candidate", "random"]
AGAINST: tuple[Against, ...] = ("base", "candidate", "random")
"""An attack on the base (is it one at all?), on the candidate, and on the candidate with nothing learned."""

ATTACK = "attack"
"""The pack that probes of attacks are recorded under; it names their seeds, too."""
CONTROL_ATTEMPTS = 8
"""Attempts in which nothing was learned, beside every attack; each draws an equal share of the pictures.

One random vector may hit upon a concept by chance, and would then draw it every time.
"""


class Budget(BaseModel):
    """What one attack on one concept may spend."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    steps: int = Field(ge=1, description="steps of each start: a batch of prompts read, or one change of the vectors")
    restarts: int = Field(
        default=1, ge=1, description="independent starts; the one that reaches its own aim best is drawn"
    )
    pictures: int = Field(
        default=32, ge=CONTROL_ATTEMPTS, description="pictures per concept, of each model and of the random control"
    )
    tokens: int | None = Field(
        default=None, ge=1, le=16, description="tokens searched or learned; null: as many as the concept's name has"
    )


def drawn_pictures(budget: Budget) -> int:
    """Returns the number of pictures of each kind: what the attempts without learning can share equally."""
    return budget.pictures - budget.pictures % CONTROL_ATTEMPTS


DEFAULT_BUDGETS: Mapping[AttackName, Budget] = {
    "search": Budget(steps=40),
    "matching": Budget(steps=150),
    "inversion": Budget(steps=300),
}
"""What an attack spends unless a policy says otherwise; enough on small models, little on large ones."""
