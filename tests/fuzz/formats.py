"""Every format that is read: well-formed files, how they are damaged, and what a command does with them first.

A format is made once, in a folder of its own, and then tried with one seed after the other. What is tried either
returns, with values that are checked, or raises.
"""

from __future__ import annotations

import io
import json
import shutil
import sqlite3
from abc import ABC, abstractmethod
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import small_files
from damage import NUMBERS, ODD, TEXTS, damaged_bytes, damaged_json, damaged_value


class Format(ABC):
    """One format; `folder` holds what is sound."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def attempt(self, rng: Random, place: Path) -> None:
        """Write a damaged input into the empty folder `place` and read it."""


class Npz(Format):
    """worths.npz, as `shapley --worths` reads it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from layercoop_fast.game.worths import Worths

        rng = np.random.default_rng(0)
        masks = rng.random((6, 4)) < 0.6
        self.prints: dict[str, Any] = {"model": "a" * 64, "utility": "ppl_ratio", "players": "layers"}
        self.prints |= {"numerics": {"threads": 2}, "dtype": "float32", "score_every": 1}
        texts = {"text": "b" * 64, "domains": [0, 1, 0], "weights": [1.0, 0.5]}
        items = {"items": "c" * 64, "options": [2], "labels": [1], "tokens": [1, 2], "characters": [3, 4]}
        self.sound: list[dict[str, Any]] = []
        for calibration in ("b" * 64, texts, items):
            arrays = {"masks": masks, "worths": rng.random(6), "nll": rng.random(6), "window_nll": rng.random((6, 3))}
            tokens = np.array([7, 7, 7] if calibration is not items else [1, 1, 1])
            prints = {**self.prints, "calibration": calibration}
            Worths(**arrays, window_tokens=tokens, fingerprints=prints).save(folder / "worths.npz", force=True)
            self.sound.append({**arrays, "window_tokens": tokens, "fingerprints": prints})
            self.content = (folder / "worths.npz").read_bytes()
        self.bombs = [small_files.bomb(2**28 + 2**20), small_files.bomb(2**22)]

    def attempt(self, rng: Random, place: Path) -> None:
        """Bytes, members and fingerprints; sometimes a file that would come to gigabytes."""
        from layercoop_fast.game.worths import Worths

        file = place / "worths.npz"
        how = rng.random()
        if how < 0.35:
            file.write_bytes(damaged_bytes(self.content, rng))
        elif how < 0.37:
            file.write_bytes(rng.choice(self.bombs))
        else:
            arrays = dict(rng.choice(self.sound))
            text = json.dumps(arrays.pop("fingerprints"))
            if rng.random() < 0.6:
                text = damaged_json(json.loads(text), rng).decode("utf-8", "replace")
            members = {name: _npy(array) for name, array in {**arrays, "fingerprints": np.array(text)}.items()}
            if rng.random() < 0.5:
                name = rng.choice(list(members))
                members[name] = small_files.npy_bytes(
                    rng, bytes(rng.randrange(256) for _ in range(rng.choice((6, 48))))
                )
            file.write_bytes(small_files.npz_bytes(members, rng))
        read = Worths.load(file)
        assert (len(read.masks),) == read.worths.shape == read.nll.shape == read.nll_stderr.shape
        assert len(read.player_names) == read.masks.shape[1]
        assert read.worth_stderr is None or len(read.worth_stderr) == len(read.masks)


class Npy(Format):
    """masks.npy, as `evaluate --masks` reads it."""

    def attempt(self, rng: Random, place: Path) -> None:
        """Bytes and headers."""
        from layercoop_fast.game.worths import load_masks

        file = place / "masks.npy"
        masks = np.array([[1, 0, 1], [0, 1, 1]], rng.choice((bool, np.uint8, np.int64)), order=rng.choice(("C", "F")))
        content = _npy(masks)
        if rng.random() < 0.5:
            file.write_bytes(damaged_bytes(content, rng))
        else:
            file.write_bytes(small_files.npy_bytes(rng, rng.choice((masks.tobytes(), b"", bytes(2000)))))
        read = load_masks(file, rng.choice((None, 3)))
        assert read.dtype == np.bool_
        assert read.ndim == 2
        assert set(np.unique(read.view(np.uint8)).tolist()) <= {0, 1}


