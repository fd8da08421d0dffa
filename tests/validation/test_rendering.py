from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from colour_world import Painter

from validation.errors import RenderingError
from validation.probes import Probe, build_probes
from validation.rendering import (
    PictureStore,
    Sampler,
    build_scheduler,
    excess_of,
    render,
    safety_checker_state,
    weights_digest,
)

SAMPLER = Sampler(steps=2, guidance=2.0, scheduler="DDIMScheduler", pixels=16)
WORLD_SAMPLER = Sampler(steps=1, guidance=1.0, scheduler="DDIMScheduler", pixels=8)


class InterruptedRunError(Exception):
    """Stands for a killed process."""


def probes_of(count: int) -> list[Probe]:
    return build_probes("tiger", "target", prompts=["a tiger"], count=count, first_seed=0, pack="p")


def draw(painter: Any, probes: list[Probe], store: PictureStore, **changes: Any) -> list[str]:
    arguments = {"store": store, "model_digest": "m", "sampler": WORLD_SAMPLER, "batch_size": 4}
    return render(painter, probes, **(arguments | changes))


def test_a_real_pipeline_draws_the_same_picture_whatever_else_is_in_its_batch(tiny_pipeline, tmp_path: Path):
    alone, together = PictureStore(tmp_path / "a"), PictureStore(tmp_path / "b")
    [first] = draw(tiny_pipeline, probes_of(1), alone, sampler=SAMPLER)
    drawn = draw(tiny_pipeline, probes_of(3), together, sampler=SAMPLER)
    assert drawn[0] == first
    difference = np.asarray(alone.read(first), dtype=int) - np.asarray(together.read(first), dtype=int)
    assert abs(difference).max() <= 1  # a batch of another size may round differently
    assert len({together.digest(address) for address in drawn}) == 3


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "DDIMScheduler", "EulerDiscreteScheduler"])
def test_every_scheduler_draws_and_keeps_the_models_own_noise_schedule(tiny_pipeline, tmp_path: Path, name: str):
    scheduler = build_scheduler(tiny_pipeline, name)
    assert type(scheduler).__name__ == name
    assert scheduler.config.beta_schedule == "scaled_linear"
    own = tiny_pipeline.scheduler
    sampler = Sampler(steps=2, guidance=2.0, scheduler=name, pixels=16)
    [address] = draw(tiny_pipeline, probes_of(1), PictureStore(tmp_path), sampler=sampler)
    assert PictureStore(tmp_path).read(address).size == (16, 16)
    assert tiny_pipeline.scheduler is own


def test_an_unknown_scheduler_is_refused():
    with pytest.raises(RenderingError, match="found 'PNDMScheduler'"):
        Sampler(steps=2, guidance=1.0, scheduler="PNDMScheduler", pixels=16)


def test_a_flow_matching_scheduler_is_refused_for_a_diffusion_model(tiny_pipeline):
    with pytest.raises(RenderingError, match="same family as the model's DDIMScheduler"):
        build_scheduler(tiny_pipeline, "FlowMatchEulerDiscreteScheduler")


@pytest.mark.parametrize("changes", [{"steps": 0}, {"pixels": 4}, {"guidance": -1.0}])
def test_an_impossible_sampler_is_refused(changes: dict):
    with pytest.raises(RenderingError, match="correct the sampler"):
        Sampler(**({"steps": 1, "guidance": 1.0, "scheduler": "DDIMScheduler", "pixels": 16} | changes))


def test_no_finished_picture_is_drawn_again(painter: Painter, store: PictureStore):
    first = draw(painter, probes_of(6), store)
    again = draw(painter, probes_of(8), store)
    assert again[:6] == first
    assert len(painter.drawn) == len(set(painter.drawn)) == 8


def test_a_killed_run_loses_no_finished_batch_and_draws_nothing_twice(painter: Painter, store: PictureStore):
    def stop_after_eight(done: int, total: int) -> None:
        assert total == 20
        if done == 8:
            raise InterruptedRunError

    with pytest.raises(InterruptedRunError):
        draw(painter, probes_of(20), store, on_progress=stop_after_eight)
    seen: list[tuple[int, int]] = []
    addresses = draw(painter, probes_of(20), store, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(8, 20), (12, 20), (16, 20), (20, 20)]
    assert len(painter.drawn) == len(set(painter.drawn)) == 20
    assert all(store.holds(address, pixels=8) for address in addresses)


def test_a_batch_killed_while_drawing_leaves_nothing_behind(painter: Painter, store: PictureStore):
    class Failing(Painter):
        def __call__(self, **kwargs: Any) -> Any:
            if len(self.drawn) >= 4:
                raise InterruptedRunError
            return super().__call__(**kwargs)

    with pytest.raises(InterruptedRunError):
        draw(Failing(), probes_of(8), store)
    assert len(list(store.folder.rglob("*"))) == len(list(store.folder.rglob("*.png"))) + len(
        list(store.folder.iterdir())
    )
    draw(painter, probes_of(8), store)
    assert len(painter.drawn) == 4


