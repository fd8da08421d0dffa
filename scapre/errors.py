"""What can go wrong in the engine, one class per remedy.

Every message says what was expected, what was found and what to do next.
"""


class ScaPreError(Exception):
    """Any failure the engine names; catching it catches all of them."""


class InvalidConceptError(ScaPreError):
    """A concept, or a set of concepts, contradicts itself."""


class DialError(ScaPreError):
    """A method or dial nobody knows, or a value outside its range; the message lists the known ones."""


class CheckpointError(ScaPreError):
    """A folder or an edit file cannot be read, trusted or written."""


class UnsupportedArchitectureError(CheckpointError):
    """The model is of a class the engine has no adapter for; nothing was changed."""


class BaseMismatchError(ScaPreError):
    """The weights are not those the edit was computed from (or, for a revert, not those it produced)."""


class UnlearningWarning(UserWarning):
    """Something doubtful about an edit that was computed; its diagnostics hold it as well, under `warnings`."""


class SingularSystemError(ScaPreError):
    """The closed form has no finite, unique answer with these dials; the message says which dial to raise."""