class Store(Format):
    """A store, as every command that takes one does."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from layercoop_fast.game.store import Store as Opened
        from layercoop_fast.game.store import mask_key
        from layercoop_fast.masked.scores import Scores

        self.prints = {"model": "a" * 64, "utility": "nll", "players": "layers", "dtype": "float32"}
        self.prints |= {"calibration": "b" * 64, "numerics": {"threads": 2}}  # type: ignore[dict-item]
        draws = np.random.default_rng(0)
        masks = np.unique(draws.random((12, 9)) < 0.5, axis=0)
        masks[-1] = True
        rows = [(mask_key(mask), Scores(draws.random(3), np.full(3, np.nan))) for mask in masks]
        self.sound = folder / "sound.store"
        with Opened(self.sound, write=True) as store:
            store.add(store.claim(self.prints, 9, [7] * 3), rows)
        self.content = self.sound.read_bytes()

    def attempt(self, rng: Random, place: Path) -> None:
        """Bytes of the file, values with the right checksum, other tables, views and triggers."""
        from layercoop_fast.game.store import Store as Opened
        from layercoop_fast.game.store import merge

        file = place / rng.choice(("a.store", "a.store", "\x1b[31ma.store"))
        if rng.random() < 0.45:
            file.write_bytes(damaged_bytes(self.content, rng))
        else:
            file.write_bytes(self.content)
            with closing(sqlite3.connect(file, isolation_level=None)) as connection:
                self._change(connection, rng)
            if rng.random() < 0.1:
                file.with_name(f"{file.name}-wal").write_bytes(damaged_bytes(self.content[:600], rng))
        how = rng.randrange(4)
        if how == 0:
            merge([self.sound, file], place / "merged.store")
            return
        with Opened(file, write=how == 1) as store:
            games = store.games()
            json.dumps([asdict(game) for game in games])
            if how == 1:
                store.claim(self.prints, 9, [7] * 3)
                store.drop(games[0].key if games else 1)
            elif games:
                read = store.worths(games[0].key)
                assert len(read.masks) == len(read.worths) == games[0].masks
                from layercoop_fast.cli.store import _show

                _show({"file": str(file), "schema": 1, "bytes": 1, "games": [asdict(game) for game in games]})

    def _change(self, connection: sqlite3.Connection, rng: Random) -> None:
        """Change values, with their checksums, or the schema."""
        from layercoop_fast.game.store import _crc

        how = rng.random()
        if how < 0.4:
            prints = damaged_value(self.prints, rng)
            text: Any = json.dumps(prints) if rng.random() < 0.8 else rng.choice((*ODD[:20], *TEXTS, b"\xff"))
            if isinstance(text, str):
                text = text.encode("utf-8", "replace").decode()  # SQLite takes no halves of characters
            players = 9 if rng.random() < 0.6 else rng.choice((*NUMBERS, "9", None, b"9"))
            tokens = (
                np.full(3, 7).tobytes() if rng.random() < 0.7 else rng.choice((b"", b"1", bytes(24), "7", 7, bytes(64)))
            )
            crc = _crc(text, players, tokens) if rng.random() < 0.9 else rng.choice((0, None, "x", 1e300))
            _run(
                connection,
                "UPDATE games SET fingerprints = ?, n_players = ?, window_tokens = ?, crc = ?",
                (_bindable(text), _bindable(players), _bindable(tokens), crc),
            )
        elif how < 0.7:
            mask = rng.choice((b"\xff\x80", b"\xff", b"", "x", 3, bytes(3000)))
            nll = rng.choice((bytes(24), b"", bytes(23), bytes(32), "x", 1.5, np.full(3, np.nan).tobytes()))
            kl = rng.choice((None, bytes(24), bytes(8), b"", "x"))
            row = (1, mask, nll, kl, _crc(mask, nll, kl) if rng.random() < 0.9 else rng.choice((0, None, "x")))
            _run(connection, "INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?, ?)", row)
        else:
            for _ in range(rng.choice((1, 1, 2))):
                for statement in rng.choice(_SCHEMAS).split(";"):
                    _run(connection, statement)


_SCHEMAS = (
    "ALTER TABLE games RENAME TO g; CREATE VIEW games AS SELECT * FROM g",
    "CREATE TRIGGER t AFTER DELETE ON scores BEGIN DELETE FROM games; END",
    "CREATE TRIGGER t AFTER UPDATE ON games BEGIN SELECT RAISE(ABORT, 'line \n line'); END",
    "DROP TABLE scores; CREATE VIEW scores AS WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c)"
    " SELECT 1 AS game, randomblob(2) AS mask, zeroblob(1000000000) AS nll, NULL AS kl, x AS crc FROM c",
    "CREATE TABLE more (x)",
    "CREATE INDEX more ON scores (game, hex(mask))",
    "ALTER TABLE games ADD COLUMN x AS (hex(zeroblob(900000000)))",
    "DROP TABLE scores",
    "DROP TABLE games",
    "DELETE FROM games",
    "PRAGMA application_id = 1",
    "PRAGMA user_version = 2",
    "PRAGMA user_version = 0",
    "PRAGMA writable_schema = 1; UPDATE sqlite_master SET sql = 'CREATE TABLE games (\x1b[31m' WHERE name = 'games'",
    "PRAGMA writable_schema = 1; UPDATE sqlite_master SET rootpage = 99 WHERE name = 'scores'",
    "PRAGMA writable_schema = 1; DELETE FROM sqlite_master",
    "PRAGMA encoding = 'UTF-16'",
    "PRAGMA journal_mode = DELETE",
)


def _run(connection: sqlite3.Connection, statement: str, values: tuple[Any, ...] = ()) -> None:
    """A statement that SQLite may refuse."""
    try:
        connection.execute(statement, values).fetchall()
    except (sqlite3.Error, UnicodeEncodeError, OverflowError):
        return


def _bindable(value: Any) -> Any:
    """A value as SQLite can hold it."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return str(value)
    return str(value) if isinstance(value, (list, dict)) else value


