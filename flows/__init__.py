"""The policy, told in order: requests, candidates, judgements, promotions. Prefect lives here, and only here."""
