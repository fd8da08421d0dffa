"""Prompts, slots, alignment and what is gathered from them."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils import prune
from transformers import ByT5Tokenizer

from scapre import CheckpointError, Concept
from scapre.embeddings import (
    BATCH_PROMPTS,
    EMPTY_PROMPT,
    TEMPLATES,
    PromptEncoder,
    concept_prompts,
    fill,
    spread_templates,
    templates_of,
)
from scapre.moments import Reading, Retained, encode_sentences, gather_statistics, read_text
from scapre.neighbours import Near, choose_anchor
from scapre.slots import EncodedPrompt, Run, aligned_slot
from scapre.text import TextStack
from scapre.vocabulary import everyday_names

READING = Reading(anchor="", padding_slots=3, vocabulary=0, synonym_cosine=0.95)
CPU = torch.device("cpu")


@pytest.fixture
def encoder(pipeline) -> PromptEncoder:
    return PromptEncoder(TextStack(pipeline.tokenizer, pipeline.text_encoder))


def gather(encoder: PromptEncoder, concepts, named=(), proposable=(), reading=READING):
    passage = read_text(encoder, concepts, named=named, proposable=proposable, reading=reading)
    encode_sentences(encoder, passage, padding_slots=reading.padding_slots)
    return gather_statistics(encoder, passage, padding_slots=reading.padding_slots, device=CPU)


@pytest.mark.parametrize(
    ("template", "name", "text"),
    [
        ("a photo of {a}", "cat", "a photo of a cat"),
        ("a photo of {a}", "apple", "a photo of an apple"),
        ("a photo of {a}", "the sea", "a photo of the sea"),
        ("a picture in {} style", "monet", "a picture in monet style"),
        ("{}", "curly {braces}", "curly {braces}"),
    ],
)
def test_names_are_put_into_sentences(template: str, name: str, text: str) -> None:
    assert fill(template, name).text == text


def test_every_kind_has_sentences_and_every_alias_is_in_them() -> None:
    for kind in TEMPLATES:
        pairs = concept_prompts(Concept("cat", kind, ("kitten",)))
        assert {name for _, name in pairs} == {"cat", "kitten"}
        assert len(pairs) == 2 * len(TEMPLATES[kind])


def test_features_are_those_of_the_pipeline(pipeline, encoder) -> None:
    encoder.encode(["a photo of a cat", EMPTY_PROMPT])
    expected, _ = pipeline.encode_prompt("a photo of a cat", "cpu", 1, False)
    torch.testing.assert_close(encoder["a photo of a cat"].features, expected[0], rtol=0, atol=1e-12)
    assert encoder["a photo of a cat"].end == 6
    assert encoder[EMPTY_PROMPT].end == 1


def test_each_prompt_is_encoded_once(pipeline, encoder) -> None:
    seen = []
    handle = pipeline.text_encoder.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    encoder.encode(["cat", "dog", "cat"])
    encoder.encode(["dog", "apple"])
    handle.remove()
    assert sum(seen) == 3


def test_batches_side_by_side_give_the_bytes_of_one_after_another(pipeline) -> None:
    text = TextStack(pipeline.tokenizer, pipeline.text_encoder)
    prompts = [fill(template, name).text for name in everyday_names()[:60] for template in TEMPLATES["object"]]
    assert len(set(prompts)) > 10 * BATCH_PROMPTS
    original, encoders = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        encoders.append(PromptEncoder(text))
        encoders[-1].encode(prompts)
        assert torch.get_num_threads() == threads
    torch.set_num_threads(original)
    assert all(torch.equal(encoders[0][prompt].features, encoders[1][prompt].features) for prompt in prompts)
    assert not encoders[1][prompts[0]].features.requires_grad


def test_prompts_read_only_by_themselves_keep_no_more_padding_than_is_read(pipeline, encoder) -> None:
    encoder.encode(["cat", "dog"])
    whole = encoder["dog"]
    thin = PromptEncoder(TextStack(pipeline.tokenizer, pipeline.text_encoder))
    thin.encode(["cat", "dog"], padding=2)
    assert thin["dog"].features.shape == (3 + 2, 32)
    assert torch.equal(thin["dog"].features, whole.features[whole.rows_read(2)])
    thin.encode(["dog"])  # now all of it is asked for
    assert thin["dog"].features.shape == whole.features.shape
    thin.encode(["dog"], padding=2)
    assert thin["dog"].features.shape == whole.features.shape
    assert len(thin["cat"].features) == 5
    for padding in (0, 3, 2):
        thin.encode(["cat"], padding=padding)
        assert len(thin["cat"].features) == 3 + padding


def test_slots_start_at_the_last_token_of_the_first_word_of_the_name(encoder) -> None:
    encoder.encode(["a picture in van gogh style"])
    filled = fill("a picture in {} style", "van gogh")
    slot = encoder.target_slots(filled, 0)[0]
    assert slot == 4  # start, a, picture, in, van
    assert encoder.target_slots(filled, 2) == [4, 5, 6, 7, 8, 31]  # van, gogh, style, end, first and last padding
    encoder.encode(["a picture in monet gogh style"])
    first, second = encoder[filled.text].features, encoder["a picture in monet gogh style"].features
    torch.testing.assert_close(first[:slot], second[:slot])  # what comes before never saw the name
    assert bool(((first - second).norm(dim=1)[slot:] > 1e-3).all())  # everything after carries it


@pytest.mark.parametrize(
    ("name", "up_to"),
    [
        ("cat", "a photo of a cat"),
        ("fire engine", "a photo of a fire"),
        ("the starry night", "a photo of the starry"),
        ("jack o lantern", "a photo of a jack"),
        ("the", "a photo of the"),
    ],
)
def test_articles_are_not_the_first_word_of_a_name(name: str, up_to: str) -> None:
    assert fill("a photo of {a}", name).up_to_first_word == up_to


@pytest.mark.parametrize("words", [1, 28, 30, 31, 40])
def test_there_is_room_for_what_is_not_cut(encoder, words: int) -> None:
    text, longer = " ".join(["cat"] * words), " ".join(["cat"] * words + ["dog"])
    encoder.encode([text, longer])
    is_read = not torch.equal(encoder[text].features, encoder[longer].features)
    assert encoder.has_room_for(longer) == is_read


def test_padding_slots_are_spread_over_the_padding(encoder) -> None:
    encoder.encode(["cat"])
    prompt = encoder["cat"]
    assert prompt.padding(0) == []
    assert prompt.padding(1) == [prompt.end + 1]
    assert prompt.padding(3) == [3, 17, 31]
    assert prompt.padding(99) == list(range(3, 32))


def test_anchor_slots_play_the_same_part(encoder) -> None:
    encoder.encode(["a photo of a cat", "a photo of van gogh", EMPTY_PROMPT])
    cat, gogh, empty = (encoder[text] for text in ("a photo of a cat", "a photo of van gogh", EMPTY_PROMPT))
    assert aligned_slot(5, cat, gogh) == 5
    assert aligned_slot(cat.end, cat, gogh) == gogh.end
    assert aligned_slot(20, cat, gogh) == 20
    assert [aligned_slot(slot, cat, empty) for slot in (5, 6, 20)] == [5, 6, 20]
    encoder.encode(["cat"])
    assert aligned_slot(5, cat, encoder["cat"]) == 1


@st.composite
def encoded_prompts(draw, shapes: tuple[tuple[bool, int], ...] = ((True, 1), (False, 0))) -> EncodedPrompt:
    """A prompt with one run for each (causal, lead), contexts of 40 slots, padding kept, on a grid or not at all."""
    runs, rows = [], 0
    for is_causal, lead in shapes:
        end = draw(st.integers(lead, 39))
        slots = draw(st.sampled_from([(9, 19, 29, 39), range(40)]))
        padding = tuple(slot for slot in slots if slot > end and is_causal)
        runs.append(Run(40, end, padding, first_row=rows, lead=lead, is_causal=is_causal))
        rows += runs[-1].row_count
    return EncodedPrompt(torch.arange(float(rows)).unsqueeze(1), tuple(runs))


@given(encoded_prompts(), encoded_prompts(), st.integers(0, 5))
def test_rows_slots_and_alignment_stay_within_their_run(first, second, padding: int) -> None:
    everywhere = range(len(first.features))
    for row in everywhere:
        run = max((run for run in first.runs if run.first_row <= row), key=lambda run: run.first_row)
        assert run.row(run.slot(row)) == row
        assert aligned_slot(row, first, first) == row
        counterpart = second.runs[first.runs.index(run)]
        found = aligned_slot(row, first, second) - counterpart.first_row
        assert 0 <= found < counterpart.row_count
    read = first.rows_read(padding)
    assert len(set(read)) == len(read) == sum(run.end + 1 + min(padding, len(run.padding)) for run in first.runs)
    assert first.rows_from([0, 0], padding) == read
    thinned = first.thinned(padding)
    assert torch.equal(thinned.features, first.features[read])
    assert thinned.rows_read(padding) == list(range(len(read)))
    assert [run.end for run in thinned.runs] == [run.end for run in first.runs]
    assert first.rows_read(99) == list(everywhere)
    assert second.thinned(first.runs[:1]).runs[1].padding == ()  # as for an empty prompt that is read in two ways
    other = second.thinned(first.runs)
    for row in everywhere:  # whatever is aligned is kept
        expected = second.features[aligned_slot(row, first, second)]
        assert torch.equal(other.features[aligned_slot(row, first, other)], expected)


def test_padding_that_was_not_kept_is_read_from_its_nearest_neighbour() -> None:
    run = Run(40, 4, (9, 19, 39), first_row=100)
    assert [run.row(slot) for slot in (3, 5, 14, 15, 28, 30, 39)] == [103, 105, 105, 106, 106, 107, 107]
    assert Run(40, 4).row(17) == 4  # masked padding is not there: the end answers for it


def test_own_anchor_goes_before_the_dial(encoder) -> None:
    reading = Reading(anchor="object", padding_slots=0, vocabulary=0)
    statistics = gather(encoder, [Concept("cat", anchor="dog"), Concept("horse")], reading=reading)
    cat, horse = encoder["a photo of a cat"], encoder["a photo of a horse"]
    dog, thing = encoder.beside("a photo of a dog", cat), encoder.beside("a photo of an object", horse)
    assert any(torch.equal(row, dog.features[dog.end]) for row in statistics.targets[0].anchors)
    assert any(torch.equal(row, thing.features[thing.end]) for row in statistics.targets[1].anchors)


def test_weights_of_a_target_sum_to_one_whatever_its_aliases(encoder) -> None:
    for concept in (Concept("cat"), Concept("cat", aliases=("kitten", "tabby cat"))):
        assert float(gather(encoder, [concept]).targets[0].weights.sum()) == pytest.approx(1.0)


def test_second_moment_is_a_mean_over_retained_slots(encoder) -> None:
    statistics = gather(encoder, [Concept("cat")], named=("dog",))
    sentences = {fill(template, "dog").text for template in TEMPLATES["object"]}
    rows = {"named": [], "general": []}
    for group, prompts in (("named", sorted(sentences)), ("general", [""])):
        for text in prompts:
            prompt = encoder[text]
            rows[group].append(prompt.features[[*range(prompt.end + 1), *prompt.padding(3)]])
    means = {group: torch.cat(parts).mT @ torch.cat(parts) / len(torch.cat(parts)) for group, parts in rows.items()}
    expected = (0.45 * means["named"] + 0.1 * means["general"]) / 0.55
    torch.testing.assert_close(statistics.retained.second_moment, expected)


@pytest.mark.parametrize(
    ("named", "found", "expected"), [(10, 10, 1.0), (10, 400, 40.0), (60, 20, 1.0), (2000, 10, 1.0)]
)
def test_no_named_slot_counts_less_than_a_found_one_and_few_count_more(named: int, found: int, expected: float) -> None:
    shares = retained_of(named=named, found=found, general=4).shares
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["named"] / named == pytest.approx(expected * shares["found"] / found)


def test_only_groups_with_text_have_a_share() -> None:
    for named, found in ((0, 9), (9, 0)):
        shares = retained_of(named=named, found=found, general=4).shares
        assert shares == pytest.approx({"named" if named else "found": 0.45 / 0.55, "general": 0.1 / 0.55})
    assert retained_of(named=0, found=0, general=4).shares == {"general": 1.0}


def retained_of(**counts: int) -> Retained:
    features = {group: torch.ones(count, 2, dtype=torch.float64) for group, count in counts.items()}
    return Retained({group: rows.mT @ rows for group, rows in features.items()}, features, counts)


def test_retained_names_appear_in_every_sentence_of_the_targets() -> None:
    concepts = [Concept("cat"), Concept("monet", "style")]
    templates = templates_of(concepts)
    assert set(templates) == {*TEMPLATES["object"], *TEMPLATES["style"]}
    chosen = [spread_templates(name, templates) for name in everyday_names()]
    assert {template for pair in chosen for template in pair} == set(templates)
    assert all(len(pair) == 2 and pair[0] == "{}" for pair in chosen)


def test_nearest_names_come_first_and_near_synonyms_stay_out(encoder) -> None:
    words = ("dog", "horse", "zebra", "apple", "pear", "guitar", "violin")
    lax, strict = (Reading(vocabulary=3, neighbours=2, synonym_cosine=cosine) for cosine in (1.0, 0.0))
    passage = read_text(encoder, [Concept("cat")], named=(), proposable=words, reading=lax)
    assert len(passage.near.found) == 3
    assert tuple(near.name for near in passage.targets[0].neighbours) == passage.near.found[:2]
    nearest = passage.near.found[0]
    passage = read_text(encoder, [Concept("cat")], named=(), proposable=words, reading=strict)
    assert nearest in passage.near.synonyms
    assert nearest not in passage.near.found


def test_words_the_tokenizer_spells_out_are_strangers(encoder) -> None:
    words = ("dog", "van gogh", "wombat", "tree frog")
    for longest, strangers in ((1, ("wombat", "tree frog")), (0, ())):
        passage = read_text(
            encoder, [Concept("cat")], named=(), proposable=words, reading=Reading(longest_word=longest)
        )
        assert passage.strangers == strangers
        assert set(passage.near.found) | set(passage.near.synonyms) == set(words) - set(strangers)


@pytest.mark.parametrize(
    ("concept", "default", "anchor"),
    [
        (Concept("cat", anchor="horse"), "nearest", "horse"),
        (Concept("cat", anchor=""), "nearest", ""),
        (Concept("cat"), "object", "object"),
        (Concept("cat"), "nearest", "horse"),
        (Concept("cat", kind="unsafe"), "nearest", ""),
        (Concept("cat", kind="style"), "nearest", "a photo"),
        (Concept("cat", kind="style"), "", ""),
        (Concept("cat", kind="style", anchor="horse"), "nearest", "horse"),
    ],
)
def test_a_target_becomes_its_anchor_or_its_nearest_named_neighbour(concept, default: str, anchor: str) -> None:
    around = [
        Near("kitten", 0.85, is_named=False),
        Near("dog", 0.6, is_named=False),
        Near("horse", 0.5, is_named=True),
        Near("violin", -0.1, is_named=True),
    ]
    assert choose_anchor(concept, around, default=default, closest=0.8, plain="a photo") == anchor


def test_a_named_name_that_holds_the_target_is_no_anchor() -> None:
    around = [
        Near("the panda.", 0.9, is_named=True),
        Near("giant-pandas", 0.8, is_named=True),
        Near("pan", 0.7, is_named=True),
    ]
    assert choose_anchor(Concept("panda"), around, default="nearest", closest=0.8, plain="a photo") == "pan"
    assert (
        choose_anchor(Concept("bear", aliases=("panda",)), around, default="nearest", closest=0.8, plain="a photo")
        == "pan"
    )
    assert choose_anchor(Concept("panda bear"), around, default="nearest", closest=0.8, plain="a photo") == "the panda."


def test_a_found_anchor_is_a_thing_and_neither_nearly_nor_partly_the_target() -> None:
    around = [
        Near("wildcat", 0.85, is_named=False),  # nearly the target
        Near("running", 0.7, is_named=False),  # no thing
        Near("cats", 0.65, is_named=False),  # part of its name
        Near("dog", 0.6, is_named=False),
        Near("violin", -0.1, is_named=True),  # named, and less like the target than the average name
    ]
    tiger_cat = Concept("tiger cat")
    assert choose_anchor(tiger_cat, around, default="nearest", closest=0.8, plain="a photo") == "dog"
    assert choose_anchor(Concept("tiger"), around, default="nearest", closest=0.8, plain="a photo") == "cats"
    assert choose_anchor(tiger_cat, around, default="nearest", closest=0.9, plain="a photo") == "wildcat"
    assert choose_anchor(tiger_cat, around[:3], default="nearest", closest=0.8, plain="a photo") == ""
    named = [Near("wildcat", 0.85, is_named=True), *around[1:]]
    assert choose_anchor(tiger_cat, named, default="nearest", closest=0.8, plain="a photo") == "wildcat"


@pytest.mark.parametrize("is_named", [True, False])
@pytest.mark.parametrize(("forbidden", "anchor"), [("dog", "horse"), ("horse", "dog")])
def test_what_cannot_be_used_is_no_anchor(is_named: bool, forbidden: str, anchor: str) -> None:
    around = [Near("dog", 0.6, is_named=is_named), Near("horse", 0.5, is_named=is_named)]
    found = choose_anchor(
        Concept("cat"), around, default="nearest", closest=0.8, plain="", is_usable=lambda name: name != forbidden
    )
    assert found == anchor


def test_without_retained_names_the_anchor_is_neutral(encoder) -> None:
    statistics = gather(encoder, [Concept("cat")])
    assert statistics.targets[0].neutrals[0] is statistics.targets[0].anchors


def test_half_precision_encoders_are_read_in_float32(make_pipeline) -> None:
    pipeline = make_pipeline(dtype=torch.bfloat16)
    encoder = PromptEncoder(TextStack(pipeline.tokenizer, pipeline.text_encoder))
    encoder.encode(["cat"])
    assert encoder["cat"].features.dtype == torch.float32
    assert pipeline.text_encoder.dtype == torch.bfloat16


def test_reading_half_precision_in_float32_copies_nothing_but_embeddings(make_pipeline) -> None:
    stack = TextStack((pipeline := make_pipeline(dtype=torch.float16)).tokenizer, pipeline.text_encoder)
    held = {w.data_ptr(): name for name, w in stack.encoder.named_parameters()}
    read = {w.data_ptr() for w in stack.in_float32().encoder.parameters()}
    assert {name.rpartition(".")[0].rpartition("_")[2] for place, name in held.items() if place not in read} == {
        "embedding"
    }
    assert not held.keys() & {w.data_ptr() for w in copy.deepcopy(stack.encoder).parameters()}  # the control


def test_reading_half_precision_leaves_a_pending_gradient_alone(make_pipeline) -> None:
    pipeline = make_pipeline(dtype=torch.bfloat16)
    pipeline.text_encoder.requires_grad_(True)
    ids = pipeline.tokenizer("a cat", return_tensors="pt").input_ids
    loss = pipeline.text_encoder(ids).last_hidden_state.sum()
    encoder = PromptEncoder(TextStack(pipeline.tokenizer, pipeline.text_encoder))
    encoder.encode(["cat"])
    loss.backward()


@pytest.mark.parametrize("kind", ["float8", "pruned"])
def test_an_encoder_that_cannot_be_read_in_float32_is_refused(make_pipeline, kind: str) -> None:
    pipeline = make_pipeline(dtype=torch.bfloat16)
    if kind == "float8":
        pipeline.text_encoder.to(torch.float8_e4m3fn)
    else:
        layer = next(part for part in pipeline.text_encoder.modules() if isinstance(part, torch.nn.Linear))
        prune.l1_unstructured(layer, "weight", 0.5)
    with pytest.raises(CheckpointError, match="found torch.float8_e4m3fn" if kind == "float8" else "can be copied"):
        TextStack(pipeline.tokenizer, pipeline.text_encoder).in_float32()


def test_a_tokenizer_that_begins_or_ends_texts_otherwise_is_refused(make_pipeline) -> None:
    pipeline = make_pipeline()
    with pytest.raises(CheckpointError, match=r"puts 2 tokens of its own around a text, found one that puts 1"):
        TextStack(ByT5Tokenizer(extra_ids=0, model_max_length=77), pipeline.text_encoder).in_float32()


def test_half_precision_that_was_loaded_in_inference_mode_is_read(make_pipeline) -> None:
    with torch.inference_mode():
        pipeline = make_pipeline(dtype=torch.float16)
    read = [
        PromptEncoder(TextStack(one.tokenizer, one.text_encoder))
        for one in (pipeline, make_pipeline(dtype=torch.float16))
    ]
    for encoder in read:
        encoder.encode(["cat"])
    assert torch.equal(read[0]["cat"].features, read[1]["cat"].features)
