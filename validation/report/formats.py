"""Numbers and dates as a reader meets them.

Guarantees:
    1. A bound is never rounded to look better than it is: upper bounds round up, lower bounds round down.
"""

import math
import re
from collections.abc import Callable
from datetime import UTC, datetime

ABSENT = "–"
_DIGITS = 1
_NOISE_DIGITS = 6
"""Decimals beyond which a difference is float noise, so that 10 % exactly does not round up to 10.1 %."""


def percent(fraction: float | None) -> str:
    """Returns a fraction as a percentage, to the nearest tenth."""
    return ABSENT if fraction is None or math.isnan(fraction) else _with_sign(_trim(round(100 * fraction, _DIGITS)))


def whole_percent(fraction: float) -> str:
    """Returns a score as a whole percentage, rounded down: 99.9 % sure is not certain."""
    return _with_sign(str(math.floor(round(100 * fraction, _NOISE_DIGITS))))


def percent_up(fraction: float | None) -> str:
    """Returns an upper bound as a percentage, rounded up to a tenth."""
    return ABSENT if fraction is None or math.isnan(fraction) else _with_sign(_trim(_step(100 * fraction, math.ceil)))


def percent_down(fraction: float | None) -> str:
    """Returns a lower bound as a percentage, rounded down to a tenth."""
    return ABSENT if fraction is None or math.isnan(fraction) else _with_sign(_trim(_step(100 * fraction, math.floor)))


def points(fraction: float | None) -> str:
    """Returns a difference of rates in percentage points, with its sign, to the nearest tenth."""
    return ABSENT if fraction is None or math.isnan(fraction) else _signed(round(100 * fraction, _DIGITS))


def points_down(fraction: float | None) -> str:
    """Returns the lower bound of a difference in percentage points, rounded down."""
    return ABSENT if fraction is None or math.isnan(fraction) else _signed(_step(100 * fraction, math.floor))


def points_up(fraction: float | None) -> str:
    """Returns the upper bound of a difference in percentage points, rounded up."""
    return ABSENT if fraction is None or math.isnan(fraction) else _signed(_step(100 * fraction, math.ceil))


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


def _with_sign(number: str) -> str:
    return f"{number}\N{NO-BREAK SPACE}%"


def _step(value: float, rounding: Callable[[float], int]) -> float:
    scale = 10**_DIGITS
    return rounding(round(value * scale, _NOISE_DIGITS)) / scale


def _signed(value: float) -> str:
    if value == 0:
        return "0"
    return f"{'+' if value > 0 else '−'}{_trim(abs(value))}"


def _trim(value: float) -> str:
    return f"{value:.{_DIGITS}f}".removesuffix(".0")
