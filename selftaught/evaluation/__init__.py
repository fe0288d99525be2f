"""Is it worth it: frozen features, scored by fixed protocols, beside random initialisation, with honest
intervals.
"""

from selftaught.data.index.label_budget import Budget, draw
from selftaught.evaluation.classifier import Classifier
from selftaught.evaluation.compare import evaluate
from selftaught.evaluation.results import Difference, Results, Row, verdict
from selftaught.features.extract import cached, extract
from selftaught.features.knn import KNN, nearest
from selftaught.features.linear import Linear
from selftaught.features.protocol import Features, Protocol, Scores

PROTOCOLS: dict[str, type[KNN] | type[Linear]] = {"knn": KNN, "linear": Linear}

__all__ = [
    "KNN",
    "PROTOCOLS",
    "Budget",
    "Classifier",
    "Difference",
    "Features",
    "Linear",
    "Protocol",
    "Results",
    "Row",
    "Scores",
    "cached",
    "draw",
    "evaluate",
    "extract",
    "nearest",
    "verdict",
]
