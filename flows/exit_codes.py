"""The exit codes of `scapre`, the same for every command."""

from enum import IntEnum


class ExitCode(IntEnum):
    """What a calling script can rely on."""

    OK = 0
    """Done, or nothing left to do; a judgement passed."""
    FAILED = 1
    """A judgement failed: a gate's limit is broken beyond doubt."""
    INCONCLUSIVE = 2
    """A judgement was inconclusive: not enough evidence either way; nothing was promoted."""
    COULD_NOT_JUDGE = 3
    """A control failed or no judgement could be made."""
    BAD_INPUT = 4
    """A request, option, file or checkpoint was refused before anything was changed."""
    INFRASTRUCTURE = 5
    """Storage, database or registry failed; run the same command again."""
    WAITING = 6
    """A candidate passed and waits for a person's approval; the champion is untouched."""
    INTERRUPTED = 130
    """Stopped by the user; the same command goes on from what is finished."""
