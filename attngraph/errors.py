"""The exceptions of attngraph: one tree, so that `except AttngraphError` catches every refusal.

Each message names the value, the limit it broke and the way out.
"""


class AttngraphError(Exception):
    """Base of every error that attngraph raises on purpose."""


class ConfigError(AttngraphError, ValueError):
    """A setting is outside what attngraph or this prompt allows."""


class BudgetError(AttngraphError):
    """No budget keeps the dense model's next tokens."""


class MissingDependencyError(AttngraphError, ImportError):
    """An optional package is not installed; the message holds the command that installs it."""


class ModelError(AttngraphError):
    """A model can't be found, loaded or traced faithfully."""


class UnsupportedModelError(ModelError):
    """The model loads, but its attention can't be traced faithfully."""


class PromptError(AttngraphError, ValueError):
    """A prompt or one of its spans is unusable."""


class StoreError(AttngraphError):
    """A store or a run can't be read or written."""


class StudyError(AttngraphError, ValueError):
    """A study file asks for what there isn't, or can't be carried out."""


class RunNotFoundError(StoreError):
    """There is no complete run at this path."""


class IntegrityError(StoreError):
    """A run's files are not the ones that its manifest describes."""


class GraphError(AttngraphError):
    """A question that this graph can't answer."""


class UnknownNodeError(GraphError, LookupError):
    """A source or target names nothing in this graph."""


class NoRouteError(GraphError):
    """No path leads from the source to the target."""
