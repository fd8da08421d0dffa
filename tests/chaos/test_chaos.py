"""A short form of `make chaos`: commands killed where it hurts most, and run again."""

from collections.abc import Iterator

import pytest

from tests.chaos.kills import POINTS, SHORT, Bench
from tests.chaos.processes import Point


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    return Bench(tmp_path_factory.mktemp("chaos") / "bench")


@pytest.mark.parametrize(
    ("command", "point"),
    [
        pytest.param(command, point, id=f"{command}: {point.name}")
        for command, points in SHORT.items()
        for point in points
    ],
)
def test_a_killed_command_run_again_ends_as_if_nobody_had_killed_it(bench: Bench, command: str, point: Point):
    assert bench.kill(command, point) == []


def test_there_are_enough_points_in_every_phase():
    points = [point for of_command in POINTS.values() for point in of_command]
    assert len(points) >= 25
    phases = {point.phase for point in points}
    assert phases == {"fetch", "solve", "save", "render", "judge", "register", "approve", "promote", "roll back"}
