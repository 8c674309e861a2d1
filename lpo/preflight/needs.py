"""What every stage needs: functions that yield an `LpoError` for each thing that is wrong.

They read parameters, configurations and file names, and load no weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from lpo.config import Params
from lpo.errors import LpoError
from lpo.preflight import data, machine, models, policy

Need = Callable[[Params, Sequence[str]], Iterator[LpoError]]  # (parameters, the stages that will run)

NEEDS: dict[str, tuple[Need, ...]] = {
    "dataset": (data.source, data.prompt_counts, data.captions, models.base, models.data_set, models.steps),
    "score": (data.scorers, data.score_table, models.scorer_files),
    "filter": (models.base,),
    "encode": (models.base, models.latents),
    "reward": (models.base, models.latents, models.reward_sources),
    "tune": (
        models.base, models.steps, models.policy_reward, policy.method, policy.adapter_timesteps, models.scorer_files,
        data.scorers, data.validation_prompts,
    ),
    "evaluate": (
        models.base, models.steps, models.tuned, policy.adapter_timesteps, models.promoted, models.judges,
        models.evaluation_prompt_file, data.evaluation_prompts,
    ),
    "report": (),
}  # fmt: skip
EVERY: tuple[Need, ...] = (data.inputs, machine.device, machine.memory, machine.disk, machine.outputs)


def of_chain(chain: Sequence[str]) -> list[Need]:
    """The needs of these stages, each once."""
    return [*dict.fromkeys(need for stage in chain for need in NEEDS[stage]), *EVERY]
