import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from infra.reference import world

STYLES = world.load_styles()


def test_there_are_enough_objects_families_and_styles():
    objects = world.load_objects()
    families = Counter(o.family for o in objects if o.family)
    targets = Counter(o.family for o in objects if o.role == "target")
    assert len(objects) >= 120
    assert len(STYLES) >= 10
    assert len(families) >= 8
    assert all(count >= 5 for count in families.values())
    assert set(targets.values()) == {2}


def test_names_and_aliases_are_unambiguous():
    names = [n.casefold() for o in world.load_objects() for n in (o.name, *o.aliases)] + list(STYLES)
    assert [n for n, c in Counter(names).items() if c > 1] == []


def test_a_scene_fixes_its_picture_and_a_generator_fixes_the_scene():
    pictures = []
    for _ in range(2):
        rng = np.random.default_rng(5)
        pictures.append([np.asarray(world.draw_scene(world.sample_scene(rng))) for _ in range(20)])
    assert np.array_equal(pictures[0], pictures[1])


def test_captions_name_the_object_and_its_style():
    rng = np.random.default_rng(6)
    for _ in range(300):
        scene = world.sample_scene(rng)
        caption = world.caption_scene(scene, rng)
        drawn = world.load_objects()[scene.object_index]
        assert any(name in caption for name in (drawn.name, *drawn.aliases))
        assert scene.style == world.NATURAL or scene.style in caption


@pytest.mark.parametrize("style", STYLES)
def test_every_style_changes_the_picture(style):
    rng = np.random.default_rng(7)
    scene = world.sample_scene(rng, style=world.NATURAL)
    plain = np.asarray(world.draw_scene(scene), dtype=float)
    styled = world.Scene(**{**scene.__dict__, "style": style})
    assert np.abs(np.asarray(world.draw_scene(styled), dtype=float) - plain).mean() > 8


def test_an_unknown_style_is_refused():
    rng = np.random.default_rng(8)
    with pytest.raises(KeyError):
        world.apply_style(world.draw_scene(world.sample_scene(rng)), "cubism")


def test_the_sprite_sheet_holds_every_glyph():
    entries = json.loads((Path(world.__file__).parent / "world.json").read_text(encoding="utf-8"))["objects"]
    rng = np.random.default_rng(9)
    scene = world.sample_scene(rng, object_index=len(entries) - 1, style=world.NATURAL)
    assert np.asarray(world.draw_scene(scene)).std() > 5
