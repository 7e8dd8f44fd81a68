"""Bugs in the kernels' Python sides."""

from __future__ import annotations

from mutants.bug import Bug

BUGS = [
    Bug(
        "asked-tokens-descending",
        "layercoop_fast/kernels/attention.py",
        old="bool((asked.diff() <= 0).any())",
        new="bool((asked.diff() < 0).any())",
        means="the same token asked for twice is not refused",
        tests="tests/kernels/test_attention.py",
    ),
    Bug(
        "tree-parent",
        "layercoop_fast/kernels/reference/attention.py",
        old="seen[window, token] = seen[window, latest[position - 1]]",
        new="seen[window, token] = seen[window, token - 1]",
        means="options see the options beside them",
        tests="tests/kernels/test_attention.py",
    ),
    Bug(
        "core-multiplies-what-is-not-row-by-row",
        "layercoop_fast/kernels/linear.py",
        old="return x.is_contiguous() and weight.is_contiguous() and out.is_contiguous()",
        new="return x.is_contiguous() and weight.is_contiguous()",
        means="products into a transposed result are wrong on processors without bf16",
        tests="tests/kernels/test_unpacked_linear.py",
    ),
    Bug(
        "tile-offset",
        "layercoop_fast/kernels/linear_cross_entropy.py",
        old="sums.add(logits, teacher_logits, first_word)",
        new="sums.add(logits, teacher_logits, 0)",
        means="losses of targets beyond the first tile of words are wrong",
        tests="tests/kernels/test_linear_cross_entropy.py",
    ),
    Bug(
        "bias-of-the-first-tile",
        "layercoop_fast/kernels/linear_cross_entropy.py",
        old="tile_bias = None if bias is None else bias[words]",
        new="tile_bias = None if bias is None else bias[: len(weight[words])]",
        means="heads with a bias and a large vocabulary give wrong losses",
        tests="tests/kernels/test_linear_cross_entropy.py",
    ),
    Bug(
        "divergence-without-its-log-sum",
        "layercoop_fast/kernels/running_loss.py",
        old="self.teacher[:, 1] - _log_sum(self.teacher) + _log_sum(",
        new="self.teacher[:, 1] + _log_sum(",
        means="divergences are off by the teacher's log-sum",
        tests="tests/kernels/test_linear_cross_entropy.py",
    ),
    Bug(
        "targets-beyond-the-words",
        "layercoop_fast/kernels/linear_cross_entropy.py",
        old="not 0 <= int(targets.min()) <= int(targets.max()) < words:",
        new="not 0 <= int(targets.min()) <= int(targets.max()) <= words:",
        means="a target one beyond the vocabulary reads what lies behind it",
        tests="tests/kernels/test_linear_cross_entropy.py",
    ),
    Bug(
        "rows-not-padded",
        "layercoop_fast/kernels/linear_cross_entropy.py",
        old="missing = MIN_ROWS - len(states)",
        new="missing = 0",
        means="the loss of a few rows differs from that of the same rows among many",
        tests="tests/kernels/test_linear_cross_entropy.py",
    ),
    Bug(
        "sum-of-norms",
        "layercoop_fast/kernels/rms_norm.py",
        old="launch_norm(x, weight, eps, out, delta=delta, keep=keep, total=total, gemma=gemma)",
        new="launch_norm(x, weight, eps, out, gemma=gemma)",
        means="on a GPU what attention added is left out of the norm behind it",
        tests="tests/kernels/gpu/test_gather_norm.py tests/masked/test_pool_units.py",
    ),
    Bug(
        "pool-residual",
        "layercoop_fast/kernels/reference/blocks.py",
        old="stream = pool[sources.long()] if sources is not None else residual",
        new="stream = pool[targets.long()] if sources is not None else residual",
        means="without Triton a GPU's blocks add to the state that they are to replace",
        tests="tests/masked/test_pool_units.py tests/kernels/gpu/test_scatter_residual.py",
    ),
    Bug(
        "weights-beyond-fp32",
        "layercoop_fast/kernels/surrogate.py",
        old="if max(inner.max(), outer.max()) > _LARGEST:",
        new="if outer.max() > _LARGEST * 1e9:",
        means="networks whose values overflow are not refused",
        tests="tests/kernels/test_surrogate.py",
    ),
    Bug(
        "teacher-of-another-dtype",
        "layercoop_fast/kernels/linear_divergence.py",
        old=" or (expected is not None and expected.dtype != logits.dtype)",
        new="",
        means="a teacher in another dtype than the student's ends healing with a TypeError",
        tests="tests/kernels/test_linear_divergence.py::test_a_teacher_in_another_dtype",
    ),
]
