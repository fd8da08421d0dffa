"""Probe packs: data files that say how concepts are asked for, and which concepts belong together.

Guarantees:
    1. A pack has a version and a digest over all of its content; a changed prompt is a changed protocol.
    2. Whatever a file holds is checked when it is read: no empty prompt, none twice, none that names no concept.
    3. The same concept gives the same prompts in the same order; ways of asking take turns, so few probes cover all.
    4. A pack that has no name for a concept, or is meant for others, returns no prompt; it never falls back to another.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable
from importlib import resources
from itertools import zip_longest
from pathlib import Path, PurePath
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from validation.documents import parse_document, read_document
from validation.errors import ProbeError
from validation.probes import Subject, sha256_of

OWN_PACKS = ("direct", "style")
"""The packs that ask for a concept by its own name, an object or a style; every other one is a further pack."""
_CONCEPT, _CONTENT = frozenset({"concept", "a_concept"}), frozenset({"content", "a_content"})
_FIELD = re.compile(r"\{(\w*)\}")
_ANY = "\N{WHITE SQUARE}"  # stands for any concept that a table does not name


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Wording(_Record):
    """One way of asking: templates, and by which names concepts are called in them."""

    templates: tuple[str, ...] = Field(min_length=1, description="prompts with {concept} or {a_concept}")
    kind: Literal["object", "style", "caption"] = Field(
        default="object", description="what the templates suit: anything but a style, a style, or no concept at all"
    )
    language: str = Field(default="en", pattern=r"^[a-z]{2,3}(-[A-Za-z0-9]+)*$", description="language tag, BCP 47")
    names: Literal["own", "aliases"] | dict[str, tuple[str, ...]] = Field(
        default="own",
        description="`own`: any concept by its name; `aliases`: by the other names it comes with; or a table, concept "
        "to names",
    )
    contents: tuple[str, ...] = Field(default=(), description="what fills {content} or {a_content}, each in turn")

    @model_validator(mode="after")
    def _asks_something(self) -> "Wording":
        for text in self.templates:
            found = set(_FIELD.findall(text))
            if unknown := sorted(found - _CONCEPT - _CONTENT):
                raise ValueError(f"expected {{concept}}, {{content}} or these with a_ in {text!r}, found {unknown}")
            if bool(found & _CONCEPT) == (self.kind == "caption"):
                wanted = "no {concept} in a caption" if self.kind == "caption" else "{concept} or {a_concept}"
                raise ValueError(f"expected {wanted}, found the template {text!r}")
            if bool(found & _CONTENT) != bool(self.contents):
                raise ValueError(f"expected {{content}} exactly where there are contents, found the template {text!r}")
        _refuse_empty_or_repeated("template", self.templates)
        _refuse_empty_or_repeated("content", self.contents)
        if isinstance(self.names, dict):
            if not self.names:
                raise ValueError("expected a concept in the table of names, found none")
            _refuse_empty_or_repeated("concept", self.names)
            for concept, names in self.names.items():
                if not names:
                    raise ValueError(f"expected a name for {concept!r}, found none")
                _refuse_empty_or_repeated(f"name of {concept!r}", names)
        return self

    def prompts(self, subject: Subject, *, without: Collection[str] = ()) -> list[str]:
        """Returns every template with every name of a concept, no content in `without` among them."""
        if self.kind != subject.head:
            return []
        names = self._names_of(subject)
        return [_fill(text, concept=name) for text in self._filled(without) for name in names]

    def _names_of(self, subject: Subject) -> tuple[str, ...]:
        if self.names == "own":
            return (subject.name,)
        if self.names == "aliases":
            return subject.aliases
        table = {concept.casefold(): names for concept, names in self.names.items()}
        return table.get(subject.name.casefold(), ())

    def _filled(self, without: Collection[str]) -> list[str]:
        if not self.contents:
            return list(self.templates)
        barred = {name.casefold() for name in without}
        contents = [content for content in self.contents if content.casefold() not in barred]
        if not contents:
            raise ProbeError(
                f"expected a content of {', '.join(self.contents)} that is not a target, found none; add neutral ones"
            )
        return [
            _fill(self.templates[(block + place) % len(self.templates)], content=content)
            for block in range(len(self.templates))  # every content is named once before any is named again
            for place, content in enumerate(contents)
        ]


class Family(_Record):
    """Concepts that are easily taken for one another."""

    name: str = Field(min_length=1)
    targets: tuple[str, ...] = Field(default=(), description="concepts that a benchmark removes")
    retained: tuple[str, ...] = Field(default=(), description="concepts that must survive when the targets go")

    @property
    def members(self) -> tuple[str, ...]:
        """All of them."""
        return self.targets + self.retained


class Pack(_Record):
    """Ways of asking, and the concepts they are meant for where they are not meant for any."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", description="the file's name without its ending")
    version: int = Field(ge=1, strict=True, description="counts up with every change of content")
    about: str = Field(min_length=1, description="what the pack asks, in one sentence")
    wordings: tuple[Wording, ...] = Field(default=(), description="ways of asking; they take turns")
    families: tuple[Family, ...] = Field(default=(), description="the concepts of a benchmark, with their look-alikes")

    @model_validator(mode="after")
    def _asks_nothing_twice(self) -> "Pack":
        if not self.wordings and not self.families:
            raise ValueError("expected wordings or families, found neither: the pack is empty")
        _refuse_empty_or_repeated("concept of a family", self.concepts)
        known = {name.casefold() for name in self.concepts}
        tabled = {concept for w in self.wordings if isinstance(w.names, dict) for concept in w.names}
        if self.families and (strange := sorted(name for name in tabled if name.casefold() not in known)):
            raise ValueError(f"expected only concepts of the families in the tables of names, found {strange}")
        _refuse_empty_or_repeated("caption", self.captions)
        for concept in (_ANY, *sorted(tabled)):
            for kind in ("object", "style"):
                subject = Subject(concept, kind)
                asked = [prompt for wording in self.wordings for prompt in wording.prompts(subject)]
                _refuse_empty_or_repeated(f"prompt for {concept!r}", asked)
        return self

    @property
    def digest(self) -> str:
        """SHA-256 over the pack's canonical content."""
        return sha256_of(self.model_dump(mode="json"))

    @property
    def targets(self) -> tuple[str, ...]:
        """Every family's targets."""
        return tuple(name for family in self.families for name in family.targets)

    @property
    def concepts(self) -> tuple[str, ...]:
        """Every family's members."""
        return tuple(name for family in self.families for name in family.members)

    @property
    def captions(self) -> tuple[str, ...]:
        """Prompts that are about no one concept."""
        return tuple(text for wording in self.wordings if wording.kind == "caption" for text in wording.templates)

    def prompts(self, subject: Subject, *, without: Collection[str] = ()) -> list[str]:
        """Returns what is asked of a concept, the ways of asking in turn; nothing, when the pack is not meant for it.

        Args:
            subject: The concept.
            without: Names that no prompt may bring in beside it, such as those of the other targets.

        Raises:
            ProbeError: Every content of a wording is in `without`.
        """
        if self.families and subject.name.casefold() not in map(str.casefold, self.concepts):
            return []
        turns = zip_longest(*(wording.prompts(subject, without=without) for wording in self.wordings))
        return list(dict.fromkeys(prompt for turn in turns for prompt in turn if prompt is not None))

    def retained(self, targets: Collection[str]) -> tuple[str, ...]:
        """Returns what must survive when some concepts go: the members of their families that are no targets."""
        gone = {name.casefold() for name in targets}
        touched = [family for family in self.families if gone & {name.casefold() for name in family.members}]
        return tuple(name for family in touched for name in family.members if name.casefold() not in gone)


