"""Trains the reference model from seeds, stage by stage; see `python -m infra.reference.training --help`."""
