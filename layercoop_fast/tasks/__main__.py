"""The LM Evaluation Harness's own command, with the model `layercoop` registered: `python -m layercoop_fast.tasks`."""

from __future__ import annotations

import sys

from layercoop_fast.errors import LayercoopError


def main() -> None:
    """Run the harness's command; errors of this package are one line and the exit status that they carry."""
    try:
        from layercoop_fast.tasks.loading import require_harness

        require_harness()
        from lm_eval.__main__ import cli_evaluate

        from layercoop_fast.tasks.plugin import register

        register()
        cli_evaluate()
    except LayercoopError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(error.status) from error


if __name__ == "__main__":
    main()
