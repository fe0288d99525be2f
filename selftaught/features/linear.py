"""A linear probe: logistic regression by L-BFGS, with a penalty chosen on training images."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from selftaught.features.lbfgs import minimise
from selftaught.features.protocol import FeatureProtocol, Features, Scores, class_count
from selftaught.ranges import Count, Natural, Positive, Seed, TwoOrMore, check_given, check_ranges


@dataclass(frozen=True, eq=False)
class LinearClassifier:
    """A fitted probe as a linear layer: logits [M, C] = features [M, D] @ weight.T + bias.

    weight [C, D] and bias [C] float64 are of features that are not standardised.
    """

    weight: Tensor
    bias: Tensor
    penalty: float


@dataclass(frozen=True, kw_only=True)
class LinearProbe(FeatureProtocol):
    """Logistic regression: sum of cross-entropies + penalty / 2 * |weights|^2, with a free bias.

    It is multinomial for one class an image, and one regression a class for several. The penalty is
    sklearn's 1 / C. Features are standardised by the training images. The penalty is that of
    `penalties` with the smallest cross-entropy on held-out training images:

    - up to `cross_validate` images: stratified cross-validation with `folds` folds;
    - above: one fold, of at most `choose_on` images drawn at random.

    The probe is then fitted to all training images. With one image a class no image can be held
    out, and the penalty is `fallback`.
    """

    # those to choose from
    penalties: tuple[Positive, ...] = (0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0, 100000.0)
    fallback: Positive = 1000.0  # penalty with one image a class
    folds: TwoOrMore = 5  # parts of the training images, of which one is held out
    cross_validate: Natural = 2000  # up to so many training images every part is held out once
    choose_on: Count = 20000  # at most so many training images choose the penalty
    iterations: Count = 300  # of L-BFGS, at most
    seed: Seed = 0  # of the parts

    def __post_init__(self) -> None:
        check_given(self, "linear", "penalties")
        check_ranges(self, "linear")

    @property
    def name(self) -> str:
        return "linear"

    def describe(self) -> str:
        grid = ", ".join(f"{p:g}" for p in self.penalties)
        return (
            f"logistic regression, standardised features, penalty of {grid} chosen on training"
            " images"
        )

    @torch.no_grad()
    def settle(self, train: Features) -> "LinearProbe":
        problem = _Problem(self.sample(train), self.iterations)
        return replace(self, penalties=(self.choose_penalty(problem),))

    def score_features(self, train: Features, test: Tensor) -> Scores:
        problem, weights, penalty = self._fit(train)
        return Scores(problem.predict(test, weights), {"penalty": penalty})

    def fit(self, train: Features) -> LinearClassifier:
        """Fit the probe to all training images, with the penalty that `score_features` chooses."""
        problem, weights, penalty = self._fit(train)
        return LinearClassifier(*problem.undo_standardisation(weights), penalty)

    @torch.no_grad()
    def _fit(self, train: Features) -> tuple["_Problem", Tensor, float]:
        """The standardised images, weights and biases [C, R + 1], and the penalty."""
        problem, sample = _Problem(train, self.iterations), self.sample(train)
        few = problem if sample is train else _Problem(sample, self.iterations)
        penalty = self.choose_penalty(few)
        return problem, problem.fit(penalty, torch.tensor([-1]))[0], penalty

    def sample(self, train: Features) -> Features:
        """Draw `choose_on` training images, by the seed; of fewer all are returned."""
        if len(train.labels) <= self.choose_on:
            return train
        order = torch.randperm(
            len(train.labels), generator=torch.Generator().manual_seed(self.seed)
        )
        return train.take(order[: self.choose_on].sort().values.to(train.labels.device))

    def choose_penalty(self, problem: "_Problem") -> float:
        """Choose the penalty with the smallest cross-entropy on held-out training images."""
        if len(self.penalties) == 1:
            return self.penalties[0]
        fold = stratified_folds(problem.labels, self.folds, self.seed)
        kept_out = torch.arange(self.folds if len(fold) <= self.cross_validate else 1)
        best, best_loss, worse, start = self.fallback, float("inf"), 0, None
        # From strong to weak; each fit starts from the last one. Weak penalties are slow and rarely
        # the best, so two results in a row that are worse than the best end the search.
        for penalty in sorted(self.penalties, reverse=True):
            start = problem.fit(penalty, kept_out, fold=fold, start=start, tolerance=1e-4)
            loss = problem.kept_out_loss(start, kept_out, fold)
            if loss < best_loss:
                best, best_loss, worse = penalty, loss, 0
            else:
                worse += 1
                if worse == 2:
                    break
        return best


def stratified_folds(labels: Tensor, folds: int, seed: int) -> Tensor:
    """Assign a fold 0..folds-1 to every image [N], with each class spread evenly over the folds.

    The order within a class is drawn by `seed`. For labels [N, C], the rarest class of an image
    counts.
    """
    generator = torch.Generator().manual_seed(seed)
    if labels.ndim == 2:
        positives = labels.sum(0)
        rarity = torch.where(labels > 0, positives, len(labels) + 1)
        labels = torch.where((labels > 0).any(1), rarity.argmin(1), labels.shape[1])
    order = torch.randperm(len(labels), generator=generator)
    order = order[labels.cpu()[order].argsort(stable=True)]  # sorted by class, random within each
    fold = torch.empty(len(labels), dtype=torch.long)
    # The count goes on from class to class, so folds differ by one image at most.
    fold[order] = torch.arange(len(labels)) % folds
    return fold.to(labels.device)


class _Problem:
    """The standardised training images of one probe; fits several folds at once.

    Weights [..., R + 1] are along the principal axes of the features, with a bias at the end.
    """

    def __init__(self, train: Features, iterations: int) -> None:
        vectors, self.labels, self.iterations = train.vectors, train.labels, iterations
        self.multi_label, self.classes = train.multi_label, class_count(train.labels)
        # Double precision is cheap for few images.
        self.dtype = torch.float64 if vectors.numel() <= 2**20 else torch.float32
        count = len(vectors)
        blocks = vectors.split(8192)
        mean = torch.stack([block.sum(0, dtype=torch.float64) for block in blocks]).sum(0) / count
        square = torch.stack([(block - mean).square().sum(0) for block in blocks]).sum(0)
        deviation = (square / count).sqrt()
        # The floor keeps a feature that is nearly constant from being scaled up to noise.
        floor = 0.01 * deviation.square().mean().sqrt()
        self.mean = mean.to(self.dtype)
        self.scale = 1 / deviation.clamp_min(floor.clamp_min(1e-12)).to(self.dtype)
        self.vectors, self.projected = vectors, None
        self.basis, self.spectrum = self._principal_axes()
        if vectors.numel() <= 2**26:
            self.projected = self._standardise(vectors) @ self.basis

    def _principal_axes(self) -> tuple[Tensor, Tensor]:
        """Principal axes [D, R] and variances [R], R = min(N, D), of the standardised features.

        The axes come from a sample, if there are many images. Variances of network features span
        many decades. In these axes, scaled by the loss's curvature, L-BFGS needs a tenth of the
        iterations. The optimum is the same.
        """
        step = max(1, len(self.vectors) // max(20000, self.vectors.shape[1]))
        rows = torch.arange(0, len(self.vectors), step, device=self.vectors.device)
        x = self._standardise(self.vectors[rows])
        if len(x) >= x.shape[1]:
            variances, axes = torch.linalg.eigh(x.T @ x / len(x))
            return axes, variances.clamp_min(0)
        axes, variances, _ = torch.linalg.svd(x.T, full_matrices=False)
        return axes, variances.square() / len(x)

    def _standardise(self, vectors: Tensor) -> Tensor:
        return (vectors.to(self.dtype) - self.mean) * self.scale

    def blocks(self, width: int) -> Iterator[tuple[slice, Tensor]]:
        """Rows of features, in blocks whose [rows, width] products stay small.

        They are projected on the principal axes, [rows, R]. Features too large for a second copy
        in memory are standardised alone, [rows, D]: then weights are projected (`to_rows`).
        """
        size = max(256, min(65536, 2**24 // max(1, width)))
        for first in range(0, len(self.vectors), size):
            rows = slice(first, min(first + size, len(self.vectors)))
            if self.projected is not None:
                yield rows, self.projected[rows]
            else:
                yield rows, self._standardise(self.vectors[rows])

    def to_rows(self, weight: Tensor) -> Tensor:
        """Weights along the principal axes [..., R] as those of the rows that `blocks` gives."""
        return weight if self.projected is not None else weight @ self.basis.T

    def from_rows(self, slope: Tensor) -> Tensor:
        """The gradient of weights of rows as that of weights along the principal axes."""
        return slope if self.projected is not None else slope @ self.basis

    def fit(
        self,
        penalty: float,
        kept_out: Tensor,
        *,
        fold: Tensor | None = None,
        start: Tensor | None = None,
        tolerance: float = 1e-5,
    ) -> Tensor:
        """Fit weights and biases [P, C, R + 1]; problem p leaves out the fold kept_out[p]."""
        device, classes, count = self.vectors.device, self.classes, len(self.vectors)
        kept_out = kept_out.to(device)
        sizes = torch.full((len(kept_out),), float(count), dtype=torch.float64, device=device)
        if fold is not None:
            sizes = sizes - (fold == kept_out[:, None]).sum(1)
        # p (1 - p), the curvature of the cross-entropy of a logit, for equal probabilities.
        curvature = 0.25 if self.multi_label else (1 - 1 / max(2, classes)) / max(2, classes)
        stretch = (curvature * self.spectrum + penalty / count).rsqrt()
        bias_stretch = curvature**-0.5

        def objective(flat: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
            parameters = flat.reshape(len(which), classes, -1)
            weight = parameters[..., :-1] * stretch
            bias = parameters[..., -1] * bias_stretch
            flat_weight = self.to_rows(weight.flatten(0, 1))
            weight_slope, bias_slope = torch.zeros_like(flat_weight), torch.zeros_like(bias)
            value = torch.zeros(len(which), dtype=torch.float64, device=device)
            for rows, x in self.blocks(len(flat_weight)):
                logits = (x @ flat_weight.T).reshape(len(x), len(which), classes) + bias
                loss, residual = self._loss(logits, self.labels[rows])
                if fold is not None:
                    inside = fold[rows, None] != kept_out[which]  # [rows, p]
                    loss, residual = loss * inside, residual.mul_(inside[..., None])
                value += loss.sum(0, dtype=torch.float64)
                weight_slope += residual.reshape(len(x), -1).T @ x
                bias_slope += residual.sum(0)
            value += 0.5 * penalty * weight.square().sum((1, 2), dtype=torch.float64)
            weight_slope = self.from_rows(weight_slope).reshape_as(weight) + penalty * weight
            slope = torch.cat([weight_slope * stretch, bias_slope[..., None] * bias_stretch], dim=2)
            # Divided by the number of images, so that one tolerance suits all problems.
            size = sizes[which]
            return value / size, (slope / size[:, None, None].to(self.dtype)).reshape_as(flat)

        if start is None:
            flat = torch.zeros(
                len(kept_out), classes, len(self.spectrum) + 1, dtype=self.dtype, device=device
            )
        else:
            flat = torch.cat([start[..., :-1] / stretch, start[..., -1:] / bias_stretch], dim=2)
        flat = minimise(objective, flat.flatten(1), iterations=self.iterations, tolerance=tolerance)
        solution = flat.reshape(len(kept_out), classes, -1)
        return torch.cat([solution[..., :-1] * stretch, solution[..., -1:] * bias_stretch], dim=2)

    def _loss(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy [B, P] of logits [B, P, C], and its gradient [B, P, C]."""
        if self.multi_label:
            target = labels[:, None].to(logits.dtype).expand_as(logits)
            loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(2)
            return loss, logits.sigmoid() - target
        logs = logits.log_softmax(2)
        index = labels[:, None, None].expand(-1, logits.shape[1], 1)
        loss = -logs.gather(2, index).squeeze(2)
        residual = logs.exp_()
        return loss, residual.scatter_add_(2, index, -torch.ones_like(index, dtype=logits.dtype))

    def kept_out_loss(self, weights: Tensor, kept_out: Tensor, fold: Tensor) -> float:
        """Mean cross-entropy of weights [P, C, R + 1], each on its own held-out fold.

        Images whose class occurs only in their fold are left out. inf if no image is left.
        """
        has_class = torch.ones(len(self.labels), dtype=torch.bool, device=self.labels.device)
        if not self.multi_label:
            total = torch.bincount(self.labels, minlength=self.classes)
            here = torch.zeros(
                int(fold.max()) + 1, self.classes, dtype=torch.long, device=fold.device
            )
            here.index_put_((fold, self.labels), torch.ones_like(self.labels), accumulate=True)
            has_class = total[self.labels] > here[fold, self.labels]
        loss, count = 0.0, 0
        for rows, x in self.blocks(self.classes):
            for problem, out in zip(weights, kept_out.tolist(), strict=True):
                held_out = (fold[rows] == out) & has_class[rows]
                logits = x[held_out] @ self.to_rows(problem[:, :-1]).T + problem[:, -1]
                losses, _ = self._loss(logits[:, None], self.labels[rows][held_out])
                loss += float(losses.sum(dtype=torch.float64))
                count += int(held_out.sum())
        return loss / count if count else float("inf")

    def predict(self, test: Tensor, weights: Tensor) -> Tensor:
        """Logits [M, C] float32 of test features [M, D]."""
        weight, bias = weights[:, :-1] @ self.basis.T, weights[:, -1]
        parts = [self._standardise(b) @ weight.T + bias for b in test.split(65536)]
        return torch.cat(parts).float()

    def undo_standardisation(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Weight [C, D] and bias [C] float64 for features that are not standardised."""
        weight = (weights[:, :-1] @ self.basis.T).double() * self.scale
        return weight, weights[:, -1].double() - weight @ self.mean.double()