class Gguf(Format):
    """A .gguf, as `cut` reads and writes it."""

    def attempt(self, rng: Random, place: Path) -> None:
        """Bytes and numbers of the header; what is written is never much larger than what was read."""
        from layercoop_fast.export.gguf import cut_gguf
        from layercoop_fast.export.gguf_file import read_gguf
        from layercoop_fast.masks.text import parse_removed

        content = small_files.gguf_bytes(rng)
        if rng.random() < 0.4:
            content = damaged_bytes(content, rng)
        (place / "model.gguf").write_bytes(content)
        removed = parse_removed(rng.choice(("1", "0", "2", "1-2", "1.attn", "0.attn", "2.mlp", "0.mlp,1.attn", "0-3")))
        n_layers = rng.choice((*[None] * 9, 4))
        done = cut_gguf(place / "model.gguf", removed, place / "cut.gguf", n_layers=n_layers)
        assert done.out.stat().st_size <= 2 * len(content) + 2**17
        assert done.blocks["pruned"] <= done.blocks["full"]
        read_gguf(done.out)


_RECORD: dict[str, Any] = {
    "schema": 1,
    "model": "models/tiny",
    "players": "layers",
    "n_players": 4,
    "removed": [1],
    "kept": [0, 2, 3],
    "method": "coop",
    "shapley": [0.1, 0.2, 0.3, 0.4],
    "scores": [0.1, 0.2, 0.3, 0.4],
    "calibration": {},
    "worth": {"full": 1.0, "pruned": 0.9},
    "nll": {"full": 2.0, "pruned": 2.1},
    "ppl": {"full": 7.4, "pruned": 8.2},
    "evaluations": {"masks": 20, "unique": 18, "layer_evals": 60, "layer_evals_naive": 80, "token_evals": 9000},
    "cost": None,
    "details": {
        "loss": 0.1,
        "interactions": [[0.1, 0.2, 0.3], [0.1, 0.2], [0.1], []],
        "interactions_stderr": [[0.1, 0.2, 0.3], [0.1, 0.2], [0.1], []],
        "path": [{"n_removed": 1, "removed": [1], "loss": 0.1}],
        "alternatives": [{"keeps": 1, "removed": [2], "loss": 0.2, "better": 0.1}],
        "forecasts": {"n_removed": [1], "expected": [0.1], "stderr": [0.01], "measured": [0.1]},
    },
    "fingerprints": {"model": "a", "players": "layers", "utility": "ppl_ratio"},
    "seconds": {"search": 1.0, "open": 0.5},
    "seed": 0,
    "versions": {"torch": "2"},
    "command": "prune models/tiny",
    "window_nll": {"full": [2.0, 2.0], "pruned": [2.1, 2.2]},
    "params": {"full": 1000, "players": [100, 100, 100, 100]},
    "excerpts": ["one", "two"],
    "generations": None,
    "repair": None,
    "budget": {"kind": "remove", "asked": 1, "reached": 1, "in_checkpoint": 1},
    "constraints": {"keep": [], "keep_first": 0, "keep_last": 0, "must_go": [], "stages": 1},
    "nested": {
        "sizes": [
            {
                "n_removed": 1,
                "removed": [1],
                "worth": 0.9,
                "ppl": 8.2,
                "heldout_ppl": None,
                "loss": 0.1,
                "free": [1],
                "free_ppl": 8.2,
                "free_loss": 0.1,
                "price": 0.0,
            }
        ],
        "cost": {"size": {"masks": 9}, "free": {"masks": 9, "passes": 3.0}, "family": {"masks": 9, "passes": 3.0}},
    },
}
_RECORD["calibration"] = {"spec": "builtin", "windows": 2, "tokens": 32}


