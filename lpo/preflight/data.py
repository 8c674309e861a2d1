"""What the stages need of data: the source, prompts of every split, captions that fit, scorers for such pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from lpo import paths
from lpo.config import Params
from lpo.data import schema
from lpo.data.captions import plain
from lpo.data.prompts import read_named
from lpo.data.sources import index
from lpo.data.sources.choose import FILES
from lpo.data.tokens import token_counter
from lpo.emoji.scenes import CANVAS, parse, prompts_of
from lpo.errors import LpoError
from lpo.evaluate.prompt_files import HUB, read_prompts
from lpo.images import decode_picture, image_problem

SPLITS = ("train", "validation", "test")
MOST_CAPTIONS = 50_000  # that are counted here; of more, the stage dataset counts them when it makes the pairs
INPUTS: dict[str, tuple[Path, ...]] = {  # of a stage, made by stages before it
    "score": (paths.PAIRS,),
    "filter": (paths.PAIRS, paths.SCORES),
    "encode": (paths.PAIRS, paths.KEPT),
    "reward": (paths.LATENTS, paths.KEPT),
    "tune": (paths.PROMPTS,),
    "evaluate": (paths.PROMPTS,),
}


def inputs(params: Params, chain: Sequence[str]) -> Iterator[LpoError]:
    """What the first stage of the chain reads must be there. What later stages read, the chain makes."""
    for path in INPUTS.get(chain[0], ()):
        if not path.exists():
            yield LpoError(f"{path} is not here", str(path), f"run the stages before {chain[0]}: dvc repro {chain[0]}")


def source(params: Params, chain: Sequence[str]) -> Iterator[LpoError]:
    """A folder has the source's files; pairs that were imported are still the same, with some for every split."""
    config = params.dataset
    if config.path is not None:
        for name in FILES.get(config.source, ())[:2]:
            if not (Path(config.path) / name).is_file():
                where = f"params.yaml: dataset.path: {config.path}"
                yield LpoError(f"the source has no {name}", where, f"name a folder with the files of {config.source}")
    if config.source != "folder":
        return
    index.check(Path(str(config.path)), f"lpo data import TABLE --out {config.path}")
    held = {schema.split_of(shard) for shard in schema.shards(str(config.path))}
    for split in SPLITS:
        if split not in held:
            what = f"the imported pairs have none of the split {split}"
            yield LpoError(what, f"params.yaml: dataset.path: {config.path}", "import a table of that split too")


def prompt_counts(params: Params, chain: Sequence[str]) -> Iterator[LpoError]:
    """The grammar of the emoji world has so many prompts of a split and no more."""
    config = params.dataset
    sizes = {"train": config.train_prompts, "validation": config.validation_prompts, "test": config.test_prompts}
    if config.source != "simulated":
        return
    for split, size in sizes.items():
        held = sum(len(pool) for pool in prompts_of(split).values())
        if size > held:
            what = f"{size} prompts of {split} are asked for; the emoji world has {held}"
            yield LpoError(what, f"params.yaml: dataset.{split}_prompts", f"lower it to {held}")


def imported_captions(params: Params, split: str) -> list[str]:
    """Captions of an imported folder; none where `source` says what is wrong with it."""
    folder = Path(str(params.dataset.path))
    held = [path for path in folder.glob("*.parquet") if schema.split_of(path) == split]
    return list(schema.read_captions(folder, split).dropna()) if held else []


def prompts_of_split(params: Params, chain: Sequence[str], split: str) -> tuple[float, str]:
    """(how many prompts a split has, or will have at most; the file or parameter that says so)."""
    config = params.dataset
    if "dataset" not in chain:
        if not paths.PROMPTS.exists():
            return math.inf, str(paths.PROMPTS)  # `inputs` says that it is missing
        return int((pd.read_parquet(paths.PROMPTS, columns=["split"])["split"] == split).sum()), str(paths.PROMPTS)
    size = int(getattr(config, f"{split}_prompts"))
    here = f"params.yaml: dataset.{split}_prompts"
    if config.prompts is not None and Path(config.prompts).is_file():
        count = int((read_named(config.prompts)[0]["split"] == split).sum())
        if count:
            return min(size, count), config.prompts if count < size else here
    if config.source == "folder":
        count = len({plain(caption) for caption in imported_captions(params, split)})
        return min(size, count), f"{config.path}, which has {count} captions of {split}" if count < size else here
    return size, here


def validation_prompts(params: Params, chain: Sequence[str]) -> Iterator[LpoError]:
    """tune chooses its checkpoint on tune.validation_prompts of them."""
    asked = params.tune.validation_prompts
    held, because = prompts_of_split(params, chain, "validation")
    if held < asked:
        what = f"tune.validation_prompts asks for {asked} prompts; the split validation has {held} at most"
        yield LpoError(what, because, f"lower tune.validation_prompts to {held}, or raise dataset.validation_prompts")
    trained, because = prompts_of_split(params, chain, "train")
    if not trained:
        yield LpoError("there are no training prompts", because, "name a file with prompts of train: dataset.prompts")


