"""How far do the tagger's rules agree with labelled chains of thought, and the splitter with their sentences?

Run: python tests/benchmarks/tagger.py [--traces FOLDER] [--development NAME ...] [--json]
The folder holds traces as `attngraph.tasks.reasoning.from_json` reads them. The rules were made with the traces named
under --development in view, so agreement is told apart for these and for the others: the latter is what to expect.
Accuracy and Cohen's kappa of the first label, beside the share of the most frequent category (what always naming it
would get), and per category precision and recall. Sentences: the share of the splitter's sentences that begin where a
labelled one does, and the share of labelled ones that it finds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from attngraph.tasks.reasoning import labelled
from attngraph.tasks.sentences import split
from attngraph.tasks.tagger import CATEGORIES, tag

FOLDER = Path(__file__).parents[3] / "shared/data/reasoning"
DEVELOPMENT = (
    "llama-8b_problem_2238_correct",
    "llama-8b_problem_330_correct",
    "llama-8b_problem_330_incorrect",
    "llama-8b_problem_6998_correct",
    "qwen-14b_problem_2238_correct",
    "qwen-14b_problem_330_correct",
    "qwen-14b_problem_6998_correct",
)

Pairs = Sequence[tuple[str, str]]
"""Of every sentence the label and what the rules say."""


@dataclass(frozen=True)
class Agreement:
    """Shares from 0 to 1; kappa is 0 by chance; precision and recall by label."""

    sentences: int
    accuracy: float
    kappa: float
    majority: float
    precision: dict[str, float]
    recall: dict[str, float]
    count: dict[str, int]


def agreement(pairs: Pairs) -> Agreement:
    """Accuracy, Cohen's kappa (1960), the majority's share, and precision and recall of each label that occurs."""
    total = len(pairs)
    labels, found = (Counter(side) for side in zip(*pairs, strict=True))
    hits = Counter(label for label, said in pairs if label == said)
    accuracy = hits.total() / total
    chance = sum(labels[name] * found[name] for name in labels) / total**2
    return Agreement(
        sentences=total,
        accuracy=accuracy,
        kappa=(accuracy - chance) / (1 - chance),
        majority=max(labels.values()) / total,
        precision={name: hits[name] / found[name] if found[name] else 0.0 for name in labels},
        recall={name: hits[name] / labels[name] for name in labels},
        count=dict(labels),
    )


def traces(folder: Path) -> dict[str, Pairs]:
    """Labels and rules' answers of every trace of a folder, by file name."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        trace = labelled(path)
        texts = [trace.solution[start:end] for start, end in trace.sentences]
        found[path.stem] = list(zip((known["category"] for known in trace.known), tag(texts), strict=True))
    return found


def boundaries(folder: Path, names: Sequence[str]) -> tuple[float, float]:
    """Precision and recall of the splitter's sentence beginnings over the traces named."""
    hits = ours = theirs = 0
    for name in names:
        trace = labelled(folder / f"{name}.json")
        mine = {start for start, _ in split(trace.solution[: trace.sentences[-1][1]])}
        labels = {start for start, _ in trace.sentences}
        hits, ours, theirs = hits + len(mine & labels), ours + len(mine), theirs + len(labels)
    return hits / ours, hits / theirs


def report(name: str, known: Agreement, edges: tuple[float, float]) -> None:
    print(
        f"{name}: {known.sentences} sentences, accuracy {known.accuracy:.3f} (majority {known.majority:.3f}), "
        f"kappa {known.kappa:.3f}; sentence beginnings: precision {edges[0]:.3f}, recall {edges[1]:.3f}"
    )
    print("| category | sentences | precision | recall |\n|---|---|---|---|")
    for category in CATEGORIES:
        if category in known.count:
            shares = f"{known.precision[category]:.2f} | {known.recall[category]:.2f}"
            print(f"| {category} | {known.count[category]} | {shares} |")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, default=FOLDER)
    parser.add_argument("--development", nargs="*", default=DEVELOPMENT)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = traces(given.traces)
    if not found:
        print(
            f"Nothing to compare with: there are no traces (*.json) in {given.traces}; give --traces.", file=sys.stderr
        )
        return
    groups = {
        "development": [name for name in found if name in given.development],
        "held out": [name for name in found if name not in given.development],
    }
    known = {
        group: (agreement([pair for name in names for pair in found[name]]), boundaries(given.traces, names))
        for group, names in groups.items()
        if names
    }
    if given.json:
        print(json.dumps({group: asdict(found) | {"boundaries": edges} for group, (found, edges) in known.items()}))
        return
    for group, (agreed, edges) in known.items():
        report(group, agreed, edges)


if __name__ == "__main__":
    main()
