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


def of_prompts(generator: torch.Generator, count: int, rows: torch.Tensor) -> list[torch.Generator]:
    """A generator for each of the prompts `rows` out of `count`, seeded with a number that `generator` draws for it.

    So a process draws the noise of its own prompts alone, and the same noise as if it had all of them.
    """
    seeds = torch.randint(2**63 - 1, (count,), generator=generator)[rows]
    return [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]


def normal(generators: list[torch.Generator], *shape: int) -> torch.Tensor:
    """Standard normal numbers, (len(generators), *shape), a row from each."""
    return torch.stack([torch.randn(shape, generator=each) for each in generators])
