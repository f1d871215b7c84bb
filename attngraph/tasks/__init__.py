"""Prompts with ground truth: what is asked, where the answer lies, and which tokens play which part."""

from attngraph.tasks.prompt import Prompt, Span
from attngraph.tasks.registry import TASKS, Task, make, score
from attngraph.tasks.ruler import needle

__all__ = ["TASKS", "Prompt", "Span", "Task", "make", "needle", "score"]
