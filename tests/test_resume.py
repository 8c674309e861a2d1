from lpo import resume


def test_another_identity_is_another_folder_and_old_runs_are_collected(tmp_path, monkeypatch):
    monkeypatch.setattr(resume, "ROOT", tmp_path)
    same = [resume.folder("reward", {"a": 1, "b": 2}), resume.folder("reward", {"b": 2, "a": 1})]
    assert same[0] == same[1] != resume.folder("reward", {"a": 1, "b": 3})
    for seed in range(5):
        last = resume.folder("reward", {"seed": seed})
    assert last.exists() and len(list((tmp_path / "reward").iterdir())) == resume.KEPT_RUNS
