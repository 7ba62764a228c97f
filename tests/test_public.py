"""What `import zarrmask` offers."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

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


def test_the_house_stands_on_itself() -> None:
    """Rooms and halls, see docs/architecture.md: what one imports imports nothing of it."""
    root = Path(zarrmask.__file__).parent
    rooms: dict[str, set[str]] = {}
    for path in root.rglob("*.py"):
        room = path.relative_to(root).with_suffix("").parts[0]
        imports = rooms.setdefault(room, set())
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("zarrmask."):
                imports.add(str(node.module).split(".")[1])
    del rooms["__init__"]
    for room, imports in rooms.items():
        imports.discard(room)
    wings = {"stack", "detection", "masking", "pyramid"}
    assert not any(rooms[wing] & wings for wing in wings)
    assert list(TopologicalSorter(rooms).static_order())  # else a CycleError that names them


def test_a_quiet_reporter_keeps_warnings(capsys) -> None:
    reporter = zarrmask.Reporter.quiet()
    reporter.say("said")
    reporter.warn("odd")
    assert reporter.warnings == ["odd"]
    assert capsys.readouterr() == ("", "")
