"""attngraph: turn a long-context run of a language model into a graph of attention blocks, and ask it questions.

    import attngraph as ag

    lm = ag.load_model("smollm2-135m")
    prompt = ag.tasks.needle(lm.tokenizer, length=4096, seed=0)
    run = ag.capture(lm, prompt, store="runs")
    print(ag.routes(run.graph(), source="needle", target="output", k=3).to_polars())

Every public name is listed here and loaded when it is first used (PEP 562), so that `import attngraph` is quick and the
analysis side works without torch.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from attngraph.config import StreamConfig
from attngraph.version import __version__

if TYPE_CHECKING:
    from attngraph import errors as errors
    from attngraph import graph as graph
    from attngraph import store as store
    from attngraph import study as study
    from attngraph import tasks as tasks
    from attngraph import testing as testing
    from attngraph.capture import capture as capture
    from attngraph.capture import estimate as estimate
    from attngraph.graph import AttentionGraph as AttentionGraph
    from attngraph.models import LanguageModel as LanguageModel
    from attngraph.models import load_model as load_model
    from attngraph.store import Run as Run
    from attngraph.store import Store as Store
    from attngraph.store import open_run as open_run
    from attngraph.store import open_store as open_store
    from attngraph.store import verify_run as verify_run
    from attngraph.store import verify_store as verify_store
    from attngraph.tasks import Prompt as Prompt
    from attngraph.tasks import Span as Span

_HOMES = {
    "ANALYSES": "attngraph_analyses.registry",
    "AttentionGraph": "attngraph.graph",
    "LanguageModel": "attngraph.models",
    "Null": "attngraph_analyses",
    "Prompt": "attngraph.tasks",
    "Run": "attngraph.store",
    "Span": "attngraph.tasks",
    "Store": "attngraph.store",
    "anchors": "attngraph_analyses",
    "betweenness": "attngraph_analyses",
    "bottlenecks": "attngraph_analyses",
    "capture": "attngraph.capture",
    "carrying": "attngraph_analyses",
    "category_profile": "attngraph_analyses",
    "chain": "attngraph_analyses",
    "chain_test": "attngraph_analyses",
    "compare": "attngraph_analyses",
    "compare_anchors": "attngraph_analyses",
    "confirm": "attngraph_analyses",
    "current_flow": "attngraph_analyses",
    "curvature": "attngraph_analyses",
    "diff": "attngraph_analyses",
    "dominators": "attngraph_analyses",
    "estimate": "attngraph.capture",
    "head_roles": "attngraph_analyses",
    "head_stability": "attngraph_analyses",
    "importance_correlation": "attngraph_analyses",
    "influence": "attngraph_analyses",
    "influence_profile": "attngraph_analyses",
    "knockout": "attngraph_analyses",
    "load_model": "attngraph.models",
    "minimum_cut": "attngraph_analyses",
    "necessity": "attngraph_analyses",
    "open_run": "attngraph.store",
    "open_store": "attngraph.store",
    "other_chains": "attngraph_analyses",
    "prune": "attngraph_analyses",
    "reach": "attngraph_analyses",
    "receiver_heads": "attngraph_analyses",
    "role_features": "attngraph_analyses",
    "routes": "attngraph_analyses",
    "sensitivity": "attngraph_analyses",
    "sequence_weight": "attngraph_analyses",
    "sink_effect": "attngraph_analyses",
    "sufficiency": "attngraph_analyses",
    "throughput": "attngraph_analyses",
    "verify_run": "attngraph.store",
    "verify_store": "attngraph.store",
}
_ROOMS = ("errors", "graph", "store", "study", "tasks", "testing")

__all__ = [*_HOMES, *_ROOMS, "StreamConfig", "__version__"]


class _Door(ModuleType):
    """The package as a module in which `capture` stays the function when the room of that name is imported.

    Importing `attngraph.capture`, or anything in it, would otherwise put the room in the function's place.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and name in _HOMES:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Door


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name in _ROOMS:
        value = importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
