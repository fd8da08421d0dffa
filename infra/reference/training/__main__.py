"""Command line of the training stages."""

import argparse
import logging
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from infra.reference import world
from infra.reference.training import assembly, autoencoder, classifier, contrastive, dataset, diffusion, evaluation

STAGES = (
    *("draw", "contrastive", "autoencoder", "normalise", "encode", "classifier", "diffusion"),
    *("assemble", "evaluate"),
)


def main() -> None:
    """Runs one stage on the pictures of an earlier one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("stage", choices=STAGES, help="in this order; evaluate judges the model that is shipped")
    parser.add_argument("--folder", type=Path, help="working folder that the stages share; not needed by evaluate")
    parser.add_argument("--out", type=Path, help="where assemble and evaluate write")
    parser.add_argument("--start", type=Path, help="denoiser to go on from")
    parser.add_argument("--start-text", type=Path, help="text tower that --start reads, where --folder has another")
    parser.add_argument("--text-width", type=int, default=contrastive.TEXT_WIDTH, help="width of the text tower")
    parser.add_argument("--peak-rate", type=float, default=1e-3, help="highest learning rate of the denoiser")
    parser.add_argument("--count", type=int, default=26_400, help="drawings to make")
    parser.add_argument("--per-concept", type=int, default=16, help="pictures per concept to evaluate")
    parser.add_argument("--seconds", type=float, default=1200, help="training time")
    parser.add_argument("--threads", type=int, default=2, help="processor threads")
    a = parser.parse_args()
    needed = {"evaluate": ("out",), "assemble": ("folder", "out")}.get(a.stage, ("folder",))
    if lacking := [f"--{name}" for name in needed if getattr(a, name) is None]:
        parser.error(f"stage {a.stage} needs {' and '.join(lacking)}")
    if a.text_width < contrastive.HEAD_WIDTH or a.text_width % contrastive.HEAD_WIDTH:
        parser.error(f"--text-width is a multiple of {contrastive.HEAD_WIDTH}")
    if a.start_text and not a.start:
        parser.error("--start-text says what --start reads: give both")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(a.threads)
    if a.stage == "draw":
        dataset.save(dataset.draw(a.count, seed=dataset.TRAIN_SEED), a.folder / "train.npz")
        dataset.save(dataset.draw(len(world.load_objects()) * 8, seed=dataset.HELD_OUT_SEED), a.folder / "heldout.npz")
    elif a.stage == "encode":
        model = AutoencoderKL.from_pretrained(a.folder / "vae_normalised").eval().to(memory_format=torch.channels_last)
        torch.save(
            autoencoder.mean_latents(model, dataset.load(a.folder / "train.npz").pictures), a.folder / "latents.pt"
        )
    elif a.stage == "autoencoder":
        autoencoder.train(dataset.load(a.folder / "train.npz"), a.folder / "vae", seconds=a.seconds)
    elif a.stage == "normalise":
        model = AutoencoderKL.from_pretrained(a.folder / "vae").eval()
        held_out = dataset.load(a.folder / "heldout.npz").pictures
        logging.info("reconstruction error %.4f", autoencoder.reconstruction_error(model, held_out))
        drawings = dataset.load(a.folder / "train.npz")
        autoencoder.normalise_latents(model, drawings.pictures[:8192])
        logging.info(
            "reconstruction error %.4f with normalised latents", autoencoder.reconstruction_error(model, held_out)
        )
        model.save_pretrained(a.folder / "vae_normalised")
        torch.save(autoencoder.mean_latents(model, drawings.pictures), a.folder / "latents.pt")
    elif a.stage == "diffusion":
        diffusion.train(
            torch.load(a.folder / "latents.pt"),
            dataset.load(a.folder / "train.npz").captions,
            text_folder=a.folder / "clip",
            folder=a.folder / "unet",
            start=a.start,
            start_text=a.start_text,
            peak_rate=a.peak_rate,
            seconds=a.seconds,
        )
    elif a.stage == "assemble":
        assembly.assemble(a.folder, a.out)
    elif a.stage == "evaluate":
        evaluation.write_figures(a.out, per_concept=a.per_concept)
    elif a.stage == "contrastive":
        contrastive.train(
            dataset.load(a.folder / "train.npz"), a.folder / "clip", seconds=a.seconds, text_width=a.text_width
        )
    elif a.stage == "classifier":
        held_out = dataset.load(a.folder / "heldout.npz")
        model = classifier.train(dataset.load(a.folder / "train.npz"), a.folder / "classifier", seconds=a.seconds)
        figures = classifier.accuracy(
            model, autoencoder.to_tensor(held_out.pictures), held_out.object_labels, held_out.style_labels
        )
        logging.info("held-out accuracy: objects %.4f, styles %.4f", *figures)


if __name__ == "__main__":
    main()
