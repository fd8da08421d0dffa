"""What can go wrong while a report is written."""

from validation.errors import ValidationError


class ReportError(ValidationError):
    """A report that would show something other than what was measured, or reach outside its own folder."""
