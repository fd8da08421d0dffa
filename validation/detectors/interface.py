"""What a detector is, and how its label for a concept is found."""

import difflib
from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from validation.errors import UnknownLabelError
from validation.probes import Subject

Head = Literal["object", "style"]
_NEAREST_LABELS = 5


class Detector(Protocol):
    """Anything that says which of its labels is seen in a picture."""

    name: str
    digest: str
    labels: tuple[str, ...]

    def detect(self, pictures: Sequence[Image.Image]) -> NDArray[np.float64]:
        """Returns probabilities, `[pictures, labels]`, each row summing to one."""
        ...


def find_label(labels: Sequence[str], subject: Subject) -> int:
    """Returns the index of the label that means a concept: the label itself, or one of its comma-separated names.

    Raises:
        UnknownLabelError: No label does, or several do.
    """
    wanted = (subject.label or subject.name).strip().casefold()
    exact = [i for i, label in enumerate(labels) if label.strip().casefold() == wanted]
    found = exact or [i for i, label in enumerate(labels) if wanted in _synonyms(label)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UnknownLabelError(
            f"expected one label for {subject.name!r}, found {[labels[i] for i in found]}; name one in full"
        )
    names = sorted({name for label in labels for name in (label.casefold(), *_synonyms(label))})
    nearest = difflib.get_close_matches(wanted, names, n=_NEAREST_LABELS, cutoff=0.5)
    shown, which = ", ".join(nearest or names[:_NEAREST_LABELS]), "nearest" if nearest else "some"
    raise UnknownLabelError(
        f"expected a concept that the detector knows, found {subject.name!r}; {which} of its "
        f"{len(labels)} labels: {shown}. What cannot be seen cannot be judged: correct the name or bring another "
        "detector"
    )


def _synonyms(label: str) -> list[str]:
    return [name.strip() for name in label.casefold().split(",")]
