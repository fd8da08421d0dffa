"""The judge: two models and a policy in, a frozen judgement out.

Guarantees:
    1. It is never told how the candidate was made, and treats every candidate alike.
    2. What is asked for is fixed before anything is drawn; every label is looked up before anything is drawn.
    3. Base and candidate are drawn with the same prompts, seeds and sampler.
    4. Stored pictures are keyed by a digest that the judge computes itself, not by the one it is told.
    5. With sequential sampling the candidate's targets are drawn in stages, as `validation.sampling` says; the plan,
       which is kept whole, is never changed by what was seen.
"""

import time
import typing
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from validation import controls
from validation import gates as rules
from validation.attacks.budget import ATTACK
from validation.attacks.reading import denoiser_of
from validation.attacks.trial import Field, attack_targets, shown_pictures
from validation.concept_floor import concept_floor_gate
from validation.detectors import Detectors
from validation.discrepancy import measure_discrepancies
from validation.drift import weight_drift
from validation.errors import ProtocolError
from validation.judgement import PROBE_COLUMNS, Discrepancy, GateResult, Integrity, Judgement, Protocol
from validation.measures import measure, paired_differences, score_differences, summarise
from validation.plan import MODELS, Model, Plan, first_seed_of, make_plan
from validation.policy import Policy
from validation.probe_packs import is_further_pack
from validation.probes import Probe, Subject, probes_digest
from validation.rendering import (
    PictureStore,
    Pipeline,
    Progress,
    Sampler,
    build_scheduler,
    excess_of,
    render,
    safety_checker_state,
    weights_digest,
)
from validation.robustness import robustness_gates
from validation.sampling import asked_plan, places_asked

_RECORDED_PACKAGES = ("torch", "diffusers", "transformers", "numpy", "scipy", "pandas", "pillow", "great_expectations")


class Draw(typing.Protocol):
    """Draws and measures pictures of one model."""

    def __call__(self, model: Model, probes: Sequence[Probe], /, *, done: int, at_most: int) -> pd.DataFrame:
        """Returns one row per probe; `done` pictures were there before, and `at_most` can be there in the end."""
        ...


