"""A small Stable Diffusion of the real classes with random weights, and statistics made of random numbers."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # a mistyped path would otherwise wait minutes for a network that is not needed

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from hypothesis import HealthCheck, settings
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

# longest first: a merge made for "an" would otherwise cut "van"
WORDS = (
    *(
        "lighthouse",
        "painting",
        "drawing",
        "smiling",
        "portrait",
        "picture",
        "kitten",
        "guitar",
        "violin",
        "cubism",
        "object",
        "animal",
    ),
    *(
        "photo",
        "style",
        "tabby",
        "horse",
        "zebra",
        "apple",
        "monet",
        "pear",
        "gogh",
        "tree",
        "park",
        "red",
        "the",
        "cat",
        "dog",
        "van",
    ),
    *("of", "in", "an", "a"),
)
CONTEXT_TOKENS = 32

diffusers_logging.set_verbosity_error()
settings.register_profile("engine", deadline=None, max_examples=15, suppress_health_check=list(HealthCheck))
settings.load_profile("engine")


def tiny_tokenizer() -> CLIPTokenizer:
    """Returns a CLIP tokenizer that knows `WORDS` as whole words and spells out everything else."""
    characters = [chr(code) for code in range(33, 127)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            if (pieces[0], pieces[1]) not in merges:
                merges.append((pieces[0], pieces[1]))
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
    tokens = [*characters, *(f"{character}</w>" for character in characters)]
    tokens += [token for token in dict.fromkeys(left + right for left, right in merges) if token not in tokens]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)}, merges=merges, model_max_length=CONTEXT_TOKENS
    )


def tiny_pipeline(seed: int = 0, dtype: torch.dtype = torch.float64, width: int = 32) -> StableDiffusionPipeline:
    """Returns a Stable Diffusion pipeline with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = tiny_tokenizer()
        encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=width,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                projection_dim=width,
                max_position_embeddings=CONTEXT_TOKENS,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        for parameter in encoder.parameters():  # the usual 0.02 would make all words nearly alike
            if parameter.ndim == 2:
                parameter.data.normal_(0.0, 0.2)
        unet = UNet2DConditionModel(
            block_out_channels=(16, 32),
            layers_per_block=1,
            sample_size=8,
            in_channels=4,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=width,
            norm_num_groups=8,
            attention_head_dim=8,
        )
        vae = AutoencoderKL(
            block_out_channels=(16,),
            down_block_types=("DownEncoderBlock2D",),
            up_block_types=("UpDecoderBlock2D",),
            latent_channels=4,
            sample_size=8,
            norm_num_groups=8,
        )
    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.text_encoder.eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(dtype)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:  # the hook sees the other packages' tests too
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.filterwarnings("error"))


@pytest.fixture(autouse=True)
def _strict() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def pipeline() -> StableDiffusionPipeline:
    """A pipeline in float64."""
    return tiny_pipeline()


@pytest.fixture
def make_pipeline() -> Callable[..., StableDiffusionPipeline]:
    """The builder itself, for other seeds, types and widths."""
    return tiny_pipeline


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint folder in float32."""
    folder = tmp_path / "base"
    tiny_pipeline(dtype=torch.float32).save_pretrained(folder)
    return folder
