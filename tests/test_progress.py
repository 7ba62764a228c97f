"""What a person sees of a run: lines, bars, who is lost."""

import io
import os
import pty
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest
from distributed import Client
from rich.console import Console

from zarrmask.errors import ZarrmaskError
from zarrmask.progress import Reporter
from zarrmask.workers.cluster import connect
from zarrmask.workers.crew import Crew
from zarrmask.workers.peak_memory import PeakMemory, memory_in_use
from zarrmask.workers.processes import WRITING
from zarrmask.workers.vitals import Roll, watched


@pytest.fixture
def told():
    return io.StringIO()


def reporter(told, **options):
    return Reporter(Console(file=told, width=120), interval=0.05, **options)


def test_lines_tell_how_far_a_stage_is_how_fast_and_how_long_it_takes(told):
    told_to = reporter(told, vitals=lambda: "2.1 GB memory")
    with told_to.stage("writing", 4000, "bricks", before=1000, size=4 * 10**9) as advance:
        advance(1000)
        time.sleep(0.12)
    first, *_, last = told.getvalue().splitlines()
    line = (
        r"writing: 2,000 of 4,000 bricks \(50%\); [\d.]+ bricks/s, [\d.]+ GB/s; 0:00:00 left; "
        r"2.1 GB memory"
    )
    assert re.fullmatch(line, first)
    assert re.fullmatch(r"writing: 3,000 bricks in 0.1 s, [\d.]+ bricks/s, [\d.]+ GB/s", last)


def test_bricks_are_told_as_slices_a_second(told):
    with reporter(told).stage("writing", 40, "bricks", size=4 * 10**9, slices=8000) as advance:
        advance(20)
        time.sleep(0.12)
        advance(20)
    first, *_, last = told.getvalue().splitlines()
    told_first = (
        r"writing: 20 of 40 bricks \(50%\); ([\d.]+) slices/s, [\d.]+ [GM]B/s; 0:00:00 left"
    )
    (speed,) = re.fullmatch(told_first, first).groups()
    assert 1000 < float(speed) < 4000 / 0.04
    assert re.fullmatch(r"writing: 40 bricks in 0.1 s, [\d.]+ slices/s, [\d.]+ GB/s", last)


def test_lines_are_told_though_nothing_comes_and_no_more_for_many(told):
    with reporter(told).stage("detecting", 27_000, "slices") as advance:
        time.sleep(0.12)
        assert "detecting: 0 of 27,000 slices (0%)" in told.getvalue()
        for _ in range(27_000):
            advance(1)
    assert len(told.getvalue().splitlines()) < 20


def test_a_stage_of_nothing_is_told_of(told):
    with reporter(told).stage("writing", 0, "bricks"):
        time.sleep(0.06)
    assert told.getvalue().splitlines()[-1] == "writing: 0 bricks in 0.1 s"


PROGRAM = """
import time
from zarrmask.progress import Reporter
reporter = Reporter(vitals=lambda: "2.1 GB memory, 1 of 2 workers (1 lost, 0 regained)")
with reporter.stage("detecting", 30, "slices", before=10, size=30 * 10**8) as advance:
    for _ in range(20):
        time.sleep(0.03)
        advance(1)
    reporter.say("a line above")
"""


BOTH = """
import time
from zarrmask.progress import Reporter
reporter = Reporter(vitals=lambda: "2.1 GB memory")
with reporter.stage("writing", 4, "bricks") as wrote:
    with reporter.stage("detecting", 10, "slices") as detected:
        for _ in range(15):
            time.sleep(0.03)
            detected(1, more=5 if _ == 3 else 0)
    wrote(4)
"""


