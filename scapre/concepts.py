"""What to forget and how: the values an edit is computed from.

Guarantees:
    1. A `Concept` that exists is valid; a name is asked for twice, or both to go and to stay, whatever its case,
       spacing, quotes and usual plural in English.
    2. An `EditSpec` is independent of the order in which concepts and names were given.
    3. `EditSpec.to_json` is canonical: equal specs give equal text, and `from_json` gives the spec back.
"""

import itertools
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from scapre.errors import InvalidConceptError

Kind = Literal["object", "style", "identity", "unsafe"]
KINDS: tuple[str, ...] = get_args(Kind)
DialValue = str | int | float
LONGEST_NAME = 200
JOINERS = "\u200c\u200d"
"""Invisible, and part of how Persian, Hindi and others are written."""
BLANKS = "\u115f\u1160\u2800\u3164\uffa0"
"""Letters and signs that are drawn as nothing."""

PUNCTUATION = ".,;:!?'\"()[]\u2018\u2019\u201a\u201c\u201d\u201e\u00ab\u00bb"
"""What may stand around a word without being part of it; dots, and quotes of many kinds."""
ENDINGS_BEFORE_ES = ("xes", "ches", "shes", "sses", "oes", "uses")
"""Of words for many that take off two letters for one: foxes, churches, dishes, dresses, heroes, buses."""
ENDINGS_BEFORE_S = ("ouses", "auses", "shoes", "aches")
"""Of such that take off one all the same: houses, clauses, horseshoes, moustaches."""
WORDS_BEFORE_S = frozenset(
    word
    for line in (
        "axes quiches avalanches niches brioches glasses mousses posses canoes toes hoes oboes foes woes floes aloes",
        "roes sloes does tiptoes muses fuses uses ruses excuses abuses recluses pies ties lies dies cookies zombies",
        "movies brownies smoothies selfies pixies genies hoodies collies rookies magpies neckties bowties goalies",
        "birdies prairies calories cuties aunties budgies cowries valkyries hippies species series davies menzies",
        "humphries jeffries",
    )
    for word in line.split()
)
"""Words that do so by themselves, and some names."""
PLURALS: Mapping[str, str] = {
    **{"men": "man", "women": "woman", "children": "child", "people": "person", "mice": "mouse", "lice": "louse"},
    **{"geese": "goose", "feet": "foot", "teeth": "tooth", "oxen": "ox", "knives": "knife", "wives": "wife"},
    **{"lives": "life", "wolves": "wolf", "shelves": "shelf", "bookshelves": "bookshelf", "elves": "elf"},
    **{"leaves": "leaf", "loaves": "loaf", "scarves": "scarf", "calves": "calf", "halves": "half", "thieves": "thief"},
    **{"hooves": "hoof", "sheaves": "sheaf", "dwarves": "dwarf", "werewolves": "werewolf", "housewives": "housewife"},
    **{"firemen": "fireman", "policemen": "policeman", "snowmen": "snowman", "fishermen": "fisherman"},
    **{"cacti": "cactus", "octopi": "octopus", "fungi": "fungus", "hippopotami": "hippopotamus", "oases": "oasis"},
    **{"gases": "gas", "atlases": "atlas", "canvases": "canvas", "lenses": "lens", "irises": "iris", "ibises": "ibis"},
    **{"mantises": "mantis", "crises": "crisis", "rhinoceroses": "rhinoceros", "quizzes": "quiz", "waltzes": "waltz"},
}
"""Words for many, and for one, where no rule of `word_keys` tells."""


