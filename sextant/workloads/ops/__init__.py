"""Operators of a transformer: each file builds the operators of one mathematical piece, in all three phases."""
