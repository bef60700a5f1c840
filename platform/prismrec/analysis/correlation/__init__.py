"""Category-wise target-aware correlation: what histories say in the data, and what a model makes of it."""

from prismrec.analysis.correlation.information import (
    PLUG_IN,
    Counts,
    Estimate,
    min_max,
    mutual_information,
    standard_error,
)
from prismrec.analysis.correlation.learned import LearnedMap, learned_map, normalised
from prismrec.analysis.correlation.retrieval import model_ndcg, retrieval_ndcg
from prismrec.analysis.correlation.score import Scores, score, spearman, tells_apart
from prismrec.analysis.correlation.tables import table_map
from prismrec.analysis.correlation.truth import Question, count_behaviours, question_of

__all__ = [
    "PLUG_IN",
    "Counts",
    "Estimate",
    "LearnedMap",
    "Question",
    "Scores",
    "count_behaviours",
    "learned_map",
    "min_max",
    "model_ndcg",
    "mutual_information",
    "normalised",
    "question_of",
    "retrieval_ndcg",
    "score",
    "spearman",
    "standard_error",
    "table_map",
    "tells_apart",
]