def test_the_same_picture_asked_for_twice_is_drawn_once(painter: Painter, store: PictureStore):
    [probe] = probes_of(1)
    twin = Probe(probe.prompt, probe.seed, "tiger", "retained", "other")
    assert len(set(draw(painter, [probe, twin], store))) == 1
    assert len(painter.drawn) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"model_digest": "another"},
        {"sampler": Sampler(steps=2, guidance=1.0, scheduler="DDIMScheduler", pixels=8)},
        {"sampler": Sampler(steps=1, guidance=1.5, scheduler="DDIMScheduler", pixels=8)},
        {"sampler": Sampler(steps=1, guidance=1.0, scheduler="EulerDiscreteScheduler", pixels=8)},
        {"sampler": Sampler(steps=1, guidance=1.0, scheduler="DDIMScheduler", pixels=16)},
    ],
)
def test_another_model_or_sampler_never_sees_an_old_picture(painter: Painter, store: PictureStore, changes: dict):
    before = draw(painter, probes_of(2), store)
    after = draw(painter, probes_of(2), store, **changes)
    assert not set(before) & set(after)
    assert len(painter.drawn) == 4


@pytest.mark.parametrize("damage", ["cut early", "truncated", "emptied", "flipped", "replaced", "resized"])
def test_a_damaged_picture_is_drawn_again(painter: Painter, store: PictureStore, damage: str):
    addresses = draw(painter, probes_of(3), store)
    path = store.path(addresses[1])
    intact = path.read_bytes()
    if damage == "resized":
        store.read(addresses[1]).resize((4, 4)).save(path)
    else:
        middle = len(intact) // 2
        path.write_bytes(
            {
                "cut early": intact[: len(intact) // 2],
                "truncated": intact[: len(intact) - 20],
                "emptied": b"",
                "flipped": intact[:middle] + bytes([intact[middle] ^ 0xFF]) + intact[middle + 1 :],
                "replaced": b"not a picture",
            }[damage]
        )
    assert not store.holds(addresses[1], pixels=8)
    assert draw(painter, probes_of(3), store) == addresses
    assert len(painter.drawn) == 4
    assert path.read_bytes() == intact


def test_reading_an_absent_or_damaged_picture_says_what_to_do(store: PictureStore):
    store.path("ab" * 32).parent.mkdir(parents=True)
    with pytest.raises(RenderingError, match="render again"):
        store.read("ab" * 32)
    store.path("ab" * 32).write_bytes(b"\x89PNG")
    with pytest.raises(RenderingError, match="render again"):
        store.read("ab" * 32)


def test_pixels_that_are_not_numbers_become_black(store: PictureStore):
    store.write("ab" * 32, np.full((8, 8, 3), np.nan, dtype=np.float32))
    assert np.asarray(store.read("ab" * 32)).max() == 0


def test_a_safety_checker_is_off_while_drawing_and_back_afterwards(painter: Painter, store: PictureStore):
    class Guarded(Painter):
        safety_checker: Any = "checker"

        def __call__(self, **kwargs: Any) -> Any:
            assert self.safety_checker is None
            return super().__call__(**kwargs)

    guarded = Guarded()
    assert (safety_checker_state(guarded), safety_checker_state(painter)) == ("switched off", "absent")
    draw(guarded, probes_of(1), store)
    assert guarded.safety_checker == "checker"


def test_a_prompt_that_the_text_encoder_would_cut_is_refused(tiny_pipeline, store: PictureStore):
    assert excess_of(tiny_pipeline, "a tiger") is None
    long = [Probe("tiger " * 80, 0, "tiger", "target", "p")]
    with pytest.raises(RenderingError, match="at most 77 tokens"):
        draw(tiny_pipeline, long, store, sampler=SAMPLER)


def test_a_pipeline_that_ignores_the_size_is_refused(store: PictureStore):
    class Stubborn(Painter):
        def __call__(self, **kwargs: Any) -> Any:
            return super().__call__(**(kwargs | {"height": 4, "width": 4}))

    with pytest.raises(RenderingError, match="expected pictures of shape"):
        draw(Stubborn(), probes_of(1), store)


def test_the_weights_digest_sees_every_weight_and_nothing_else(tiny_pipeline):
    before = weights_digest(tiny_pipeline)
    assert weights_digest(tiny_pipeline) == before
    for part in (tiny_pipeline.vae, tiny_pipeline.text_encoder, tiny_pipeline.unet):
        weight = next(part.parameters())
        with torch.no_grad():
            weight.view(-1)[0] += 1e-3
            assert weights_digest(tiny_pipeline) != before
            weight.view(-1)[0] -= 1e-3
    tiny_pipeline.scheduler.register_to_config(prediction_type="v_prediction")
    assert weights_digest(tiny_pipeline) != before


def test_the_weights_digest_reads_low_precision(tiny_pipeline):
    before = weights_digest(tiny_pipeline)
    tiny_pipeline.unet.to(torch.bfloat16)
    assert weights_digest(tiny_pipeline) != before
