"""dataset: a source -> data/pairs, data/prompts.parquet and data/left_out.parquet.

simulated               the embedded world's pairs, drawn with data/base
pickapic, pickapic_v2   Pick-a-Pic from the hub, or from a folder of its layout
hpdv2, hpdv3            HPDv2 and HPDv3, the same
folder                  what `lpo data import` made of your own table
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import asdict
from pathlib import Path

from lpo import paths, resume
from lpo.config import Params
from lpo.data import prompts
from lpo.data.contract import check_early
from lpo.data.limits import Limits, limits_of
from lpo.data.refused import refuse, table_of
from lpo.data.schema import read_pairs
from lpo.data.sources import convert, finish, left_table, pickapic, simulated
from lpo.data.sources.choose import parts_of, store_of
from lpo.families import device_of
from lpo.files import write_json, write_parquet
from lpo.paths import LEFT_OUT, PAIRS, PROMPTS
from lpo.sampling.parts import Workers, processes

log = logging.getLogger(__name__)


def run(params: Params) -> None:
    """Write the pairs of every split, the prompts, and what was left out of the source and why.

    Raises:
        LpoError: if the source is not here or damaged, a split gets no pairs or no prompts, or too many pairs break
            the data contract.
    """
    config = params.dataset
    if config.source == "simulated":
        with Workers(processes(device_of(params.model), params.model.path)) as workers:
            painter = simulated.painter_of(params.model, config, workers)
            metrics = simulated.write_pairs(PAIRS, config, painter, params.seed)
        write_parquet(PROMPTS, simulated.prompts_of_splits(config.prompts_by_split, params.seed))
        write_parquet(LEFT_OUT, left_table([]))
    else:
        metrics = _read_source(params)
    write_json(paths.metrics("dataset"), metrics)


def _read_source(params: Params) -> dict[str, object]:
    config, limits = params.dataset, limits_of(params.model.path, params.filter, params.dataset)
    named, left = prompts.read_named(config.prompts)  # before anything large is loaded
    store = store_of(config)
    folder = resume.folder("dataset", {"dataset": asdict(config), "source": store.identity()})
    counts = convert(parts_of(store, config), folder, config.limit, config.source)
    own = pickapic.prompts(store) if config.source in pickapic.REPOSITORIES else {}
    captions = _look(folder, limits, params.filter.max_quarantined)
    finish(counts, folder, PAIRS, LEFT_OUT, "dataset", left)
    metrics: dict[str, object] = {
        split: {"pairs": pairs, "ties": counts["ties"].get(split, 0)} for split, pairs in counts["pairs"].items()
    }
    table, doubled = prompts.choose(PAIRS, own, named, config.prompts_by_split, params.seed)
    write_parquet(PROMPTS, table)
    chosen = {str(split): int(count) for split, count in table["split"].value_counts().items()}
    shutil.rmtree(folder)
    more = {"captions": captions, "left_out": counts["left"]}
    return metrics | more | {"prompts": chosen | {"in_several_splits": doubled, "left_out": len(left)}}


def _look(folder: Path, limits: Limits, max_quarantined: float) -> dict[str, int]:
    """Hold the pairs to what can be known before they are scored, and count the captions that the model cuts.

    Raises:
        LpoError: if too many break the data contract. Scoring them first would cost hours and end the same way.
    """
    pairs = read_pairs(folder)
    verdict = check_early(pairs, limits)
    if what := verdict.too_many(max_quarantined):
        bad = verdict.reasons != ""
        refuse("dataset", table_of(pairs[bad], verdict.reasons[bad]), what, limits.remedy(verdict.counts))
    longer = int(verdict.cut.sum()) if limits.cut else verdict.counts.get(limits.too_long, 0)
    if longer:
        done = "are cut in training" if limits.cut else "will be quarantined by `lpo filter`"
        log.warning("%d of %d captions %s: the model is %s", longer, len(pairs), done, limits.tokens.model)
    return {"limit": limits.tokens.limit, "longer": longer}
