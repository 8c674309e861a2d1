"""evaluate: base, tuned and promoted model draw the same prompts; judges compare them -> data/evaluation, metrics.

Pictures and scores are kept in .checkpoints/evaluate/, outside of what DVC deletes: a killed run resumes where it
stopped, and only what is new is drawn or judged (lpo/evaluate/shards.py).
"""

from __future__ import annotations

from lpo import paths, resume
from lpo.config import Params
from lpo.evaluate.judges import check_judges, judges_of
from lpo.evaluate.metrics import evaluate_results, win_rate_rows
from lpo.evaluate.prompts import evaluation_prompts, pictures_of
from lpo.evaluate.reward_judge import reward_of
from lpo.evaluate.shards import collect, draw, forget, keep_pictures, score_parts
from lpo.evaluate.sides import identity, painter, sides_of
from lpo.families import device_of
from lpo.files import atomic_folder, write_json, write_parquet
from lpo.registry.ledger import PROMOTED, WEIGHTS, name_of
from lpo.resume import Share, announce
from lpo.sampling.parts import Workers, processes
from lpo.scorers.vlm import check_plan


def run(params: Params, share: Share | None = None) -> None:
    """Draw all sides, judge them with one judge after another, write results and metrics.

    Args:
        share: draw and judge only the parts of this share, and write no output.

    Raises:
        LpoError: before anything is drawn, if prompts, judges or one of the models are missing.
    """
    config, model = params.evaluate, params.model
    prompts, left_out = evaluation_prompts(config, paths.PROMPTS)
    tasks = {row.prompt: row.task for row in prompts.itertuples() if row.task is not None}
    check_judges(config, params.score, model, prompts["prompt"].tolist(), tasks)
    promoted = PROMOTED if (PROMOTED / WEIGHTS).exists() else None
    sides = sides_of(config, model, promoted)
    judges = judges_of(
        config, params.score, params.dataset.utility_weights, model, tasks, reward_of(paths.REWARD, model)
    )

    rows = pictures_of(prompts, config.images_per_prompt)
    if "vlm" in config.judges:
        check_plan(config.vlm, len(rows) * len({side.key for side in sides}))
    cache = resume.folder("evaluate", identity(config, model, str(device_of(model)), rows))
    announce(cache, share)
    forget(cache, {side.key for side in sides})
    with Workers(processes(device_of(model), model.path, *_scorers(params))) as workers:
        size = config.batch_size
        parts = {
            side.name: draw(cache / side.key, side.name, rows, size, workers, painter, (side, config, model), share)
            for side in sides
        }
        for judge in judges:
            score_parts(judge, list(dict.fromkeys(part for side in parts.values() for part in side)), workers)
    if share is not None:
        return

    results = collect(parts, judges)
    metrics = evaluate_results(results, config.judges, config.bootstrap, params.seed)
    if promoted is not None:
        metrics["promoted"] = {"name": name_of(promoted)} | metrics.get("promoted", {})
    with atomic_folder(paths.EVALUATION) as out:
        write_parquet(out / "results.parquet", results)
        keep_pictures(parts, out / "pictures")
        if config.prompts_file is not None:
            write_parquet(out / "left_out.parquet", left_out.rename_axis("row").reset_index())
            metrics["prompts_left_out"] = len(left_out)
    write_json(paths.plot("win_rates"), win_rate_rows(metrics))
    write_json(paths.metrics("evaluate"), metrics)


def _scorers(params: Params) -> list[str]:
    """What tells large judges from small ones: the scorers' folder where emoji alone judges."""
    return [params.score.scorers if params.evaluate.judges == ("emoji",) else "published"]
