"""The judge: renders probes with a base and a candidate, measures them, and says whether the candidate forgot."""

from validation.detectors import ClassifierDetector, Detectors, ImageTextDetector
from validation.judge import judge
from validation.judgement import GateResult, Integrity, Judgement, Protocol, Reason, Verdict
from validation.policy import Policy, load_policy
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
    "render",
]
