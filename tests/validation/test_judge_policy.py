from pathlib import Path

import pytest

from validation.errors import PolicyError
from validation.policy import Policy, load_policy, parse_policy


def test_the_default_policy_is_the_documented_one():
    policy = Policy()
    assert (policy.residual_limit, policy.confidence, policy.retained_margin) == (0.10, 0.95, 0.05)
    assert (policy.probes_per_target, policy.probes_per_target_base, policy.probes_per_retained) == (158, 16, 8)
    assert (policy.sampling, policy.stage_size, policy.retained_concept_margin) == ("sequential", 8, 0.25)
    assert (policy.positive_control_floor, policy.negative_control_ceiling) == (0.5, 0.05)
    assert policy.hidden_margin is None


def test_every_field_is_described():
    assert all(field.description for field in Policy.model_fields.values())


def test_a_policy_file_overrides_only_what_it_names(tmp_path: Path):
    path = tmp_path / "policy.yaml"
    path.write_text("residual_limit: 0.2\nhidden_margin: 0.1\n")
    assert load_policy(path) == Policy(residual_limit=0.2, hidden_margin=0.1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("residul_limit: 0.1", "residul_limit.*known keys: residual_limit"),
        ("residual_limit: 10", "residual_limit: Input should be less than 1"),
        ("residual_limit: '0.1'", "residual_limit: Input should be a valid number"),
        ("confidence: 0.4", "confidence: Input should be greater than 0.5"),
        ("confidence: .nan", "confidence"),
        ("probes_per_target: 20", "probes_per_target of at least 32, found 20"),
        ("{probes_per_target: 20, sampling: fixed}", "probes_per_target of at least 29, found 20"),
        ("probes_per_target_base: 159", "probes_per_target_base of at most probes_per_target"),
        ("sampling: whenever", "sampling: Input should be 'fixed' or 'sequential'"),
        ("stage_size: 0", "stage_size"),
        ("stage_size: 159", "stage_size of at most probes_per_target"),
        ("retained_concept_margin: 0.01", "retained_concept_margin of at least retained_margin"),
        ("further_packs: {alias: 5}", r"further_packs\.alias of at least 32, found 5"),
        ("further_packs: {alias: many}", r"further_packs\.alias: Input should be a valid integer"),
        ("further_packs: {direct: 32}", "none of them direct or style, found .'direct'"),
        ("further_packs: {a/x.yaml: 32, b/x.yaml: 32}", "different names.*found .'x'"),
        ("residual_limit: 0.1\nresidual_limit: 0.2", "key 'residual_limit' stands twice"),
        ("- 1", "expected a mapping"),
        ("a: [", "expected a readable YAML file"),
    ],
)
def test_a_faulty_policy_is_refused_by_name(tmp_path: Path, text: str, message: str):
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    with pytest.raises(PolicyError, match=message):
        load_policy(path)


def test_a_policy_that_is_not_utf_8_is_refused_in_one_line(tmp_path: Path):
    path = tmp_path / "policy.yaml"
    path.write_bytes("further_packs: {naïve: 32}".encode("latin-1"))
    with pytest.raises(PolicyError, match="save it as UTF-8") as refusal:
        load_policy(path)
    assert "\n" not in str(refusal.value)


def test_a_missing_policy_file_is_refused(tmp_path: Path):
    with pytest.raises(PolicyError, match=r"nowhere\.yaml"):
        load_policy(tmp_path / "nowhere.yaml")


def test_a_policy_survives_its_own_json():
    policy = Policy(residual_limit=0.2)
    assert parse_policy(policy.model_dump(mode="json"), source="evidence") == policy
