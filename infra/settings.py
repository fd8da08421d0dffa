"""Everything that can be set from outside, and the only module that reads the environment.

* Each field is a variable: `SCAPRE_` and its name in capitals. Without any, all state lies below `./var`.
* A variable that starts with `SCAPRE_` and names no field is refused: a typing mistake is never a silent default.
* `quiet_environment` tells third-party libraries not to call home, and leaves what is already set alone.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from infra.errors import SettingsError

PREFIX = "SCAPRE_"
_REFERENCE = Path(__file__).parent / "reference"


class Settings(BaseSettings):
    """Settings of one process; frozen, so that what a run records is what it used."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", validate_default=True)

    home: Path = Field(default=Path("var"), description="Folder of everything this installation keeps; made absolute.")
    base_model: Path = Field(
        default=_REFERENCE / "model", description="Pristine base checkpoint, a diffusers folder. Never changed."
    )
    detectors: Path = Field(
        default=_REFERENCE / "detectors", description="Folder with the judge's detectors: classifier/ and clip/."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where to solve and render; auto is CUDA when there is one."
    )
    render_batch: int = Field(default=16, ge=1, le=4096, description="Pictures rendered together.")

    object_store_uri: str = Field(
        default_factory=lambda known: f"{known['home'].as_uri()}/objects",
        description="Where large bytes live: file:///folder or s3://bucket/prefix.",
    )
    s3_endpoint: str | None = Field(default=None, description="URL of an S3 server other than Amazon's.")
    s3_region: str | None = Field(default=None, description="Region to sign requests for; boto3's chain when unset.")
    s3_access_key_id: str | None = Field(default=None, description="With the secret; boto3's own chain when unset.")
    s3_secret_access_key: SecretStr | None = Field(default=None, description="With the access key id.")
    s3_session_token: SecretStr | None = Field(default=None, description="For temporary credentials.")
    s3_part_bytes: int = Field(
        default=64 << 20, ge=5 << 20, le=5 << 30, description="Larger files travel in parts of this many bytes."
    )
    s3_attempts: int = Field(default=4, ge=1, le=20, description="How often a transient failure is tried.")
    s3_timeout_seconds: float = Field(default=60.0, gt=0, description="For connecting, and for silence while reading.")

    ledger_url: str = Field(
        default_factory=lambda known: f"sqlite:///{known['home'] / 'ledger.db'}",
        repr=False,
        description="SQLAlchemy URL of ledger, personal records and locks: sqlite:/// or postgresql+psycopg2://.",
    )
    deadlines: Path | None = Field(
        default=None,
        description="Table of deadlines for takedown requests; the one that ships when unset.",
    )
    promotion_lease_seconds: float = Field(
        default=60.0, gt=0, description="After this long without renewal, the lock of a killed run may be taken over."
    )

    mlflow_tracking_uri: str = Field(
        default_factory=lambda known: f"sqlite:///{known['home'] / 'mlflow.db'}",
        repr=False,
        description="MLflow tracking and registry: sqlite:///, postgresql+psycopg2:// or the URL of a server.",
    )
    mlflow_artifact_location: str | None = Field(
        default_factory=lambda known: f"{known['home'].as_uri()}/mlflow",
        description="Where MLflow keeps small artifacts of new experiments; 'server' leaves it to the server.",
    )
    registered_model_name: str = Field(
        default="scapre-reference", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$", description="Name in the registry."
    )

    approval_policy: Path | None = Field(
        default=None, description="Who must approve what, a YAML file; the one that ships with the flows when unset."
    )

    @field_validator("home", "base_model", "detectors", "deadlines", "approval_policy")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return path.expanduser().resolve() if path else None

    @field_validator("object_store_uri")
    @classmethod
    def _store_scheme(cls, uri: str) -> str:
        parts = urlsplit(uri)
        if not ((parts.scheme == "file" and parts.path.strip("/")) or (parts.scheme == "s3" and parts.netloc)):
            raise ValueError("expected file:///folder or s3://bucket/prefix")
        return uri.rstrip("/")

    @field_validator("s3_endpoint")
    @classmethod
    def _endpoint_scheme(cls, url: str | None) -> str | None:
        if url is not None and (urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc):
            raise ValueError("expected a URL like https://s3.example.org")
        return url

    @field_validator("ledger_url")
    @classmethod
    def _ledger_scheme(cls, url: str) -> str:
        if not url.startswith(("sqlite:///", "postgresql+psycopg2://")):
            raise ValueError("expected sqlite:///file or postgresql+psycopg2://user@host/database")
        return url

    @field_validator("mlflow_tracking_uri")
    @classmethod
    def _tracking_scheme(cls, uri: str) -> str:
        if not uri.startswith(("sqlite:///", "postgresql+psycopg2://", "http://", "https://")):
            raise ValueError("expected sqlite:///file, postgresql+psycopg2://… or http(s)://server (no file store)")
        return uri

    @field_validator("mlflow_artifact_location")
    @classmethod
    def _server_decides(cls, location: str | None) -> str | None:
        return None if location == "server" else location

    @model_validator(mode="after")
    def _whole_credentials(self) -> Settings:
        if (self.s3_access_key_id is None) != (self.s3_secret_access_key is None):
            raise ValueError("expected s3_access_key_id and s3_secret_access_key together, found one of them")
        return self

    def s3_options(self) -> dict[str, Any]:
        """Returns the keyword arguments of `S3Store`."""
        return {
            "endpoint": self.s3_endpoint,
            "region": self.s3_region,
            "access_key_id": self.s3_access_key_id,
            "secret_access_key": _revealed(self.s3_secret_access_key),
            "session_token": _revealed(self.s3_session_token),
            "part_bytes": self.s3_part_bytes,
            "attempts": self.s3_attempts,
            "timeout_seconds": self.s3_timeout_seconds,
        }

    @property
    def feature_cache(self) -> Path:
        """File in which the engine keeps what text encoders made of sentences; deleting it costs time."""
        return self.home / "cache" / "features.db"

    def resolve_device(self) -> Literal["cpu", "cuda"]:
        """Returns where to compute on this machine.

        Raises:
            SettingsError: `device` is cuda and there is none.
        """
        import torch  # two seconds that most commands do not need

        if self.device == "cuda" and not torch.cuda.is_available():
            raise SettingsError("expected a CUDA device, found none; set SCAPRE_DEVICE to auto or cpu")
        return "cuda" if self.device != "cpu" and torch.cuda.is_available() else "cpu"


