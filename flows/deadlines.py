"""The policy table of deadlines: per regime, how long each step may take and what a request must hold.

Guarantees:
    1. The table is data, checked when it is read; a malformed one is refused with every fault's place.
    2. A request has exactly one regime: the one that it names, or the first that fits its ground and jurisdiction.
    3. A pause moves every open deadline by its length; an extension moves decision and effect, once.
    4. Deadlines are service targets of this installation, not legal advice.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from dateutil.relativedelta import relativedelta
from pydantic import BaseModel, ConfigDict, Field, model_validator

from flows.errors import BadRequestError
from flows.requests import Ground, Statement, TakedownRequest
from validation.documents import parse_document, read_document
from validation.errors import PolicyError

DEFAULT_TABLE = Path(__file__).parent / "deadlines.yaml"
_AUTOMATIC: tuple[Ground, ...] = ("internal", "safety")
_STATEMENTS = get_args(Statement)

DeadlineName = Literal["acknowledge", "decide", "effect", "put_back_earliest", "put_back_latest"]
DeadlineState = Literal["met", "met_late", "open", "near", "missed", "paused"]


class _Rule(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Duration(_Rule):
    """A span of time in one unit."""

    hours: float | None = Field(default=None, gt=0, le=24 * 3660, description="hours on the clock")
    days: int | None = Field(default=None, gt=0, le=3660, description="calendar days")
    business_days: int | None = Field(default=None, gt=0, le=2600, description="Monday to Friday; no holidays")
    months: int | None = Field(default=None, gt=0, le=120, description="calendar months; the last day if shorter")

    @model_validator(mode="after")
    def _one_unit(self) -> "Duration":
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"expected one of hours, days, business_days, months, found {' and '.join(given) or 'none'}"
            )
        return self

    def after(self, start: datetime) -> datetime:
        """Returns the moment this long after `start`."""
        if self.hours is not None:
            return start + timedelta(hours=self.hours)
        if self.business_days is not None:
            day = np.busday_offset(start.date(), self.business_days, roll="backward").astype(object)
            return datetime.combine(day, start.timetz())
        return start + relativedelta(days=self.days or 0, months=self.months or 0)


class CounterNoticeWindow(_Rule):
    """When what was taken down comes back after a counter-notice."""

    earliest: Duration
    latest: Duration


class Regime(_Rule):
    """What one legal or internal basis asks for."""

    title: str = Field(min_length=1, description="what it is, for people")
    grounds: tuple[Ground, ...] = Field(min_length=1, description="grounds it serves")
    jurisdictions: tuple[str, ...] = Field(description="where it applies by itself; `*` is everywhere")
    acknowledge: Duration = Field(description="from receipt to the first look, triage")
    decide: Duration = Field(description="from receipt to valid or rejected")
    effect: Duration = Field(description="from receipt to a promoted model that has forgotten")
    extension: Duration | None = Field(default=None, description="how much later, once, if told in time")
    counter_notice: CounterNoticeWindow | None = Field(default=None, description="when a counter-notice takes effect")
    statements: tuple[Statement, ...] = Field(default=(), description="statements that a valid request makes")
    needs_signature: bool = Field(default=False, description="whether a valid request is signed")
    needs_identity_check: bool = Field(default=False, description="whether the requester's identity must be checked")
    auto_validate: bool = Field(default=False, description="whether a complete request is valid without a person")
    keep_personal_data: Duration = Field(description="from the end of a case until personal data is erased")

    @model_validator(mode="after")
    def _only_our_own_requests_validate_themselves(self) -> "Regime":
        if self.auto_validate and not set(self.grounds) <= set(_AUTOMATIC):
            raise ValueError(f"expected auto_validate only with grounds {', '.join(_AUTOMATIC)}, found others too")
        return self

    def lacking(self, request: TakedownRequest) -> tuple[str, ...]:
        """Returns the names of what the regime asks of a request and the request does not hold."""
        missing = [f"statement {name}" for name in self.statements if name not in request.statements]
        if self.needs_signature and not request.signature:
            missing.append("signature")
        if self.needs_identity_check and (request.identity_check is None or request.identity_check.result != "passed"):
            missing.append("identity_check")
        return tuple(missing)


class DeadlineTable(_Rule):
    """All regimes, in the order in which they are tried."""

    format: Literal[1]
    near_fraction: float = Field(gt=0, lt=1, description="a deadline is near when no more of its time is left")
    keep_refused: Duration = Field(description="how long a dropped file that was refused stays")
    regimes: dict[str, Regime] = Field(min_length=1)

    def find(self, name: str) -> Regime:
        """Returns a regime by name.

        Raises:
            BadRequestError: The table has none of that name.
        """
        if name not in self.regimes:
            raise BadRequestError(
                f"regime: expected one of {', '.join(self.regimes)}, found {name!r}; correct the request or the table"
            )
        return self.regimes[name]

    def regime_for(self, ground: str, jurisdiction: str, *, named: str | None = None) -> str:
        """Returns the name of the regime of a request.

        Raises:
            BadRequestError: No regime fits, or the one that the request names does not serve its ground.
        """
        if named is not None:
            if ground not in self.find(named).grounds:
                raise BadRequestError(
                    f"regime: expected one that serves ground {ground}, found {named!r}; correct one of the two"
                )
            return named
        for name, regime in self.regimes.items():
            if ground in regime.grounds and {jurisdiction, "*"} & set(regime.jurisdictions):
                return name
        raise BadRequestError(
            f"jurisdiction: expected a regime for {ground} in {jurisdiction}, found none; "
            f"name one of {', '.join(self.regimes)} in `regime`, or add one to the table"
        )


@dataclass(frozen=True)
class Pause:
    """A time during which the clock of a case stood still."""

    begun: datetime
    ended: datetime | None
    """None while it lasts."""


@dataclass(frozen=True)
class Clock:
    """What happened to one case, as far as deadlines go."""

    received_at: datetime
    pauses: tuple[Pause, ...] = ()
    is_extended: bool = False
    counter_noticed_at: datetime | None = None
    met: tuple[tuple[DeadlineName, datetime], ...] = ()


@dataclass(frozen=True)
class Deadline:
    """One date a case is held to."""

    name: DeadlineName
    started_at: datetime
    due_at: datetime
    met_at: datetime | None
    is_paused: bool
    near_fraction: float

    def state(self, now: datetime) -> DeadlineState:
        """Returns how it stands at a moment."""
        if self.met_at is not None:
            return "met" if self.met_at <= self.due_at else "met_late"
        if self.is_paused:
            return "paused"
        if now > self.due_at:
            return "missed"
        return "near" if self.due_at - now <= (self.due_at - self.started_at) * self.near_fraction else "open"

    def concern(self, now: datetime) -> Literal["near", "missed"] | None:
        """Returns why somebody must look at it, if anybody must."""
        state = self.state(now)
        # the earliest day on which something may come back is nothing that can be missed
        return state if self.name != "put_back_earliest" and (state == "near" or state == "missed") else None


def deadlines_of(regime: Regime, clock: Clock, *, near_fraction: float) -> tuple[Deadline, ...]:
    """Returns the deadlines of one case, earliest first.

    While the clock is paused, `due_at` is what it would be if the clock went on when the pause began.
    """
    met = dict(clock.met)
    found = []
    for name, start, due in _due(regime, clock):
        met_at = met.get(name)
        moved = due + _paused(clock.pauses, since=start, until=met_at)
        is_paused = met_at is None and any(pause.ended is None for pause in clock.pauses)
        found.append(Deadline(name, start, moved, met_at, is_paused, near_fraction))
    return tuple(sorted(found, key=lambda deadline: deadline.due_at))


def load_deadlines(path: Path | None = None) -> DeadlineTable:
    """Reads a table of deadlines; the one that ships with the flows by default.

    Raises:
        PolicyError: The file cannot be read or does not hold a table.
    """
    source = path or DEFAULT_TABLE
    return parse_document(
        DeadlineTable,
        read_document(source, error=PolicyError),
        source=str(source),
        what="table of deadlines",
        example="regimes: {internal: {decide: {days: 5}}}",
        error=PolicyError,
    )


def _due(regime: Regime, clock: Clock) -> Iterator[tuple[DeadlineName, datetime, datetime]]:
    received = clock.received_at
    yield "acknowledge", received, regime.acknowledge.after(received)
    decide, effect = regime.decide.after(received), regime.effect.after(received)
    if clock.is_extended and regime.extension is not None:
        decide, effect = regime.extension.after(decide), regime.extension.after(effect)
    yield "decide", received, decide
    yield "effect", received, effect
    if clock.counter_noticed_at is not None and regime.counter_notice is not None:
        noticed = clock.counter_noticed_at
        yield "put_back_earliest", noticed, regime.counter_notice.earliest.after(noticed)
        yield "put_back_latest", noticed, regime.counter_notice.latest.after(noticed)


def _paused(pauses: Iterable[Pause], *, since: datetime, until: datetime | None) -> timedelta:
    spans = timedelta()
    for pause in pauses:
        ended = pause.ended if until is None else min(pause.ended or until, until)
        if ended is not None:
            spans += max(ended - max(pause.begun, since), timedelta())
    return spans