def evaluation_prompts(params: Params, chain: Sequence[str]) -> Iterator[LpoError]:
    """evaluate draws evaluate.prompts of them, and every judge must be able to read them."""
    config = params.evaluate
    if config.prompts_file is None:
        held, because = prompts_of_split(params, chain, "test")
        remedy = f"lower evaluate.prompts to {held}, or raise dataset.test_prompts"
        if "geneval" in config.judges:
            what = "the judge geneval needs prompts with tasks (tag, include), and no file of prompts is named"
            yield LpoError(what, "params.yaml: evaluate.prompts_file", "name GenEval's evaluation_metadata.jsonl")
    elif config.prompts_file.startswith(HUB):
        return  # models.evaluation_prompt_file asks whether it is there
    else:
        if not Path(config.prompts_file).is_file():
            return  # models.evaluation_prompt_file says so
        table = read_prompts(config.prompts_file)[0]
        held, because, remedy = len(table), config.prompts_file, "lower evaluate.prompts, or name a longer file"
        yield from _readable_by_judges(params, table)
    if held < config.prompts:
        what = f"evaluate.prompts asks for {config.prompts} prompts; there are {held} at most"
        yield LpoError(what, because, remedy)


def _readable_by_judges(params: Params, table: pd.DataFrame) -> Iterator[LpoError]:
    asked, file = table.head(params.evaluate.prompts), str(params.evaluate.prompts_file)
    if "emoji" in params.evaluate.judges:
        foreign = [prompt for prompt in asked["prompt"] if not _in_grammar(prompt)]
        if foreign:
            what = f"{len(foreign)} of {len(asked)} prompts describe no emoji scene, such as {foreign[0]!r}"
            yield LpoError(what, file, "name other judges in evaluate.judges, or prompts of the emoji world")
    without = int(asked["task"].isna().sum())
    if "geneval" in params.evaluate.judges and without:
        what = f"{without} of {len(asked)} prompts have no GenEval task (tag, include)"
        yield LpoError(what, file, "leave geneval out of evaluate.judges, or name evaluation_metadata.jsonl")


def _in_grammar(prompt: str) -> bool:
    try:
        parse(prompt)
    except KeyError:
        return False
    return True


def scorers(params: Params, chain: Sequence[str]) -> Iterator[LpoError]:
    """The small scorers have seen emoji scenes of 32 pixels. They would score photographs too, and mean nothing."""
    from lpo.preflight.models import pixels

    config, where = params.score, f"params.yaml: score.scorers: {params.score.scorers}"
    remedy = "set score.scorers to published, or import scores: lpo data scores"
    validators = params.tune.validators or config.scorers
    if "tune" in chain and validators != "published" and (side := pixels(params.model)) not in (None, CANVAS):
        what = f"these scorers, which choose the checkpoint, read {CANVAS} pixels; {params.model.path} draws {side}"
        asked = "set tune.validators to null and score.scorers to published"
        yield LpoError(what, f"params.yaml: tune.validators: {validators}" if params.tune.validators else where, asked)
    if config.scorers == "published":
        return
    if "score" not in chain or config.table is not None or params.filter.strategy == "none":
        return
    seen = _side_of_pictures(params) if params.dataset.source == "folder" else None
    if params.dataset.source not in ("simulated", "folder"):
        what = f"these scorers have seen only emoji scenes; dataset.source is {params.dataset.source}"
        yield LpoError(what, where, remedy)
    elif seen is not None and seen != (CANVAS, CANVAS):
        what = f"these scorers read {CANVAS} pixels; the pictures of {params.dataset.path} have {seen[0]}×{seen[1]}"
        yield LpoError(what, where, remedy)


def _side_of_pictures(params: Params) -> tuple[int, int] | None:
    """Width and height of the first picture of an imported folder; None where none can be read."""
    for shard in sorted(Path(str(params.dataset.path)).glob("*.parquet")):
        for row in pq.ParquetFile(shard).iter_batches(1, columns=[schema.IMAGES[0]]):
            encoded = row.column(0)[0].as_py()
            return decode_picture(encoded).size if encoded and not image_problem(encoded) else None
    return None


def score_table(params: Params, chain: Sequence[str]) -> Iterator[LpoError]:
    """An imported table of scores must be what was imported."""
    yield from ()
    if params.score.table is not None and "score" in chain:
        index.check(Path(params.score.table), f"lpo data scores TABLE --out {params.score.table}")


def captions(params: Params, chain: Sequence[str]) -> Iterator[LpoError]:
    """Captions that the model cannot read to their end must be few, where filter.long_captions quarantines them."""
    config, folder = params.filter, str(params.dataset.path)
    if params.dataset.source != "folder" or config.long_captions == "cut" or not Path(params.model.path).is_dir():
        return
    found = [caption for split in SPLITS for caption in imported_captions(params, split)]
    if not 0 < len(found) <= MOST_CAPTIONS:
        return
    tokens = token_counter(params.model.path, config.max_tokens)
    longer = sum(length > tokens.limit for length in tokens.count(found))
    if longer > config.max_quarantined * len(found):
        what = f"{longer} of {len(found)} captions are longer than the model reads: it is {tokens.model}"
        remedy = "set filter.long_captions to cut, raise filter.max_quarantined, or choose another model"
        yield LpoError(what, folder, remedy)
