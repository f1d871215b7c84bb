"""attngraph_kernels: hierarchical selection of key blocks, and attention over them. Tensors only.

Ground floor of attngraph: it knows nothing of models, files or graphs.
"""

from attngraph_kernels.attend import Attended, Edges, attend, value_norms
from attngraph_kernels.audit import DenseAttention, dense_attention
from attngraph_kernels.backend import Backend, use
from attngraph_kernels.blocks import BlockGrid, into_blocks
from attngraph_kernels.chosen import Chosen
from attngraph_kernels.coreset import Coreset, coreset
from attngraph_kernels.pyramid import Pyramid, pyramid
from attngraph_kernels.removal import attend_given, attend_without
from attngraph_kernels.select import BlockSelection, Exact, Flat, Representative, Selector, Stream, select
from attngraph_kernels.softmax import PLAIN, Softmax

__all__ = [
    "PLAIN",
    "Attended",
    "Backend",
    "BlockGrid",
    "BlockSelection",
    "Chosen",
    "Coreset",
    "DenseAttention",
    "Edges",
    "Exact",
    "Flat",
    "Pyramid",
    "Representative",
    "Selector",
    "Softmax",
    "Stream",
    "attend",
    "attend_given",
    "attend_without",
    "coreset",
    "dense_attention",
    "into_blocks",
    "pyramid",
    "select",
    "use",
    "value_norms",
]
