"""The data contract: what a pair and a score must be before anything is learned from them.

    verdict = check(pairs, images, scores, limits)
    bad = pairs[verdict.reasons != ""]

Great Expectations is the one source of truth. What a rule cannot see in a single cell (tokens of a caption, splits that
share it, contents behind a uid) is measured into a column first; the rules are expectations about columns; the reasons
of a row are read from the rows that an expectation names. So the Data Docs, the counts and the rows cannot disagree.

Pairs have N rows, images are measured by `lpo.data.schema.inspect_images`, scores have one row an image.

A row that repeats an earlier one is left out and the earlier one kept, here as in the inbox (`lpo.data.inbox`). It is
not a mistake, so `Verdict.too_many` does not count it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lpo.data.captions import plain
from lpo.data.limits import Limits
from lpo.data.schema import SPLITS, UIDS
from lpo.errors import LpoError

os.environ["GX_ANALYTICS_ENABLED"] = "False"  # it is read once, by the next import
import great_expectations as gx  # noqa: E402
import great_expectations.expectations as gxe  # noqa: E402
from great_expectations.data_context.types.base import ProgressBarsConfig  # noqa: E402

# Wide enough for every scorer in use: the aesthetic predictor is nominally 0..10 but unbounded, clip is a cosine or 100
# times it, vqa a probability. NaN is a rule of its own; infinities are outside.
SCORE_RANGES = {"aesthetic": (-20.0, 30.0), "clip": (-100.0, 100.0), "vqa": (0.0, 1.0)}
TYPES = {
    "split": "str", "ranking_id": "int64", "caption": "str", "image_0_uid": "str", "image_1_uid": "str",
    "label_0": "float64", "label_1": "float64", "has_label": "bool", "are_different": "bool",
    "num_example_per_prompt": "int64",
}  # fmt: skip
QUOTED = 120  # characters of a value inside a reason
COPY = "it repeats an earlier row, which is kept"


@dataclass(frozen=True)
class Verdict:
    """reasons: str (N,), all that is wrong with a row joined by "; ", "" for a good one; counts: rows by reason.

    cut: bool (N,), good rows whose caption the model reads only in part.
    """

    reasons: pd.Series
    counts: dict[str, int]
    results: list[Any]  # validation results, for the Data Docs
    summary: dict[str, Any]
    cut: pd.Series

    def too_many(self, limit: float) -> str:
        """What to say if more than the share `limit` of the rows is bad, "" if not."""
        bad = int(((self.reasons != "") & (self.reasons != COPY)).sum())
        if bad <= limit * len(self.reasons):
            return ""
        counts = "; ".join(f"{reason}: {count}" for reason, count in self.counts.items())
        allowed = f"more than the {limit:.2%} that filter.max_quarantined allows"
        return f"{bad} of {len(self.reasons)} pairs break the data contract, {allowed} ({counts})"


def check(pairs: pd.DataFrame, images: pd.DataFrame, scores: pd.DataFrame | None, limits: Limits) -> Verdict:
    """Hold pairs, their images and their scores to the contract.

    Args:
        pairs: as `read_pairs` gives them, with an index 0..N-1.
        images: image_{0,1}_problem and image_{0,1}_digest, the same rows.
        scores: image_uid, aesthetic, clip, vqa; None where no strategy needs them.

    Raises:
        LpoError: if a table as a whole breaks the contract: an empty split, no scores, a column of another type.
    """
    frame = measure(pairs, images, limits.tokens.count)
    results = []
    if scores is not None:
        scores = scores.reset_index(drop=True)
        scored = _validate("scores", scores, score_rules(), "data/scores.parquet")
        faults = _reasons(scored, scores).groupby(scores["image_uid"]).first()
        for k, uid in enumerate(UIDS):
            found = frame[uid].map(faults).fillna("there are none")
            frame[f"image_{k}_scores_problem"] = found.where((found != "") & frame[uid].notna())
        results = [scored]
    checked = _validate("pairs", frame, pair_rules(limits, scored=scores is not None), "data/pairs")
    return _verdict(frame, checked, [checked, *results], 0 if scores is None else len(scores), limits)


def check_early(pairs: pd.DataFrame, limits: Limits) -> Verdict:
    """Hold pairs to what can be known of them before an image is looked at or scored. Raises as `check`."""
    nothing = pd.Series([None] * len(pairs), index=pairs.index, dtype="str")
    images = {f"image_{k}_digest": pairs[uid] for k, uid in enumerate(UIDS)}
    images |= {f"image_{k}_problem": nothing for k in (0, 1)}
    frame = measure(pairs, pd.DataFrame(images), limits.tokens.count)
    checked = _validate("pairs", frame, pair_rules(limits, scored=False), "data/pairs")
    return _verdict(frame, checked, [checked], 0, limits)


def _verdict(frame: pd.DataFrame, checked: Any, results: list[Any], scores: int, limits: Limits) -> Verdict:
    reasons = _reasons(checked, frame)
    rules = [result for suite in results for result in suite.results]
    counts = {
        rule.expectation_config.meta["reason"]: int(rule.result["unexpected_count"])
        for rule in checked.results
        if rule.result.get("unexpected_count")
    }
    summary = {
        "pairs": len(frame),
        "scores": scores,
        "expectations": {"evaluated": len(rules), "met": sum(bool(rule.success) for rule in rules)},
        "quarantined": int((reasons != "").sum()),
        "quarantined_by": counts,
        "great_expectations": gx.__version__,
    }
    cut = (reasons == "") & (frame["caption_tokens"] > limits.tokens.limit).fillna(False).astype(bool)
    return Verdict(reasons, counts, results, summary, cut)


def check_new(pairs: pd.DataFrame, images: pd.DataFrame, held_out: Mapping[str, str], limits: Limits) -> pd.Series:
    """What is wrong with each row of pairs that are to enter train, str (N,), "" for a good one.

    The rules are those of `check`, less what a new pair cannot have yet (scores, pairs of the other splits), and one
    more: its caption is none of `held_out`, plain captions (see `plain`) with the split that each belongs to.
    """
    frame = measure(pairs, images, limits.tokens.count)
    frame["caption_held_out"] = pairs["caption"].map(lambda text: held_out.get(plain(text)), na_action="ignore")
    frame["caption_held_out"] = frame["caption_held_out"].astype("str")
    held = _null("caption_held_out", "the caption is held out")
    expected = [*pair_rules(limits, splits=(), scored=False), held]
    return _reasons(_validate("pairs", frame, expected, "the inbox"), frame)


def measure(pairs: pd.DataFrame, images: pd.DataFrame, count_tokens: Callable[[list[str]], list[int]]) -> pd.DataFrame:
    """Pairs with a column for all that cannot be seen in one cell. Every measure is null where its subject is."""
    frame = pairs.copy()
    low, high = (getattr(pairs[UIDS], side)(axis=1) for side in ("min", "max"))
    frame["same_image"] = pairs[UIDS[0]] == pairs[UIDS[1]]
    pair = pd.DataFrame({"ranking_id": pairs["ranking_id"], "low": low, "high": high})
    turned = (pairs[UIDS[0]] != low).to_numpy(bool)
    told = pairs[["split", "caption", "label_0", "label_1"]].astype(object)
    told.loc[turned, ["label_0", "label_1"]] = pairs.loc[turned, ["label_1", "label_0"]].to_numpy()
    same = pd.concat([pair, told], axis=1)
    frame["is_copy"] = same.duplicated() & pair.notna().all(axis=1)
    statement = same.groupby(list(same.columns), dropna=False).ngroup()
    frame["statements"] = statement.groupby([pair[name] for name in pair]).transform("nunique")
    captions = pairs["caption"].dropna().unique().tolist()
    frame["caption_tokens"] = pairs["caption"].map(dict(zip(captions, count_tokens(captions), strict=True)))
    alike = pairs["caption"].map({caption: plain(caption) or None for caption in captions})
    frame["caption_splits"] = pairs.groupby(alike)["split"].transform("nunique")
    sides = [
        pd.DataFrame({"uid": pairs[uid], "digest": images[f"image_{k}_digest"], "caption": pairs["caption"]})
        for k, uid in enumerate(UIDS)
    ]
    both = pd.concat(sides)
    contents, described = (both.groupby("uid")[name].nunique() for name in ("digest", "caption"))
    for k, uid in enumerate(UIDS):
        frame[f"image_{k}_contents"] = pairs[uid].map(contents)
        frame[f"image_{k}_captions"] = pairs[uid].map(described)
        frame[f"image_{k}_problem"] = images[f"image_{k}_problem"]
    whole = [name for name in frame.columns.difference(pairs.columns) if pd.api.types.is_float_dtype(frame[name])]
    return frame.astype(dict.fromkeys(whole, "Int64"))  # counts beside a hole: 81, not 81.0


def pair_rules(limits: Limits, splits: Sequence[str] = SPLITS, scored: bool = True) -> list[Any]:
    """What is expected of pairs: of the table first, then of every row. `splits` must have pairs."""
    table = [gxe.ExpectColumnToExist(column=name, meta={"reason": f"{name} is missing"}) for name in TYPES]
    table += [
        gxe.ExpectColumnValuesToBeOfType(column=name, type_=kind, meta={"reason": f"{name} is not {kind}"})
        for name, kind in TYPES.items()
    ]
    holds = gxe.ExpectColumnDistinctValuesToContainSet
    table += [holds(column="split", value_set=[s], meta={"reason": f"the split {s} has no pairs"}) for s in splits]
    rows = [_filled(name) for name in TYPES]
    rows += [
        gxe.ExpectColumnValuesToMatchRegex(column="caption", regex=r"\S", meta={"reason": "caption is empty"}),
        *(gxe.ExpectColumnValuesToNotBeInSet(column=u, value_set=[""], meta={"reason": f"{u} is empty"}) for u in UIDS),
        *([] if limits.cut else [_at_most("caption_tokens", limits.tokens.limit, limits.too_long)]),
        _at_most("caption_splits", 1, "the caption is in several splits"),
        _at_most("statements", 1, "the pair is there several times under one ranking_id and does not say the same"),
        _one_of("is_copy", [False], COPY),
        _one_of("same_image", [False], "image_0_uid and image_1_uid are the same"),
        _one_of("has_label", [True], "has_label is false"),
        *([_one_of("are_different", [True], "are_different is false")] if limits.must_differ else []),
        *(_share(name) for name in ("label_0", "label_1")),
        gxe.ExpectMulticolumnSumToEqual(
            column_list=["label_0", "label_1"],
            sum_total=1,
            ignore_row_if="any_value_is_missing",
            meta={"reason": "the labels do not sum to 1"},
        ),
        _between("num_example_per_prompt", 1, None, "num_example_per_prompt is below 1"),
    ]
    for k in (0, 1):
        rows += [
            _null(f"image_{k}_problem", f"image_{k} is unusable"),
            *([_null(f"image_{k}_scores_problem", f"image_{k} has no usable scores")] if scored else []),
            _at_most(f"image_{k}_contents", 1, f"image_{k}_uid stands for several images"),
            _at_most(f"image_{k}_captions", 1, f"image_{k}_uid stands under several captions"),
        ]
    return table + rows


def score_rules() -> list[Any]:
    """What is expected of scores."""
    empty = gxe.ExpectTableRowCountToBeBetween(min_value=1, meta={"reason": "no image has scores"})
    unique = gxe.ExpectColumnValuesToBeUnique(column="image_uid", meta={"reason": "scored several times"})
    rules = [empty, _filled("image_uid"), unique]
    for name, (low, high) in SCORE_RANGES.items():
        rules.append(gxe.ExpectColumnValuesToNotBeNull(column=name, meta={"reason": f"{name} is NaN or missing"}))
        rules.append(_between(name, low, high, f"{name} is not in {low:g}..{high:g}"))
    return rules


def _filled(column: str) -> Any:
    return gxe.ExpectColumnValuesToNotBeNull(column=column, meta={"reason": f"{column} is missing"})


def _between(column: str, low: float | None, high: float | None, reason: str) -> Any:
    meta = {"reason": reason, "tell": True}  # tell the value too, which no table shows beside the reason
    return gxe.ExpectColumnValuesToBeBetween(column=column, min_value=low, max_value=high, meta=meta)


def _share(column: str) -> Any:
    meta = {"reason": f"{column} is not in 0..1"}
    return gxe.ExpectColumnValuesToBeBetween(column=column, min_value=0, max_value=1, meta=meta)


def _at_most(column: str, most: int, reason: str) -> Any:
    return _between(column, None, most, reason)


def _one_of(column: str, values: list[Any], reason: str) -> Any:
    return gxe.ExpectColumnValuesToBeInSet(column=column, value_set=values, meta={"reason": reason})


def _null(column: str, reason: str) -> Any:
    return gxe.ExpectColumnValuesToBeNull(column=column, meta={"reason": reason, "tell": True})


def _validate(name: str, frame: pd.DataFrame, rules: list[Any], where: str) -> Any:
    """The validation result of a table. Raises LpoError if a rule about the whole table does not hold."""
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("pandas").add_dataframe_asset(name)
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame})
    suite = gx.ExpectationSuite(name, expectations=rules)
    form = {"result_format": "COMPLETE", "return_unexpected_index_query": False}
    result = batch.validate(suite, result_format=form)
    failed = [r for r in result.results if not r.success and "unexpected_index_list" not in r.result]
    if failed:
        what = "; ".join(r.expectation_config.meta["reason"] + _raised(r) for r in failed)
        remedy = "correct the data; rows cannot be left out for this"
        raise LpoError(f"the data contract is broken: {what}", where, remedy)
    return result


def _raised(result: Any) -> str:
    """What an expectation raised while it was evaluated, if it did."""
    info = result.exception_info or {}
    found = [info] if "exception_message" in info else list(info.values())
    messages = [str(item["exception_message"]) for item in found if item.get("exception_message")]
    return f" ({'; '.join(messages)})" if messages else ""


def _reasons(result: Any, frame: pd.DataFrame) -> pd.Series:
    """What is wrong with each row, every reason of it."""
    reasons: dict[int, list[str]] = {}
    for rule in result.results:
        rows = rule.result.get("unexpected_index_list") or []  # all of them; unexpected_list ends after 200
        config = rule.expectation_config
        reason, tell = config.meta["reason"], "tell" in config.meta
        for row, value in zip(rows, frame.loc[rows, config.kwargs["column"]] if tell else rows, strict=True):
            reasons.setdefault(row, []).append(f"{reason}: {str(value)[:QUOTED]}" if tell else reason)
    joined = pd.Series({row: "; ".join(texts) for row, texts in reasons.items()}, dtype=str)
    return joined.reindex(frame.index, fill_value="")
