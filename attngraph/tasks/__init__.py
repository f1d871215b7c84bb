"""Prompts with ground truth: what is asked, where the answer lies, and which tokens play which part."""

from attngraph.tasks.prompt import Prompt, Span
from attngraph.tasks.ruler import needle

__all__ = ["Prompt", "Span", "needle"]
