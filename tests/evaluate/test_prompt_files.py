import json

import pandas as pd
import pytest

from lpo.errors import LpoError
from lpo.evaluate.prompt_files import LONGEST, read_prompts

TASK = {"tag": "counting", "include": [{"class": "cat", "count": 2}], "exclude": [{"class": "cat", "count": 3}]}


def test_a_line_of_text_is_a_prompt(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\n\n  two dogs \n")
    found, left = read_prompts(str(path))
    assert found["prompt"].tolist() == ["a cat", "two dogs"]
    assert found["category"].tolist() == ["all", "all"] and found["task"].tolist() == [None, None]
    assert len(left) == 0


def test_parti_prompts(tmp_path):
    path = tmp_path / "PartiPrompts.tsv"
    path.write_text('Prompt\tCategory\tChallenge\tNote\nbond\tAbstract\tBasic\tBiology, "NA"\nNA\tWorld\tBasic\t\n')
    found, _ = read_prompts(str(path))
    assert found[["prompt", "category"]].values.tolist() == [["bond", "Abstract"], ["NA", "World"]]


def test_geneval_metadata(tmp_path):
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text(json.dumps(TASK | {"prompt": "a photo of two cats"}) + "\n")
    found, _ = read_prompts(str(path))
    assert found.loc[0, "category"] == "counting"
    assert json.loads(found.loc[0, "task"]) == TASK


def test_a_shard_of_pick_a_pic_is_read_without_its_pictures(tmp_path):
    path = tmp_path / "validation_unique-00000-of-00001.parquet"
    pd.DataFrame({"jpg_0": [b"no picture"] * 3, "caption": ["b", "a", "b"], "label_0": 1.0}).to_parquet(path)
    found, left = read_prompts(str(path))
    assert found["prompt"].tolist() == ["b", "a"]
    assert left.values.tolist() == [["b", "there before"]]


def test_what_cannot_be_used_comes_back_with_its_reason(tmp_path):
    path = tmp_path / "prompts.csv"
    long = "x" * (LONGEST + 1)
    pd.DataFrame({"caption": ["a cat", "", long, "A  Cat", "a dog", "a dog", "x" * 10_000]}).to_csv(path, index=False)
    found, left = read_prompts(str(path), trained=["A dog "])
    assert found["prompt"].tolist() == ["a cat", "A  Cat"]
    assert left["reason"].tolist() == [
        "empty", f"longer than {LONGEST} characters", "a training prompt", "a training prompt",
        f"longer than {LONGEST} characters",
    ]  # fmt: skip
    assert len(found) + len(left) == 7


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"prompt": "a cat"', "can't read the prompts"),
        ("a.jsonl", b'["a cat"]', "can't read the prompts"),
        ("a.csv", b"text\na cat\n", "no column prompt or caption among text"),
        ("a.parquet", b"PAR1 cut", "can't read the prompts"),
        ("a.txt", b"\xff\xfe\x00", "can't read the prompts"),
        ("a.pkl", b"", r"\.pkl is not a kind of file"),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(LpoError, match=message) as caught:
        read_prompts(str(path))
    assert caught.value.where == str(path)


def test_a_file_that_is_not_there():
    with pytest.raises(LpoError, match="no such file of prompts"):
        read_prompts("nothing/here.txt")
    with pytest.raises(LpoError, match="no file is named"):
        read_prompts("hf://datasets/someone/something")


def test_a_file_of_the_hubs_cache(tmp_path, monkeypatch):
    """The cache as the hub's client lays it out; offline, nothing else is asked."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "datasets--owner--name"
    (repository / "snapshots/abc/data").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("abc")
    (repository / "snapshots/abc/data/p.txt").write_text("a cat\n")
    found, _ = read_prompts("hf://datasets/owner/name/data/p.txt")
    assert found["prompt"].tolist() == ["a cat"]
    with pytest.raises(LpoError, match="can't find data/other.txt"):
        read_prompts("hf://datasets/owner/name/data/other.txt")
