from pathlib import Path

import pytest
from colour_world import ColourDetector, detectors

from validation.detectors import Detectors
from validation.errors import DetectorError, ProbeError, ProtocolError, UnknownLabelError
from validation.plan import ALIAS_PACK, make_plan
from validation.policy import Policy
from validation.probes import Pack, Probe, Subject, build_probes, load_pack, pack_names, probes_digest, with_article


def plan_of(*targets: str | Subject, **changes):
    arguments = {"retained": ("cat",), "hidden": (), "styles": (), "policy": Policy(), "detectors": detectors()}
    return make_plan(targets, **(arguments | changes))


def test_probes_take_templates_in_turn_and_seeds_upwards():
    probes = build_probes("owl", "target", templates=["{a_concept}", "the {concept}"], count=3, first_seed=7, pack="p")
    assert [(p.prompt, p.seed) for p in probes] == [("an owl", 7), ("the owl", 8), ("an owl", 9)]
    assert {(p.concept, p.role, p.pack) for p in probes} == {("owl", "target", "p")}


def test_aliases_meet_every_template():
    probes = build_probes(
        "tiger", "target", templates=["x {concept}", "y {concept}"], count=4, first_seed=0, pack="p", names=("a", "b")
    )
    assert [p.prompt for p in probes] == ["x a", "x b", "y a", "y b"]
    assert {p.concept for p in probes} == {"tiger"}


@pytest.mark.parametrize(("templates", "count"), [([], 4), (["{concept}"], 0), (["a picture"], 1)])
def test_probes_that_ask_for_nothing_are_refused(templates: list[str], count: int):
    with pytest.raises(ProbeError, match="expected"):
        build_probes("owl", "target", templates=templates, count=count, first_seed=0, pack="p")


def test_names_with_braces_are_taken_literally():
    [probe] = build_probes("{x}", "target", templates=["a {concept}"], count=1, first_seed=0, pack="p")
    assert probe.prompt == "a {x}"


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


def test_a_probe_is_identified_by_what_draws_its_picture():
    probe = Probe("a tiger", 1, "tiger", "target", "direct")
    assert probe.digest == Probe("a tiger", 1, "tiger", "retained", "other").digest
    assert (
        len({probe.digest, Probe("a tiger", 2, "", "target", "").digest, Probe("a lion", 1, "", "target", "").digest})
        == 3
    )
    assert probes_digest([probe]) != probes_digest([Probe("a tiger", 1, "tiger", "retained", "other")])


def test_packs_that_come_with_the_judge_load_and_have_stable_digests():
    assert pack_names() == ["direct", "style"]
    for name in pack_names():
        pack = load_pack(name)
        assert pack.name == name
        assert pack.digest == load_pack(name).digest
    changed = load_pack("direct").model_copy(update={"templates": ("{concept}!",)})
    assert changed.digest != load_pack("direct").digest


def test_style_prompts_pair_every_content_with_every_template_and_leave_targets_out():
    pack = load_pack("style")
    prompts = pack.prompts(without=["House", "camera"])
    assert len(prompts) == len(set(prompts)) == len(pack.templates) * (len(pack.contents) - 2)
    assert not any("house" in prompt or "camera" in prompt for prompt in prompts)
    assert len({prompt.split(" in ")[0] for prompt in prompts[:9]}) == 9


def test_a_pack_without_neutral_contents_is_refused():
    pack = Pack(name="p", kind="style", templates=("{content} {concept}",), contents=("house",))
    with pytest.raises(ProbeError, match="that is not a target"):
        pack.prompts(without=["house"])


def test_only_targets_are_left_out_of_style_prompts():
    plan = plan_of("tiger", "house", retained=("elephant",), styles=("night",), detectors=_wide_detectors())
    asked = " ".join(probe.prompt for probe in plan.probes["base"] if probe.role == "style")
    assert "house" not in asked
    assert "elephant" in asked


def _wide_detectors() -> Detectors:
    narrow = detectors()
    wide = ColourDetector()
    wide.labels = (*narrow.object.labels, "house", "elephant")
    return Detectors(object=wide, style=narrow.style)


@pytest.mark.parametrize("text", ["name: x\nkind: object\ntemplates: []", "name: x\nkind: object\nwords: [a]", "a: ["])
def test_a_malformed_pack_is_refused(tmp_path: Path, text: str):
    path = tmp_path / "pack.yaml"
    path.write_text(text)
    with pytest.raises(ProbeError, match="expected a valid probe pack"):
        load_pack(path)


def test_an_unknown_pack_is_refused_with_the_known_ones():
    with pytest.raises(ProbeError, match="direct, style"):
        load_pack("dirct")


def test_the_base_is_asked_a_part_of_what_the_candidate_is_asked_and_all_retained():
    plan = plan_of("tiger")
    assert plan.expected("candidate") == {("tiger", "direct"): 64, ("cat", "direct"): 8}
    assert plan.expected("base") == {("tiger", "direct"): 16, ("cat", "direct"): 8}
    assert set(plan.probes["base"]) <= set(plan.probes["candidate"])
    assert len({probe.seed for probe in plan.probes["candidate"]}) == 72


def test_a_concepts_probes_do_not_depend_on_what_else_is_judged():
    alone, together = plan_of("tiger"), plan_of("dog", "tiger", retained=("cat", "wolf"))
    assert [p for p in together.probes["candidate"] if p.concept == "tiger"] == [
        p for p in alone.probes["candidate"] if p.concept == "tiger"
    ]


def test_aliases_are_asked_for_in_a_pack_of_their_own():
    policy = Policy(probes_per_alias=32)
    plan = plan_of(Subject("tiger", aliases=("tigre", "cub")), policy=policy)
    assert plan.expected("candidate")["tiger", ALIAS_PACK] == 32
    assert all("tigre" in p.prompt or "cub" in p.prompt for p in plan.probes["candidate"] if p.pack == ALIAS_PACK)


def test_no_target_is_refused():
    with pytest.raises(ProtocolError, match="expected at least one target"):
        plan_of()


@pytest.mark.parametrize(
    "changes",
    [{"retained": ("tiger",)}, {"hidden": ("Tiger",)}, {"hidden": ("cat",)}, {"retained": ("cub",)}],
)
def test_a_concept_in_two_roles_is_refused(changes: dict):
    with pytest.raises(ProtocolError, match="expected every concept once"):
        plan_of(Subject("tiger", aliases=("cub",)), **changes)


def test_a_concept_without_a_label_is_refused_by_name_with_the_nearest_labels():
    with pytest.raises(UnknownLabelError, match=r"found 'tigger'.*tiger"):
        plan_of("tigger")


def test_styles_without_a_style_detector_are_refused():
    with pytest.raises(DetectorError, match="style head for 'night'"):
        plan_of("tiger", styles=("night",), detectors=Detectors(object=detectors().object))


@pytest.mark.parametrize("broken", [{"name": " "}, {"name": "x", "aliases": ("",)}])
def test_empty_names_are_refused(broken: dict):
    with pytest.raises(ProbeError, match="expected names"):
        Subject(**broken)
