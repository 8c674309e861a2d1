"""Pseudonyms of voters, and which of them belong to simulated annotators."""

from __future__ import annotations

import hashlib

SIMULATED = 1000  # annotators at most


def pseudonym(secret: str) -> str:
    """The name under which votes are stored: nobody can vote under a name that was published."""
    return f"voter-{hashlib.blake2b(secret.encode(), digest_size=5).hexdigest()}"


def simulated_secret(number: int) -> str:
    """The cookie of simulated annotator `number`. It is no secret, so that figures can tell them from people."""
    return f"simulated-annotator{number:03d}"


def simulated() -> set[str]:
    """The pseudonyms of all simulated annotators."""
    return {pseudonym(simulated_secret(number)) for number in range(SIMULATED)}
