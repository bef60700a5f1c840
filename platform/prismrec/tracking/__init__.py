"""The run log and the model registry, both in MLflow.

`run.py` records a run without holding it up, `registry.py` keeps model versions and their aliases.
"""
