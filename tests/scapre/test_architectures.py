"""Every adapter against the real pipeline: same features, the promised responses, nothing else touched."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from diffusers.hooks import apply_group_offloading
from peft import LoraConfig
from tiny_pipelines import BUILDERS, build, draw
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import scapre
from scapre import Concept, UnsupportedArchitectureError
from scapre.architectures import ARCHITECTURES, find_architecture, flux, pixart, read_pipeline, sana, stable_diffusion_3
from scapre.embeddings import EMPTY_PROMPT, ConceptPrompt, PromptEncoder, fill
from scapre.slots import EncodedPrompt, aligned_slot

FAMILIES = tuple(BUILDERS)
CAT, DOG = fill("a photo of {}", "cat"), fill("a photo of {}", "dog")


def denoiser(pipeline: DiffusionPipeline) -> nn.Module:
    return getattr(pipeline, find_architecture(type(pipeline).__name__).denoiser)


def edited_modules(pipeline: DiffusionPipeline) -> dict[str, nn.Module]:
    adapter = find_architecture(type(pipeline).__name__)
    named = denoiser(pipeline).named_modules()
    return {f"{adapter.denoiser}.{name}.weight": module for name, module in named if adapter.projection.search(name)}


@contextmanager
def watched(modules: dict[str, nn.Module]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Collects input and output of each module in the last step of a generation."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def watcher(name: str):
        return lambda _, given, answer: seen.update({name: (given[0].detach(), answer.detach())})

    handles = [module.register_forward_hook(watcher(name)) for name, module in modules.items()]
    yield seen
    for handle in handles:
        handle.remove()


def answers(pipeline: DiffusionPipeline, family: str, prompt: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Input and output of every edited module while the pipeline draws `prompt`; the prompt's are last in a batch."""
    with watched(edited_modules(pipeline)) as seen:
        assert bool(torch.isfinite(draw(pipeline, family, prompt)).all())
    return seen


def places(encoded: EncodedPrompt, rows: list[int], contexts: tuple[int, ...]) -> list[int]:
    """Where in the sequence the model reads the given rows stand."""
    found = []
    for row in rows:
        index = max(number for number, run in enumerate(encoded.runs) if run.first_row <= row)
        found.append(sum(contexts[:index]) + encoded.runs[index].slot(row))
    return found


def encoder_of(pipeline: DiffusionPipeline, *prompts: str) -> PromptEncoder:
    encoder = PromptEncoder(read_pipeline(pipeline).text)
    encoder.encode(prompts)
    return encoder


def everything(pipeline: DiffusionPipeline) -> dict[str, Tensor]:
    parts = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    return {f"{part}.{name}": held.clone() for part in parts for name, held in parts[part].state_dict().items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_what_the_pipeline_feeds_the_edited_maps(family: str) -> None:
    pipeline = build(family)
    encoder = encoder_of(pipeline, CAT.text, EMPTY_PROMPT)
    seen = answers(pipeline, family, CAT.text)
    assert set(seen) == set(read_pipeline(pipeline).weights.projections)
    encoded = encoder[CAT.text]
    everywhere = list(range(len(encoded.features)))
    contexts = tuple(run.context for run in encoded.runs)
    for given, _ in seen.values():
        found = given[-1][places(encoded, everywhere, contexts)]
        torch.testing.assert_close(encoded.features, found, rtol=0, atol=1e-5)
        assert (found - found.mean(dim=0)).abs().max() > 0.01  # the control: slots differ by far more


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ("flux", "stable-diffusion-xl")])
def test_unconditional_features_are_those_guidance_subtracts(family: str) -> None:
    pipeline = build(family)
    empty = encoder_of(pipeline, EMPTY_PROMPT)[EMPTY_PROMPT]
    given = next(iter(answers(pipeline, family, CAT.text).values()))[0]
    runs = empty.runs[1:] if family == "sana" else empty.runs  # Sana's unconditional prompt has no instruction
    for index, run in enumerate(runs):
        offset = sum(one.context for one in runs[:index])
        slots = [offset + run.slot(run.first_row + row) for row in range(run.row_count)]
        rows = slice(run.first_row, run.first_row + run.row_count)
        torch.testing.assert_close(empty.features[rows], given[0][slots], rtol=0, atol=1e-5)


