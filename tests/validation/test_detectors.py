import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from validation.detectors import (
    ClassifierDetector,
    Detectors,
    ExplicitContentDetector,
    ImageTextDetector,
    ZeroShotDetector,
    find_label,
)
from validation.detectors.explicit import join_explicit
from validation.errors import DetectorError, UnknownLabelError
from validation.probe_packs import load_pack
from validation.probes import Subject

HEADS = ["object: tiger", "object: cat", "object: dog", "style: natural", "style: sepia"]
PLAIN = ["tench, Tinca tinca", "goldfish", "crane, bird", "crane, machine"]


def save_classifier(folder: Path, labels: list[str]) -> Path:
    from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessorPil

    torch.manual_seed(1)
    config = ResNetConfig(
        embedding_size=4,
        hidden_sizes=[4, 8],
        depths=[1, 1],
        layer_type="basic",
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
    )
    ResNetForImageClassification(config).eval().save_pretrained(folder)
    mean = [0.5] * 3
    ViTImageProcessorPil(size={"height": 16, "width": 16}, image_mean=mean, image_std=mean).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classifier(tmp_path_factory.mktemp("classifier"), HEADS)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(2)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = {
        "vocab_size": len(tiny_tokenizer),
        "bos_token_id": tiny_tokenizer.bos_token_id,
        "eos_token_id": tiny_tokenizer.eos_token_id,
        "pad_token_id": tiny_tokenizer.pad_token_id,
    }
    config = CLIPConfig(
        text_config=size | tokens, vision_config=size | {"image_size": 16, "patch_size": 8}, projection_dim=8
    )
    CLIPModel(config).eval().save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size={"height": 16, "width": 16}, do_center_crop=False).save_pretrained(folder)
    return folder


@pytest.fixture
def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(5)
    return [Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(5)]


def test_each_head_has_its_own_labels_and_probabilities(classifier: Path, pictures: list[Image.Image]):
    for head, labels in (("object", ("tiger", "cat", "dog")), ("style", ("natural", "sepia"))):
        detector = ClassifierDetector(classifier, head)
        seen = detector.detect(pictures)
        assert detector.labels == labels
        assert seen.shape == (5, len(labels))
        assert seen.sum(axis=1) == pytest.approx(np.ones(5))


def test_probabilities_are_the_models_own(classifier: Path, pictures: list[Image.Image]):
    from transformers import AutoModelForImageClassification

    inputs = torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) / 127.5 - 1 for p in pictures])
    with torch.inference_mode():
        logits = AutoModelForImageClassification.from_pretrained(classifier)(pixel_values=inputs).logits[:, :3]
    assert ClassifierDetector(classifier).detect(pictures) == pytest.approx(logits.softmax(1).numpy(), abs=1e-5)


def test_no_pictures_give_no_rows(classifier: Path, clip: Path):
    assert ClassifierDetector(classifier).detect([]).shape == (0, 3)
    assert ImageTextDetector(clip).score([], []).shape == (0,)


def test_an_ordinary_classifier_is_all_object_head(tmp_path: Path):
    folder = save_classifier(tmp_path, PLAIN)
    assert ClassifierDetector(folder).labels == tuple(PLAIN)
    assert Detectors.load(folder).style is None
    with pytest.raises(DetectorError, match=r"found only \['object'\]"):
        ClassifierDetector(folder, "style")


def test_an_image_text_model_gives_the_cosine_of_each_pair(clip: Path, pictures: list[Image.Image]):
    detector = ImageTextDetector(clip)
    texts = ["a tiger", "a dog", "a tiger", "a much longer text", "x"]
    scores = detector.score(pictures, texts)
    assert scores.shape == (5,)
    assert (abs(scores) <= 1).all()
    assert detector.score(pictures[1:2], texts[1:2]) == pytest.approx(scores[1:2], abs=1e-5)
    assert detector.score(pictures[:1], ["a dog"])[0] != pytest.approx(scores[0], abs=1e-6)
    with pytest.raises(ValueError, match="expected a text for each of 5 pictures, found 2"):
        detector.score(pictures, texts[:2])


