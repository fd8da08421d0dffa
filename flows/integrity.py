"""Whether a candidate is its base with one edit, and nothing else: every tensor and every file is compared."""

from pathlib import Path

import torch
from safetensors import safe_open

import scapre
from infra.manifests import Manifest
from scapre.text import plain_name
from validation import Integrity


def check_integrity(base: Path, candidate: Path, edit: scapre.Edit) -> Integrity:
    """Compares a merged candidate with its base.

    Passes when the same files are there, every tensor outside the edit is bit-identical, every edited tensor is the
    base's tensor with the edit applied, and no other file differs by a byte.
    """
    before, after = (
        {entry.path: entry.sha256 for entry in Manifest.of_directory(folder).entries} for folder in (base, candidate)
    )
    if before.keys() != after.keys():
        return Integrity(False, f"files were added or removed: {', '.join(sorted(before.keys() ^ after.keys()))}")
    changed = sorted(path for path in before if before[path] != after[path])
    strangers: list[str] = []
    unedited = {name for name, change in edit.changes.items() if bool(change.any())}
    for path in changed:
        component = path.split("/", maxsplit=1)[0]
        if not path.endswith(".safetensors"):
            strangers.append(path)
            continue
        for name, original, found in _tensor_pairs(base / path, candidate / path):
            full_name = f"{component}.{plain_name(name)}"
            expected = edit.flip(full_name, original) if full_name in edit.changes else original
            unedited.discard(full_name)
            if not _are_bits_equal(expected, found):
                strangers.append(f"{path}: {name}")
    if strangers or unedited:
        faults = ", ".join([*strangers, *sorted(unedited)])
        return Integrity(False, f"not what base and edit give: {faults}; build the candidate anew")
    count = len(edit.changes)
    return Integrity(True, f"{count} weights are the base's with the edit on; every other byte is the base's")


def _tensor_pairs(base: Path, candidate: Path) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    with safe_open(base, framework="pt") as before, safe_open(candidate, framework="pt") as after:
        names = sorted({*before.keys(), *after.keys()})
        missing = torch.empty(0)
        return [
            (
                name,
                before.get_tensor(name) if name in before.keys() else missing,  # noqa: SIM118  safe_open has no `in`
                after.get_tensor(name) if name in after.keys() else missing,  # noqa: SIM118
            )
            for name in names
        ]


def _are_bits_equal(first: torch.Tensor, second: torch.Tensor) -> bool:
    return (
        first.dtype == second.dtype
        and first.shape == second.shape
        and torch.equal(first.contiguous().view(torch.uint8), second.contiguous().view(torch.uint8))
    )
