"""What can go wrong while judging. A failed gate is not an error: it is a verdict."""


class ValidationError(Exception):
    """Base of all errors of this package."""


class PolicyError(ValidationError):
    """A policy that cannot be read, or that no candidate could ever satisfy."""


class ProbeError(ValidationError):
    """Probes that cannot be built: no concept, no template, an unreadable pack."""


class UnknownLabelError(ValidationError):
    """A concept that the detector has no label for."""


class DetectorError(ValidationError):
    """A detector folder that cannot be used."""


class RenderingError(ValidationError):
    """Pictures that cannot be drawn as the protocol says."""


class ProtocolError(ValidationError):
    """A judgement asked for in a way that could not mean anything."""
