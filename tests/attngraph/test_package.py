"""The package's door: what a name leads to, and what importing it doesn't load."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import attngraph as ag

HEAVY = ("torch", "transformers", "polars", "pyarrow", "scipy", "networkx", "numpy", "pandas")


def python(code: str) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize(
    "what",
    [
        "import attngraph",
        "from attngraph import StreamConfig, errors; StreamConfig()",
        "import attngraph; dir(attngraph)",
        "import attngraph.cli, sys\nsys.argv = ['attngraph', '--help']\n"
        "try:\n    attngraph.cli.main()\nexcept SystemExit as end:\n    assert end.code == 0",
        "import attngraph.cli, sys\nsys.argv = ['attngraph', 'demo', '--help']\n"
        "try:\n    attngraph.cli.main()\nexcept SystemExit as end:\n    assert end.code == 0",
    ],
    ids=["import", "config", "dir", "help", "help of a command"],
)
def test_heavy_libraries_are_not_loaded_by(what):
    loaded = python(f"{what}\nimport sys\nprint('loaded:', *(set({HEAVY}) & set(sys.modules)))").splitlines()[-1]
    assert loaded == "loaded:"


def test_the_analysis_side_does_not_load_torch():
    code = (
        "import sys, attngraph as ag\nag.routes, ag.influence, ag.throughput, ag.open_run, ag.open_store, ag.Prompt\n"
        "ag.verify_run, ag.testing, ag.graph, ag.store, ag.tasks\nprint({'torch', 'transformers'} & set(sys.modules))"
    )
    assert python(code).strip() == "set()"


@pytest.mark.parametrize("name", ag.__all__)
def test_every_public_name_leads_somewhere(name):
    value = getattr(ag, name)
    assert value is getattr(ag, name)
    assert name in dir(ag)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="module 'attngraph' has no attribute 'trace'"):
        ag.trace  # noqa: B018


@pytest.mark.slow
def test_capture_stays_the_function_when_its_room_is_imported():
    code = (
        "from attngraph.capture.attention import replaced_attention\nimport attngraph\n"
        "from attngraph.capture import capture\nprint(attngraph.capture is capture, type(capture).__name__)"
    )
    assert python(code).strip() == "True function"


def test_the_version_is_that_of_the_distribution():
    from importlib.metadata import version

    assert version("attngraph") == ag.__version__
