"""Whatever a user names as an output path, nothing that existed before is lost."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lpo.errors import LpoError
from lpo.outputs import check_file, check_folder, edit_text, output_file, output_folder
from lpo.outputs.ownership import LEDGER, MARKER, PROJECT

COMMAND = "lpo test"


def write(path: Path, text: str = "result", command: str = COMMAND, force: bool = False) -> None:
    with output_file(path, command, force) as partial:
        partial.write_text(text)


def fill(path: Path, text: str = "result", command: str = COMMAND) -> None:
    with output_folder(path, command) as partial:
        (partial / "inside").mkdir()
        (partial / "inside" / "file").write_text(text)


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def snapshot(root: Path) -> dict[str, tuple[str, object]]:
    """Every entry below `root`: its kind, and the content of a file or the target of a link."""
    found: dict[str, tuple[str, object]] = {}
    for parent, folders, files in os.walk(root):
        for name in folders + files:
            path = Path(parent) / name
            status = path.lstat()
            if path.is_symlink():
                found[str(path)] = ("link", os.readlink(path))
            elif path.is_dir():
                found[str(path)] = ("folder", None)
            elif path.is_file():
                found[str(path)] = ("file", path.read_bytes())
            else:
                found[str(path)] = ("special", stat.S_IFMT(status.st_mode))
    return found


# A user's folder: photographs, links, devices, a killed run's leftovers, and a project around it.
TREE: dict[str, str | None] = {
    "photos/1.png": "first photograph", "photos/trip/2.png": "second photograph", "cat.png": "a cat", "empty.png": "",
    ".cat.png.partial": "somebody's", ".photos.partial/x": "somebody's", ".photos.old/x": "somebody's",
    "params.yaml": "seed: 1", ".git/HEAD": "ref", "lpo/code.py": "code", "models/lora.safetensors": "weights",
    "data/pairs/train.parquet": "pairs", "data/own/pairs.parquet": "pairs", "data/inbox/new.parquet": "pairs",
    "vacant/": None, "taken/": None,
}  # fmt: skip
LINKS = {
    "link.png": "cat.png", "dangling.png": "new/target.png", "loop": "loop", "photos-link": "photos",
    "vacant-link": "vacant", "code-link": "lpo", "taken/link": "../cat.png", "null-link": "null",
}  # fmt: skip


def make_tree(root: Path) -> None:
    for name, content in TREE.items():
        path = root / name
        if content is None:
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
    for name, target in LINKS.items():
        (root / name).symlink_to(target)
    with suppress(PermissionError):  # only root makes devices
        os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(root / "disk", stat.S_IFBLK | 0o666, os.makedev(7, 999))


EXISTING = [
    *TREE, *LINKS, "null", "disk", ".", "..", "data", "photos", "photos/trip", ".git", "lpo", "models", "data/pairs",
]  # fmt: skip
NEW = [
    "new", "new.png", "photos/new", "photos/new.png", "deep/er/new", "data/new", "lpo/new.png", ".git/new",
    "data/tuned", "metrics", "cat.png/new", "x" * 300, "x" * 250, "nul\0byte", "taken/new", "models/new",
]  # fmt: skip
ACTIONS: dict[str, Callable[[Path], None]] = {
    "file": write, "forced file": lambda path: write(path, force=True), "folder": fill,
    "edit": lambda path: edit_text(path, "changed"),
}  # fmt: skip


STEP = st.tuples(st.sampled_from([*EXISTING, *NEW]), st.sampled_from(sorted(ACTIONS)))


@pytest.mark.slow
@settings(max_examples=200)
@given(st.lists(STEP, min_size=1, max_size=4))
def test_nothing_that_existed_before_is_gone(steps: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve() / "home"
        root.mkdir()
        make_tree(root)
        with working_in(root), pytest.MonkeyPatch.context() as quick:
            quick.setattr(os, "fsync", lambda descriptor: None)  # a busy disk takes minutes for a thousand of them
            before = snapshot(root.parent)
            asked = set()  # what the user asked to replace: by --force, or by editing it
            for name, action in steps:
                path = root / name if "\0" not in name else Path(name)
                try:
                    ACTIONS[action](path)
                    if action in ("forced file", "edit"):
                        asked.add(os.path.realpath(path))
                except LpoError as error:
                    assert error.remedy
            after = snapshot(root.parent)
    for name, (kind, content) in before.items():
        assert name in after and after[name][0] == kind, name
        if name not in asked and not (kind == "file" and content == b""):
            assert after[name] == (kind, content), name
    assert not [name for name in after.keys() - before.keys() if name.endswith((".partial", ".old"))]


def test_a_command_replaces_its_own_output_and_no_other(here: Path) -> None:
    for text in ("first", "second"):
        write(here / "a.png", text)
        fill(here / "a", text)
    assert (here / "a.png").read_text() == (here / "a" / "inside" / "file").read_text() == "second"
    with pytest.raises(LpoError, match="`lpo other` did not write"):
        write(here / "a.png", command="lpo other")
    with pytest.raises(LpoError, match="`lpo other` did not write"):
        fill(here / "a", command="lpo other")


def test_an_output_that_the_user_changed_is_the_users(here: Path) -> None:
    write(here / "a.png")
    (here / "a.png").write_text("retouched")
    with pytest.raises(LpoError, match="changed since") as error:
        check_file(here / "a.png", COMMAND)
    assert "--force" in error.value.remedy
    fill(here / "a")
    (here / "a" / "inside" / "notes.txt").write_text("mine")
    with pytest.raises(LpoError, match=r"1 entry .* inside/notes\.txt"):
        fill(here / "a")
    (here / "a" / "inside" / "notes.txt").unlink()
    (here / "a" / "inside" / "file").write_text("mine")
    with pytest.raises(LpoError, match="inside/file"):
        fill(here / "a")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"command": "lpo test"}', '{"command": "lpo test", "files": {}}'])
def test_a_damaged_mark_is_no_mark(here: Path, text: str) -> None:
    fill(here / "a")
    write(here / "a.png")
    (here / "a" / MARKER).write_text(text)
    LEDGER.write_text(text)
    with pytest.raises(LpoError, match="did not write"):
        check_folder(here / "a", COMMAND)
    with pytest.raises(LpoError, match="did not write"):
        check_file(here / "a.png", COMMAND)


def test_work_that_fails_leaves_everything_as_it_was(here: Path) -> None:
    write(here / "a.png", "old")
    fill(here / "a", "old")
    (here / "vacant").mkdir()
    before = snapshot(here)
    for made in (lambda: output_file(here / "a.png", COMMAND), lambda: output_file(here / "new.png", COMMAND)):
        with pytest.raises(KeyboardInterrupt), made() as partial:
            partial.write_text("half")
            raise KeyboardInterrupt
    for name in ("a", "new", "vacant"):
        with pytest.raises(KeyboardInterrupt), output_folder(here / name, COMMAND) as partial:
            (partial / "half").touch()
            raise KeyboardInterrupt
    assert snapshot(here) == before


def test_what_appears_during_the_work_is_kept_and_so_is_the_result(here: Path) -> None:
    with pytest.raises(LpoError, match="appeared during the work") as error, output_file(here / "a.png", COMMAND) as p:
        p.write_text("hours of work")
        (here / "a.png").write_text("somebody else's")
    assert (here / "a.png").read_text() == "somebody else's"
    assert (here / "a-1.png").read_text() == "hours of work" and "a-1.png" in error.value.remedy
    (here / "vacant").mkdir()
    with pytest.raises(LpoError, match="appeared"), output_folder(here / "vacant", COMMAND):
        (here / "vacant" / "mine").write_text("mine")
    assert (here / "vacant" / "mine").read_text() == "mine"


def test_links_are_followed_and_stay(here: Path) -> None:
    (here / "disk").mkdir()
    (here / "link").symlink_to("disk")
    (here / "link.png").symlink_to("disk/real.png")
    inode = (here / "disk").stat().st_ino
    write(here / "link.png")
    assert (here / "link.png").is_symlink() and (here / "disk" / "real.png").read_text() == "result"
    (here / "disk" / "real.png").unlink()
    fill(here / "link")
    assert (here / "link").is_symlink() and (here / "disk").stat().st_ino == inode
    assert (here / "disk" / "inside" / "file").read_text() == "result"
    (here / "params-link").symlink_to("params.yaml")
    (here / "params.yaml").write_text("seed: 1")
    (here / "params.yaml").chmod(0o640)
    edit_text(here / "params-link", "seed: 2")
    assert (here / "params-link").is_symlink() and (here / "params.yaml").read_text() == "seed: 2"
    assert stat.S_IMODE((here / "params.yaml").stat().st_mode) == 0o640


def device(here: Path, name: str, minor: int) -> Path:
    """A copy of /dev/NAME: what a broken command does to it as root harms nobody. Others cannot harm /dev."""
    if os.geteuid() != 0:
        return Path("/dev") / name
    try:
        os.mknod(here / name, stat.S_IFCHR | 0o666, os.makedev(1, minor))
        (here / name).open("wb").close()
    except OSError as error:
        pytest.skip(f"no device can be made here: {error}")
    return here / name


def test_devices_are_written_into(here: Path) -> None:
    null = device(here, "null", 3)
    for _ in range(2):
        write(null)
        assert stat.S_ISCHR(null.stat().st_mode)
    with pytest.raises(LpoError, match="No space left"):
        write(device(here, "full", 7))
    with pytest.raises(LpoError, match="this is no folder"):
        check_folder(null, COMMAND)


def test_pipes_are_written_into(here: Path) -> None:
    os.mkfifo(here / "pipe")
    reader = os.open(here / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write(here / "pipe", "through a pipe")
    assert os.read(reader, 100) == b"through a pipe" and stat.S_ISFIFO((here / "pipe").stat().st_mode)
    os.close(reader)
    with pytest.raises(LpoError, match="this is no folder"):
        check_folder(here / "pipe", COMMAND)


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_modes_are_those_of_the_umask(here: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write(here / "a.png")
        fill(here / "a")
    finally:
        os.umask(before)
    for path in (here / "a.png", here / "a" / "inside" / "file", here / "a" / MARKER):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    for path in (here / "a", here / "a" / "inside"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o777 & ~mask


@contextmanager
def without_root() -> Iterator[None]:
    """Permission bits do not bind root, so inside this process is somebody else."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_place_that_cannot_be_written_is_told_before_the_work(here: Path) -> None:
    (here / "closed").mkdir()
    (here / "closed").chmod(0o555)
    for parent in [here, *here.parents][:-2]:
        parent.chmod(parent.stat().st_mode | 0o055) if os.geteuid() == 0 else None
    with without_root():
        for check in (check_file, check_folder):
            with pytest.raises(LpoError, match="nothing can be written"):
                check(here / "closed" / "new" / "a.png", COMMAND)
    for check in (check_file, check_folder):  # not even root writes there
        with pytest.raises(LpoError, match="nothing can be written"):
            check(Path("/proc/self/new"), COMMAND)
        with pytest.raises(LpoError, match="cannot be used"):
            check(here / ("x" * 300), COMMAND)


