"""Whether what lies in the object store is, byte for byte, what was judged and approved.

Guarantees:
    1. Every stored byte of model and evidence is read again; no local copy and no metadata counts.
    2. What differs is named file by file.
"""

import tempfile
from pathlib import Path

from flows.errors import FlowError
from flows.plan import candidate_key
from flows.progress import console, progress_bar
from flows.services import Services
from infra.errors import PermanentFailure


class AlteredModelError(FlowError):
    """What is stored is not, byte for byte, what was approved."""


def stored_differences(services: Services, *, key: str, digest: str, evidence: str) -> list[str]:
    """Returns one sentence for each stored file of a run's model and evidence that is not what the digests cover."""
    with progress_bar("checking stored bytes", console()) as on_progress:
        found = services.store.differences(candidate_key(key), digest=digest, on_progress=on_progress)
    return [f"model {sentence}" for sentence in found] + [f"evidence {s}" for s in _evidence(services, key, evidence)]


def require_stored(services: Services, *, key: str, digest: str, evidence: str) -> None:
    """Refuses a model whose stored bytes, or whose evidence, are not those that were approved.

    Raises:
        AlteredModelError: Every file that differs is named.
    """
    if differences := stored_differences(services, key=key, digest=digest, evidence=evidence):
        raise AlteredModelError(
            f"expected the store to hold digest {digest} and its evidence byte for byte, found "
            f"{'; '.join(differences)}; nothing was promoted: restore the files from a copy"
        )


def _evidence(services: Services, key: str, digest: str) -> list[str]:
    from validation.evidence import verify_evidence  # seconds that nothing else here needs

    with tempfile.TemporaryDirectory() as folder:
        try:
            services.store.get_directory(f"evidence/{key}", Path(folder) / "bundle")
        except PermanentFailure as error:
            return [str(error)]
        return verify_evidence(Path(folder) / "bundle", expected_digest=digest)
