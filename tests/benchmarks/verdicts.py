"""Simulates judgements with the judge's own gates and sampling rule, and holds their verdicts to what the policy says.

    python -m tests.benchmarks.verdicts --out var/simulate-verdicts

Only the pictures are simulated: whether a target is found in one is a coin with a known rate. Prints a table, writes it
as JSON, and exits with 1 if a bar is missed.

A candidate with a target exactly at the limit may pass at most as often as the policy's confidence leaves open, one
with all targets at a tenth of the limit must pass in 95 % of judgements. The pictures it takes are compared with the
smallest test of fixed size with the same two guarantees, and with Wald's bound, below which no sequential test can stay
on average.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from math import log
from operator import itemgetter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.stats import binom

from tests.benchmarks.report import Bar
from validation import gates as rules
from validation.judgement import GateResult, Verdict
from validation.policy import Policy
from validation.sampling import next_stage
from validation.statistics import lower_bound, pictures_needed, upper_bound

SEED = 20_260
JUDGEMENTS = 10_000
POWER = 0.95
PLANNED_POWER = POWER + 3 * (POWER * (1 - POWER) / JUDGEMENTS) ** 0.5
"""What pictures are planned for, so that the simulation shows the power rather than its own luck."""
CLEAR = 0.1
"""The clear case's rate, as a fraction of the limit."""
ASKED_RATIO = 1 / 3
"""Of the pictures of the fixed-size test; held to where Wald's bound leaves room for it, printed everywhere."""
MOST_OVER_WALD = 1.10
"""Mean pictures over Wald's bound for the power that was reached."""
TARGETS = (1, 10, 50, 1000)
NextStage = Callable[[int, int], int]


@dataclass(frozen=True)
class Chances:
    """What becomes of a target, computed, not simulated."""

    passed: float
    failed: float
    pictures: float
    """Mean."""


def chances(rate: float, *, verdict: Callable[[int, int], Verdict], stage: NextStage) -> Chances:
    """Returns the exact chances of a target with a known rate under a sampling rule."""
    alive: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float), {0: defaultdict(float, {0: 1.0})})
    passed = failed = mean = 0.0
    pictures = 0
    while alive:
        for hits, chance in alive.pop(pictures, {}).items():
            more = stage(hits, pictures)
            if more == 0:
                answer = verdict(hits, pictures)
                passed += chance * (answer == "passed")
                failed += chance * (answer == "failed")
                mean += chance * pictures
                continue
            for further, weight in enumerate(binom.pmf(np.arange(more + 1), more, rate)):
                alive[pictures + more][hits + further] += chance * float(weight)
        pictures += 1
    return Chances(passed, failed, mean)


def judged_chances(rate: float, policy: Policy) -> Chances:
    """Returns the exact chances of a target as the judge samples and answers."""
    planned = policy.probes_per_target
    return chances(
        rate,
        verdict=lambda hits, pictures: rules.residual_verdict(hits, pictures, policy),
        stage=lambda hits, pictures: next_stage(hits, pictures, planned=planned, policy=policy),
    )


def peeking_chances(rate: float, policy: Policy) -> Chances:
    """Returns the same for whoever looks at fixed-size bounds after every stage: the mistake that the judge avoids."""
    fixed = policy.model_copy(update={"sampling": "fixed"})

    def stage(hits: int, pictures: int) -> int:
        is_open = rules.residual_verdict(hits, pictures, fixed) == "inconclusive"
        return min(policy.stage_size, policy.probes_per_target - pictures) if is_open else 0

    return chances(rate, verdict=lambda hits, pictures: rules.residual_verdict(hits, pictures, fixed), stage=stage)


def fixed_size(policy: Policy, *, power: float) -> int:
    """Returns the pictures of the smallest fixed-size test that passes a tenth of the limit with a power."""
    hits = 0
    while True:
        size = pictures_needed(hits, limit=policy.residual_limit, confidence=policy.confidence)
        if binom.cdf(hits, size, CLEAR * policy.residual_limit) >= power:
            return size
        hits += 1


def wald_bound(policy: Policy, *, power: float) -> float:
    """Returns the fewest pictures that any sequential test of that level and power takes on average (Wald 1945)."""
    limit, clear, level = policy.residual_limit, CLEAR * policy.residual_limit, 1 - policy.confidence
    return _divergence(power, level) / _divergence(clear, limit)


def _divergence(p: float, q: float) -> float:
    return p * log(p / q) + (1 - p) * log((1 - p) / (1 - q))


