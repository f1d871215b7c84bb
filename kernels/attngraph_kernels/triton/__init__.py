"""The operations of attngraph_kernels as Triton kernels, one module each, with the same names and results.

Imported only where they run: attngraph_kernels works without Triton. `backend.py` says when that is. Every kernel is
started through `launch.launch`, so that a build ahead of time (kernels/benchmarks/builds.py) compiles what a GPU would.
"""
