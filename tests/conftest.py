"""Settings of the whole suite."""

from hypothesis import settings

settings.register_profile("steady", deadline=None, derandomize=True, print_blob=True)  # machines are shared and noisy
settings.load_profile("steady")
