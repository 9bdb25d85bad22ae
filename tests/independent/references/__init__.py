"""Reference modules on torch's meta device: the same architectures as other people's code computes them.

They take dimensions from a ``Transformer`` record and nothing else of the project's. Where no package has a class, the
modules here are written after the published description.
"""
