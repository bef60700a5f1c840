"""The inference copy of a model: export, parity check, prediction, and how MLflow serves it.

`inference.py` is all that a serving process needs; it imports neither MLflow nor training code.
"""
