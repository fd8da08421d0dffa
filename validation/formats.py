"""Numbers and dates as a reader meets them: the same figure reads the same in a reason, a report and a terminal.

Guarantees:
    1. A bound is never rounded to look better than it is: upper bounds round up, lower bounds round down.
    2. A setting is never rounded at all: a confidence of 99.95 % is not printed as certainty.
"""

import math
import re
from collections.abc import Callable
from datetime import UTC, datetime

ABSENT = "–"
_DIGITS = 1
_SCORE_DIGITS = 3
_NOISE_DIGITS = 6
"""Decimals beyond which a difference is float noise, so that 10 % exactly does not round up to 10.1 %."""
_SETTING_DIGITS = 10
"""Significant digits of a setting: all that anybody types, and none of the noise behind them."""


def percent(fraction: float | None) -> str:
    """Returns a fraction as a percentage, to the nearest tenth."""
    return _percentage(fraction, round)


def percent_up(fraction: float | None) -> str:
    """Returns an upper bound as a percentage, rounded up to a tenth."""
    return _percentage(fraction, math.ceil)


def percent_down(fraction: float | None) -> str:
    """Returns a lower bound as a percentage, rounded down to a tenth."""
    return _percentage(fraction, math.floor)


def whole_percent(fraction: float) -> str:
    """Returns a score as a whole percentage, rounded down: 99.9 % sure is not certain."""
    return _with_sign(str(math.floor(round(100 * fraction, _NOISE_DIGITS))))


def exact_percent(fraction: float | None) -> str:
    """Returns a setting, such as a limit or a confidence, as a percentage with all its digits."""
    return ABSENT if fraction is None else _with_sign(f"{100 * fraction:.{_SETTING_DIGITS}g}")


def points(fraction: float | None) -> str:
    """Returns a difference of rates in percentage points, with its sign, to the nearest tenth."""
    return _difference(fraction, round)


def points_down(fraction: float | None) -> str:
    """Returns the lower bound of a difference in percentage points, rounded down."""
    return _difference(fraction, math.floor)


def points_up(fraction: float | None) -> str:
    """Returns the upper bound of a difference in percentage points, rounded up."""
    return _difference(fraction, math.ceil)


def exact_points(fraction: float | None) -> str:
    """Returns a margin in percentage points with all its digits, signed where it is a loss."""
    if fraction is None:
        return ABSENT
    return f"{'−' if fraction < 0 else ''}{abs(100 * fraction):.{_SETTING_DIGITS}g}"


def score(value: float) -> str:
    """Returns a figure on a scale of its own, such as a cosine, to the nearest thousandth."""
    return f"{_step(value, round, _SCORE_DIGITS) + 0.0:.{_SCORE_DIGITS}f}".replace("-", "−")


def cosine_change(difference: float | None) -> str:
    """Returns a difference of cosines with its sign, to the nearest thousandth."""
    return _cosine_change(difference, round)


def cosine_change_down(difference: float | None) -> str:
    """Returns the lower bound of a difference of cosines, rounded down."""
    return _cosine_change(difference, math.floor)


def cosine_change_up(difference: float | None) -> str:
    """Returns the upper bound of a difference of cosines, rounded up."""
    return _cosine_change(difference, math.ceil)


def count(number: int, noun: str, plural: str | None = None) -> str:
    """Returns a number with its noun: `1 concept`, `2 concepts`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def typeset(text: str) -> str:
    """Returns a sentence of the gates with real minus signs, and with numbers that keep their percent sign."""
    return re.sub(r"(?<![\w-])-(?=\d)", "−", re.sub(r"(?<=\d) %", "\N{NO-BREAK SPACE}%", text))


def moment(when: datetime) -> str:
    """Returns a moment in UTC, in words."""
    own = when.astimezone(UTC)
    return f"{own.day} {own:%B %Y, %H:%M} UTC"


def _percentage(fraction: float | None, rounding: Callable[[float], int]) -> str:
    if fraction is None or math.isnan(fraction):
        return ABSENT
    return _with_sign(_trim(_step(100 * fraction, rounding, _DIGITS)))


def _difference(fraction: float | None, rounding: Callable[[float], int]) -> str:
    if fraction is None or math.isnan(fraction):
        return ABSENT
    return _signed(_step(100 * fraction, rounding, _DIGITS), _trim)


def _cosine_change(difference: float | None, rounding: Callable[[float], int]) -> str:
    if difference is None or math.isnan(difference):
        return ABSENT
    return _signed(_step(difference, rounding, _SCORE_DIGITS), lambda value: f"{value:.{_SCORE_DIGITS}f}")


def _with_sign(number: str) -> str:
    return f"{number}\N{NO-BREAK SPACE}%"


def _step(value: float, rounding: Callable[[float], int], digits: int) -> float:
    scale = 10**digits
    return rounding(round(value * scale, _NOISE_DIGITS)) / scale


def _signed(value: float, show: Callable[[float], str]) -> str:
    if value == 0:
        return "0"
    return f"{'+' if value > 0 else '−'}{show(abs(value))}"


def _trim(value: float) -> str:
    return f"{value:.{_DIGITS}f}".removesuffix(".0")
