"""CLIPScore: the cosine of picture and caption in a CLIP model (arXiv 2104.08718), CLIP-H for MPCF.

score = <f_image / |f_image|, f_text / |f_text|>,  -1..1, captions cut after 77 tokens
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoProcessor, CLIPModel

from lpo.hub import from_pretrained


class ClipScore:
    """`score(images, captions)` of pictures of any size."""

    def __init__(self, model: CLIPModel, processor: AutoProcessor) -> None:
        self.model, self.processor = model, processor

    @torch.no_grad()
    def score(self, images: Sequence[Image.Image], captions: Sequence[str]) -> torch.Tensor:
        """(N,) float32 on the CPU."""
        read = self.processor(
            text=list(captions), images=list(images), return_tensors="pt", padding=True, truncation=True
        ).to(self.model.device)
        # The two halves by themselves: a method that joins them returns another type in every major version.
        pooled = self.model.vision_model(read.pixel_values.to(self.model.dtype)).pooler_output
        said = self.model.text_model(read.input_ids, read.attention_mask).pooler_output
        image, text = self.model.visual_projection(pooled), self.model.text_projection(said)
        return (F.normalize(image.float(), dim=1) * F.normalize(text.float(), dim=1)).sum(1).cpu()


def load(model: str, device: torch.device, dtype: torch.dtype) -> ClipScore:
    """A CLIP folder or hub id. Raises LpoError where it is not."""
    clip = from_pretrained(CLIPModel, model, dtype=dtype).to(device).eval().requires_grad_(False)
    return ClipScore(clip, from_pretrained(AutoProcessor, model))
