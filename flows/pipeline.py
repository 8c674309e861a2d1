"""The flow `lpo`: the whole pipeline, on demand (lpo/full) or every night (lpo/nightly)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from pydantic import BaseModel, ConfigDict, Field

from lpo.config import load_params
from lpo.errors import LpoError
from tasks import nightly, reproduce, tracked
from tasks.dispatch import check_workers, place_of, run_stages
from tasks.graph import Stage, before, read_graph, select
from tasks.publish import notify, publish
from tasks.workspace import ROOT, STATE, has_remote, locked, overridden, run_workspace


class Stages(BaseModel):
    """The stages of a run: {"from": NAME, "until": NAME}. Without a bound, all stages on that side."""

    model_config = ConfigDict(populate_by_name=True, extra="forbid")
    first: str | None = Field(default=None, alias="from")
    until: str | None = None


def notify_of_failure(flow: Any, flow_run: Any, state: Any) -> None:
    notify(f"lpo run {flow_run.name}: {state.name.lower()}", state.message or "")


@flow(name="lpo", on_failure=[notify_of_failure], on_crashed=[notify_of_failure])
def lpo(
    stages: Stages = Stages(),  # noqa: B008 - never changed
    params: list[str] = [],  # noqa: B006 - never changed
    method: str | None = None,
    force: bool = False,
    promote: bool = False,
    ingest: bool = False,
) -> Any:
    """Bring the pipeline up to date: run every stage whose inputs or parameters changed.

    Args:
        stages: {"from": NAME, "until": NAME}. By default every stage.
        params: overrides, each written section.key=value as for `dvc exp run -S`. The run then works in a copy.
        method: short for the override tune.method=METHOD.
        force: run the stages even if nothing changed.
        promote: apply the gate of params.yaml to the result, and promote it if it passes.
        ingest: first read new pairs from the inbox, as lpo/nightly does.
    """
    logger = get_run_logger()
    if later := nightly.later_night():
        return Completed(name="Missed", message=f"missed; the night {later} does this work")
    changes = [*params, *([f"tune.method={method}"] if method else [])]
    graph, selected = check(stages, changes, promote, ingest)

    def waiting(holder: str) -> None:
        logger.info("waiting for the run %s, which works in this clone", holder)

    with locked(STATE / "run.lock", str(flow_run.name), waiting):
        reproduce.remove_broken_lock(ROOT)
        if promote and load_params(ROOT / "params.yaml").promote.people.votes:
            decide_by_votes()
        if ingest:
            logger.info("ingested: %s", nightly.ingest(ROOT))
        tracked.keep(ROOT)
        folder = run_workspace(changes)
        if folder != ROOT:
            reproduce.remove_broken_lock(folder)
            tracked.match(folder)
        if has_remote():
            place_of(folder)  # raises if it is too large to send, before anything starts
        changed = reproduce.status(folder)
        outcomes = run_stages(graph, selected, changed, folder, force)
        failed = [name for name, outcome in outcomes.items() if outcome.how == "failed"]
        moved = [name for name, outcome in outcomes.items() if outcome.how not in ("unchanged", "skipped")]
        # Even if nothing changed: a night that was interrupted may not have decided yet.
        decision = decide(folder, bool(moved)) if promote and not failed else None
        publish(outcomes, folder, decision)
    if failed:
        return Failed(message="\n".join(outcomes[name].message for name in failed))
    if not moved:
        return Completed(message="nothing to do: every stage is up to date")
    return Completed(message=f"done: {', '.join(f'{name} {outcomes[name].how}' for name in moved)}")


def check(stages: Stages, changes: Sequence[str], promote: bool, ingest: bool) -> tuple[dict[str, Stage], list[str]]:
    """The graph, and the stages of this run. Whatever can be checked before anything starts is checked here.

    Raises:
        LpoError: if a stage or parameter is unknown, a value is wrong, or an input, queue or limit is missing.
    """
    graph = read_graph(ROOT)
    selected = select(graph, stages.first, stages.until)
    before_text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    text = overridden(before_text, changes)
    if (promote or ingest) and text != before_text:
        what = "promote and ingest" if promote and ingest else "promote" if promote else "ingest"
        raise LpoError(
            f"{what} cannot be combined with overrides: a promoted model must match params.yaml",
            "parameter params",
            "change params.yaml, then run without overrides",
        )
    if promote and "evaluate" not in selected:
        raise LpoError("promote needs the stage evaluate", "parameter stages", '"until": "evaluate" or later')
    check_inputs(graph, selected)
    check_workers([graph[name] for name in selected if not graph[name].frozen])
    return graph, selected


def check_inputs(graph: dict[str, Stage], selected: Sequence[str], root: Path = ROOT) -> None:
    """Check that outputs of stages that this run leaves out are there. A remote could still supply them.

    Raises:
        LpoError: if outputs are missing and there is no remote.
    """
    if has_remote():
        return
    left_out = (before(graph, selected) - set(selected)) | {name for name in selected if graph[name].frozen}
    missing = [
        f"{out} (stage {name})" for name, outs in reproduce.missing(root, sorted(left_out)).items() for out in outs
    ]
    if missing:
        raise LpoError(f"missing: {', '.join(missing)}", str(root), "begin with an earlier stage, or without `from`")


def decide_by_votes() -> None:
    """Apply the gate before the stages run: today's votes are about the model that they may replace."""
    try:
        get_run_logger().info("votes: %s", decide(ROOT, False)["reason"])
    except LpoError as error:  # no model yet, or a night that ended before its figures
        get_run_logger().info("nothing to decide by votes yet: %s", error.what)


def decide(folder: Path, moved: bool) -> dict[str, Any]:
    """Apply the gate, add a promoted model to DVC, and send a message if there is news."""
    decision = nightly.promote(folder)
    if decision["promoted"]:
        tracked.keep(folder)
    if decision["promoted"] or moved:
        outcome = "promoted" if decision["promoted"] else "waits for votes" if decision["waits"] else "refused"
        notify(f"{decision['name']}: {outcome}", decision["reason"])
    return decision
