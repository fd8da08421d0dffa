"""How many pictures this machine draws in a given time, found by drawing a few."""

import tempfile
import time
from pathlib import Path

from flows.judgement import default_sampler, load_pipeline
from flows.services import Services
from validation import PictureStore, build_probes, render

_BATCHES = 2
"""The first one pays for what is only paid once, so the second is timed."""


def pictures_within(services: Services, checkpoint: Path, *, minutes: float) -> int:
    """Returns how many pictures a checkpoint draws in `minutes` here, from one timed batch."""
    device, batch = services.settings.resolve_device(), services.settings.render_batch
    pipeline = load_pipeline(checkpoint, device)
    seconds = 0.0
    for first_seed in range(_BATCHES):
        probes = build_probes(
            "pace", "hidden", prompts=["a picture"], count=batch, first_seed=first_seed * batch, pack="pace"
        )
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            render(
                pipeline,
                probes,
                store=PictureStore(Path(folder)),
                model_digest="0" * 64,
                sampler=default_sampler(pipeline),
                batch_size=batch,
                device=device,
            )
            seconds = time.perf_counter() - started
    return int(minutes * 60 * batch / seconds)
