import io
import time

import pytest
from rich.console import Console

from zarrmask.progress import Reporter


@pytest.fixture
def told():
    return io.StringIO()


def reporter(told, **options):
    return Reporter(Console(file=told, width=120, **options), interval=0.01)


def test_lines_tell_how_far_a_stage_is_and_how_long_it_takes(told):
    with reporter(told).stage("writing", 4, "bricks") as advance:
        for _ in range(2):
            time.sleep(0.02)
            advance(1)
    first, *_, last = told.getvalue().splitlines()
    assert first.startswith("writing: 1 of 4 bricks, ")
    assert "bricks/s" in first
    assert first.endswith(" s left")
    assert last.startswith("writing: 4 bricks in ")


def test_bars_show_count_rate_and_time(told):
    with reporter(told, force_terminal=True).stage("detecting", 3, "slices") as advance:
        for _ in range(3):
            time.sleep(0.02)
            advance(1)
    last = told.getvalue()
    assert "detecting" in last
    assert "3/3" in last
    assert "slices/s" in last


def test_stages_and_warnings_are_kept_for_the_record(told):
    told_to = reporter(told)
    told_to.warn("a [red]bold[/] name")
    with told_to.stage("writing", 4, "bricks"):
        pass
    assert told_to.warnings == ["a [red]bold[/] name"]
    assert "a [red]bold[/] name" in told.getvalue()
    (stage,) = told_to.stages
    assert (stage.name, stage.items, stage.unit) == ("writing", 4, "bricks")
    assert stage.seconds >= 0


def test_a_stage_that_fails_is_not_kept(told):
    told_to = reporter(told)
    with pytest.raises(ZeroDivisionError), told_to.stage("writing", 4, "bricks"):
        raise ZeroDivisionError
    assert told_to.stages == []
