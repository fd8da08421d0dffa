"""What is known of a checkpoint before any of it is read in full."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scapre.architectures import ARCHITECTURES, Architecture


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint is, read from its configuration and file headers."""

    path: Path
    pipeline_class: str
    """Class of the diffusers pipeline it loads into."""
    architecture: str
    projections: Mapping[str, tuple[int, int]]
    """Shape of each projection that an edit may change."""
    dtype: str
    files: Mapping[str, Path]
    """File that holds each weight that an edit may change: projections, and memories of text encoders."""
    stored_names: Mapping[str, str]
    """Name of each of them in its file."""

    @property
    def adapter(self) -> Architecture:
        """The adapter of its architecture."""
        return ARCHITECTURES[self.architecture]

    @property
    def text_width(self) -> int:
        """d_in of the projections."""
        return next(iter(self.projections.values()))[1]

    @property
    def row_count(self) -> int:
        """Number of output rows of the projections."""
        return sum(shape[0] for shape in self.projections.values())

    @property
    def not_covered(self) -> tuple[str, ...]:
        """Other ways by which text enters the model, which an edit leaves as they are."""
        return self.adapter.not_covered
