"""Features kept on disk: the same edit with and without, and nothing is used that does not fit."""

import sqlite3
from collections import Counter
from pathlib import Path

import pytest
import torch
from tiny_pipelines import build
from transformers import ByT5Tokenizer

import scapre
from scapre import Concept
from scapre.architectures.registry import read_pipeline
from scapre.feature_cache import FeatureCache, encoder_digest
from scapre.text import TextStack

TARGETS, NAMES = [Concept("cat"), Concept("bird")], ["dog", "tree"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "features.db"


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every prompt an encoder was given, in the order of the calls."""
    given: list[str] = []
    encode = TextStack.encode

    def watched(stack: TextStack, prompts):
        given.extend(prompts)
        return encode(stack, prompts)

    monkeypatch.setattr(TextStack, "encode", watched)
    return given


def edited(pipeline, cache: Path | None, *, named=NAMES, targets=TARGETS, method: str = "scapre") -> str:
    edit = scapre.unlearn(pipeline, targets, named, method, cache=cache, longest_word=0, vocabulary=60)
    return edit.edited_digest


def digest_of(pipeline) -> str:
    base = read_pipeline(pipeline)
    return encoder_digest(base, base.text)


LARGE = [pytest.param(family, marks=pytest.mark.slow) for family in ("stable-diffusion-3", "flux", "sana")]


@pytest.mark.parametrize("family", ["stable-diffusion-1", "pixart-sigma", *LARGE])
def test_the_edit_is_the_same_without_with_and_with_some_of_the_features(family: str, file: Path) -> None:
    pipeline = build(family)
    plain = edited(pipeline, None)
    edited(pipeline, file, named=["dog"], targets=[Concept("horse")])  # some are there, in other company
    assert edited(pipeline, file) == plain
    assert edited(pipeline, file) == plain


def test_what_was_kept_for_other_slots_is_not_used(pipeline, file: Path) -> None:
    targets = [Concept("bird", anchor=""), Concept("tabby cat", anchor="dog")]

    def edited_with(slots: int, cache: Path | None) -> str:
        edit = scapre.unlearn(pipeline, targets, ["tree"], cache=cache, slots=slots, longest_word=0, vocabulary=60)
        return edit.edited_digest

    plain = [edited_with(slots, None) for slots in (1, 2, 4)]
    assert [edited_with(slots, file) for slots in (1, 2, 4)] == plain
    assert len(set(plain)) == 3  # the control


@pytest.mark.parametrize("family", ["stable-diffusion-2", "stable-diffusion-xl"])
def test_memories_have_features_of_their_own(family: str, file: Path) -> None:
    pipeline = build(family)
    plain = [edited(pipeline, None, method=method) for method in ("scapre", "scapre-encoder")]
    for _ in range(2):
        assert [edited(pipeline, file, method=method) for method in ("scapre", "scapre-encoder")] == plain


def test_sentences_of_found_names_are_read_once(pipeline, encoded: list[str]) -> None:
    for method, ways in (("scapre", 1), ("scapre-encoder", 2)):
        encoded.clear()
        edited(pipeline, None, named=[], method=method)
        times = Counter(encoded)
        assert times["cat"] == ways  # bare names are read in every way
        assert times["a photo of a cat"] == 1
        sentences = [prompt for prompt in times if prompt.startswith("a photo of ") and times[prompt] == 1]
        assert len(sentences) > 5


@pytest.mark.parametrize("method", ["scapre", "scapre-encoder"])
def test_text_is_encoded_once_and_for_all(pipeline, file: Path, encoded: list[str], method: str) -> None:
    edited(pipeline, file, method=method)
    assert len(encoded) > 150
    encoded.clear()
    edited(pipeline, file, method=method)
    assert not encoded
    edited(pipeline, file, method=method, targets=[*TARGETS, Concept("van gogh", anchor="apple")])
    assert any("gogh" in prompt for prompt in encoded)  # the control
    assert not [prompt for prompt in encoded if "tree" in prompt or "cat" in prompt]


@pytest.mark.parametrize(
    "change",
    [
        lambda p: next(p.text_encoder.parameters()).data.mul_(1.5),
        lambda p: setattr(p.text_encoder.config, "hidden_act", "gelu_new"),
        lambda p: setattr(p.tokenizer, "pad_token", "dog</w>"),
        lambda p: p.tokenizer.add_tokens(["zebra"]),
        lambda p: p.to(torch.float32),
        lambda p: p.text_encoder.set_attn_implementation("eager"),
    ],
    ids=["weights", "configuration", "padding token", "vocabulary", "type", "attention"],
)
def test_another_encoder_has_features_of_its_own(make_pipeline, change) -> None:
    pipeline, other = make_pipeline(), make_pipeline()
    assert digest_of(pipeline) == digest_of(other)
    change(other)
    assert digest_of(pipeline) != digest_of(other)


def test_another_kind_of_processor_has_features_of_its_own(
    pipeline, file: Path, encoded: list[str], monkeypatch
) -> None:
    edited(pipeline, file)
    first = len(encoded)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
    edited(pipeline, file)
    assert len(encoded) == 2 * first
    edited(pipeline, file)
    assert len(encoded) == 2 * first  # the control


def test_calls_leave_the_digest_as_it_is(pipeline) -> None:
    before = digest_of(pipeline)
    pipeline.tokenizer("a cat", padding="max_length", max_length=9, truncation=True)
    assert digest_of(pipeline) == before


@pytest.mark.parametrize(
    "change", ["held = spoiled(held)", "held = 'text'", "held = NULL", "runs = NULL", "digest = 1"]
)
def test_damaged_features_are_made_anew(pipeline, file: Path, encoded: list[str], change: str) -> None:
    plain = edited(pipeline, file)
    cold = len(encoded)
    with sqlite3.connect(file) as connection:
        connection.create_function("spoiled", 1, lambda held: held[:-1] + bytes([held[-1] ^ 1]))
        connection.execute(f"UPDATE features SET {change}")
    connection.close()
    assert edited(pipeline, file) == plain
    assert len(encoded) == 2 * cold


@pytest.mark.parametrize("spoil", [lambda f: f.mkdir(), lambda f: f.write_bytes(b"no database" * 999)])
def test_a_cache_that_cannot_be_used_is_a_warning(pipeline, file: Path, spoil) -> None:
    plain = edited(pipeline, None)
    file.parent.mkdir()
    spoil(file)
    with pytest.warns(UserWarning, match=r"features\.db cannot be used .* free space, delete the file"):
        assert edited(pipeline, file) == plain


def test_a_cache_that_cannot_be_used_is_said_once(file: Path) -> None:
    pipeline = build("stable-diffusion-xl")  # features, and two memories
    file.mkdir(parents=True)
    with pytest.warns(UserWarning, match="cannot be used") as told:
        edited(pipeline, file, method="scapre-encoder")
    assert len([one for one in told if "cannot be used" in str(one.message)]) == 1


def test_a_cache_that_fails_on_the_way_is_a_warning(pipeline, file: Path) -> None:
    plain = edited(pipeline, None)
    with sqlite3.connect(file.parent.mkdir() or file) as connection:
        FeatureCache(file).close()
        connection.execute("CREATE TRIGGER full BEFORE INSERT ON features BEGIN SELECT RAISE(ABORT, 'disk full'); END")
    connection.close()
    with pytest.warns(UserWarning, match="disk full"):
        assert edited(pipeline, file) == plain


def test_a_tokenizer_written_in_python_is_cached_as_well(pipeline, file: Path, encoded: list[str]) -> None:
    class Letters(ByT5Tokenizer):
        def build_inputs_with_special_tokens(self, first: list[int], second: list[int] | None = None) -> list[int]:
            return [0, *super().build_inputs_with_special_tokens(first, second)]

    pipeline.tokenizer = Letters(extra_ids=0, model_max_length=pipeline.tokenizer.model_max_length)
    plain = edited(pipeline, file)
    cold = len(encoded)
    assert edited(pipeline, file) == plain
    assert len(encoded) == cold
    digest = digest_of(pipeline)
    pipeline.tokenizer.add_tokens(["zebra"])
    assert digest_of(pipeline) != digest