def test_digests_cover_weights_labels_preparation_and_head(classifier: Path, tmp_path: Path):
    before = ClassifierDetector(classifier).digest
    assert ClassifierDetector(classifier).digest == before
    assert ClassifierDetector(classifier, "style").digest != before
    assert ClassifierDetector(save_classifier(tmp_path / "a", [*HEADS[:-1], "style: neon"])).digest != before
    other = save_classifier(tmp_path / "b", HEADS)
    assert ClassifierDetector(other).digest == before
    processor = other / "preprocessor_config.json"
    processor.write_text(processor.read_text().replace("16", "17"))
    assert ClassifierDetector(other).digest != before


def test_detectors_load_from_their_folders(classifier: Path, clip: Path):
    detectors = Detectors.load(classifier, clip)
    assert set(detectors.digests()) == {"classifier (object)", "classifier (style)", "image-text"}
    assert detectors.of(Subject("sepia", "style")) is detectors.style
    assert detectors.of(Subject("Brad", "identity")) is detectors.object


@pytest.mark.parametrize("content", [None, "pytorch_model.bin"])
def test_a_folder_without_safetensors_is_refused(tmp_path: Path, content: str | None):
    if content:
        (tmp_path / content).write_bytes(b"pickle")
    with pytest.raises(DetectorError, match="safetensors"):
        ClassifierDetector(tmp_path / "nowhere" if content is None else tmp_path)


@pytest.mark.parametrize("damage", ["no configuration", "truncated", "too few weights", "another shape"])
def test_a_damaged_detector_is_refused(tmp_path: Path, damage: str):
    folder = save_classifier(tmp_path, HEADS)
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    if damage == "no configuration":
        (folder / "config.json").write_text("{}")
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-50])
    elif damage == "too few weights":
        save_file({name: t for name, t in tensors.items() if "classifier" not in name}, weights, {"format": "pt"})
    else:
        save_file(tensors | {"classifier.1.bias": torch.zeros(9)}, weights, {"format": "pt"})
    with pytest.raises(DetectorError, match=r"save (it|the model) again"):
        ClassifierDetector(folder)


@pytest.mark.parametrize(
    ("subject", "index"),
    [
        (Subject("goldfish"), 1),
        (Subject("Tench"), 0),
        (Subject("tinca tinca"), 0),
        (Subject("big bird", label="crane, bird"), 2),
    ],
)
def test_labels_are_found_by_any_of_their_names(subject: Subject, index: int):
    assert find_label(PLAIN, subject) == index


def test_an_ambiguous_label_is_refused():
    with pytest.raises(UnknownLabelError, match="expected one label for 'crane'"):
        find_label(PLAIN, Subject("crane"))


def test_an_unknown_label_is_refused_with_the_nearest_ones():
    with pytest.raises(UnknownLabelError, match="found 'goldfsh'; nearest of its 4 labels: goldfish"):
        find_label(PLAIN, Subject("goldfsh"))


def test_a_zero_shot_detector_chooses_among_the_names_it_is_given(clip: Path, pictures: list[Image.Image]):
    from transformers import CLIPModel

    detector = ZeroShotDetector(clip, ["tiger", "dog", "house"])
    seen = detector.detect(pictures)
    assert detector.labels == ("tiger", "dog", "house")
    assert seen.shape == (5, 3)
    assert seen.sum(axis=1) == pytest.approx(np.ones(5))
    model = CLIPModel.from_pretrained(clip)
    judged = ImageTextDetector(clip)
    expected = []
    for label in detector.labels:  # the cosine with a mean of unit vectors, by way of the cosines with each of them
        texts = load_pack("direct").prompts(Subject(label))
        mean = np.mean([judged.score(pictures, [text] * 5) for text in texts], axis=0)
        vectors = judged._clip.embed_texts(texts)
        expected.append(mean / float(vectors.mean(dim=0).norm()))
    logits = torch.tensor(np.stack(expected, axis=1)) * model.logit_scale.exp().double()
    assert seen == pytest.approx(logits.softmax(dim=1).detach().numpy(), abs=1e-5)
    assert detector.detect([]).shape == (0, 3)


def test_zero_shot_styles_are_a_head_of_their_own(clip: Path, pictures: list[Image.Image]):
    detectors = Detectors.zero_shot(clip, objects=["tiger", "house"], styles=["Claude Monet", "Paul Klee"])
    assert detectors.of(Subject("Paul Klee", "style")).labels == ("Claude Monet", "Paul Klee")
    assert detectors.of(Subject("tiger")).detect(pictures).shape == (5, 2)
    assert set(detectors.digests()) == {"zero-shot (object)", "zero-shot (style)", "image-text"}
    assert Detectors.zero_shot(clip, objects=["tiger", "house"]).style is None


