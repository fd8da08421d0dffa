"""Checkpoints on disk: looked at first, read in part, never unpickled."""

from scapre.checkpoint.info import CheckpointInfo
from scapre.checkpoint.reading import base_digest, inspect_checkpoint, read_base

__all__ = ["CheckpointInfo", "base_digest", "inspect_checkpoint", "read_base"]
