"""What `scapre judge` asks: which concepts must be gone, which must survive, and the detectors that can see both.

Guarantees:
    1. Nothing is guessed: a detector that is spelled wrong, or a pack that names no concept, is refused.
    2. Every name that is asked for is among a zero-shot detector's names, beside unrelated ones it can choose instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.errors import BadRequestError
from flows.judgement import load_detectors
from infra.settings import Settings
from validation import Detectors, Subject
from validation.detectors import EXPLICIT
from validation.probe_packs import load_pack
from validation.probes import Kind

NUDENET = "nudenet"
_FORMS = "`classifier:FOLDER`, `clip:FOLDER` or `nudenet`"


@dataclass(frozen=True)
class Question:
    """What a judgement is about."""

    targets: tuple[Subject, ...]
    retained: tuple[str, ...]
    """Names, of the targets' kind."""

    def names(self, *, styles: bool) -> list[str]:
        """Returns the names of either all styles or everything else, each once."""
        if styles != all(target.head == "style" for target in self.targets):
            return []
        return list(dict.fromkeys((*(target.name for target in self.targets), *self.retained)))


def ask(targets: Sequence[str], *, retain: Sequence[str], pack: str | None) -> Question:
    """Returns the question that names and a pack make up.

    Args:
        targets: Names of what must be gone; without any, the pack's targets.
        retain: Names of what must survive, beside the pack's.
        pack: Name or path of a probe pack with families.

    Raises:
        BadRequestError: Nothing is to be gone, or the same that is to survive.
        ProbeError: There is no such pack, or it is malformed.
    """
    kind: Kind = "object"
    named, kept = tuple(targets), tuple(retain)
    if pack is not None:
        loaded = load_pack(pack)
        named = named or loaded.targets
        kept += loaded.retained(named)
        if loaded.wordings and all(wording.kind == "style" for wording in loaded.wordings):
            kind = "style"
    if not named:
        raise BadRequestError(
            "expected `--target NAME` or a `--pack` with targets, found neither; `scapre packs list` shows the packs"
        )
    if both := sorted({name.casefold() for name in named} & {name.casefold() for name in kept}):
        raise BadRequestError(
            f"expected each concept gone or retained, found {', '.join(both)} as both; keep one of them"
        )
    return Question(tuple(Subject(n, "unsafe" if n == EXPLICIT else kind) for n in named), tuple(dict.fromkeys(kept)))


def choose_detectors(choices: Sequence[str], question: Question, settings: Settings) -> Detectors:
    """Reads the detectors that were asked for; without any, the ones of the settings.

    Args:
        choices: Each `classifier:FOLDER`, `clip:FOLDER` or `nudenet`; at most one of the first two.
        question: What they must be able to see.
        settings: Where the default detectors are, and the device.

    Raises:
        BadRequestError: A choice is spelled otherwise, or several exclude each other.
        DetectorError: A detector cannot be read.
    """
    device = settings.resolve_device()
    others = [choice for choice in choices if choice != NUDENET]
    if len(others) > 1:
        raise BadRequestError(f"expected one classifier or CLIP model, found {' and '.join(others)}; keep one")
    detectors = _read(others[0], question, device) if others else load_detectors(settings.detectors, device)
    if len(others) == len(choices):
        return detectors
    if EXPLICIT not in {target.name for target in question.targets}:
        raise BadRequestError(f"expected `--target '{EXPLICIT}'` with nudenet, which sees nothing else; add or drop it")
    return detectors.with_explicit_content()


def _read(choice: str, question: Question, device: str) -> Detectors:
    kind, colon, folder = choice.partition(":")
    if not (colon and folder) or kind not in ("classifier", "clip"):
        raise BadRequestError(f"expected a detector as {_FORMS}, found {choice!r}; correct it")
    if kind == "classifier":
        return Detectors.load(Path(folder), device=device)
    seen = [name for name in question.names(styles=False) if name != EXPLICIT]
    unrelated = load_pack("unrelated").concepts
    taken = {name.casefold() for name in seen}
    return Detectors.zero_shot(
        Path(folder),
        objects=[*seen, *(name for name in unrelated if name.casefold() not in taken)],
        styles=question.names(styles=True),
        device=device,
    )
