"""Named random streams: every random number depends on (seed, stream, step) alone.

No random state is stored anywhere. Each step of a training draws from a generator of its own, so a resumed run draws
the same numbers as one that was never interrupted.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def generator(seed: int, stream: str, step: int = 0) -> torch.Generator:
    """A CPU generator seeded with the first 63 bits of SHA-256("seed/stream/step")."""
    digest = hashlib.sha256(f"{seed}/{stream}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def numpy_generator(seed: int, stream: str, step: int = 0) -> np.random.Generator:
    """A NumPy generator with the same seed as `generator`."""
    return np.random.default_rng(generator(seed, stream, step).initial_seed())
