import pytest

from flows.deadlines import load_deadlines
from flows.requests import read_request_file
from flows.templates import template

TABLE = load_deadlines()


@pytest.mark.parametrize("regime", TABLE.regimes)
def test_the_example_of_a_regime_holds_all_that_the_regime_asks_for(regime):
    request = read_request_file(template(TABLE, regime).encode(), name="template.yaml")
    assert TABLE.regime_for(request.ground, request.jurisdiction, named=request.regime) == regime
    assert TABLE.regimes[regime].lacking(request) == ()
