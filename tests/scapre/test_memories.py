"""Edits of a text encoder's memory: what it reads, the promised answers, all else as it was, and every way out."""

import copy
import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from hypothesis import given
from hypothesis import strategies as st
from tiny_pipelines import build, draw
from torch import Tensor
from torch.nn.utils import prune

import scapre
from scapre import CheckpointError, Concept, Edit, UnsupportedArchitectureError, moments
from scapre.checkpoint import read_base
from scapre.checkpoint.tensor_files import read_header
from scapre.embeddings import PromptEncoder
from scapre.memories import read_memories
from scapre.methods import Problem
from scapre.moments import Outputs, Reading, gather_memories, gather_statistics, read_text
from tests.scapre.problems import assert_close, problem_of, solve

METHOD = "scapre-encoder"
FAMILIES = {"stable-diffusion-1": 64, "stable-diffusion-2": 64, "stable-diffusion-xl": 96}
MEMORIES = {
    "stable-diffusion-1": ["text_encoder.encoder.layers.1.mlp.fc2.weight"],
    "stable-diffusion-2": ["text_encoder.encoder.layers.1.mlp.fc2.weight"],
    # features are read before the last of two layers
    "stable-diffusion-xl": [f"text_encoder{n}.encoder.layers.0.mlp.fc2.weight" for n in ("", "_2")],
}
END = 6


@pytest.fixture(params=sorted(FAMILIES))
def family(request) -> str:
    return request.param


def unlearn(given, target: str = "cat", **options) -> Edit:
    return scapre.unlearn(given, [target], ["dog"], METHOD, **{"vocabulary": 0, **options})


def features(pipeline: DiffusionPipeline, prompt: str) -> Tensor:
    with torch.no_grad():
        return pipeline.encode_prompt(prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)[
            0
        ][0]


def everything(pipeline: DiffusionPipeline) -> dict[str, Tensor]:
    parts = ((name, part) for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module))
    return {f"{part}.{name}": held.clone() for part, own in parts for name, held in own.state_dict().items()}


def plain(name: str) -> str:
    return name.replace(".text_model.", ".")


