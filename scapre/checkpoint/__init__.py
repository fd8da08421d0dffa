"""Checkpoints on disk: looked at first, read in part, never unpickled."""

from scapre.checkpoint.info import CheckpointInfo
from scapre.checkpoint.reading import base_digest, inspect_checkpoint, read_base, read_inspected
from scapre.checkpoint.single_file import SingleFile

__all__ = ["CheckpointInfo", "SingleFile", "base_digest", "inspect_checkpoint", "read_base", "read_inspected"]
