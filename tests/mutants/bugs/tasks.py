"""Bugs in the scores on tasks of the LM Evaluation Harness, and in perplexities as papers state them."""

from __future__ import annotations

from mutants.bug import Bug

TASKS = "layercoop_fast/tasks/"
RECORDS = "tests/tasks/test_records.py::"

BUGS = [
    Bug(
        "values-that-are-not-the-score",
        TASKS + "score.py",
        old="if np.isfinite(found).all() and np.isclose(found.mean(), score) else None",
        new="if np.isfinite(found).all() else None",
        means="beside a perplexity stands a difference of log-probabilities, with the other sign",
        tests=RECORDS + "test_masks_are_compared_only_where_a_score_is_a_mean_of_documents",
    ),
    Bug(
        "samples-of-every-mask",
        TASKS + "score.py",
        old='    return {**{name: result[name] for name in names}, "scores": scores}',
        new='    return {**result, "scores": scores}',
        means="documents, requests and answers are in memory once for each of thousands of masks",
        tests=RECORDS + "test_documents_and_answers_of_a_mask_are_not_kept",
    ),
    Bug(
        "members-count-beside-their-group",
        TASKS + "means.py",
        old="for name in by_name if name not in inner for one",
        new="for name in by_name for one",
        means="a group of 57 tasks outweighs all others in the mean",
        tests=RECORDS + "test_a_group_counts_once",
    ),
    Bug(
        "group-of-both-kinds",
        TASKS + "means.py",
        old='(by_name[name]["main"] is not None and len(generates) == 1)',
        new='by_name[name]["main"] is not None',
        means="tasks that generate vanish in the mean of those that do not",
        tests=RECORDS + "test_members_count_where_a_group_has_no_score_or_tasks_of_both_kinds",
    ),
    Bug(
        "direction-of-a-group-of-groups",
        TASKS + "score.py",
        old="for task in tasks_of(name, members)} - {None}",
        new="for task in [name]} - {None}",
        means="a group of groups, such as mmlu, is left out of the means",
        tests=RECORDS + "test_a_group_counts_once",
    ),
    Bug(
        "context-without-tokens",
        TASKS + "requests.py",
        old="    if not context:\n",
        new="    if context is None:\n",
        means="a continuation is scored as if its own last token came before it",
        tests="tests/tasks/test_harness.py::test_a_context_without_tokens_is_refused",
    ),
    Bug(
        "first-token-kept",
        TASKS + "requests.py",
        old="tokens = (*context, *continuation)[-(longest + 1) :]",
        new="tokens = (*context[:1], *context[1:][-(longest - len(continuation)) :], *continuation)",
        means="what is too long for the model keeps its first token, other than by the harness's own model",
        tests="tests/tasks/test_harness.py::test_requests_become_the_tokens_that_hf_makes_of_them[too-long]",
    ),
    Bug(
        "answers-of-the-mask-before",
        TASKS + "score.py",
        old="            lm.turn = turn\n",
        new="            lm.turn = max(0, turn - 1)\n",
        means="each mask has the scores of another one",
        tests="tests/tasks/test_harness.py::test_many_masks_in_one_run_score_as_each_exported_checkpoint",
    ),
    Bug(
        "one-sided-mcnemar",
        TASKS + "paired.py",
        old="return min(1.0, 2 * math.fsum(map(math.exp, logs)))",
        new="return min(1.0, math.fsum(map(math.exp, logs)))",
        means="p is half of what it should be",
        tests="tests/tasks/test_paired.py",
    ),
    Bug(
        "compared-with-other-prompts",
        TASKS + "reference.py",
        old="return requests is not None and self.requests.get(task) == requests",
        new="return requests is not None and task in self.requests",
        means="a model with five examples is compared, document by document, with one that had none",
        tests="tests/tasks/test_score_command.py::test_a_folder_is_compared_with_the_full_model_of_an_earlier_run",
    ),
    Bug(
        "windows-of-other-documents",
        TASKS + "harness.py",
        old="        first += count\n",
        new="        first += 1\n",
        means="documents longer than the model are scored with windows of others",
        tests="tests/tasks/test_harness.py::test_requests_become_the_tokens_that_hf_makes_of_them[too-long]",
    ),
    Bug(
        "unpacked-without-a-bound",
        "layercoop_fast/texts/protocols.py",
        old="if read > MAX_TEXT_BYTES:",
        new="if len(line) > MAX_TEXT_BYTES:",
        means="a packed file of a few megabytes fills the memory",
        tests="tests/texts/test_protocols.py::test_what_a_packed_file_unpacks_to_is_bounded",
    ),
    Bug(
        "windows-from-the-end",
        "layercoop_fast/texts/protocols.py",
        old="stream[: windows * WINDOW].reshape(windows, WINDOW)",
        new="stream[-windows * WINDOW :].reshape(windows, WINDOW)",
        means="perplexities are of other windows than those of papers",
        tests="tests/texts/test_protocols.py::test_the_perplexity_is_that_of_the_code_of_gptq",
    ),
]
