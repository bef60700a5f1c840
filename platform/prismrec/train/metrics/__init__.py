"""Exact metrics of binary tasks: functions on arrays, and the same numbers over rows spread over ranks.

`functions`, `calibration` and `bootstrap` hold the definitions, on numpy arrays of one process.
`Evaluation` gathers rows batch by batch on every rank and computes the same values without
any rank ever holding all rows.
"""

from prismrec.train.metrics.bootstrap import Resampling, bootstrap_auc, bootstrap_auc_difference
from prismrec.train.metrics.calibration import (
    CalibrationCurve,
    calibration_curve,
    expected_calibration_error,
)
from prismrec.train.metrics.evaluation import Evaluation
from prismrec.train.metrics.functions import (
    auc,
    gauc,
    log_loss,
    normalized_entropy,
    pcoc,
    relative_information_gain,
    row_log_loss,
    sigmoid,
)

__all__ = [
    "CalibrationCurve",
    "Evaluation",
    "Resampling",
    "auc",
    "bootstrap_auc",
    "bootstrap_auc_difference",
    "calibration_curve",
    "expected_calibration_error",
    "gauc",
    "log_loss",
    "normalized_entropy",
    "pcoc",
    "relative_information_gain",
    "row_log_loss",
    "sigmoid",
]
