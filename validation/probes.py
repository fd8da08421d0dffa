"""Probes: what the models are asked for, decided before anything is drawn.

Guarantees:
    1. The same concepts, packs and counts give the same probes, in the same order.
    2. No two probes of a judgement share a seed, so no two pictures share their noise except in a pair.
    3. A pack is data with a digest; a changed template is a changed protocol.
"""

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field
from pydantic import ValidationError as PydanticError

from validation.errors import ProbeError

Role = Literal["target", "retained", "hidden", "style"]
Kind = Literal["object", "style", "identity", "unsafe"]


@dataclass(frozen=True)
class Subject:
    """A concept as the judge sees it: what to ask for, and which detector label answers."""

    name: str
    kind: Kind = "object"
    aliases: tuple[str, ...] = ()
    label: str | None = None
    """The detector's label, where it differs from the name."""

    def __post_init__(self) -> None:
        if not self.name.strip() or not all(alias.strip() for alias in self.aliases):
            raise ProbeError(f"expected names, found an empty one in {self!r}; remove or fill it")

    @property
    def head(self) -> Literal["object", "style"]:
        """Which of the detectors recognises it."""
        return "style" if self.kind == "style" else "object"


@dataclass(frozen=True)
class Probe:
    """One prompt and one seed, and what should or should not be seen."""

    prompt: str
    seed: int
    concept: str
    role: Role
    pack: str

    @property
    def digest(self) -> str:
        """SHA-256 over what decides the picture, prompt and seed: one picture serves every role it has."""
        return _sha256({"prompt": self.prompt, "seed": self.seed})


class Pack(BaseModel):
    """A list of prompt templates."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    kind: Literal["object", "style"] = Field(description="which concepts the templates suit")
    templates: tuple[str, ...] = Field(min_length=1, description="prompts with {concept} or {a_concept}")
    contents: tuple[str, ...] = Field(default=(), description="what fills {content} or {a_content}, each in turn")

    @property
    def digest(self) -> str:
        """SHA-256 over the pack's canonical content."""
        return _sha256(self.model_dump(mode="json"))

    def prompts(self, *, without: Collection[str] = ()) -> list[str]:
        """Returns the templates with contents filled in, none of them in `without`; only the concept is left open.

        Raises:
            ProbeError: Every content is excluded.
        """
        if not self.contents:
            return list(self.templates)
        barred = {name.casefold() for name in without}
        contents = [content for content in self.contents if content.casefold() not in barred]
        if not contents:
            raise ProbeError(
                f"expected a content of pack {self.name!r} that is not a target, found none; add neutral contents"
            )
        return [
            _fill(self.templates[(block + place) % len(self.templates)], content=content)
            for block in range(len(self.templates))  # every content is named once before any is named again
            for place, content in enumerate(contents)
        ]


def load_pack(source: str | Path) -> Pack:
    """Reads a pack that comes with the judge, by name, or any other, by path.

    Raises:
        ProbeError: There is no such pack, or it is malformed.
    """
    path = source if isinstance(source, Path) else resources.files("validation") / "packs" / f"{source}.yaml"
    try:
        return Pack.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ProbeError(
            f"expected a probe pack, found no readable file for {str(source)!r}; packs that come with the judge: "
            f"{', '.join(pack_names())}"
        ) from error
    except (yaml.YAMLError, PydanticError) as error:
        raise ProbeError(f"expected a valid probe pack, found in {source}: {error}; correct the file") from error


def pack_names() -> list[str]:
    """Returns the names of the packs that come with the judge."""
    folder = resources.files("validation") / "packs"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def build_probes(
    concept: str,
    role: Role,
    *,
    templates: Sequence[str],
    count: int,
    first_seed: int,
    pack: str,
    names: Sequence[str] = (),
) -> list[Probe]:
    """Returns `count` probes for a concept, templates in turn, seeds counting up from `first_seed`.

    Args:
        concept: The concept that every probe is about.
        role: Why it is asked for.
        templates: Prompts with `{concept}` or `{a_concept}` left open.
        count: How many probes.
        first_seed: Seed of the first.
        pack: Name recorded in every probe.
        names: Asked for instead of the concept's own name, in turn: its aliases.

    Raises:
        ProbeError: There is no template, or one that does not name the concept.
    """
    if not templates or count < 1:
        raise ProbeError(
            f"expected at least one template and one probe for {concept!r}, found {len(templates)} templates and a "
            f"count of {count}; nothing asked is nothing shown"
        )
    silent = [template for template in templates if "{concept}" not in template and "{a_concept}" not in template]
    if silent:
        raise ProbeError(f"expected {{concept}} or {{a_concept}} in every template, found {silent}; add it")
    called = list(names) or [concept]
    return [
        Probe(
            prompt=_fill(templates[i // len(called) % len(templates)], concept=called[i % len(called)]),
            seed=first_seed + i,
            concept=concept,
            role=role,
            pack=pack,
        )
        for i in range(count)
    ]


def probes_digest(probes: Sequence[Probe]) -> str:
    """Returns SHA-256 over all fields of all probes, in order."""
    return _sha256([asdict(probe) for probe in probes])


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


def _sha256(value: object) -> str:
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()
