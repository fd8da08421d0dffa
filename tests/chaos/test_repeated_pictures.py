"""The chaos world notices pictures that were drawn twice, and only those."""

import os
from pathlib import Path

import numpy as np

from tests.chaos import processes
from tests.validation import colour_world
from validation import PictureStore

PIXELS = np.full((colour_world.PIXELS, colour_world.PIXELS, 3), 0.5, dtype=np.float32)
LATER_NS = 3_600 * 10**9


def test_a_picture_drawn_again_is_noticed_and_one_that_another_process_drew_meanwhile_is_not(tmp_path: Path):
    store, log = PictureStore(tmp_path / "pictures"), tmp_path / "log"

    def draw(address: str) -> int:
        return processes.run(lambda: store.write(address, PIXELS), log=log)

    assert draw("aa") == 0
    assert draw("aa") == 1
    assert "RepeatedPictureError: aa" in log.read_text()
    meanwhile = store.path("aa").stat().st_mtime_ns + LATER_NS  # as if it had come after the next process began
    os.utime(store.path("aa"), ns=(meanwhile, meanwhile))
    assert draw("aa") == 0

    def draw_twice() -> None:
        store.write("bb", PIXELS)
        store.write("bb", PIXELS)

    assert processes.run(draw_twice, log=log) == 1
