"""Whole models in torch that run the operators of ``sextant.workloads``, and how long they take on a GPU.

What was measured kernel by kernel is put together here: random weights, the same kernels, one CUDA graph per pass. Time
predicted from single kernels is judged by it.
"""
