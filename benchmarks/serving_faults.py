"""The faults that the embedded server is put through, and how it comes out of each.

    python benchmarks/serving_faults.py

Runs the tests of faults, versions and warm-up, half a minute on 2 cores, and writes a row a fault
into ``docs/serving.md``. After each fault done to a running server the next good request is
checked.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from pages import fill

ROOT = Path(__file__).parents[1]
TESTS = tuple(f"tests/serve/test_server_{name}.py" for name in ("faults", "versions", "warmup"))


def table(report: Path) -> str:
    """Markdown: a row a test, cases of one test under its name."""
    outcomes: dict[str, list[bool]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = case.get("name", "").partition("[")[0].removeprefix("test_").replace("_", " ")
        outcomes.setdefault(name, []).append(len(case) == 0)  # a failure or a skip is a child
    lines = ["| fault | cases | passed |", "|---|---|---|"]
    lines += [
        f"| {name} | {len(passed)} | {sum(passed)} |" for name, passed in sorted(outcomes.items())
    ]
    return "\n".join(lines)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-n", "auto", *TESTS, f"--junitxml={report}"]
        status = subprocess.run(command, cwd=ROOT).returncode
        fill(ROOT / "docs" / "serving.md", "benchmarks/serving_faults.py", table(report))
    return status


if __name__ == "__main__":
    sys.exit(main())
