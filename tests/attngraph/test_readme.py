"""The README's Python runs as printed, and its commands exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = sorted(set(re.findall(r"^attngraph (\w+)", README, flags=re.MULTILINE)))


@pytest.mark.model
def test_python_examples_run_as_printed(tmp_path: Path) -> None:
    """One after the other in one process, as a reader would type them."""
    assert len(PYTHON) == 3
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(PYTHON)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "needle" in done.stdout
    assert "key_block" in done.stdout
    assert len(list(tmp_path.glob("runs/run=*/run.json"))) == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_exist_and_explain_themselves(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "attngraph", command, "--help"], capture_output=True, text=True, check=True
    )
    assert "Example: attngraph " + command in " ".join(done.stdout.split())


@pytest.mark.parametrize("target", re.findall(r"\]\((docs/[^)]+)\)", README))
def test_linked_pages_exist(target: str) -> None:
    assert (ROOT / target).is_file()
