"""The layout of single-file checkpoints of Stable Diffusion 1.x, 2.x and XL: which part has which name.

Legend: *stored* is a name in a single file (`model.diffusion_model.…`), *own* one in a diffusers folder (`unet.…`); n
is the number of residual blocks on each level of the UNet, which numbers blocks one after another over all levels.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from scapre.errors import CheckpointError, UnsupportedArchitectureError

UNET = "model.diffusion_model."
VAE = "first_stage_model."
AVERAGED = "model_ema."
"""Prefix of a second, averaged copy of the weights that some files hold."""


@dataclass(frozen=True)
class StoredEncoder:
    """A text encoder inside a single file."""

    component: str
    prefix: str
    is_open_clip: bool
    """Whether its weights are named and joined as OpenCLIP does."""

    @property
    def padding_token(self) -> str:
        """Token that fills up a prompt: OpenCLIP's has number 0."""
        return "!" if self.is_open_clip else "<|endoftext|>"


@dataclass(frozen=True)
class Layout:
    """What single files of one family hold."""

    pipeline_class: str
    encoders: tuple[StoredEncoder, ...]
    is_second: bool = False
    """Whether it is Stable Diffusion 2.x."""


LAYOUTS: tuple[Layout, ...] = (
    Layout(
        "StableDiffusionXLPipeline",
        (
            StoredEncoder("text_encoder", "conditioner.embedders.0.transformer.", is_open_clip=False),
            StoredEncoder("text_encoder_2", "conditioner.embedders.1.model.", is_open_clip=True),
        ),
    ),
    Layout("StableDiffusionPipeline", (StoredEncoder("text_encoder", "cond_stage_model.transformer.", False),)),
    Layout("StableDiffusionPipeline", (StoredEncoder("text_encoder", "cond_stage_model.model.", True),), True),
)


def find_layout(names: Iterable[str]) -> Layout:
    """Returns the layout of a file that holds tensors of these names.

    Raises:
        UnsupportedArchitectureError: it is none of them.
    """
    held = list(names)
    for layout in LAYOUTS:
        prefixes = (UNET, *(encoder.prefix for encoder in layout.encoders))
        if all(any(name.startswith(prefix) for name in held) for prefix in prefixes):
            return layout
    wanted = " or ".join(sorted({layout.encoders[-1].prefix for layout in LAYOUTS}))
    raise UnsupportedArchitectureError(
        f"expected {UNET}* with {wanted}*, as single files of Stable Diffusion 1.x, 2.x and XL hold, found neither; "
        "give another family as a folder in diffusers' layout"
    )


def blocks_per_level(stored: Iterable[str]) -> int:
    """Returns n, read off the first down-sampling of a single file's UNet.

    Raises:
        CheckpointError: there is none.
    """
    places = [int(found[1]) for name in stored if (found := re.search(r"\binput_blocks\.(\d+)\.0\.op\.weight$", name))]
    if not places:
        raise CheckpointError(f"expected a down-sampling {UNET}input_blocks.*.0.op.weight, found none; fetch it again")
    return min(places) - 1


def own_attention_name(stored: str, blocks: int) -> str | None:
    """Returns the name inside a diffusers UNet of an attention's parameter, or `None` for any other parameter."""
    found = re.fullmatch(r"(?:(input|output)_blocks\.(\d+)|middle_block)\.1\.(transformer_blocks\..+)", stored)
    if not found:
        return None
    side, place, rest = found[1], int(found[2] or 0), found[3]
    if side is None:
        return f"mid_block.attentions.0.{rest}"
    level, block = divmod(place - (side == "input"), blocks + 1)
    return f"{'down' if side == 'input' else 'up'}_blocks.{level}.attentions.{block}.{rest}"


Rule = tuple[str, str | Callable[[re.Match[str]], str]]
"""A pattern and what takes its place."""


