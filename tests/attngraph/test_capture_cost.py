"""What a capture reports of its own cost."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CHILD = "from attngraph.capture.cost import peak_rss_bytes; print(peak_rss_bytes())"
PARENT = f"""
import subprocess, sys
ballast = b"x" * (1 << 30)
sys.stdout.write(subprocess.run([sys.executable, "-c", {CHILD!r}], stdout=subprocess.PIPE, text=True).stdout)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_that_of_the_process_alone():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", PARENT], env=environment, capture_output=True, text=True, check=True)
    assert 10 << 20 < int(run.stdout) < 1 << 30
