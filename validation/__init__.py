"""The judge: renders probes with a base and a candidate, measures them, and says whether the candidate forgot."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from validation.detectors import (
        ClassifierDetector,
        Detectors,
        ExplicitContentDetector,
        ImageTextDetector,
        ZeroShotDetector,
    )
    from validation.evidence import evidence_digest, verify_evidence, write_evidence
    from validation.judgement import GateResult, Integrity, Judgement, Protocol, Reason, Verdict
    from validation.judging import judge
    from validation.policy import Policy, load_policy, parse_policy
    from validation.probe_packs import Pack, load_pack, pack_names
    from validation.probes import Probe, Subject, build_probes
    from validation.rendering import PictureStore, Sampler, render
    from validation.report import render_report

__all__ = [
    "ClassifierDetector",
    "Detectors",
    "ExplicitContentDetector",
    "GateResult",
    "ImageTextDetector",
    "Integrity",
    "Judgement",
    "Pack",
    "PictureStore",
    "Policy",
    "Probe",
    "Protocol",
    "Reason",
    "Sampler",
    "Subject",
    "Verdict",
    "ZeroShotDetector",
    "build_probes",
    "evidence_digest",
    "judge",
    "load_pack",
    "load_policy",
    "pack_names",
    "parse_policy",
    "render",
    "render_report",
    "verify_evidence",
    "write_evidence",
]

_HOMES = {
    "detectors": (
        "ClassifierDetector",
        "Detectors",
        "ExplicitContentDetector",
        "ImageTextDetector",
        "ZeroShotDetector",
    ),
    "evidence": ("evidence_digest", "verify_evidence", "write_evidence"),
    "judgement": ("GateResult", "Integrity", "Judgement", "Protocol", "Reason", "Verdict"),
    "judging": ("judge",),
    "policy": ("Policy", "load_policy", "parse_policy"),
    "probe_packs": ("Pack", "load_pack", "pack_names"),
    "probes": ("Probe", "Subject", "build_probes"),
    "rendering": ("PictureStore", "Sampler", "render"),
    "report": ("render_report",),
}


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():  # on first use: a caller that only reads a policy need not wait for torch
        if name in names:
            return getattr(import_module(f"validation.{home}"), name)
    raise AttributeError(f"module 'validation' has no attribute {name!r}")
