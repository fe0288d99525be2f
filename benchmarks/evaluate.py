"""How long evaluation takes: kNN, the linear probe and k-means, beside faiss, scikit-learn and
lightly.

    python -m benchmarks.evaluate [--scale 1.0] [--rounds 3]

At scale 1: kNN of 10,000 queries among 50,000 x 512 features (k = 200), a linear probe on those,
k-means of 100,000 x 128 into 3,000 (spherical, 10 iterations). The features are drawn around class
centres, so close that many are mistaken. Interleaved; prints seconds (median) and each one's ratio
to ours, and its accuracy or objective; writes results/evaluate.json. Needs `pip install
'selftaught[bench]'`.
"""

import argparse
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import format_ratio, interleaved, ratios, spread, write
from selftaught.features.knn import KNN
from selftaught.features.linear import LinearProbe
from selftaught.features.metrics import balanced_accuracy
from selftaught.features.protocol import Features
from selftaught.methods.parts.kmeans import kmeans

CLASSES, NEIGHBOURS, TEMPERATURE, ITERATIONS = 10, 200, 0.1, 10
Case = Callable[[], Any]


def features(number: int, width: int, seed: int) -> Features:
    rng = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, width, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, CLASSES, (number,), generator=rng)
    return Features(
        F.normalize(centres[labels] + 9 * torch.randn(number, width, generator=rng), dim=1), labels
    )


def vote(similarity: Tensor, labels: Tensor) -> Tensor:
    """similarity, labels [N, k] -> weighted votes [N, classes]."""
    weights = (similarity / TEMPERATURE).exp()
    return torch.zeros(len(labels), CLASSES).scatter_add_(1, labels, weights)


def knn_cases(train: Features, test: Features) -> dict[str, Case]:
    import faiss
    from lightly.utils.benchmarking import knn_predict
    from sklearn.neighbors import KNeighborsClassifier

    bank = train.vectors.T.contiguous()

    def by_faiss() -> Tensor:
        index = faiss.IndexFlatIP(train.vectors.shape[1])
        index.add(train.vectors.numpy())
        similarity, places = index.search(test.vectors.numpy(), NEIGHBOURS)
        return vote(torch.from_numpy(similarity), train.labels[torch.from_numpy(places)])

    def by_lightly() -> Tensor:
        result = [
            knn_predict(part, bank, train.labels, CLASSES, knn_k=NEIGHBOURS, knn_t=TEMPERATURE)[
                :, 0
            ]
            for part in test.vectors.split(512)
        ]
        return F.one_hot(torch.cat(result), CLASSES).float()

    def by_sklearn() -> Tensor:
        """Without weights: it has none of this kind."""
        kind = KNeighborsClassifier(NEIGHBOURS, algorithm="brute", metric="cosine").fit(
            train.vectors, train.labels
        )
        return torch.from_numpy(kind.predict_proba(test.vectors))

    own = KNN(neighbours=NEIGHBOURS, temperature=TEMPERATURE)
    return {
        "selftaught": lambda: own.score_features(train, test.vectors).values,
        "faiss": by_faiss,
        "lightly": by_lightly,
        "scikit-learn": by_sklearn,
    }


def linear_cases(train: Features, test: Features) -> dict[str, Case]:
    """Ours chooses its penalty among several besides; the others fit once, with theirs as it
    comes.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def by_sklearn() -> Tensor:
        fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200)).fit(
            train.vectors, train.labels
        )
        return torch.from_numpy(fitted.predict_proba(test.vectors))

    def by_sgd() -> Tensor:
        """A frozen backbone's probe as libraries train it: SGD, ten epochs."""
        torch.manual_seed(0)
        probe = torch.nn.Linear(train.vectors.shape[1], CLASSES)
        optimizer = torch.optim.SGD(probe.parameters(), lr=30.0, momentum=0.9)
        for _ in range(10):
            for rows in torch.randperm(len(train.labels)).split(256):
                loss = F.cross_entropy(probe(train.vectors[rows]), train.labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return probe(test.vectors).detach()

    return {
        "selftaught": lambda: LinearProbe().score_features(train, test.vectors).values,
        "scikit-learn, one fit": by_sklearn,
        "SGD, 10 epochs, one fit": by_sgd,
    }


def kmeans_cases(points: Tensor, clusters: int) -> dict[str, Case]:
    import faiss
    from sklearn.cluster import KMeans

    def objective(centroids: Tensor) -> float:
        return float((points @ F.normalize(centroids, dim=1).T).amax(1).mean())

    def by_faiss() -> float:
        result = faiss.Kmeans(points.shape[1], clusters, niter=ITERATIONS, spherical=True, seed=0)
        result.train(points.numpy())
        return objective(torch.from_numpy(result.centroids))

    def by_sklearn() -> float:
        result = KMeans(
            clusters, init="random", n_init=1, max_iter=ITERATIONS, tol=0, random_state=0
        ).fit(points)
        return objective(torch.from_numpy(result.cluster_centers_).float())

    def ours() -> float:
        torch.manual_seed(0)
        return objective(kmeans(points, clusters, iterations=ITERATIONS)[0])

    return {"selftaught": ours, "faiss": by_faiss, "scikit-learn": by_sklearn}


def compare(
    title: str, cases: dict[str, Case], rounds: int, quality: Callable[[Any], float]
) -> dict[str, Any]:
    kept: dict[str, Any] = {}

    def keeping(name: str) -> Case:
        def run() -> None:
            kept[name] = cases[name]()

        return run

    times = interleaved({name: keeping(name) for name in cases}, rounds, warmup=0)
    result = {}
    print(title)
    for name in cases:
        ratio = ratios(times, name, "selftaught")
        result[name] = {
            "seconds": spread(times[name]),
            "times_ours": ratio,
            "quality": quality(kept[name]),
        }
        print(
            f"  {name:26} {result[name]['seconds']['median']:8.2f} s  {format_ratio(ratio):>22} "
            f" {result[name]['quality']:.4f}",
            flush=True,
        )
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    s = args.scale
    train, test = features(int(50_000 * s), 512, 1), features(int(10_000 * s), 512, 2)

    def accuracy(values: Tensor) -> float:
        return balanced_accuracy(test.labels, values)

    print(
        "seconds, times ours: median [least, most]; balanced accuracy, or mean cosine to the"
        " centroid"
    )
    result = {
        "knn": compare("kNN", knn_cases(train, test), args.rounds, accuracy),
        "linear": compare("linear probe", linear_cases(train, test), args.rounds, accuracy),
        "kmeans": compare(
            "k-means",
            kmeans_cases(features(int(100_000 * s), 128, 3).vectors, int(3000 * s)),
            args.rounds,
            lambda objective: objective,
        ),
    }
    packages = {name: version(name) for name in ("faiss-cpu", "scikit-learn", "lightly")}
    write("evaluate", {"packages": packages, "results": result})
