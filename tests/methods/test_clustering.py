"""DeepCluster, DeepCluster-v2, SwAV and PCL: each against its paper, in plain loops."""

import dataclasses
import math
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from selftaught.losses import concentration, proto_nce
from selftaught.method import Batch, Setting, Setup, detach
from selftaught.methods import METHODS
from selftaught.methods.clustering.pcl import PCL
from selftaught.methods.clustering.swav import SwAV
from selftaught.methods.parts.kmeans import kmeans, table, whiten
from selftaught.optim import OPTIMIZERS, SGD, Optimizer
from selftaught.training.loop import Loop, fit
from selftaught.training.step import Step
from tests.formulas import (
    Rows,
    answer,
    close,
    data64,
    dot,
    double,
    drifted,
    few,
    loss_of,
    make,
    multi_crop,
    normal,
    plain_cross_entropy,
    plain_sinkhorn,
    seeds,
    shuffle,
    surprise,
    unit,
    whole,
)
from tests.laws.toys import IMAGES, Toy, batch, config, rng

several = st.integers(2, 7)


# The papers' formulas, sample by sample


def plain_proto_nce(
    query: Rows, prototypes: Rows, phi: list[float], label: list[int], others: list[int]
) -> float:
    """Li et al., 2020, the second sum of equation 11, for one clustering."""
    total = 0.0
    for q, s in zip(query, label, strict=True):
        if s < 0:
            continue
        positive = math.exp(dot(q, prototypes[s]) / phi[s])
        rest = sum(math.exp(dot(q, prototypes[j]) / phi[j]) for j in others if j != s)
        total -= math.log(positive / (positive + rest))
    return total / len(query)


def plain_concentration(
    points: Rows, centroids: Rows, label: list[int], mean: float, alpha: float
) -> list[float]:
    """Li et al., 2020, equation 12, and what the authors' code does to its outliers."""
    width: list[float | None] = []
    for k, c in enumerate(centroids):
        members = [p for p, a in zip(points, label, strict=True) if a == k]
        distance = sum(math.dist(p, c) for p in members)
        n = len(members)
        width.append(distance / (n * math.log(n + alpha)) if n > 1 else None)
    finite_sizes = [w for w in width if w is not None]
    full = [max(finite_sizes) if w is None else w for w in width]
    sorted_ = sorted(full)

    def percentile(share: float) -> float:
        place = share * (len(full) - 1)
        low, high = sorted_[math.floor(place)], sorted_[math.ceil(place)]
        return low + (place % 1) * (high - low)

    cut = [min(max(w, percentile(0.1)), percentile(0.9)) for w in full]
    return [mean * w / (sum(cut) / len(cut)) for w in cut]


