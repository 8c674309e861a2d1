"""What the stages need of models: their files, one latent space, a LoRA that fits, rewards and judges that are here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

from lpo import paths
from lpo.config import Evaluate, Model, Params
from lpo.data.sources.choose import FILES, folder_of, repository_of
from lpo.doctor.memory import META, configured
from lpo.emoji.scenes import CANVAS
from lpo.errors import LpoError
from lpo.evaluate.prompt_files import HUB
from lpo.evaluate.sides import check_promoted, is_denoiser
from lpo.families import family_class, load_family, lora
from lpo.families.latent_space import check_same, load_codec
from lpo.families.parts import either, local
from lpo.preflight.files import missing
from lpo.registry.ledger import PROMOTED
from lpo.registry.ledger import WEIGHTS as WEIGHTS_IN_USE
from lpo.rewards import dina
from lpo.rewards.pixel import JUDGES, PICTURE_SCORERS
from lpo.scorers.judges import sources_of
from lpo.scorers.published import NAMES
from lpo.scorers.vlm import check_plan

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")  # of diffusers' parts: a pickle is not read
DIFFUSERS = ("config.json", "|".join(WEIGHTS))
TRANSFORMERS = ("config.json", "*.safetensors|*.bin|*.index.json")
TOKENIZER = ("tokenizer_config.json", "tokenizer.json", "vocab.json")


def is_here(model: Model) -> bool:
    """Whether all configurations of a model can be read without the hub."""
    known = configured(model)
    return all(source is None or Path(source).is_dir() for source in (known.path, known.vae, known.denoiser))


@cache
def pixels(model: Model) -> int | None:
    """The side of the pictures that a model draws; None where its configurations are not here or broken."""
    try:
        return load_family(configured(model), device=META).pixels if is_here(model) else None
    except LpoError:
        return None


def base(params: Params, chain: Sequence[str]) -> Iterator[LpoError]:
    """The model that is tuned: all files of its parts, of the family that model.family names."""
    model, where = params.model, "params.yaml: model"
    family = family_class(model.family)
    own = ["model_index.json", "scheduler/scheduler_config.json"]
    for suffix in [suffix for suffix, encoder in family.encoders.items() if not encoder.optional]:
        own += [_any(f"text_encoder{suffix}", ["config.json"]), _any(f"text_encoder{suffix}", WEIGHTS)]
        own += [_any(f"tokenizer{suffix}", TOKENIZER)]
    for part, other, key in ((family.part, model.denoiser, "denoiser"), ("vae", model.vae, "vae")):
        if other is None:
            own += [f"{part}/config.json", _any(part, WEIGHTS)]
        else:
            yield from missing(other, DIFFUSERS, f"{where}.{key}: {other}")
    yield from missing(model.path, own, f"{where}.path: {model.path}")
    if is_here(model):
        load_family(configured(model), device=META)  # raises for another family, or a scheduler that is not read
    if params.dataset.source == "simulated" and "dataset" in chain and (side := pixels(model)) not in (None, CANVAS):
        what = f"dataset.source simulated is about pictures of {CANVAS} pixels; {model.path} draws {side}"
        yield LpoError(what, "params.yaml: dataset.source", "choose a source of photographs, or lpo preset emoji")


def _any(folder: str, names: Sequence[str]) -> str:
    """The pattern of one of these files in a folder."""
    return "|".join(f"{folder}/{name}" for name in names)


def steps(params: Params, chain: Sequence[str]) -> Iterator[LpoError]:
    """The model's schedule has as many steps as each stage takes, and tune learns from some of them."""
    if not is_here(params.model):
        return
    family = load_family(configured(params.model), device=META)
    asked = {"tune": params.tune.num_inference_steps, "evaluate": params.evaluate.num_inference_steps}
    if params.dataset.source == "simulated":
        asked["dataset"] = params.dataset.num_inference_steps
    for stage in [stage for stage in chain if stage in asked]:
        number = asked[stage]
        try:
            t = family.steps(number)[0].tolist()
        except LpoError as error:
            yield LpoError(error.what, f"params.yaml: {stage}.num_inference_steps: {number}", error.remedy)
            continue
        low, high = params.tune.timestep_range
        if stage == "tune" and not any(low <= value < high for value in t):
            what = f"none of the {number} steps begins at a timestep from {low} to below {high}, so nothing is learnt"
            yield LpoError(what, "params.yaml: tune.timestep_range", "widen it, or take more steps")


