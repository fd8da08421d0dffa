"""Attacks: what somebody with the weights and a budget can still get out of a model that was made to forget.

Importing this package costs nothing; a policy names attacks without torch. `trial.attack_targets` runs them.
"""