def drawn(b: int, d: int, k: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, prototypes and their concentrations."""
    concentrations = normal(k, seed=seed + 2).abs() + 0.1
    return unit(b, d, seed=seed), unit(k, d, seed=seed + 1), concentrations


@few
@given(several, st.integers(2, 5), st.integers(1, 9), seeds)
def test_proto_nce_is_its_formula(b: int, d: int, k: int, seed: int) -> None:
    label = torch.randint(-1, k, (b,), generator=rng(seed))
    values = (*drawn(b, d, k, seed), label, shuffle(k, seed)[: max(k // 2, 1)])
    close(proto_nce(*values), plain_proto_nce(*(x.tolist() for x in values)))


@few
@given(st.integers(3, 30), st.integers(1, 6), st.floats(0.05, 1), st.floats(1, 20), seeds)
def test_concentration_is_its_formula(n: int, k: int, mean: float, alpha: float, seed: int) -> None:
    label = torch.randint(k, (n,), generator=rng(seed))
    label[1] = label[0]  # one cluster of two at the least
    values = (unit(n, 3, seed=seed), unit(k, 3, seed=seed + 1), label)
    phi = concentration(*values, mean, alpha)
    formula = plain_concentration(*(x.tolist() for x in values), mean, alpha)
    close(phi, torch.tensor(formula, dtype=torch.float64))
    assert (phi > 0).all()
    close(phi.mean(), mean)


# Gradients, and invariances


def test_the_gradient_is_the_numerical_one() -> None:
    query, prototypes, phi = drawn(4, 3, 3, seed=2)
    label = torch.tensor([0, 2, -1, 0])
    assert torch.autograd.gradcheck(
        lambda q: proto_nce(q, prototypes, phi, label, torch.arange(3)), (query.requires_grad_(),)
    )


def test_concentrations_of_points_in_one_place_are_all_alike() -> None:
    points = unit(1, 3, seed=0).expand(8, -1)
    phi = concentration(points, points[:3], torch.zeros(8).long(), 0.2, 10)
    close(phi, torch.full((3,), 0.2, dtype=torch.float64))


# DeepCluster


def test_a_table_holds_what_was_seen_in_the_order_of_the_images() -> None:
    first = (torch.tensor([4, 1]), torch.tensor([[4.0], [1.0]]))
    seen, rows = table(iter([first, (torch.tensor([3]), torch.zeros(1, 1))]), 6)
    assert seen.tolist() == [1, 3, 4]  # 3 was seen, though its features are 0
    assert rows.tolist() == [[1], [0], [4]]


@few
@given(st.integers(8, 40), st.integers(2, 6), st.integers(1, 6), seeds)
def test_whitening_makes_each_principal_component_count_alike(
    n: int, d: int, dim: int, seed: int
) -> None:
    """Against the singular vectors of the centred points: those of unit variance, up to signs."""
    points, dim = normal(n, d, seed=seed) * torch.arange(1, d + 1) + 5, min(dim, d)
    mine = whiten(points, dim)
    u = torch.linalg.svd(points - points.mean(0), full_matrices=False)[0][:, :dim]
    theirs = F.normalize(u, dim=1)
    close(mine @ mine.T, theirs @ theirs.T, 1e-6)  # dots between points are all that k-means sees
    close(mine.norm(dim=1), torch.ones(n).double())


def test_whitening_bears_dead_units() -> None:
    points = normal(20, 4, seed=0)
    points[:, 2] = 0
    assert torch.isfinite(whiten(points, 4)).all()
    assert torch.isfinite(whiten(torch.ones(5, 4), 3)).all()


def test_clusters_are_those_of_whitened_features() -> None:
    method = make("deepcluster")
    torch.manual_seed(5)
    method.before_epoch(whole())
    torch.manual_seed(5)
    features = torch.cat([method.backbone(b.views[0]) for b in whole()]).detach()
    _, expected = kmeans(whiten(features, 6), 5, 20)
    assert torch.equal(method.assigned, expected)
    assert len(expected.unique()) == 5


@pytest.mark.parametrize("symmetric", [False, True])
def test_every_cluster_counts_alike_whatever_its_size(symmetric: bool) -> None:
    """Over a whole epoch the loss is the mean over clusters of each one's mean: section 3.3's
    uniform sampling.
    """
    method = make("deepcluster", symmetric=symmetric)
    method.before_epoch(whole())
    nn.init.normal_(method.classifier.weight)
    loss, costs = 0.0, {}
    for data in whole():
        predictions, targets = answer(method, data)
        assert len(predictions) == 1 + symmetric
        loss += method.loss(predictions, targets).item() / 4
        for logits in predictions:
            for row, label in zip(logits.tolist(), targets.tolist(), strict=True):
                costs.setdefault(label, []).append(surprise(row, label))
    assert len({len(c) for c in costs.values()}) > 1
    assert loss == pytest.approx(sum(sum(c) / len(c) for c in costs.values()) / len(costs))


def test_the_weighted_loss_is_its_formula_and_has_the_numerical_gradient() -> None:
    """An image of a cluster of n weighs N / (K n); one without a cluster costs nothing, and is
    counted all the same.
    """
    method, label = make("deepcluster"), torch.tensor([0, 4, -1, 2, 2])
    method.before_epoch(whole())
    text = tuple(normal(5, 5, seed=s).requires_grad_() for s in (0, 1))
    sizes = [method.assigned.tolist().count(k) for k in range(5)]
    assert len(set(sizes)) > 1
    costs = [
        IMAGES / (5 * sizes[k]) * surprise(row, k)
        for logits in text
        for row, k in zip(logits.tolist(), label.tolist(), strict=True)
        if k >= 0
    ]
    close(method.loss(text, label), sum(costs) / 10, 1e-6)  # weights are of single precision
    assert torch.autograd.gradcheck(lambda *logits: method.loss(logits, label), text)


def test_each_epoch_has_a_new_classifier_and_images_it_does_not_show_count_nothing() -> None:
    method = make("deepcluster")
    assert method.collapsed_loss(8) is None
    method.before_epoch(whole())
    assert (method.assigned >= 0).all()
    method.classifier.weight.data.fill_(7.0)
    method.before_epoch(whole()[:3])
    assert method.classifier.weight.std().item() == pytest.approx(0.01, rel=0.5)
    assert not method.classifier.bias.any()
    assert ((method.assigned >= 0) == (torch.arange(IMAGES) < 48)).all()
    half = batch(16, first=40, dtype=torch.float64)
    assert loss_of(method, whole()[3]) == 0
    (p,), targets = answer(method, half)
    # the mean is over all of the batch
    close(method.loss((p,), targets), method.loss((p[:8],), targets[:8]) / 2)


def test_clusters_stay_for_as_many_epochs_as_asked() -> None:
    method, heads = make("deepcluster", every=3), []
    for _ in range(7):
        method.before_epoch(whole())
        heads.append(method.classifier.weight.detach().clone())
    assert [torch.equal(a, b) for a, b in pairwise(heads)] == [True, True, False, True, True, False]


@pytest.mark.parametrize(
    ("images", "steps", "every"),
    [(1280, 5000, 20), (1280, 150, 3), (51_200, 40_000, 1), (1280, 10, 1)],
)
def test_a_new_classifier_gets_time_to_learn(images: int, steps: int, every: int) -> None:
    setting = Setting(images=images, batch=128 if images < 10_000 else 256, steps=steps, features=6)
    assert METHODS["deepcluster"].Config().defaults(setting).config.every == every


@pytest.mark.parametrize(
    "name", ["cmc", "deepcluster", "deepcluster-v2", "instance-discrimination", "pcl", "pirl"]
)
def test_relabelling_leaves_the_running_statistics_alone(name: str) -> None:
    """No step follows the overview of the epoch."""

    def no_step(*_: int) -> Iterator[Batch]:
        raise StopAsyncIteration
        yield

    def overview(number: int) -> list[Batch]:
        relabelled.append(number)
        return whole(torch.float32)

    relabelled: list[int] = []
    step = Step(METHODS[name](config(name), Setup(Toy(norm=True), IMAGES)))
    method = step.method
    before = {
        k: v.clone() for k, v in method.state_dict().items() if "running" in k or "tracked" in k
    }
    loop = Loop(steps=4, steps_per_epoch=2, schedule=lambda progress: 1)
    optimizer = SGD(lr=0.01).build(step.named_parameters())
    with pytest.raises(StopAsyncIteration):
        list(fit(step, method, no_step, optimizer, loop, 2, overview))
    assert relabelled == [1]
    assert before
    assert all(torch.equal(v, method.state_dict()[k]) for k, v in before.items())
    assert all(m.training for m in method.modules())


# DeepCluster v2


def plain_deepcluster_v2(
    views: list[Rows], labels: list[list[int]], prototypes: list[Rows], temperature: float
) -> float:
    """Caron et al., 2020, appendix: every view predicts its image's cluster in every clustering.

    Centroids are the classifier. The mean is over all views, images and clusterings, also where an
    image has no cluster.
    """
    costs = []
    for view in views:
        for z, own in zip(view, labels, strict=True):
            for centroids, label in zip(prototypes, own, strict=True):
                logits = [dot(z, c) / temperature for c in centroids]
                costs.append(surprise(logits, label) if label >= 0 else 0.0)
    return sum(costs) / len(costs)


@pytest.mark.parametrize("small", [0, 2])
def test_deepcluster_v2_is_its_formula(small: int) -> None:
    """With and without small views; some images have no cluster yet, or one in some clusterings
    alone.
    """
    method, data = double("deepcluster-v2", temperature=0.3), multi_crop(small=small, first=40)
    method.before_epoch(whole())
    method.assigned[42] = -1
    method.assigned[45, 1] = -1
    views = [method.network(v).tolist() for v in data.views]
    labels, prototypes = method.assigned[40:48].tolist(), method.prototypes.tolist()
    formula = plain_deepcluster_v2(views, labels, prototypes, 0.3)
    close(loss_of(method, data), formula)


def test_deepcluster_v2s_gradient_is_the_numerical_one() -> None:
    """It flows into the embeddings of images that have a cluster, and not into centroids."""
    method, views = (
        double("deepcluster-v2"),
        [normal(4, 8, seed=s).requires_grad_() for s in (1, 2)],
    )
    method.prototypes.copy_(F.normalize(normal(3, 5, 8, seed=0), dim=2))
    label = torch.tensor([[0, 4, 1], [2, -1, 3], [-1, -1, -1], [1, 1, 0]])
    assert torch.autograd.gradcheck(lambda *z: method.loss(z, label), views)
    for slope in torch.autograd.grad(method.loss(tuple(views), label), views):
        assert slope.any(1).tolist() == [True, True, False, True]
    assert "prototypes" not in dict(method.named_parameters())


def test_clusterings_take_the_views_by_turns() -> None:
    """Clustering h is of view h modulo 2, from a start of its own. The memory begins with what the
    untrained network says; the second epoch looks at it, and at no image.
    """
    method = double("deepcluster-v2", clusterings=5)
    method.before_epoch(whole())
    memory = method.memory.clone()
    for view in (0, 1):
        close(memory[view], torch.cat([method.network(b.views[view]) for b in whole()]), 1e-6)
    drifted(method.network)
    torch.manual_seed(5)
    method.before_epoch(whole())
    torch.manual_seed(5)
    for h, view in enumerate((0, 1, 0, 1, 0)):
        centroids, label = kmeans(memory[view], 5, 10)
        close(method.prototypes[h], centroids)
        assert torch.equal(method.assigned[:, h], label)
    assert not torch.equal(method.assigned[:, 0], method.assigned[:, 2])


def test_a_step_leaves_the_embeddings_of_its_large_views() -> None:
    """Each under its image and its view; clusters stay as they are until the next epoch, which is
    made of them.
    """
    index = torch.tensor([40, 3, 63, 0, 17, 5, 4, 50])
    method, data = double("deepcluster-v2"), dataclasses.replace(multi_crop(), index=index)
    method.before_epoch(whole())
    before = {k: v.clone() for k, v in method.named_buffers()}
    drifted(method.network)  # otherwise it would say what it said of these views before
    predictions, targets = detach(answer(method, data))
    method.after_step(data, predictions, targets)
    large = torch.stack(predictions[:2]).to(method.memory)
    close(method.memory, before["memory"].index_copy(1, index, large), 1e-6)
    assert torch.equal(method.assigned, before["assigned"])
    assert torch.equal(method.prototypes, before["prototypes"])


def test_an_image_that_no_epoch_has_shown_is_not_learnt_from_until_one_does() -> None:
    method, (unseen, *others) = double("deepcluster-v2"), whole()
    method.before_epoch(others)
    assert (method.assigned[16:] >= 0).all()
    predictions, targets = answer(method, unseen)
    assert (targets == -1).all()
    assert method.loss(predictions, targets) == 0
    method.after_step(unseen, detach(predictions), targets)
    method.before_epoch(iter(()))
    assert (method.assigned >= 0).all()


# SwAV


swav = partial(double, "swav")


def plain_scores(rows: Tensor, method: SwAV) -> Rows:
    return [[dot(z, c) for c in method.prototypes.weight.tolist()] for z in rows.tolist()]


def taught(method: SwAV, steps: int, of: int) -> None:
    """Let the queue take in some batches of `of` images; the network stays as it is."""
    for step in range(steps):
        data = multi_crop(of, seed=10 + step)
        predictions = detach(method.predict(method.inputs(data)))
        method.after_step(data, predictions, ())


def plain_swav(views: list[Rows], pools: list[Rows], method: SwAV) -> float:
    """Caron et al., 2020, equations 1 and 2: every view predicts the code of each large view, but
    its own.

    Scores of each view; and of each large view those that its code is balanced over, its own first.
    """
    c, costs = method.config, []
    sharp = [[[x / c.temperature for x in row] for row in scores] for scores in views]
    for large, pool in enumerate(pools):
        code = plain_sinkhorn(pool, c.epsilon, c.iterations)[: len(views[large])]
        costs += [plain_cross_entropy(x, code) for other, x in enumerate(sharp) if other != large]
    return sum(costs) / len(costs)


both = pytest.mark.parametrize("small", [0, 2])
queues = pytest.mark.parametrize("queue", [0, 12])


@both
@queues
def test_swav_is_its_formula(small: int, queue: int) -> None:
    method = swav(queue=queue, temperature=0.3, epsilon=0.1, iterations=2)
    data = multi_crop(6, small)
    taught(method, 2, 6)
    views = [plain_scores(method.network(v), method) for v in data.views]
    pools = [views[view] + plain_scores(method.queue[view], method) for view in (0, 1)]
    assert len(pools[0]) == 6 + queue
    close(loss_of(method, data), plain_swav(views, pools, method))


@pytest.mark.parametrize("rows", [4, 16])
def test_swavs_queue_holds_the_newest_embeddings_of_each_large_view_first(rows: int) -> None:
    """Batches of 6 do not go into 16 rows evenly: what falls off is the oldest."""
    method, kept = swav(queue=rows), torch.zeros(2, rows, 8).double()
    for step in range(5):
        data = multi_crop(6, seed=step)
        predictions = detach(method.predict(method.inputs(data)))
        method.after_step(data, predictions, ())
        kept = torch.cat([torch.stack(predictions[:2]), kept], 1)[:, :rows]
        close(method.queue, kept)
        assert method.stored.value == 6 * (step + 1)


@pytest.mark.parametrize(
    ("steps", "progress", "used"),
    [(1, 0.5, False), (2, 0.29, False), (2, 0.3, True), (3, 1.0, True), (0, 1.0, False)],
)
def test_swavs_queue_helps_when_it_is_full_and_its_time_has_come(
    steps: int, progress: float, used: bool
) -> None:
    """12 rows are full after two batches of 6; before, they hold zeros, which are no embeddings."""
    method, data = swav(queue=12, queue_start=0.3), data64(6)
    taught(method, steps, 6)
    method.progress = progress
    predictions, codes = answer(method, data)
    for code, text, past in zip(codes, predictions, method.queue, strict=True):
        pool = plain_scores(torch.cat([text, past]) if used else text, method)
        close(code, torch.tensor(plain_sinkhorn(pool, 0.05, 3)[:6], dtype=torch.float64))
        assert not code.requires_grad


def test_defaults_of_swav() -> None:
    """With a queue of embeddings of weights long changed, and codes near uniform, 1,200 steps from
    random weights taught hardly anything. Of a batch in parts each loss balances one part alone.
    """

    def default(**fields: Any) -> SwAV.Config:
        values = {"images": 10_000, "batch": 64, "steps": 400, "features": 512, **fields}
        return SwAV.Config().defaults(Setting(**values)).config

    new, going_on = default(), default(pretrained=True)
    assert (new.queue, new.epsilon, new.prototypes) == (0, 0.03, 200)
    assert (going_on.queue, going_on.epsilon, going_on.prototypes) == (2496, 0.05, 200)
    setting = Setting(images=10_000, batch=64, steps=400, features=512)
    assert SwAV.Config(epsilon=0.025).defaults(setting).config.epsilon == 0.025
    large = {"batch": 512, "steps": 1000, "features": 64, "pretrained": True}
    assert default(**large).queue == 0
    assert default(**large, parts=8).queue >= 512


@pytest.mark.parametrize("kind", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
@pytest.mark.parametrize(("progress", "frozen"), [(0.0, True), (0.199, True), (0.2, False)])
def test_prototypes_wait_before_they_move_and_keep_their_length(
    kind: type[Optimizer], progress: float, frozen: bool
) -> None:
    """Decay and momentum cannot move them either: what decay does to the length, the step's end
    undoes.
    """
    method, data = swav(freeze_prototypes=0.2), data64()
    method.progress = progress
    optimizer = kind(lr=0.1, weight_decay=0.1).build(method.named_parameters())
    for group in optimizer.param_groups:
        group["lr"] = group["peak"]
    weight, first = method.prototypes.weight, next(method.network.parameters())
    close(weight.norm(dim=1), torch.ones(6), 1e-6)
    before, start = F.normalize(weight.detach(), dim=1), first.detach().clone()
    for _ in range(3):
        optimizer.zero_grad(set_to_none=True)
        predictions, targets = answer(method, data)
        method.loss(predictions, targets).backward()
        method.after_backward()
        optimizer.step()
        method.after_step(data, detach(predictions), targets)
        close(weight.norm(dim=1), torch.ones(6))
    assert torch.allclose(weight, before, rtol=0, atol=1e-12) == frozen
    assert not torch.allclose(first, start)


# PCL


def pcl(progress: float = 0.5, **fields: Any) -> PCL:
    """After its warmup, unless other progress is stated."""
    method = make("pcl", **fields)
    method.progress = progress
    return method


def test_pcl_begins_as_moco() -> None:
    method = pcl(warmup=0.4)
    for method.progress in (0.0, 0.39):
        method.before_epoch(iter(()))  # it does not even look at the images
        predictions, targets = answer(method, data64())
        assert method.loss(predictions, targets) == method.moco.loss(predictions, targets[0])
        assert method.collapsed_loss(8) == pytest.approx(math.log(17))
    method.progress = 0.4
    method.before_epoch(whole())
    assert (method.assigned >= 0).all()
    assert method.collapsed_loss(8) == pytest.approx(math.log(17) + math.log(5 * 2 * 1) / 3)


def test_pcl_adds_a_softmax_over_each_clusterings_prototypes() -> None:
    method = pcl(clusters=12)
    method.before_epoch(whole())
    assert method.sizes == [12, 6, 3]
    predictions, (keys, labels) = answer(method, data64())
    parts = (x.split([12, 6, 3]) for x in (method.prototypes, method.concentrations))
    each = zip(*parts, labels.T, strict=True)
    proto = [F.cross_entropy(predictions[0] @ c.T / phi, label) for c, phi, label in each]
    expected = method.moco.loss(predictions, keys) + sum(proto) / 3
    close(method.loss(predictions, (keys, labels)), expected)


def test_pcl_clusters_what_the_key_encoder_says() -> None:
    method = pcl()
    for p in method.moco.network.parameters():
        p.data.mul_(-1.7)  # not what the teacher says any more
    torch.manual_seed(5)
    method.before_epoch(whole())
    torch.manual_seed(5)
    points = torch.cat([method.moco.teacher(b.views[0]) for b in whole()])
    parts = (x.split(method.sizes) for x in (method.prototypes, method.concentrations))
    for c, phi, own in zip(*parts, method.assigned.T, strict=True):
        centroids, label = kmeans(points, len(c), 20)
        close(c, centroids)
        assert torch.equal(own, label)
        close(phi, concentration(points, centroids, label, method.config.temperature, 10.0))
        close(phi.mean(), 0.2)


def test_pcls_negative_prototypes_are_drawn_once_a_step() -> None:
    method, losses = pcl(clusters=40, clusterings=1, negatives=3), []
    method.before_epoch(whole())
    predictions, targets = answer(method, data64())
    for _ in range(6):
        losses.append(method.loss(predictions, targets).item())
        # whatever the state of the global generator, which differs between ranks
        torch.manual_seed(len(losses))
        assert method.loss(predictions, targets).item() == losses[-1]
        method.steps.value += 1
    assert len(set(losses)) == 6
    method.config = dataclasses.replace(method.config, negatives=40)
    assert method.loss(predictions, targets).item() > max(losses)


def test_pcl_keeps_its_queue_as_moco_does_and_counts_steps() -> None:
    method = pcl(progress=0.0)
    before = method.moco.queue.clone()
    for step in range(3):
        data = data64(6, seed=step)
        predictions, targets = detach(answer(method, data))
        method.after_step(data, predictions, targets)
        before[(6 * step + torch.arange(6)) % 16] = targets[0][0]
        close(method.moco.queue, before)
    assert method.steps.value == 3


@pytest.mark.parametrize(("version", "layers"), [("v1", 1), ("v2", 2)])
def test_pcls_versions_differ_in_the_head(version: Any, layers: int) -> None:
    head = pcl(version=version).moco.network[1]
    assert sum(isinstance(m, nn.Linear) for m in head.modules()) == layers


def test_images_that_an_epoch_does_not_show_have_no_prototype() -> None:
    method = pcl()
    method.before_epoch(whole())
    method.before_epoch(whole()[:3])
    predictions, targets = answer(method, whole()[3])
    assert (targets[1] == -1).all()
    assert method.loss(predictions, targets) == method.moco.loss(predictions, targets[0])


# Of all of them


@pytest.mark.parametrize("name", ["deepcluster", "deepcluster-v2", "pcl"])
def test_more_clusters_than_images_are_refused(name: str) -> None:
    with pytest.raises(Exception, match=r"65 clusters .* 64: lower --method\.clusters"):
        make(name, clusters=65)
    method = make(name, clusters=60)
    method.progress = 0.5
    with pytest.raises(Exception, match="60 clusters need as many images, and there are 48"):
        method.before_epoch(whole()[:3])


@pytest.mark.parametrize(("steps", "warmup"), [(20, 0.0), (21, 0.1)])
def test_prototypes_are_found_in_a_run_of_one_epoch_or_two(steps: int, warmup: float) -> None:
    """Clusterings come at the starts of epochs: the first lay within the warmup, and PCL was MoCo,
    but for an end maybe.
    """
    setting = Setting(images=640, batch=64, steps=steps, features=64)
    assert PCL.Config().defaults(setting).config.warmup == warmup
