from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from prismrec.config import dump
from prismrec.jobs.profile import PARTS, REST
from tests.helpers.runs import make_recipe, write_rows


def test_two_workers_are_traced_and_their_steps_taken_apart(tmp_path: Path) -> None:
    recipe = make_recipe(write_rows(tmp_path / "rows"), "workers.count=2")
    out = tmp_path / "profile"
    program = (
        "import json, sys; from pathlib import Path; from prismrec.config import from_dict;"
        "from prismrec.jobs.profile import profile_recipe\n"
        "if __name__ == '__main__':\n"
        "    recipe = from_dict(json.load(sys.stdin))\n"
        "    print(json.dumps(profile_recipe(recipe, 2, Path(sys.argv[1]), verbose=False)))\n"
    )
    script = tmp_path / "program.py"
    script.write_text(program)
    ended = subprocess.run(
        [sys.executable, str(script), str(out)],
        input=json.dumps(dump(recipe)),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stderr
    document = json.loads(ended.stdout)
    assert document == json.loads((out / "profile.json").read_text())
    assert document["precision"] == "fp32"
    assert list(document["parts"]) == [*PARTS, REST]
    for rank in range(2):
        parts = {part: times[rank] for part, times in document["parts"].items()}
        assert abs(sum(parts.values()) - document["step"][rank]) < 0.01
        for part in ("input exchange", "lookup", "dense forward", "backward", "table update"):
            assert parts[part] > 0, part
        assert parts["optimizer"] > 0
        assert parts["output exchange"] > 0
        events = json.loads(Path(document["traces"][rank]).read_text())["traceEvents"]
        assert sum(each.get("name") == "prismrec step" for each in events) == 2
