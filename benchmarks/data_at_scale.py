"""What data of real size costs: importing rows with images, and the contract with MPCF. Times and peak resident memory.

    python benchmarks/data_at_scale.py import --rows 200000      a table with image bytes -> a source folder
    python benchmarks/data_at_scale.py filter --rows 600000      contract and MPCF; images are not decoded here

Images are small by default: what is measured is rows; `--image-bytes 100000` gives them a real size. Each mode runs in
a process of its own, for its peak is its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP = 400 * 2**20  # bytes of images at most, and 100,000 rows
ROOT = Path(__file__).resolve().parents[1]


def write_table(path: Path, rows: int, image_bytes: int, rng: np.random.Generator) -> None:
    """Pairs in few large row groups, which is the hardest way to read them; random bytes do not compress."""
    schema = pa.schema({"caption": pa.string(), "jpg_0": pa.binary(), "jpg_1": pa.binary(), "label_0": pa.float64()})
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        at_once = min(100_000, ROW_GROUP // (2 * image_bytes))
        for start in range(0, rows, at_once):
            size = min(at_once, rows - start)
            bytes_ = rng.bytes(2 * size * image_bytes)
            images = [bytes_[i * image_bytes : (i + 1) * image_bytes] for i in range(2 * size)]
            table = pa.table(
                {
                    "caption": [f"a prompt with number {start + i} and some words" for i in range(size)],
                    "jpg_0": images[:size], "jpg_1": images[size:], "label_0": rng.integers(0, 3, size) / 2,
                },
                schema=schema,
            )  # fmt: skip
            writer.write_table(table, row_group_size=size)


def import_rows(rows: int, image_bytes: int) -> dict[str, float]:
    from lpo.commands.imports import import_pairs
    from lpo.config import load_params

    params = load_params(ROOT / "params.yaml")
    folder = Path.cwd()
    if not os.fork():  # the writer's memory is not the importer's
        write_table(folder / "mine.parquet", rows, image_bytes, np.random.default_rng(0))
        os._exit(0)
    os.wait()
    before, start = peak(), now()
    counts = import_pairs(params, [folder / "mine.parquet"], None, Path("data/sources/mine"), {})
    seconds, processor = now() - start
    return {
        "seconds": seconds,
        "processor_seconds": processor,
        "peak_mb": peak(),
        "peak_before_mb": before,
        "pairs": sum(counts["pairs"].values()),
    }


def filter_rows(rows: int) -> dict[str, float]:
    from dataclasses import asdict

    from lpo.config import load_params
    from lpo.data.contract import check
    from lpo.data.limits import Limits
    from lpo.data.tokens import Tokens
    from lpo.preference.mpcf import gaps_from_scores, mpcf

    config = load_params(ROOT / "params.yaml").filter
    rng = np.random.default_rng(0)
    numbers = np.arange(rows)
    label = rng.integers(0, 3, rows) / 2
    splits = np.where(numbers % 50 == 0, "validation", np.where(numbers % 50 == 1, "test", "train"))
    pairs = pd.DataFrame(
        {
            "split": splits, "file": "data/pairs/x.parquet", "row": numbers, "ranking_id": pd.array(numbers, "Int64"),
            "caption": [f"{split} prompt {i // 8}" for i, split in enumerate(splits)],
            "image_0_uid": [f"{i}a" for i in numbers], "image_1_uid": [f"{i}b" for i in numbers], "label_0": label,
            "label_1": 1 - label, "has_label": pd.array([True] * rows, "boolean"),
            "are_different": pd.array([True] * rows, "boolean"),
            "num_example_per_prompt": pd.array([8] * rows, "Int64"),
        }
    ).astype(dict.fromkeys(("split", "caption", "image_0_uid", "image_1_uid"), "str"))  # fmt: skip
    problem = pd.Series([None] * rows, dtype="str")
    images = pd.DataFrame(
        {"image_0_digest": pairs["image_0_uid"], "image_1_digest": pairs["image_1_uid"], "image_0_problem": problem,
         "image_1_problem": problem}
    )  # fmt: skip
    uids = pd.concat([pairs["image_0_uid"], pairs["image_1_uid"]], ignore_index=True)
    scores = pd.DataFrame(
        {"image_uid": uids, "aesthetic": rng.normal(5, 1, 2 * rows), "clip": rng.normal(0.3, 0.05, 2 * rows),
         "vqa": rng.random(2 * rows)}
    )  # fmt: skip
    start = now()
    tokens = Tokens(lambda captions: [8] * len(captions), config.max_tokens, "none")
    verdict = check(pairs, images, scores, Limits(tokens, cut=False, must_differ=True))
    contract = now() - start
    good = pairs[verdict.reasons == ""].reset_index(drop=True)
    start = now()
    gaps = gaps_from_scores(good, scores)
    decided = mpcf(gaps, good["label_0"] == good["label_1"], asdict(config.strategies["2"]), asdict(config.ties))
    mpcf_took = now() - start
    return {
        "contract_seconds": contract[0], "contract_processor_seconds": contract[1], "mpcf_seconds": mpcf_took[0],
        "mpcf_processor_seconds": mpcf_took[1], "kept": int(decided["keep"].sum()),
        "quarantined": rows - len(good), "peak_mb": peak(),
    }  # fmt: skip


def now() -> np.ndarray:
    """Seconds of the clock, and of the processor, which a busy machine does not stretch."""
    return np.array([time.perf_counter(), time.process_time()])


def peak() -> float:
    """Peak resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["import", "filter"])
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--image-bytes", type=int, default=2048)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        found = (
            import_rows(arguments.rows, arguments.image_bytes)
            if arguments.mode == "import"
            else filter_rows(arguments.rows)
        )
        os.chdir(ROOT)
    print(json.dumps({"mode": arguments.mode, "rows": arguments.rows} | {k: round(v, 1) for k, v in found.items()}))


if __name__ == "__main__":
    main()
