"""The same model and worth on another text."""

from __future__ import annotations

from collections.abc import Sequence

from layercoop_fast.errors import RequestError
from layercoop_fast.game.model_game import Evaluations, ModelGame
from layercoop_fast.game.staged import view_of
from layercoop_fast.texts.items import Items, load_for

# Text that the model writes itself is another text with another seed, so far off that nothing else draws from it.
_OWN_SEED = 1_000_003


def check_unseen(spec: str, searched: Sequence[str]) -> None:
    """Raise `RequestError` for a text to measure on that is one of those that masks are searched on."""
    if spec != "self" and spec in searched:
        raise RequestError(f"{spec} is what masks are searched on: name another text to measure on")


def same_model_on(
    game: ModelGame, spec: str, windows: int, tokens: int, seed: int, *, stored: bool = False
) -> ModelGame:
    """The same model and utility on another text, which must not be one that the game is played on.

    Where windows are as long as the game's, blocks, head and fingerprint of the model are those of the game: nothing is
    read or checked again. Costs are counted apart. With `stored` what is measured goes into the game's store, if any.

    Raises `RequestError` where it is such a text.
    """
    domains = game.domains
    check_unseen(spec, (game.calibration.spec,) if domains is None else domains.names)
    items = game.calibration if isinstance(game.calibration, Items) else None
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
        chat=not isinstance(game.calibration, Items) and game.calibration.chat,
    )
    as_long = text.ids.shape[1] == game.calibration.ids.shape[1]
    if as_long and items is None and game.workers is None and game.windows.pictures is None:
        view = view_of(game, text, game.utility, stored=stored)
        view.evaluations = Evaluations()
        view.charged = (view.evaluations,)
        return view
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
