"""Capture: from a model and a prompt to a run on disk, what that would take, and what a run says without some edges."""

from attngraph.capture.capture import capture
from attngraph.capture.estimate import Estimate, estimate
from attngraph.capture.kept import Removal
from attngraph.capture.removal import Prediction, predictions

__all__ = ["Estimate", "Prediction", "Removal", "capture", "estimate", "predictions"]
