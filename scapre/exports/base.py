"""What every export begins with: the checkpoint is the base of the edit, or nothing happens."""

from pathlib import Path

from scapre.architectures import BaseWeights
from scapre.checkpoint import CheckpointInfo, SingleFile, read_inspected
from scapre.checkpoint.folder import MODEL_INDEX
from scapre.edit import Edit
from scapre.errors import CheckpointError
from scapre.writing import refuse_existing

WEIGHT_FILE = ".safetensors"


def source_of(checkpoint: Path | str | SingleFile) -> Path:
    """Returns the real place of a checkpoint; an export needs no tokenizer."""
    return (checkpoint.path if isinstance(checkpoint, SingleFile) else Path(checkpoint)).resolve()


def read_own_base(edit: Edit, info: CheckpointInfo) -> BaseWeights:
    """Returns the projections of an inspected checkpoint.

    Raises:
        BaseMismatchError: it is not the base of the edit; names both digests.
        CheckpointError: the edit does not make of it what the edit says.
    """
    base = read_inspected(info).weights
    edit.check(base)
    return base


def changed_names(edit: Edit) -> list[str]:
    """Returns the projections in which the edit flips a bit."""
    return sorted(name for name, change in edit.changes.items() if bool(change.any()))


def check_place(source: Path, target: Path, *, overwrite: bool, for_folder: bool) -> None:
    """Checks that writing `target` leaves `source` and whatever else there is as it is.

    Raises:
        CheckpointError: one is, or lies in, the other; the name is not one that other programs look for; or there is
            something already: anything at all, or with `overwrite` anything but what an export may have written.
    """
    real_source, real_target = source.resolve(), target.resolve()  # links and .. may lead from one into the other
    if real_target.is_relative_to(real_source) or real_source.is_relative_to(real_target):
        raise CheckpointError(f"expected a place outside of the checkpoint {source}, found {target}; choose another")
    if not for_folder and target.suffix != WEIGHT_FILE:
        raise CheckpointError(
            f"expected a name that ends in {WEIGHT_FILE}, found {target.name}; other programs look for it"
        )
    refuse_existing(target, overwrite=overwrite)
    if not for_folder or not target.exists():
        return
    if not target.is_dir() or (any(target.iterdir()) and not (target / MODEL_INDEX).is_file()):
        raise CheckpointError(
            f"expected a checkpoint folder or an empty one to replace, found {target}, which holds something else; "
            "choose another name"
        )
