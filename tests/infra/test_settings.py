"""Settings come from the environment, and nonsense is refused by name."""

from pathlib import Path

import pytest

from infra.errors import SettingsError
from infra.settings import load_settings, quiet_environment


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("SCAPRE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_everything_lies_below_home_by_default(tmp_path: Path):
    settings = load_settings()
    assert settings.home == tmp_path / "var"
    assert settings.object_store_uri == f"{settings.home.as_uri()}/objects"
    assert settings.ledger_url == f"sqlite:///{settings.home}/ledger.db"
    assert settings.mlflow_tracking_uri == f"sqlite:///{settings.home}/mlflow.db"
    assert settings.registered_model_name == "scapre-reference"
    assert not settings.home.exists()


def test_the_environment_is_read_and_arguments_win(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("SCAPRE_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("SCAPRE_RENDER_BATCH", "32")
    monkeypatch.setenv("SCAPRE_OBJECT_STORE_URI", "s3://bucket/prefix/")
    settings = load_settings(device="cpu")
    assert settings.ledger_url == f"sqlite:///{tmp_path}/elsewhere/ledger.db"
    assert (settings.render_batch, settings.object_store_uri) == (32, "s3://bucket/prefix")
    assert settings.resolve_device() == "cpu"
    assert load_settings(render_batch=1).render_batch == 1


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("SCAPRE_DEVICE", "gpu", "SCAPRE_DEVICE: .*'auto', 'cpu' or 'cuda'.*found 'gpu'"),
        ("SCAPRE_RENDER_BATCH", "0", "SCAPRE_RENDER_BATCH: .*found '0'"),
        ("SCAPRE_OBJECT_STORE_URI", "ftp://x/y", "file:///folder or s3://bucket/prefix, found 'ftp://x/y'"),
        ("SCAPRE_LEDGER_URL", "mysql://x", "SCAPRE_LEDGER_URL: expected sqlite:///file or postgresql"),
        ("SCAPRE_MLFLOW_TRACKING_URI", "./mlruns", "SCAPRE_MLFLOW_TRACKING_URI: expected sqlite"),
        ("SCAPRE_S3_ENDPOINT", "localhost:9000", "SCAPRE_S3_ENDPOINT: expected a URL like"),
        ("SCAPRE_S3_ACCESS_KEY_ID", "only-half", "s3_access_key_id and s3_secret_access_key together"),
        ("SCAPRE_REGISTERED_MODEL_NAME", "it's", "SCAPRE_REGISTERED_MODEL_NAME"),
        ("SCAPRE_HOEM", "x", "found SCAPRE_HOEM; did you mean SCAPRE_HOME?"),
        ("SCAPRE_XQZW", "x", "found SCAPRE_XQZW; known are SCAPRE_APPROVAL_POLICY"),
    ],
)
def test_nonsense_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str, sentence: str):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=sentence):
        load_settings()


def test_secrets_and_database_passwords_stay_out_of_text_and_errors(monkeypatch: pytest.MonkeyPatch):
    settings = load_settings(
        s3_access_key_id="k", s3_secret_access_key="hush", ledger_url="postgresql+psycopg2://u:hush@h/d"
    )
    assert "hush" not in repr(settings)
    assert settings.s3_options()["secret_access_key"] == "hush"
    monkeypatch.setenv("SCAPRE_LEDGER_URL", "mysql://u:hush@h/d")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert "hush" not in str(caught.value)


def test_libraries_are_kept_quiet_unless_told_otherwise(tmp_path: Path):
    environ = {"HF_HUB_OFFLINE": "0"}
    in_force = quiet_environment(load_settings(), environ)
    assert environ == in_force
    assert environ["HF_HUB_OFFLINE"] == "0"
    assert environ["PREFECT_HOME"] == str(tmp_path / "var" / "prefect")
    assert environ["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"] == "120"
    assert "AWS_SECRET_ACCESS_KEY" not in environ


def test_mlflow_reaches_the_same_s3_server(tmp_path: Path):
    settings = load_settings(
        mlflow_artifact_location="s3://bucket/mlflow",
        s3_endpoint="https://s3.example.org",
        s3_access_key_id="k",
        s3_secret_access_key="s",
    )
    environ = quiet_environment(settings, {})
    assert environ["MLFLOW_S3_ENDPOINT_URL"] == "https://s3.example.org"
    assert (environ["AWS_ACCESS_KEY_ID"], environ["AWS_SECRET_ACCESS_KEY"]) == ("k", "s")
    assert load_settings(mlflow_artifact_location="server").mlflow_artifact_location is None
