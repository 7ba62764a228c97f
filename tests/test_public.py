"""What `import zarrmask` offers."""

import subprocess
import sys

import zarrmask
from zarrmask import errors


def test_every_name_that_is_told_of_is_there() -> None:
    for name in zarrmask.__all__:
        assert getattr(zarrmask, name) is not None
    assert set(zarrmask.__all__) <= set(dir(zarrmask))


def test_every_kind_of_error_is_among_them() -> None:
    kinds = {
        kind.__name__ for kind in (errors.ZarrmaskError, *errors.ZarrmaskError.__subclasses__())
    }
    assert kinds == {name for name in zarrmask.__all__ if name.endswith("Error")}


def test_nothing_heavy_is_imported_with_it() -> None:
    script = "import sys, zarrmask; print('numpy' in sys.modules, 'distributed' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert told.stdout == b"False False\n"


def test_who_hands_in_a_run_needs_no_torch() -> None:
    """It is hundreds of megabytes, which forecasts of memory do not count for the client."""
    script = "import sys, zarrmask.running.pipeline; print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert told.stdout == b"False\n"


def test_a_quiet_reporter_keeps_warnings(capsys) -> None:
    reporter = zarrmask.Reporter.quiet()
    reporter.say("said")
    reporter.warn("odd")
    assert reporter.warnings == ["odd"]
    assert capsys.readouterr() == ("", "")