def test_unconditional_features_of_sdxl_are_zeros_that_no_weight_changes() -> None:
    given = next(iter(answers(build("stable-diffusion-xl"), "stable-diffusion-xl", CAT.text).values()))[0]
    assert not given[0].any()
    assert given[1].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_target_slots_are_those_a_name_changes(family: str) -> None:
    encoder = encoder_of(build(family), CAT.text, DOG.text)
    cat, dog = encoder[CAT.text], encoder[DOG.text]
    assert cat.runs == dog.runs
    differ = (cat.features - dog.features).norm(dim=1) > 1e-4 * cat.features.norm(dim=1).mean()
    carrying = set(encoder.target_slots(CAT, 10_000))
    assert {row for row, is_different in enumerate(differ.tolist()) if is_different} == carrying
    assert len(carrying) == len(differ) if cat.runs[0].lead == 0 else len(carrying) < len(differ)


def test_masked_padding_is_not_kept_and_unmasked_padding_is() -> None:
    for family in FAMILIES:
        encoded = encoder_of(build(family), CAT.text)[CAT.text]
        assert all(bool(run.padding) == (family not in ("pixart-sigma", "sana")) for run in encoded.runs)
        assert all(run.padding[-1] == run.context - 1 for run in encoded.runs if run.padding)


@pytest.mark.parametrize(
    ("adapter", "tokens"),
    [
        (stable_diffusion_3, stable_diffusion_3.T5_TOKENS),
        (flux, flux.T5_TOKENS),
        (pixart, pixart.T5_TOKENS),
        (sana, sana.GEMMA_TOKENS),
    ],
)
def test_prompt_lengths_are_the_pipelines_own(adapter, tokens: int) -> None:
    import diffusers

    for name in adapter.ARCHITECTURE.pipeline_classes:
        parameters = inspect.signature(getattr(diffusers, name).__call__).parameters
        assert parameters["max_sequence_length"].default == tokens


STRONG = {
    "scapre": {
        "erasure_strength": 1e9,
        "ridge": 1e-7,
        "row_weights": "uniform",
        "retention_strength": 1e3,
    },
    "uce": {"erasure_strength": 1e3, "retention_strength": 1e3, "ridge": 1e-4},
}


@pytest.mark.parametrize("method", sorted(STRONG))
@pytest.mark.parametrize("family", FAMILIES)
def test_edited_maps_answer_as_promised_and_nothing_else_changes(family: str, method: str) -> None:
    pipeline = build(family, width=160)
    encoder = encoder_of(pipeline, CAT.text, DOG.text, EMPTY_PROMPT)
    cat, dog, empty = (encoder[prompt] for prompt in (CAT.text, DOG.text, EMPTY_PROMPT))
    contexts = tuple(run.context for run in cat.runs)
    rows = encoder.target_slots(CAT, 1)
    target = places(cat, rows, contexts)
    anchor = places(empty, [aligned_slot(row, cat, empty) for row in rows], contexts)
    kept = places(dog, dog.rows_read(1), contexts)
    before = {prompt: answers(pipeline, family, prompt) for prompt in (CAT.text, DOG.text, EMPTY_PROMPT)}
    held = everything(pipeline)

    concept = Concept("cat", "unsafe")
    edit = scapre.unlearn(pipeline, [concept], ["dog"], method, vocabulary=0, slots=1, **STRONG[method])
    edit.apply(pipeline)

    after = {prompt: answers(pipeline, family, prompt) for prompt in (CAT.text, DOG.text)}
    for name in before[CAT.text]:
        promised = before[EMPTY_PROMPT][name][1][-1][anchor]
        gap = (before[CAT.text][name][1][-1][target] - promised).norm()
        assert gap > 0.1 * promised.norm()  # the control: before the edit the answers differ
        assert (after[CAT.text][name][1][-1][target] - promised).norm() < 0.02 * gap
        moved = after[DOG.text][name][1][-1][kept] - before[DOG.text][name][1][-1][kept]
        assert moved.norm() < 0.05 * gap
    changed = {name for name, tensor in everything(pipeline).items() if not torch.equal(tensor, held[name])}
    assert changed == set(edit.changes)
    edit.revert(pipeline)
    assert all(torch.equal(tensor, held[name]) for name, tensor in everything(pipeline).items())


