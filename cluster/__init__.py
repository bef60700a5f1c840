"""The machines a run stands on: their network, the checks of `prismrec doctor`, the Ray runtime."""
