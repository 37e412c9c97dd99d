"""The methods, one file each."""

from .base import Agent
from .reinforce import Reinforce

ALGORITHMS: dict[str, type[Agent]] = {"reinforce": Reinforce}

__all__ = ["ALGORITHMS", "Agent", "Reinforce"]
