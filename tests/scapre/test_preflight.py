"""What is said before anything is solved."""

import pytest
import torch
from tiny_pipelines import build

import scapre
from scapre import CheckpointError, Concept, InvalidConceptError
from scapre.embeddings import PromptEncoder


def preflight(pipeline, *concepts: Concept, retain=("dog", "horse"), **dials) -> scapre.Preflight:
    return scapre.preflight(pipeline, list(concepts), list(retain), **{"vocabulary": 0, **dials})


def test_it_says_what_unlearn_then_does_and_changes_nothing(pipeline) -> None:
    before = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
    found = preflight(pipeline, Concept("cat"), Concept("monet", "style"), vocabulary=20, longest_word=0)
    diagnostics = scapre.unlearn(
        pipeline, [Concept("cat"), Concept("monet", "style")], ["dog", "horse"], vocabulary=20, longest_word=0
    ).diagnostics
    assert dict(found.anchors) == diagnostics["anchors"]
    assert list(found.retain_found) == diagnostics["retain_found"]
    assert len(found.retain_found) == 20
    assert all(torch.equal(before[name], value) for name, value in pipeline.unet.state_dict().items())


def test_names_at_risk_come_nearest_first(pipeline) -> None:
    at_risk = preflight(pipeline, Concept("cat"), retain=("dog", "horse", "zebra", "apple")).at_risk
    assert {one.name for one in at_risk} == {"dog", "horse", "zebra", "apple"}
    assert [one.cosine for one in at_risk] == sorted((one.cosine for one in at_risk), reverse=True)


def test_two_targets_that_are_one_text_are_refused(make_pipeline) -> None:
    with pytest.raises(InvalidConceptError, match="one text to this encoder; make them one target with an alias"):
        preflight(deaf(make_pipeline()), Concept("cat"), Concept("horse"), retain=("dog",))


def test_a_target_that_is_one_text_with_a_retained_name_is_refused(make_pipeline) -> None:
    with pytest.raises(InvalidConceptError, match="'cat' and retained name 'horse' are one text"):
        preflight(deaf(make_pipeline()), Concept("cat"), retain=("horse",))


def test_an_anchor_that_is_one_text_with_its_target_is_refused(make_pipeline) -> None:
    with pytest.raises(InvalidConceptError, match="anchor 'horse' are one text"):
        preflight(deaf(make_pipeline()), Concept("cat", anchor="horse"), retain=("dog",))


def test_two_targets_that_share_an_alias_are_refused(pipeline) -> None:
    with pytest.raises(InvalidConceptError, match="targets 'cat' and 'dog': 'kitten' is a name of both"):
        preflight(pipeline, Concept("cat", aliases=("kitten",)), Concept("dog", aliases=("kitten",)), retain=("horse",))


def test_a_retained_name_that_fills_the_context_is_said(pipeline) -> None:
    long = " ".join(["dog", "in", "the", "park"] * 10)
    said = "8 retained prompts do not fit"
    assert any(said in warning for warning in preflight(pipeline, Concept("cat"), retain=("dog", long)).warnings)
    fits = " ".join(["dog"] * 8)
    assert not any("do not fit" in told for told in preflight(pipeline, Concept("cat"), retain=("dog", fits)).warnings)


def test_an_anchor_that_the_engine_chooses_fits_the_context(pipeline, monkeypatch) -> None:
    target, long = Concept("a cat in the park"), " ".join(["horse", "apple"] * 14)
    found = preflight(pipeline, target, retain=(long, "zebra", "horse"))
    assert found.at_risk[0].name == long
    assert found.anchors == {target.name: ""}
    monkeypatch.setattr(PromptEncoder, "has_room_for", lambda *_: True)
    assert preflight(pipeline, target, retain=(long, "zebra", "horse")).anchors == {target.name: long}


