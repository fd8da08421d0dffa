"""Any checkpoint, whoever made it, in a form that the judge draws with.

Guarantees:
    1. What is given is known by its kind and by the digest of its own bytes, before anything is loaded.
    2. A folder is judged where it lies; every other kind is put together once, offline, into a folder of the cache that
       is addressed by the digests of what went in, and checked against its own digest whenever it is used again.
    3. A LoRA or an edit that does not fit its base in every tensor is refused: what a loader leaves out is not judged.
    4. Pickles are refused by suffix and by content.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import diffusers
from diffusers.utils import logging as diffusers_logging

import scapre
from flows.errors import BadRequestError
from flows.integrity import check_integrity
from flows.pipelines import INDEX, PRECISIONS, Pipeline, load_pipeline, precision_of
from infra.atomic import written_beside
from infra.digests import canonical_json, sha256_bytes, sha256_file
from infra.manifests import Manifest
from scapre import CheckpointError
from scapre.checkpoint.tensor_files import METADATA_KEY, read_header, read_metadata, refuse_pickles
from scapre.writing import new_folder
from validation import Integrity

LORA_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
"""What a LoRA is called inside a folder of its own."""
UNKNOWN_MAKER = Integrity(
    True, "the checkpoint is judged as it is: what was changed in it, and by whom, was not part of the question"
)


@dataclass(frozen=True)
class Checkpoint(ABC):
    """A model to be judged."""

    path: Path
    digest: str
    """SHA-256 of the bytes given: of a file, or of a folder's manifest."""
    base: "FolderCheckpoint | None" = None
    """What a kind that is no whole model by itself is put together with."""

    kind: ClassVar[str]

    @abstractmethod
    def materialise(self, cache: Path) -> Path:
        """Returns a folder in diffusers' layout that draws what this checkpoint draws.

        Args:
            cache: Folder under which one may be made.

        Raises:
            CheckpointError: It is damaged, or does not fit its base.
        """

    def attest(self, folder: Path) -> Integrity:  # noqa: ARG002  only some kinds have something to compare with
        """Returns what is known of the bytes of the materialised folder."""
        return UNKNOWN_MAKER

    def describe(self) -> dict[str, Any]:
        """Returns kind and digests as plain JSON."""
        return {"kind": self.kind, "digest": self.digest, "base_digest": self.base and self.base.digest}


@dataclass(frozen=True)
class FolderCheckpoint(Checkpoint):
    """A folder in diffusers' layout."""

    kind: ClassVar[str] = "folder"

    def materialise(self, cache: Path) -> Path:  # noqa: ARG002  it is judged where it lies
        """Returns the folder itself, after comparing it with its digest."""
        found = Manifest.of_directory(self.path).digest
        if found != self.digest:
            raise CheckpointError(
                f"{self.path}: expected a folder with digest {self.digest}, found {found}; its files were changed "
                "since it was named: judge what is there now, or restore it"
            )
        return self.path


class _PutTogether(Checkpoint):
    """What has to be built before it can be drawn with."""

    def materialise(self, cache: Path) -> Path:
        """Returns the folder of the cache that holds it, building it if it is not there whole."""
        # libraries convert: another version of them may convert otherwise
        address = {**self.describe(), "made_with": {name: version(name) for name in ("diffusers", "transformers")}}
        target = cache / sha256_bytes(canonical_json(address))
        record = target.with_suffix(".digest")
        known = record.read_text(encoding="ascii") if record.is_file() and target.is_dir() else None
        if known is not None and Manifest.of_directory(target).digest == known:
            return target
        with new_folder(target, overwrite=True) as building:
            self.build(building)
        with written_beside(record) as opened:
            opened.write(Manifest.of_directory(target).digest.encode("ascii"))
        return target

    @abstractmethod
    def build(self, building: Path) -> None:
        """Writes the model into an empty folder."""

    @property
    def own_base(self) -> Path:
        """The base's folder."""
        assert self.base is not None
        return self.base.path


@dataclass(frozen=True)
class SingleFileCheckpoint(_PutTogether):
    """One safetensors file in the original layout; configuration and tokenizer are the base's."""

    kind: ClassVar[str] = "single file"

    def build(self, building: Path) -> None:
        """Converts it with diffusers."""
        own = {e.dtype for name, e in read_header(self.path).items() if not name.endswith("position_ids")}
        if len(own) != 1 or not own <= PRECISIONS.keys():
            raise CheckpointError(
                f"{self.path}: expected all weights in one of {', '.join(PRECISIONS)}, found {', '.join(sorted(own))}; "
                "convert them to one"
            )
        kind = getattr(diffusers, scapre.inspect_checkpoint(self.path).pipeline_class)
        with _named_failure(self.path, "a whole single file of its base's family"):
            pipeline = kind.from_single_file(
                str(self.path), config=str(self.own_base), local_files_only=True, torch_dtype=PRECISIONS[own.pop()]
            )
            pipeline.save_pretrained(building)


