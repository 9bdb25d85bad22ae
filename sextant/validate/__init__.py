"""Measure real kernels, fit, compare. The only package that may import torch."""
