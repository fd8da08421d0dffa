"""The edit as a whole: promised responses, determinism, refusal of what nobody knows."""

import hashlib
import itertools
import math
import re
import statistics
import subprocess
import sys
import warnings
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_pipelines import BUILDERS, build
from torch.nn.attention import SDPBackend, sdpa_kernel

import scapre
from scapre import (
    CheckpointError,
    Concept,
    DialError,
    Edit,
    InvalidConceptError,
    SingularSystemError,
    UnsupportedArchitectureError,
    unlearning,
)
from scapre.architectures import BaseModel
from scapre.embeddings import PromptEncoder, fill, templates_of
from scapre.methods import METHODS, Problem
from scapre.moments import Reading, encode_sentences, gather_statistics, read_text
from scapre.text import TextStack

CAT, GOGH = Concept("cat", aliases=("kitten",)), Concept("van gogh", "style")
RETAIN = ("dog", "horse", "apple", "monet")
LARGEST_RESIDUAL = {"oce": 3, "scapre-released": 3}  # these lead away from the target without leading to its anchor


def weights(pipeline) -> dict[str, torch.Tensor]:
    named = pipeline.unet.named_parameters()
    return {f"unet.{n}": p.detach().clone() for n, p in named if n.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))}


def features(pipeline, prompt: str) -> torch.Tensor:
    with torch.no_grad():
        return pipeline.encode_prompt(prompt, "cpu", 1, False)[0][0]


def unlearn(pipeline, concepts=(CAT, GOGH), retain=RETAIN, method="scapre", **dials) -> Edit:
    return scapre.unlearn(pipeline, list(concepts), list(retain), method, **{"vocabulary": 0, **dials})


@pytest.mark.parametrize("row_weights", ["uniform", "shared", "per_target"])
def test_target_answers_like_its_anchor_and_retained_text_as_before(make_pipeline, row_weights: str) -> None:
    # 160 dimensions, so that target and retained name have directions of their own in every sentence
    pipeline = make_pipeline(width=160)
    before = weights(pipeline)
    dials = {"anchor": "", "erasure_strength": 1e9, "ridge": 1e-5, "rank": 99, "noise": 1e-6, "slots": 1}
    edit = unlearn(pipeline, (Concept("cat"),), ("dog",), row_weights=row_weights, **dials)
    edit.apply(pipeline)
    target, anchor, kept = (
        features(pipeline, "a photo of a cat"),
        features(pipeline, ""),
        features(pipeline, "a photo of a dog"),
    )
    end = 6
    for name, weight in weights(pipeline).items():
        promised = before[name] @ anchor[end]
        gap = (before[name] @ target[end] - promised).norm()
        assert gap > 0.1 * promised.norm()  # the control: before the edit the answer differs
        assert (weight @ target[end] - promised).norm() < 1e-3 * gap
        assert (weight @ kept[end] - before[name] @ kept[end]).norm() < 2e-2 * gap
    assert max(edit.diagnostics["residual_response"].values()) < 1e-3


@pytest.mark.parametrize(("row_weights", "share"), [("uniform", 0.4), ("per_target", 0.3)])
def test_retention_strength_protects_what_is_retained(make_pipeline, row_weights: str, share: float) -> None:
    """What a share of forgetting costs retained text falls; the share itself depends on what is protected."""
    pipeline = make_pipeline(width=160)  # room for what targets and retained names do not share

    def cost(strength: float) -> float:
        found = unlearn(pipeline, row_weights=row_weights, retention_strength=strength).diagnostics
        return found["retained_response"] / (1.0 - statistics.mean(found["residual_response"].values()))

    costs = [cost(strength) for strength in (0.0, 1.0, 100.0)]
    assert costs == sorted(costs, reverse=True)
    assert costs[2] < share * costs[0]


@pytest.mark.parametrize("method", sorted(METHODS))
def test_erasure_strength_zero_changes_no_bit(pipeline, method: str) -> None:
    assert unlearn(pipeline, method=method, erasure_strength=0).is_identity
    assert not unlearn(pipeline, method=method).is_identity


