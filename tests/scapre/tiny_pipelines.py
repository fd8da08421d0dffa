"""Small pipelines of the real diffusers classes with random weights, one for each architecture."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

# longest first: a merge made for "an" would otherwise cut "van"
WORDS = (
    *("lighthouse", "painting", "drawing", "smiling", "portrait", "picture", "kitten", "guitar", "violin", "cubism"),
    *("object", "animal", "photo", "style", "tabby", "horse", "zebra", "apple", "monet", "pear", "gogh", "tree"),
    *("park", "red", "the", "cat", "dog", "van", "of", "in", "an", "a"),
)
CONTEXT_TOKENS = 32


def clip_tokenizer(**special: str) -> CLIPTokenizer:
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
        vocab={token: index for index, token in enumerate(tokens)},
        merges=merges,
        model_max_length=CONTEXT_TOKENS,
        **special,
    )


def t5_tokenizer() -> T5Tokenizer:
    """Returns a T5 tokenizer that knows `WORDS`."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    pieces += [(chr(code), -3.0) for code in range(33, 127)]
    pieces += [(f"\u2581{word}", -1.0) for word in WORDS]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=77)


def gemma_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a tokenizer as Gemma's: a start token, no end token, a space that the next word takes in."""
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "\u2581", *(f"\u2581{word}" for word in (*WORDS, "User", "Prompt:"))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>"
    )


def clip_encoder(tokenizer: CLIPTokenizer, width: int, *, projected: bool = False, **changes: Any) -> nn.Module:
    """Returns a CLIP text encoder."""
    config = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "projection_dim": width,
        "max_position_embeddings": CONTEXT_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return _telling((CLIPTextModelWithProjection if projected else CLIPTextModel)(CLIPTextConfig(**config | changes)))


def t5_encoder(tokenizer: T5Tokenizer, width: int) -> nn.Module:
    """Returns a T5 text encoder."""
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=1,
    )
    return _telling(T5EncoderModel(config))


def _telling(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():  # the usual 0.02 would make all words nearly alike
        if parameter.ndim == 2:
            parameter.data.normal_(0.0, 0.2)
    return module


def _unet(width: int, **changes: Any) -> UNet2DConditionModel:
    config = {
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": width,
        "norm_num_groups": 8,
        "attention_head_dim": 8,
    }
    return UNet2DConditionModel(**config | changes)


def _vae(latents: int = 4, channels: tuple[int, ...] = (16,), **changes: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        latent_channels=latents,
        sample_size=8,
        norm_num_groups=8,
        **changes,
    )


def stable_diffusion(width: int = 32, *, clip: Mapping[str, Any] | None = None, **unet: Any) -> DiffusionPipeline:
    """Returns Stable Diffusion 1.x; as 2.x with `use_linear_projection` and a tokenizer that pads with "!"."""
    is_second = bool(unet.get("use_linear_projection"))
    tokenizer = clip_tokenizer(**{"pad_token": "!"} if is_second else {})
    return StableDiffusionPipeline(
        text_encoder=clip_encoder(tokenizer, width, **clip or {}),
        unet=_unet(width, **unet),
        vae=_vae(),
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_2(width: int = 32, **changes: Any) -> DiffusionPipeline:
    """Returns Stable Diffusion 2.x."""
    return stable_diffusion(width, use_linear_projection=True, **changes)


def stable_diffusion_xl(width: int = 32, *, clip: Mapping[str, Any] | None = None, **unet: Any) -> DiffusionPipeline:
    """Returns Stable Diffusion XL: a quarter of `width` comes from the first encoder, the rest from the second."""
    first, second, narrow = clip_tokenizer(), clip_tokenizer(pad_token="!"), width // 4
    wide = width - narrow
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    blocks = {"layers_per_block": 2, "transformer_layers_per_block": (1, 2), "use_linear_projection": True}
    shape = {"projection_class_embeddings_input_dim": wide + 6 * 8, **added, **blocks}
    return StableDiffusionXLPipeline(
        text_encoder=clip_encoder(first, narrow, **clip or {}),
        text_encoder_2=clip_encoder(second, wide, projected=True, hidden_act="gelu", **clip or {}),
        unet=_unet(width, **shape | unet),
        vae=_vae(),
        tokenizer=first,
        tokenizer_2=second,
        scheduler=DDIMScheduler(clip_sample=False),
        add_watermarker=False,
    )


def stable_diffusion_3(width: int = 32) -> DiffusionPipeline:
    """Returns Stable Diffusion 3: T5 as wide as `width`, each CLIP encoder less than half of it."""
    first, second, t5, narrow = clip_tokenizer(), clip_tokenizer(pad_token="!"), t5_tokenizer(), width // 4
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=width,
        pooled_projection_dim=2 * narrow,
        out_channels=4,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5),
        text_encoder=clip_encoder(first, narrow, projected=True),
        text_encoder_2=clip_encoder(second, narrow, projected=True, hidden_act="gelu"),
        text_encoder_3=t5_encoder(t5, width),
        tokenizer=first,
        tokenizer_2=second,
        tokenizer_3=t5,
    )