def test_a_target_is_read_as_its_anchor_retained_text_as_before_and_nothing_else_changes(family: str) -> None:
    # a memory wide enough that target and retained name have directions of their own in every sentence
    pipeline = build(family, width=FAMILIES[family], clip={"intermediate_size": 256})
    before = everything(pipeline)
    target, anchor, kept = (features(pipeline, prompt) for prompt in ("a photo of a cat", "", "a photo of a dog"))
    edit = unlearn(pipeline, anchor="", erasure_strength=1e6, ridge=1e-6, retention_strength=100, slots=1)
    edit.apply(pipeline)
    assert list(edit.changes) == MEMORIES[family]
    after = everything(pipeline)
    changed = {plain(name) for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(MEMORIES[family])
    gap = (target[END] - anchor[END]).norm()
    assert gap > 0.1 * target[END].norm()  # the control: before the edit they are read apart
    assert (features(pipeline, "a photo of a cat")[END] - anchor[END]).norm() < 1e-2 * gap
    assert (features(pipeline, "a photo of a dog")[END] - kept[END]).norm() < 0.1 * gap
    assert draw(pipeline, family, "cat").isfinite().all()
    edit.revert(pipeline)
    assert all(torch.equal(held, before[name]) for name, held in everything(pipeline).items())


def test_what_is_read_is_what_the_memory_reads_and_what_its_layer_gives(family: str) -> None:
    base = read_base(build(family, width=FAMILIES[family]))
    for name, memory in read_memories(base).items():
        prompt = memory.in_float32().encode(["a photo of a cat"])[0]
        heard, told = prompt.features.split([memory.memory_width, memory.width - memory.memory_width], dim=1)
        assert memory.weight_name == name
        assert heard.shape[1] == base.weights.encoders[name].shape[1]
        with torch.no_grad():
            ids = memory.tokenizer(["a photo of a cat"], padding="max_length", max_length=32, return_tensors="pt")
            states = memory.encoder(ids.input_ids, output_hidden_states=True).hidden_states
            layers = getattr(memory.encoder, "text_model", memory.encoder).encoder.layers
            layer, before = layers[memory.layer], states[memory.layer - 1]
            mask = torch.full((32, 32), -torch.inf, dtype=before.dtype).triu(1)[None, None]
            middle = before + layer.self_attn(layer.layer_norm1(before), attention_mask=mask)[0]
            inside = layer.mlp.activation_fn(layer.mlp.fc1(layer.layer_norm2(middle)))
            told_by_hand = middle + layer.mlp.fc2(inside)
        rows = len(prompt.features)
        assert_close(heard.detach(), inside[0, :rows])
        assert_close(told.detach(), told_by_hand[0, :rows])


def test_text_read_part_by_part_says_what_it_says_at_once(family: str, monkeypatch) -> None:
    monkeypatch.setattr(moments, "TARGETS_READ_AT_ONCE", 1)
    monkeypatch.setattr(moments, "SENTENCES_READ_AT_ONCE", 7)
    base = read_base(build(family, width=FAMILIES[family]))
    reading, concepts = Reading(vocabulary=9), [Concept("cat"), Concept("van gogh", "style")]
    encoder = PromptEncoder(base.text)
    passage = read_text(encoder, concepts, named=["dog"], proposable=["horse", "apple", "tree"], reading=reading)
    for memory in read_memories(base).values():
        width, device, read = memory.memory_width, torch.device("cpu"), encoder.followed_by(memory)
        found = gather_memories(read, passage, padding_slots=4, device=device, width=width)
        whole = encoder.followed_by(memory)
        whole.encode(itertools.chain(*(placed.prompts for placed in passage.targets), *passage.retained.values()))
        expected = gather_statistics(whole, passage, padding_slots=4, device=device)
        assert found.retained.counts == expected.retained.counts
        assert len(set(found.retained.counts.values())) == 3  # the control: groups that can be told apart
        for group, total in expected.retained.sums.items():
            assert_close(found.retained.sums[group], total[:width, :width])
            energy = float(total.diagonal()[width:].sum())
            assert found.retained.output_energies[group] == pytest.approx(energy)
        for part, both in zip(found.targets, expected.targets, strict=True):
            assert_close(torch.cat([part.features, part.outputs.target], dim=1), both.features)
            assert_close(torch.cat([part.anchors, part.outputs.anchor], dim=1), both.anchors)
            assert_close(torch.cat([part.neutrals[0], part.outputs.neutral], dim=1), both.neutrals[0])
            assert torch.equal(part.weights, both.weights)


def with_outputs(problem: Problem, seed: int) -> Problem:
    source = torch.Generator().manual_seed(seed)
    targets = tuple(
        dataclasses.replace(
            target,
            outputs=Outputs(*torch.randn(3, *size, generator=source, dtype=torch.float64)),
        )
        for target in problem.statistics.targets
        for size in [(len(target.features), len(problem.base))]
    )
    return dataclasses.replace(problem, statistics=dataclasses.replace(problem.statistics, targets=targets))


@given(
    seed=st.integers(0, 99),
    strength=st.floats(0.1, 50),
    ridge=st.floats(1e-3, 1),
    kept=st.floats(0, 100),
)
def test_the_gradient_of_the_objective_is_zero(seed: int, strength: float, ridge: float, kept: float) -> None:
    problem = with_outputs(problem_of(seed), seed)
    statistics, width = problem.statistics, problem.base.shape[1]
    delta = solve(problem, METHOD, erasure_strength=strength, ridge=ridge, retention_strength=kept).delta
    moment = statistics.retained.second_moment
    gram = kept * moment + ridge * torch.trace(moment) / width * torch.eye(width, dtype=torch.float64)

    def gradient(change: Tensor) -> Tensor:
        change = change.clone().requires_grad_()
        loss = ((change @ gram) * change).sum()
        for target in statistics.targets:
            slots = (target.weights[:, None] * target.features).mT @ target.features
            largest = torch.linalg.eigvals(torch.linalg.solve(gram, slots)).real.max()
            misses = (target.features @ change.mT - target.outputs.shifts).square().sum(dim=1)
            loss = loss + strength / largest * (target.weights * misses).sum()
        loss.backward()
        return change.grad

    scale = gradient(torch.zeros_like(delta)).norm()
    assert gradient(delta).norm() < 1e-8 * scale
    assert gradient(1.01 * delta).norm() > 1e-4 * scale  # the control


def test_without_shifts_it_is_the_default_method() -> None:
    dials = {"erasure_strength": 4.0, "ridge": 0.05, "retention_strength": 20.0}
    problem = problem_of()
    assert_close(solve(problem, METHOD, **dials).delta, solve(problem, "scapre", **dials).delta)
    assert float((solve(with_outputs(problem, 0), METHOD, **dials).delta - solve(problem, METHOD).delta).norm()) > 0.1


@pytest.mark.parametrize("family", ["stable-diffusion-3", "flux", "pixart-sigma", "sana"])
@pytest.mark.parametrize("act", [scapre.unlearn, scapre.preflight])
def test_models_that_read_text_otherwise_are_refused_before_it_is_read(family: str, act: Callable) -> None:
    read: list[tuple[int, int]] = []
    with pytest.raises(UnsupportedArchitectureError, match=f"CLIP alone, found {family}"):
        act(build(family), ["cat"], ["dog"], METHOD, on_progress=lambda *n: read.append(n))
    assert not read


def test_a_memory_without_a_weight_of_its_own_is_refused() -> None:
    pipeline = build("stable-diffusion-1")
    prune.identity(pipeline.text_encoder.encoder.layers[1].mlp.fc2, "weight")
    with pytest.raises(UnsupportedArchitectureError, match=r"plain floating-point weight .*fc2.* found none"):
        unlearn(pipeline)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_model_is_left_as_it_was_and_half_precision_is_read_in_float32(dtype: torch.dtype) -> None:
    pipeline = build("stable-diffusion-1", dtype=dtype)
    before = everything(pipeline)
    edit = unlearn(pipeline)
    assert all(torch.equal(held, before[name]) for name, held in everything(pipeline).items())
    for module in pipeline.text_encoder.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    name = MEMORIES["stable-diffusion-1"][0]
    wider = copy.deepcopy(pipeline).to(torch.float64)
    found, exact = (one.delta(name, everything(of)[name]) for one, of in ((edit, pipeline), (unlearn(wider), wider)))
    assert_close(found, exact, 1e-4 if dtype == torch.float32 else 1e-2)
    assert not edit.is_identity


def test_pipeline_and_folder_one_thread_and_two_give_one_edit(family: str, tmp_path: Path) -> None:
    pipeline = build(family, dtype=torch.float32, width=FAMILIES[family])
    pipeline.save_pretrained(tmp_path / "base")
    threads, told = torch.get_num_threads(), []
    digests = {unlearn(tmp_path / "base", on_progress=lambda *n: told.append(n)).digest}
    for count in (1, 2):
        torch.set_num_threads(count)
        digests.add(unlearn(pipeline).digest)
    torch.set_num_threads(threads)
    assert len(digests) == 1
    assert digests != {unlearn(pipeline, "horse").digest}
    assert told == sorted(told)  # features and memories are one course
    assert told[-1][0] == told[-1][1]


def test_a_merged_folder_differs_in_the_memory_alone_and_the_base_does_not(family: str, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    build(family, dtype=torch.float32, width=FAMILIES[family]).save_pretrained(folder)
    before = {file: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
    edit = unlearn(folder)
    out = scapre.merge(edit, folder, tmp_path / "out")
    assert {file: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()} == before
    changed = {
        file.relative_to(folder) for file in before if (out / file.relative_to(folder)).read_bytes() != before[file]
    }
    assert changed == {Path(name.split(".")[0]) / "model.safetensors" for name in MEMORIES[family]}
    assert scapre.base_digest(out) == edit.edited_digest
    again = DiffusionPipeline.from_pretrained(out, local_files_only=True)
    edit.revert(again)
    assert scapre.base_digest(again) == edit.base_digest


def test_a_single_file_of_either_origin_wears_the_edit(family: str, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    clip = {"clip": {"hidden_act": "gelu"}} if family == "stable-diffusion-2" else {}
    build(family, dtype=torch.float32, width=FAMILIES[family], **clip).save_pretrained(folder)
    edit, plain_file = unlearn(folder), tmp_path / "plain.safetensors"
    scapre.export_single_file(scapre.unlearn(folder, []), folder, plain_file)
    whole = scapre.SingleFile(plain_file, folder / "tokenizer")
    assert unlearn(whole).digest == edit.digest
    from_folder = scapre.export_single_file(edit, folder, tmp_path / "folder.safetensors")
    from_file = scapre.export_single_file(edit, whole, tmp_path / "file.safetensors")
    assert scapre.base_digest(from_folder) == scapre.base_digest(from_file) == edit.edited_digest
    assert scapre.base_digest(plain_file) == edit.base_digest
    contents = [file.read_bytes() for file in (plain_file, from_file)]
    places = [entry for name, entry in read_header(plain_file).items() if ".mlp." in name and "weight" in name]
    differing = [i for i, (one, other) in enumerate(zip(*contents, strict=True)) if one != other]
    assert differing
    assert all(any(place.start <= i < place.end for place in places) for i in differing)


def test_diffusers_loads_the_lora_into_the_text_encoders(family: str, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    pipeline = build(family, dtype=torch.float32, width=FAMILIES[family])
    pipeline.save_pretrained(folder)
    edit = unlearn(folder)
    before = features(pipeline, "cat")
    pipeline.load_lora_weights(scapre.export_lora(edit, folder, tmp_path / "lora.safetensors", rank=24).path)
    worn = features(pipeline, "cat")
    pipeline.unload_lora_weights()
    edit.apply(pipeline)
    expected = features(pipeline, "cat")
    assert (before - expected).norm() > 0.01 * before.norm()  # the control
    assert (worn - expected).norm() < 0.1 * (before - expected).norm()  # a rank of 24, of 48 and 96


def test_answers_carry_every_target_equally_far_in_company() -> None:
    problem = with_outputs(problem_of(targets=6, found=40), 0)

    def gone(**dials: float | str) -> list[float]:
        delta = solve(problem, METHOD, erasure_strength=1.0, **dials).delta
        shares = []
        for target in problem.statistics.targets:
            wanted = target.outputs.shifts
            along = ((target.features @ delta.mT) * wanted).sum(dim=1)
            shares.append(float((target.weights @ along) / (target.weights @ wanted.square().sum(dim=1))))
        return shares

    alone, balanced = gone(), gone(balance="answers", reach=0.1)
    assert max(balanced) - min(balanced) < 0.3 * (max(alone) - min(alone))
    assert sum(balanced) / len(balanced) == pytest.approx(0.1, abs=0.01)
    said = solve(problem, METHOD, erasure_strength=1.0, balance="answers", reach=0.1).diagnostics["answers_gone"]
    assert list(said.values()) == pytest.approx(balanced)


def test_diagnostics_are_in_units_of_what_the_layer_gives_out() -> None:
    pipeline = build("stable-diffusion-1")
    edit = unlearn(pipeline)
    name = MEMORIES["stable-diffusion-1"][0]
    layer = pipeline.text_encoder.encoder.layers[1]
    seen: list[Tensor] = []
    layer.register_forward_hook(lambda _module, _given, output: seen.append(output[0].detach()))
    delta = edit.delta(name, everything(pipeline)[name])
    layer.mlp.fc2.register_forward_pre_hook(lambda _module, given: seen.append(given[0][0].detach()))
    memories = {}
    for prompt in ("", "a photo of a dog", "a photo of a cat"):
        seen.clear()
        features(pipeline, prompt)
        memories[prompt] = (seen[0][: END + 1], seen[1][: END + 1])
    moved = {prompt: (heard @ delta.mT).norm() / told.norm() for prompt, (heard, told) in memories.items()}
    assert moved["a photo of a cat"] > 2 * edit.diagnostics["retained_response"]  # the control
    assert 0.5 * moved["a photo of a dog"] < edit.diagnostics["retained_response"] < 2 * moved["a photo of a dog"]


def test_of_several_memories_the_worst_is_told() -> None:
    pipeline = build("stable-diffusion-xl", width=96)
    dials = {"balance": "answers", "erasure_strength": 0.3, "reach": 0.9}
    said = scapre.unlearn(pipeline, ["cat", "apple"], ["dog", "the horse"], METHOD, vocabulary=0, **dials)
    assert any("reach = 0.9" in warning for warning in said.diagnostics["warnings"])
    assert set(said.diagnostics["drift"]) == set(MEMORIES["stable-diffusion-xl"])
    assert 0 < max(said.diagnostics["answers_gone"].values()) < 0.9


def test_progress_reaches_its_total_where_sentences_are_the_same_twice() -> None:
    told: list[tuple[int, int]] = []
    pipeline = build("stable-diffusion-xl", width=96)
    scapre.unlearn(  # with and without its article, "the dog" is one sentence
        pipeline, ["cat"], ["the dog", "an apple"], METHOD, vocabulary=0, on_progress=lambda *n: told.append(n)
    )
    assert told[-1][0] == told[-1][1]
    assert [known for _, known in told] == sorted(known for _, known in told)


@pytest.mark.parametrize("memories", [True, False])
def test_what_is_copied_before_there_is_an_edit(memories: bool, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    build("stable-diffusion-1", dtype=torch.float32).save_pretrained(folder)
    edit = unlearn(folder)
    with scapre.merging(folder, tmp_path / "out", memories=memories) as put_on:
        put_on(edit)
    unet = Path("unet") / "diffusion_pytorch_model.safetensors"
    assert (tmp_path / "out" / unet).samefile(folder / unet) == memories
    assert not (tmp_path / "out" / "text_encoder" / "model.safetensors").samefile(
        folder / "text_encoder" / "model.safetensors"
    )
    assert scapre.base_digest(tmp_path / "out") == edit.edited_digest
    assert scapre.base_digest(folder) == edit.base_digest


@pytest.mark.parametrize("extra", ["text_encoder/model.fp16.safetensors", "text_encoder/model.onnx", "all.safetensors"])
def test_a_second_copy_of_the_text_encoder_is_refused(extra: str, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    build("stable-diffusion-1", dtype=torch.float32).save_pretrained(folder)
    edit = unlearn(folder)
    (folder / extra).write_bytes((folder / "text_encoder" / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="one copy of the text encoder's weights"):
        scapre.merge(edit, folder, tmp_path / "out")
    with (
        pytest.raises(CheckpointError, match="one copy of the text encoder's weights"),
        scapre.merging(folder, tmp_path / "out", memories=True),
    ):
        pass
    with pytest.raises(CheckpointError, match="one copy of the text encoder's weights"):
        scapre.check_mergeable(scapre.inspect_checkpoint(folder), memories=True)
    assert not (tmp_path / "out").exists()
    if extra.startswith("text_encoder"):  # the control: an edit of the projections does not touch the text encoder
        scapre.merge(scapre.unlearn(folder, ["cat"], vocabulary=0), folder, tmp_path / "out")


def test_an_encoder_that_computes_otherwise_is_refused() -> None:
    pipeline = build("stable-diffusion-1")
    mlp = pipeline.text_encoder.encoder.layers[1].mlp
    own = mlp.forward
    mlp.forward = lambda hidden: own(hidden)
    with pytest.raises(CheckpointError, match=r"found one whose forward was replaced.*load the pipeline anew"):
        unlearn(pipeline)


def test_what_is_not_covered_is_said() -> None:
    said = unlearn(build("stable-diffusion-xl", width=96)).diagnostics["not_covered"]
    assert [way.split()[0] for way in said] == ["clip_skip", "the"]
    pipeline = build("stable-diffusion-xl", width=96)
    before = features(pipeline, "cat")
    earlier = pipeline.encode_prompt("cat", device="cpu", do_classifier_free_guidance=False, clip_skip=1)[0]
    unlearn(pipeline, erasure_strength=50.0).apply(pipeline)
    assert torch.equal(
        pipeline.encode_prompt("cat", device="cpu", do_classifier_free_guidance=False, clip_skip=1)[0], earlier
    )
    assert not torch.equal(features(pipeline, "cat"), before)