def _renamed(name: str, rules: Iterable[Rule]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


_RESIDUAL: tuple[Rule, ...] = (
    (r"\.norm1\.", ".in_layers.0."),
    (r"\.conv1\.", ".in_layers.2."),
    (r"\.time_emb_proj\.", ".emb_layers.1."),
    (r"\.norm2\.", ".out_layers.0."),
    (r"\.conv2\.", ".out_layers.3."),
    (r"\.conv_shortcut\.", ".skip_connection."),
)
_UNET_ENDS: tuple[Rule, ...] = (
    (r"^time_embedding\.linear_1\.", "time_embed.0."),
    (r"^time_embedding\.linear_2\.", "time_embed.2."),
    (r"^add_embedding\.linear_1\.", "label_emb.0.0."),
    (r"^add_embedding\.linear_2\.", "label_emb.0.2."),
    (r"^conv_in\.", "input_blocks.0.0."),
    (r"^conv_norm_out\.", "out.0."),
    (r"^conv_out\.", "out.2."),
)


def stored_unet_name(own: str, blocks: int, attended: frozenset[int]) -> str:
    """Returns the single-file name, without prefix, of a diffusers UNet's parameter.

    Args:
        own: name in the UNet's own state.
        blocks: n.
        attended: levels of the way up that have attention, which decides where their up-sampling stands.

    Raises:
        UnsupportedArchitectureError: single files have no place for it.
    """
    found = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", own)
    if found:
        side, level, kind, block, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        first = level * (blocks + 1)
        if kind == "downsamplers":
            return f"input_blocks.{first + blocks + 1}.0.op.{rest.removeprefix('conv.')}"
        if kind == "upsamplers":
            return f"output_blocks.{first + blocks}.{2 if level in attended else 1}.{rest}"
        place = first + block + (side == "down")
        row = f"{'input' if side == 'down' else 'output'}_blocks.{place}.{int(kind == 'attentions')}.{rest}"
        return _renamed(row, _RESIDUAL) if kind == "resnets" else row
    if found := re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", own):
        place = 1 if found[1] == "attentions" else 2 * int(found[2])
        row = f"middle_block.{place}.{found[3]}"
        return _renamed(row, _RESIDUAL) if found[1] == "resnets" else row
    stored = _renamed(own, _UNET_ENDS)
    if stored == own:
        raise UnsupportedArchitectureError(
            f"expected a UNet whose parameters have a place in a single file, found {own!r}; export a folder instead"
        )
    return stored


_VAE_RULES: tuple[Rule, ...] = (
    (r"\bdown_blocks\.(\d+)\.resnets\.", r"down.\1.block."),
    (r"\bdown_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample."),
    (r"\bmid_block\.resnets\.(\d+)\.", lambda found: f"mid.block_{int(found[1]) + 1}."),
    (r"\bmid_block\.attentions\.0\.", "mid.attn_1."),
    (r"\bconv_norm_out\.", "norm_out."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.group_norm\.", ".norm."),
    (r"\.(?:to_q|query)\.", ".q."),
    (r"\.(?:to_k|key)\.", ".k."),
    (r"\.(?:to_v|value)\.", ".v."),
    (r"\.(?:to_out\.0|proj_attn)\.", ".proj_out."),
)


def stored_vae_name(own: str, levels: int) -> str:
    """Returns the single-file name, without prefix, of a parameter of a diffusers VAE with so many levels."""

    def upwards(found: re.Match[str]) -> str:
        kind = "block." if found[2].startswith("resnets") else "upsample."
        return f"up.{levels - 1 - int(found[1])}.{kind}"

    return _renamed(_renamed(own, _VAE_RULES), [(r"\bup_blocks\.(\d+)\.(resnets\.|upsamplers\.0\.)", upwards)])


_OPEN_CLIP: tuple[Rule, ...] = (
    (r"^embeddings\.token_embedding\.", "token_embedding."),
    (r"^embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^final_layer_norm\.", "ln_final."),
    (r"^text_projection\.weight$", "text_projection"),
    (r"^encoder\.layers\.", "transformer.resblocks."),
    (r"\.self_attn\.[qkv]_proj\.(weight|bias)$", r".attn.in_proj_\1"),
    (r"\.self_attn\.", ".attn."),
    (r"\.layer_norm1\.", ".ln_1."),
    (r"\.layer_norm2\.", ".ln_2."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)


def stored_text_name(plain: str, encoder: StoredEncoder) -> str:
    """Returns the single-file name of a text encoder's parameter; q, k and v of OpenCLIP share one."""
    if encoder.is_open_clip:
        return encoder.prefix + _renamed(plain, _OPEN_CLIP)
    return f"{encoder.prefix}text_model.{plain}"


def check_layout(pipeline_class: str) -> None:
    """Checks that there is a single-file layout for a diffusers pipeline.

    Raises:
        UnsupportedArchitectureError: there is none.
    """
    if pipeline_class not in {layout.pipeline_class for layout in LAYOUTS}:
        raise UnsupportedArchitectureError(
            f"expected a pipeline of Stable Diffusion 1.x, 2.x or XL for a single file, found {pipeline_class}; "
            "export a folder instead"
        )


def layout_of(pipeline_class: str, *, uses_linear_projection: bool) -> Layout:
    """Returns the layout for a diffusers pipeline; Stable Diffusion 2.x is told from 1.x by its linear projections."""
    fitting = {layout.is_second: layout for layout in LAYOUTS if layout.pipeline_class == pipeline_class}
    return fitting.get(uses_linear_projection) or fitting[False]
