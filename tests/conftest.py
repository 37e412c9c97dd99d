"""Hypothesis profiles: ``HYPOTHESIS_PROFILE`` is ``fast``, ``default`` or, for a long random search, ``thorough``."""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "default", derandomize=True, deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "thorough", settings.get_profile("default"), derandomize=False, max_examples=1000, print_blob=True
)
settings.register_profile("fast", settings.get_profile("default"), max_examples=3)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