def on_a_terminal(columns, term="xterm-256color", program=PROGRAM):
    """What a program writes to a terminal of its own."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": term, "COLUMNS": str(columns), "LINES": "30"}
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        environment.pop(name, None)
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    written = b""
    try:
        while part := os.read(ours, 1 << 16):
            written += part
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert process.wait() == 0, written
    return written.decode()


def test_a_terminal_shows_bars(told):
    written = on_a_terminal(140)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)
    assert "\x1b[1A" in written  # drawn again and again in the same place
    frames = re.findall(r"detecting .*?(\d+)/30 slices", text)
    assert frames[0] == "10"
    assert frames[-1] == "30"
    assert len(set(frames)) > 2
    assert re.search(r"━+.* \d+/30 slices +0:00:0\d left", text)
    assert re.search(r"slices/s, .*B/s; 2.1 GB memory, 1 of 2 workers \(1 lost, 0 regained\)", text)
    assert "a line above" in text
    last = text.strip().splitlines()[-1]
    assert "✓ detecting" in last
    assert re.search(r"30/30 slices +0:00:01   [\d.]+ slices/s, [\d.]+ GB/s$", last)


def test_a_terminal_shows_stages_that_go_on_at_once():
    written = on_a_terminal(140, program=BOTH)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)
    assert re.search(r"writing .* 0/4 +bricks\s+. detecting .* \d+/15 slices", text)
    assert re.search(r"  detecting: [\d.]+ slices/s; 2.1 GB memory", text)
    assert "detecting: 15 slices in " in text  # a line, when its bar goes
    last = text.strip().splitlines()[-1]
    assert "✓ writing" in last


@pytest.mark.parametrize("columns", [40, 80])
def test_a_narrow_terminal_is_not_overrun(columns):
    written = on_a_terminal(columns)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)
    lines = [line for part in text.splitlines() for line in part.split("\r")]
    assert max(map(len, lines)) <= columns


def test_a_terminal_that_can_do_nothing_gets_lines():
    written = on_a_terminal(80, term="dumb")
    assert "\x1b" not in written
    assert "detecting: 20 slices in" in written


def test_stages_and_warnings_are_kept_for_the_record(told):
    told_to = reporter(told)
    told_to.warn("a [red]bold[/] name")
    with told_to.stage("writing", 4, "bricks", before=1):
        pass
    assert told_to.warnings == ["a [red]bold[/] name"]
    assert "a [red]bold[/] name" in told.getvalue()
    (stage,) = told_to.stages
    assert (stage.name, stage.items, stage.unit) == ("writing", 3, "bricks")
    assert stage.seconds > 0


def test_stages_may_go_on_at_once_and_more_may_come_to_be_known(told):
    told_to = reporter(told)
    writing = told_to.stage("writing", 4, "bricks")
    with writing, told_to.stage("detecting", 10, "slices", before=2) as advance:
        advance(3, more=5)
        time.sleep(0.07)
    text = told.getvalue()
    assert "writing: 0 of 4 bricks (0%)" in text
    assert "detecting: 5 of 15 slices (33%)" in text
    assert [(stage.name, stage.items) for stage in told_to.stages] == [
        ("detecting", 13),
        ("writing", 4),
    ]


def test_a_stage_that_fails_is_not_kept(told):
    told_to = reporter(told)
    with pytest.raises(ZeroDivisionError), told_to.stage("writing", 4, "bricks"):
        raise ZeroDivisionError
    assert told_to.stages == []


def test_who_is_missing_and_who_stands_in():
    roll = Roll()
    told = []
    for present in ("abc", "abc", "ab", "abd", "ef", "efgh", "efghi"):
        roll.call(frozenset(present))
        told.append(str(roll))
    assert told == [
        "3 of 3 workers",
        "3 of 3 workers",
        "2 of 3 workers (1 lost, 0 regained)",
        "3 of 3 workers (1 lost, 1 regained)",
        "2 of 3 workers (4 lost, 3 regained)",
        "4 of 4 workers (4 lost, 4 regained)",
        "5 of 5 workers (4 lost, 4 regained)",
    ]
    assert roll.record() == {"most": 5, "lost": 4, "regained": 4}


def test_a_worker_that_is_killed_is_told_of_and_so_is_the_one_after_it(told):
    told_to = reporter(told)
    with (
        PeakMemory() as memory,
        connect(Crew(2, 1, None, imported=WRITING), [], Reporter()) as client,
    ):
        with watched(client, told_to, memory) as roll:
            assert "2 of 2 workers" in told_to.vitals()
            assert memory.now > 10**8
            (killed, *_) = client.run(os.getpid).values()
            psutil.Process(killed).kill()
            deadline = time.monotonic() + 60
            while roll.regained < 1 and time.monotonic() < deadline:
                time.sleep(0.1)
        assert roll.record() == {"most": 2, "lost": 1, "regained": 1}
        assert told_to.vitals() == ""
    assert "2 of 2 workers (1 lost, 1 regained)" in told.getvalue()


def test_memory_is_measured_often_on_a_busy_machine_too(monkeypatch):
    measured = []

    def waits_for_its_turn():
        measured.append(time.sleep(0.05))
        return len(measured)

    monkeypatch.setattr("zarrmask.workers.peak_memory.memory_in_use", waits_for_its_turn)
    monkeypatch.setattr(PeakMemory, "SHARE", 1e-3)  # by the clock: twice in 50 seconds
    deadline = time.monotonic() + 30
    with PeakMemory(interval=0.01) as memory:
        while memory.peak < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert memory.peak >= 3


def test_a_cluster_that_somebody_restarts_is_not_called_gone(here, told):
    def work(client, other, memory):
        with watched(client, reporter(told), memory):
            waiting = client.submit(time.sleep, 2)
            other.restart(wait_for_workers=False)
            waiting.result()

    with (
        Client(here) as client,
        Client(here, set_as_default=False) as other,
        PeakMemory() as memory,
        pytest.raises(ZarrmaskError, match="was restarted; run the same command again"),
    ):
        work(client, other, memory)


def test_memory_is_measured_where_the_system_does_not_say_what_is_shared(monkeypatch):
    unshared = SimpleNamespace(uss=3)
    monkeypatch.setattr("psutil.Process.memory_full_info", lambda _: unshared)
    assert memory_in_use() >= 3
