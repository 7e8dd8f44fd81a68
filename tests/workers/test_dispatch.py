"""What a game gets from its workers, and what it keeps when some of them are lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from thread_workers import ThreadTransport, opening
from tiny_models import save_tiny

from layercoop_fast.engine.loading import open_checkpoint
from layercoop_fast.errors import RequestError, RunError
from layercoop_fast.game.cost_forecast import forecast_cost
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.game.store import Store
from layercoop_fast.masked.model import MaskedModel
from layercoop_fast.texts.calibration import Calibration
from layercoop_fast.texts.domains import Domains
from layercoop_fast.workers import worker
from layercoop_fast.workers.dispatch import Workers
from layercoop_fast.workers.messages import Message

L = 6
IDS = torch.randint(3, 256, (3, 20), generator=torch.Generator().manual_seed(0))
MASKS = np.unique(np.random.default_rng(3).random((40, L)) < 0.6, axis=0)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("dispatch") / "model", n_layers=L)


@pytest.fixture(autouse=True)
def every_mask_in_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "STREAM_SECONDS", 0.0)


@pytest.fixture
def played(model: Path) -> Callable[..., ModelGame]:
    """A game on the model, with thread workers where there is a transport."""

    def play(transport: ThreadTransport | None = None, *, tolerant: bool = False, **options: Any) -> ModelGame:
        domains = options.pop("domains", None)
        crew = None if transport is None else Workers(transport, opening(model), tolerant=tolerant)
        checkpoint = open_checkpoint(str(model))
        return ModelGame(checkpoint, Calibration(IDS, "test", domains), workers=crew, **options)

    return play


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"utility": "kl"},
        {"players": "sublayers"},
        {"players": [[0, 1], [2], [5, 3]]},
        {"score_every": 3},
        {"block_path": "hf"},
        {"memory": 200_000},
        {"domains": Domains(np.array([0, 1, 0]), np.array([1.0, 2.0])), "utility": "blend:0.5:worst"},
    ],
)
def test_workers_give_the_bits_and_fingerprints_of_one_process(
    played: Callable[..., ModelGame], options: dict[str, Any]
) -> None:
    alone, together = played(**options), played(ThreadTransport(), **options)
    masks = np.random.default_rng(4).random((25, alone.n_players)) < 0.6
    expected, found = alone.evaluate(masks), together.evaluate(masks)
    assert found.window_nll.tobytes() == expected.window_nll.tobytes()
    assert found.worths.tobytes() == expected.worths.tobytes()
    assert found.fingerprints == expected.fingerprints
    assert together.evaluations.unique == alone.evaluations.unique
    assert together.evaluations.layer_evals >= alone.evaluations.layer_evals
    together.close()


def test_the_driver_computes_nothing(played: Callable[..., ModelGame], monkeypatch: pytest.MonkeyPatch) -> None:
    game = played(ThreadTransport())
    monkeypatch.setattr(game.masked.units, "run", None)
    monkeypatch.setattr(game.masked.scorer, "score", None)
    assert np.isfinite(game.evaluate(MASKS).worths).all()
    game.close()


def test_progress_goes_by_cost_to_its_end(played: Callable[..., ModelGame]) -> None:
    told: list[tuple[str, int, int]] = []
    game = played(ThreadTransport(), on_progress=lambda *said: told.append(said))
    game.evaluate(MASKS)
    assert told[-1][1] == told[-1][2] > len(MASKS)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert len(told) > 5
    game.close()


def test_the_outlook_is_of_the_cut(played: Callable[..., ModelGame]) -> None:
    game = played(ThreadTransport())
    ahead = forecast_cost(game, MASKS)
    game.evaluate(MASKS)
    assert (ahead.layer_evals, ahead.unique) == (game.evaluations.layer_evals, game.evaluations.unique)
    assert ahead.seconds > 0
    assert forecast_cost(game, MASKS).known == ahead.unique
    game.close()


class Losing:
    """Loses workers at chosen messages with rows: after so many of them, at such places."""

    def __init__(self, *losses: int, instead: Message | None = None) -> None:
        self.losses = list(losses)
        self.instead = instead
        self.seen = 0

    def __call__(self, place: int, message: Message) -> Message | str | None:
        if message.kind != "rows":
            return message
        self.seen += 1
        if self.losses and self.seen >= self.losses[0]:
            self.losses.pop(0)
            return self.instead
        return message


@pytest.mark.parametrize("losses", [(1,), (4,), (2, 9)])
def test_a_lost_worker_costs_nothing(played: Callable[..., ModelGame], losses: tuple[int, ...]) -> None:
    """What it had sent is kept, the rest is measured by others, and another takes its place."""
    transport = ThreadTransport(spoil=Losing(*losses))
    game = played(transport)
    found = game.evaluate(MASKS)
    assert found.window_nll.tobytes() == played().evaluate(MASKS).window_nll.tobytes()
    assert len(transport.started) == 2 + len(losses)
    assert game.evaluations.unique == len(MASKS) + (not MASKS.all(axis=1).any())
    game.close()


@pytest.mark.parametrize("failures", [1, 2])
def test_a_worker_that_fails_at_a_task(
    played: Callable[..., ModelGame], monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    """Out of memory, say. It stays, and the task is tried once more; a second failure ends the run."""
    measure, failing = MaskedModel.measure, iter(range(failures))

    def fail(*arguments: Any, **options: Any) -> None:
        measure(*arguments, **options)
        if next(failing, None) is not None:
            raise MemoryError

    monkeypatch.setattr(MaskedModel, "measure", fail)
    monkeypatch.setattr(worker, "STREAM_SECONDS", 100.0)
    transport = ThreadTransport(1)
    game = played(transport)
    if failures == 1:
        assert game.evaluate(MASKS).window_nll.tobytes() == played().evaluate(MASKS).window_nll.tobytes()
    else:
        with pytest.raises(
            RunError, match=r"worker 0 failed: out of memory \(on .*\)\. The same masks were lost a second"
        ):
            game.evaluate(MASKS)
    assert transport.started == [0]
    game.close()


def test_masks_lost_twice_end_the_run_and_leave_what_was_measured(
    played: Callable[..., ModelGame], tmp_path: Path
) -> None:
    """The second loss is of the very masks of the first, since those come back first."""
    sent = iter(range(1000))

    def spoil(place: int, message: Message) -> Message | None:
        return None if message.kind == "rows" and next(sent) % 4 == 3 else message

    transport = ThreadTransport(1, spoil=spoil)
    game = played(transport, store=tmp_path / "kept.store")
    with pytest.raises(
        RunError, match=r"worker 0 was lost: pulled out of the wall\. The same masks were lost a second"
    ):
        game.evaluate(MASKS)
    game.close()
    with Store(tmp_path / "kept.store") as store:
        (kept,) = store.games()
    assert 0 < kept.masks < len(MASKS)
    again = played(store=tmp_path / "kept.store")  # one process goes on where the workers ended
    found = again.evaluate(MASKS)
    assert again.evaluations.unique + kept.masks == len(MASKS) + (not MASKS.all(axis=1).any())
    assert found.window_nll.tobytes() == played().evaluate(MASKS).window_nll.tobytes()


def test_after_an_interruption_the_workers_are_ended_and_can_be_hired_again(played: Callable[..., ModelGame]) -> None:
    stop = iter([True])

    def interrupt(stage: str, done: int, total: int) -> None:
        if next(stop, False):
            raise KeyboardInterrupt

    transport = ThreadTransport()
    game = played(transport, on_progress=interrupt)
    with pytest.raises(KeyboardInterrupt):
        game.evaluate(MASKS)
    assert transport.closed == 1
    assert game.evaluate(MASKS).window_nll.tobytes() == played().evaluate(MASKS).window_nll.tobytes()
    assert transport.started == [0, 1, 0, 1]
    game.close()


def test_a_checkpoint_that_workers_cannot_open(tmp_path: Path, model: Path) -> None:
    game = ModelGame(
        open_checkpoint(str(model)),
        Calibration(IDS, "test"),
        workers=Workers(ThreadTransport(), opening(tmp_path / "elsewhere")),
    )
    with pytest.raises(RequestError, match="elsewhere does not exist"):
        game.evaluate(MASKS)


def test_another_checkpoint_than_the_drivers(model: Path, tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "other", n_layers=L, seed=1)
    game = ModelGame(
        open_checkpoint(str(model)),
        Calibration(IDS, "test"),
        workers=Workers(ThreadTransport(), opening(other)),
    )
    with pytest.raises(RequestError, match="the workers' model is not the one here"):
        game.evaluate(MASKS)
    game.close()


def test_a_worker_lost_while_it_opens_the_model(played: Callable[..., ModelGame]) -> None:
    transport = ThreadTransport(spoil=lambda place, message: None if place == 1 else message)
    with pytest.raises(RunError, match="worker 1 was lost: pulled out of the wall before it had measured anything"):
        played(transport).evaluate(MASKS)
    assert transport.closed


def test_unlike_workers(played: Callable[..., ModelGame]) -> None:
    """Refused, unless tolerated; then the fingerprints say so."""

    def spoil(place: int, message: Message) -> Message:
        if place == 1 and message.kind == "ready":
            message.about["fingerprints"]["numerics"]["torch"] = "0.1"
        return message

    with pytest.raises(RequestError, match="torch is"):
        played(ThreadTransport(spoil=spoil)).evaluate(MASKS)
    game = played(ThreadTransport(spoil=spoil), tolerant=True)
    assert game.evaluate(MASKS).fingerprints["numerics"]["torch"] == "mixed"
    game.close()


def test_the_replacement_of_a_lost_worker_must_be_like_it(played: Callable[..., ModelGame]) -> None:
    """With nobody left but an unlike worker the run ends; its numbers are never taken."""
    lives = iter(range(100))
    losing = Losing(1)

    def spoil(place: int, message: Message) -> Message | str | None:
        if message.kind == "ready" and next(lives) > 0:
            message.about["machine"]["processor"] = "another"
        return losing(place, message)

    with pytest.raises(RunError, match="no worker is left"):
        played(ThreadTransport(1, spoil=spoil)).evaluate(MASKS)


def test_tolerance_without_workers(model: Path) -> None:
    with pytest.raises(RequestError, match="it belongs to workers="):
        ModelGame.from_pretrained(str(model), tolerant=True)
