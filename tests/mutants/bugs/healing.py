"""Bugs in healing."""

from __future__ import annotations

from mutants.bug import Bug

HEAL, STATE, WRITING = (f"tests/healing/test_{name}.py" for name in ("heal", "state", "writing"))
TEACHER = "tests/healing/test_teacher.py"

BUGS = [
    Bug(
        "heldout-windows-trained-on",
        "layercoop_fast/healing/texts.py",
        old="found.append(replace(kind, train=kind.train[torch.from_numpy(fresh)]))",
        new="found.append(kind)",
        means="windows that the quality is reported on are trained on, where a text repeats itself",
        tests=f"{TEACHER}::test_a_text_under_two_names_is_held_out_under_both",
    ),
    Bug(
        "fingerprint-without-heldout",
        "layercoop_fast/healing/texts.py",
        old="for windows in (kind.train, kind.choice, kind.check):",
        new="for windows in (kind.train,):",
        means="a stopped run goes on although its state was chosen on other held-out windows",
        tests=f"{TEACHER}::test_other_heldout_windows_are_other_texts",
    ),
    Bug(
        "state-of-another-dtype",
        "layercoop_fast/healing/state.py",
        old="found = {name: (info.shape, DTYPES.get(info.dtype)) for name, info in header.tensors.items()}",
        new="found = {name: (info.shape, expected[name].dtype) for name, info in header.tensors.items()}",
        means="a state of rounded moments is taken up as if it were whole",
        tests=f"{STATE}::test_a_state_of_other_tensors_is_refused",
    ),
    Bug(
        "resumed-run-asks-memory-again",
        "layercoop_fast/healing/preparing.py",
        old='found["checkpointing"] = begun["checkpointing"]',
        new='found["checkpointing"] = None',
        means="a stopped run cannot go on where less memory is free than when it began",
        tests=f"{STATE}::test_a_stopped_run_goes_on_to_the_same_weights",
    ),
    Bug(
        "writing-counts",
        "layercoop_fast/healing/loop.py",
        old="        self._began += self._cost\n",
        new="",
        means="the time that the state takes to write is taken from the training",
        tests=f"{STATE}::test_a_state_is_written_seldom_where_that_takes_long",
    ),
    Bug(
        "force-throws-a-resumed-state-away",
        "layercoop_fast/healing/heal.py",
        old="if plan.processes.first and not request.resume:",
        new="if plan.processes.first and request.force:",
        means="a run in place that goes on loses its state before it reads it",
        tests=f"{STATE}::test_a_run_in_place_is_stopped_and_goes_on",
    ),
    Bug(
        "written-in-the-products-dtype",
        "layercoop_fast/healing/preparing.py",
        old="cut = open_checkpoint(model, **how)",
        new="cut = open_checkpoint(model, **how, dtype=request.dtype)",
        means="with --dtype float32 the healed checkpoint is twice as large as the pruned one",
        tests=f"{WRITING}::test_what_is_written_has_the_dtype_of_the_pruned_checkpoint",
    ),
    Bug(
        "two-dtypes-compared",
        "layercoop_fast/healing/writing.py",
        old="    before = look(Reader(again.model), texts)\n    harmed",
        new="    harmed",
        means="healed weights are thrown away since bf16 rounds otherwise than fp32",
        tests=f"{WRITING}::test_models_are_compared_in_one_dtype",
    ),
    Bug(
        "best-weights-not-taken",
        "layercoop_fast/healing/loop.py",
        old="            for name, value in self._best.items():\n                self.plan.trained[name].copy_(value)",
        new="            pass",
        means="the latest weights are written, not the best ones, and those of a run that harmed are written too",
        tests=f"{HEAL}::test_a_loss_that_is_not_finite_ends_at_the_best_state",
    ),
    Bug(
        "removed-halves-trained",
        "layercoop_fast/healing/trained.py",
        old="return parameter.dim() > 1 and not bool(parameter.any())",
        new="return False",
        means="halves of blocks that were removed come back",
        tests=f"{HEAL}::test_a_removed_half_stays_removed",
    ),
]
