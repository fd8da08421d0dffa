"""Detectors: what is to be seen in a picture, according to a model that knows nothing of the one judged.

Guarantees:
    1. A concept that a detector has no label for is refused by name; it is never counted as absent.
    2. Probabilities are taken within one head's labels, so a picture's style never competes with its object.
    3. A detector's digest covers its weights, its labels and how it prepares pictures.
"""

from validation.detectors.chosen import Detectors
from validation.detectors.classifier import ClassifierDetector
from validation.detectors.clip import ImageTextDetector, ZeroShotDetector
from validation.detectors.explicit import EXPLICIT, ExplicitContentDetector
from validation.detectors.interface import Detector, find_label

__all__ = [
    "EXPLICIT",
    "ClassifierDetector",
    "Detector",
    "Detectors",
    "ExplicitContentDetector",
    "ImageTextDetector",
    "ZeroShotDetector",
    "find_label",
]
