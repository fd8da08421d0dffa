"""Checkpoints of Stable Diffusion 1.x, 2.x and XL as one safetensors file, read in part.

A single file holds no tokenizer. All of these models share CLIP's vocabulary, so the folder `tokenizer` of any of them
serves; without one a file can be inspected, digested and exported, but not read. Neither does it say how many attention
heads an encoder has: that is known of the three that these families use, and written down in files made here.
"""

import json
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import transformers
from torch import Tensor
from transformers import CLIPTextConfig, PreTrainedModel, PreTrainedTokenizerBase

from scapre.architectures import BaseModel, Parts, assemble, find_architecture
from scapre.architectures.base import memory_names
from scapre.checkpoint.folder import quiet_transformers, read_tokenizer
from scapre.checkpoint.info import CheckpointInfo
from scapre.checkpoint.ldm_layout import (
    AVERAGED,
    UNET,
    Layout,
    StoredEncoder,
    blocks_per_level,
    find_layout,
    own_attention_name,
    stored_text_name,
)
from scapre.checkpoint.tensor_files import METADATA_KEY, read_header, read_metadata, read_tensors, refuse_pickles
from scapre.errors import CheckpointError, UnsupportedArchitectureError
from scapre.text import plain_name

KNOWN_HEADS: Mapping[int, int] = {768: 12, 1024: 16, 1280: 20}
"""Attention heads by width: CLIP ViT-L, OpenCLIP ViT-H and OpenCLIP ViT-bigG."""
ENCODERS_KEY = "text_encoders"
"""Where a file made here says what its tensors do not."""
UNSAID = ("num_attention_heads", "hidden_act", "layer_norm_eps")
"""What that is."""


