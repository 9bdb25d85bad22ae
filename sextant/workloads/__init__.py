"""Catalogue of models: operators, blocks, models, and how a plan divides them."""
