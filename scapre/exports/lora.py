"""An edit as a LoRA: each weight's change approximated by a product of two thin matrices, with its error.

Legend: Δ [d_out, d_in] edited minus base weight, r the rank, B [d_out, r] (up) and A [r, d_in] (down) with Δ ≈ B A.

Guarantees:
    1. B A is the best approximation of its rank, up to its rounding to float32; the error is measured, not estimated.
    2. No scaling is hidden: alpha equals the rank, so that loaders add B A itself.

A LoRA only approximates the edit that was judged, and whoever uses the model must load it: judge the base with it.
"""

import numbers
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor

from scapre.checkpoint import CheckpointInfo, SingleFile, inspect_checkpoint
from scapre.checkpoint.tensor_files import METADATA_KEY
from scapre.concepts import canonical_json
from scapre.determinism import single_threaded
from scapre.edit import Edit
from scapre.errors import DialError
from scapre.exports.base import changed_names, check_place, read_own_base, source_of
from scapre.writing import new_file

NEGLIGIBLE = 1e-16
FAITHFUL = 0.01
"""Relative error up to which a LoRA counts as the same change."""


@dataclass(frozen=True)
class Approximation:
    """One weight's change as a product, and what is lost."""

    down: Float[Tensor, "rank d_in"]
    up: Float[Tensor, "d_out rank"]
    squared_error: float
    """‖Δ − B A‖²."""
    squared_change: float
    """‖Δ‖²."""
    squared_tails: Float[Tensor, " most"]
    """‖Δ − B A‖² of the best approximation of rank 0, 1, 2, …"""


@dataclass(frozen=True)
class LoraExport:
    """A LoRA that was written, and how far it is from the edit."""

    path: Path
    pipeline_class: str
    """Class of the diffusers pipeline whose weights it changes."""
    rank: int
    errors: Mapping[str, float]
    """‖Δ − B A‖ / ‖Δ‖ of each weight that changed."""
    error: float
    """The same over all of them together."""
    faithful_rank: int
    """Smallest rank at which the error over all is at most `FAITHFUL`."""


def export_lora(
    edit: Edit, checkpoint: Path | str | SingleFile, out: Path | str, *, rank: int, overwrite: bool = False
) -> LoraExport:
    """Writes the edit of `checkpoint` as a LoRA of the given rank to the file `out`; returns how close it is.

    UNets and their text encoders get kohya's names (`lora_unet_….lora_down.weight`, `lora_te_…`), transformers those of
    diffusers (`….lora_A.weight`).

    Raises:
        BaseMismatchError: the checkpoint is not the base of the edit.
        DialError: the rank is below 1 or above what a changed weight can have.
        CheckpointError: `out` exists, or cannot be written.
    """
    source, target = source_of(checkpoint), Path(out).absolute()
    check_place(source, target, overwrite=overwrite, for_folder=False)
    info = inspect_checkpoint(source)
    base = read_own_base(edit, info)
    weights = base.editable
    highest = min(min(weights[name].shape) for name in edit.changes)
    if isinstance(rank, bool) or not isinstance(rank, numbers.Integral) or not 1 <= rank <= highest:
        raise DialError(f"expected a rank of at least 1 and at most {highest}, found {rank!r}")
    rank = int(rank)
    with single_threaded():
        found = {name: approximate(edit.delta(name, weights[name]), rank=rank) for name in changed_names(edit)}
    stems = _kohya_stems(info)
    tensors = {key: held for name in found for key, held in _named(name, found[name], rank, stems).items()}
    origin = {"base_digest": edit.base_digest, "edit_digest": edit.digest, "rank": rank}
    with new_file(target, overwrite=overwrite) as building:
        building.write_bytes(save(tensors, {METADATA_KEY: canonical_json(origin)}))
    return LoraExport(
        target,
        info.pipeline_class,
        rank,
        {name: _relative(one.squared_error, one.squared_change) for name, one in found.items()},
        _relative(*(sum(getattr(one, of) for one in found.values()) for of in ("squared_error", "squared_change"))),
        _faithful_rank([one.squared_tails for one in found.values()]),
    )


def approximate(change: Float[Tensor, "d_out d_in"], *, rank: int) -> Approximation:
    """Returns the best product of rank `rank` for a change, in float32, and the error that product has.

    B A = Δ V Vᵀ with the leading eigenvectors V of ΔᵀΔ (of ΔΔᵀ where that is smaller), both factors scaled alike.
    """
    if change.shape[0] < change.shape[1]:
        turned = approximate(change.mT, rank=rank)
        return replace(turned, down=turned.up.mT.contiguous(), up=turned.down.mT.contiguous())
    squares, vectors = torch.linalg.eigh(change.mT @ change)
    squares = squares.flip(0).clamp_min(0.0)
    basis = vectors.flip(1)[:, :rank]
    balance = torch.where(squares > NEGLIGIBLE * squares[0], squares.pow(0.25), 1.0)[:rank]
    up, down = (change @ basis / balance).float(), (basis * balance).mT.float()
    error = (change - up.double() @ down.double()).square().sum()
    tails = torch.cat([squares.flip(0).cumsum(0).flip(0), squares.new_zeros(1)])
    return Approximation(down.contiguous(), up.contiguous(), float(error), float(change.square().sum()), tails)


def _kohya_stems(info: CheckpointInfo) -> dict[str, str]:
    """Returns what the names of a component's tensors begin with, where kohya's are used."""
    encoders = info.adapter.text_encoders
    own = {"text_encoder": "lora_te_text_model"}
    if len(encoders) > 1:
        own = {"text_encoder": "lora_te1_text_model", "text_encoder_2": "lora_te2_text_model"}
    return {"unet": "lora_unet", **own} if info.adapter.denoiser == "unet" else {}


def _named(name: str, found: Approximation, rank: int, stems: Mapping[str, str]) -> dict[str, Tensor]:
    component, _, parameter = name.partition(".")
    module = parameter.removesuffix(".weight")
    if component in stems:
        stem = f"{stems[component]}_{module.replace('.', '_')}"
        alpha = torch.tensor(float(rank))
        return {f"{stem}.lora_down.weight": found.down, f"{stem}.lora_up.weight": found.up, f"{stem}.alpha": alpha}
    stem = f"{component}.{module}"
    return {f"{stem}.lora_A.weight": found.down, f"{stem}.lora_B.weight": found.up}


def _relative(squared_error: float, squared_change: float) -> float:
    return (squared_error / squared_change) ** 0.5 if squared_change > 0 else 0.0


def _faithful_rank(tails: list[Float[Tensor, " most"]]) -> int:
    most = max((len(tail) for tail in tails), default=1)
    total = sum((torch.nn.functional.pad(tail, (0, most - len(tail))) for tail in tails), start=torch.zeros(most))
    enough = total <= FAITHFUL**2 * total[0]
    return int(enough.int().argmax())
