"""LPO Works: latent preference optimisation of text-to-image diffusion models.

`from lpo import Reward` loads a trained reward model and scores images with it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lpo.rewards.scoring import Reward

__all__ = ["Reward"]
__version__ = "0.2.0"

# transformers logs it whenever diffusers is imported. Its image processors without torchvision are what we want.
logging.getLogger("transformers.utils.import_utils").addFilter(
    lambda record: "requires torchvision" not in record.getMessage()
)


def __getattr__(name: str) -> Any:
    """Import what is exported when it is asked for: `lpo --help` must not wait for torch."""
    if name == "Reward":
        from lpo.rewards.scoring import Reward

        return Reward
    raise AttributeError(f"module 'lpo' has no attribute {name!r}")
