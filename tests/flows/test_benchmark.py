"""Arenas are fair, and a benchmark goes on where it stopped."""

import json
import math
from dataclasses import replace

import pytest

import scapre
from flows.arenas import CROWDS, Arena, build_arenas
from flows.benchmark import BASE_METHOD, Bench, Contestant, Result, read_results
from flows.cli import run
from flows.commands.benchmark import SAME_TEXT, _contestants
from flows.exit_codes import ExitCode
from flows.judgement import load_detectors, load_pipeline
from infra.reference import world
from infra.settings import load_settings
from scapre.methods import METHODS

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


def test_our_reading_of_text_in_the_sweep_is_the_default_methods():
    assert SAME_TEXT.items() <= METHODS["scapre"].resolve({}).items()


def test_dials_that_are_given_take_the_place_of_the_sweep_and_unknown_ones_are_refused_at_once():
    given = list(_contestants(["none", "scapre"], ["balance=answers"], is_swept=True, ablation=False))
    assert given == [Contestant("none", {}), Contestant("scapre", {"balance": "answers"})]
    swept = list(_contestants(["none", "scapre"], [], is_swept=True, ablation=False))
    assert len(swept) > len(given)  # the control
    with pytest.raises(scapre.DialError, match="uce has no dial balance"):
        list(_contestants(["scapre", "uce"], ["balance=answers"], is_swept=True, ablation=False))


def test_dials_need_a_method_to_be_of(capsys):
    assert run(["benchmark", "--dial", "balance=answers"]) == ExitCode.BAD_INPUT
    assert "name each by --method" in capsys.readouterr().err


def test_a_crowd_drawn_again_has_other_targets_and_the_first_draw_stays():
    drawn = build_arenas(3)
    assert ARENAS.items() <= drawn.items()
    again = [drawn[name] for name in ("crowd-25", "crowd-25-draw-2", "crowd-25-draw-3")]
    assert len({arena.targets for arena in again}) == len({arena.hidden for arena in again}) == 3
    assert {len(arena.targets) for arena in again} == {25}


def result(seed: int, target: int, told: int) -> Result:
    return Result("a", "uce", seed, "", 10, {"target": target, "told": told}, {"target": 10, "told": 10}, math.nan)


def test_overall_is_the_harmonic_mean_of_what_is_gone_and_what_is_kept():
    assert result(0, 0, 10).overall == 100
    assert result(0, 10, 10).overall == 0
    assert result(0, 5, 10).overall == pytest.approx(200 / 3)


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
    wider = replace(arena, others=("cat",))
    wide = bench().measure(wider, Contestant(BASE_METHOD, {}), seeds=[0], each=2, on_progress=None)[0]
    assert wide.pictures == {**base.pictures, "other": 1}  # so are further concepts
    other = bench().measure(arena, Contestant("uce", {}), seeds=[0], each=2, on_progress=None)
    assert read_results(tmp_path / "results.jsonl") == [base, edited, more, wide, *other]