def test_sd3_without_t5_reads_its_clip_encoders_alone() -> None:
    pipeline = build("stable-diffusion-3")
    whole = read_pipeline(pipeline)
    pipeline.register_modules(text_encoder_3=None, tokenizer_3=None)
    base = read_pipeline(pipeline)
    assert base.weights.digest != whole.weights.digest
    encoder = PromptEncoder(base.text)
    encoder.encode([CAT.text])
    given = next(iter(answers(pipeline, "stable-diffusion-3", CAT.text).values()))[0][-1]
    features = encoder[CAT.text].features
    torch.testing.assert_close(features, given[: len(features)], rtol=0, atol=1e-5)
    assert not given[len(features) :].any()


def test_sana_reads_a_name_that_takes_in_the_instructions_last_space() -> None:
    encoder = encoder_of(build("sana"), "cat", EMPTY_PROMPT)
    bare = ConceptPrompt("cat", "cat", "cat")
    assert [encoder["cat"].runs[0].slot(row) for row in encoder.target_slots(bare, 4)] == [1]
    assert aligned_slot(1, encoder["cat"], encoder[EMPTY_PROMPT]) == 1


@pytest.mark.parametrize("family", ["stable-diffusion-1", "stable-diffusion-2"])
def test_digest_of_stable_diffusion_is_what_it_was_when_the_first_edits_were_made(family: str) -> None:
    pipeline = build(family, width=32, dtype=torch.float32)
    for module in (pipeline.text_encoder, pipeline.unet):
        for parameter in module.parameters():
            values = (torch.arange(parameter.numel()) % 97 - 48) / 64
            parameter.data = values.reshape(parameter.shape).float()
    pinned = "25d960401d44120e60047c787471331f9846ff0322b658948d321bfcc2c5b716"
    assert scapre.base_digest(pipeline) == pinned
    pipeline.text_encoder.get_parameter("final_layer_norm.bias").data[0] += 1.0
    assert scapre.base_digest(pipeline) != pinned


@pytest.mark.parametrize(
    ("family", "parameter"),
    [
        ("stable-diffusion-xl", "text_encoder_2.text_projection.weight"),
        ("stable-diffusion-3", "text_encoder_3.shared.weight"),
        ("flux", "text_encoder_2.shared.weight"),
        ("pixart-sigma", "transformer.caption_projection.linear_2.bias"),
        ("sana", "transformer.caption_norm.weight"),
    ],
)
def test_digest_covers_all_that_features_rest_on_and_tied_weights_once(family: str, parameter: str) -> None:
    pipeline = build(family, dtype=torch.float32)
    base = read_pipeline(pipeline).weights
    assert parameter in base.tensor_digests
    assert not [name for name in base.tensor_digests if "embed_tokens" in name and family != "sana"]
    component, _, name = parameter.partition(".")
    getattr(pipeline, component).get_parameter(name).data.view(-1)[0] += 1.0
    assert read_pipeline(pipeline).weights.digest != base.digest


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_is_read_in_float32_and_left_as_it_is(family: str) -> None:
    pipeline, whole = build(family, dtype=torch.bfloat16), build(family, dtype=torch.bfloat16)
    for module in read_pipeline(whole).text.modules.values():
        module.float()
    before = scapre.base_digest(pipeline)
    read, expected = (encoder_of(one, CAT.text)[CAT.text].features for one in (pipeline, whole))
    assert read.dtype == torch.float32
    assert torch.equal(read, expected)
    assert scapre.base_digest(pipeline) == before


def test_unknown_pipelines_are_refused_by_name() -> None:
    class KandinskyPipeline:
        pass

    with pytest.raises(UnsupportedArchitectureError, match=r"FluxPipeline, .*SanaPipeline.*found KandinskyPipeline"):
        scapre.unlearn(KandinskyPipeline(), [Concept("cat")])
    assert {name for adapter in ARCHITECTURES.values() for name in adapter.pipeline_classes} == {
        type(build(family)).__name__ for family in FAMILIES
    }


def _wrap(pipeline: DiffusionPipeline) -> None:
    pipeline.transformer.context_embedder = nn.Sequential(pipeline.transformer.context_embedder)


def _quantize(pipeline: DiffusionPipeline) -> None:
    weight = pipeline.transformer.context_embedder.weight
    pipeline.transformer.context_embedder.weight = nn.Parameter(weight.to(torch.int8), requires_grad=False)


def _off_load(pipeline: DiffusionPipeline) -> None:
    pipeline.transformer.context_embedder.to("meta")