@dataclass(frozen=True)
class Concept:
    """A concept to forget."""

    name: str
    """Everyday name, as one would write it in a prompt."""
    kind: Kind = "object"
    """Decides the sentences the name is put into."""
    aliases: tuple[str, ...] = ()
    """Other names of the same thing; forgotten together with it and never retained."""
    anchor: str | None = None
    """What to draw instead; `None` leaves it to the method's `anchor` dial, an empty text is the empty prompt."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", clean_name(self.name, "name of a concept"))
        if self.kind not in KINDS:
            raise InvalidConceptError(
                f"concept {self.name!r}: expected a kind among {', '.join(KINDS)}, found {self.kind!r}"
            )
        if isinstance(self.aliases, str):
            raise InvalidConceptError(f"concept {self.name!r}: expected aliases as a sequence of names, found one text")
        if not isinstance(self.aliases, Iterable):
            raise InvalidConceptError(f"concept {self.name!r}: expected aliases as a sequence, found {self.aliases!r}")
        # a plural or a hyphen is another text to the encoder: each spelling given is forgotten
        aliases = {clean_name(alias, f"alias of {self.name!r}") for alias in self.aliases}
        object.__setattr__(self, "aliases", tuple(sorted(aliases - {self.name})))
        if self.anchor is not None and not isinstance(self.anchor, str):
            raise InvalidConceptError(f"concept {self.name!r}: expected a text as anchor, found {self.anchor!r}")
        if self.anchor is not None:
            anchor = clean_name(self.anchor, f"anchor of {self.name!r}") if self.anchor.strip() else ""
            object.__setattr__(self, "anchor", anchor)
            if name_key(anchor) in {name_key(name) for name in self.names}:
                raise InvalidConceptError(
                    f"concept {self.name!r}: its anchor is the concept itself; name something else"
                )

    @property
    def names(self) -> tuple[str, ...]:
        """The name, then its aliases."""
        return (self.name, *self.aliases)


@dataclass(frozen=True)
class EditSpec:
    """All that decides an edit besides the base weights."""

    method: str
    """Name of the method, see `scapre.methods`."""
    concepts: tuple[Concept, ...]
    """What to forget, in canonical order."""
    retain: tuple[str, ...]
    """Every name that was retained, given or found, in canonical order."""
    dials: Mapping[str, DialValue]
    """Every dial of the method with the value used, defaults included."""
    base_digest: str
    """Digest of the weights the edit belongs to."""
    withheld: tuple[str, ...] = ()
    """Names the engine was told to keep out of its own vocabulary."""
    format: int = field(default=1)
    """Format of this record; readers keep understanding every earlier one."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "concepts", canonical_concepts(self.concepts))
        object.__setattr__(self, "retain", canonical_names(self.retain, "retained name"))
        object.__setattr__(self, "withheld", canonical_names(self.withheld, "withheld name"))
        object.__setattr__(self, "dials", dict(sorted(self.dials.items())))

    def to_json(self) -> str:
        """Returns the canonical JSON of the spec."""
        return canonical_json(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "EditSpec":
        """Returns the spec that `to_json` wrote."""
        record: dict[str, Any] = json.loads(text)
        if record.get("format") != 1:
            raise InvalidConceptError(
                f"expected an edit spec of format 1, found {record.get('format')!r}; update scapre"
            )
        concepts = [
            Concept(entry["name"], entry["kind"], tuple(entry["aliases"]), entry["anchor"])
            for entry in record["concepts"]
        ]
        return cls(
            method=record["method"],
            concepts=tuple(concepts),
            retain=tuple(record["retain"]),
            dials=record["dials"],
            base_digest=record["base_digest"],
            withheld=tuple(record["withheld"]),
        )


def canonical_json(value: object) -> str:
    """Returns `value` as JSON with sorted keys, no spaces and no NaN, so that equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def name_key(name: str) -> str:
    """Returns the form in which two spellings of one name are equal."""
    return " ".join(word_keys(name))


def word_keys(name: str) -> tuple[str, ...]:
    """Returns the words of `name`, lower case, hyphens opened, punctuation around them off, plurals undone."""
    return tuple(map(_one_for, _words(name)))


def _words(name: str) -> tuple[str, ...]:
    """Returns the same with plurals as they are."""
    visible = unicodedata.normalize("NFKC", name).translate(dict.fromkeys(map(ord, JOINERS)))
    split = re.split(r"[\s\-_]+", visible.casefold().strip())
    return tuple(word.strip(PUNCTUATION) or word for word in split)


def _one_for(word: str) -> str:
    """Returns the word for one where `word` is for many, less an s that either may end in ("octopu").

    Words for one stay apart where their spelling tells: Marie and Mary, shoe and show. A name that looks like a word
    for many does not: Windows and Mars are one with window and mar.
    """
    word = PLURALS.get(word, word)
    is_peach = word.endswith(("eaches", "oaches"))  # unlike a moustache
    if len(word) > 4 and word not in WORDS_BEFORE_S and (is_peach or not word.endswith(ENDINGS_BEFORE_S)):
        if word.endswith("ies"):
            return f"{word[:-3]}y"
        if word.endswith(ENDINGS_BEFORE_ES):
            word = word[:-2]
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def word_runs(name: str) -> frozenset[tuple[str, ...]]:
    """Returns every run of adjacent words of `name`, as `word_keys` writes them."""
    words = word_keys(name)
    return frozenset(words[start:end] for start in range(len(words)) for end in range(start + 1, len(words) + 1))


def canonical_names(names: Iterable[str], what: str) -> tuple[str, ...]:
    """Returns the distinct names in canonical order; another spelling is another text to an encoder."""
    if isinstance(names, str):
        raise InvalidConceptError(f"expected a sequence of names, found one text for {what}: {names!r}")
    if not isinstance(names, Iterable):
        raise InvalidConceptError(f"expected a sequence of names, found {names!r} for {what}")
    distinct = {clean_name(name, what) for name in names}
    return tuple(sorted(distinct, key=lambda name: (name_key(name), name)))


def canonical_concepts(concepts: Iterable[Concept | str]) -> tuple[Concept, ...]:
    """Returns the concepts in canonical order; a bare name stands for an object of that name.

    Raises:
        InvalidConceptError: one is neither a `Concept` nor a name, or two share their name.
    """
    if isinstance(concepts, str):
        raise InvalidConceptError(
            f"expected a sequence of concepts, found one text: {concepts!r}; write [{concepts!r}]"
        )
    if not isinstance(concepts, Iterable):
        raise InvalidConceptError(f"expected a sequence of concepts or their names, found {concepts!r}")
    given = [Concept(concept) if isinstance(concept, str) else concept for concept in concepts]
    if strangers := [concept for concept in given if not isinstance(concept, Concept)]:
        raise InvalidConceptError(f"expected concepts or their names, found {strangers[0]!r}; write Concept('name')")
    listed = sorted(given, key=lambda concept: (name_key(concept.name), concept.name))
    for first, second in itertools.pairwise(listed):
        if name_key(first.name) == name_key(second.name):
            raise InvalidConceptError(
                f"concept {second.name!r} is listed twice; merge the two entries and their aliases"
            )
    return tuple(listed)


def check_disjoint(concepts: Iterable[Concept], retain: Iterable[str], withheld: Iterable[str]) -> None:
    """Checks that no name is asked to be forgotten and kept, or kept and withheld.

    Raises:
        InvalidConceptError: naming every contradiction.
    """
    targets = {name_key(name): name for concept in concepts for name in concept.names}
    kept = tuple(retain)
    if both := sorted(name for name in kept if name_key(name) in targets):
        alike = [
            f"; {name!r} is read as {targets[name_key(name)]!r}: if it is another thing, retain it as 'the {name}'"
            for name in both
            if _words(name) != _words(targets[name_key(name)])
        ]
        raise InvalidConceptError(
            f"both to be forgotten and retained: {', '.join(both)}; take them out of one of the two{''.join(alike)}"
        )
    hidden = {name_key(name) for name in withheld}
    if both := sorted(name for name in kept if name_key(name) in hidden):
        raise InvalidConceptError(f"both retained and withheld: {', '.join(both)}; take them out of one of the two")


def clean_name(name: str, what: str) -> str:
    """Returns a name as it is kept: composed characters, single spaces.

    Raises:
        InvalidConceptError: it is no text, nothing of it can be seen, it is too long or holds control characters.
    """
    if not isinstance(name, str):
        raise InvalidConceptError(f"{what}: expected a text, found {type(name).__name__}")
    cleaned = " ".join(unicodedata.normalize("NFC", name).split())
    if not any(unicodedata.category(one)[0] in "LNPS" and one not in BLANKS for one in cleaned):
        raise InvalidConceptError(f"{what}: expected at least one visible character, found {name!r}")
    if len(cleaned) > LONGEST_NAME:
        raise InvalidConceptError(
            f"{what}: expected at most {LONGEST_NAME} characters, found {len(cleaned)}; shorten it"
        )
    if any(unicodedata.category(one).startswith("C") and one not in JOINERS for one in cleaned):
        raise InvalidConceptError(f"{what}: {cleaned!r} holds control characters; remove them")
    return cleaned
