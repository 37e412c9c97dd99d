"""Hypothesis profiles: ``HYPOTHESIS_PROFILE`` is ``fast``, ``default`` or, for a long random search, ``thorough``."""

import os
import sys

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "default", derandomize=True, deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "thorough", settings.get_profile("default"), derandomize=False, max_examples=1000, print_blob=True
)
settings.register_profile("fast", settings.get_profile("default"), max_examples=3)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture
def fast_disk(monkeypatch):
    """Waiting for the disk matters when the machine dies, not when the process does."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Properties run without the tracer of coverage, which costs half as much again: other tests reach the lines."""
    tracer = sys.gettrace()
    if hasattr(item.obj, "hypothesis") and type(tracer).__module__.startswith("coverage"):
        sys.settrace(None)
    try:
        return (yield)
    finally:
        sys.settrace(tracer)
