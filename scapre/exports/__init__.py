"""What an edit can be given away as: a merged checkpoint folder."""

from scapre.exports.folder import merge

__all__ = ["merge"]