def test_a_text_encoder_that_is_not_numbers_is_told_before_anything_is_solved(pipeline) -> None:
    preflight(pipeline, Concept("cat"))  # the control
    pipeline.text_encoder.get_parameter("final_layer_norm.weight").data.fill_(torch.nan)
    with pytest.raises(
        CheckpointError, match=r"finite features of .*, found NaN or infinity; restore .*: text_encoder"
    ):
        preflight(pipeline, Concept("cat"))


def test_a_token_without_a_vector_is_told(pipeline) -> None:
    pipeline.tokenizer.add_tokens(["tigerx"])
    preflight(pipeline, Concept("cat"))  # the control: it is not asked for
    with pytest.raises(CheckpointError, match=r"a vector for every token .* found \d+ vectors and token \d+; give it"):
        preflight(pipeline, Concept("tigerx"))


def test_that_nothing_is_retained_is_said(pipeline) -> None:
    assert "nothing is retained" in preflight(pipeline, Concept("cat"), retain=()).warnings[0]


def test_an_anchor_that_holds_its_target_is_warned_about(pipeline) -> None:
    assert "'a cat' holds its own name" in preflight(pipeline, Concept("cat", anchor="a cat")).warnings[0]
    assert (
        "'Hounds of war' holds"
        in preflight(pipeline, Concept("cat", aliases=("hound",), anchor="Hounds of war")).warnings[0]
    )
    assert not preflight(pipeline, Concept("cat", anchor="caterpillar")).warnings


def test_an_identity_that_becomes_somebody_else_is_warned_about(pipeline) -> None:
    said = preflight(pipeline, Concept("cat", kind="identity")).warnings
    assert "whoever asks for the one is shown the other" in said[0]
    assert not preflight(pipeline, Concept("cat", kind="identity", anchor="person")).warnings
    assert not preflight(pipeline, Concept("cat", kind="identity"), anchor="").warnings


def test_a_style_becomes_a_picture_in_no_style(pipeline) -> None:
    style = Concept("van gogh", kind="style")
    found = preflight(pipeline, style, vocabulary=2000, longest_word=0)
    assert found.anchors == {"van gogh": "a photo"}
    assert "a photo" in found.retain_found  # and still nobody need vouch for it
    assert not any("vouches" in warning for warning in found.warnings)
    assert preflight(pipeline, style, Concept("photo")).anchors["van gogh"] == ""
    assert preflight(pipeline, style, Concept("phot")).anchors["van gogh"] == "a photo"


@pytest.mark.parametrize(("family", "words"), [("stable-diffusion-1", "a wombat"), ("pixart-sigma", "\u7167")])
def test_a_style_becomes_nothing_where_the_encoder_does_not_know_the_words(
    monkeypatch, family: str, words: str
) -> None:
    monkeypatch.setattr("scapre.moments.PLAIN_PICTURE", words)
    assert preflight(build(family), Concept("van gogh", kind="style")).anchors == {"van gogh": ""}


def test_a_name_too_long_for_the_encoder_is_refused_before_anything_is_solved(pipeline) -> None:
    longest = " ".join(["cat"] * 45)
    with pytest.raises(
        InvalidConceptError, match=r"target 'cat cat .*': expected its name to fit .* cut in .*a shorter name"
    ):
        preflight(pipeline, Concept(longest, aliases=("hound",)))
    with pytest.raises(InvalidConceptError, match=r"target 'cat': expected its alias to fit .*a shorter alias"):
        preflight(pipeline, Concept("cat", aliases=(longest.replace("cat", "dog"),)))
    with pytest.raises(InvalidConceptError, match=r"target 'cat': expected its anchor to fit .*a shorter anchor"):
        preflight(pipeline, Concept("cat", anchor=longest.replace("cat", "dog")))
    preflight(pipeline, Concept(" ".join(["cat"] * 8), anchor=" ".join(["dog"] * 8)))  # the control


def test_a_retained_name_nearly_the_same_is_warned_about(pipeline) -> None:
    assert "nearer than the encoder" in preflight(pipeline, Concept("cat"), synonym_cosine=0.0).warnings[0]
    assert not preflight(pipeline, Concept("cat"), synonym_cosine=1.0).warnings