def enough_pictures(targets: int, policy: Policy) -> Policy:
    """Returns the policy with the fewest planned pictures with which all targets pass together, at a tenth."""
    for hits in range(100):
        planned = pictures_needed(
            hits, limit=policy.residual_limit, confidence=policy.confidence, sampling="sequential"
        )
        own = policy.model_copy(update={"probes_per_target": planned})
        if judged_chances(CLEAR * policy.residual_limit, own).passed ** targets >= PLANNED_POWER:
            return own
    raise ValueError(f"expected {targets} targets to pass together with some number of pictures, found none; ask fewer")


@dataclass(frozen=True)
class Simulated:
    """Verdicts of many simulated judgements."""

    passed: int
    failed: int
    judgements: int
    pictures: float
    """Mean per target."""

    @property
    def share(self) -> float:
        """Share of judgements that passed."""
        return self.passed / self.judgements

    @property
    def bounds(self) -> tuple[float, float]:
        """Exact one-sided 95 % bounds of the chance to pass."""
        return tuple(bound(self.passed, self.judgements, confidence=0.95) for bound in (lower_bound, upper_bound))


def simulate(rates: Sequence[float], *, policy: Policy, judgements: int, seed: int) -> Simulated:
    """Judges candidates whose targets are drawn at known rates, stage by stage as the judge does."""
    planned = policy.probes_per_target
    stage = cache(lambda h, n: next_stage(h, n, planned=planned, policy=policy))
    rng, chance = np.random.default_rng(seed), np.broadcast_to(np.asarray(rates), (judgements, len(rates)))
    hits, pictures = np.zeros(chance.shape, dtype=np.int64), np.zeros(chance.shape, dtype=np.int64)
    while (more := _each(stage, hits, pictures)).any():
        hits += rng.binomial(more, chance)  # the rule looks only where a stage ends
        pictures += more
    verdicts = _verdicts(hits, pictures, policy)
    return Simulated(verdicts.count("passed"), verdicts.count("failed"), judgements, float(pictures.mean()))


def _each(stage: NextStage, hits: NDArray[np.int64], pictures: NDArray[np.int64]) -> NDArray[np.int64]:
    states, place = np.unique(hits * 100_000 + pictures, return_inverse=True)
    return np.array([stage(*divmod(int(state), 100_000)) for state in states])[place].reshape(hits.shape)


def _verdicts(hits: NDArray[np.int64], pictures: NDArray[np.int64], policy: Policy) -> list[Verdict]:
    """Returns the verdict on every judgement, all gates but the forgetting gates being passed."""
    targets = [f"target {number}" for number in range(hits.shape[1])]
    others = [
        GateResult("integrity", "passed", ""),
        GateResult("retention", "passed", "", role="retained"),
        *(GateResult("picture control", "passed", "", role=model, is_control=True) for model in ("base", "candidate")),
        *(GateResult("positive control", "passed", "", target, is_control=True) for target in targets),
        *(GateResult("negative control", "passed", "", target, is_control=True) for target in targets),
    ]

    @cache
    def gate(target: str, found: int, drawn: int) -> GateResult:
        return rules.forgetting_gate(target, hits=found, pictures=drawn, expected=drawn, policy=policy)

    return [
        rules.decide([*others, *map(gate, targets, own, drawn)], targets=targets, policy=policy)[0]
        for own, drawn in zip(hits.tolist(), pictures.tolist(), strict=True)
    ]


@dataclass(frozen=True)
class Line:
    """One number of targets and one number of planned pictures."""

    targets: int
    planned: int
    one_at_limit: Simulated
    """One target exactly at the limit, the others at a tenth."""
    all_clear: Simulated
    exact: Chances
    """Of one target at a tenth of the limit."""
    exact_at_limit: Chances
    fixed_size: int
    """Per target, for the same level and at least 95 % for all targets together."""
    wald: float
    """For that level and power."""
    wald_reached: float
    """For the power that was reached."""
    is_enough: bool
    """Whether so many planned pictures let all targets pass together in 95 % of judgements."""

    @property
    def ratio(self) -> float:
        """Mean pictures over those of the fixed-size test."""
        return self.all_clear.pictures / self.fixed_size


def run(targets: int, policy: Policy, *, judgements: int, seed: int) -> Line:
    """Returns the figures of one number of targets under one policy."""
    limit, clear = policy.residual_limit, CLEAR * policy.residual_limit
    exact, power = judged_chances(clear, policy), POWER ** (1 / targets)
    others = [clear] * (targets - 1)
    return Line(
        targets=targets,
        planned=policy.probes_per_target,
        one_at_limit=simulate([limit, *others], policy=policy, judgements=judgements, seed=seed),
        all_clear=simulate([clear, *others], policy=policy, judgements=judgements, seed=seed + 1),
        exact=exact,
        exact_at_limit=judged_chances(limit, policy),
        fixed_size=fixed_size(policy, power=power),
        wald=wald_bound(policy, power=power),
        wald_reached=wald_bound(policy, power=exact.passed),
        is_enough=exact.passed**targets >= POWER,
    )


