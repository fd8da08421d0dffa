"""The judge: renders probes with a base and a candidate, measures them, and says whether the candidate forgot."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from validation.detectors import ClassifierDetector, Detectors, ImageTextDetector
    from validation.judgement import GateResult, Integrity, Judgement, Protocol, Reason, Verdict
    from validation.judging import judge
    from validation.policy import Policy, load_policy, parse_policy
    from validation.probes import Probe, Subject, build_probes
    from validation.rendering import PictureStore, Sampler, render

__all__ = [
    "ClassifierDetector",
    "Detectors",
    "GateResult",
    "ImageTextDetector",
    "Integrity",
    "Judgement",
    "PictureStore",
    "Policy",
    "Probe",
    "Protocol",
    "Reason",
    "Sampler",
    "Subject",
    "Verdict",
    "build_probes",
    "judge",
    "load_policy",
    "parse_policy",
    "render",
]

_HOMES = {
    "detectors": ("ClassifierDetector", "Detectors", "ImageTextDetector"),
    "judgement": ("GateResult", "Integrity", "Judgement", "Protocol", "Reason", "Verdict"),
    "judging": ("judge",),
    "policy": ("Policy", "load_policy", "parse_policy"),
    "probes": ("Probe", "Subject", "build_probes"),
    "rendering": ("PictureStore", "Sampler", "render"),
}


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():  # on first use: a caller that only reads a policy need not wait for torch
        if name in names:
            return getattr(import_module(f"validation.{home}"), name)
    raise AttributeError(f"module 'validation' has no attribute {name!r}")
