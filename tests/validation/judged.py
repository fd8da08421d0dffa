"""Judgements of the colour world, each made by the judge itself, for the tests of report and evidence."""

from dataclasses import replace
from pathlib import Path

import colour_world
import pandas as pd

from validation import Integrity, Judgement, PictureStore, Policy, Sampler, judge

TARGETS = ("tiger", "dog")
HIDDEN = ("owl", "crab")
NAMES = (*TARGETS, "cat", "wolf", "pear", "bus", "rose", *HIDDEN)
POLICY = Policy(probes_per_retained=16, probes_per_hidden=8, probes_per_style=40)


def judged(
    candidate: colour_world.Painter, folder: Path, *, policy: Policy = POLICY, with_texts: bool = False
) -> Judgement:
    """Judges a candidate against the painter; pictures go to `folder`."""
    return judge(
        colour_world.Painter(),
        candidate,
        base_digest="a" * 64,
        candidate_digest="b" * 64,
        targets=TARGETS,
        retained=("cat", "wolf", "pear", "bus", "rose"),
        hidden=HIDDEN,
        styles=("night", "fog"),
        policy=policy,
        sampler=Sampler(steps=1, guidance=1.0, scheduler="DDIMScheduler", pixels=colour_world.PIXELS),
        detectors=colour_world.detectors(with_texts=with_texts),
        store=PictureStore(folder),
        integrity=Integrity(True, "the stored bytes are the edited ones"),
    )


def good() -> colour_world.Painter:
    """Forgets both targets, and a little of a hidden concept."""
    return colour_world.Painter().forgetting("tiger").forgetting("dog").forgetting("owl", 0.4)


def bad() -> colour_world.Painter:
    """Forgets one target, and half of what it should retain."""
    return colour_world.Painter().forgetting("dog").forgetting("cat").forgetting("wolf")


def unsure() -> colour_world.Painter:
    """Forgets one target in most pictures only."""
    return colour_world.Painter().forgetting("dog").forgetting("tiger", 0.92)


def renamed(judgement: Judgement, old: str, new: str) -> Judgement:
    """Returns the judgement with a concept called something else, wherever it stands."""

    def swap(table: pd.DataFrame) -> pd.DataFrame:
        texts = table.select_dtypes(include=["object", "str"]).columns
        return table.assign(**{name: table[name].str.replace(old, new, regex=False) for name in texts})

    protocol = replace(judgement.protocol, targets=tuple(n.replace(old, new) for n in judgement.protocol.targets))
    gates = tuple(
        replace(gate, concept=new if gate.concept == old else gate.concept, reason=gate.reason.replace(old, new))
        for gate in judgement.gates
    )
    reasons = tuple(replace(reason, text=reason.text.replace(old, new)) for reason in judgement.reasons)
    return replace(
        judgement,
        protocol=protocol,
        gates=gates,
        reasons=reasons,
        measures=swap(judgement.measures),
        summary=swap(judgement.summary),
    )
