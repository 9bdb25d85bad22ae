"""Sextant: how fast, how big and how costly is a sparse model on a cluster, before anyone rents a GPU."""

__version__ = "0.7.0"