def data_set(params: Params, chain: Sequence[str]) -> Iterator[LpoError]:
    """A data set of the hub, and the file of prompts that takes the place of its own."""
    config = params.dataset
    name = repository_of(config)
    if name is not None and not folder_of(config).is_dir():
        key = "source" if config.repository is None else "repository"
        where = f"params.yaml: dataset.{key}: {config.repository or config.source}"
        yield from missing(name, FILES.get(config.source, ("*.parquet",)), where, "dataset", config.revision)
    yield from prompt_file("dataset.prompts", config.prompts)


def evaluation_prompt_file(params: Params, chain: Sequence[str]) -> Iterator[LpoError]:
    """The file of prompts that evaluate draws."""
    yield from prompt_file("evaluate.prompts_file", params.evaluate.prompts_file)


def prompt_file(key: str, source: str | None) -> Iterator[LpoError]:
    """A file of prompts, here or on the hub."""
    where = f"params.yaml: {key}: {source}"
    if source is not None and source.startswith(HUB):
        owner, name, file = [*source.removeprefix(HUB).split("/", 2), "", ""][:3]
        yield from missing(f"{owner}/{name}", [file], where, "dataset")
    elif source is not None and not Path(source).is_file():
        yield LpoError("there is no such file of prompts", where, "name another file")


def scorer_files(params: Params, chain: Sequence[str]) -> Iterator[LpoError]:
    """The three scorers that filter the pairs, and those that choose the checkpoint of tune."""
    config, validators = params.score, params.tune.validators
    if "tune" in chain and validators is not None:
        files = ["scorers.safetensors", "|".join(TOKENIZER)]
        yield from missing(validators, files, f"params.yaml: tune.validators: {validators}")
    if config.scorers != "published":
        files, source = ["scorers.safetensors", "|".join(TOKENIZER)], config.scorers
        yield from missing(source, files, f"params.yaml: score.scorers: {source}")
        return
    scored = "score" in chain and config.table is None and params.filter.strategy != "none"
    validated = "tune" in chain and validators is None
    names = {*(NAMES if scored else ()), *(params.tune.validation_scorers if validated else ())}
    names |= set(params.tune.rewards) & set(NAMES) if "tune" in chain else set()
    models, where = config.models, "params.yaml: score.models"
    words = ["|".join(TOKENIZER)]
    for key in ("aesthetic", "clip", "vqa", "vqa_vision", "vqa_tokenizer"):
        if (named := getattr(models, key)) is not None and key.split("_")[0] in names:
            wanted = words if key == "vqa_tokenizer" else TRANSFORMERS
            yield from missing(named, wanted, f"{where}.{key}: {named}")


def latents(params: Params, chain: Sequence[str]) -> Iterator[LpoError]:
    """A reward that grows from another model must read the latents that the tuned one makes."""
    source = params.reward.base
    if source is None:
        return
    other = replace(params.model, path=source, vae=None, denoiser=None)
    yield from missing(source, ["model_index.json", "vae/config.json"], f"params.yaml: reward.base: {source}")
    if not (is_here(other) and is_here(params.model)):
        return
    codecs = []
    for model in (other, params.model):
        place, part = either(model.vae, model.path, "vae")
        codecs.append(load_codec(str(local(place)), part, torch.float32, META, weights=False))
    check_same(codecs[0].numbers(), codecs[1].numbers(), f"params.yaml: reward.base: {source}")


def reward_sources(params: Params, chain: Sequence[str]) -> Iterator[LpoError]:
    """Where the reward starts from, or the one that takes its place."""
    config, where = params.reward, "params.yaml: reward"
    base = replace(params.model, path=config.base, vae=None, denoiser=None) if config.base else params.model
    if is_here(base):
        load_family(configured(base), reward=True, layer=config.layer, device=META)  # raises for a layer that it lacks
    if config.text_projection not in ("random", "none"):
        source = config.text_projection
        yield from missing(source, TRANSFORMERS, f"{where}.text_projection: {source}")
    if config.pretrained is not None:
        found = ["state_dict.pt|config.json"]  # published, or ours
        yield from missing(config.pretrained, found, f"{where}.pretrained: {config.pretrained}")


def policy_reward(params: Params, chain: Sequence[str]) -> Iterator[LpoError]:
    """The rewards that tune climbs: of this chain, or such as are here, and of the kind that its method reads."""
    config = params.tune
    if not config.rewards:
        yield from _one_reward(params, config.reward, f"params.yaml: tune.reward: {config.reward}", chain)
    for name in config.rewards:
        yield from _one_reward(params, name, f"params.yaml: tune.rewards: {name}", chain)


