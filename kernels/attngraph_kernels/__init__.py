"""attngraph_kernels: hierarchical selection of key blocks, and attention over them. Tensors only.

Ground floor of attngraph: it knows nothing of models, files or graphs.
"""

from attngraph_kernels.attend import Attended, Edges, attend, value_norms
from attngraph_kernels.blocks import BlockGrid, into_blocks
from attngraph_kernels.chosen import Chosen
from attngraph_kernels.coreset import Coreset, coreset
from attngraph_kernels.pyramid import Pyramid, pyramid
from attngraph_kernels.select import BlockSelection, Exact, Selector, Stream, select

__all__ = [
    "Attended",
    "BlockGrid",
    "BlockSelection",
    "Chosen",
    "Coreset",
    "Edges",
    "Exact",
    "Pyramid",
    "Selector",
    "Stream",
    "attend",
    "coreset",
    "into_blocks",
    "pyramid",
    "select",
    "value_norms",
]
