"""The registered model as MLflow loads it: this file is logged as code, nothing is pickled.

`mlflow models serve` runs it in an environment where the same prismrec version is installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel, PythonModelContext

from prismrec.config import UserError
from prismrec.serving.inference import InferenceModel

ARTIFACT = "bundle"
"""Name of the logged artifact that holds the inference copy."""


class RankingModel(PythonModel):
    """Probabilities of every task from the raw columns of the training data."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the inference copy."""
        self._model = InferenceModel.load(Path(context.artifacts[ARTIFACT]))

    def predict(  # type: ignore[override]
        self,
        context: PythonModelContext | None,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """One column of probabilities per task.

        Raises:
            MlflowException: a column is missing or of another type; HTTP 400 in a server.
        """
        try:
            probabilities = self._model.probabilities(self._columns(model_input))
        except UserError as error:
            raise MlflowException(error.message, error_code=INVALID_PARAMETER_VALUE) from None
        return pd.DataFrame(probabilities.numpy(), columns=list(self._model.tasks))

    def _columns(self, model_input: pd.DataFrame) -> dict[str, Any]:
        """The columns of a request.

        MLflow makes one row of a dictionary of columns, each cell holding a whole column: told by
        a list where a single value belongs.
        """
        columns = {str(name): model_input[name] for name in model_input}
        single = [
            name for name, kind in self._model.columns.items() if kind in ("id", "number", "time")
        ]
        if len(model_input) == 1 and any(
            isinstance(columns[name].iloc[0], list | np.ndarray)
            for name in single
            if name in columns
        ):
            return {name: column.iloc[0] for name, column in columns.items()}
        return columns


set_model(RankingModel())
