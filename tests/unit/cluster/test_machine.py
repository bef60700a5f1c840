from __future__ import annotations

from pathlib import Path

from prismrec.cluster import machine


def test_bf16_instructions_are_read_from_the_flags_only(tmp_path: Path) -> None:
    text = "model name : amx_bf16\nflags\t\t: fpu avx512_bf16 avx512f\n"
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(text)
    assert machine.bf16_instructions(tmp_path) == ("avx512_bf16",)
    assert machine.bf16_instructions(tmp_path / "nowhere") == ()


def test_missing_shared_memory_is_none(tmp_path: Path) -> None:
    assert machine.shared_memory(tmp_path / "none") is None
    assert machine.shared_memory(tmp_path) == machine.shared_memory(tmp_path.parent)