def _off_load_text(pipeline: DiffusionPipeline) -> None:
    pipeline.text_encoder_2.to("meta")


def _other_encoder(pipeline: DiffusionPipeline) -> None:
    pipeline.text_encoder_2 = pipeline.text_encoder


def _no_encoder(pipeline: DiffusionPipeline) -> None:
    pipeline.text_encoder_2 = None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_wrap, r"1 wrapped ones, the first 'context_embedder'"),
        (_quantize, r"context_embedder.weight' in torch.int8; load the model without quantization"),
        (_off_load, r"context_embedder.weight' off-loaded"),
        (_off_load_text, r"'text_encoder_2.shared.weight' off-loaded"),
        (_other_encoder, r"expected T5EncoderModel as text_encoder_2, found CLIPTextModel"),
        (_no_encoder, r"expected T5EncoderModel as text_encoder_2, found none"),
    ],
)
def test_parts_that_cannot_be_edited_are_named(damage, message: str) -> None:
    pipeline = build("flux")
    damage(pipeline)
    with pytest.raises(UnsupportedArchitectureError, match=message):
        scapre.unlearn(pipeline, [Concept("cat")])


def test_unets_that_read_text_by_another_way_are_refused() -> None:
    pipeline = build("stable-diffusion-1")
    pipeline.unet.register_to_config(encoder_hid_dim=8)
    with pytest.raises(UnsupportedArchitectureError, match="encoder_hid_dim None, found 8"):
        scapre.unlearn(pipeline, [Concept("cat")])


@pytest.mark.parametrize("family", ["stable-diffusion-1", "stable-diffusion-xl"])
def test_projections_the_model_does_not_compute_with_are_refused(family: str) -> None:
    pipeline = build(family)
    pipeline.fuse_qkv_projections()
    with pytest.raises(UnsupportedArchitectureError, match=r"fused copies.*call unfuse_qkv_projections\(\) first"):
        scapre.unlearn(pipeline, [Concept("cat")])
    pipeline.unfuse_qkv_projections()
    scapre.unlearn(pipeline, [Concept("cat")])  # the control


def _lora(module: nn.Module) -> None:
    module.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))


def test_text_encoders_with_adapters_are_refused_on_or_off() -> None:
    pipeline = build("stable-diffusion-1")
    scapre.base_digest(pipeline)  # the control
    _lora(pipeline.text_encoder)
    with pytest.raises(UnsupportedArchitectureError, match="plain text_encoder, found adapters on 2 of its modules"):
        scapre.base_digest(pipeline)
    pipeline.text_encoder.disable_adapters()  # other features, the same weights
    with pytest.raises(UnsupportedArchitectureError, match="unload_lora_weights"):
        scapre.base_digest(pipeline)


@pytest.mark.parametrize("wrap", [partial(prune.identity, name="weight"), parametrizations.weight_norm])
def test_projections_that_compute_their_weight_are_refused(wrap) -> None:
    pipeline = build("stable-diffusion-1")
    name, module = next((n, m) for n, m in pipeline.unet.named_modules() if n.endswith("attn2.to_k"))
    wrap(module)
    with pytest.raises(UnsupportedArchitectureError, match=f"1 that compute it .* first '{name}'; make that permanent"):
        scapre.unlearn(pipeline, [Concept("cat")])


@pytest.mark.parametrize("component", ["text_encoder", "unet"])
def test_weights_off_loaded_to_disk_are_refused(component: str, tmp_path: Path) -> None:
    pipeline = build("stable-diffusion-1", dtype=torch.float32)
    base, cpu = scapre.base_digest(pipeline), torch.device("cpu")
    part = getattr(pipeline, component)
    apply_group_offloading(part, onload_device=cpu, offload_type="leaf_level")
    assert scapre.base_digest(pipeline) == base  # the control: these are still in memory
    part._diffusers_hook = None
    for module in part.modules():
        module.__dict__.pop("_diffusers_hook", None)
    apply_group_offloading(part, onload_device=cpu, offload_type="leaf_level", offload_to_disk_path=str(tmp_path))
    with pytest.raises(UnsupportedArchitectureError, match=f"found {component} off-loaded to disk"):
        scapre.base_digest(pipeline)


