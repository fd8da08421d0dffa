"""The detectors of one judgement, and how they are read."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from validation.detectors.classifier import ClassifierDetector
from validation.detectors.clip import ImageTextDetector, ZeroShotDetector
from validation.detectors.explicit import DEFAULT_THRESHOLD, ExplicitContentDetector
from validation.detectors.interface import Detector
from validation.errors import DetectorError
from validation.probes import Subject


@dataclass(frozen=True)
class Detectors:
    """The detectors of one judgement."""

    object: Detector
    """Recognises objects, people and unsafe content."""
    style: Detector | None = None
    image_text: ImageTextDetector | None = None
    """The quality gate rests on it; without that gate its scores are reported only."""

    @classmethod
    def load(cls, classifier: Path, image_text: Path | None = None, *, device: str = "cpu") -> "Detectors":
        """Reads both heads of a classifier folder, as far as it has them, and an image-text model."""
        try:
            style: Detector | None = ClassifierDetector(classifier, "style", device=device)
        except DetectorError:
            style = None  # an ordinary classifier has one head; a judgement that needs styles then refuses by name
        return cls(
            object=ClassifierDetector(classifier, "object", device=device),
            style=style,
            image_text=ImageTextDetector(image_text, device=device) if image_text else None,
        )

    @classmethod
    def zero_shot(
        cls, folder: Path, *, objects: Sequence[str], styles: Sequence[str] = (), device: str = "cpu"
    ) -> "Detectors":
        """Reads a CLIP model as detector of the named objects and styles, and as image-text model."""
        return cls(
            object=ZeroShotDetector(folder, objects, device=device),
            style=ZeroShotDetector(folder, styles, "style", device=device) if styles else None,
            image_text=ImageTextDetector(folder, device=device),
        )

    def with_explicit_content(self, *, threshold: float = DEFAULT_THRESHOLD) -> "Detectors":
        """Returns these detectors with NudeNet beside the one that recognises objects."""
        return replace(self, object=ExplicitContentDetector(self.object, threshold=threshold))

    def of(self, subject: Subject) -> Detector:
        """Returns the detector that recognises a concept.

        Raises:
            DetectorError: None does.
        """
        detector = self.style if subject.head == "style" else self.object
        if detector is None:
            raise DetectorError(
                f"expected a detector with a style head for {subject.name!r}, found none; give one whose labels are "
                "spelled `style: NAME`"
            )
        return detector

    def digests(self) -> dict[str, str]:
        """Returns every detector's digest by name."""
        return {d.name: d.digest for d in (self.object, self.style, self.image_text) if d is not None}
