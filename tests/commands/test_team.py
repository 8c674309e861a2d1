"""Simulated annotators on a real page over HTTP: they see pictures only, and choose as labels are made."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from safetensors.numpy import save_file
from starlette.responses import Response

from lpo.commands import team
from lpo.commands.people import Enough, what_people_said
from lpo.commands.vote_pairs import base_name
from lpo.config import Params, load_params
from lpo.data.simulated import png
from lpo.emoji.render import render
from lpo.emoji.scenes import Prompt, Scene, flawed, layout, sample_prompts
from lpo.errors import LpoError
from lpo.registry.ledger import WEIGHTS, name_of
from lpo.votes.consistency import voters_frame
from lpo.votes.names import pseudonym, simulated, simulated_secret
from lpo.votes.questions import Rules, answer, ask
from lpo.votes.store import PATH, Store, votes_frame
from lpo.web.vote import VotePage

SETS, VOTERS = 30, 4


class Still:
    """Draws nothing: the pictures are there."""

    state = "finished"

    def wanted(self) -> None:
        pass


def pictures(prompt: Prompt, rng: np.random.Generator, size: int) -> list[bytes]:
    """Drawings of a prompt, every second one without its objects."""
    scenes = [flawed(layout(prompt, rng), rng) if k % 2 == 0 else Scene((), prompt.background) for k in range(size)]
    return [png(picture) for picture in render(scenes, rng)]


@pytest.fixture
def serving(project: Path) -> Iterator[Any]:
    """A function that fills a store, serves the page of it, and gives its address."""
    started: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(models: list[str], check_share: float = 0.0, prompt: str = "", page: Any = None) -> str:
        store, rng = Store(PATH), np.random.default_rng(0)
        for asked in sample_prompts("validation", SETS, rng, unique=True):
            drawn = pictures(asked, rng, len(models))
            store.add_set(prompt or asked.caption, drawn, models, split="validation", source="s")
        app = (page or VotePage)(store, Rules("s", VOTERS, check_share, 0), Still()).app(None)
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
        thread = threading.Thread(target=server.run)
        thread.start()
        started.append((server, thread))
        while not server.started:
            time.sleep(0.01)
        (socket,) = server.servers[0].sockets
        return f"http://127.0.0.1:{socket.getsockname()[1]}/"

    yield start
    for server, thread in started:
        server.should_exit = True
        thread.join()


@pytest.fixture
def params(project: Path) -> Params:
    return load_params()


@pytest.fixture
def tuned(project: Path) -> str:
    Path("data/tuned").mkdir(parents=True)
    save_file({"unet.a": np.ones(3, np.float32)}, Path("data/tuned") / WEIGHTS)
    return name_of(Path("data/tuned"))


@pytest.fixture
def base(params: Params) -> str:
    Path("data/base").mkdir(parents=True)
    Path("data/base/model_index.json").write_text("{}")
    return base_name(params)


def test_the_team_prefers_what_the_oracle_prefers_and_is_no_crowd_of_people(
    serving: Any, params: Params, capsys: pytest.CaptureFixture[str], tuned: str, base: str
) -> None:
    """Pictures with their objects are far better than pictures without: a team that never errs chooses them always."""
    sure = replace(params.dataset, temperature=0.05, tie_margin=0.0, flip_rate=0.0)
    address = serving([tuned, base], check_share=0.2)
    assert not Enough(params)()
    team.run(sure, address, VOTERS, 10**6, seed=1)
    votes = votes_frame(PATH)
    regular = votes[votes["kind"] == "regular"]
    assert len(regular) == SETS * VOTERS and (votes["kind"] == "repeat").any()  # until nothing is left
    assert json.loads(capsys.readouterr().out)["answers"] == len(votes)
    won = np.where(regular["model_a"] == tuned, regular["share_a"], 1 - regular["share_a"])
    assert won.mean() > 0.95
    assert set(votes["voter"]) == {pseudonym(simulated_secret(k)) for k in range(VOTERS)} <= simulated()
    assert (voters_frame(PATH)["consistency"] == 1).all()
    said = what_people_said(params)
    assert (said["voters"], said["simulated"]) == (VOTERS, VOTERS)
    assert said["against"]["base"]["win_rate"]["value"] == pytest.approx(won.mean())
    assert said["against"]["base"]["stopping"]["verdict"] == "better"
    assert Enough(params)() and not Enough(replace(params, vote=replace(params.vote, against="tuned")))()
    waits = replace(params.promote, people=replace(params.promote.people, votes=10**6))
    assert not Enough(replace(params, promote=waits))()
    assert said["agreement"] > 0.8 and list(said["strengths"]["models"]) == [tuned, base]


def test_errors_come_as_often_as_the_parameters_say(params: Params) -> None:
    """Without noise, flip_rate 0.5 is a coin; four pictures are ordered by what the oracle sees."""
    coin = replace(params.dataset, temperature=0.05, tie_margin=0.0, flip_rate=0.5)
    annotator = team.Annotator("http://127.0.0.1:1", 0, coin, seed=0)
    rng = np.random.default_rng(3)
    (prompt,) = sample_prompts("train", 1, rng)
    two, four = pictures(prompt, rng, 2), pictures(prompt, rng, 4)
    said = [annotator._decide(prompt.caption, two)["choice"] for _ in range(200)]
    assert set(said) == {"left", "right"} and 70 <= said.count("left") <= 130
    sure = team.Annotator("http://127.0.0.1:1", 0, replace(coin, flip_rate=0.0), seed=0)
    order = sure._decide(prompt.caption, four)["order"]
    assert sorted(order) == [0, 1, 2, 3] and set(order[:2]) == {0, 2}


def test_what_cannot_be_judged_is_told(serving: Any, params: Params, tuned: str) -> None:
    with pytest.raises(LpoError, match="the page does not answer"):
        team.run(params.dataset, "http://127.0.0.1:1/", 1, 1, 0)

    class Liar(VotePage):
        def image(self, request: Any) -> Response:
            return Response(png(np.zeros((8, 8, 3), np.uint8)), media_type="image/png")

    with pytest.raises(LpoError, match="another picture than it named"):
        team.run(params.dataset, serving([tuned, "base@1"], page=Liar), 1, 1, 0)
    with pytest.raises(LpoError, match="no simulated annotator understands the prompt 'a poem'"):
        team.run(params.dataset, serving([tuned, "base@2"], prompt="a poem"), 1, 10**6, 0)


def test_the_list_of_voters_needs_no_torch_and_says_who_is_a_program(project: Path) -> None:
    """`lpo votes` reads a table only: the models that `lpo vote` loads are not imported."""
    rng = np.random.default_rng(0)
    (drawn,) = sample_prompts("train", 1, rng)
    with closing(Store(PATH)) as store:
        store.add_set("a cat", pictures(drawn, rng, 2), ["lpo-1", "base@1"], split="validation", source="s")
        for voter in (pseudonym(simulated_secret(0)), pseudonym("a person")):
            question, _ = ask(store, voter, Rules("s", 2, 0.0, 0))
            assert question is not None and answer(store, voter, question.question_id, [0, 1], 1.0)
    program = "import sys; from lpo.commands.vote import show; from lpo.config import load_params; show(load_params())"
    program += "; assert 'torch' not in sys.modules"
    out = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=120
    ).stdout
    assert f"{pseudonym(simulated_secret(0))} (simulated): 1 votes" in out
    assert f"{pseudonym('a person')}: 1 votes" in out
