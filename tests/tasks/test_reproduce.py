"""Which failures of a command are retried, and what their messages say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks import reproduce
from tasks.process import Finished
from tasks.reproduce import OutOfMemory, StageFailed, Transient, make_share, remove_broken_lock, repro

EXITED = "ERROR: failed to reproduce 'reward': failed to run: lpo reward, exited with {}"


@pytest.mark.parametrize(
    ("lines", "code", "kind", "words"),
    [
        (
            ["ERROR: '/x' is busy, it is being blocked by:", "  (PID 1): dvc repro"],
            255,
            Transient,
            "another dvc process",
        ),
        (["ERROR: Unable to acquire lock."], 255, Transient, "another dvc process"),
        (["ERROR: unexpected error - Could not connect to the endpoint URL"], 255, Transient, "Local results are kept"),
        (["OSError: [Errno 28] No space left on device", EXITED.format(1)], 255, StageFailed, "disk is full"),
        (["2 mistakes in the parameters:", EXITED.format(2)], 255, StageFailed, "2 mistakes in the parameters"),
        (["torch.OutOfMemoryError: CUDA out of memory.", EXITED.format(1)], 255, OutOfMemory, "out of GPU memory"),
        ([EXITED.format(-9)], 255, StageFailed, "resumes from its last checkpoint"),
        ([], 137, StageFailed, "dvc was killed"),
        (["urllib3: Connection refused", EXITED.format(1)], 255, StageFailed, "failed"),
    ],
)
def test_each_failure_gets_its_kind_and_message(lines: list[str], code: int, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words) as caught:
        reproduce._check(Finished(code, lines), "reward")
    assert type(caught.value) is kind


def test_a_share_that_was_killed_is_retried_and_one_with_wrong_data_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = iter([137, 2, 0])
    monkeypatch.setattr(reproduce.process, "run", lambda *_: Finished(next(codes), ["a line"]))
    share = (tmp_path, "score", "2/4", lambda line: None, lambda percent, line: None)
    with pytest.raises(Transient, match="score 2/4: it was killed"):
        make_share(*share)
    with pytest.raises(StageFailed, match="score 2/4: the data or the parameters are wrong"):
        make_share(*share)
    make_share(*share)


def test_out_of_memory_is_retried_once_with_another_allocator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[str], dict[str, str]]] = []

    def run(
        words: list[str], folder: Path, on_line: object, on_progress: object, environment: dict[str, str], keep: object
    ) -> Finished:
        seen.append((list(words), environment))
        return Finished(255, ["CUDA out of memory", EXITED.format(1)])

    monkeypatch.setattr(reproduce.process, "run", run)
    with pytest.raises(StageFailed, match="Lower its batch size"):
        repro(tmp_path, "reward", False, lambda line: None, lambda percent, line: None)
    (first, plain), (second, again) = seen
    assert first == second
    assert again == plain | {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}


def test_a_half_written_lock_of_a_killed_dvc_is_removed(tmp_path: Path) -> None:
    path = tmp_path / ".dvc/tmp/rwlock"
    remove_broken_lock(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    remove_broken_lock(tmp_path)
    assert path.exists()
    path.write_text("")
    remove_broken_lock(tmp_path)
    assert not path.exists()
