from __future__ import annotations

from pathlib import Path

import pytest

from prismrec.cluster import doctor, network, versions
from prismrec.cluster.doctor import Answer

MISSING = "OSError: libtorch_cuda.so: cannot open shared object file"


def _broken_torch(monkeypatch: pytest.MonkeyPatch, folder: Path, body: str) -> None:
    """Put a module named torch that runs `body` in front of the real one, for new processes."""
    (folder / "torch.py").write_text(body + "\n")
    monkeypatch.setenv("PYTHONPATH", str(folder))


def test_a_broken_library_costs_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _broken_torch(monkeypatch, tmp_path, f"raise OSError({MISSING[9:]!r} + '\\nmore')")
    answer = doctor.probe("torch")
    assert answer == Answer(error=MISSING)
    check = doctor.check_torch(answer)
    assert (check.status, check.found) == ("fail", f"cannot be imported: {MISSING}")
    assert check.fix.endswith("torch==2.13.0")


def test_a_crash_in_native_code_costs_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = "import os, sys\nprint('chatter\\nlast word', file=sys.stderr, flush=True)\nos.abort()"
    _broken_torch(monkeypatch, tmp_path, body)
    assert doctor.probe("torch") == Answer(error="the process ended with code -6: last word")


def test_a_hang_ends_at_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _broken_torch(monkeypatch, tmp_path, "import time\ntime.sleep(60)")
    monkeypatch.setattr(doctor, "DEADLINE_S", 1.0)
    assert doctor.probe("torch") == Answer(error="no answer within 1 s")


def test_sharding_that_fails_names_the_reinstallation() -> None:
    check = doctor.check_sharding(Answer(error=MISSING))
    assert check.status == "fail"
    assert MISSING in check.found
    assert "uninstall -y fbgemm-gpu fbgemm-gpu-cpu" in check.fix
    assert doctor.check_sharding(Answer(value=[0, 1, 3, 6])).status == "ok"


def test_a_table_with_wrong_numbers_fails() -> None:
    good = {"before": [3.0] * 4, "after": [2.0] * 4}
    assert doctor.check_table(Answer(value=good)).status == "ok"
    wrong = doctor.check_table(Answer(value={**good, "after": [3.0] * 4}))
    assert wrong.status == "fail"
    assert "'after': [3.0" in wrong.found


def test_ranks_must_hold_what_the_other_sent() -> None:
    good = (Answer(value=[0.0, 10.0]), Answer(value=[1.0, 11.0]))
    assert doctor.check_ranks(good).status == "ok"
    assert doctor.check_ranks(good[::-1]).status == "fail"
    check = doctor.check_ranks((good[0], Answer(error="RuntimeError: Wait timeout")))
    assert (check.status, check.found) == ("fail", "rank 1: RuntimeError: Wait timeout")
    assert "GLOO_SOCKET_IFNAME" in check.fix


def test_pins(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_pin("numpy", versions.PINS["numpy"]).status == "ok"
    other = doctor.check_pin("ray", "1.0.0")
    assert (other.status, other.fix) == (
        "warn",
        "python -m pip install 'ray[default,serve,train,data,tune]==1.0.0'",
    )
    gone = doctor.check_pin("no-such-distribution", "2.4")
    assert (gone.status, gone.found) == ("fail", "not installed")
    assert gone.fix == "python -m pip install 'no-such-distribution==2.4.*'"


def test_device_names_gpus_and_warns_where_tables_stay_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpus = Answer(value={"version": "2.13.0", "gpus": [["Big", 80 * 2**30], ["Big", 2**30]]})
    monkeypatch.setattr(versions, "installed", {"fbgemm-gpu": "1.8.0"}.get)
    assert doctor.check_device(gpus) == doctor.Check("device", "ok", "Big 80.0 GiB, Big 1.0 GiB")
    monkeypatch.setattr(versions, "installed", {}.get)
    check = doctor.check_device(gpus)
    assert (check.status, "fbgemm-gpu==1.8.0" in check.fix) == ("warn", True)


def test_little_room_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.machine, "memory", lambda: (8 * 2**30, 2**30))
    monkeypatch.setattr(doctor.machine, "free_disk", lambda directory: 2**30)
    monkeypatch.setattr(doctor.machine, "shared_memory", lambda: 64 * 2**20)
    checks = {check.name: check for check in doctor.check_room(tmp_path)}
    assert {check.status for check in checks.values()} == {"ok", "warn"}
    assert checks["memory"].found == "1.0 GiB free of 8.0 GiB"
    assert "--shm-size" in checks["shared memory"].fix
    monkeypatch.setattr(doctor.machine, "shared_memory", lambda: None)
    assert doctor.check_room(tmp_path)[-1].status == "ok"


def test_network_follows_the_variable_and_refuses_an_unknown_interface() -> None:
    name = network.pick_interface()
    assert doctor.check_network(None).found.startswith(f"{name} 127.0.0.1")
    assert doctor.check_network(name).status == "ok"
    check = doctor.check_network("nope0")
    assert (check.status, name in check.fix) == ("fail", True)
    assert "names nope0" in check.found
