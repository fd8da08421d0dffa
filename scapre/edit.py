"""The frozen result: what changes in each weight, where it came from, and how to put it on and take it off.

Guarantees:
    1. Changes are stored as the bitwise exclusive or of base and edited weight, so `apply` and `revert` are exact.
    2. `apply` refuses any base but the one the edit was computed from; `revert` refuses anything but its own result.
    3. The saved bytes and the digest depend on spec, base and change only: no time, no place, no machine name.
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from scapre.architectures import BaseWeights, alone_with, read_pipeline
from scapre.checkpoint.tensor_files import METADATA_KEY
from scapre.concepts import EditSpec, canonical_json
from scapre.digests import combined_digest, tensor_digest, tensor_digests
from scapre.errors import BaseMismatchError, CheckpointError, InvalidConceptError, SingularSystemError
from scapre.writing import new_file

FORMAT = 2
"""Files of format 1 had no seal; they are read as before."""
SHOWN = 5
"""Concepts that the text form of an edit names."""
_SAME_WIDTH = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, eq=False, repr=False)
class Edit:
    """A computed edit."""

    spec: EditSpec
    changes: Mapping[str, Tensor]
    """Exclusive or of base and edited bits, per weight, as integers of the weight's width."""
    edited_digest: str
    """Base digest of a model that wears the edit."""
    diagnostics: Mapping[str, Any] = field(default_factory=dict)
    """What was found on the way; JSON-able. Of every method:

    - `anchors`: what each target becomes, `""` the empty prompt; `neighbours`: each target's nearest retained names.
    - `at_risk`, `retain_named`, `retain_found`, `synonyms_left_out`, `strangers_left_out`: see `scapre.Preflight`.
    - `warnings`: what is doubtful; `not_covered`: ways of text into the model that the edit leaves as they are.
    - `drift`: ‖Δ‖ / ‖W0‖ of each weight.
    - `residual_response`: how far each target's answer still is from its anchor's, 0 forgotten, 1 as before.
    - `neighbour_response`: how far each target's nearest neighbour moved, in units of its distance to the target.
    - `retained_response`: root mean square change of retained answers, in units of these.
    - `condition_number` of the regularizer; 1 where nothing is solved.
    - `seconds` of each phase, before saving only.

    Of some: `answers_gone`, how far each target's answer went to its anchor's (`balance=answers`); `relevance`, the
    decoupler's histogram; `own_directions`, `solver_error` and `solver_iterations` of row weights per target;
    `mean_penalty` (`scapre-printed`), `mean_mask` (`scapre-released`), `regained_response` (`rece`), `null_dimensions`
    and `slots_that_count` (`speed`).
    """

    @property
    def base_digest(self) -> str:
        """Digest of the weights the edit belongs to."""
        return self.spec.base_digest

    @cached_property
    def digest(self) -> str:
        """SHA-256 over spec, base digest and changes."""
        content = {
            "format": 1,
            "spec": self.spec.to_json(),
            "base": self.base_digest,
            "changes": tensor_digests(self.changes),
        }
        return hashlib.sha256(canonical_json(content).encode()).hexdigest()

    @property
    def is_identity(self) -> bool:
        """Whether the edit changes no bit."""
        return not any(bool(change.any()) for change in self.changes.values())

    def __repr__(self) -> str:
        names = [concept.name for concept in self.spec.concepts]
        shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
        return (
            f"Edit({self.spec.method} forgets {shown or 'nothing'}; {len(self.changes)} weights of base "
            f"{self.base_digest[:12]}, digest {self.digest[:12]})"
        )

    def apply(self, pipeline: Any) -> None:
        """Puts the edit on `pipeline`, in place.

        Raises:
            BaseMismatchError: the pipeline's weights are not the base of this edit; nothing was changed.
            CheckpointError: the edit's own record of what it makes of the base is wrong; nothing was changed.
        """
        with alone_with(pipeline):
            base = read_pipeline(pipeline).weights
            self.check(base)
            self._flip(base)

    def revert(self, pipeline: Any) -> None:
        """Takes the edit off `pipeline`, in place: the base's exact bits come back.

        Raises:
            BaseMismatchError: the pipeline does not wear exactly this edit; nothing was changed.
        """
        with alone_with(pipeline):
            worn = read_pipeline(pipeline).weights
            if worn.digest != self.edited_digest:
                raise BaseMismatchError(
                    f"expected a model that wears this edit, digest {self.edited_digest}, found {worn.digest}; "
                    "revert what was applied after it first, or reload the base"
                )
            self._check_result(worn, self.base_digest)
            self._flip(worn)

    def check(self, base: BaseWeights) -> None:
        """Checks that `base` is what the edit was computed from, and that the edit makes of it what it says.

        Raises:
            BaseMismatchError: it is another base; names both digests and what is known of the difference.
            CheckpointError: the edit's own record of what it makes of the base is wrong.
        """
        self._check_base(base)
        self._check_result(base, self.edited_digest)

    def _check_base(self, base: BaseWeights) -> None:
        if base.digest == self.base_digest:
            return
        widths = {name: 8 * change.element_size() for name, change in self.changes.items()}
        found = {name: 8 * held.element_size() for name, held in base.editable.items() if name in widths}
        advice = (
            "load the pristine base with all of its text encoders, every part in the type it had (float16 is not "
            "bfloat16), or compute the edit for this one; to forget more, compute one edit of all"
        )
        if base.digest == self.edited_digest:
            advice = "that is the base with this very edit on it"
        elif widths.keys() != found.keys():
            advice = f"it has {len(found)} of the {len(widths)} weights that change: it is another kind of model"
        elif differing := [name for name in widths if widths[name] != found[name]]:
            name = differing[0]
            advice = f"{name} has {found[name]} bits a number instead of {widths[name]}: load it in its own precision"
        raise BaseMismatchError(f"expected a base with digest {self.base_digest}, found {base.digest}; {advice}")

    def flip(self, name: str, weight: Tensor) -> Tensor:
        """Returns the weight `name` with the change put on (or taken off: it is its own inverse)."""
        change = self.changes[name].to(weight.device)
        return (weight.detach().contiguous().view(change.dtype) ^ change).view(weight.dtype)

    def delta(self, name: str, base_weight: Tensor) -> Float[Tensor, "d_out d_in"]:
        """Returns edited minus base weight `name` in float64, given the base weight."""
        return self.flip(name, base_weight).double() - base_weight.detach().double()

    def save(self, path: Path | str) -> Path:
        """Writes the edit as one safetensors file, complete or not at all; the same edit gives the same bytes.

        Raises:
            CheckpointError: it cannot be written.
        """
        target = Path(path)
        content = {
            "format": FORMAT,
            "spec": json.loads(self.spec.to_json()),
            "digest": self.digest,
            "base_digest": self.base_digest,
            "edited_digest": self.edited_digest,
            "diagnostics": {key: value for key, value in self.diagnostics.items() if key != "seconds"},
            "versions": {name: _version(name) for name in ("scapre", "torch", "transformers")},
        }
        content["seal"] = _seal(content)
        tensors = {name: self.changes[name].cpu().contiguous() for name in sorted(self.changes)}
        with new_file(target, overwrite=True) as building:
            building.write_bytes(save(tensors, {METADATA_KEY: canonical_json(content)}))
        return target

    @classmethod
    def load(cls, path: Path | str) -> "Edit":
        """Returns the edit saved at `path`, its digest and the seal of all that is said of it verified.

        Raises:
            CheckpointError: the file is missing, is no edit, or was altered.
        """
        if Path(path).is_dir():
            raise CheckpointError(f"expected a saved edit, found the folder {path}; give the edit.safetensors in it")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                changes = {name: file.get_tensor(name) for name in sorted(file.keys())}
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"expected a saved edit at {path}, could not read it: {error}") from error
        try:
            content = json.loads(metadata.get(METADATA_KEY, "{}"))
            if "format" not in content:
                raise CheckpointError(f"expected a saved edit, found other tensors in {path}; give an edit.safetensors")
            if content["format"] not in (1, FORMAT):
                raise CheckpointError(
                    f"{path}: expected an edit of format {FORMAT}, found {content['format']!r}; update scapre"
                )
            if content["format"] == FORMAT and content["seal"] != _seal(content):
                raise CheckpointError(f"{path}: the header does not fit its seal; the file was altered, restore it")
            spec = EditSpec.from_json(canonical_json(content["spec"]))
            edit = cls(spec, changes, content["edited_digest"], content["diagnostics"])
            expected, found = content["digest"], edit.digest
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, InvalidConceptError) as error:
            raise CheckpointError(f"{path}: expected the header of an edit, found {error!r}; restore it") from error
        if found != expected:
            raise CheckpointError(f"{path}: expected digest {expected}, found {found}; the file was altered")
        return edit

    def _check_result(self, model: BaseWeights, expected: str) -> None:
        digests, editable = dict(model.tensor_digests), model.editable
        for name, change in self.changes.items():
            weight = editable.get(name)
            if weight is None or weight.shape != change.shape or weight.element_size() != change.element_size():
                raise CheckpointError(
                    f"expected changes of the base's weights, found {name!r} of shape {tuple(change.shape)}; the "
                    "edit's file was altered"
                )
            digests[name] = tensor_digest(self.flip(name, weight))
        if (found := combined_digest(digests)) != expected:
            raise CheckpointError(
                f"expected weights with digest {expected}, found {found}; the edit's file was altered"
            )

    def _flip(self, model: BaseWeights) -> None:
        """Flips every weight of the model in place, or none when it is interrupted."""
        editable = model.editable
        try:
            for name in self.changes:
                self._flip_in_place(name, editable[name])
        except BaseException:
            for name in self.changes:
                self._restore(name, editable[name], model.tensor_digests[name])
            raise

    def _flip_in_place(self, name: str, weight: Tensor) -> None:
        change = self.changes[name].to(weight.device)
        with torch.inference_mode(weight.is_inference()), torch.no_grad():  # such tensors change nowhere else
            weight.view(change.dtype).bitwise_xor_(change)

    def _restore(self, name: str, weight: Tensor, digest: str) -> None:
        while True:
            with contextlib.suppress(KeyboardInterrupt):  # whoever stopped it once may be impatient
                if tensor_digest(weight) == digest:
                    return
                self._flip_in_place(name, weight)


