"""Dials on the command line: NAME=VALUE, a number where it looks like one and the dial is no text."""

from flows.errors import BadRequestError

DIAL_HELP = (
    "NAME=VALUE of the method, for example erasure_strength=1.5; repeat for several; `scapre dials` explains them."
)


def parse_dials(pairs: list[str], method: str) -> dict[str, float | int | str]:
    """Returns the dials of a method in `NAME=VALUE` texts; a value may be empty, as that of `anchor`.

    Raises:
        BadRequestError: A text has no name or no equals sign, or a name comes twice.
    """
    from scapre.methods import METHODS  # torch: the command line's own help must not wait for it

    known = METHODS[method].dials if method in METHODS else {}
    dials: dict[str, float | int | str] = {}
    for pair in pairs:
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not (name and equals):
            raise BadRequestError(f"expected a dial as NAME=VALUE, found {pair!r}; for example erasure_strength=1.5")
        if name in dials:
            raise BadRequestError(f"expected each dial once, found {name!r} twice; keep one")
        dials[name] = value if name in known and known[name].is_text else _typed(value)
    return dials


def _typed(value: str) -> float | int | str:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value
