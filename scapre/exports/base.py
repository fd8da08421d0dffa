"""What every export begins with: the checkpoint is the base of the edit, or nothing happens."""

from pathlib import Path

from scapre.architectures import BaseModel
from scapre.checkpoint import CheckpointInfo, SingleFile, read_inspected
from scapre.edit import Edit
from scapre.errors import BaseMismatchError, CheckpointError


def source_of(checkpoint: Path | str | SingleFile) -> Path:
    """Returns the real place of a checkpoint; an export needs no tokenizer."""
    return (checkpoint.path if isinstance(checkpoint, SingleFile) else Path(checkpoint)).resolve()


def read_own_base(edit: Edit, info: CheckpointInfo) -> BaseModel:
    """Returns text encoders and projections of an inspected checkpoint.

    Raises:
        BaseMismatchError: it is not the base of the edit; names both digests.
    """
    base = read_inspected(info)
    if base.digest != edit.base_digest:
        raise BaseMismatchError(
            f"expected a checkpoint with digest {edit.base_digest}, found {base.digest}; an edit fits its own base only"
        )
    return base


def changed_names(edit: Edit) -> list[str]:
    """Returns the projections in which the edit flips a bit."""
    return sorted(name for name, change in edit.changes.items() if bool(change.any()))


def check_apart(source: Path, target: Path) -> None:
    """Checks that writing `target` leaves `source` as it is.

    Raises:
        CheckpointError: one is, or lies in, the other.
    """
    real_source, real_target = source.resolve(), target.resolve()  # links and .. may lead from one into the other
    if real_target.is_relative_to(real_source) or real_source.is_relative_to(real_target):
        raise CheckpointError(f"expected a place outside of the checkpoint {source}, found {target}; choose another")
