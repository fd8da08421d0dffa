"""Promotion against a real registry and ledger on SQLite."""

import pytest

from flows import promotion
from flows.plan import Plan
from flows.requests import Subject
from flows.services import open_services
from infra.chain import EntryKind
from infra.settings import load_settings


@pytest.fixture
def services(tmp_path):
    return open_services(load_settings({}, home=tmp_path / "home"))


@pytest.fixture
def plan():
    return Plan(
        base="reference",
        base_digest="0" * 64,
        request_ids=("req-1",),
        subjects=(Subject(concept="rose", kind="object"),),
        retain=(),
        withheld=(),
        method="scapre",
        dials={},
        policy={},
        packs={},
    )


@pytest.fixture
def registry(services):
    return services.open_registry()


@pytest.mark.parametrize("verdict", ["failed", "inconclusive"])
def test_nothing_but_a_passed_verdict_promotes(services, registry, plan, verdict):
    version = registry.register(source="file:///x", digest="1" * 64)
    with pytest.raises(promotion.NotPassedError):
        promotion.promote(services, registry, plan, version=version, verdict=verdict, evidence="2" * 64)
    assert registry.champion() is None
    assert services.ledger.entries() == []


def test_a_promotion_is_recorded_once_and_repeating_it_changes_nothing(services, registry, plan):
    version = registry.register(source="file:///x", digest="1" * 64)
    entries = [
        promotion.promote(services, registry, plan, version=version, verdict="passed", evidence="2" * 64)
        for _ in range(2)
    ]
    assert entries[0] == entries[1]
    assert [entry.kind for entry in services.ledger.entries()] == [EntryKind.PROMOTED]
    champion = registry.champion()
    assert champion is not None
    assert champion.version == version.version
    assert promotion.find_outcome(services, plan.key) == entries[0]


def test_an_alias_that_the_ledger_could_not_record_is_put_back(services, registry, plan, monkeypatch):
    first = registry.register(source="file:///x", digest="1" * 64)
    promotion.promote(services, registry, plan, version=first, verdict="passed", evidence="2" * 64)
    second = registry.register(source="file:///y", digest="3" * 64)
    later = Plan(**{**plan.__dict__, "request_ids": ("req-2",)})

    def full_disk(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(services.ledger), "append", full_disk)
    with pytest.raises(OSError, match="No space"):
        promotion.promote(services, registry, later, version=second, verdict="passed", evidence="2" * 64)
    champion = registry.champion()
    assert champion is not None
    assert champion.version == first.version
