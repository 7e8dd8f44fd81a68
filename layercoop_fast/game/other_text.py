"""The same model and worth on another text."""

from __future__ import annotations

from collections.abc import Sequence

from layercoop_fast.errors import RequestError
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.game.opening import load_text
from layercoop_fast.game.options import GameOptions
from layercoop_fast.texts.own_text import is_own

# With another seed, text that the model writes itself is another text. No other seed is as large as this one.
_OWN_SEED = 1_000_003


def check_unseen(spec: str, searched: Sequence[str]) -> None:
    """Raise `RequestError` for a text to measure on that is one of those that masks are searched on."""
    if not is_own(spec) and spec in searched:
        raise RequestError(f"{spec} is what masks are searched on: name another text to measure on")


def on_other_text(
    game: ModelGame, spec: str, windows: int, tokens: int, seed: int, *, stored: bool = False
) -> ModelGame:
    """The same model and utility on another text, which must not be a text of the game.

    Where windows are as long as the game's, blocks, head and fingerprint of the model are shared with the game: nothing
    is read or checked again. Costs are counted apart. With `stored`, scores go into the store of the game, if any.

    Raises `RequestError` for a text of the game.
    """
    own, masked = game.calibration, game.masked
    check_unseen(spec, (own.spec,) if own.domains is None else own.domains.names)
    options = GameOptions(
        utility=game.utility,
        windows=windows,
        tokens=tokens,
        shots=own.shots,
        share_context=own.share,
        seed=seed + _OWN_SEED if is_own(spec) else seed,
        chat=own.chat,
    )
    text = load_text(spec, game.checkpoint.tokenizer, masked.skeleton, options)
    as_long = text.ids.shape[1] == own.ids.shape[1]
    if as_long and text.has_windows and not masked.n_workers and own.pictures is None:
        return game.view(text=text, apart=True, stored=stored)
    return ModelGame(
        game.checkpoint,
        text,
        skeleton=masked.skeleton,
        utility=game.utility,
        players=masked.players,
        memory=masked.memory,
        block_path=masked.block_path,
        score_every=masked.windows.score_every,
        on_progress=game.on_progress,
    )
