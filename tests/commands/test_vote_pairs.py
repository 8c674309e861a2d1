"""What `lpo vote` shows: pictures of models or of a folder, going on where it was; and votes that reach the night."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from support.ballot_box import picture
from test_ingest import prepare
from typer.testing import CliRunner

from lpo.cli import app
from lpo.commands import ingest, vote_pairs
from lpo.commands.vote_pairs import CHECK_EVERY, base_name, source_of
from lpo.config import Params, load_params
from lpo.errors import LpoError
from lpo.families.sd import SD
from lpo.images import decode_picture
from lpo.registry.ledger import PROMOTED, name_of
from lpo.votes.drawing import Drawing, Drawn
from lpo.votes.questions import Rules, answer, ask
from lpo.votes.store import Store, add_votes, ballots


def params(**vote: object) -> Params:
    loaded = load_params()
    small = dataclasses.replace(loaded.evaluate, num_inference_steps=2, batch_size=4)
    model = dataclasses.replace(loaded.model, device="cpu")
    return dataclasses.replace(loaded, evaluate=small, model=model, vote=dataclasses.replace(loaded.vote, **vote))


@pytest.fixture
def lab(project: Path, tiny_base: Path, tiny: SD) -> Store:
    shutil.copytree(tiny_base, "data/base")
    rows = [(f"a cat {i}", split) for split in ("train", "validation", "test") for i in range(20)]
    pd.DataFrame(rows, columns=["prompt", "split"]).assign(category="x").to_parquet("data/prompts.parquet")
    tiny.add_lora(2, 0)
    for seed, folder in enumerate((Path("data/tuned"), PROMOTED)):
        folder.mkdir(parents=True)
        torch.manual_seed(seed)
        tiny.save_lora(folder, {name: torch.randn_like(value) for name, value in tiny.lora_state().items()})
    return Store()


def put(store: Store, source: vote_pairs.Source, sets: list[Drawn]) -> None:
    for one in sets:
        store.add_set(one.prompt, one.images, one.models, kind=one.kind, best=one.best, source=source.key)


def test_two_models_draw_from_the_same_noise_and_the_next_start_goes_on(lab: Store, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(vote_pairs, "AT_ONCE", 4)
    source = source_of(params(), lab)
    first = source.produce()
    put(lab, source, first)
    second = source.produce()
    again = source_of(params(), lab)
    assert again.key == source.key and again.produce() == second  # as if never stopped, picture by picture
    regular = [one for one in first + second if one.kind == "regular"]
    assert len(regular) == 8 - 2 and CHECK_EVERY == 7  # sets 0 and 7 are checks
    assert {tuple(one.models) for one in regular} == {(name_of(Path("data/tuned")), base_name(params()))}
    assert {one.split for one in regular + again.produce()} == {"train", "validation"}
    other = source_of(params(against="promoted"), lab)
    assert other.key != source.key
    drawn = other.produce()
    assert [one.images[0] for one in drawn] == [one.images[0] for one in first]  # the same noise and prompts
    assert drawn[1].models == [name_of(Path("data/tuned")), name_of(PROMOTED)]
    shutil.copytree(PROMOTED, "data/tuned", dirs_exist_ok=True)  # the next night's model
    assert [one.prompt for one in source_of(params(), lab).produce()] != [one.prompt for one in first]


def test_four_samples_of_one_model_and_a_check_that_is_obvious(lab: Store, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(vote_pairs, "AT_ONCE", 2)
    check, four = source_of(params(against="tuned", pictures="four"), lab).produce()
    assert len(set(four.images)) == 4 and set(four.models) == {name_of(Path("data/tuned"))}
    assert check.best == 0 and check.kind == "obvious" and check.split == "train"
    whole, shuffled = (np.asarray(decode_picture(data)) for data in check.images)
    assert not np.array_equal(whole, shuffled)
    assert np.array_equal(np.sort(whole.reshape(-1, 3), axis=0), np.sort(shuffled.reshape(-1, 3), axis=0))


def test_what_cannot_be_shown_is_told_before_anything_is_drawn(lab: Store) -> None:
    with pytest.raises(LpoError, match="neither base, promoted, tuned nor a folder"):
        source_of(params(against="bsae"), lab)
    shutil.copytree("data/tuned", PROMOTED, dirs_exist_ok=True)
    with pytest.raises(LpoError, match="is the promoted one"):
        source_of(params(against="promoted"), lab)
    shutil.rmtree(PROMOTED)
    with pytest.raises(LpoError, match="no model is promoted yet"):
        source_of(params(against="promoted"), lab)
    Path("data/prompts.parquet").unlink()
    with pytest.raises(LpoError, match="there are no prompts"):
        source_of(params(), lab)


def test_a_folder_of_ones_own(project: Path) -> None:
    folder, store = project / "mine", Store()
    folder.mkdir()
    with pytest.raises(LpoError, match="no table"):
        source_of(params(against=str(folder)), store)
    for number in range(5):
        (folder / f"{number}.png").write_bytes(picture(number))
    table = folder / "metadata.csv"
    table.write_text("file,prompt\n0.png,a cat\n")
    with pytest.raises(LpoError, match="the table has the columns file, prompt"):
        source_of(params(against=str(folder)), store)
    rows = ["0.png,a cat,x", "1.png,a dog,x", "2.png,a cat,y", "3.png,a dog,", "4.png,a cat,z"]
    table.write_text("\n".join(["file_name,prompt,model", *rows]))
    with pytest.raises(LpoError, match="no prompt has 4 pictures"):
        source_of(params(against=str(folder), pictures="four"), store)
    source = source_of(params(against=str(folder)), store)
    found = source.produce()
    assert [(one.prompt, one.models, one.kind) for one in found] == [
        ("a cat", ["x", "y"], "regular"), ("a dog", ["x", "unknown"], "regular"),
        ("a cat", ["x", "shuffled"], "obvious"),
    ]  # fmt: skip
    assert source.produce() == []
    table.write_text("file_name,prompt\n0.png,a cat\n../params.yaml,a cat\n")
    with pytest.raises(LpoError, match="leaves its folder"):
        source_of(params(against=str(folder)), store).produce()


def test_pictures_are_drawn_while_people_look(project: Path) -> None:
    store, told = Store(), []
    batches = [[Drawn(f"a cat {i}", [picture(2 * i), picture(2 * i + 1)], ["x", "y"])] for i in range(2)]

    def produce() -> list[Drawn]:
        if not batches:
            raise LpoError("out of memory")
        return batches.pop(0)

    rules = Rules("night", 1, 0.0, 0)
    with Drawing(store, "night", produce, told.append) as drawing:
        for number in range(2):
            deadline = time.monotonic() + 60
            while (found := ask(store, "v", rules)[0]) is None and time.monotonic() < deadline:
                drawing.wanted()
                time.sleep(0.01)
            assert found is not None and found.prompt == f"a cat {number}"
            answer(store, "v", found.question_id, [0, 1], 1.0)
        while drawing.state == "drawing" and time.monotonic() < deadline:
            drawing.wanted()
            time.sleep(0.01)
    assert drawing.state == "failed" and str(told[0]) == "out of memory"


def test_a_night_takes_in_what_people_said(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(project)
    store = Store()
    for number, split in enumerate(("train", "validation")):
        images = [picture(2 * number), picture(2 * number + 1)]
        set_id = store.add_set(f"a {'b' * (number + 1)}", images, ["x", "y"], split=split)
        with store.writing() as db:
            shown = json.loads(db.execute("SELECT images FROM sets WHERE set_id = ?", (set_id,)).fetchone()[0])
            for voter, ranks in (("u", [0, 1]), ("v", [0, 1]), ("w", [1, 0]), ("x", [0, 0])):
                add_votes(db, f"{voter}{number}", set_id or 0, voter, "regular", ballots(shown, ranks), 1.0)
    for new in (1, 0):
        capsys.readouterr()
        ingest.run(load_params())
        found = json.loads(capsys.readouterr().out)
        assert (found["new_pairs"], found["quarantined"]) == (new, 0)
    (shard,) = Path("data/collected").glob("*.parquet")
    (row,) = pd.read_parquet(shard).to_dict("records")
    assert sorted((row["label_0"], row["label_1"])) == [0.375, 0.625] and row["caption"] == "a b"


def test_the_commands_say_what_there_is(project: Path) -> None:
    command = CliRunner()
    assert "no votes yet" in command.invoke(app, ["votes"]).output
    for name in ("a.png", "b.png"):
        Path(name).write_bytes(picture(len(name) + ord(name[0])))
    Path("votes.csv").write_text("prompt,image_a,image_b,choice\na cat,a.png,b.png,A\na cat,a.png,c.png,A\n")
    said = command.invoke(app, ["votes", "import", "votes.csv"]).output
    assert "new: 1, known: 0, left out: 1" in said and "c.png" in said
    assert pd.read_parquet("data/refused/votes.parquet")["row"].tolist() == [1]
    assert "1 of 1 votes are used" in command.invoke(app, ["votes"]).output
    assert json.loads(command.invoke(app, ["votes", "export"]).output)["pairs"] == 1