@pytest.mark.parametrize("method", sorted(METHODS))
def test_nothing_to_forget_changes_no_bit(pipeline, method: str) -> None:
    edit = unlearn(pipeline, concepts=(), method=method)
    assert edit.is_identity
    assert edit.edited_digest == edit.base_digest


def test_rows_below_the_floor_keep_their_bits(pipeline) -> None:
    edit = unlearn(pipeline, row_weights="per_target", floor=0.5, geometry=0.3)
    untouched = sum(int((~change.bool()).all(dim=1).sum()) for change in edit.changes.values())
    assert untouched == edit.diagnostics["relevance"]["untouched_rows"] > 0
    assert unlearn(pipeline, row_weights="per_target").diagnostics["relevance"]["untouched_rows"] == 0


def test_order_of_concepts_and_names_is_irrelevant(pipeline) -> None:
    assert unlearn(pipeline).digest == unlearn(pipeline, concepts=(GOGH, CAT), retain=RETAIN[::-1]).digest


@pytest.mark.parametrize("row_weights", ["uniform", "shared", "per_target"])
def test_number_of_threads_is_irrelevant_and_restored(pipeline, row_weights: str) -> None:
    original = torch.get_num_threads()
    digests = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        digests.append(unlearn(pipeline, row_weights=row_weights, geometry=0.2).digest)
        assert torch.get_num_threads() == threads
    torch.set_num_threads(original)
    assert digests[0] == digests[1]


@pytest.mark.parametrize("threads", [1, 2])
def test_autocast_of_the_caller_is_irrelevant_and_restored(make_pipeline, threads: int) -> None:
    pipeline = make_pipeline(dtype=torch.float32)
    digest, prompt = unlearn(pipeline).digest, pipeline.tokenizer("a cat", return_tensors="pt").input_ids
    plain = pipeline.text_encoder(prompt).last_hidden_state
    original = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert unlearn(pipeline).digest == digest
            assert torch.is_autocast_enabled("cpu")
            assert not torch.equal(pipeline.text_encoder(prompt).last_hidden_state, plain)  # the control
    finally:
        torch.set_num_threads(original)


@pytest.mark.parametrize("device", [None, "meta"])
@pytest.mark.parametrize("kernels", [[SDPBackend.MATH], [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]])
def test_attention_and_device_of_the_caller_are_irrelevant_and_restored(make_pipeline, kernels, device) -> None:
    pipeline = make_pipeline(dtype=torch.float32)
    digest, prompt = unlearn(pipeline).digest, pipeline.tokenizer("a cat", return_tensors="pt").input_ids
    plain = pipeline.text_encoder(prompt).last_hidden_state
    with sdpa_kernel(kernels):
        differs = not torch.equal(pipeline.text_encoder(prompt).last_hidden_state, plain)
        assert differs == (SDPBackend.FLASH_ATTENTION not in kernels)  # the control
        with torch.device(device or "cpu"):
            assert unlearn(pipeline).digest == digest
            assert torch.empty(1).device.type == (device or "cpu")
        assert torch.backends.cuda.flash_sdp_enabled() == (SDPBackend.FLASH_ATTENTION in kernels)
        assert not torch.backends.cuda.mem_efficient_sdp_enabled()


def allow_for_all() -> None:
    torch.set_float32_matmul_precision("medium")


def allow_by_the_old_flag() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True


def allow_for_each() -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"


def allow_everywhere() -> None:
    torch.backends.fp32_precision = "tf32"


def allowed() -> list[str]:
    """Returns what torch tells of products in float32: for all, on CUDA, on the CPU."""
    try:
        told = torch.get_float32_matmul_precision()
    except RuntimeError:
        told = "contradictory"
    return [told, torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision]


