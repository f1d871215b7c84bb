"""Runs chosen by what their manifests say."""

from __future__ import annotations

import pytest

from attngraph.errors import ConfigError
from attngraph.store import Run
from attngraph.testing import write_random_run
from attngraph_analyses.selection import Between, selected


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    folder = tmp_path_factory.mktemp("store")
    return [write_random_run(folder, blocks=8, metadata={"haystack": "ab"[seed % 2]}, seed=seed) for seed in range(5)]


@pytest.mark.parametrize(
    ("where", "seeds"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"seed": 3}, [3]),
        ({"seed": [4, 1]}, [1, 4]),
        ({"seed": Between(1, 3)}, [1, 2, 3]),
        ({"haystack": "a", "seed": Between(1, 9)}, [2, 4]),
        ({"config.block_size": "16", "model": ["random", "other"]}, [0, 1, 2, 3, 4]),
    ],
)
def test_all_fields_must_have_one_of_their_values(runs, where, seeds):
    assert [run.manifest.prompt.metadata["seed"] for run in selected(runs, where)] == seeds
    assert [run.manifest.prompt.metadata["seed"] for run in selected(runs[::-1], where)] == seeds[::-1]


def test_a_selection_of_nothing_is_refused(runs):
    with pytest.raises(ConfigError, match=r"None of 5 runs has haystack=c, seed=1"):
        selected(runs, {"haystack": "c", "seed": 1})
    with pytest.raises(ConfigError, match="None of 5 runs has colour=red"):
        selected(runs, {"colour": "red"})
    with pytest.raises(ConfigError, match="seed: no whole number lies between 3 and 2"):
        selected(runs, {"seed": Between(3, 2)})
