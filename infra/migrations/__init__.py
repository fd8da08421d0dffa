"""Schema changes of the ledger's database, oldest first; `infra.database` applies them."""
