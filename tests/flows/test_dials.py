"""What `--dial NAME=VALUE` says, in the type that the dial takes."""

import pytest

from flows.commands.dials import parse_dials
from flows.errors import BadRequestError


def test_a_value_is_a_number_where_it_looks_like_one_and_the_dial_takes_any():
    given = ["ridge=0.1", "vocabulary=1984", "anchor=1984", "row_weights=uniform"]
    assert parse_dials(given, "scapre") == {
        "ridge": 0.1,
        "vocabulary": 1984,
        "anchor": "1984",
        "row_weights": "uniform",
    }
    assert parse_dials(["anchor="], "scapre") == {"anchor": ""}
    assert parse_dials(["anchor=1984"], "no such method") == {"anchor": 1984}  # the control; its name is refused later


@pytest.mark.parametrize("given", [["ridge"], ["=1"], ["ridge=1", "ridge=2"]])
def test_what_is_no_dial_or_comes_twice_is_refused(given):
    with pytest.raises(BadRequestError, match="expected"):
        parse_dials(given, "scapre")