class Record(Format):
    """layercoop.json, as `report`, `card`, `cut --from` and `--mask DIR` read it."""

    def attempt(self, rng: Random, place: Path) -> None:
        """Values and bytes of the document."""
        from layercoop_fast.masks.text import mask_of, removed_of
        from layercoop_fast.report.base_model import Base
        from layercoop_fast.report.card import is_own_card, model_card
        from layercoop_fast.report.html.page import report_page
        from layercoop_fast.report.html.record import load_record

        record = _RECORD
        how = rng.randrange(4)
        if how in (1, 2) and rng.random() < 0.7:
            record = {name: _RECORD[name] for name in ("removed", "kept", "nested")}
        (place / "layercoop.json").write_bytes(damaged_json(record, rng))
        if how == 0:
            page = report_page(load_record(place))
            assert "\x1b" not in page
        elif how == 3:
            card = model_card(load_record(place), "x", Base())
            assert is_own_card(card)
            assert "\x1b" not in card
        elif how == 1:
            halves, layers = removed_of(place)
            assert all(block < layers for block, _ in halves) or layers == 0
        else:
            assert mask_of(str(place) + rng.choice(("", "", "@1", "@٣", "@99")), 4).shape == (4,)


class MaskText(Format):
    """Blocks as people write them."""

    def attempt(self, rng: Random, place: Path) -> None:
        """Items, long ranges, many of them, and any text."""
        from layercoop_fast.masks.text import mask_of, parse_removed

        items = (
            "3",
            "1-2",
            "0.attn",
            "1.mlp",
            "0-999999",
            "0-65535",
            "65535",
            "٣",
            "3-1",
            " 2 ",
            "",
            "-",
            "1-2-3",
            "full",
        )
        text = ",".join(rng.choice(items) for _ in range(rng.choice((1, 2, 5))))
        if rng.random() < 0.05:
            text = ",".join(["0-65535"] * 20_000)
        elif rng.random() < 0.3:
            text = damaged_bytes(text.encode(), rng).decode("utf-8", "surrogateescape")
        if rng.random() < 0.5:
            assert all(0 <= block < 65_536 for block, _ in parse_removed(text))
        else:
            assert mask_of(text, rng.choice((1, 4, 65_536))).any()