def build_edit(
    base: BaseWeights, spec: EditSpec, *, deltas: Mapping[str, Float[Tensor, "_ _"]], diagnostics: Mapping[str, Any]
) -> Edit:
    """Returns the edit that adds `deltas` to the base's weights, rounded to their own type.

    Raises:
        BaseMismatchError: a weight is no longer what it was when the base was read.
        SingularSystemError: a weight would not be finite in that type.
    """
    changes, digests = {}, dict(base.tensor_digests)
    editable = base.editable
    found = tensor_digests({name: editable[name] for name in deltas})
    if changed := [name for name in found if found[name] != digests[name]]:
        raise BaseMismatchError(
            f"expected the model to stay as it was read, found {changed[0]} changed meanwhile; compute the edit again "
            "when nobody changes the model"
        )
    for name, delta in deltas.items():
        held = editable[name].detach()
        edited = (held.double() + delta).to(held.dtype)
        edited = torch.where((delta != 0).any(dim=1, keepdim=True), edited, held)  # -0.0 + 0.0 would lose its sign bit
        if not bool(torch.isfinite(edited.float()).all()):  # float8 has no test of its own
            raise SingularSystemError(f"{name}: not finite in {held.dtype}; raise ridge or lower erasure_strength")
        bits = _SAME_WIDTH[held.element_size()]
        changes[name] = (held.contiguous().view(bits) ^ edited.contiguous().view(bits)).cpu()
        digests[name] = tensor_digest(edited)
    return Edit(spec, changes, combined_digest(digests), diagnostics)


def _seal(content: Mapping[str, Any]) -> str:
    """Returns the SHA-256 over a header without its seal."""
    said = {key: value for key, value in content.items() if key != "seal"}
    return hashlib.sha256(canonical_json(said).encode()).hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
