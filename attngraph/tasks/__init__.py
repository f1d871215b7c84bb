"""Prompts with ground truth: what is asked, where the answer lies, and which tokens play which part."""

from attngraph.tasks import reasoning
from attngraph.tasks.needles import multikey, multiquery, multivalue, needle
from attngraph.tasks.prompt import Prompt, Span
from attngraph.tasks.registry import TASKS, Task, make, score
from attngraph.tasks.variables import variable_tracking
from attngraph.tasks.words import common_words, frequent_words

__all__ = [
    "TASKS",
    "Prompt",
    "Span",
    "Task",
    "common_words",
    "frequent_words",
    "make",
    "multikey",
    "multiquery",
    "multivalue",
    "needle",
    "reasoning",
    "score",
    "variable_tracking",
]
