"""An installation with judged candidates and nothing drawn: real store, ledger, registry and evidence."""

import sys
from functools import cache
from hashlib import sha256
from pathlib import Path
from tempfile import mkdtemp

sys.path.append(str(Path(__file__).parents[1] / "validation"))
import colour_world
import judged as worlds

from flows import intake
from flows.decisions import judged_key
from flows.plan import candidate_key
from flows.requests import Requester, Subject, load_request
from flows.services import Services, open_services
from infra.chain import Entry, EntryKind
from infra.settings import load_settings
from validation import Policy
from validation.evidence import evidence_digest, write_evidence
from validation.report import render_report

REQUESTER = Requester(name="Ada Lovelace", role="artist", contact="ada@example.org")
_REQUEST = load_request(Path(__file__).parents[2] / "flows" / "demo_request.yaml")
_POLICY = Policy(residual_limit=0.5, probes_per_target=6, stage_size=6, probes_per_target_base=2, probes_per_hidden=0)


@cache
def bundle() -> Path:
    """A whole bundle of evidence, judged in a world of colours; made once, never changed."""
    folder = Path(mkdtemp(prefix="evidence"))
    policy = _POLICY.model_copy(update={"probes_per_retained": 12, "probes_per_style": 30})
    judgement = worlds.judged(colour_world.Painter().forgetting("tiger").forgetting("dog"), folder / "p", policy=policy)
    assert judgement.verdict == "passed"
    html = render_report(judgement, edit={}, request={}, links={})
    return write_evidence(judgement, folder / "bundle", report_html=html, data_docs=None, extra={})


@cache
def _mlflow() -> Path:
    """One database for all installations, since making it takes seconds; each has a model of its own."""
    return Path(mkdtemp(prefix="mlflow"))


class Installation:
    """Services in a folder of their own, and what a run leaves once it has judged."""

    def __init__(self, home: Path, *, approval: str | None = None) -> None:
        policy = None
        if approval is not None:
            policy = home.parent / "approval.yaml"
            policy.write_text(approval, encoding="utf-8")
        settings = load_settings(
            {},
            home=home,
            promotion_lease_seconds=30.0,
            approval_policy=policy,
            mlflow_tracking_uri=f"sqlite:///{_mlflow() / 'mlflow.db'}",
            registered_model_name=f"model-{sha256(str(home).encode()).hexdigest()[:16]}",
        )
        self.services: Services = open_services(settings)
        self.registry = self.services.open_registry()

    def request(self, concept: str) -> str:
        """Records a request in force and returns its identifier."""
        subject = Subject(concept=concept, kind="object")
        request = _REQUEST.model_copy(update={"subjects": (subject,), "retain": (), "requester": REQUESTER})
        return intake.add_request(self.services, request)[0]

    def judged(self, name: str, requests: list[str], *, verdict: str = "passed") -> Entry:
        """Stores a candidate and evidence, and records the judgement, as a run does."""
        key = sha256(name.encode()).hexdigest()
        folder = self.services.cache / key
        (folder / "unet").mkdir(parents=True, exist_ok=True)
        (folder / "unet" / "weights.safetensors").write_bytes(name.encode() * 100)
        (folder / "model_index.json").write_text("{}")
        digest = self.services.store.put_directory(candidate_key(key), folder)
        self.services.store.put_directory(f"evidence/{key}", bundle())
        body = {
            "key": key,
            "digest": digest,
            "verdict": verdict,
            "evidence": evidence_digest(bundle()),
            "run_id": None,
            "request_ids": requests,
        }
        return self.services.ledger.append(EntryKind.JUDGED, body, idempotency_key=judged_key(key))

    def standing(self) -> tuple[str | None, str | None, str | None]:
        """Returns the versions of champion, previous and candidate."""
        aliases = self.registry.aliases()
        return aliases.get("champion"), aliases.get("previous"), aliases.get("candidate")

    def kinds(self) -> list[str]:
        """Returns what the ledger records beside requests."""
        return [e.kind for e in self.services.ledger.entries() if not e.kind.startswith("request_")]