class Items(Format):
    """.jsonl of items with options, and of texts."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from tiny_models import tiny_tokenizer

        self.tokenizer = tiny_tokenizer()

    def attempt(self, rng: Random, place: Path) -> None:
        """Values and bytes of lines."""
        from layercoop_fast.texts.calibration import read_text
        from layercoop_fast.texts.items import read_items, tokenise

        items: list[Any] = [
            {"context": "One and one is", "options": ["two", "three"], "label": 0},
            {"question": "Two?", "choices": {"label": ["A", "B"], "text": ["yes", "no"]}, "answerKey": "B"},
            {"question": "Three?", "choices": ["yes", "no", "perhaps"], "answer": 2},
        ]
        texts: list[Any] = [{"text": "some words"}, {"text": "more words"}]
        file = place / "items.jsonl"
        lines = rng.choice((items, items, texts))
        content = b"\n".join(
            damaged_json(line, rng) if rng.random() < 0.5 else json.dumps(line).encode() for line in lines
        )
        file.write_bytes(damaged_bytes(content, rng) if rng.random() < 0.2 else content)
        if lines is texts:
            assert read_text(str(file)).strip()
            return
        made = tokenise(read_items(str(file)), self.tokenizer, spec=str(file))
        assert all(len(group) >= 2 for group in made.groups)


class Groups(Format):
    """groups.json of players, seconds of players, results of benchmarks, and scores that others are compared with."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from tiny_models import tiny_model

        from layercoop_fast.engine.skeleton import Skeleton

        self.skeleton = Skeleton(tiny_model("llama", 4))

    def attempt(self, rng: Random, place: Path) -> None:
        """Values and bytes of the documents."""
        from layercoop_fast.bench.results import Results
        from layercoop_fast.masked.players import make_players
        from layercoop_fast.pruning.player_costs import read_seconds
        from layercoop_fast.tasks.reference import Reference

        file = place / "any.json"
        how = rng.randrange(5)
        if how < 2:
            file.write_bytes(damaged_json(rng.choice(([[0, 1], [2]], [["0.attn", "1.mlp"], [3]])), rng))
            players = make_players(str(file), self.skeleton)
            assert players.unit_masks(np.ones((1, players.n_players), bool)).all()
        elif how == 2:
            file.write_bytes(damaged_json({"players": [1.0, 2, 3, 4.5], "rest": 0.5}, rng))
            assert np.isfinite(read_seconds(str(file), 4).players).all()
        elif how == 3:
            value = {"value": 0.5, "documents": [0.0, 1.0]}
            metrics = {"acc,none": {"higher_is_better": True, "masks": {"full": value}}}
            task = {"task": "a", "kind": "multiple_choice", "requests": "0", "main": "acc,none", "metrics": metrics}
            file.write_bytes(damaged_json({"model": "m", "reference": "full", "tasks": [task]}, rng))
            reference = Reference.read(file)
            reference.check(["a"])
            found = reference.of("a", "acc,none", "0")
            assert found is None or np.isfinite(found).all()
            json.dumps(reference.told([task], {}), allow_nan=False)
        else:
            figure = {"folder": "engine", "name": "pass", "ways": {"ours": [0.1, 0.2], "torch": [0.3]}}
            document = {"schema": 1, "machine": {"cpu": "x"}, "settings": {}, "figures": [figure]}
            file.write_bytes(damaged_json(document, rng))
            Results.load(file)


class Archives(Format):
    """Saved surrogates: safetensors with a JSON text in the header."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from layercoop_fast.surrogate.published import PublishedSurrogate
        from layercoop_fast.surrogate.ridge import RidgeSurrogate
        from layercoop_fast.surrogate.surrogate import Surrogate

        masks = np.random.default_rng(0).random((80, 4)) < 0.6
        worths = np.exp(-masks.sum(axis=1) / 4.0)
        self.kinds: list[Any] = [RidgeSurrogate, PublishedSurrogate, Surrogate]
        self.contents = []
        for number, kind in enumerate(self.kinds):
            options = {"epochs": 2} if kind is PublishedSurrogate else {}
            kind.fit(masks, worths, **options).save(folder / f"{number}.safetensors")
            self.contents.append((folder / f"{number}.safetensors").read_bytes())

    def attempt(self, rng: Random, place: Path) -> None:
        """Bytes, and values of the header."""
        number = rng.randrange(3)
        file = place / "fit.safetensors"
        file.write_bytes(damaged_safetensors(self.contents[number], rng, ("header", "history")))
        self.kinds[number].load(file)


def damaged_safetensors(content: bytes, rng: Random, texts: tuple[str, ...] = ()) -> bytes:
    """A safetensors file with damaged bytes, values of its header, or of the JSON `texts` among its metadata."""
    if rng.random() < 0.35:
        return damaged_bytes(content, rng)
    header, data = small_files.split_safetensors(content)
    about = header.get("__metadata__") or {}
    named = [name for name in texts if name in about]
    if named and rng.random() < 0.6:
        about[named[0]] = damaged_json(json.loads(about[named[0]]), rng).decode("utf-8", "replace")
    elif rng.random() < 0.7:
        name = rng.choice([name for name in header if name != "__metadata__"])
        header[name] = damaged_value(header[name], rng)
    else:
        return small_files.safetensors_bytes(damaged_json(header, rng), data)
    size = rng.choice((None, None, None, *small_files.COUNTS))
    return small_files.safetensors_bytes(header, data, size if rng.random() < 0.05 else None)


class Checkpoint(Format):
    """A folder with a model, as every command opens it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from tiny_models import save_tiny

        save_tiny(folder, n_layers=2)
        self.files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}

    def attempt(self, rng: Random, place: Path) -> None:
        """One file of it, by bytes or by values."""
        name = rng.choice([name for name in self.files if self._is_asked(name)])
        for other, content in self.files.items():
            (place / other).write_bytes(content)
        content = self.files[name]
        if name.endswith(".safetensors"):
            content = damaged_safetensors(content, rng)
            if rng.random() < 0.2:
                (place / name).unlink()
                name, index = f"{name}.index.json", {"metadata": {}, "weight_map": {"model.norm.weight": name}}
                content = damaged_json(index, rng)
        elif name.endswith(".json"):
            content = damaged_json(json.loads(content), rng)
        else:
            content = damaged_bytes(content, rng)
        (place / name).write_bytes(content)
        self._open(str(place), offload=rng.random() < 0.3)

    def _open(self, folder: str, *, offload: bool) -> None:
        from layercoop_fast.engine.loading import open_checkpoint

        opened = open_checkpoint(folder, offload=offload)
        assert opened.model.config.get_text_config().num_hidden_layers >= 1

    def _is_asked(self, name: str) -> bool:
        return "tokenizer" not in name and not name.endswith(".jinja")


