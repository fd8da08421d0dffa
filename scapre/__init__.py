"""ScaPre: closed-form unlearning of concepts in text-to-image models. Weights and concepts in, a frozen edit out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from scapre.concepts import Concept, EditSpec
from scapre.errors import (
    BaseMismatchError,
    CheckpointError,
    DialError,
    InvalidConceptError,
    ScaPreError,
    SingularSystemError,
    UnlearningWarning,
    UnsupportedArchitectureError,
)

if TYPE_CHECKING:
    from scapre.checkpoint import CheckpointInfo, SingleFile, base_digest, inspect_checkpoint
    from scapre.diagnosis import Preflight
    from scapre.edit import Edit
    from scapre.exports import (
        LoraExport,
        check_mergeable,
        export_lora,
        export_single_file,
        merge,
        merging,
        rewriting,
    )
    from scapre.unlearning import describe_dials, preflight, unlearn

__all__ = [
    "BaseMismatchError",
    "CheckpointError",
    "CheckpointInfo",
    "Concept",
    "DialError",
    "Edit",
    "EditSpec",
    "InvalidConceptError",
    "LoraExport",
    "Preflight",
    "ScaPreError",
    "SingleFile",
    "SingularSystemError",
    "UnlearningWarning",
    "UnsupportedArchitectureError",
    "base_digest",
    "check_mergeable",
    "describe_dials",
    "export_lora",
    "export_single_file",
    "inspect_checkpoint",
    "merge",
    "merging",
    "preflight",
    "rewriting",
    "unlearn",
]

# torch and transformers take seconds to import; whoever only names concepts need not wait for them
_LAZY = {
    "CheckpointInfo": "scapre.checkpoint",
    "SingleFile": "scapre.checkpoint",
    "base_digest": "scapre.checkpoint",
    "inspect_checkpoint": "scapre.checkpoint",
    "LoraExport": "scapre.exports",
    "check_mergeable": "scapre.exports",
    "export_lora": "scapre.exports",
    "export_single_file": "scapre.exports",
    "merge": "scapre.exports",
    "merging": "scapre.exports",
    "rewriting": "scapre.exports",
    "Edit": "scapre.edit",
    "describe_dials": "scapre.unlearning",
    "Preflight": "scapre.diagnosis",
    "preflight": "scapre.unlearning",
    "unlearn": "scapre.unlearning",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'scapre' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