def judge(
    base_pipeline: Pipeline,
    candidate_pipeline: Pipeline,
    *,
    base_digest: str,
    candidate_digest: str,
    targets: Sequence[Subject | str],
    retained: Sequence[Subject | str],
    hidden: Sequence[Subject | str] = (),
    styles: Sequence[Subject | str] = (),
    policy: Policy,
    sampler: Sampler,
    detectors: Detectors,
    store: PictureStore,
    device: str = "cpu",
    batch_size: int = 32,
    integrity: Integrity | None = None,
    data_docs: Path | None = None,
    on_progress: Progress | None = None,
    on_attack: Progress | None = None,
) -> Judgement:
    """Judges whether a candidate forgot the targets and kept the rest.

    Args:
        base_pipeline: The model before; a diffusers text-to-image pipeline.
        candidate_pipeline: The model after; another pipeline object, which may share parts with the base.
        base_digest: Recorded as the base's name.
        candidate_digest: Recorded as the candidate's name.
        targets: Concepts that must be gone.
        retained: Concepts that must survive.
        hidden: Concepts that the candidate's maker was not told about; gated only with `policy.hidden_margin`.
        styles: Styles that must survive.
        policy: Limits, margins and numbers of pictures.
        sampler: How pictures are drawn.
        detectors: What sees the concepts.
        store: Where pictures are kept; finished ones are not drawn again.
        device: Where to draw, as torch names it.
        batch_size: Pictures per call of a pipeline.
        integrity: The caller's word on the candidate's bytes.
        data_docs: Folder to build the Great Expectations site in; None builds none.
        on_progress: Called with pictures done and the most there can be, over both models; the second falls as targets
            are decided, and the last call has both equal.
        on_attack: Called with steps and pictures of the attacks done and in all.

    Raises:
        ProtocolError: No target, a concept with two roles, one pipeline given as both models, or a quality margin
            without an image-text model.
        UnknownLabelError: A concept that the detector has no label for.
        AttackError: The policy names an attack that cannot be run on these pipelines.
    """
    if base_pipeline is candidate_pipeline:
        raise ProtocolError("expected two pipelines, found one given twice; load the candidate beside the base")
    pipelines: dict[Model, Pipeline] = {"base": base_pipeline, "candidate": candidate_pipeline}
    for pipeline in pipelines.values():
        build_scheduler(pipeline, sampler.scheduler)  # refuses before anything is drawn
        if policy.attacks:
            denoiser_of(pipeline)
    if policy.quality_margin is not None and detectors.image_text is None:
        raise ProtocolError(
            f"expected an image-text model for quality_margin {policy.quality_margin:g}, found none; bring one or set "
            "the margin to null"
        )
    plan = make_plan(
        targets,
        retained=retained,
        hidden=hidden,
        styles=styles,
        policy=policy,
        detectors=detectors,
        is_readable=lambda prompt: not any(excess_of(pipeline, prompt) for pipeline in pipelines.values()),
    )
    seconds: dict[str, float] = {}
    with _timed(seconds, "digests"):
        digests = {model: weights_digest(pipeline) for model, pipeline in pipelines.items()}

    def draw(model: Model, probes: Sequence[Probe], *, done: int, at_most: int) -> pd.DataFrame:
        with _timed(seconds, f"rendering {model}"):
            addresses = render(
                pipelines[model],
                probes,
                store=store,
                model_digest=digests[model],
                sampler=sampler,
                batch_size=batch_size,
                device=device,
                on_progress=on_progress and (lambda drawn, _: on_progress(done + drawn, at_most)),
            )
        with _timed(seconds, "measuring"):
            return measure(model, probes, addresses, subjects=plan.subjects, detectors=detectors, store=store)

    measures = measure_both(plan, draw, policy=policy)
    if on_progress:
        on_progress(len(measures), len(measures))
    attacks: pd.DataFrame | None = None
    if policy.attacks:
        with _timed(seconds, "attacks"):
            attacks = attack_targets(
                Field(base_pipeline, candidate_pipeline, sampler, detectors, store, device, batch_size),
                [plan.subjects[name] for name in plan.names("target")],
                budgets=policy.attacks,
                seeds={name: first_seed_of(name, ATTACK, policy) for name in plan.names("target")},
                shown=shown_pictures(measures),
                on_progress=on_attack,
            )
    discrepancies: tuple[Discrepancy, ...] = ()
    with _timed(seconds, "measuring"):
        summary = summarise(measures, confidence=policy.confidence, sampling=policy.sampling)
        if detectors.image_text is not None:
            discrepancies = measure_discrepancies(
                measures, image_text=detectors.image_text, store=store, confidence=policy.confidence
            )
    with _timed(seconds, "drift"):
        drift = weight_drift(base_pipeline, candidate_pipeline)
    results = evaluate(measures, plan, policy=policy, integrity=integrity, attacks=attacks)
    with _timed(seconds, "expectations"):
        from validation.expectations import check_tables, expectations_gate  # takes seconds to import

        asked = asked_plan(measures, plan, policy=policy)
        outcome = check_tables(measures, summary, plan=asked, policy=policy, attacks=attacks, data_docs=data_docs)
    results.append(expectations_gate(outcome, results))
    verdict, reasons = rules.decide(results, targets=plan.names("target"), policy=policy)
    return Judgement(
        verdict=verdict,
        reasons=tuple(reasons),
        gates=tuple(results),
        measures=measures,
        summary=summary,
        planned=pd.DataFrame(
            [(model, p.role, p.concept, p.pack, p.prompt, p.seed) for model in MODELS for p in plan.probes[model]],
            columns=list(PROBE_COLUMNS),
        ),
        protocol=Protocol(
            base_digest=base_digest,
            candidate_digest=candidate_digest,
            base_weights_digest=digests["base"],
            candidate_weights_digest=digests["candidate"],
            targets=plan.names("target"),
            retained=plan.names("retained"),
            hidden=plan.names("hidden"),
            styles=plan.names("style"),
            policy=policy.model_dump(mode="json"),
            sampler=asdict(sampler),
            packs={name: pack.digest for name, pack in plan.packs.items()},
            detectors=detectors.digests(),
            probes_digest=probes_digest([probe for model in MODELS for probe in plan.probes[model]]),
            pictures_planned={model: len(plan.probes[model]) for model in MODELS},
            safety_checker={model: safety_checker_state(pipelines[model]) for model in MODELS},
            device=device,
            versions={name: version(name) for name in _RECORDED_PACKAGES},
        ),
        picture_folder=store.folder,
        expectations=outcome.describe(),
        seconds=seconds,
        discrepancies=discrepancies,
        drift=drift,
        attacks=attacks,
    )


def measure_both(plan: Plan, draw: Draw, *, policy: Policy) -> pd.DataFrame:
    """Returns the measures of both models, one row per picture, in the plan's order, the base's first.

    The candidate is drawn in stages: as long as the sampling rule, told what was seen so far, asks for more.
    """
    probes, before = plan.probes["candidate"], len(plan.probes["base"])
    base = draw("base", plan.probes["base"], done=0, at_most=before + len(probes))
    candidate = base.iloc[:0]
    while new := sorted({*places_asked(candidate, plan, policy=policy)} - {*candidate.index}):
        going_on = {(probes[place].concept, probes[place].pack) for place in new}
        ahead = [p for i, p in enumerate(probes) if i not in candidate.index and (p.concept, p.pack) in going_on]
        drawn = before + len(candidate)
        stage = draw("candidate", [probes[place] for place in new], done=drawn, at_most=drawn + len(ahead))
        candidate = pd.concat([candidate, stage.set_axis(new)]).sort_index()
    return pd.concat([base, candidate], ignore_index=True)


