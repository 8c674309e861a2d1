"""Dockerfile, compose file, pool template and scripts agree with each other and with the project, without Docker."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import subprocess
import sys
import tomllib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.source import ROOT

CONTAINERS = ROOT / "containers"
PINNED = re.compile(r"[a-z0-9./-]+:(\d+\.\d+(\.\d+)?(-[a-z]+)*|RELEASE\.[0-9TZ-]+)$")
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY|AUTH")
HOME, PROJECT = "/home/lpo", "/home/lpo/project"


def instructions() -> list[tuple[str, str]]:
    """(word, rest) of every instruction of the Dockerfile, lines joined."""
    lines = [line for line in (CONTAINERS / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(word, " ".join(rest)) for line in joined.splitlines() if line for word, *rest in [line.split()]]


def of(word: str) -> list[str]:
    return [rest for name, rest in instructions() if name == word]


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CONTAINERS / "compose.yaml").read_text())
    return found


def template() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CONTAINERS / "kubernetes-pool.json").read_text())
    return found


def test_images_are_pinned_and_nothing_runs_as_root() -> None:
    images = [rest.split()[0] for rest in of("FROM")]
    images += [service["image"] for service in compose()["services"].values() if "build" not in service]
    assert [image for image in images if not PINNED.match(image)] == []
    uid = re.search(r"useradd .*--uid (\d+) lpo", " ".join(of("RUN")))
    assert uid and of("USER") == ["lpo"]
    words = [name for name, _ in instructions()]
    assert words.index("USER") < words.index("ENTRYPOINT")
    pod = template()["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsUser"] == int(uid[1])
    assert pod["securityContext"]["runAsNonRoot"] is True


def test_the_image_copies_what_is_there_and_installs_as_the_makefile_does() -> None:
    ignored = (CONTAINERS / "Dockerfile.dockerignore").read_text().splitlines()
    let_through = [line.removeprefix("!") for line in ignored if line.startswith("!")]
    for rest in of("COPY"):
        *sources, _ = [word for word in rest.split() if not word.startswith("--")]
        for source in sources if "--from" not in rest else []:
            assert (ROOT / source).exists(), source
            assert any(fnmatch.fnmatch(source, pattern) for pattern in let_through), source
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    installs = [rest for rest in of("RUN") if "pip install" in rest]
    extra = re.search(r"'\.\[(\w+)\]'", installs[-1])
    assert extra and extra[1] in project["optional-dependencies"]
    assert all("--constraint constraints.txt" in rest for rest in installs)
    makefile = (ROOT / "Makefile").read_text()
    assert "--no-build-isolation --editable" in makefile and "--no-build-isolation --editable" in installs[-1]
    values = dict(re.findall(r"(\w+)=(\S+)", " ".join(of("ENV"))))
    exported = re.findall(r"^export (\w+) := (\S+)$", makefile, re.MULTILINE)
    for name, value in exported:
        if name != "PATH":
            assert values[name] == value
    version = re.match(r"python:(\d+)\.(\d+)", of("FROM")[-1])
    assert version and (int(version[1]), int(version[2])) >= (3, 11)
    assert of("WORKDIR") == [PROJECT, PROJECT]  # where the editable install looks, and where a container works


def test_no_secret_is_part_of_an_image_or_of_git() -> None:
    assert [rest for word in ("ENV", "ARG", "COPY") for rest in of(word) if SECRET.search(rest) or ".env" in rest] == []
    text = (CONTAINERS / "compose.yaml").read_text()
    named = set(re.findall(r"\$\{(\w+)", text))
    example = dict(line.split("=", 1) for line in (CONTAINERS / "env.example").read_text().splitlines() if "=" in line)
    assert named == set(example)
    assert [name for name, value in example.items() if value and SECRET.search(name)] == []
    done = subprocess.run(["git", "check-ignore", "--quiet", "containers/.env"], cwd=ROOT)
    assert done.returncode == 0
    for name, service in compose()["services"].items():
        for key, value in service.get("environment", {}).items():
            assert not SECRET.search(key) or value.startswith("${"), f"{name}: {key}"


def test_services_find_each_other() -> None:
    services = compose()["services"]
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            assert how["condition"] != "service_healthy" or "healthcheck" in services[other], f"{name}: {other}"
        for mount in service.get("volumes", []):
            volume, path = mount.split(":")
            assert volume in compose()["volumes"]
            made = " ".join(of("RUN")).split()  # by the image, for its user
            assert "build" not in service or path in made, path
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
    port = services["server"]["command"][-1]
    client = services["worker-cpu"]["environment"]
    assert client == services["worker-gpu"]["environment"] == services["setup"]["environment"]
    assert client["PREFECT_API_URL"] == f"http://server:{port}/api"
    assert f"127.0.0.1:{port}/api/health" in services["server"]["healthcheck"]["test"][-1]
    assert services["server"]["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert client["AWS_ENDPOINT_URL"] == "http://objects:9000"
    assert (
        f"127.0.0.1:{client['PREFECT_WORKER_WEBSERVER_PORT']}/health"
        in services["worker-cpu"]["healthcheck"]["test"][-1]
    )
    database = services["server"]["environment"]["PREFECT_SERVER_DATABASE_CONNECTION_URL"]
    postgres = services["postgres"]["environment"]
    assert database.endswith(f"@postgres:5432/{postgres['POSTGRES_DB']}")
    assert f"//{postgres['POSTGRES_USER']}:${{POSTGRES_PASSWORD}}@" in database
    assert services["worker-cpu"]["hostname"] != services["worker-gpu"]["hostname"]


@pytest.mark.slow
def test_commands_and_settings_are_prefects(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import Settings

    from flows import service

    services = compose()["services"]
    for name in ("server", "worker-cpu"):
        with monkeypatch.context() as patch:
            used = {key: value for key, value in services[name]["environment"].items() if key.startswith("PREFECT_")}
            for key, value in used.items():
                patch.setenv(key, value)
            assert set(used) <= set(Settings().to_environment_variables(exclude_unset=True))
        words = services[name]["command"]
        options = [word for word in words if word.startswith("--")]
        command = words[: words.index(options[0])]
        printed = subprocess.run(
            [*command, "--help"], capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"}
        )
        assert printed.returncode == 0, printed.stderr
        assert [option for option in options if option not in printed.stdout] == []
    queues = [services[f"worker-{queue}"]["command"] for queue in service.QUEUES]
    for queue, words in zip(service.QUEUES, queues, strict=True):
        assert words[words.index("--work-queue") + 1] == queue
        assert words[words.index("--pool") + 1] == service.POOL
    called = []
    monkeypatch.setattr(service, "prepare", lambda client: called.append("prepare"))
    monkeypatch.setattr(service, "deploy", lambda client, environment: called.append("deploy"))
    monkeypatch.setattr(service, "get_client", lambda sync_client: nullcontext())
    assert "python -m flows.service prepare" in services["setup"]["command"][-1]
    monkeypatch.setattr(sys, "argv", ["flows.service", "prepare"])
    service.main()
    assert called == ["prepare", "deploy"]


def test_the_pool_template_makes_a_job_that_prefect_takes() -> None:
    from prefect.utilities.schema_tools import is_valid_schema, validate
    from prefect.utilities.templating import apply_values, find_placeholders

    made, variables = template()["job_configuration"], template()["variables"]
    is_valid_schema(variables)
    names = {found.name for found in find_placeholders(made)}
    assert names == set(variables["properties"])
    values = {name: schema["default"] for name, schema in variables["properties"].items()}
    assert validate(values, variables) == []
    claim = {"name": "project", "persistentVolumeClaim": {"claimName": "lpo-project"}}
    job = apply_values(made, values | {"name": "run", "project_volume": claim})["job_manifest"]
    pod = job["spec"]["template"]["spec"]
    assert find_placeholders(job) == set()
    (container,) = pod["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    assert (mounts["project"], mounts["hub"]) == (PROJECT, f"{HOME}/.cache/huggingface")
    assert "command" not in container  # the image's entry point prepares the clone
    deployed = yaml.safe_load((ROOT / "prefect.yaml").read_text())["definitions"]["process"]
    assert container["args"] == deployed["command"]
    images = {service["image"] for service in compose()["services"].values() if "build" in service}
    assert container["image"] in images


def test_the_entry_point_clones_once_sets_the_remote_and_runs_the_command(tmp_path: Path) -> None:
    origin, folder = tmp_path / "origin", tmp_path / "project"
    (origin / ".dvc").mkdir(parents=True)
    (origin / ".dvc/config").write_text("[core]\n    analytics = false\n")
    (origin / "file").write_text("first")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-qm", "files"]):
        subprocess.run([*git, *words], cwd=origin, check=True)
    folder.mkdir()
    place = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "LPO_REPOSITORY": str(origin)}
    remote = {"LPO_REMOTE": "s3://lpo/store", "AWS_ENDPOINT_URL": "http://objects:9000"}

    def run(environment: dict[str, str], *words: str) -> str:
        done = subprocess.run(
            ["sh", str(CONTAINERS / "entrypoint.sh"), *words], cwd=folder, env=os.environ | environment,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run(place | remote, "cat", "file") == "first"
    local = (folder / ".dvc/config.local").read_text()
    assert (
        "remote = store" in local and "url = s3://lpo/store" in local and "endpointurl = http://objects:9000" in local
    )
    (folder / "file").write_text("changed here")
    assert run(place, "cat", "file") == "changed here"
    missing = subprocess.run(
        ["sh", str(CONTAINERS / "entrypoint.sh"), "echo", "started"], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | place | {"LPO_REPOSITORY": str(tmp_path / "nowhere")},
    )  # fmt: skip
    assert missing.returncode != 0 and "started" not in missing.stdout


def test_the_bucket_is_created_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from moto import mock_aws

    monkeypatch.syspath_prepend(str(CONTAINERS))
    for key, value in {"LPO_REMOTE": "s3://lpo/store", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}.items():
        monkeypatch.setenv(key, value)
    import bucket

    with mock_aws():
        bucket.main()
        bucket.main()
    assert capsys.readouterr().out == "bucket lpo: created\nbucket lpo: already there\n"
