"""Bugs in what people read: tables, charts, figures of cost."""

from __future__ import annotations

from mutants.bug import Bug

BUGS = [
    Bug(
        "costs-tied-weights-twice",
        "layercoop_fast/pruning/checkpoint_costs.py",
        old="parameters = list(model.parameters())",
        new="parameters = [one for _, one in model.named_parameters(remove_duplicate=False)]",
        means="parameters of models with a tied head are counted twice",
        tests="tests/pruning/test_checkpoint_costs_here.py",
    ),
    Bug(
        "cache-of-half-the-prompt",
        "layercoop_fast/pruning/checkpoint_costs.py",
        old="_cache_bytes(model, ids[:, : prompt // 2 + 1]) - _cache_bytes(model, ids[:, : prompt // 2])",
        new="_cache_bytes(model, ids[:, : prompt // 2])",
        means="the cache a token is stated as that of a whole prompt",
        tests="tests/pruning/test_checkpoint_costs_here.py",
    ),
    Bug(
        "decode-speed-with-the-prompt",
        "layercoop_fast/pruning/checkpoint_costs.py",
        old="decode_tok_s=round(new / max(all_of_them - first, 1e-9), 2)",
        new="decode_tok_s=round(new / max(all_of_them, 1e-9), 2)",
        means="decoding is stated as slower than it is, by the prompt",
        tests="tests/pruning/test_checkpoint_costs_here.py",
    ),
    Bug(
        "samples-repeat-the-prompt",
        "layercoop_fast/pruning/generations.py",
        old="return [self._text(row[ids.shape[1] :]) for row in written]",
        new="return [self._text(row) for row in written]",
        means="samples in the report begin with the prompt",
        tests="tests/pruning/test_generations.py",
    ),
    Bug(
        "rerun-without-no",
        "layercoop_fast/pruning/rerun.py",
        old="words.append(flag_of(one, on=value))",
        new="words.append(flag_of(one))",
        means="the command in a record does the opposite of what was asked",
        tests="tests/pruning/test_rerun.py",
    ),
    Bug(
        "html-not-escaped",
        "layercoop_fast/report/html/markup.py",
        old="return html.escape(str(value).translate(_CONTROL))",
        new="return str(value).translate(_CONTROL)",
        means="what a model writes becomes part of the page",
        tests="tests/report/html/test_markup.py tests/report/html/test_page.py",
    ),
    Bug(
        "numbers-rounded-short",
        "layercoop_fast/report/html/markup.py",
        old="max(0, digits - 1 - math.floor(math.log10(abs(value))))",
        new="max(0, digits - 2 - math.floor(math.log10(abs(value))))",
        means="figures in reports have a digit too few",
        tests="tests/report/html/test_markup.py tests/report/html/test_page.py",
    ),
    Bug(
        "chart-upside-down",
        "layercoop_fast/report/html/charts.py",
        old="return round(height - bottom - (y.place(value) - y_low) / (y_high - y_low) * (height - top - bottom), 1)",
        new="return round(top + (y.place(value) - y_low) / (y_high - y_low) * (height - top - bottom), 1)",
        means="charts rise where values fall",
        tests="tests/report/html/test_charts.py tests/report/html/test_page.py",
    ),
    Bug(
        "ticks-outside",
        "layercoop_fast/report/html/charts.py",
        old="first = math.ceil(low / step)",
        new="first = math.floor(low / step)",
        means="a chart's first tick is drawn outside of it",
        tests="tests/report/html/test_ticks.py",
    ),
    Bug(
        "values-table-order",
        "layercoop_fast/report/values.py",
        old='"order": np.argsort(between.values, kind="stable").tolist(),',
        new='"order": np.argsort(-between.values, kind="stable").tolist(),',
        means="values.npz orders players from the most valuable on",
        tests="tests/cli/test_shapley.py",
    ),
    Bug(
        "values-best-masks",
        "layercoop_fast/report/values.py",
        old='mask[row["removed"]] = False',
        new='mask[row["kept"]] = False',
        means="best masks in values.npz are other masks",
        tests="tests/cli/test_shapley.py",
    ),
]
