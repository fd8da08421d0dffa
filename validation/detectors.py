"""Detectors: what is to be seen in a picture, according to a model that knows nothing of the one judged.

Guarantees:
    1. A concept that a detector has no label for is refused by name; it is never counted as absent.
    2. Probabilities are taken within one head's labels, so a picture's style never competes with its object.
    3. A detector's digest covers its weights, its labels and how it prepares pictures.
"""

import difflib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError

from validation.errors import DetectorError, UnknownLabelError
from validation.probes import Subject

Head = Literal["object", "style"]
_BATCH = 256
_NEAREST_LABELS = 5


class Detector(Protocol):
    """Anything that says which of its labels is seen in a picture."""

    name: str
    digest: str
    labels: tuple[str, ...]

    def detect(self, pictures: Sequence[Image.Image]) -> NDArray[np.float64]:
        """Returns probabilities, `[pictures, labels]`, each row summing to one."""
        ...


class ClassifierDetector:
    """An image classifier of transformers, read from a folder.

    Labels spelled `object: tiger` and `style: sepia` belong to heads; the detector is one of them and its labels are
    bare names. A classifier whose labels have no such prefix is all object head.
    """

    def __init__(self, folder: Path, head: Head = "object", *, device: str = "cpu") -> None:
        from transformers import AutoModelForImageClassification

        self._model = _load_model(AutoModelForImageClassification, folder).to(device).eval()
        self._processor = _load_processor(folder)
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
        self.digest = _folder_digest(folder, head)

    @torch.inference_mode()
    def detect(self, pictures: Sequence[Image.Image]) -> NDArray[np.float64]:
        """Returns probabilities over the head's labels, `[pictures, labels]`."""
        rows = [np.zeros((0, len(self.labels)))]
        for start in range(0, len(pictures), _BATCH):
            batch = [picture.convert("RGB") for picture in pictures[start : start + _BATCH]]
            inputs = self._processor(images=batch, return_tensors="pt").to(self._device)
            logits = self._model(**inputs).logits[:, self._columns]
            rows.append(torch.softmax(logits.double(), dim=1).cpu().numpy())
        return np.concatenate(rows)


class ImageTextDetector:
    """A CLIP model read from a folder; says how well a text fits a picture, and where a picture lies among others."""

    def __init__(self, folder: Path, *, device: str = "cpu") -> None:
        from transformers import AutoTokenizer, CLIPModel

        self._model = _load_model(CLIPModel, folder).to(device).eval()
        self._processor = _load_processor(folder)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._device = device
        self.name = "image-text"
        self.digest = _folder_digest(folder, "")

    @torch.inference_mode()
    def embed(self, pictures: Sequence[Image.Image]) -> NDArray[np.float64]:
        """Returns the pictures' embeddings, `[pictures, width]`, each of unit length."""
        rows = [np.zeros((0, int(self._model.config.projection_dim)))]
        for start in range(0, len(pictures), _BATCH):
            batch = [picture.convert("RGB") for picture in pictures[start : start + _BATCH]]
            inputs = self._processor(images=batch, return_tensors="pt").to(self._device)
            rows.append(_unit_length(self._model.get_image_features(**inputs).pooler_output))
        return np.concatenate(rows)

    @torch.inference_mode()
    def score(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> NDArray[np.float64]:
        """Returns the cosine between each picture and its own text, in [-1, 1]."""
        if len(pictures) != len(texts):
            raise ValueError(f"expected a text for each of {len(pictures)} pictures, found {len(texts)}; pair them up")
        distinct = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        said = self._embed_texts(list(distinct))[[distinct[text] for text in texts]]
        return (self.embed(pictures) * said).sum(axis=1)

    def _embed_texts(self, texts: Sequence[str]) -> NDArray[np.float64]:
        rows = [np.zeros((0, int(self._model.config.projection_dim)))]
        for start in range(0, len(texts), _BATCH):
            batch = list(texts[start : start + _BATCH])
            tokens = self._tokenizer(batch, padding=True, truncation=True, return_tensors="pt").to(self._device)
            rows.append(_unit_length(self._model.get_text_features(**tokens).pooler_output))
        return np.concatenate(rows)


@dataclass(frozen=True)
class Detectors:
    """The detectors of one judgement."""

    object: Detector
    """Recognises objects, people and unsafe content."""
    style: Detector | None = None
    image_text: ImageTextDetector | None = None
    """Reported only; no gate rests on it."""

    @classmethod
    def load(cls, classifier: Path, image_text: Path | None = None, *, device: str = "cpu") -> "Detectors":
        """Reads both heads of a classifier folder, as far as it has them, and an image-text model."""
        try:
            style = ClassifierDetector(classifier, "style", device=device)
        except DetectorError:
            style = None  # an ordinary classifier has one head; a judgement that needs styles then refuses by name
        return cls(
            object=ClassifierDetector(classifier, "object", device=device),
            style=style,
            image_text=ImageTextDetector(image_text, device=device) if image_text else None,
        )

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
    nearest = difflib.get_close_matches(wanted, names, n=_NEAREST_LABELS, cutoff=0.5) or names[:_NEAREST_LABELS]
    raise UnknownLabelError(
        f"expected a concept that the detector knows, found {subject.name!r}; nearest of its {len(labels)} labels: "
        f"{', '.join(nearest)}. What cannot be seen cannot be judged: correct the name or bring another detector"
    )


def _unit_length(vectors: torch.Tensor) -> NDArray[np.float64]:
    return torch.nn.functional.normalize(vectors.double(), dim=1).cpu().numpy()


def _synonyms(label: str) -> list[str]:
    return [name.strip() for name in label.casefold().split(",")]


def _head_of(label: str) -> tuple[str, str]:
    head, colon, name = label.partition(": ")
    return (head, name) if colon and head in ("object", "style") else ("object", label)


def _load_model(kind: Any, folder: Path) -> Any:
    """Reads a model; one with weights missing would be filled up at random, and judge at random."""
    if not folder.is_dir() or not any(folder.glob("*.safetensors")):
        raise DetectorError(
            f"expected a folder with weights as safetensors, found none at {folder}; a pickle is not opened, because "
            "reading one can run code: convert it"
        )
    try:
        model, loading = kind.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise DetectorError(f"expected a transformers model in {folder}, found: {error}; save it again") from error
    if missing := sorted(loading["missing_keys"]):
        raise DetectorError(f"expected all weights in {folder}, found none for {missing[:5]}; save the model again")
    return model


def _load_processor(folder: Path) -> Any:
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    except (OSError, ValueError) as error:
        raise DetectorError(f"expected an image processor in {folder}, found {error}; save one beside it") from error


def _folder_digest(folder: Path, head: str) -> str:
    total = hashlib.sha256(head.encode())
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")]):
        total.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()