def _one_reward(params: Params, name: str, where: str, chain: Sequence[str]) -> Iterator[LpoError]:
    config, folder = params.tune, Path(name)
    latent = config.method == "lpo"
    what, kind = f"{config.method} scores noisy latents, and this reward scores pictures", "set tune.method to spo"
    if latent and (folder == paths.SPM or name in PICTURE_SCORERS):
        yield LpoError(what, where, f"{kind}, or tune.reward to {paths.REWARD}")
    if name in JUDGES:
        for source, wanted in sources_of(name, params.evaluate.judge_models, params.score.models):
            yield from missing(source, [wanted], f"{where}: {source}")
    if name in PICTURE_SCORERS:  # the other ones are read in `scorer_files`
        return
    if folder == paths.SPM or (folder == paths.REWARD and "reward" in chain):
        return
    file = folder / "config.json"
    if not folder.exists() and len(folder.parts) == 2 and not folder.parent.exists():  # a hub id
        yield from missing(name, [dina.CONFIG, dina.HEAD], where)
        return
    if folder.exists() and dina.config_of(name) is not None:
        yield from _dina(params, name, where)
        return
    if not file.is_file():
        remedy = "train it: dvc repro reward" if folder == paths.REWARD else f"set it to {paths.REWARD}"
        yield LpoError("there is no reward in this folder", where, remedy)
    elif latent and json.loads(file.read_text(encoding="utf-8")).get("kind") == "spm":
        yield LpoError(what, where, f"{kind}, or tune.reward to {paths.REWARD}")


def _dina(params: Params, folder: str, where: str) -> Iterator[LpoError]:
    """DiNa-LRM's files, and whether its LoRA fits the model; weights are read, and nothing is run."""
    wrong = list(missing(folder, [dina.HEAD], where))
    yield from wrong
    if not wrong and is_here(params.model):
        dina.load(folder, load_family(configured(params.model), device=META))


def tuned(params: Params, chain: Sequence[str]) -> Iterator[LpoError]:
    """What evaluate compares with the base: the LoRA of this chain, or one that fits the model, or a denoiser."""
    source = params.evaluate.tuned
    if Path(source) == paths.TUNED and "tune" in chain:
        return
    where = f"params.yaml: evaluate.tuned: {source}"
    if Path(source) == paths.TUNED and not paths.TUNED.exists():
        yield LpoError("there is no tuned model yet", where, "train it: dvc repro tune")
        return
    if not Path(source).exists():
        pattern = [source.rsplit("/", 1)[-1]] if source.endswith(".safetensors") else ["*.safetensors"]
        place = source.rsplit("/", 1)[0] if source.endswith(".safetensors") else source
        yield from missing(place, pattern, where)
        return
    if not is_denoiser(Path(source)) and is_here(params.model):
        lora.check(Path(source), configured(params.model))


def promoted(params: Params, chain: Sequence[str]) -> Iterator[LpoError]:
    """The promoted LoRA, which evaluate compares with the tuned one, must still fit the model."""
    yield from ()
    if (PROMOTED / WEIGHTS_IN_USE).exists() and is_here(params.model):
        check_promoted(PROMOTED, configured(params.model))


def judges(params: Params, chain: Sequence[str]) -> Iterator[LpoError]:
    """Files of every judge; the emoji judge reads pictures of the emoji world only."""
    config = params.evaluate
    for name in config.judges:
        if name == "emoji":
            if (side := pixels(params.model)) not in (None, CANVAS):
                what = f"emoji judges pictures of {CANVAS} pixels; {params.model.path} draws {side}"
                yield LpoError(what, "params.yaml: evaluate.judges", "name other judges")
            continue
        if name == "vlm":  # its server may start later; the stage asks it before it draws
            yield from _budget(config)
        for source, file in sources_of(name, config.judge_models, params.score.models):
            yield from missing(source, [file], f"params.yaml: evaluate.judges: {name}: {source}")


def _budget(config: Evaluate) -> Iterator[LpoError]:
    """The tuned model and the base, once or twice; a promoted model comes to these."""
    sides = 2 + (config.guidance_scale != config.base_guidance_scale)
    try:
        check_plan(config.vlm, sides * config.prompts * config.images_per_prompt)
    except LpoError as mistake:
        yield mistake