def load_settings(environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Returns the settings of this process, or one sentence per mistake.

    Args:
        environ: Names to check for typing mistakes; the process's environment when None.
        **overrides: Fields that win over the environment.

    Raises:
        SettingsError: an unknown variable, or a value that its field refuses.
    """
    fields = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    for variable in sorted(os.environ if environ is None else environ):
        if variable.upper().startswith(PREFIX) and variable.upper() not in fields:
            nearest = difflib.get_close_matches(variable.upper(), fields, n=1, cutoff=0.8)
            advice = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(sorted(fields))}"
            raise SettingsError(f"expected only known settings, found {variable}; {advice}")
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise SettingsError("; ".join(_sentence(mistake) for mistake in error.errors())) from error


def quiet_environment(settings: Settings, environ: MutableMapping[str, str] = os.environ) -> dict[str, str]:
    """Sets what keeps libraries quiet, offline and inside `home`, unless already set; returns the values in force.

    Call it before the first import of transformers, mlflow, prefect, great_expectations or matplotlib.
    """
    switches = {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PREFECT_HOME": str(settings.home / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "GX_ANALYTICS_ENABLED": "false",
        "RAY_USAGE_STATS_ENABLED": "0",
        "MPLBACKEND": "Agg",
        "TRANSFORMERS_VERBOSITY": "error",
        "DIFFUSERS_VERBOSITY": "error",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "PREFECT_LOGGING_LEVEL": "CRITICAL",
    }
    if (settings.mlflow_artifact_location or "").startswith("s3://"):
        secret = _revealed(settings.s3_secret_access_key)
        of_mlflow = {
            "MLFLOW_S3_ENDPOINT_URL": settings.s3_endpoint,
            "AWS_ACCESS_KEY_ID": settings.s3_access_key_id,
            "AWS_SECRET_ACCESS_KEY": secret,
        }
        switches |= {name: value for name, value in of_mlflow.items() if value is not None}
    return {name: environ.setdefault(name, value) for name, value in switches.items()}


def _revealed(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


def _sentence(mistake: Mapping[str, Any]) -> str:
    field = ".".join(str(part) for part in mistake["loc"])
    variable = f"{PREFIX}{field.upper()}" if field else "settings"
    found = "" if not field or "secret" in field or "url" in field else f", found {mistake['input']!r}"
    return f"{variable}: {str(mistake['msg']).removeprefix('Value error, ')}{found}; correct it or unset it"