def test_a_retained_name_that_a_target_begins_with_is_warned_about(pipeline) -> None:
    engine = Concept("fire engine", aliases=("fire truck",))
    warnings = preflight(pipeline, engine, retain=("fire", "dog")).warnings
    for name, warning in zip(engine.names, warnings, strict=True):
        assert f"{name!r} begins with 'fire', which must survive" in warning
    assert not preflight(pipeline, engine, retain=("engine", "fir")).warnings  # only whole first words count


def deaf(pipeline):
    """Makes `horse` sound like `cat` to the encoder."""
    cat, horse = (pipeline.tokenizer(word, add_special_tokens=False).input_ids[0] for word in ("cat", "horse"))
    table = pipeline.text_encoder.get_input_embeddings().weight
    with torch.no_grad():
        table[horse] = table[cat]
    return pipeline


def test_an_anchor_that_is_to_be_forgotten_as_well_is_refused(pipeline) -> None:
    cat, dog = Concept("cat", anchor="dog"), Concept("dog", aliases=("hound",), anchor="horse")
    with pytest.raises(InvalidConceptError, match="'cat' would become 'dog', which is to be forgotten as well"):
        scapre.preflight(pipeline, [cat, dog], vocabulary=0)
    with pytest.raises(InvalidConceptError, match="'cat' would become 'hound'"):
        scapre.preflight(pipeline, [Concept("cat", anchor="hound"), dog], vocabulary=0)
    scapre.preflight(pipeline, [cat], vocabulary=0)  # the control


@pytest.mark.parametrize("family", ["pixart-sigma", "stable-diffusion-3"])
def test_words_that_the_tokenizer_reads_like_all_it_does_not_know_are_refused(family: str) -> None:
    pipeline, cat = build(family), Concept("cat", anchor="dog")
    for concept in (Concept("\u8001\u864e"), Concept("cat", aliases=("\u732b",)), Concept("cat", anchor="\u72d7")):
        with pytest.raises(InvalidConceptError, match="like every other word it does not know"):
            preflight(pipeline, concept)
    assert "1 retained names ('\u72d7')" in " ".join(preflight(pipeline, cat, retain=("horse", "\u72d7")).warnings)
    assert "all alike" not in " ".join(preflight(pipeline, cat).warnings)  # what it knows
    with pytest.raises(InvalidConceptError, match="anchor '\u72d7': expected words"):
        preflight(pipeline, Concept("cat"), anchor="\u72d7")


@pytest.mark.parametrize(
    ("family", "mark"),
    [
        ("stable-diffusion-1", "<|startoftext|>"),
        *[("flux", "</s>"), ("pixart-sigma", "<pad>")],
        *[("sana", "<bos>"), ("sana", "<eos>")],
    ],
)
def test_a_mark_of_the_tokenizer_is_no_name(family: str, mark: str) -> None:
    pipeline = build(family)
    for concept in (Concept(mark, anchor="dog"), Concept(f"cat {mark}"), Concept("cat", anchor=mark)):
        with pytest.raises(InvalidConceptError, match="as a mark of its own"):
            preflight(pipeline, concept)
    assert "'<|startoftext|>'" not in " ".join(preflight(pipeline, Concept("cat")).warnings)  # the control


def test_a_word_that_a_tokenizer_pads_with_is_a_name_as_any_other() -> None:
    assert not any("all alike" in w for w in preflight(build("stable-diffusion-2"), Concept("cat !")).warnings)


