"""The flow `lpo`: the whole pipeline, by hand (lpo/full) or every night (lpo/nightly)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from pydantic import BaseModel, ConfigDict, Field

from lpo.errors import LpoError
from tasks import nightly, reproduce, tracked
from tasks.dispatch import check_workers, place_of, run_stages
from tasks.graph import Stage, before, read_graph, select
from tasks.publish import notify, publish
from tasks.workspace import ROOT, STATE, has_remote, locked, overridden, run_workspace


class Stages(BaseModel):
    """Which stages a run looks at: {"from": NAME, "until": NAME}; without a bound all on that side."""

    model_config = ConfigDict(populate_by_name=True, extra="forbid")
    first: str | None = Field(default=None, alias="from")
    until: str | None = None


def told_of_failure(flow: Any, flow_run: Any, state: Any) -> None:
    notify(f"lpo run {flow_run.name}: {state.name.lower()}", state.message or "")


@flow(name="lpo", on_failure=[told_of_failure], on_crashed=[told_of_failure])
def lpo(
    stages: Stages = Stages(),  # noqa: B008 - it is never changed
    params: list[str] = [],  # noqa: B006 - the same
    method: str | None = None,
    force: bool = False,
    promote: bool = False,
    ingest: bool = False,
) -> Any:
    """Bring the pipeline up to date: every stage whose inputs or parameters changed, each once.

    Args:
        stages: {"from": NAME, "until": NAME}; without them every stage.
        params: overrides as section.key=value, spelt as for `dvc exp run -S`. The run then works in a copy.
        method: the same as tune.method=METHOD.
        force: run the stages although nothing changed.
        promote: hold the result against the gate of params.yaml, and promote it if it passes.
        ingest: take in new pairs from the inbox first; the nightly does.
    """
    logger = get_run_logger()
    changes = [*params, *([f"tune.method={method}"] if method else [])]
    graph, selected = check(stages, changes, promote, ingest)

    def waiting(holder: str) -> None:
        logger.info("waiting: the run %s works in this clone", holder)

    with locked(STATE / "run.lock", str(flow_run.name), waiting):
        reproduce.mend_lock(ROOT)
        if ingest:
            logger.info("taken in: %s", nightly.ingest(ROOT))
        tracked.keep(ROOT)
        folder = run_workspace(changes)
        if folder != ROOT:
            reproduce.mend_lock(folder)
            tracked.match(folder)
        if has_remote():
            place_of(folder)  # refuses what cannot be sent, before anything starts
        changed = reproduce.status(folder)
        outcomes = run_stages(graph, selected, changed, folder, force)
        failed = [name for name, outcome in outcomes.items() if outcome.how == "failed"]
        moved = [name for name, outcome in outcomes.items() if outcome.how not in ("unchanged", "skipped")]
        # Also if nothing moved: the decision of a night that was cut off is still due.
        decision = decide(folder, bool(moved)) if promote and not failed else None
        publish(outcomes, folder, decision)
    if failed:
        return Failed(message="\n".join(outcomes[name].message for name in failed))
    if not moved:
        return Completed(message="nothing new: every stage is up to date")
    return Completed(message=f"done: {', '.join(f'{name} {outcomes[name].how}' for name in moved)}")


def check(stages: Stages, changes: Sequence[str], promote: bool, ingest: bool) -> tuple[dict[str, Stage], list[str]]:
    """(graph, the stages to look at); everything that can be known to fail fails here.

    Raises:
        LpoError: if a stage or a parameter is unknown, a value is wrong, or something is missing that the run needs.
    """
    graph = read_graph(ROOT)
    selected = select(graph, stages.first, stages.until)
    before_text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    text = overridden(before_text, changes)
    if (promote or ingest) and text != before_text:
        what = "promote and ingest" if promote and ingest else "promote" if promote else "ingest"
        raise LpoError(
            f"{what} with overrides is not supported: what is promoted must be what params.yaml says",
            "parameter params",
            "change params.yaml, then run without overrides",
        )
    if promote and "evaluate" not in selected:
        raise LpoError("promote needs the stage evaluate", "parameter stages", "let the run reach it")
    check_inputs(graph, selected)
    check_workers([graph[name] for name in selected if not graph[name].frozen])
    return graph, selected


def check_inputs(graph: dict[str, Stage], selected: Sequence[str], root: Path = ROOT) -> None:
    """What the first stages read must be there, if no stage of this run and no remote brings it."""
    if has_remote():
        return
    outside = before(graph, selected) - set(selected)
    frozen = {name for name in selected if graph[name].frozen}
    missing = [
        f"{out} (stage {name})"
        for name in sorted(outside | frozen)
        for out in graph[name].outs
        if not (root / out).exists()
    ]
    if missing:
        raise LpoError(
            f"not there: {', '.join(missing)}", str(root), "begin with an earlier stage: leave `from` out, or set it so"
        )


def decide(folder: Path, moved: bool) -> dict[str, Any]:
    """Hold the result against the gate, keep what is promoted, and tell about it unless it is no news."""
    decision = nightly.promote(folder)
    if decision["promoted"]:
        tracked.keep(folder)
    if decision["promoted"] or moved:
        notify(f"{decision['name']}: {'promoted' if decision['promoted'] else 'refused'}", decision["reason"])
    return decision
