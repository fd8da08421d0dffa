"""Who must say yes before a candidate that passed becomes the champion: a typed table.

Guarantees:
    1. A ground that the table does not name asks for a person.
    2. An unknown ground or mode is refused by its name.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flows.errors import BadRequestError
from flows.requests import Ground

Mode = Literal["automatic", "person"]
DEFAULT_APPROVAL_POLICY = Path(__file__).parent / "approval.yaml"


class ApprovalPolicy(BaseModel):
    """Which grounds are approved automatically, and how long an approval holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    grounds: dict[Ground, Mode] = Field(default={}, description="automatic or person, by ground of a request")
    valid_days: float = Field(default=7, gt=0, le=365, description="days after which an unused approval is void")

    def needs_person(self, grounds: Iterable[str]) -> bool:
        """Whether a candidate that honours requests on these grounds waits for a named person."""
        modes: dict[str, Mode] = {str(ground): mode for ground, mode in self.grounds.items()}
        return any(modes.get(ground, "person") == "person" for ground in grounds)


def load_approval_policy(path: Path | None = None) -> ApprovalPolicy:
    """Reads the table.

    Raises:
        BadRequestError: The file cannot be read, or a ground, mode or number is not known; each fault is named.
    """
    path = path or DEFAULT_APPROVAL_POLICY
    try:
        return ApprovalPolicy.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(str(p) for p in f['loc'])}: {f['msg']}" for f in error.errors())
        raise BadRequestError(f"expected a valid approval policy, found in {path}: {faults}; correct it") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadRequestError(f"expected an approval policy in YAML, found {path}: {error}; correct it") from error