def test_an_encoder_that_cannot_be_copied_is_refused() -> None:
    pipeline = build("stable-diffusion-1", dtype=torch.float16)
    apply_group_offloading(pipeline.text_encoder, onload_device=torch.device("cpu"), offload_type="leaf_level")
    with pytest.raises(scapre.CheckpointError, match=r"that can be copied.* without off-loading"):
        scapre.unlearn(pipeline, [Concept("cat")])


@pytest.mark.parametrize("family", ["pixart-sigma", "sana"])
def test_reading_a_pipeline_leaves_what_it_trains_as_it_was(family: str) -> None:
    pipeline = build(family)
    pipeline.transformer.requires_grad_(False)
    scapre.unlearn(pipeline, [Concept("cat")], vocabulary=0)
    assert not [name for name, held in pipeline.transformer.named_parameters() if held.requires_grad]


@pytest.mark.parametrize("family", ["stable-diffusion-1", "sana"])
def test_pipelines_built_for_inference_are_edited_like_others(family: str) -> None:
    with torch.inference_mode():
        pipeline = build(family)
    edit = scapre.unlearn(pipeline, [Concept("cat")], vocabulary=0)
    assert edit.digest == scapre.unlearn(build(family), [Concept("cat")], vocabulary=0).digest
    edit.apply(pipeline)
    assert scapre.base_digest(pipeline) == edit.edited_digest


@pytest.mark.parametrize("family", BUILDERS)
def test_features_do_not_depend_on_what_is_read_beside_them(family: str) -> None:
    names = ("cat", "a photo of a zebra", "a painting of the red tree in the park", "dog", "monet", "a pear")
    source = read_pipeline(build(family)).text
    together, alone = PromptEncoder(source), PromptEncoder(source)
    together.encode(names)
    for name in names:
        alone.encode([name])
        assert torch.equal(together[name].features, alone[name].features)


class Own(StableDiffusionPipeline):
    """As people derive them."""


@pytest.mark.parametrize("made", [StableDiffusionImg2ImgPipeline.from_pipe, StableDiffusionInpaintPipeline.from_pipe])
def test_a_pipeline_made_of_another_takes_its_edit(make_pipeline, made) -> None:
    pipeline = make_pipeline(dtype=torch.float32)  # to which from_pipe turns all, unless told otherwise
    edit, other = scapre.unlearn(pipeline, ["cat"], ["dog"], vocabulary=0), made(pipeline)
    assert scapre.unlearn(other, ["cat"], ["dog"], vocabulary=0).digest == edit.digest
    edit.apply(other)
    assert scapre.base_digest(pipeline) == edit.edited_digest


def test_a_derived_pipeline_is_read_as_what_it_derives_from(make_pipeline) -> None:
    pipeline = make_pipeline()
    assert scapre.base_digest(Own(**pipeline.components)) == scapre.base_digest(pipeline)


def test_compiled_parts_are_read_and_edited_as_what_they_were_made_of(make_pipeline) -> None:
    pipeline = make_pipeline()
    edit = scapre.unlearn(pipeline, ["cat"], ["dog"], vocabulary=0)
    pipeline.unet = torch.compile(pipeline.unet, backend="eager")
    pipeline.text_encoder = torch.compile(pipeline.text_encoder, backend="eager")
    assert scapre.unlearn(pipeline, ["cat"], ["dog"], vocabulary=0).digest == edit.digest
    edit.apply(pipeline)
    assert scapre.base_digest(pipeline) == edit.edited_digest


def test_a_compiled_block_is_named_as_it_was(make_pipeline) -> None:
    pipeline = make_pipeline()
    edit = scapre.unlearn(pipeline, ["cat"], ["dog"], vocabulary=0)
    pipeline.unet.mid_block = torch.compile(pipeline.unet.mid_block, backend="eager")
    pipeline.text_encoder.encoder = torch.compile(pipeline.text_encoder.encoder, backend="eager")
    assert scapre.unlearn(pipeline, ["cat"], ["dog"], vocabulary=0).digest == edit.digest
    edit.apply(pipeline)
    assert scapre.base_digest(pipeline) == edit.edited_digest


def test_a_pipeline_without_its_text_encoder_is_refused_by_its_name(make_pipeline) -> None:
    pipeline = make_pipeline()
    pipeline.text_encoder = None
    with pytest.raises(UnsupportedArchitectureError, match="expected CLIPTextModel as text_encoder, found none; load"):
        scapre.base_digest(pipeline)