@pytest.mark.parametrize("allow", [allow_for_all, allow_by_the_old_flag, allow_for_each, allow_everywhere])
def test_precision_that_the_caller_allows_is_irrelevant_and_restored(make_pipeline, allow: Callable[[], None]) -> None:
    pipeline, seen = make_pipeline(dtype=torch.float32), []
    digest = unlearn(pipeline).digest
    pipeline.text_encoder.register_forward_hook(lambda *_: seen.append(allowed()))
    strict = allowed()
    allow()
    try:
        asked = allowed()
        assert asked != strict
        assert unlearn(pipeline).digest == digest
        assert allowed() == asked
        assert {*map(tuple, seen)} == {("highest", "ieee", "ieee")}
        if allow is allow_everywhere:
            torch.backends.fp32_precision = "none"
            assert allowed() == strict  # what is inherited still is
    finally:
        torch.backends.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")
        torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision = strict[1:]


@pytest.mark.parametrize(("reach", "is_told"), [(0.0, True), (0.99, True), (None, False)])
def test_answers_that_do_not_go_as_far_as_asked_are_told(pipeline, reach: float | None, is_told: bool) -> None:
    dials = {"vocabulary": 0, "balance": "answers"}
    if reach is None:  # as far as they went
        reach = unlearn(pipeline, **dials).diagnostics["answers_gone"]["cat"]
    edit = scapre.unlearn(pipeline, [CAT], RETAIN, reach=reach, **dials)
    assert any("another part of their way than reach" in told for told in edit.diagnostics["warnings"]) == is_told


@pytest.mark.parametrize("ask", [scapre.unlearn, scapre.preflight])
def test_a_device_without_float64_is_refused_with_a_way_out(pipeline, monkeypatch, ask) -> None:
    ask(pipeline, [CAT], RETAIN, vocabulary=0)  # the control
    monkeypatch.setattr(unlearning, "WITHOUT_FLOAT64", {"cpu"})
    with pytest.raises(UnsupportedArchitectureError, match=r"has float64.*found '.*' on cpu; .*to\('cpu'\)"):
        ask(pipeline, [CAT], RETAIN, vocabulary=0)


@pytest.mark.parametrize("family", BUILDERS)
def test_no_randomness_is_consumed(family: str) -> None:
    pipeline, state = build(family), torch.get_rng_state()
    edit = unlearn(pipeline)
    edit.apply(pipeline)
    edit.revert(pipeline)
    assert torch.equal(torch.get_rng_state(), state)


def test_pipeline_is_left_alone(pipeline) -> None:
    pipeline.text_encoder.train()
    frozen = next(pipeline.text_encoder.children()).eval()
    before = scapre.base_digest(pipeline)
    unlearn(pipeline)
    assert scapre.base_digest(pipeline) == before
    assert pipeline.text_encoder.training
    assert not frozen.training


def test_two_processes_write_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    code = (
        "import sys, scapre\n"
        "concepts = [scapre.Concept('cat'), scapre.Concept('monet', 'style')]\n"
        "scapre.unlearn(sys.argv[1], concepts, ['dog'], withheld=['zebra'], vocabulary=40).save(sys.argv[2])\n"
    )
    digests = set()
    for run in range(2):
        out = tmp_path / f"{run}.safetensors"
        subprocess.run([sys.executable, "-c", code, str(checkpoint), str(out)], check=True, timeout=300)
        digests.add(hashlib.sha256(out.read_bytes()).hexdigest())
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("dial", "values"),
    [
        ("erasure_strength", (0.1, 1.0)),
        ("balance", ("targets", "answers", "none")),
        ("ridge", (0.01, 0.1)),
        ("retention_strength", (0.5, 1.0)),
        ("conflict_strength", (0.0, 0.5)),
        ("geometry", (0.0, 0.1)),
        ("row_weights", ("shared", "per_target", "uniform")),
        ("rank", ("auto", 1, 3)),
        ("slots", (0, 4)),
        ("vocabulary", (0, 5)),
        ("anchor", ("", "object", "nearest")),
    ],
)
def test_every_dial_turns_something(pipeline, dial: str, values: tuple) -> None:
    changes = [unlearn(pipeline, **{dial: value}).changes for value in values]
    for first, second in itertools.pairwise(changes):
        assert any(not torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("dial", "values"), [("noise", ("auto", 0.5)), ("floor", (0.0, 0.4)), ("neighbours", (1, 2))])
