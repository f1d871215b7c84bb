"""Python that can't import torch and transformers.

`sys.modules["torch"] = None` won't do: SciPy takes what stands there for the module.
"""

WITHOUT_TORCH = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""