@pytest.mark.parametrize("name", PROJECT)
def test_the_projects_own_folders_are_refused_even_if_they_are_not_there(project: Path, name: str) -> None:
    for path in (project / name, project / name / "new"):
        with pytest.raises(LpoError, match="belongs to the project"):
            check_folder(path, COMMAND)
        with pytest.raises(LpoError, match="belongs to the project"):
            check_file(path, COMMAND, force=True)


def test_all_that_the_stages_write_is_known_to_be_the_projects(repository: Path) -> None:
    outs = set()
    for file in ("dvc.yaml", "studies/dvc.yaml"):  # whose working directory is the repository too
        for stage in yaml.safe_load((repository / file).read_text())["stages"].values():
            for key in ("outs", "metrics", "plots"):
                outs |= {item if isinstance(item, str) else next(iter(item)) for item in stage.get(key, [])}
    assert outs and [out for out in outs if not any(Path(out).is_relative_to(name) for name in PROJECT)] == []


def test_an_empty_folder_is_filled_and_stays_the_same_folder(here: Path) -> None:
    shutil.rmtree(here / "vacant", ignore_errors=True)
    (here / "vacant").mkdir()
    inode = (here / "vacant").stat().st_ino
    with working_in(here / "vacant"):
        fill(Path())
        assert Path("inside/file").read_text() == "result"
        with pytest.raises(LpoError, match="working directory"):
            fill(Path())
    assert (here / "vacant").stat().st_ino == inode


def test_suffixes_say_the_format(here: Path) -> None:
    with pytest.raises(LpoError, match=r"suffix '\.gif'") as error:
        check_file(here / "a.gif", COMMAND, (".png", ".jpg"))
    assert error.value.remedy == "name a file that ends in .png or .jpg"
    with pytest.raises(LpoError, match="no suffix"):
        check_file(here / "pictures", COMMAND, (".png",))
    check_file(here / "a.PNG", COMMAND, (".png",))