def load_pack(source: str | Path) -> Pack:
    """Reads a pack that comes with the judge, by name, or any other, by path.

    Raises:
        ProbeError: There is no such pack, or it is malformed; every fault is named.
    """
    path = Path(source)
    if path.suffix not in (".yaml", ".yml"):
        if str(source) not in pack_names():
            raise ProbeError(
                f"expected a probe pack, found {str(source)!r}, which is neither the path of a .yaml file nor one of "
                f"{', '.join(pack_names())}; correct it"
            )
        path = Path(str(resources.files("validation") / "packs" / f"{source}.yaml"))
    document = read_document(path, error=ProbeError)
    pack = parse_document(Pack, document, source=str(path), what="probe pack", example="name: direct", error=ProbeError)
    if pack.name != path.stem:
        raise ProbeError(f"expected the pack in {path} to be called {path.stem!r}, found {pack.name!r}; rename one")
    return pack


def pack_names() -> list[str]:
    """Returns the names of the packs that come with the judge."""
    folder = resources.files("validation") / "packs"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def pack_name(source: str) -> str:
    """Returns the name of a pack that is given by name or by path."""
    return PurePath(source).stem


def is_further_pack(name: str | None) -> bool:
    """Says whether probes of a pack ask for a concept otherwise than by its own name."""
    return name is not None and name not in OWN_PACKS


def with_article(noun: str) -> str:
    """Returns a noun with its indefinite article; plurals, proper names and other scripts take none."""
    is_plural = noun.endswith("s") and not noun.endswith(("ss", "us", "as", "is"))
    if not noun.isascii() or is_plural or noun != noun.lower():
        return noun
    return f"{'an' if noun[:1] in 'aeiou' else 'a'} {noun}"


def _fill(template: str, **fields: str) -> str:
    for field, value in fields.items():  # not str.format: a name may hold braces, and other fields stay open
        template = template.replace(f"{{a_{field}}}", with_article(value)).replace(f"{{{field}}}", value)
    return template


def _refuse_empty_or_repeated(what: str, texts: Iterable[str]) -> None:
    counts = Counter(text.strip().casefold() for text in texts)
    if "" in counts:
        raise ValueError(f"expected text, found an empty {what}")
    if repeated := sorted(text for text, number in counts.items() if number > 1):
        raise ValueError(f"expected every {what} once, found again: {repeated}")
