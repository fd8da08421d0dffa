"""Arenas are fair, and a benchmark goes on where it stopped."""

import json
import math

import pytest

from flows.arenas import CROWDS, Arena, build_arenas
from flows.benchmark import BASE_METHOD, Bench, Contestant, Result, read_results, summarize, unlearning_quality
from flows.judgement import load_detectors, load_pipeline
from infra.reference import world
from infra.settings import load_settings

ARENAS = build_arenas()


@pytest.mark.parametrize("arena", ARENAS.values(), ids=ARENAS)
def test_nobody_has_two_roles_and_everybody_is_of_the_world(arena: Arena):
    names = [name for own in arena.measured.values() for name in own]
    assert len(names) == len(set(names))
    assert set(names) <= {item.name for item in world.load_objects()} | set(world.load_styles())
    assert arena.targets
    assert arena.retain or arena.hidden


def test_every_family_is_in_one_fold_and_its_look_alikes_are_told_in_one_arena_and_hidden_in_the_other():
    targets = [name for fold in range(3) for name in ARENAS[f"look-alikes-told-{fold}"].targets]
    assert sorted(targets) == sorted(item.name for item in world.load_objects() if item.role == "target")
    for fold in range(3):
        told, hidden = ARENAS[f"look-alikes-told-{fold}"], ARENAS[f"look-alikes-hidden-{fold}"]
        assert told.targets == hidden.targets
        assert (told.retain, told.hidden) == (hidden.hidden, ())


def test_crowds_have_their_size_and_come_out_the_same_again():
    assert [len(ARENAS[f"crowd-{size}"].targets) for size in CROWDS] == list(CROWDS)
    assert build_arenas() == ARENAS


def result(seed: int, target: int, told: int, contestant: str = "uce", image_text: float = math.nan) -> Result:
    hits, pictures = {"target": target, "told": told}, {"target": 10, "told": 10}
    return Result("a", contestant, seed, "", 10, hits, pictures, image_text)


def test_overall_is_the_harmonic_mean_and_rows_carry_mean_and_spread():
    assert result(0, 0, 10).overall == 100
    assert result(0, 10, 10).overall == 0
    assert result(0, 5, 10).overall == pytest.approx(200 / 3)
    row = summarize([result(0, 0, 10), result(1, 2, 8)])[0]
    assert (row.rates["target"], row.rates["told"], row.seeds) == (10, 90, 2)
    assert row.spreads["target"] == pytest.approx(200**0.5)


def test_uq_is_the_one_the_paper_prints():
    accuracy = [89.9, 71.9, 47.4, 38.7, 78.5, 8.5, 4.9, 9.6, 0.8]  # ten classes of Imagenette, the original first
    clip = [31.43, 30.62, 30.81, 30.14, 31.02, 29.45, 29.27, 29.25, 30.43]
    printed = [28.85, 37.35, 52.89, 47.84, 35.07, 37.23, 32.60, 31.78, 64.09]
    assert unlearning_quality(accuracy, clip) == pytest.approx(printed, abs=0.15)
    others = unlearning_quality(accuracy[:-1], clip[:-1])
    assert others != pytest.approx(printed[:-1], abs=0.15)  # another company, another figure
    assert unlearning_quality([5, 5], [0.3, 0.3]) == [50, 50]


def test_uq_is_taken_among_the_contestants_of_an_arena_and_stays_unknown_without_scores():
    base, edited = result(0, 10, 10, "none", 0.8), result(0, 0, 10, image_text=0.8)
    worse, better = (row.uq for row in summarize([base, edited]))
    assert worse < 50 < better
    assert all(math.isnan(row.uq) for row in summarize([base, result(0, 0, 10)]))


def test_what_was_measured_is_not_measured_again(tmp_path):
    settings = load_settings()
    pipeline = load_pipeline(settings.base_model, "cpu")
    pipeline.set_progress_bar_config(disable=True)
    arena = Arena("small", ("rose",), ("tulip", "sunflower"), (), ())

    def bench() -> Bench:
        return Bench(
            pipeline,
            load_detectors(settings.detectors, "cpu"),
            pictures=tmp_path / "pictures",
            results=tmp_path / "results.jsonl",
        )

    base = bench().measure(arena, Contestant(BASE_METHOD, {}), seeds=[0], each=2, on_progress=None)[0]
    assert (base.hits["target"], base.hits["told"]) == (2, 4)  # the control: the base draws all of them
    edited = bench().measure(arena, Contestant("scapre", {"vocabulary": 0}), seeds=[0], each=2, on_progress=None)[0]
    assert edited.hits["target"] == 0
    assert base.image_text == pytest.approx(0.83, abs=0.1)
    with (tmp_path / "results.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"arena": "cut"})[:-3])
    again = bench().measure(arena, Contestant("scapre", {"vocabulary": 0}), seeds=[0], each=2, on_progress=None)
    assert again == [edited]
    assert read_results(tmp_path / "results.jsonl") == [base, edited]
    more = bench().measure(arena, Contestant(BASE_METHOD, {}), seeds=[0], each=3, on_progress=None)[0]
    assert (base.pictures["target"], more.pictures["target"]) == (2, 3)  # another number is another result
    other = bench().measure(arena, Contestant("uce", {}), seeds=[0], each=2, on_progress=None)
    assert read_results(tmp_path / "results.jsonl") == [base, edited, more, *other]
