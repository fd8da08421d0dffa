"""Renders the report.

Guarantees:
    1. One file, no script, no request: its own content policy forbids both, whatever a concept is called.
    2. The verdict stands first, in words, an icon and a colour, and in the page's `data-verdict` for verification.
    3. A concept of an unsafe kind, or safe mode, and the page carries no picture.
"""

import hashlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

import jinja2
from markupsafe import Markup

from validation import formats
from validation.evidence import core_files
from validation.judgement import Judgement
from validation.policy import Policy
from validation.report import attacks, content, effects, plots, wording
from validation.report.errors import ReportError
from validation.report.pictures import PAIRS_SHOWN, PictureReader

_TEMPLATE = "report.html.j2"
_STYLE = "report.css"
_EDIT = ("method", "dials", "edit_digest", "base_digest")
_DIAGNOSTICS = ("anchors", "retain_named", "retain_found", "warnings")
_REQUEST = ("request_ids", "plan", "roles")
_FILTERS = (
    "percent",
    "exact_percent",
    "exact_points",
    "whole_percent",
    "percent_up",
    "percent_down",
    "points",
    "points_up",
    "points_down",
    "moment",
    "count",
    "typeset",
)


def render_report(
    judgement: Judgement,
    *,
    edit: Mapping[str, Any] | None = None,
    request: Mapping[str, Any] | None = None,
    links: Mapping[str, str] | None = None,
    read_picture: PictureReader | None = None,
    safe_mode: bool = False,
    judged_at: datetime | None = None,
) -> str:
    """Returns the report as one HTML page.

    Args:
        judgement: What was decided, and its tables.
        edit: What the engine says of its work: `method`, `dials`, `edit_digest`, `diagnostics`. No part of the verdict.
        request: `request_ids` (opaque), `plan`, and `roles` with the names that no detector sees in `unseen`.
        links: Further files of the same folder by title, such as the Data Docs; relative addresses only.
        read_picture: From a picture's address to its bytes; without it they are read from the judgement's store.
        safe_mode: Carry no picture. Always so when a concept is of an unsafe kind.
        judged_at: The date on the page; without it, now.

    Raises:
        ReportError: A link leads outside the folder, or a picture is not the measured one.
    """
    for address in (links or {}).values():
        _refuse_outside(address)
    environment = _environment()
    template = environment.get_template(_TEMPLATE)
    without_pictures = content.is_without_pictures(judgement, safe_mode=safe_mode)
    read = read_picture or (lambda address: judgement.picture_path(address).read_bytes())
    return template.render(
        judgement=judgement,
        protocol=judgement.protocol,
        policy=Policy.model_validate(dict(judgement.protocol.policy)),
        policy_fields=Policy.model_fields,
        edit=edit and _facts(edit, _EDIT),
        diagnostics=_facts((edit or {}).get("diagnostics") or {}, _DIAGNOSTICS),
        request=_facts(request or {}, _REQUEST),
        links=links or {},
        judged_at=judged_at or datetime.now(UTC),
        without_pictures=without_pictures,
        galleries=[] if without_pictures else content.target_galleries(judgement, read),
        damaged=[] if without_pictures else content.damaged_galleries(judgement, read, tuple(content.ROLE_TITLES)),
        digests={name: hashlib.sha256(file).hexdigest() for name, file in core_files(judgement).items()},
        style=Markup(_resource(_STYLE)),  # noqa: S704 (our own file)
        pairs_shown=PAIRS_SHOWN,
        attack_rows=attacks.attack_rows(judgement),
        attacks=attacks,
        content=content,
        effects=effects,
        plots=plots,
        wording=wording,
    )


def _facts(given: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Returns the facts that the page knows how to show; those that nobody gave are None, and are left out there."""
    return {name: given.get(name) for name in names}


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_resource),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in _FILTERS:
        environment.filters[name] = getattr(formats, name)
    return environment


def _resource(name: str) -> str:
    return (resources.files("validation.report") / name).read_text(encoding="utf-8")


def _refuse_outside(address: str) -> None:
    parts = urlsplit(address)
    if parts.scheme or parts.netloc or address.startswith(("/", "\\")) or ".." in parts.path.split("/"):
        raise ReportError(
            f"expected a relative address inside the evidence folder, found {address!r}; a report reaches nowhere else"
        )
