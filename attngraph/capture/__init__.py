"""Capture: from a model and a prompt to a run on disk."""

from attngraph.capture.capture import capture

__all__ = ["capture"]