class Tokenizer(Checkpoint):
    """The files of a checkpoint's tokenizer, opened with the model around it, or alone, which takes less time."""

    def _open(self, folder: str, *, offload: bool) -> None:
        from layercoop_fast.engine.loading import _load_tokenizer, quiet_transformers

        if offload:
            super()._open(folder, offload=False)
            return
        with quiet_transformers():
            _load_tokenizer(folder, trust_remote_code=False)

    def _is_asked(self, name: str) -> bool:
        return "tokenizer" in name or name.endswith(".jinja")


def _npy(array: Any) -> bytes:
    made = io.BytesIO()
    np.save(made, array)
    return made.getvalue()


def emptied(place: Path) -> Path:
    """A folder with nothing in it."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    return place


class Adapter(Format):
    """A LoRA adapter, as `adapter` reads it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import torch
        from safetensors.torch import save
        from tiny_models import save_tiny

        save_tiny(folder / "pruned", n_layers=2)
        record = {"model": "base", "removed": [1], "kept": [0, 2]}
        (folder / "pruned" / "layercoop.json").write_text(json.dumps(record))
        names = [f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_" for layer in range(3)]
        tensors = {f"{name}A.weight": torch.ones(2, 48) for name in names}
        self.weights = save({**tensors, **{f"{name}B.weight": torch.ones(48, 2) for name in names}})
        self.config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
        self.config |= {"rank_pattern": {"layers.2.self_attn.q_proj": 3}, "alpha_pattern": {}, "modules_to_save": None}
        self.config |= {"layers_to_transform": [0, 1, 2], "layers_pattern": "layers", "base_model_name_or_path": "base"}

    def attempt(self, rng: Random, place: Path) -> None:
        """Its config, or the bytes of its weights."""
        from layercoop_fast.export.adapter import renumber_adapter

        config, weights = json.dumps(self.config).encode(), self.weights
        if rng.random() < 0.6:
            config = damaged_json(self.config, rng)
        else:
            weights = damaged_bytes(weights, rng)
        (place / "adapter").mkdir()
        (place / "adapter" / "adapter_config.json").write_bytes(config)
        (place / "adapter" / "adapter_model.safetensors").write_bytes(weights)
        done = renumber_adapter(place / "adapter", self.folder / "pruned", place / "out")
        assert set(done.layers["pruned"]) <= {0, 1}


FORMATS: dict[str, type[Format]] = {
    "npz": Npz,
    "npy": Npy,
    "store": Store,
    "gguf": Gguf,
    "layercoop.json": Record,
    "masks": MaskText,
    "items": Items,
    "groups": Groups,
    "surrogates": Archives,
    "checkpoint": Checkpoint,
    "tokenizer": Tokenizer,
    "adapter": Adapter,
}
