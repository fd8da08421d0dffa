"""Stage `contrastive`: tokenizer and CLIPModel; its text tower conditions the pictures, both towers judge them."""

import logging
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch.nn import functional
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from infra.reference.training import dataset
from infra.reference.training.autoencoder import to_tensor
from infra.reference.training.schedule import set_rate

CONTEXT_TOKENS = 24
SEEN_PIXELS = 64
"""Side to which pictures are enlarged before the picture tower sees them, in training as by the image processor."""
VOCABULARY_SIZE = 1400
TEXT_WIDTH = 256
HEAD_WIDTH = 64
_START, _END = "<|startoftext|>", "<|endoftext|>"
logger = logging.getLogger(__name__)


def train_tokenizer(captions: list[str]) -> CLIPTokenizer:
    """Returns a CLIP tokenizer whose merges are learned from the captions; bytes cover everything else."""
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=_END))
    trained.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    trained.train_from_iterator(captions, trainer)
    merges = _merges(trained)
    pieces = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    known = set(pieces)
    for left, right in merges:
        if left + right not in known:
            known.add(left + right)
            pieces.append(left + right)
    vocabulary = {piece: index for index, piece in enumerate([*pieces, _START, _END])}
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,  # ty: ignore[invalid-argument-type]  pairs are what the tokenizer takes
        model_max_length=CONTEXT_TOKENS,
    )


def _merges(trained: Tokenizer) -> list[tuple[str, str]]:
    import json

    return [tuple(merge) for merge in json.loads(trained.to_str())["model"]["merges"]]


def build(tokenizer: CLIPTokenizer, text_width: int = TEXT_WIDTH) -> CLIPModel:
    """Returns an untrained CLIPModel for pictures of `SEEN_PIXELS`; `text_width` is a multiple of `HEAD_WIDTH`."""
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return CLIPModel(
        CLIPConfig(
            text_config={
                "vocab_size": len(tokenizer),
                "hidden_size": text_width,
                "intermediate_size": 768,
                "num_hidden_layers": 3,
                "num_attention_heads": text_width // HEAD_WIDTH,
                "max_position_embeddings": CONTEXT_TOKENS,
                "projection_dim": 128,
                "pad_token_id": tokenizer.pad_token_id,
                **special,
            },
            vision_config={
                "image_size": SEEN_PIXELS,
                "patch_size": 8,
                "hidden_size": 160,
                "intermediate_size": 480,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "projection_dim": 128,
            },
            projection_dim=128,
        )
    )


def augment(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Returns pictures with noise or a soft focus on some, as a generator's flaws would look."""
    kind = torch.rand(len(pictures), generator=generator)
    noise = torch.randn(pictures.shape, generator=generator) * torch.rand(len(pictures), 1, 1, 1, generator=generator)
    soft = functional.interpolate(functional.avg_pool2d(pictures, 2), scale_factor=2, mode="bilinear")
    pictures = torch.where((kind < 0.3)[:, None, None, None], soft, pictures)
    return torch.where((kind > 0.6)[:, None, None, None], (pictures + 0.2 * noise).clamp(-1, 1), pictures)


def enlarge(pictures: torch.Tensor) -> torch.Tensor:
    """Returns pictures at `SEEN_PIXELS`, resampled as the image processor does."""
    larger = functional.interpolate(pictures, size=(SEEN_PIXELS, SEEN_PIXELS), mode="bicubic", antialias=True)
    return larger.clamp(-1, 1)


def train(
    drawings: dataset.Drawings,
    folder: Path,
    *,
    seconds: float,
    text_width: int = TEXT_WIDTH,
    batch: int = 96,
    peak_rate: float = 1e-3,
    seed: int = 2,
) -> CLIPModel:
    """Trains both towers for a span of time and saves model, tokenizer and image processor."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    tokenizer = train_tokenizer(drawings.captions)
    tokens = tokenizer(drawings.captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    logger.info(
        "vocabulary %d, longest caption %d", len(tokenizer), int((tokens != tokenizer.eos_token_id).sum(1).max())
    )
    labels = torch.from_numpy(drawings.object_labels * 1000 + drawings.style_labels)
    model = build(tokenizer, text_width).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_rate, betas=(0.9, 0.98), weight_decay=0.05)
    started, step, spent = time.monotonic(), 0, 0.0
    while spent < seconds:
        spent = time.monotonic() - started
        set_rate(optimizer, peak=peak_rate, step=step, warm_up=200, remaining=1 - min(spent / seconds, 1.0))
        chosen = rng.integers(len(labels), size=batch)
        pictures = enlarge(augment(to_tensor(drawings.pictures[chosen]), generator))
        ids = tokens[chosen]
        length = int((ids != tokenizer.eos_token_id).sum(1).max()) + 1
        output = model(input_ids=ids[:, :length], pixel_values=pictures)
        same = (labels[chosen][:, None] == labels[chosen][None, :]).float()
        wanted = same / same.sum(1, keepdim=True)
        loss = (
            functional.cross_entropy(output.logits_per_image, wanted)
            + functional.cross_entropy(output.logits_per_text, wanted)
        ) / 2
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 50 == 0:
            top = (output.logits_per_image.argmax(1)[:, None] == torch.arange(batch)).float()
            hit = float((top @ torch.eye(batch) * same).sum(1).clamp(max=1).mean())
            logger.info("step %d  %.0f s  loss %.3f  top-1 in batch %.3f", step, spent, float(loss), hit)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    side = {"height": SEEN_PIXELS, "width": SEEN_PIXELS}
    processor = CLIPImageProcessorPil(size=side, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    processor.save_pretrained(folder)
    return model
