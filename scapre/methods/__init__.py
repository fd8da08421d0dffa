"""Methods by name."""

from collections.abc import Mapping

from scapre.errors import DialError
from scapre.methods import encoder, oce, printed, rece, released, scapre, speed, uce
from scapre.methods.base import Dial, Method, Problem, Solution

__all__ = ["METHODS", "Dial", "Method", "Problem", "Solution", "find_method"]

METHODS: Mapping[str, Method] = {
    module.METHOD.name: module.METHOD for module in (scapre, encoder, printed, released, uce, rece, speed, oce)
}


def find_method(name: str) -> Method:
    """Returns the method called `name`.

    Raises:
        DialError: there is none; lists the known ones.
    """
    if name not in METHODS:
        raise DialError(f"expected a method among {', '.join(sorted(METHODS))}, found {name!r}")
    return METHODS[name]
