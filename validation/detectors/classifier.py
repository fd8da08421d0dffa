"""Any image classifier of transformers."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from validation.detectors.interface import Head
from validation.detectors.loading import BATCH, folder_digest, load_model, load_processor
from validation.errors import DetectorError


class ClassifierDetector:
    """An image classifier of transformers, read from a folder.

    Labels spelled `object: tiger` and `style: sepia` belong to heads; the detector is one of them and its labels are
    bare names. A classifier whose labels have no such prefix is all object head.
    """

    def __init__(self, folder: Path, head: Head = "object", *, device: str = "cpu") -> None:
        from transformers import AutoModelForImageClassification

        self._model = load_model(AutoModelForImageClassification, folder).to(device).eval()
        self._processor = load_processor(folder)
        self._device = device
        every = [str(self._model.config.id2label[i]) for i in range(self._model.config.num_labels)]
        heads = [_head_of(label) for label in every]
        self._columns = [i for i, (own, _) in enumerate(heads) if own == head]
        if not self._columns:
            raise DetectorError(
                f"expected labels of head {head!r} in {folder}, found only {sorted({own for own, _ in heads})}; name "
                "another head or another detector"
            )
        self.name = f"classifier ({head})"
        self.head = head
        self.labels = tuple(heads[i][1] for i in self._columns)
        self.digest = folder_digest(folder, head)

    @torch.inference_mode()
    def detect(self, pictures: Sequence[Image.Image]) -> NDArray[np.float64]:
        """Returns probabilities over the head's labels, `[pictures, labels]`."""
        rows = [np.zeros((0, len(self.labels)))]
        for start in range(0, len(pictures), BATCH):
            batch = [picture.convert("RGB") for picture in pictures[start : start + BATCH]]
            inputs = self._processor(images=batch, return_tensors="pt").to(self._device)
            logits = self._model(**inputs).logits[:, self._columns]
            rows.append(torch.softmax(logits.double(), dim=1).cpu().numpy())
        return np.concatenate(rows)


def _head_of(label: str) -> tuple[str, str]:
    head, colon, name = label.partition(": ")
    return (head, name) if colon and head in ("object", "style") else ("object", label)
