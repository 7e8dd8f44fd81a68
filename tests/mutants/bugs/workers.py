"""Bugs in many workers: who does what, what is lost, whether they are alike."""

# ruff: noqa: E501 - names of tests are long
from __future__ import annotations

from mutants.bug import Bug

DISPATCH = "tests/workers/test_dispatch.py"

BUGS = [
    Bug(
        "lost-masks-measured-again",
        "layercoop_fast/workers/dispatch.py",
        old="rows = job.rows[job.missing]",
        new="rows = job.rows",
        means="after the loss of a worker all its masks are measured once more, those that came too",
        tests=DISPATCH,
    ),
    Bug(
        "lost-for-ever",
        "layercoop_fast/workers/dispatch.py",
        old="if job is not None and job.losses:",
        new="if job is not None and job.losses > 9:",
        means="masks that kill every worker are tried again and again",
        tests=DISPATCH,
    ),
    Bug(
        "late-worker-unlike",
        "layercoop_fast/workers/dispatch.py",
        old="if self.tolerant or likeness(message.about) == self._likeness:",
        new="if self.tolerant or message.about:",
        means="a replacement on another machine mixes its bits into a run",
        tests=DISPATCH,
    ),
    Bug(
        "game-before",
        "layercoop_fast/workers/dispatch.py",
        old="if self.is_open and name == self._game:",
        new="if self.is_open:",
        means="workers go on with the game before, and worths are of another text",
        tests=DISPATCH + " tests/workers/test_views.py",
    ),
    Bug(
        "stopped-map-leaves-jobs",
        "layercoop_fast/workers/dispatch.py",
        old="        self._opening.clear()\n        self._idle.clear()\n        self._jobs.clear()\n",
        new="        self._opening.clear()\n        self._idle.clear()\n",
        means="after an interrupted run the next one waits for the old one's tasks",
        tests=DISPATCH + " tests/workers/test_local.py",
    ),
    Bug(
        "states-of-the-largest",
        "layercoop_fast/workers/dispatch.py",
        old='self.states = min(report["states"] for report in reports.values())',
        new='self.states = max(report["states"] for report in reports.values())',
        means="plans are made for the worker with the most memory, and the others run out of it",
        tests=DISPATCH,
    ),
    Bug(
        "likeness-without-the-machine",
        "layercoop_fast/workers/fingerprints.py",
        old='return {**game, **numerics, **report["machine"]}',
        new="return {**game, **numerics}",
        means="workers on different processors count as alike",
        tests="tests/workers/test_fingerprints.py",
    ),
    Bug(
        "tolerant-without-a-word",
        "layercoop_fast/workers/fingerprints.py",
        old='numerics.update({key: "mixed" for key in unlike if key in numerics})',
        new="numerics.update({})",
        means="worths of unlike workers carry the fingerprint of one machine",
        tests="tests/workers/test_fingerprints.py",
    ),
    Bug(
        "cut-forgets-the-shared-prefix",
        "layercoop_fast/workers/cut.py",
        old="cost = float(behind[last] - behind[first] + shared[first])",
        new="cost = float(behind[last] - behind[first])",
        means="the work of tasks, and the time left, is understated",
        tests="tests/workers/test_cut.py",
    ),
    Bug(
        "cut-where-much-is-shared",
        "layercoop_fast/workers/cut.py",
        old="borders.append(int(candidates[np.lexsort((farness, shared[candidates]))[0]]))",
        new="borders.append(int(candidates[np.lexsort((farness, -shared[candidates]))[0]]))",
        means="tasks are cut where two workers compute the most twice",
        tests="tests/workers/test_cut.py",
    ),
    Bug(
        "prefix-with-the-one-before",
        "layercoop_fast/workers/cut.py",
        old="before = np.arange(masks.shape[1]) < first_difference[:, None]",
        new="before = np.arange(masks.shape[1]) <= first_difference[:, None]",
        means="what two masks share is overstated by the player in which they differ",
        tests="tests/workers/test_cut.py",
    ),
    Bug(
        "worker-share-of-memory",
        "layercoop_fast/workers/worker.py",
        old='share = about["shares"].get(machine, 1)',
        new='share = about["shares"].get(machine, 1) and 1',
        means="every worker of a machine takes the memory of all",
        tests="tests/workers/test_local.py tests/workers/test_dispatch.py",
    ),
    Bug(
        "worker-threads",
        "layercoop_fast/workers/worker.py",
        old='    torch.set_num_threads(about["threads"])\n',
        new="",
        means="every worker takes all processors",
        tests="tests/workers/test_local.py tests/cli/test_workers.py",
    ),
    Bug(
        "worker-loses-its-last-rows",
        "layercoop_fast/workers/worker.py",
        old="    stream.flush(finished=True)",
        new="    stream._rows.clear()\n    stream._nll.clear()\n    stream._kl.clear()\n    stream.flush(finished=True)",
        means="what a worker measured since its last message is lost",
        tests="tests/workers/test_local.py tests/workers/test_views.py",
    ),
    Bug(
        "view-of-another-game",
        "layercoop_fast/workers/worker.py",
        old='if key not in ("game", "teacher", "domains")',
        new='if key not in ("game", "teacher", "domains", "players")',
        means="workers play a game on sublayers with the players of the game before",
        tests="tests/workers/test_views.py",
    ),
]
