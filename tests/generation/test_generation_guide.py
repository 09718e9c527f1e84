"""The code of docs/generation.md, run as it stands."""

import re
from pathlib import Path

GUIDE = Path(__file__).parents[2] / "docs" / "generation.md"


def test_the_guide_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text("utf-8"), re.M | re.S)
    assert len(blocks) == 3
    exec(compile("\n".join(blocks), str(GUIDE), "exec"), {})
    assert "(3, 8, 8, 1)" in capsys.readouterr().out
    assert (tmp_path / "exports" / "digits" / "1" / "saved_model.pb").exists()