@dataclass(frozen=True)
class SingleFile:
    """A single-file checkpoint together with the folder of its tokenizer."""

    path: Path
    tokenizer: Path | None = None
    """`None` looks for a folder `tokenizer` beside the file."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))
        if self.tokenizer is not None:
            object.__setattr__(self, "tokenizer", Path(self.tokenizer))


def inspect_single_file(file: Path) -> CheckpointInfo:
    """Returns what the single-file checkpoint is.

    Raises:
        CheckpointError: a pickle, damaged, or with a second copy of the weights.
        UnsupportedArchitectureError: it is of another family.
    """
    refuse_pickles(file)
    header = read_header(file)
    _refuse_averaged(file, header)
    layout = find_layout(header)
    pipeline_class = layout.pipeline_class
    architecture, blocks = find_architecture(pipeline_class), blocks_per_level(header)
    stored = {
        f"unet.{own}": name
        for name in header
        if (own := own_attention_name(name.removeprefix(UNET), blocks)) and architecture.is_projection(own)
    }
    if not stored:
        raise CheckpointError(f"{file}: expected projections {architecture.projection.pattern}, found none")
    shapes = {name: header[place].shape for name, place in stored.items()}
    memories = _memories(header, layout)
    return CheckpointInfo(
        path=file,
        pipeline_class=pipeline_class,
        architecture=architecture.name,
        projections={name: (shapes[name][0], shapes[name][-1]) for name in sorted(shapes)},
        dtype=", ".join(sorted({header[place].dtype for place in stored.values()})),
        files=dict.fromkeys([*sorted(stored), *memories], file),
        stored_names={**{name: stored[name] for name in sorted(stored)}, **memories},
    )


def read_single_file(info: CheckpointInfo, tokenizer: Path | None) -> BaseModel:
    """Returns text encoders and projections of an inspected file; nothing else is read.

    Raises:
        CheckpointError: a text encoder lacks weights, or the tokenizer belongs to another model.
    """
    header = read_header(info.path)
    layout, encoders = find_layout(header), {}
    tokenizers: dict[str, PreTrainedTokenizerBase | None] = {}
    folder = tokenizer or _beside(info.path)
    for stored in layout.encoders:
        names = [name for name in header if name.startswith(stored.prefix)]
        class_name = info.adapter.text_encoders[stored.component]
        encoders[stored.component] = _read_encoder(info.path, names, stored, class_name)
        tokenizers[stored.component] = (
            None if folder is None else _read_tokenizer(folder, stored, encoders[stored.component])
        )
    is_conditioned = any(name.startswith(f"{UNET}label_emb.") for name in header)
    weights = read_tensors(info.path, [info.stored_names[name] for name in info.projections])
    return assemble(
        info.adapter,
        Parts(
            tokenizers=tokenizers,
            encoders=encoders,
            denoiser_config={"addition_embed_type": "text_time" if is_conditioned else None},
            weights={name: weights[info.stored_names[name]] for name in info.projections},
        ),
    )


def _memories(held: Container[str], layout: Layout) -> dict[str, str]:
    """Returns the name in the file of each weight of a text encoder that an edit may change."""
    return {
        f"{encoder.component}.{name}": stored_text_name(name, encoder)
        for encoder in layout.encoders
        for name in memory_names(lambda name, encoder=encoder: stored_text_name(name, encoder) in held)
    }


def _refuse_averaged(file: Path, names: Iterable[str]) -> None:
    if averaged := [name for name in names if name.startswith(AVERAGED)]:
        raise CheckpointError(
            f"{file}: found {len(averaged)} tensors {AVERAGED}*, a second copy of the weights that an edit does not "
            "reach; start from a file without it"
        )


def _beside(file: Path) -> Path | None:
    folder = file.parent / "tokenizer"
    return folder if folder.is_dir() else None


def _read_tokenizer(folder: Path, stored: StoredEncoder, encoder: PreTrainedModel) -> PreTrainedTokenizerBase:
    tokenizer = read_tokenizer(folder, "CLIPTokenizer", pad_token=stored.padding_token)
    if len(tokenizer) != encoder.config.vocab_size:
        raise CheckpointError(
            f"{folder}: expected a tokenizer of {encoder.config.vocab_size} tokens for {stored.component}, found "
            f"{len(tokenizer)}; take the one of a checkpoint of the same family"
        )
    return tokenizer


def _read_encoder(file: Path, names: list[str], stored: StoredEncoder, class_name: str) -> PreTrainedModel:
    try:
        plain = _state(read_tensors(file, names), stored)
        config = _config(plain, stored, _said(file, stored.component))
    except KeyError as error:
        raise CheckpointError(f"{file}: {stored.component} lacks {error}; fetch it again") from error
    except (ValueError, TypeError, IndexError) as error:
        raise CheckpointError(f"{file}: could not read {stored.component}: {error}; fetch it again") from error
    if config["num_attention_heads"] is None:
        raise UnsupportedArchitectureError(
            f"{file}: expected a {stored.component} of width {', '.join(map(str, KNOWN_HEADS))}, found "
            f"{config['hidden_size']}, whose attention heads the file does not tell; give it as a folder"
        )
    try:
        with quiet_transformers():
            encoder, report = getattr(transformers, class_name).from_pretrained(
                None,
                config=CLIPTextConfig(**config),
                state_dict={_wrapped(name): tensor for name, tensor in plain.items()},
                dtype="auto",
                output_loading_info=True,
            )
    except (OSError, ValueError, TypeError, LookupError, RuntimeError) as error:
        raise CheckpointError(f"{file}: could not build {stored.component}: {error}; fetch it again") from error
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(
            f"{file}: {stored.component} lacks {len(missing)} weights, the first {missing[0]!r}; fetch it again"
        )
    return encoder


def _state(held: dict[str, Tensor], stored: StoredEncoder) -> dict[str, Tensor]:
    """Returns the encoder's weights under their names in transformers."""
    from diffusers.loaders.single_file_utils import (  # takes seconds to import
        convert_ldm_clip_checkpoint,
        convert_open_clip_checkpoint,
    )

    if stored.is_open_clip:
        width = held[f"{stored.prefix}positional_embedding"].shape[1]
        shape = SimpleNamespace(config=SimpleNamespace(hidden_size=width))
        state = convert_open_clip_checkpoint(shape, held, prefix=stored.prefix)
    else:
        state = convert_ldm_clip_checkpoint(held)
    return {plain_name(name): tensor for name, tensor in state.items() if not name.endswith("position_ids")}


def _wrapped(plain: str) -> str:
    return plain if plain.startswith("text_projection.") else f"text_model.{plain}"


def _said(file: Path, component: str) -> dict[str, Any]:
    try:
        written = json.loads(read_metadata(file).get(METADATA_KEY, "{}")).get(ENCODERS_KEY, {}).get(component, {})
        return {name: written[name] for name in UNSAID if name in written}
    except (ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{file}: expected text encoders in its header, found {error}; fetch it again") from error


def _config(plain: Mapping[str, Tensor], stored: StoredEncoder, said: Mapping[str, Any]) -> dict[str, Any]:
    vocabulary, width = plain["embeddings.token_embedding.weight"].shape
    layers = [name.split(".")[2] for name in plain if name.startswith("encoder.layers.")]
    projection = plain.get("text_projection.weight")
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": len(plain["encoder.layers.0.mlp.fc1.weight"]),
        "num_hidden_layers": 1 + max(map(int, layers)),
        "num_attention_heads": KNOWN_HEADS.get(width),
        "max_position_embeddings": len(plain["embeddings.position_embedding.weight"]),
        "hidden_act": "gelu" if stored.is_open_clip else "quick_gelu",
        "projection_dim": width if projection is None else len(projection),
        **said,
    }
