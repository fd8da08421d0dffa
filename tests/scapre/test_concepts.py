import random

import pytest

from scapre import Concept, EditSpec, InvalidConceptError
from scapre.concepts import canonical_concepts, canonical_names, check_disjoint, name_key
from scapre.vocabulary import everyday_names, proposable_names

SPEC = EditSpec(
    method="scapre",
    concepts=(Concept("Van Gogh", "style", ("Vincent",), "impressionism"), Concept("cat", aliases=("kitty", "feline"))),
    retain=("dog", "horse"),
    dials={"ridge": 0.01, "rank": 3, "noise": "auto"},
    base_digest="00",
    withheld=("zebra",),
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": ""}, "at least one visible character"),
        ({"name": "   "}, "at least one visible character"),
        ({"name": "\u200d"}, "at least one visible character"),
        ({"name": "\u3164 \ufe0f"}, "at least one visible character"),
        ({"name": "a\x07b"}, "control characters"),
        ({"name": "x" * 201}, "at most 200"),
        ({"name": 3}, "expected a text, found int"),
        ({"name": "cat", "kind": "animal"}, "object, style, identity, unsafe"),
        ({"name": "cat", "aliases": "kitty"}, "sequence of names"),
        ({"name": "cat", "aliases": ("",)}, "alias of 'cat'"),
        ({"name": "cat", "anchor": "Cats"}, "its anchor is the concept itself"),
    ],
)
def test_invalid_concepts_are_refused_by_name(arguments: dict, message: str) -> None:
    # with shapes checked under test, the type checker may be faster than the concept
    with pytest.raises((InvalidConceptError, TypeError), match=f"{message}|type-check|Type-check"):
        Concept(**arguments)


def test_names_are_cleaned_and_aliases_canonical() -> None:
    concept = Concept("  tabby   cat ", aliases=("Tiger cat", "Tabby-Cats", "Tiger  cat"))
    assert concept.name == "tabby cat"
    assert concept.aliases == ("Tabby-Cats", "Tiger cat")  # other spellings are other texts to the encoder
    assert Concept("cat", aliases=("cat", " cat ")).aliases == ()
    assert Concept("cat", anchor="  ").anchor == ""


def test_spec_survives_json_and_is_independent_of_order() -> None:
    assert EditSpec.from_json(SPEC.to_json()) == SPEC
    shuffled = EditSpec(
        method="scapre",
        concepts=SPEC.concepts[::-1],
        retain=("horse", "dog"),
        dials={"noise": "auto", "rank": 3, "ridge": 0.01},
        base_digest="00",
        withheld=("zebra",),
    )
    assert shuffled.to_json() == SPEC.to_json()


def test_spec_of_another_format_is_refused() -> None:
    with pytest.raises(InvalidConceptError, match="format 1"):
        EditSpec.from_json(SPEC.to_json().replace('"format":1', '"format":99'))


def test_a_concept_listed_twice_is_refused() -> None:
    with pytest.raises(InvalidConceptError, match="listed twice"):
        EditSpec("scapre", (Concept("cat"), Concept("Cats")), (), {}, "00")


ONE_AND_MANY = """
    fox foxes; bus buses; cherry cherries; butterfly butterflies; octopus octopuses; walrus walruses; horse horses;
    house houses; rose roses; vase vases; cheese cheeses; lens lenses; gas gases; canvas canvases; iris irises; shoe
    shoes; canoe canoes; tomato tomatoes; hero heroes; piano pianos; photo photos; zoo zoos; toe toes; cookie cookies;
    zombie zombies; pie pies; fly flies; boy boys; axe axes; box boxes; church churches; moustache moustaches; headache
    headaches; dish dishes; dress dresses; muse muses; blouse blouses; emu emus; mouse mice; goose geese; tooth teeth;
    foot feet; child children; man men; woman women; snowman snowmen; ox oxen; wolf wolves; werewolf werewolves; knife
    knives; bookshelf bookshelves; leaf leaves; glove gloves; olive olives; cave caves; wave waves; cactus cacti;
    cactus cactuses; fungus fungi; life lives; mantis mantises; specimen specimens; omen omens; clause clauses;
    person people; virus viruses; peach peaches; roach roaches; quiz quizzes;
    maze mazes; giraffe giraffes; roof roofs; scarf scarves; scarf scarfs; tree trees
"""


@pytest.mark.parametrize("pair", [pair.split() for pair in ONE_AND_MANY.split(";")], ids=" ".join)
def test_one_of_a_kind_and_many_are_one_name(pair: list[str]) -> None:
    one, many = pair
    assert name_key(many) == name_key(one)
    with pytest.raises(InvalidConceptError, match="both to be forgotten and retained"):
        check_disjoint([Concept(f"red {many}")], [f"Red {one}"], [])