def flux(width: int = 32) -> DiffusionPipeline:
    """Returns FLUX.1."""
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=width,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    )
    return FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_vae(1, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5),
        text_encoder=clip_encoder(clip, 32),
        text_encoder_2=t5_encoder(t5, width),
        tokenizer=clip,
        tokenizer_2=t5,
    )


def pixart(width: int = 32) -> DiffusionPipeline:
    """Returns PixArt-Sigma, its blocks as wide as `width`."""
    t5 = t5_tokenizer()
    transformer = PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=width // 8,
        caption_channels=40,
        in_channels=4,
        cross_attention_dim=width,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        use_additional_conditions=False,
    )
    _telling(transformer.caption_projection)
    return PixArtSigmaPipeline(
        tokenizer=t5, text_encoder=t5_encoder(t5, 40), vae=_vae(), transformer=transformer, scheduler=DDIMScheduler()
    )


def sana(width: int = 32) -> DiffusionPipeline:
    """Returns Sana, its blocks as wide as `width`."""
    tokenizer = gemma_tokenizer()
    encoder = Gemma2Model(
        Gemma2Config(
            head_dim=16,
            hidden_size=40,
            intermediate_size=64,
            num_attention_heads=2,
            num_hidden_layers=2,
            num_key_value_heads=2,
            vocab_size=len(tokenizer),
            attn_implementation="eager",
        )
    )
    transformer = SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=width // 8,
        attention_head_dim=8,
        num_cross_attention_heads=width // 8,
        cross_attention_head_dim=8,
        cross_attention_dim=width,
        caption_channels=40,
        sample_size=32,
    )
    _telling(transformer.caption_projection)
    vae = AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
    return SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=_telling(encoder),
        vae=vae,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
    )


BUILDERS: Mapping[str, Callable[..., DiffusionPipeline]] = {
    "stable-diffusion-1": stable_diffusion,
    "stable-diffusion-2": stable_diffusion_2,
    "stable-diffusion-xl": stable_diffusion_xl,
    "stable-diffusion-3": stable_diffusion_3,
    "flux": flux,
    "pixart-sigma": pixart,
    "sana": sana,
}
SMALL_PICTURE: Mapping[str, Mapping[str, Any]] = {
    "pixart-sigma": {"use_resolution_binning": False, "clean_caption": False},
    "sana": {"use_resolution_binning": False, "clean_caption": False},
}
"""What a pipeline must be told before it draws 32 × 32 pixels."""


def build(
    family: str, width: int = 32, dtype: torch.dtype = torch.float64, seed: int = 0, **changes: Any
) -> DiffusionPipeline:
    """Returns a pipeline of `family` with random weights, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = BUILDERS[family](width, **changes)
    for component in pipeline.components.values():
        if isinstance(component, nn.Module):
            component.eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(dtype)


def draw(pipeline: DiffusionPipeline, family: str, prompt: str, steps: int = 1) -> torch.Tensor:
    """Returns the picture a pipeline draws for `prompt`, from fixed noise."""
    generator = torch.Generator("cpu").manual_seed(0)
    size = {"height": 32, "width": 32, "num_inference_steps": steps, "generator": generator, "output_type": "np"}
    return torch.from_numpy(pipeline(prompt, **size, **SMALL_PICTURE.get(family, {})).images)
