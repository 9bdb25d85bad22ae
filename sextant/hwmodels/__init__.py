"""Catalogue of hardware: one sourced file per GPU and cluster, found by its name."""