def test_every_dial_of_the_decoupler_turns_something_once_it_is_on(pipeline, dial: str, values: tuple) -> None:
    changes = [unlearn(pipeline, row_weights="per_target", **{dial: value}).changes for value in values]
    assert any(not torch.equal(changes[0][name], changes[1][name]) for name in changes[0])


@pytest.mark.parametrize(("dial", "values"), [("anchor_cosine", (0.0, 1.0)), ("longest_word", (1, 0))])
def test_dials_of_the_vocabulary_turn_something(pipeline, dial: str, values: tuple) -> None:
    first, second = (scapre.unlearn(pipeline, [CAT], **{dial: value}).changes for value in values)
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_synonym_cosine_decides_what_the_vocabulary_may_keep(pipeline) -> None:
    strict, lax = (unlearn(pipeline, vocabulary=2000, longest_word=0, synonym_cosine=value) for value in (0.3, 1.0))
    assert len(strict.diagnostics["retain_found"]) < len(lax.diagnostics["retain_found"])
    assert set(strict.diagnostics["synonyms_left_out"]) & set(lax.diagnostics["retain_found"])


def test_vocabulary_is_used_by_default_and_withheld_names_are_not_in_it(pipeline) -> None:
    edit = scapre.unlearn(pipeline, [CAT], withheld=["clock"], longest_word=0)
    found = edit.diagnostics["retain_found"]
    assert len(found) > 900
    assert not [name for name in found if "clock" in name or name == "cat"]
    assert set(found) <= set(edit.spec.retain)
    assert edit.spec.withheld == ("clock",)


def test_the_text_encoder_is_let_go_before_anything_is_solved(make_pipeline, tmp_path: Path, monkeypatch) -> None:
    make_pipeline(dtype=torch.float32).save_pretrained(tmp_path / "base")
    read, encoders, alive = unlearning.read_base, [], []

    def watched_read(path: Path) -> BaseModel:
        base = read(path)
        encoders.append(weakref.ref(base.text.encoder))
        return base

    def watched_problem(*given: object) -> Problem:
        alive.append([encoder() for encoder in encoders])
        return Problem.of(*given)

    monkeypatch.setattr(unlearning, "read_base", watched_read)
    monkeypatch.setattr(unlearning, "Problem", SimpleNamespace(of=watched_problem))
    unlearn(tmp_path / "base")
    assert alive == [[None]]
    unlearn(make_pipeline(dtype=torch.float32))  # the control: the caller holds the pipeline
    assert alive[1][0] is None
    assert alive[1][1] is not None


@pytest.mark.parametrize("method", ["scapre", "scapre-encoder"])
@pytest.mark.parametrize("act", [scapre.unlearn, scapre.preflight])
def test_progress_counts_the_texts_that_are_read(pipeline, tmp_path: Path, act, method: str) -> None:
    calls: list[list[tuple[int, int]]] = []
    act(pipeline, [CAT], RETAIN, method, cache=tmp_path / "cache.db")
    for cache in (None, tmp_path / "cache.db"):
        calls.append([])
        concepts = [CAT, Concept("van gogh", anchor="horse")]
        act(pipeline, concepts, RETAIN, method, cache=cache, on_progress=lambda *n: calls[-1].append(n))
    for told in calls:
        assert told == sorted(told)
        assert all(0 < done <= known for done, known in told)
        assert told[-1][0] == told[-1][1]
    assert calls[0][-1] > calls[1][-1]  # what is in the cache is not read again


