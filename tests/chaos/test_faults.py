"""A takedown or an approval whose object store fails: retried or refused by class, and never a wrong model promoted."""

from collections.abc import Iterator

import pytest

from flows.exit_codes import ExitCode
from tests.chaos.faults import BUCKET, SCENARIOS, Scenario, StoreBench, open_bench, standing
from tests.chaos.proxy import Fault


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreBench]:
    with open_bench(tmp_path_factory.mktemp("faults")) as bench:
        yield bench


def test_a_takedown_ends_or_goes_on_by_the_class_of_the_fault_and_promotes_once(bench: StoreBench):
    bench.lay_out("takedown")
    lasting, flipped = Fault("500", "GET .*/blobs/"), Fault("flip", "GET .*/blobs/", 1)
    for fault, code in ((lasting, ExitCode.INFRASTRUCTURE), (flipped, ExitCode.BAD_INPUT)):
        bench.proxy.faults = [fault]
        after = bench.run("takedown")
        assert (after.code, fault.met > 0, after.audit) == (code, True, []), after.said
        assert standing(after.outcome) == standing(bench.before)
    bench.proxy.faults = passing = [
        Fault("500", "GET .*/base.json", 2),
        Fault("cut", "GET .*/blobs/", 1),
        Fault("503", "PUT .*/blobs/", 2),
        Fault("500", "PUT .*/champion.json", 2),
    ]
    after = bench.run("takedown")
    assert (after.code, [fault.met for fault in passing], after.audit) == (ExitCode.OK, [2, 1, 2, 2], []), after.said
    assert standing(after.outcome)["promotions"] == standing(bench.before)["promotions"] + 1


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_store_that_fails_never_lets_a_wrong_model_through(bench: StoreBench, scenario: Scenario):
    assert bench.check(scenario) == []


@pytest.mark.slow
def test_a_download_that_gave_up_goes_on_from_the_parts_that_are_there(bench: StoreBench):
    large = f"GET /{BUCKET}/{bench.places['large file'].key}"
    bench.lay_out("takedown")
    second = f"{large} bytes=5242880-10485759"
    bench.proxy.faults = [Fault("cut", second)]
    assert bench.run("takedown").code == ExitCode.INFRASTRUCTURE
    assert bench.proxy.faults[0].met > 0
    fetched = {r for r in bench.proxy.requests if r.startswith("GET") and "/blobs/" in r} - {second}
    assert sum(r.startswith(large) for r in fetched) == 2
    bench.mend()
    bench.proxy.requests.clear()
    assert bench.run("takedown").code == ExitCode.OK
    again = [r for r in bench.proxy.requests if r.startswith("GET") and "bytes=" in r]
    assert second in again
    assert not fetched & set(again)
