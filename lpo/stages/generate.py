"""generate: a prompt, and perhaps a LoRA -> a PNG."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from lpo.config import Params
from lpo.errors import LpoError
from lpo.evaluate.generation import generate
from lpo.families import load_family
from lpo.files import write_bytes
from lpo.stages.models import folder_of

ENLARGED = 256  # small pictures are shown at least this large, like pixel art


def run(
    params: Params,
    prompt: str,
    lora: Path | None,
    out: Path,
    seed: int,
    guidance_scale: float | None,
    steps: int | None,
) -> None:
    """Write `out`. Raises LpoError for a prompt that is empty or longer than the model reads."""
    config, family = params.evaluate, load_family(params.model)
    length = len(family.tokenizer(prompt).input_ids)
    if not prompt.strip() or length > family.tokens:
        raise LpoError(
            f"the prompt has {length} tokens, the model reads 3 to {family.tokens}", "PROMPT", "change the prompt"
        )
    if lora is not None:
        family.load_lora(folder_of(lora))
    scale = config.guidance_scale if guidance_scale is None else guidance_scale
    picture = Image.fromarray(
        generate(family, [prompt], [seed], steps or config.num_inference_steps, scale, config.eta, 1, "")[0]
    )
    if picture.width < ENLARGED:
        factor = ENLARGED // picture.width
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    write_bytes(out, buffer.getvalue())