def test_things_that_look_like_many_of_another_stay_apart() -> None:
    names = ["glass", "glasses", "cap", "cape", "car", "care", "pin", "pine", "cube", "cub", "plan", "plane", "cave"]
    names += ["cafe", "star", "stare", "tub", "tube", "hat", "hate", "bath", "bathe", "bus", "bush", "as", "ass", "us"]
    names += ["Marie", "Mary", "Jesse", "Jess", "Ashe", "Ash", "Billie", "Billy", "Charlie", "Charly", "Hesse", "Hess"]
    names += ["shoe", "show", "canoe", "cano", "clause", "Claus", "omen", "Oman", "Carmen", "Carman", "abuse", "Abu"]
    names += ["Davies", "Davy", "psyche", "psych", "moustache", "live", "life"]
    assert len({name_key(name) for name in names}) == len(names)


@pytest.mark.parametrize("name", ["'tiger'", "“tiger”", "«Tiger»", "(tiger)", "tiger!"])
def test_quotes_do_not_make_another_name(name: str) -> None:
    assert name_key(name) == "tiger"


@pytest.mark.parametrize(
    ("retain", "withheld", "message"),
    [
        (("Cats",), (), "both to be forgotten and retained: Cats"),
        (("kitty",), (), "kitty"),
        (("dog",), ("dogs",), "withheld: dog"),
    ],
)
def test_contradictions_are_named(retain: tuple, withheld: tuple, message: str) -> None:
    with pytest.raises(InvalidConceptError, match=message):
        check_disjoint([Concept("cat", aliases=("kitty",))], retain, withheld)


def test_vocabulary_is_broad_clean_and_sorted() -> None:
    names = everyday_names()
    assert len(names) > 900
    assert len({name_key(name) for name in names}) == len(names)
    assert [name_key(name) for name in names] == sorted(name_key(name) for name in names)


def test_vocabulary_never_proposes_targets_nor_what_contains_them() -> None:
    names = proposable_names([Concept("bear", aliases=("tigers",))], ["lion"], [])
    assert not {"bear", "polar bear", "teddy bear", "tiger", "lion"} & set(names)
    assert "beard" in names


def test_vocabulary_never_proposes_withheld_names_in_any_form() -> None:
    names = proposable_names([], [], ["fire truck", "clock"])
    assert not {"fire truck", "truck", "fire", "clock", "alarm clock"} & set(names)
    assert "tractor" in names


@pytest.mark.parametrize("withheld", ["shoe", "canoe", "muse", "ashes", "oboe"])
def test_what_is_withheld_keeps_out_nothing_that_only_begins_alike(withheld: str) -> None:
    kept_out = set(everyday_names()) - set(proposable_names([], [], [withheld]))
    assert all(withheld.removesuffix("es") in name_key(name) for name in kept_out)
    assert not {"shovel", "volcano", "mushroom", "robot"} & kept_out


def test_vocabulary_does_not_depend_on_order() -> None:
    hidden = ["clock", "fire truck", "pear"]
    expected = proposable_names([], [], hidden)
    random.Random(0).shuffle(hidden)
    assert proposable_names([], [], hidden) == expected


def test_spellings_that_are_other_texts_to_the_encoder_are_all_retained() -> None:
    names = ["lions", "Lion", "fire-engine", "lion", " fire  engine", "lion"]
    kept = canonical_names(names, "retained name")
    assert kept == canonical_names(names[::-1], "retained name")
    assert kept == ("fire engine", "fire-engine", "Lion", "lion", "lions")


def test_what_is_no_sequence_is_refused() -> None:
    with pytest.raises(InvalidConceptError, match="sequence of concepts or their names, found None"):
        canonical_concepts(None)
    with pytest.raises(InvalidConceptError, match="sequence of names, found 5 for retained name"):
        canonical_names(5, "retained name")


def test_joiners_belong_to_a_name_and_make_it_no_other_name() -> None:
    joined = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"  # written with a joiner in Persian
    assert Concept(joined).name == joined
    with pytest.raises(InvalidConceptError, match="listed twice"):
        canonical_concepts([joined, joined.replace("\u200c", "")])


def test_punctuation_at_the_end_makes_no_other_name() -> None:
    with pytest.raises(InvalidConceptError, match="listed twice"):
        canonical_concepts(["tiger", "Tigers."])
    assert len(canonical_concepts(["!", "?", "t.rex"])) == 3


def test_a_name_that_is_read_as_another_is_told_with_it() -> None:
    with pytest.raises(InvalidConceptError, match=r"retained: window; .*'window' is read as 'Windows'.* 'the window'"):
        check_disjoint([Concept("Windows")], ["window"], [])
    check_disjoint([Concept("Windows")], ["the window"], [])
    with pytest.raises(InvalidConceptError, match=r"retained: apple, window; take .* two; 'window' is read [^;]*$"):
        check_disjoint([Concept("Windows"), Concept("apple")], ["apple", "window"], [])
    with pytest.raises(InvalidConceptError, match=r"out of one of the two$"):
        check_disjoint([Concept("Windows")], ["“windows”"], [])
