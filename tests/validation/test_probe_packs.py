"""Probe packs: what they ask, and what is wrong with a faulty one."""

import json
import unicodedata
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from infra.reference import world
from validation.errors import ProbeError
from validation.probe_packs import Pack, Wording, is_further_pack, load_pack, pack_names, with_article
from validation.probes import Subject

VERSIONS = Path(__file__).parent / "pack_versions.json"
"""Version and digest of every shipped pack. A changed pack needs a higher version, here and in its file."""
NAMES = st.text("abcdefg é虎", min_size=1, max_size=8).filter(str.strip)


def write(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def asking(*wordings: Wording) -> Pack:
    return Pack(name="p", version=1, about="a test", wordings=wordings)


def test_shipped_packs_are_the_versions_on_record():
    found = {name: [load_pack(name).version, load_pack(name).digest] for name in pack_names()}
    assert found == json.loads(VERSIONS.read_text()), "raise the version of what changed, then record both"


def test_a_digest_covers_the_whole_pack():
    pack = load_pack("paraphrase")
    changes = {"version": 2, "about": "other", "wordings": pack.wordings[:1]}
    digests = {pack.model_copy(update={key: value}).digest for key, value in changes.items()}
    assert len({pack.digest, *digests}) == 4


def test_ways_of_asking_take_turns():
    pack = asking(Wording(templates=("x {concept}", "y {concept}")), Wording(templates=("z {concept}",)))
    assert pack.prompts(Subject("owl")) == ["x owl", "z owl", "y owl"]


def test_names_meet_every_template():
    wording = Wording(templates=("x {concept}", "y {a_concept}"), names={"Tiger": ("cub", "虎")})
    assert wording.prompts(Subject("tiger")) == ["x cub", "x 虎", "y a cub", "y 虎"]
    assert wording.prompts(Subject("lion")) == []
    by_alias = Wording(templates=("x {concept}",), names="aliases")
    assert by_alias.prompts(Subject("tiger", aliases=("cub",))) == ["x cub"]
    assert by_alias.prompts(Subject("tiger")) == []


def test_objects_and_styles_are_asked_differently():
    pack = asking(Wording(templates=("x {concept}",)), Wording(kind="style", templates=("in {concept}",)))
    assert pack.prompts(Subject("owl", "identity")) == ["x owl"]
    assert pack.prompts(Subject("fog", "style")) == ["in fog"]


@given(names=st.lists(NAMES, min_size=1, max_size=4, unique_by=lambda name: name.strip().casefold()))
def test_every_name_is_asked_for_and_none_twice(names: list[str]):
    pack = asking(Wording(templates=("one {concept}", "two {concept}"), names={"owl": tuple(names)}))
    prompts = pack.prompts(Subject("owl"))
    assert prompts == [f"{number} {name}" for number in ("one", "two") for name in names]


def test_style_prompts_pair_every_content_with_every_template_and_leave_targets_out():
    [wording] = load_pack("style").wordings
    prompts = load_pack("style").prompts(Subject("fog", "style"), without=["House", "camera"])
    assert len(prompts) == len(set(prompts)) == len(wording.templates) * (len(wording.contents) - 2)
    assert not any("house" in prompt or "camera" in prompt for prompt in prompts)
    assert len({prompt.split(" in ")[0] for prompt in prompts[:9]}) == 9


def test_a_pack_without_neutral_contents_is_refused():
    pack = asking(Wording(kind="style", templates=("{content} {concept}",), contents=("house",)))
    assert pack.prompts(Subject("fog", "style")) == ["house fog"]
    with pytest.raises(ProbeError, match="that is not a target"):
        pack.prompts(Subject("fog", "style"), without=["house"])


def test_names_with_braces_are_taken_literally():
    assert asking(Wording(templates=("a {concept}",))).prompts(Subject("{x}")) == ["a {x}"]


@pytest.mark.parametrize(
    ("noun", "phrase"),
    [
        ("tiger", "a tiger"),
        ("owl", "an owl"),
        ("scissors", "scissors"),
        ("cactus", "a cactus"),
        ("Van Gogh", "Van Gogh"),
        ("老虎", "老虎"),
    ],
)
def test_nouns_take_the_article_they_need(noun: str, phrase: str):
    assert with_article(noun) == phrase


def test_what_goes_with_a_target_is_the_rest_of_its_family():
    pack = load_pack("confuse5")
    assert pack.retained(["tabby"]) == ("tiger cat", "Persian cat", "Siamese cat", "Egyptian cat")
    assert set(pack.retained(pack.targets)) == set(pack.concepts) - set(pack.targets)
    assert pack.retained(["tiger"]) == ()
    assert pack.prompts(Subject("tabby"))
    assert pack.prompts(Subject("tiger")) == []


@pytest.mark.parametrize(
    ("name", "families", "targets", "retained"),
    [("imagenette", 1, 10, 10), ("diversi50", 1, 50, 20), ("confuse5", 5, 10, 15), ("artists50", 1, 50, 10)],
)
def test_benchmarks_have_the_shape_they_are_known_by(name: str, families: int, targets: int, retained: int):
    pack = load_pack(name)
    assert (len(pack.families), len(pack.targets), len(pack.concepts)) == (families, targets, targets + retained)
    kind = "style" if name == "artists50" else "object"
    assert all(len(pack.prompts(Subject(target, kind))) >= 6 for target in pack.targets)


def test_the_reference_pack_is_the_reference_world():
    pack = load_pack("reference")
    assert set(pack.concepts) == {item.name for item in world.load_objects()}
    assert set(pack.targets) == {item.name for item in world.load_objects() if item.role == "target"}
    for item in world.load_objects():
        prompts = pack.prompts(Subject(item.name))
        assert all(any(alias in prompt for prompt in prompts) for alias in item.aliases)
        assert bool(prompts) == bool(item.aliases)


def test_every_object_of_the_reference_world_is_asked_for_in_eight_languages_and_four_other_scripts():
    pack = load_pack("languages")
    assert [wording.language for wording in pack.wordings] == ["es", "fr", "de", "zh", "ja", "ar", "hi", "ru"]
    for item in world.load_objects():
        asked = pack.prompts(Subject(item.name))
        assert len(asked) == 16
        scripts = {unicodedata.name(letter).split()[0] for prompt in asked for letter in prompt if letter.isalpha()}
        assert scripts >= {"LATIN", "CJK", "ARABIC", "DEVANAGARI", "CYRILLIC"}


@pytest.mark.parametrize("name", ["paraphrase", "alias", "misspelling"])
def test_names_in_a_table_differ_from_the_concept(name: str):
    tables = [wording.names for wording in load_pack(name).wordings if isinstance(wording.names, dict)]
    assert tables
    for concept, names in tables[0].items():
        assert concept not in names


def test_only_the_two_packs_that_ask_by_name_are_no_further_packs():
    assert [name for name in pack_names() if not is_further_pack(name)] == ["direct", "style"]
    assert not is_further_pack(None)


GOOD = "name: mine\nversion: 1\nabout: x\nwordings:\n  - "


def test_a_pack_of_ones_own_is_read(tmp_path: Path):
    pack = load_pack(write(tmp_path, GOOD + "templates: ['a {concept}']"))
    assert pack.prompts(Subject("owl")) == ["a owl"]
    assert load_pack(str(tmp_path / "mine.yaml")) == pack


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD + "templates: []", r"wordings\.0\.templates.*at least 1 item"),
        (GOOD + "templates: ['a {concept}', ' A {concept} ']", "every template once, found again"),
        (GOOD + "templates: ['a {concept}', '  ']", "expected {concept} or {a_concept}"),
        (GOOD + "templates: ['a photo']", "expected {concept} or {a_concept}"),
        (GOOD + "templates: ['a {concpt} {concept}']", "found .'concpt'"),
        (GOOD + "templates: ['{concept} and {content}']", "exactly where there are contents"),
        (GOOD + "{templates: ['{concept}'], contents: [house]}", "exactly where there are contents"),
        (GOOD + "{templates: ['{concept} {content}'], contents: [house, House]}", "every content once"),
        (GOOD + "{templates: ['{concept}'], names: {}}", "a concept in the table of names"),
        (GOOD + "{templates: ['{concept}'], names: {owl: []}}", "a name for 'owl'"),
        (GOOD + "{templates: ['{concept}'], names: {owl: ['']}}", "an empty name of 'owl'"),
        (GOOD + "{templates: ['{concept}'], names: {owl: [x, X]}}", "every name of 'owl' once"),
        (GOOD + "{templates: ['{concept}'], names: {owl: [x], owl: [y]}}", "key 'owl' stands twice"),
        (GOOD + "{templates: ['{concept}'], names: {owl: [x], Owl: [y]}}", "every concept once"),
        (GOOD + "templates: ['a {concept}']\n  - templates: ['a {concept}']", "every prompt for .* once"),
        (GOOD + "{templates: ['x {concept}'], names: {owl: [y]}}\n  - templates: ['x y', 'z']", "expected {concept}"),
        (GOOD + "{kind: caption, templates: ['a {concept}']}", "no {concept} in a caption"),
        (GOOD + "{templates: ['{concept}'], kind: colour}", r"wordings\.0\.kind"),
        (GOOD + "{templates: ['{concept}'], language: English!}", r"wordings\.0\.language"),
        (GOOD + "{templates: ['{concept}'], words: [a]}", r"wordings\.0\.words"),
        ("name: mine\nversion: 1\nabout: x", "the pack is empty"),
        ("name: mine\nversion: 0\nabout: x\nwordings: [{templates: ['{concept}']}]", "version"),
        ("name: mine\nabout: x\nwordings: [{templates: ['{concept}']}]", "version: Field required"),
        ("name: yours\nversion: 1\nabout: x\nwordings: [{templates: ['{concept}']}]", "called 'mine', found 'yours'"),
        ("name: mine\nversion: 1\nabout: x\nfamilies: [{name: f, targets: [a], retained: [A]}]", "once"),
        (
            GOOD + "{templates: ['{concept}'], names: {owl: [x]}}\nfamilies: [{name: f, targets: [bat]}]",
            "only concepts of the families.*owl",
        ),
        ("colour: red", "known keys: name, version"),
        ("- 1", "expected a mapping"),
        ("a: [", "expected a readable YAML file"),
        ("", "expected a mapping"),
    ],
)
def test_a_faulty_pack_is_refused_in_one_line(tmp_path: Path, text: str, said: str):
    with pytest.raises(ProbeError, match=said) as refusal:
        load_pack(write(tmp_path, text))
    assert "\n" not in str(refusal.value)


def test_a_pack_that_is_not_utf_8_is_refused(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_bytes((GOOD + "templates: ['el búho {concept}']").encode("latin-1"))
    with pytest.raises(ProbeError, match="save it as UTF-8"):
        load_pack(path)
    path.write_text(path.read_text(encoding="latin-1"), encoding="utf-8")
    assert load_pack(path).prompts(Subject("owl")) == ["el búho owl"]


@pytest.mark.parametrize("source", ["dirct", "direct.yaml", "../packs/direct"])
def test_an_unknown_pack_is_refused(source: str):
    with pytest.raises(ProbeError, match=r"direct|readable"):
        load_pack(source)


def test_a_pack_survives_its_own_description():
    for name in pack_names():
        pack = load_pack(name)
        again = Pack.model_validate(yaml.safe_load(yaml.safe_dump(pack.model_dump(mode="json"), allow_unicode=True)))
        assert again == pack
        assert again.digest == pack.digest