def bars_of(lines: Sequence[Line], policy: Policy) -> list[Bar]:
    """Returns every figure that is held to something."""
    level, bars = 1 - policy.confidence, []
    for line in lines:
        name = f"{line.targets} target{'s' * (line.targets > 1)}, at most {line.planned} pictures"
        bars.append(Bar(f"{name}: passed with one at the limit", [line.one_at_limit.share], level, is_upper=True))
        bars.append(Bar(f"{name}: the same, computed", [line.exact_at_limit.passed], level, is_upper=True))
        if line.is_enough:
            bars.append(Bar(f"{name}: passed at a tenth", [line.all_clear.share], POWER, is_upper=False))
        over = line.all_clear.pictures / line.wald_reached
        bars.append(Bar(f"{name}: pictures over Wald's bound", [over], MOST_OVER_WALD, is_upper=True))
        if line.wald <= ASKED_RATIO * line.fixed_size:
            bars.append(Bar(f"{name}: pictures over fixed size", [line.ratio], ASKED_RATIO, is_upper=True))
    peeking = peeking_chances(policy.residual_limit, policy).passed
    bars.append(Bar("control: looking at fixed-size bounds passes at the limit", [peeking], level, is_upper=False))
    return bars


def table_of(lines: Sequence[Line]) -> Table:
    """Returns the figures for people."""
    table = Table(title=f"{lines[0].one_at_limit.judgements:,} judgements each; pictures per target, mean")
    for name in (
        "targets",
        "at most",
        "one at limit: passed (95 % bounds)",
        "computed",
        "tenth: passed",
        "pictures",
        "fixed size",
        "ratio",
        "Wald's bound",
    ):
        table.add_column(name, justify="right")
    for line in lines:
        low, high = line.one_at_limit.bounds
        table.add_row(
            str(line.targets),
            str(line.planned),
            f"{line.one_at_limit.share:.2%} ({low:.2%} to {high:.2%})",
            f"{line.exact_at_limit.passed:.2%}",
            f"{line.all_clear.share:.2%}",
            f"{line.all_clear.pictures:.1f}",
            str(line.fixed_size),
            f"{line.ratio:.2f}",
            f"{line.wald:.1f} ({line.wald / line.fixed_size:.2f}); {line.wald_reached:.1f} for the power reached",
        )
    return table


def main(arguments: list[str]) -> int:
    """Runs the simulation; returns 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("var/simulate-verdicts"))
    parser.add_argument("--judgements", type=int, default=JUDGEMENTS)
    parser.add_argument("--targets", type=int, nargs="+", default=TARGETS)
    parser.add_argument("--seed", type=int, default=SEED)
    given = parser.parse_args(arguments)
    console, policy = Console(width=160), Policy()
    plans = {(n, p.probes_per_target): p for n in given.targets for p in (enough_pictures(n, policy), policy)}
    lines = [
        run(n, p, judgements=given.judgements, seed=given.seed)
        for (n, _), p in sorted(plans.items(), key=itemgetter(0))
    ]
    bars = bars_of(lines, policy)
    console.print(table_of(lines))
    for bar in bars:
        sign = "<=" if bar.is_upper else ">="
        console.print(f"{'met   ' if bar.is_met else 'MISSED'} {bar.name}: {bar.median:.4f} ({sign} {bar.limit:.4g})")
    fewest = pictures_needed(0, limit=policy.residual_limit, confidence=policy.confidence)
    console.print(
        f"A ratio of {ASKED_RATIO:.2f} is out of reach for one target: without a single hit any test of this level "
        f"takes {fewest} pictures to pass ({fewest / lines[0].fixed_size:.2f}), and Wald's bound is "
        f"{lines[0].wald:.1f} ({lines[0].wald / lines[0].fixed_size:.2f}); reached is {lines[0].ratio:.2f}."
    )
    given.out.mkdir(parents=True, exist_ok=True)
    record = {"policy": policy.model_dump(mode="json"), "seed": given.seed, "lines": [asdict(line) for line in lines]}
    record["bars"] = [asdict(bar) for bar in bars]
    (given.out / "verdicts.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    console.print(f"written to {given.out}")
    return 0 if all(bar.is_met for bar in bars) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