def test_whoever_stops_the_reading_gets_threads_and_lock_back(pipeline) -> None:
    def stop(done: int, known: int) -> None:
        raise KeyboardInterrupt

    before = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        scapre.unlearn(pipeline, [CAT], retain=RETAIN, on_progress=stop)
    assert torch.get_num_threads() == before
    with ThreadPoolExecutor(1) as other:
        assert other.submit(scapre.unlearn, pipeline, [CAT], vocabulary=0).result(timeout=60)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_diagnostics_say_what_happened(pipeline, method: str) -> None:
    edit = unlearn(pipeline, method=method)
    found = edit.diagnostics
    assert set(found["drift"]) == set(edit.changes)
    assert set(found["residual_response"]) == {"cat", "van gogh"}
    assert 0 < found["residual_response"]["cat"] < LARGEST_RESIDUAL.get(method, 1)
    assert found["condition_number"] > 1
    assert {"encode", "statistics", "solve", "measure", "build"} <= set(found["seconds"])


def test_histogram_counts_every_row_and_target(pipeline) -> None:
    edit = unlearn(pipeline, row_weights="per_target")
    rows = sum(len(change) for change in edit.changes.values())
    told = edit.diagnostics["relevance"]
    counted = told["row_weight_histogram"]
    assert sum(counted) == 2 * rows
    assert counted[-1] >= 2 * len(edit.changes)  # every target has a row with α = 1 in each projection
    middles = sum(count * (place + 0.5) / len(counted) for place, count in enumerate(counted)) / (2 * rows)
    assert told["mean_row_weight"] == pytest.approx(middles, abs=0.5 / len(counted))


