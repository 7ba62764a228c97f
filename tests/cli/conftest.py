"""A command line, as a person gives it."""

import signal
import sys

import pytest

from zarrmask import cli


@pytest.fixture
def zarrmask(monkeypatch, capsys, tmp_path):
    """Run a command line; gives its exit code, and what it printed."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["zarrmask", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)
