"""A measured allocation curve: tiny MoE + Engram models, trained at several shares rho of experts, and their losses.

    python -m sextant.validate.allocation.run --out FILE.csv

``corpus`` and ``synthetic`` give tokens, ``sizes`` models of equal parameters and equal FLOPs per token, ``network``,
``experts`` and ``memory`` build them in torch, ``train`` trains one, ``run`` all of them. Needs torch and numpy, for
text also tokenizers.
"""