def test_uce_equals_its_formula(pipeline) -> None:
    edit = unlearn(pipeline, method="uce", ridge=0.7, retention_strength=0.2, erasure_strength=3.0, slots=2)
    reading = Reading(anchor="", vocabulary=0)
    encoder = PromptEncoder(TextStack(pipeline.tokenizer, pipeline.text_encoder))
    concepts, named = edit.spec.concepts, edit.spec.retain
    passage = read_text(encoder, concepts, named=named, proposable=(), reading=reading)
    encode_sentences(encoder, passage, padding_slots=2)
    statistics = gather_statistics(encoder, passage, padding_slots=2, device=torch.device("cpu"))
    retained = []
    for name in named:
        for template in templates_of(concepts):
            prompt = encoder[fill(template, name).text]
            retained += list(prompt.features[[*range(prompt.end + 1), *prompt.padding(2)]])
    for name, weight in weights(pipeline).items():
        left, right = 0.7 * torch.eye(32, dtype=torch.float64), 0.7 * weight
        for target in statistics.targets:
            for feature, anchor in zip(target.features, target.anchors, strict=True):
                left = left + 3.0 * torch.outer(feature, feature)
                right = right + 3.0 * torch.outer(weight @ anchor, feature)
        for feature in retained:
            left = left + 0.2 * torch.outer(feature, feature)
            right = right + 0.2 * torch.outer(weight @ feature, feature)
        expected = torch.linalg.solve(left, right.mT).mT
        torch.testing.assert_close(weight + edit.delta(name, weight), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "magic"}, DialError, "among .*scapre.*, found 'magic'"),
        ({"strength": 1.0}, DialError, "no dial strength; it has anchor"),
        ({"ridge": -1}, DialError, "dial ridge: expected a number of at least 0"),
        ({"ridge": float("nan")}, DialError, "dial ridge"),
        ({"ridge": True}, DialError, "dial ridge"),
        ({"ridge": 10**400}, DialError, "dial ridge"),
        ({"neighbours": 10**30}, DialError, "dial neighbours"),
        ({"rank": 1.5}, DialError, "a whole number of at least 1"),
        ({"floor": 1.5}, DialError, "at most 1"),
        ({"floor": Fraction(10**400)}, DialError, "at most 1"),
        ({"floor": math.nan}, DialError, "at most 1"),
        ({"floor": np.True_}, DialError, "at most 1"),
        ({"noise": "loud"}, DialError, "'auto' or a number"),
        ({"row_weights": "mine"}, DialError, "'uniform' or 'per_target' or 'shared'"),
        ({"anchor": "nearset"}, DialError, "did you mean 'nearest'"),
        ({"anchor": "Nearest"}, DialError, "did you mean 'nearest'"),
        ({"anchor": "a\x00b"}, InvalidConceptError, "dial anchor: 'a.x00b' holds control characters"),
        ({"anchor": "a" * 300}, InvalidConceptError, "dial anchor: expected at most 200 characters, found 300"),
        ({"anchor": 3}, DialError, "dial anchor: expected 'nearest' or any other text, found 3"),
        ({"concepts": (CAT, Concept("Cats"))}, InvalidConceptError, "listed twice"),
        ({"retain": ("kitten",)}, InvalidConceptError, "both to be forgotten and retained"),
        ({"ridge": 0, "retention_strength": 0}, SingularSystemError, "raise the dial ridge"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_next_step(pipeline, arguments: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        unlearn(pipeline, **arguments)


def test_an_anchor_may_be_any_text_and_is_cleaned(pipeline) -> None:
    assert unlearn(pipeline, anchor="  a   dog ").spec.dials["anchor"] == "a dog"
    assert unlearn(pipeline, anchor="near a forest").spec.dials["anchor"] == "near a forest"


@pytest.mark.parametrize("method", ["uce", "oce", "scapre-released"])
def test_much_of_an_answer_left_is_warned_about_where_answers_lead_to_anchors(pipeline, method: str) -> None:
    weak = unlearn(pipeline, method=method, erasure_strength=1e-3).diagnostics
    assert min(weak["residual_response"].values()) > 0.7
    assert any("answer nearly as far" in warning for warning in weak["warnings"]) == (method == "uce")


def test_a_blank_anchor_is_the_empty_prompt(pipeline) -> None:
    blank, empty = (unlearn(pipeline, anchor=anchor).changes for anchor in (" ", ""))
    assert all(torch.equal(blank[name], empty[name]) for name in empty)


def test_a_bare_name_stands_for_an_object(pipeline) -> None:
    by_name, written_out = (scapre.unlearn(pipeline, [one], vocabulary=0) for one in ("cat", Concept("cat")))
    assert by_name.digest == written_out.digest
    for wrong in ("cat", [7]):
        with pytest.raises(InvalidConceptError, match="expected"):
            scapre.unlearn(pipeline, wrong)


def test_weights_that_are_not_numbers_never_come_out(pipeline) -> None:
    pipeline.text_encoder.get_parameter("final_layer_norm.weight").data.fill_(torch.nan)
    with pytest.raises(CheckpointError, match="finite features"):
        unlearn(pipeline)


def test_projections_of_eight_bits_take_an_edit(pipeline) -> None:
    for name, parameter in pipeline.unet.named_parameters():
        if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
            parameter.data = parameter.data.to(torch.float8_e4m3fn)
    before = scapre.base_digest(pipeline)
    edit = unlearn(pipeline)
    edit.apply(pipeline)
    assert scapre.base_digest(pipeline) == edit.edited_digest != before
    edit.revert(pipeline)
    assert scapre.base_digest(pipeline) == before


def test_a_projection_without_rows_is_refused(pipeline) -> None:
    layer = pipeline.unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn2.to_k")
    layer.weight = torch.nn.Parameter(layer.weight[:0])
    with pytest.raises(
        UnsupportedArchitectureError, match=r"rows of 32 numbers, .* found shape \(0, 32\) in 'unet.mid"
    ):
        unlearn(pipeline)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_projections_that_are_not_numbers_are_named(pipeline, method: str) -> None:
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    pipeline.unet.get_parameter(name).data[0, 0] = torch.inf
    if METHODS[method].edits_memories:  # the control: it neither reads nor changes them
        assert not unlearn(pipeline, method=method).is_identity
        return
    with pytest.raises(CheckpointError, match=f"found NaN or infinity in 'unet.{name}'; restore"):
        unlearn(pipeline, method=method)


def test_other_classes_are_refused_by_name(pipeline) -> None:
    class KandinskyPipeline:
        pass

    with pytest.raises(UnsupportedArchitectureError, match="KandinskyPipeline"):
        unlearn(KandinskyPipeline())
    pipeline.text_encoder = pipeline.vae
    with pytest.raises(UnsupportedArchitectureError, match="AutoencoderKL"):
        unlearn(pipeline)


@pytest.mark.filterwarnings("default::scapre.errors.UnlearningWarning")
def test_what_is_doubtful_is_warned_of_where_the_edit_is_asked_for(pipeline) -> None:
    with pytest.warns(scapre.UnlearningWarning, match="'cat' becomes .* found by the engine") as caught:
        edit = scapre.unlearn(pipeline, ["cat"], vocabulary=20, longest_word=0)
    assert [str(one.message) for one in caught] == edit.diagnostics["warnings"]
    assert {one.filename for one in caught} == {__file__}
    with warnings.catch_warnings():
        warnings.simplefilter("error", scapre.UnlearningWarning)
        scapre.unlearn(pipeline, [Concept("cat", anchor="dog")], ["dog", "horse"], vocabulary=0)


def test_doubts_that_text_tells_of_are_told_before_anything_is_solved(pipeline, monkeypatch) -> None:
    monkeypatch.setattr(unlearning, "gather_statistics", None)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "dial reach")
        with pytest.raises(scapre.UnlearningWarning, match="dial reach plays no part"):
            scapre.unlearn(pipeline, ["cat"], ["dog"], vocabulary=0, reach=0.1)


@pytest.mark.parametrize("five", [np.int64(5), np.float32(5), Fraction(5)])
def test_numbers_of_other_kinds_are_numbers(pipeline, five: object) -> None:
    ours, plain = (
        scapre.unlearn(pipeline, ["cat"], ["dog"], vocabulary=0, slots=np.int32(4), erasure_strength=strength)
        for strength in (five, 5)
    )
    assert ours.digest == plain.digest


@pytest.mark.parametrize(
    ("dials", "said"),
    [
        ({"floor": 0.5}, "dial floor plays no part: it is read with row_weights=per_target or shared only"),
        ({"reach": 0.2}, "dial reach plays no part: it is read with balance=answers only"),
        ({"method": "scapre-encoder", "reach": 0.2}, "dial reach plays no part: it is read with balance=answers only"),
        ({"own_directions": 2, "row_weights": "shared"}, "it is read with row_weights=per_target only"),
    ],
)
def test_a_dial_that_plays_no_part_is_said(pipeline, dials: dict, said: str) -> None:
    edit = scapre.unlearn(pipeline, [CAT], RETAIN, vocabulary=0, **dials)
    assert any(said in warning for warning in edit.diagnostics["warnings"])
    used = {"floor": 0.5, "row_weights": "shared", "reach": 0.7}
    assert not any("plays no part" in told for told in scapre.preflight(pipeline, [CAT], RETAIN, **used).warnings)


def test_every_dial_that_is_read_with_another_names_one_of_its_words() -> None:
    for method in METHODS.values():
        for other, words in filter(None, (dial.read_with for dial in method.dials.values())):
            assert set(words) <= set(method.dials[other].choices)


@pytest.mark.parametrize(
    ("family", "method", "said"),
    [
        ("stable-diffusion-1", "scapre", "3 targets are many .* of 32 numbers: .* or use method scapre-encoder"),
        ("flux", "scapre", "3 targets are many .* of 32 numbers: .* name what must survive$"),
        ("stable-diffusion-1", "scapre-encoder", None),
    ],
)
def test_a_crowd_is_said_where_there_is_no_room_for_it(family: str, method: str, said: str | None) -> None:
    def crowds(*names: str) -> list[str]:
        found = scapre.preflight(build(family), names, ["apple"], method=method, vocabulary=0).warnings
        return [warning for warning in found if "are many" in warning]

    assert crowds("cat", "dog") == []
    many = crowds("cat", "dog", "horse")
    assert many == [] if said is None else re.search(said, many[0])
