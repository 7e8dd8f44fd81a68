"""The command line as a user meets it: real processes for what depends on one, `run` in this process for the rest."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from light_command import run_without
from tiny_models import save_tiny
from transformers import AutoModelForCausalLM, BertConfig, BertModel, T5Config, T5ForConditionalGeneration

from layercoop_fast.errors import RunError
from layercoop_fast.game.worths import Worths
from layercoop_fast.pruning.checkpoint_costs import Cost

L = 6
SMALL = ["--windows", "2", "--tokens", "24"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("cli") / "model", n_layers=L))


@pytest.fixture
def costs_unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare tests of other things the process that measures speed."""
    cost = Cost(1, 1, 1, 1, 1.0, 1.0)
    monkeypatch.setattr("layercoop_fast.pruning.writing.measure_costs", lambda paths, **_: [cost] * len(paths))


def process(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "layercoop_fast", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, **options)


def test_help_and_import_leave_torch_unloaded() -> None:
    assert "prune" in run_without({"torch", "transformers", "safetensors", "datasets"}, "--help")


def test_every_command_shows_all_of_its_help(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What looks like markup to the printer of helps is dropped by it, or ends the command in a traceback."""
    import typer

    from layercoop_fast.cli.app import app

    def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
        yield path, command
        for name, inner in getattr(command, "commands", {}).items():
            yield from commands(inner, (*path, name))

    monkeypatch.setenv("COLUMNS", "500")  # no line breaks within a word
    found = list(commands(typer.main.get_command(app)))
    assert {"prune", "compare", "generate", "cut"} <= {path[0] for path, _ in found if path}
    for path, command in found:
        status, out, _ = run(*path, "--help")
        assert status == 0
        texts = [command.help, *(option.help for option in command.params)]
        shown = re.sub(r"\x1b\[[0-9;]*m", "", out).split()  # no colours, where the environment asks for them
        assert not {word for text in texts for word in (text or "").split()} - set(shown), path


def test_every_public_name_can_be_had() -> None:
    import layercoop_fast

    for name in layercoop_fast.__all__:
        assert getattr(layercoop_fast, name) is not None
    assert set(layercoop_fast.__all__) == set(dir(layercoop_fast))
    with pytest.raises(AttributeError, match="no attribute 'prun'"):
        layercoop_fast.prun  # noqa: B018


def test_prune_writes_a_checkpoint_and_its_record(run: Any, model: str, tmp_path: Path) -> None:
    out = tmp_path / "pruned"
    command = [
        "prune",
        model,
        "--remove",
        "2",
        "--method",
        "sleb",
        "--heldout",
        "builtin-heldout",
        "--repair-tokens",
        "2400",
        "--out",
        out,
        *SMALL,
    ]
    status, printed, errors = run(*command, "--json")
    assert status == 0
    # On a slow machine it says every 30 s how far it is.
    assert not [line for line in errors.splitlines() if not re.match(r"layercoop-fast: (\d+ min )?\d+ (s|min): ", line)]
    record = json.loads((out / "layercoop.json").read_text())
    assert json.loads(printed) == {"out": str(out), **record}
    assert record["schema"] == 1
    assert record["model"] == model
    assert (record["players"], record["n_players"], record["method"], record["seed"]) == ("layers", L, "sleb", 0)
    assert len(record["removed"]) == 2
    assert sorted(record["removed"] + record["kept"]) == list(range(L))
    assert record["worth"]["full"] == 1.0
    assert record["nll"]["pruned"] == pytest.approx(record["nll"]["full"] - np.log(record["worth"]["pruned"]))
    assert record["repair"]["texts"] == ["builtin", "builtin-docstrings", "builtin-code", "self"]
    assert set(record["seconds"]) == {"load", "search", "repair", "evaluate", "verify", "samples", "measure"}
    assert {"torch", "transformers", "layercoop_fast"} <= set(record["versions"])
    evaluations = record["evaluations"]
    assert set(evaluations) == {"masks", "unique", "layer_evals", "layer_evals_naive", "token_evals"}
    # sleb asks L + (L − 1) masks, then the full and the pruned model are measured once more for the record.
    assert (evaluations["masks"], evaluations["layer_evals_naive"]) == (L + L - 1 + 2, (L + L - 1 + 2) * L)
    full, pruned = record["cost"]["full"], record["cost"]["pruned"]
    assert set(full) == {
        "params", "weight_bytes", "kv_bytes_per_token", "peak_memory_bytes", "prefill_tok_s", "decode_tok_s",
    }  # fmt: skip
    assert pruned["params"] < full["params"]
    assert pruned["kv_bytes_per_token"] * L == full["kv_bytes_per_token"] * (L - 2)
    assert record["heldout"]["ppl"]["full"] > 1
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert loaded.config.num_hidden_layers == L - 2
    assert sum(parameter.numel() for parameter in loaded.parameters()) == pruned["params"]


@pytest.mark.usefixtures("costs_unmeasured")
def test_an_existing_folder_is_kept_unless_forced(run: Any, model: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    command = ["prune", model, "--drop", "0.2", "--method", "reverse", "--no-repair", "--out", tmp_path / "out", *SMALL]
    status, _, error = run(*command)
    assert (status, "exists already" in error) == (2, True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
    status, printed, _ = run(*command, "--force")
    assert status == 0
    assert "reverse" in printed
    assert f"written: {tmp_path / 'out'}" in printed
    assert json.loads((tmp_path / "out" / "layercoop.json").read_text())["removed"] == [L - 1]


def test_evaluate_then_shapley(run: Any, model: str, tmp_path: Path) -> None:
    masks = np.random.default_rng(0).random((40, L)) < 0.7
    np.save(tmp_path / "masks.npy", masks)
    out = tmp_path / "worths.npz"
    status, printed, errors = run("evaluate", model, "--masks", tmp_path / "masks.npy", "--out", out, *SMALL)
    assert (status, errors) == (0, "")
    assert "40 masks measured" in printed
    measured = Worths.load(out)
    assert np.array_equal(measured.masks, masks)
    assert measured.window_nll.shape == (40, 2)
    assert {"model", "calibration", "utility", "players", "dtype", "numerics"} <= set(measured.fingerprints)
    for estimator in ("stratified", "permutation"):
        command = ["shapley", "--worths", out, "--estimator", estimator, "--samples", "400"]
        status, printed, errors = run(*command, "--json")
        assert (status, errors) == (0, "")
        found = json.loads(printed)
        assert len(found["values"]) == len(found["stderr"]) == L
        assert sorted(found["order"]) == list(range(L))
        assert run(*command)[0] == 0


def test_shapley_measures_a_model_and_keeps_the_worths(run: Any, model: str, tmp_path: Path) -> None:
    out = tmp_path / "worths.npz"
    status, printed, _ = run("shapley", model, "--budget", "25", "--samples", "100", "--out", out, *SMALL)
    assert status == 0
    assert "least valuable first" in printed
    assert len(Worths.load(out).worths) == 25


def test_doctor(run: Any, model: str) -> None:
    status, printed, _ = run("doctor", model, "--json")
    found = json.loads(printed)
    assert status == 0
    assert found["exact"] is True
    assert found["blocks"]["path"] == "model.layers"
    assert found["blocks"]["count"] == L
    assert found["exports"] == {"of": L, "exportable": L, "refusal": None}
    assert found["sublayers"] is None
    status, printed, _ = run("doctor", model)
    assert status == 0
    assert "can be written, whichever goes" in printed
    assert found["fast"] == {"blocks": "fast", "why_not": None, "head": "fused"}


def test_evaluate_foretells_its_cost_and_shows_where_the_time_went(run: Any, model: str, tmp_path: Path) -> None:
    masks = np.random.default_rng(0).random((20, L)) < 0.6
    np.save(tmp_path / "masks.npy", masks)
    out, trace = tmp_path / "worths.npz", tmp_path / "trace.json"
    command = ["evaluate", model, "--masks", tmp_path / "masks.npy", "--out", out, "--profile", trace, *SMALL]
    status, printed, _ = run(*command)
    assert status == 0
    assert printed.index("instead of") < printed.index("masks measured in") < printed.index("where the time went")
    events = json.loads(trace.read_text())["traceEvents"]
    assert {"products of blocks", "attention", "products of the head"} <= {event["name"] for event in events}
    status, _, error = run(*command[:-2], "--force", "--tokens", "24")
    assert status == 0, error
    status, printed, _ = run(*command, "--force", "--json")
    summary = json.loads(printed)
    assert summary["outlook"]["layer_evals"] == summary["evaluations"]["layer_evals"]
    assert 0 < summary["share_of_products"] < 1
    status, _, error = run(*command)
    assert (status, "exists already" in error) == (2, True)


def test_the_block_path_can_be_forced(run: Any, model: str, tmp_path: Path) -> None:
    np.save(tmp_path / "masks.npy", np.ones((1, L), dtype=bool))
    paths = {}
    for path in ("auto", "hf"):
        out = tmp_path / f"{path}.npz"
        arguments = ["--masks", str(tmp_path / "masks.npy"), "--windows", "2", "--tokens", "24", "--block-path", path]
        assert run("evaluate", model, *arguments, "--out", str(out))[0] == 0
        numerics = Worths.load(out).fingerprints["numerics"]
        paths[path] = (numerics["blocks"], numerics["head"])
    assert paths == {"auto": ("fast", "fused"), "hf": ("hf", "hf")}
    arguments[-1] = "slow"
    status, _, error = run("evaluate", model, *arguments, "--out", str(tmp_path / "none.npz"))
    assert status == 2
    assert "unknown block path 'slow': choose from auto, hf" in error


def test_plan_needs_no_model(run: Any) -> None:
    status, printed, _ = run("plan", "--layers", "32", "--masks", "8000", "--hidden", "4096", "--json")
    found = json.loads(printed)
    assert status == 0
    assert found["evaluations"]["naive"] == 256_000
    assert found["evaluations"]["skip"] == 192_000
    assert 80_000 < found["evaluations"]["plan"] < 87_000  # about 83,700: duplicates and shared prefixes
    assert run("plan", "--layers", "4", "--masks", "20")[0] == 0
    memory = found["bytes"]["state"] * 8
    within = json.loads(run("plan", "--layers", "32", "--memory", str(memory), "--json")[1])
    assert within["peak_states"] <= 8


def not_causal(folder: Path) -> Path:
    BertModel(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ).save_pretrained(folder)
    return folder


def encoder_decoder(folder: Path) -> Path:
    config = T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=32, decoder_start_token_id=0)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def corrupt(folder: Path) -> Path:
    save_tiny(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    return folder


def incomplete(folder: Path) -> Path:
    from safetensors.torch import load_file, save_file

    save_tiny(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.layers.3.mlp.up_proj.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def no_config(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "nowhere", "does not exist"),
        (no_config, "has no config.json"),
        (not_causal, "not a causal language model"),
        (encoder_decoder, "encoder-decoder model"),
        (corrupt, "damaged safetensors file"),
        (incomplete, "lacks 1 weights of its config (model.layers.3.mlp.up_proj.weight"),
    ],
)
def test_models_that_cannot_be_opened(
    run: Any, tmp_path: Path, make: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(tmp_path / "model")
    capsys.readouterr()  # what saving it printed
    status, printed, error = run("prune", folder, "--remove", "1", "--out", tmp_path / "out")
    assert (status, printed) == (2, "")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--remove", "0"], "of 6 players, 1 to 5 can be removed, not 0"),
        (["--remove", "-1"], "of 6 players, 1 to 5 can be removed, not -1"),
        (["--remove", "6"], "of 6 players, 1 to 5 can be removed, not 6"),
        (["--drop", "0.01"], "no mask meets --drop 0.01: of 6 equal players it is nearest to 0"),
        (["--drop", "1.5"], "--drop 1.5 is not a share between 0 and 1"),
        ([], "say how much to remove"),
        (["--remove", "1", "--drop", "0.2"], "say how much to remove"),
        (["--remove", "two"], "'--remove'"),
        (["--remove", "1", "--method", "sheb"], "did you mean 'sleb'?"),
        (["--remove", "1", "--utility", "speed"], "unknown utility 'speed'"),
        (["--remove", "1", "--players", "heads"], "unknown players 'heads'"),
        (["--remove", "1", "--memory", "lots"], "--memory 'lots' is not a size: write 4GiB"),
        (["--remove", "1", "--memory", "10B"], "holds no stored state: the smallest that works is"),
        (["--remove", "1", "--device", "cuda:7"], "device 'cuda:7' does not exist"),
        (["--remove", "1", "--device", "toaster"], "unknown device 'toaster'"),
        (["--remove", "1", "--device", "auto", "--workers", "2"], "ask for cpu, or cuda for a GPU each"),
        (["--remove", "1", "--dtype", "int3"], "unknown dtype 'int3'"),
        (["--remove", "1", "--windows", "100000"], "100000 windows of 128 need"),
        (["--remove", "1", "--calibration", "no.txt"], "no.txt cannot be read"),
        (["--remove", "1", "--blocks", "model.norm"], "no block list 'model.norm'"),
        (["--remove", "1", "--method", "official", "--budget", "0"], "budget must be"),
    ],
)
def test_wrong_requests_of_prune(run: Any, model: str, tmp_path: Path, arguments: list[str], message: str) -> None:
    status, printed, error = run("prune", model, "--out", tmp_path / "out", *arguments)
    assert (status, printed) == (2, "")
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_calibration_files_that_do_not_do(run: Any, model: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name, content, message in [
        ("short.txt", b"too short", "10 windows of 128 need 1280"),
        ("empty.txt", b"", "holds no text"),
        ("latin.txt", b"\xff\xfe\x00", "not UTF-8"),
    ]:
        (tmp_path / name).write_bytes(content)
        status, _, error = run("prune", model, "--remove", "1", "--calibration", tmp_path / name, "--out", out)
        assert (status, message in error) == (2, True), error
        assert not out.exists()


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (np.ones((2, L + 1), bool), "masks of 6 players are [M, 6]"),
        (np.ones((2, L)), "dtype float64"),
        (np.array([[None] * L], dtype=object), "no object arrays and no pickles"),
    ],
)
def test_wrong_mask_files(run: Any, model: str, tmp_path: Path, masks: np.ndarray, message: str) -> None:
    np.save(tmp_path / "masks.npy", masks, allow_pickle=True)
    status, _, error = run("evaluate", model, "--masks", tmp_path / "masks.npy", "--out", tmp_path / "w.npz", *SMALL)
    assert (status, message in error) == (2, True), error
    assert not (tmp_path / "w.npz").exists()


def test_shapley_wants_one_source(run: Any, model: str, tmp_path: Path) -> None:
    assert run("shapley")[0] == 2
    assert run("shapley", model, "--worths", tmp_path / "w.npz")[0] == 2
    status, _, error = run("shapley", "--worths", tmp_path / "w.npz", "--estimator", "guess")
    assert (status, "unknown estimator 'guess'" in error) == (2, True)
    (tmp_path / "w.npz").write_bytes(b"something else")
    status, _, error = run("shapley", "--worths", tmp_path / "w.npz")
    assert (status, "not a worths.npz" in error) == (2, True)


def test_a_full_disk_is_a_failure_that_leaves_nothing(model: str, tmp_path: Path) -> None:
    """A limit on file sizes stands in for the full disk: writing the weights fails half-way."""

    def limit() -> None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    command = ["prune", model, "--remove", "1", "--method", "reverse", "--no-repair", "--no-cost", "--samples", "0"]
    done = process(*command, "--out", tmp_path / "out", *SMALL, preexec_fn=limit)
    assert done.returncode == 1, done.stderr
    assert "was not written" in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_output_below_a_file_is_refused_at_once(run: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    status, _, error = run("prune", "anything", "--remove", "1", "--out", tmp_path / "file" / "out")
    assert (status, "is a file, not a folder" in error) == (2, True)


def test_ctrl_c_says_what_is_kept(run: Any, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)  # the signal arrives here

    monkeypatch.setattr("layercoop_fast.masked.model.MaskedModel.measure", interrupted)
    np.save(tmp_path / "masks.npy", np.ones((3, L), bool))
    status, _, error = run("evaluate", model, "--masks", tmp_path / "masks.npy", "--out", tmp_path / "w.npz", *SMALL)
    assert status == 1
    assert "stopped" in error
    assert "kept" in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["masks.npy"]


def test_python_dash_m_from_another_directory_says_a_warning_in_one_line(tmp_path: Path) -> None:
    opt = save_tiny(tmp_path / "opt", "opt", 2)
    command = [sys.executable, "-m", "layercoop_fast", "generate", str(opt), "-p", "x", "-n", "1", "--json"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [line.split(" since ")[0] for line in done.stderr.splitlines()] == [
        f"layercoop-fast: {opt} runs on the blocks of transformers,"
    ]
    assert json.loads(done.stdout)["executor"] == "transformers"


def test_the_same_seed_gives_the_same_worths(run: Any, model: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run("shapley", model, "--budget", "20", "--samples", "50", "--seed", "3", "--out", tmp_path / name, *SMALL)
    assert np.array_equal(Worths.load(tmp_path / "a").worths, Worths.load(tmp_path / "b").worths)
    assert torch.initial_seed() != 3  # nothing was drawn from torch's global state


def test_brackets_in_names_are_no_markup(run: Any, model: str, tmp_path: Path) -> None:
    for name in ("o[v2]", "o[bold]"):
        out = tmp_path / name
        command = ["prune", model, "--remove", 1, "--method", "reverse", "--no-repair", "--no-cost", "--samples", 0]
        status, printed, _ = run(*command, "--out", out, *SMALL)
        assert (status, f"written: {out}" in printed) == (0, True)


def test_a_cost_that_cannot_be_measured_costs_nothing_else(
    run: Any, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> Any:
        raise RunError("no memory for it")

    monkeypatch.setattr("layercoop_fast.pruning.writing.measure_costs", killed)
    command = ["prune", model, "--remove", 1, "--method", "reverse", "--no-repair", "--samples", 0, "--json", *SMALL]
    with pytest.warns(UserWarning, match="no memory for it; the record says nothing of it"):
        status, printed, _ = run(*command, "--out", tmp_path / "out")
    assert status == 0
    assert json.loads(printed)["cost"] is None
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_parameters_that_are_tied_count_once_whatever_else_is_written(tmp_path: Path, run: Any) -> None:
    tied = save_tiny(tmp_path / "tied", n_layers=3, tie_word_embeddings=True)
    whole = AutoModelForCausalLM.from_pretrained(tied).num_parameters()
    command = ["prune", tied, "--remove", 1, "--method", "reverse", "--no-repair", "--no-cost", "--json", *SMALL]
    for samples in (0, 1):
        status, printed, error = run(*command, "--samples", samples, "--out", tmp_path / f"out{samples}")
        assert status == 0, error
        assert json.loads(printed)["params"]["full"] == whole


def test_what_the_model_writes_is_held_out_from_what_it_wrote(run: Any, model: str, tmp_path: Path) -> None:
    command = ["prune", model, "--remove", 1, "--method", "reverse", "--no-repair", "--no-cost", "--json", *SMALL]
    texts = ["--calibration", "self", "--heldout", "self"]
    status, printed, error = run(*command, *texts, "--out", tmp_path / "out")
    assert status == 0, error
    record = json.loads(printed)
    assert record["window_nll"]["full"] != record["heldout"]["window_nll"]["full"]
