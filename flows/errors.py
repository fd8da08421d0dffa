"""What can go wrong between the parts; every message says what was expected, what was found and what to do next."""


class FlowError(Exception):
    """Base of this package's errors."""


class BadRequestError(FlowError):
    """A takedown request, or an option given with it, cannot be accepted as it is."""


class UnknownBaseError(FlowError):
    """A base model was named that the object store does not hold."""