def evaluate(
    measures: pd.DataFrame,
    plan: Plan,
    *,
    policy: Policy,
    integrity: Integrity | None = None,
    attacks: pd.DataFrame | None = None,
) -> list[GateResult]:
    """Returns the answer of every gate and control on a table of measures.

    Args:
        measures: One row per picture.
        plan: What may be asked for; what must be there follows from it by the sampling rule.
        policy: Limits, margins and numbers of pictures.
        integrity: The caller's word on the candidate's bytes.
        attacks: One row per picture drawn under attack.
    """
    plan = asked_plan(measures, plan, policy=policy)
    results = [rules.integrity_gate(integrity)] if integrity or policy.requires_integrity else []
    results += [_picture_control(measures, plan, model, policy) for model in MODELS]
    for target in plan.names("target"):
        results += _target_gates(measures, plan, target, policy)
    margins = (
        ("retained", policy.retained_margin),
        ("style", policy.retained_margin),
        ("hidden", policy.hidden_margin),
    )
    for role, margin in margins:
        if names := plan.names(role):
            expected = sum(n for (concept, _), n in plan.expected("candidate").items() if concept in names)
            differences = paired_differences(measures[measures["role"] == role])
            if margin is not None:
                before = measures[(measures["role"] == role) & (measures["model"] == "base")]
                hits = int(before["is_hit"].sum())
                results.append(controls.retained_control(role, hits=hits, pictures=len(before), policy=policy))
            results.append(rules.retention_gate(role, differences, expected=expected, margin=margin, policy=policy))
            if role != "hidden" and policy.retained_concept_margin is not None:
                floor = policy.retained_concept_margin
                results.append(concept_floor_gate(role, differences, margin=floor, policy=policy))
            if role != "hidden" and policy.quality_margin is not None:
                scores = score_differences(measures[measures["role"] == role])
                results.append(
                    rules.quality_gate(role, scores, expected=expected, margin=policy.quality_margin, policy=policy)
                )
    if attacks is not None:
        results += robustness_gates(attacks, targets=plan.names("target"), policy=policy)
    return results


def _target_gates(measures: pd.DataFrame, plan: Plan, target: str, policy: Policy) -> list[GateResult]:
    """Returns a target's controls and forgetting gates, those of further packs included."""
    results = []
    base, candidate = (measures[measures["model"] == model] for model in MODELS)
    own = candidate["concept"] == target
    for (concept, pack), expected in plan.expected("candidate").items():
        if concept != target:
            continue
        before = base[(base["concept"] == target) & (base["pack"] == pack)]
        after = candidate[own & (candidate["pack"] == pack)]
        control = controls.positive_control(
            target,
            hits=int(before["is_hit"].sum()),
            pictures=len(before),
            expected=plan.expected("base")[target, pack],
            policy=policy,
            pack=pack,
        )
        forgetting = rules.forgetting_gate(
            target, hits=int(after["is_hit"].sum()), pictures=len(after), expected=expected, policy=policy, pack=pack
        )
        results += rules.ungate_unknown_prompts(control, forgetting) if is_further_pack(pack) else [control, forgetting]
    asked = {pack for concept, pack in plan.expected("candidate") if concept == target}
    unasked = [pack for pack in policy.further_pack_names if pack not in asked]
    results += [rules.nothing_asked(target, policy=policy, pack=pack) for pack in unasked]
    alike = [n for n, subject in plan.subjects.items() if n != target and subject.head == plan.subjects[target].head]
    others = base[base["concept"].isin(alike)]
    seen = int((others["top_label"] == plan.labels[target]).sum())
    return [*results, controls.negative_control(target, hits=seen, pictures=len(others), policy=policy)]


def _picture_control(measures: pd.DataFrame, plan: Plan, model: Model, policy: Policy) -> GateResult:
    pictures = measures[measures["model"] == model]
    blank = pictures[pictures["is_blank"]]
    return controls.picture_control(
        model,
        blank=len(blank),
        pictures=len(pictures),
        expected=len(plan.probes[model]),
        policy=policy,
        where=list(dict.fromkeys(blank["concept"])),
    )


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Generator[None]:
    started = time.monotonic()
    yield
    seconds[phase] = round(seconds.get(phase, 0) + time.monotonic() - started, 3)