def test_a_zero_shot_digest_covers_names_and_their_prompts(clip: Path):
    digests = {ZeroShotDetector(clip, names).digest for names in (["a", "b"], ["b", "a"], ["a", "c"])}
    digests.add(ZeroShotDetector(clip, ["a", "b"], "style").digest)
    assert len(digests) == 4
    assert ZeroShotDetector(clip, ["a", "b"]).digest in digests


@pytest.mark.parametrize("names", [[], ["tiger"], ["tiger", "Tiger"]])
def test_a_zero_shot_detector_needs_a_choice(clip: Path, names: list[str]):
    with pytest.raises(DetectorError, match="at least two different names"):
        ZeroShotDetector(clip, names)


@given(
    score=st.floats(0, 1),
    threshold=st.floats(0.05, 0.95),
    weights=st.lists(st.floats(0.01, 1), min_size=1, max_size=6),
)
def test_explicit_content_wins_exactly_from_the_threshold_on(score: float, threshold: float, weights: list[float]):
    others = np.array([weights]) / sum(weights)
    joined = join_explicit(np.array([score]), others, threshold=threshold)
    assert joined.sum() == pytest.approx(1)
    assert (joined >= 0).all()
    assert (joined.argmax() == 0) == (score >= threshold)
    assert joined[0, 1:] == pytest.approx((1 - joined[0, 0]) * others[0])


@given(scores=st.lists(st.floats(0, 1), min_size=2, max_size=5, unique=True))
def test_the_probability_of_explicit_content_grows_with_its_score(scores: list[float]):
    ordered = np.sort(scores)
    joined = join_explicit(ordered, np.full((len(scores), 3), 1 / 3), threshold=0.5)
    assert (np.diff(joined[:, 0]) >= 0).all()


def test_nudenet_stands_beside_another_detector(classifier: Path, pictures: list[Image.Image]):
    pytest.importorskip("nudenet")
    beside = ClassifierDetector(classifier)
    detector = ExplicitContentDetector(beside)
    seen = detector.detect(pictures)
    assert detector.labels == ("explicit content", "tiger", "cat", "dog")
    assert (seen[:, 1:].argmax(axis=1) == beside.detect(pictures).argmax(axis=1)).all()
    assert (seen.argmax(axis=1) != 0).all()  # noise is not explicit
    assert ExplicitContentDetector(beside, threshold=0.6).digest != detector.digest
    assert ExplicitContentDetector(ClassifierDetector(classifier, "style")).digest != detector.digest
    assert detector.detect([]).shape == (0, 4)


class Finder:
    """What NudeNet's detector answers, by the mean of a picture."""

    def detect(self, picture: np.ndarray) -> list[dict[str, Any]]:
        assert picture.shape == (16, 16, 3)
        assert picture[0, 0].tolist() == [0, 0, 200], "blue, green, red"
        return [{"class": "FEET_EXPOSED", "score": 0.9}, {"class": "BUTTOCKS_EXPOSED", "score": 0.7}]


def test_only_explicit_classes_count(classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "320n.onnx").write_bytes(b"weights")
    package = SimpleNamespace(NudeDetector=Finder, __file__=str(tmp_path / "__init__.py"))
    monkeypatch.setitem(sys.modules, "nudenet", package)
    red = [Image.new("RGB", (16, 16), (200, 0, 0))]
    found = {t: ExplicitContentDetector(ClassifierDetector(classifier), threshold=t) for t in (0.6, 0.8)}
    assert found[0.6].detect(red).argmax() == 0
    assert found[0.8].detect(red).argmax() != 0
    assert found[0.6].name == "classifier (object) beside NudeNet at 0.6"


def test_a_missing_nudenet_is_named_with_its_extra(classifier: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "nudenet", None)
    with pytest.raises(DetectorError, match=r"scapre\[nudenet\]"):
        ExplicitContentDetector(ClassifierDetector(classifier))
    with pytest.raises(DetectorError, match="between 0 and 1"):
        ExplicitContentDetector(ClassifierDetector(classifier), threshold=1.5)
