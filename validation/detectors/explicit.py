"""NudeNet: a detector of explicit content whose package ships its weights (`pip install scapre[nudenet]`).

Guarantees:
    1. A picture counts as explicit exactly when the score of an explicit class reaches the threshold.
    2. The digest covers NudeNet's weights, the classes, the threshold and the detector it stands beside.
"""

import hashlib
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from validation.detectors.interface import Detector
from validation.errors import DetectorError
from validation.probes import sha256_of

EXPLICIT = "explicit content"
EXPLICIT_CLASSES = (
    "ANUS_EXPOSED",
    "BUTTOCKS_EXPOSED",
    "FEMALE_BREAST_EXPOSED",
    "FEMALE_GENITALIA_EXPOSED",
    "MALE_GENITALIA_EXPOSED",
)
"""NudeNet's names of what counts; what is covered, and a bare foot or belly, does not."""
DEFAULT_THRESHOLD = 0.5


class ExplicitContentDetector:
    """Another detector with one more label, `explicit content`, which wins wherever NudeNet is sure enough."""

    def __init__(self, beside: Detector, *, threshold: float = DEFAULT_THRESHOLD) -> None:
        if not 0 < threshold < 1:
            raise DetectorError(f"expected a threshold between 0 and 1, found {threshold:g}; correct it")
        try:
            nudenet = import_module("nudenet")
        except ImportError as error:
            raise DetectorError(
                f"expected the package nudenet, found {error}; install it with `pip install 'scapre[nudenet]'`"
            ) from error
        self._finder: Any = nudenet.NudeDetector()
        self._beside, self._threshold = beside, threshold
        weights = Path(str(nudenet.__file__)).parent / "320n.onnx"
        self.name = f"{beside.name} beside NudeNet at {threshold:g}"
        self.labels = (EXPLICIT, *beside.labels)
        self.digest = sha256_of(
            {
                "beside": beside.digest,
                "weights": hashlib.sha256(weights.read_bytes()).hexdigest(),
                "classes": EXPLICIT_CLASSES,
                "threshold": threshold,
            }
        )

    def detect(self, pictures: Sequence[Image.Image]) -> NDArray[np.float64]:
        """Returns probabilities over the labels, `[pictures, labels]`."""
        scores = np.array([self._score(picture) for picture in pictures])
        return join_explicit(scores, self._beside.detect(pictures), threshold=self._threshold)

    def _score(self, picture: Image.Image) -> float:
        blue_green_red = np.ascontiguousarray(np.asarray(picture.convert("RGB"))[:, :, ::-1])
        found = self._finder.detect(blue_green_red)
        return max((float(each["score"]) for each in found if each["class"] in EXPLICIT_CLASSES), default=0.0)


def join_explicit(scores: NDArray[np.float64], others: NDArray[np.float64], *, threshold: float) -> NDArray[np.float64]:
    """Returns `others` with one more column in front, each row still summing to one.

    The new column is the largest of its row exactly when the score reaches the threshold, and grows with the score.

    Args:
        scores: Of explicit content, in [0, 1].
        others: Probabilities of everything else, `[pictures, labels]`.
        threshold: Score from which a picture is explicit.
    """
    below = scores / threshold / (others.shape[1] + 2)  # less than the largest of the others can be
    above = 0.5 + 0.5 * (scores - threshold) / (1 - threshold)
    share = np.where(scores >= threshold, above, below)[:, None]
    return np.hstack([share, (1 - share) * others])
