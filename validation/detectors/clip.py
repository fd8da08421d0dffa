"""CLIP models: how well a text fits a picture, and which of many names fits it best."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from validation.detectors.interface import Head
from validation.detectors.loading import BATCH, folder_digest, load_model, load_processor
from validation.errors import DetectorError
from validation.probe_packs import load_pack
from validation.probes import Subject, sha256_of


class _Clip:
    """Both towers of a CLIP model read from a folder."""

    def __init__(self, folder: Path, *, device: str) -> None:
        from transformers import AutoTokenizer, CLIPModel

        self._model = load_model(CLIPModel, folder).to(device).eval()
        self._processor = load_processor(folder)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._device = device

    @torch.inference_mode()
    def embed_pictures(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Returns unit vectors, `[pictures, width]`."""
        seen = [self._no_vectors()]
        for start in range(0, len(pictures), BATCH):
            batch = [picture.convert("RGB") for picture in pictures[start : start + BATCH]]
            inputs = self._processor(images=batch, return_tensors="pt").to(self._device)
            seen.append(self._model.get_image_features(**inputs).pooler_output.double())
        return torch.nn.functional.normalize(torch.cat(seen), dim=1)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Returns unit vectors, `[texts, width]`."""
        said = [self._no_vectors()]
        for start in range(0, len(texts), BATCH):
            batch = list(texts[start : start + BATCH])
            tokens = self._tokenizer(batch, padding=True, truncation=True, return_tensors="pt").to(self._device)
            said.append(self._model.get_text_features(**tokens).pooler_output.double())
        return torch.nn.functional.normalize(torch.cat(said), dim=1)

    def _no_vectors(self) -> torch.Tensor:
        return torch.zeros(0, self._model.config.projection_dim, dtype=torch.float64, device=self._device)

    @property
    def sharpness(self) -> float:
        """Factor that the model puts on cosines before its softmax."""
        return float(self._model.logit_scale.detach().exp())


class ImageTextDetector:
    """Says how well a text fits a picture, and where a picture lies among others."""

    def __init__(self, folder: Path, *, device: str = "cpu") -> None:
        self._clip = _Clip(folder, device=device)
        self.name = "image-text"
        self.digest = folder_digest(folder, "")

    def embed(self, pictures: Sequence[Image.Image]) -> NDArray[np.float64]:
        """Returns the pictures' embeddings, `[pictures, width]`, each of unit length."""
        return self._clip.embed_pictures(pictures).cpu().numpy()

    def score(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> NDArray[np.float64]:
        """Returns the cosine between each picture and its own text, in [-1, 1]."""
        if len(pictures) != len(texts):
            raise ValueError(f"expected a text for each of {len(pictures)} pictures, found {len(texts)}; pair them up")
        place = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        said = self._clip.embed_texts(list(place))[[place[text] for text in texts]]
        return (self._clip.embed_pictures(pictures) * said).sum(dim=1).clamp(-1, 1).cpu().numpy()


class ZeroShotDetector:
    """A CLIP model that knows any names it is given.

    A label's vector is the mean over the prompts that the judge itself asks for the label by its own name. What is in
    a picture and in no label is taken for the nearest label, so name what else a picture may show.
    """

    def __init__(self, folder: Path, labels: Sequence[str], head: Head = "object", *, device: str = "cpu") -> None:
        if len({label.casefold() for label in labels}) != len(labels) or len(labels) < 2:
            raise DetectorError(
                f"expected at least two different names for a zero-shot detector to choose from, found {list(labels)}; "
                "name what else a picture may show"
            )
        self._clip = _Clip(folder, device=device)
        pack = load_pack("style" if head == "style" else "direct")
        prompts = {label: pack.prompts(Subject(label, head)) for label in labels}
        means = [self._clip.embed_texts(texts).mean(dim=0) for texts in prompts.values()]
        self._said = torch.nn.functional.normalize(torch.stack(means), dim=1)
        self.name = f"zero-shot ({head})"
        self.head = head
        self.labels = tuple(labels)
        self.digest = folder_digest(folder, sha256_of(list(prompts.items())))

    def detect(self, pictures: Sequence[Image.Image]) -> NDArray[np.float64]:
        """Returns probabilities over the names, `[pictures, labels]`."""
        cosines = self._clip.embed_pictures(pictures) @ self._said.mT
        return torch.softmax(self._clip.sharpness * cosines, dim=1).cpu().numpy()
