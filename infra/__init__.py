"""Adapters to the outside world, one small module each: settings, object storage, ledger, locks, model registry."""
