"""The plan of a judgement: what each model is asked for, fixed before anything is drawn.

Guarantees:
    1. A concept has one role. Two roles, no target, or a target without a label are refused by name.
    2. The base's probes are among the candidate's, so every base picture of a retained concept has its partner.
    3. A concept's seeds depend on the concept and the pack alone, not on what else is judged: another judgement of the
       same base finds the pictures again.
    4. A further pack that cannot be read, or that could ask nothing of any concept, is refused. Of its prompts, those
       that a text encoder would cut off are left out; where none is left for a target, the judgement says so.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from validation.detectors import Detectors, find_label
from validation.errors import ProbeError, ProtocolError
from validation.policy import Policy
from validation.probe_packs import OWN_PACKS, Pack, is_further_pack, load_pack
from validation.probes import Kind, Probe, Role, Subject, build_probes

Model = Literal["base", "candidate"]
MODELS: tuple[Model, Model] = ("base", "candidate")
_SEEDS = 2**40
"""Range that concepts' first seeds are spread over; two blocks of a few hundred among these do not meet in practice."""


@dataclass(frozen=True)
class Plan:
    """What is asked for, by model, and what should be seen."""

    subjects: dict[str, Subject]
    roles: dict[str, Role]
    labels: dict[str, str]
    """The detector's label of every concept."""
    packs: dict[str, Pack]
    probes: dict[Model, list[Probe]]

    def names(self, role: Role) -> tuple[str, ...]:
        """Returns the concepts of a role, in the order given."""
        return tuple(name for name, own in self.roles.items() if own == role)

    def expected(self, model: Model) -> Counter[tuple[str, str]]:
        """Returns the planned number of pictures by concept and pack."""
        return Counter((probe.concept, probe.pack) for probe in self.probes[model])


def load_packs(policy: Policy) -> dict[str, Pack]:
    """Returns the packs that a policy asks by, by name: the two that ask for a concept itself, then the further ones.

    Raises:
        ProbeError: A further pack cannot be read, or names no concept.
    """
    further = {pack.name: pack for pack in map(load_pack, policy.further_packs)}
    for name, pack in further.items():
        if all(wording.kind == "caption" for wording in pack.wordings):
            raise ProbeError(
                f"expected prompts that name a concept in pack {name!r}, found none; take it out of further_packs"
            )
    return {name: load_pack(name) for name in OWN_PACKS} | further


def make_plan(
    targets: Sequence[Subject | str],
    *,
    retained: Sequence[Subject | str],
    hidden: Sequence[Subject | str],
    styles: Sequence[Subject | str],
    policy: Policy,
    detectors: Detectors,
    is_readable: Callable[[str], bool] = lambda _: True,
) -> Plan:
    """Returns the plan of a judgement; a bare name is an object, or a style among the styles.

    Args:
        targets: Concepts that must be gone.
        retained: Concepts that must survive.
        hidden: Concepts that the candidate's maker was not told about.
        styles: Styles that must survive.
        policy: How many pictures, and by which further packs.
        detectors: What sees the concepts.
        is_readable: Whether the models read a prompt to its end.

    Raises:
        ProtocolError: No target, or a concept with two roles.
        UnknownLabelError: The detector has no label for a concept.
        DetectorError: No detector sees styles, and one is named.
        ProbeError: A further pack cannot be read, or names no concept.
    """
    if not targets:
        raise ProtocolError("expected at least one target, found none; a judgement of nothing would always pass")
    named: list[tuple[Role, Subject]] = [("target", _subject(target, "object")) for target in targets]
    named += [("retained", _subject(concept, "object")) for concept in retained]
    if policy.probes_per_hidden:
        named += [("hidden", _subject(concept, "object")) for concept in hidden]
    named += [("style", _subject(style, "style")) for style in styles]
    _refuse_two_roles(named)
    subjects = {subject.name: subject for _, subject in named}
    detector_of = {name: detectors.of(subject) for name, subject in subjects.items()}
    packs = load_packs(policy)
    unused = set(OWN_PACKS) - {_own_pack(subject) for subject in subjects.values()}
    plan = Plan(
        subjects=subjects,
        roles={subject.name: role for role, subject in named},
        labels={name: d.labels[find_label(d.labels, subjects[name])] for name, d in detector_of.items()},
        packs={name: pack for name, pack in packs.items() if name not in unused},
        probes={"base": [], "candidate": []},
    )
    forgotten = [name for role, subject in named if role == "target" for name in (subject.name, *subject.aliases)]
    for role, subject in named:
        asked = [(packs[_own_pack(subject)], _own_count(role, policy))]
        if role == "target":
            asked += zip(map(packs.__getitem__, policy.further_pack_names), policy.further_packs.values(), strict=True)
        for pack, count in asked:
            prompts = pack.prompts(subject, without=forgotten)
            if is_further_pack(pack.name):
                prompts = [prompt for prompt in prompts if is_readable(prompt)]
                if not prompts:
                    continue  # the gates say that nothing was asked
            _add_probes(plan, role, subject, pack.name, prompts, count=count, policy=policy)
    return plan


def _add_probes(
    plan: Plan, role: Role, subject: Subject, pack: str, prompts: Sequence[str], *, count: int, policy: Policy
) -> None:
    first_seed = first_seed_of(subject.name, pack, policy)
    probes = build_probes(subject.name, role, prompts=prompts, count=count, first_seed=first_seed, pack=pack)
    plan.probes["candidate"] += probes
    plan.probes["base"] += probes[: policy.probes_per_target_base] if role == "target" else probes


def _own_pack(subject: Subject) -> str:
    return "style" if subject.head == "style" else "direct"


def _own_count(role: Role, policy: Policy) -> int:
    return {
        "target": policy.probes_per_target,
        "retained": policy.probes_per_retained,
        "hidden": policy.probes_per_hidden,
        "style": policy.probes_per_style,
    }[role]


def _subject(value: Subject | str, kind: Kind) -> Subject:
    return value if isinstance(value, Subject) else Subject(value, kind)


def _refuse_two_roles(named: Sequence[tuple[Role, Subject]]) -> None:
    seen: dict[str, str] = {}
    for role, subject in named:
        names = {name.casefold() for name in (subject.name, *(subject.aliases if role == "target" else ()))}
        for name in sorted(names & seen.keys()):
            raise ProtocolError(
                f"expected every concept once, found {name!r} as {seen[name]} and as {role}; remove it from one"
            )
        seen |= dict.fromkeys(names, role)


def first_seed_of(name: str, pack: str, policy: Policy) -> int:
    """Returns the seed that a concept's probes count up from, in one pack."""
    asked = f"{name}\n{pack}" if is_further_pack(pack) else name
    digest = hashlib.sha256(asked.encode("utf-8")).digest()
    return policy.first_seed + int.from_bytes(digest[:8], "big") % _SEEDS
