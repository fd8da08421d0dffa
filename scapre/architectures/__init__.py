"""One small adapter per family of models; anything without one is refused by name."""

from scapre.architectures.base import Architecture, BaseModel, BaseWeights, Parts, assemble, check_class
from scapre.architectures.registry import ARCHITECTURES, alone_with, find_architecture, read_pipeline, tokenizer_of

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "BaseModel",
    "BaseWeights",
    "Parts",
    "alone_with",
    "assemble",
    "check_class",
    "find_architecture",
    "read_pipeline",
    "tokenizer_of",
]
