"""Studies: many runs from one file, resumed where they stopped, and tables of what the analyses say of them.

1. `file` reads the TOML, `plan` makes tasks of it: models × tasks × settings; `checks` checks what needs a tokenizer.
2. `worker` does what a task lacks; `engines`, `processes` and `ray_engine` say who does it.
3. `records` keeps what became of each task; `tables` puts the answers together.
4. `runner` is the whole of it.
"""

from attngraph.study.file import EngineSettings, ModelSpec
from attngraph.study.plan import Analysis, PlannedAnalysis, Study, StudyTask, load
from attngraph.study.runner import Group, Report, read_table, run, status, summary

__all__ = [
    "Analysis",
    "EngineSettings",
    "Group",
    "ModelSpec",
    "PlannedAnalysis",
    "Report",
    "Study",
    "StudyTask",
    "load",
    "read_table",
    "run",
    "status",
    "summary",
]
