"""Settings of all tests: hypothesis draws the same examples on every run and prints what failed."""

from hypothesis import settings

settings.register_profile("fixed", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("fixed")