@dataclass(frozen=True)
class LoraCheckpoint(_PutTogether):
    """A LoRA, put on its base at full strength."""

    kind: ClassVar[str] = "LoRA"

    def build(self, building: Path) -> None:
        """Adds it to the base's weights."""
        if find_spec("peft") is None:
            raise BadRequestError(
                "expected the package peft to put a LoRA on, found none; `pip install 'scapre[lora]'`"
            )
        pipeline = load_pipeline(self.own_base, "cpu")
        with _named_failure(self.path, "a LoRA of its base's shapes"):
            held = pipeline.lora_state_dict(str(self.path), local_files_only=True)
            pipeline.load_lora_weights(str(self.path), local_files_only=True)
            self._refuse_leftovers(pipeline, held[0] if isinstance(held, tuple) else held)
            pipeline.fuse_lora(components=_worn_by(pipeline), safe_fusing=True)
            pipeline.unload_lora_weights()
            pipeline.save_pretrained(building)

    def _refuse_leftovers(self, pipeline: Pipeline, held: dict[str, Any]) -> None:
        given = sum(not name.endswith("alpha") for name in held)
        worn = sum(len(_lora_tensors(getattr(pipeline, name))) for name in _worn_by(pipeline))
        if given != worn or not worn:
            raise CheckpointError(
                f"{self.path}: expected a LoRA that fits its base in every tensor, found {worn} of {given} in use; "
                "name the base it was made for, or judge the merged model"
            )


@dataclass(frozen=True)
class EditCheckpoint(_PutTogether):
    """An edit of this project's engine, merged into its base."""

    kind: ClassVar[str] = "edit"

    @cached_property
    def edit(self) -> scapre.Edit:
        """The edit, its digest verified."""
        return scapre.Edit.load(self.path)

    def build(self, building: Path) -> None:
        """Merges it; the engine refuses any base but the edit's own."""
        scapre.merge(self.edit, self.own_base, building, overwrite=True)

    def attest(self, folder: Path) -> Integrity:
        """Compares the folder with base and edit, tensor by tensor."""
        return check_integrity(self.own_base, folder, self.edit)


def open_checkpoint(source: Path | str, *, base: Path | str | Checkpoint | None = None) -> Checkpoint:
    """Returns what lies at `source`, recognised by its content.

    Args:
        source: A folder in diffusers' layout; one safetensors file in the original layout; a LoRA, as a file or in a
            folder of its own; or an edit that `scapre unlearn` wrote.
        base: The model before, a folder; every kind but a folder needs it.

    Raises:
        CheckpointError: Nothing readable is there, it is a pickle, it is cut short, or it is of no known kind.
        BadRequestError: It needs a base, and none was given, or one that is no folder.
    """
    path = Path(source)
    if path.is_dir():
        if (path / INDEX).is_file():
            precision_of(path)
            return FolderCheckpoint(path, Manifest.of_directory(path).digest)
        inside = [path / name for name in LORA_FILES if (path / name).is_file()]
        if len(inside) != 1:
            raise CheckpointError(
                f"expected {INDEX} or a LoRA ({' or '.join(LORA_FILES)}) in the folder {path}, found neither; name a "
                "checkpoint"
            )
        path = inside[0]
    elif not path.is_file():
        raise CheckpointError(f"expected a checkpoint at {path}, found nothing; check the path")
    refuse_pickles(path)
    kind = _kind_of(path)
    return kind(path, sha256_file(path), _as_base(base, path))


def _kind_of(file: Path) -> type[Checkpoint]:
    names = read_header(file)
    try:
        if "edited_digest" in json.loads(read_metadata(file).get(METADATA_KEY, "{}")):
            return EditCheckpoint
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{file}: expected JSON in its header, found {error}; fetch it again") from error
    if any("lora" in name.casefold() for name in names):
        return LoraCheckpoint
    scapre.inspect_checkpoint(file)
    return SingleFileCheckpoint


def _as_base(base: Path | str | Checkpoint | None, path: Path) -> FolderCheckpoint:
    found = open_checkpoint(base) if isinstance(base, Path | str) and Path(base).is_dir() else base
    if not isinstance(found, FolderCheckpoint):
        raise BadRequestError(
            f"expected a base in diffusers' layout for {path.name}, which is no whole model by itself, found "
            f"{base or 'none'}; name the folder of the base"
        )
    return found


def _worn_by(pipeline: Pipeline) -> list[str]:
    return [name for name, part in pipeline.components.items() if hasattr(part, "state_dict") and _lora_tensors(part)]


def _lora_tensors(module: Any) -> list[str]:
    return [name for name in module.state_dict() if ".lora_" in name]


@contextmanager
def _named_failure(path: Path, expected: str) -> Generator[None]:
    """Turns what the libraries raise, and log, on a file that does not fit into one sentence."""
    verbosity = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity(diffusers_logging.CRITICAL)
    try:
        yield
    except CheckpointError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, LookupError) as error:
        said = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path}: expected {expected}, found: {said}; name the base it was made for") from error
    finally:
        diffusers_logging.set_verbosity(verbosity)
