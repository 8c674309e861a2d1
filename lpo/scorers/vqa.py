"""VQAScore: how sure a model that answers questions is of "Yes" (arXiv 2404.01291).

    question = 'Does this figure show "{caption}"? Please answer yes or no.'
    score = P("Yes" | picture, question),  0..1

`ClipFlanT5` is the published model: T5 whose encoder reads, in the place of <image>, the patch tokens of CLIP
ViT-L/14-336 (second last layer, without the class token) through two linear layers with a GELU. As published, the
answer is "Yes" and the end of the text, and its probability the geometric mean of theirs. `Vqa` is the lighter choice:
any model that transformers loads for pictures and text; the probability is that of the first token of "Yes".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    CLIPVisionModel,
    T5Config,
    T5ForConditionalGeneration,
)  # fmt: skip

from lpo.errors import LpoError
from lpo.hub import any_variant, read_weights, refusal

QUESTION, ANSWER = 'Does this figure show "{}"? Please answer yes or no.', "Yes"
SYSTEM = (  # what the published model was trained with, before and after the picture
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: "
)
MAX_TOKENS = 2048  # of a question
CLASS_TOKENS = 1


class ClipFlanT5:
    """The published VQAScore model on library parts."""

    def __init__(
        self, t5: T5ForConditionalGeneration, projector: nn.Module, vision: CLIPVisionModel, tokenizer: Any,
        processor: Any, layer: int,
    ) -> None:  # fmt: skip
        self.t5, self.projector, self.vision, self.layer = t5, projector, vision, layer
        self.tokenizer, self.processor = tokenizer, processor

    @torch.no_grad()
    def score(self, images: Sequence[Image.Image], captions: Sequence[str]) -> torch.Tensor:
        """(N,) float32 on the CPU."""
        device, dtype = self.t5.device, self.t5.dtype
        fill = tuple(int(255 * channel) for channel in self.processor.image_mean)
        pixels = self.processor([square(image, fill) for image in images], return_tensors="pt").pixel_values
        seen = self.vision(pixels.to(device, dtype), output_hidden_states=True).hidden_states[self.layer]
        patches = self.projector(seen[:, CLASS_TOKENS:])
        embed = self.t5.get_input_embeddings()
        # Every part ends with the end of text, as the published code tokenises them one by one.
        before = embed(self._ids(SYSTEM))
        rows = []
        for picture, caption in zip(patches, captions, strict=True):
            after = embed(self._ids("\n" + QUESTION.format(caption) + " ASSISTANT: "))
            rows.append(torch.cat([before, picture, after]))
        joined = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        mask = torch.arange(joined.shape[1], device=device)[None] < lengths[:, None]
        answer = self._ids(ANSWER).repeat(len(rows), 1)
        logits = self.t5(inputs_embeds=joined, attention_mask=mask.long(), labels=answer).logits.float()
        spoken = logits.log_softmax(-1).gather(2, answer[..., None])[..., 0]
        return spoken.mean(1).exp().cpu()

    def _ids(self, text: str) -> torch.Tensor:
        ids = self.tokenizer(text, truncation=True, max_length=MAX_TOKENS, return_tensors="pt").input_ids[0]
        return ids.to(self.t5.device)


class Vqa:
    """Any model of transformers that reads a picture and text, with an encoder or with a decoder alone."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor
        self.yes = processor.tokenizer(ANSWER, add_special_tokens=False).input_ids[0]

    @torch.no_grad()
    def score(self, images: Sequence[Image.Image], captions: Sequence[str]) -> torch.Tensor:
        """(N,) float32 on the CPU; one row at a time, so that no padding has a say."""
        rows = zip(images, captions, strict=True)
        return torch.stack([self._score(image, QUESTION.format(caption)) for image, caption in rows]).cpu()

    def _score(self, image: Image.Image, question: str) -> torch.Tensor:
        if getattr(self.processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": question}]
            question = self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
        read = self.processor(images=image, text=question, return_tensors="pt").to(self.model.device, self.model.dtype)
        config = self.model.config.get_text_config()
        if config.is_encoder_decoder:
            start = torch.full((1, 1), config.decoder_start_token_id, device=self.model.device)
            read["decoder_input_ids"] = start
        return self.model(**read).logits[0, -1].float().softmax(-1)[self.yes]


def square(image: Image.Image, fill: tuple[int, ...]) -> Image.Image:
    """The picture in the middle of the smallest square that holds it."""
    side = max(image.size)
    canvas = Image.new("RGB", (side, side), fill)
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


def load(
    model: str, vision: str | None, tokenizer: str | None, device: torch.device, dtype: torch.dtype
) -> ClipFlanT5 | Vqa:
    """A model for VQAScore. With `vision`, CLIP-FlanT5: `model` holds T5 and the projector, `vision` is its CLIP, and
    `tokenizer` (of flan-t5) may lie elsewhere. Without it, whatever transformers loads for pictures and text.

    Raises:
        LpoError: if something is not here or does not fit.
    """
    try:
        if vision is None:
            config = AutoConfig.from_pretrained(model)
            whole = AutoModelForImageTextToText.from_pretrained(model, config=config, dtype=dtype).to(device).eval()
            return Vqa(whole.requires_grad_(False), AutoProcessor.from_pretrained(model))
        return _clip_flan_t5(model, vision, tokenizer or model, device, dtype)
    except (OSError, ValueError) as error:
        remedy = "name folders, or allow the hub with HF_HUB_OFFLINE=0"
        raise refusal(error, f"no model for VQAScore: {error}", model, remedy) from error


def _clip_flan_t5(model: str, vision: str, tokenizer: str, device: torch.device, dtype: torch.dtype) -> ClipFlanT5:
    values = {k: v for k, v in T5Config.get_config_dict(model)[0].items() if k not in ("model_type", "architectures")}
    t5 = any_variant(T5ForConditionalGeneration, model, config=T5Config(**values), dtype=dtype)
    clip = any_variant(CLIPVisionModel, vision, dtype=dtype)
    weights = {k.removeprefix("mm_projector."): v for k, v in read_weights(model, "mm_projector.").items()}
    projector = nn.Sequential(nn.Linear(clip.config.hidden_size, t5.config.d_model), nn.GELU(),
                              nn.Linear(t5.config.d_model, t5.config.d_model))  # fmt: skip
    try:
        projector.load_state_dict(weights)
    except RuntimeError as error:
        what = f"the projector does not fit CLIP ({clip.config.hidden_size}) and T5 ({t5.config.d_model})"
        raise LpoError(what, model, f"use the CLIP model that it was trained with, not {vision}") from error
    for part in (t5, projector, clip):
        part.to(device, dtype).eval().requires_grad_(False)
    layer = values.get("mm_vision_select_layer", -2)
    tokens, processor = AutoTokenizer.from_pretrained(tokenizer), AutoImageProcessor.from_pretrained(vision)
    return ClipFlanT5(t5, projector, clip, tokens, processor, layer)
