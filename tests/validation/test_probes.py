import pytest
from colour_world import ColourDetector, detectors

from validation.detectors import Detectors
from validation.errors import DetectorError, ProbeError, ProtocolError, UnknownLabelError
from validation.plan import make_plan
from validation.policy import Policy
from validation.probes import Probe, Subject, build_probes, probes_digest


def plan_of(*targets: str | Subject, **changes):
    arguments = {"retained": ("cat",), "hidden": (), "styles": (), "policy": Policy(), "detectors": detectors()}
    return make_plan(targets, **(arguments | changes))


def test_probes_take_prompts_in_turn_and_seeds_upwards():
    probes = build_probes("owl", "target", prompts=["an owl", "the owl"], count=3, first_seed=7, pack="p")
    assert [(p.prompt, p.seed) for p in probes] == [("an owl", 7), ("the owl", 8), ("an owl", 9)]
    assert {(p.concept, p.role, p.pack) for p in probes} == {("owl", "target", "p")}


@pytest.mark.parametrize(("prompts", "count"), [([], 4), (["an owl"], 0)])
def test_probes_that_ask_for_nothing_are_refused(prompts: list[str], count: int):
    with pytest.raises(ProbeError, match="nothing asked is nothing shown"):
        build_probes("owl", "target", prompts=prompts, count=count, first_seed=0, pack="p")


def test_a_probe_is_identified_by_what_draws_its_picture():
    probe = Probe("a tiger", 1, "tiger", "target", "direct")
    assert probe.digest == Probe("a tiger", 1, "tiger", "retained", "other").digest
    assert (
        len({probe.digest, Probe("a tiger", 2, "", "target", "").digest, Probe("a lion", 1, "", "target", "").digest})
        == 3
    )
    assert probes_digest([probe]) != probes_digest([Probe("a tiger", 1, "tiger", "retained", "other")])


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


def test_the_base_is_asked_a_part_of_what_the_candidate_is_asked_and_all_retained():
    plan = plan_of("tiger")
    assert plan.expected("candidate") == {("tiger", "direct"): 158, ("cat", "direct"): 8}
    assert plan.expected("base") == {("tiger", "direct"): 16, ("cat", "direct"): 8}
    assert set(plan.probes["base"]) <= set(plan.probes["candidate"])
    assert len({probe.seed for probe in plan.probes["candidate"]}) == 166


def test_a_concepts_probes_do_not_depend_on_what_else_is_judged():
    alone, together = plan_of("tiger"), plan_of("dog", "tiger", retained=("cat", "wolf"))
    assert [p for p in together.probes["candidate"] if p.concept == "tiger"] == [
        p for p in alone.probes["candidate"] if p.concept == "tiger"
    ]


def test_every_target_is_asked_by_every_further_pack():
    policy = Policy(further_packs={"alias": 32, "composition": 48})
    plan = plan_of(Subject("tiger", aliases=("tigre", "cub")), policy=policy)
    assert plan.expected("candidate") == {
        ("tiger", "direct"): 158,
        ("tiger", "alias"): 32,
        ("tiger", "composition"): 48,
        ("cat", "direct"): 8,
    }
    assert plan.expected("base")["tiger", "alias"] == plan.expected("base")["tiger", "composition"] == 16
    asked = {pack: [p.prompt for p in plan.probes["candidate"] if p.pack == pack] for pack in policy.further_packs}
    assert all("tigre" in prompt or "cub" in prompt for prompt in asked["alias"])
    assert any("house" in prompt for prompt in asked["composition"])
    assert {"alias", "composition"} < plan.packs.keys()


def test_a_further_pack_leaves_the_other_probes_alone():
    alone, beside = (plan_of("tiger", policy=Policy(further_packs=packs)) for packs in ({}, {"paraphrase": 32}))
    both = plan_of("tiger", policy=Policy(further_packs={"composition": 64, "paraphrase": 32}))
    assert set(alone.probes["candidate"]) < set(beside.probes["candidate"]) < set(both.probes["candidate"])


def test_no_composition_names_another_target():
    policy = Policy(further_packs={"composition": 64})
    plan = plan_of("tiger", Subject("dog", aliases=("house",)), policy=policy)
    asked = [p.prompt for p in plan.probes["candidate"] if p.pack == "composition"]
    assert any("castle" in prompt for prompt in asked)
    assert not any("house" in prompt for prompt in asked)


def test_a_pack_that_has_no_name_for_a_target_asks_nothing_of_it():
    plan = plan_of(
        Subject("tiger", aliases=("cub",)), Subject("crab"), retained=(), policy=Policy(further_packs={"alias": 32})
    )
    assert plan.expected("candidate") == {("tiger", "direct"): 158, ("tiger", "alias"): 32, ("crab", "direct"): 158}


def test_what_a_model_would_cut_off_is_not_asked():
    policy = Policy(further_packs={"composition": 64})
    short = plan_of("tiger", policy=policy, is_readable=lambda prompt: len(prompt) < 20)
    asked = {p.prompt for p in short.probes["candidate"] if p.pack == "composition"}
    assert asked
    assert all(len(prompt) < 20 for prompt in asked)
    none = plan_of("tiger", policy=policy, is_readable=lambda _: False)
    assert none.expected("candidate") == {("tiger", "direct"): 158, ("cat", "direct"): 8}


@pytest.mark.parametrize(
    ("pack", "said"),
    [
        ("paraphrse", "found 'paraphrse', which is neither .* paraphrase"),
        ("captions", "prompts that name a concept in pack 'captions'"),
        ("unrelated", "prompts that name a concept in pack 'unrelated'"),
        ("nowhere/mine.yaml", "expected a readable YAML file, found nowhere"),
    ],
)
def test_a_further_pack_that_cannot_ask_is_refused(pack: str, said: str):
    with pytest.raises(ProbeError, match=said):
        plan_of("tiger", policy=Policy(further_packs={pack: 32}))


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
