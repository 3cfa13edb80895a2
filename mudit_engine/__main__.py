"""`python -m mudit_engine` is `mudit`."""

from __future__ import annotations

from mudit_engine.cli.main import main  # noqa: TID251 (it is the command line)

main()
