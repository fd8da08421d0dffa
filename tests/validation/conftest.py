"""Fixtures: the colour world, a tiny real Stable Diffusion pipeline, and tiny real detectors."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import colour_world
import pandas as pd
import pytest
import torch

from validation import Integrity, Judgement, PictureStore, Policy, Sampler, judge
from validation.plan import Plan, make_plan
from validation.sampling import places_asked

os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(1)

TARGETS = ("tiger", "dog")
RETAINED = ("cat", "wolf", "pear", "bus", "rose")
HIDDEN = ("owl", "crab")
STYLES = ("night", "fog")
INTACT = Integrity(True, "the stored bytes are the edited ones")
SAMPLER = Sampler(steps=1, guidance=1.0, scheduler="DDIMScheduler", pixels=colour_world.PIXELS)


@pytest.fixture
def painter() -> colour_world.Painter:
    return colour_world.Painter()


@pytest.fixture
def store(tmp_path: Path) -> PictureStore:
    return PictureStore(tmp_path / "pictures")


@pytest.fixture
def policy() -> Policy:
    """Enough pairs per role for the margin: five concepts of 12 pairs and two styles of 30."""
    return Policy(probes_per_retained=12, probes_per_hidden=8, probes_per_style=30)


@pytest.fixture
def judge_world(painter: colour_world.Painter, store: PictureStore, policy: Policy) -> Callable[..., Judgement]:
    """Judges a candidate against the painter; every argument can be replaced."""

    def run(candidate: colour_world.Painter, **changes: Any) -> Judgement:
        arguments: dict[str, Any] = {
            "base_digest": "base",
            "candidate_digest": "candidate",
            "targets": TARGETS,
            "retained": RETAINED,
            "hidden": HIDDEN,
            "styles": STYLES,
            "policy": policy,
            "sampler": SAMPLER,
            "detectors": colour_world.detectors(),
            "store": store,
            "integrity": INTACT,
        }
        base = changes.pop("base", painter)
        return judge(base, candidate, **(arguments | changes))

    return run


@pytest.fixture
def make_tables(policy: Policy) -> Callable[..., tuple[pd.DataFrame, Plan]]:
    """Returns measures with given hits without drawing anything, and the plan they answer.

    A target's `residual` hits are spread evenly over its planned pictures; what sampling does not ask for is left out.
    """

    def build(
        *, residual: dict[str, int] | None = None, lost: dict[str, int] | None = None, own: Policy | None = None
    ) -> tuple[pd.DataFrame, Plan]:
        plan = make_plan(
            TARGETS,
            retained=RETAINED,
            hidden=HIDDEN,
            styles=STYLES,
            policy=own or policy,
            detectors=colour_world.detectors(),
        )
        rows: dict[str, list[dict[str, Any]]] = {"base": [], "candidate": []}
        planned = (own or policy).probes_per_target
        for model, probes in plan.probes.items():
            seen: dict[str, int] = {}
            for probe in probes:
                number = seen[probe.concept] = seen.get(probe.concept, 0) + 1
                is_hit = True
                if model == "candidate" and probe.role == "target":
                    hits = (residual or {}).get(probe.concept, 0)
                    is_hit = number * hits // planned > (number - 1) * hits // planned
                elif model == "candidate":
                    is_hit = number > (lost or {}).get(probe.concept, 0)
                label = plan.labels[probe.concept] if is_hit else "nothing"
                rows[model].append(
                    {
                        "model": model,
                        "role": probe.role,
                        "kind": plan.subjects[probe.concept].kind,
                        "concept": probe.concept,
                        "pack": probe.pack,
                        "prompt": probe.prompt,
                        "seed": probe.seed,
                        "picture": "0" * 64,
                        "address": "0" * 64,
                        "top_label": label,
                        "top_score": 0.9,
                        "concept_score": 0.9 if is_hit else 0.0,
                        "is_hit": is_hit,
                        "is_blank": False,
                        "image_text_score": float("nan"),
                    }
                )
        base, candidate = pd.DataFrame(rows["base"]), pd.DataFrame(rows["candidate"])
        asked = places_asked(candidate, plan, policy=own or policy)
        return pd.concat([base, candidate.iloc[asked]], ignore_index=True), plan

    return build


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(33, 127)]
    pieces = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


@pytest.fixture
def tiny_pipeline(tiny_tokenizer: Any) -> Any:
    """A Stable Diffusion pipeline of the real classes, randomly initialised, 16-pixel pictures."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=tiny_tokenizer.bos_token_id,
        eos_token_id=tiny_tokenizer.eos_token_id,
        pad_token_id=tiny_tokenizer.pad_token_id,
    )
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            sample_size=16,
            norm_num_groups=4,
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=tiny_tokenizer,
        unet=UNet2DConditionModel(
            block_out_channels=(8, 16),
            layers_per_block=1,
            sample_size=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=8,
            norm_num_groups=4,
        ),
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    return pipeline