@pytest.mark.parametrize("family", ["stable-diffusion-1", "stable-diffusion-xl"])
def test_a_word_of_several_vectors_is_named_with_all_of_them(family: str) -> None:
    pipeline, whole = build(family), "<toy> <toy>_1 <toy>_2"
    for name, encoder in pipeline.components.items():
        if name.startswith("text_encoder"):
            parts = {"text_encoder": encoder, "tokenizer": getattr(pipeline, name.replace("text_encoder", "tokenizer"))}
            vectors = torch.ones(3, encoder.config.hidden_size).double()
            pipeline.load_textual_inversion(vectors, token="<toy>", **parts)
            pipeline.load_textual_inversion(vectors[:1], token="<one>", **parts)
    assert pipeline.maybe_convert_prompt("a <toy>", pipeline.tokenizer) == f"a {whole}"  # what is drawn
    refusal = rf"all vectors of what textual inversion taught, found some; name it '(red )?{whole}'"
    for part in ("<toy>", "red <toy>", "<toy> <toy>_1"):
        for concept in (Concept(part, anchor="dog"), Concept("cat", aliases=(part,)), Concept("cat", anchor=part)):
            with pytest.raises(InvalidConceptError, match=refusal):
                preflight(pipeline, concept)
    with pytest.raises(InvalidConceptError, match=f"retained name '<toy>': .*{refusal}"):
        preflight(pipeline, Concept("cat"), retain=("<toy>",))
    for complete in (whole, "<one>"):
        edit = scapre.unlearn(pipeline, [Concept(complete, anchor="dog")], ["horse"], vocabulary=0)
        assert edit.diagnostics["residual_response"][complete] < 0.9


def test_words_are_refused_before_anything_is_encoded() -> None:
    pipeline, read = build("pixart-sigma"), []
    pipeline.text_encoder.register_forward_hook(lambda *_: read.append(True))
    with pytest.raises(InvalidConceptError, match="does not know"):
        preflight(pipeline, Concept("\u8001\u864e"))
    assert not read
    preflight(pipeline, Concept("cat"))
    assert read  # the control


@pytest.mark.parametrize("family", ["pixart-sigma", "stable-diffusion-3", "flux"])
def test_a_retained_name_that_the_tokenizer_does_not_know_is_no_anchor(family: str) -> None:
    found = preflight(build(family), Concept("cat"), retain=("\u72d7",))
    assert found.anchors == {"cat": ""}  # the only name there is
    assert "1 retained names ('\u72d7')" in " ".join(found.warnings)


def test_a_byte_level_tokenizer_knows_every_word(pipeline) -> None:
    assert preflight(pipeline, Concept("zebra crossing", anchor="dog")).anchors == {"zebra crossing": "dog"}


@pytest.mark.parametrize("others", [(), ("horse", "tree")])
def test_names_that_are_one_text_to_the_encoder_count_once(pipeline, others: tuple[str, ...]) -> None:
    once = preflight(pipeline, Concept("cat"), retain=("dog", *others))
    thrice = preflight(pipeline, Concept("cat"), retain=("dog", "Dog", "DOG", *others))
    assert once.anchors["cat"] == "dog" or others
    assert once.anchors["cat"].lower() == thrice.anchors["cat"].lower()
    told = {risk.name.lower(): risk.cosine for risk in thrice.at_risk}
    assert {risk.name: risk.cosine for risk in once.at_risk} == pytest.approx(told)


def test_a_name_that_no_user_vouches_for_is_named_where_a_target_becomes_it(pipeline) -> None:
    guessed = preflight(pipeline, Concept("cat"), retain=(), vocabulary=20, longest_word=0)
    assert any(f"'cat' becomes {guessed.anchors['cat']!r}" in warning for warning in guessed.warnings)
    for vouched in (Concept("cat", anchor="tree"), Concept("cat", anchor="")):
        assert not preflight(pipeline, vouched, retain=(), vocabulary=20, longest_word=0).warnings
    chosen = preflight(
        pipeline, Concept("cat"), retain=(), vocabulary=20, longest_word=0, anchor=guessed.anchors["cat"]
    )
    assert not chosen.warnings


def test_a_comma_in_a_name_is_said(pipeline) -> None:
    said = "'cat, dog': one name, comma and all"
    assert any(said in told for told in preflight(pipeline, Concept("cat, dog"), retain=("horse",)).warnings)
    assert any(said in told for told in preflight(pipeline, Concept("horse"), retain=("cat, dog",)).warnings)
    assert not any("comma" in told for told in preflight(pipeline, Concept("cat"), retain=("dog",)).warnings)
