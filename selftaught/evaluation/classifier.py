"""What a network's own classifier says: the accuracy of a fine-tuned or distilled network as it is."""

from dataclasses import dataclass

from torch import Tensor

from selftaught.features.protocol import Features, Protocol, Scores


@dataclass(frozen=True, kw_only=True)
class Classifier(Protocol):
    """Nothing is learnt: the "features" are the logits of the classes, in the order of the labels."""

    @property
    def name(self) -> str:
        return "classifier"

    @property
    def learns(self) -> bool:
        return False

    def describe(self) -> str:
        return "the classifier that it was trained with"

    def score(self, train: Features, test: Tensor) -> Scores:
        return Scores(test)
