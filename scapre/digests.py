"""SHA-256 of tensors: of type, shape and bytes, and over the listing of many."""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from scapre.concepts import canonical_json
from scapre.determinism import MOST_WORKERS, allowed_threads


def tensor_digest(tensor: Tensor) -> str:
    """Returns the SHA-256 of type, shape and bytes of `tensor`."""
    held = tensor.detach().cpu().contiguous()
    header = canonical_json({"dtype": str(held.dtype).removeprefix("torch."), "shape": list(held.shape)})
    content = hashlib.sha256(header.encode())
    content.update(held.reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()


def tensor_digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Returns the digest of each tensor, in the order of names.

    On a CPU several threads work; unlike `determinism.side_by_side` it adds up nothing, so that it waits for nobody
    who does.
    """
    names = sorted(tensors)
    held = [tensors[name] for name in names]
    if not all(tensor.is_cpu for tensor in held):
        return dict(zip(names, map(tensor_digest, held), strict=True))
    with ThreadPoolExecutor(min(allowed_threads(), MOST_WORKERS)) as pool:
        return dict(zip(names, pool.map(tensor_digest, held), strict=True))


def combined_digest(tensor_digests: Mapping[str, str]) -> str:
    """Returns the SHA-256 over the canonical listing of tensor digests."""
    return hashlib.sha256(canonical_json(dict(tensor_digests)).encode()).hexdigest()
