"""Capture: from a model and a prompt to a run on disk, and what that would take."""

from attngraph.capture.capture import capture
from attngraph.capture.estimate import Estimate, estimate

__all__ = ["Estimate", "capture", "estimate"]
