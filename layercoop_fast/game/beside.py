"""The same model and worth on another text."""

from __future__ import annotations

from layercoop_fast.errors import RequestError
from layercoop_fast.game.choices import Choices, load_for
from layercoop_fast.game.model_game import ModelGame

# Text that the model writes itself is another text with another seed, so far off that nothing else draws from it.
_OWN_SEED = 1_000_003


def same_model_on(game: ModelGame, spec: str, windows: int, tokens: int, seed: int) -> ModelGame:
    """The same model and utility on another text, which must not be one that the game is played on.

    Raises `RequestError` where it is.
    """
    domains = game.domains
    if spec != "self" and spec in ((game.calibration.spec,) if domains is None else domains.names):
        raise RequestError(f"{spec} is what masks are searched on: name another text to measure on")
    items = game.calibration if isinstance(game.calibration, Choices) else None
    text = load_for(
        game.utility,
        spec,
        game.checkpoint.tokenizer,
        game.skeleton,
        windows=windows,
        tokens=tokens,
        shots=0 if items is None else items.shots,
        share=items is None or items.share,
        seed=seed + _OWN_SEED if spec == "self" else seed,
        chat=not isinstance(game.calibration, Choices) and game.calibration.chat,
    )
    return ModelGame(
        game.checkpoint,
        text,
        skeleton=game.skeleton,
        utility=game.utility,
        players=game.players,
        memory=game.memory,
        block_path=game.block_path,
        score_every=game.windows.score_every,
        on_progress=game.on_progress,
    )
