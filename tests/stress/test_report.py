"""The stress reports, and the short form of the one about memory."""

import json
import os

import pytest

from data.writers import WRITERS
from engine.files import FailedRun
from tests.stress import __main__ as stress
from tests.stress import memory as stress_memory
from tests.stress import speed as stress_speed
from tests.stress.rows import Row, markdown


def test_reports_make_a_table_and_a_failure_is_exit_code_three(tmp_path, monkeypatch, capsys):
    def good(scratch, thorough):
        assert scratch.is_dir() and not any(scratch.iterdir())
        (scratch / "file").write_text("x")
        yield Row("kills", "9 of them", "9 resumed" + " thoroughly" * thorough, True)

    monkeypatch.setattr(
        stress, "REPORTS", {"good": good, "bad": lambda *a: [Row("x", "1", "no", False)]}
    )
    out = tmp_path / "rows.json"
    stress.main(["good", "--thorough", "--scratch", str(tmp_path), "--out", str(out)])
    row = "| kills | 9 of them | 9 resumed thoroughly | `bash sbin/stress.sh good --thorough` |"
    assert row in capsys.readouterr().out
    assert json.loads(out.read_text())[0]["passed"] and os.listdir(tmp_path) == ["rows.json"]
    with pytest.raises(FailedRun, match="1 of 2 trials failed: x"):
        stress.main([])
    printed = capsys.readouterr().out
    assert (
        "| x | 1 | FAILED: no | `bash sbin/stress.sh bad` |" in printed and "9 resumed" in printed
    )
    assert markdown([]).count("\n") == 1


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="counted by Linux")
def test_what_is_measured(tmp_path):
    path = stress_memory.write_set(tmp_path, images=40, objects=400)
    found = stress_memory.measured_alone(path, 32, workers=1)
    assert found["peak"] >= found["after"] > 50 and found["seconds"] > 0
    assert 1 < found["worker"] < 500 and found["worker"] >= found["worker at first"]


def test_every_format_is_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(stress_speed, "IMAGES", 4)
    monkeypatch.setattr(stress_speed, "BOUND", 100)
    rows = list(stress_speed.report(tmp_path, thorough=False))
    assert [row.what for row in rows] == [f"speed: {name}" for name in WRITERS]
    assert all(row.passed and "ms of CPU per object" in row.result for row in rows)
