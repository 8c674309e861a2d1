"""LPO Works: latent preference optimisation of text-to-image diffusion models."""

import logging

__version__ = "0.1.0"

# transformers says it whenever diffusers is imported; its picture processors without torchvision are what we want.
logging.getLogger("transformers.utils.import_utils").addFilter(
    lambda record: "requires torchvision" not in record.getMessage()
)
