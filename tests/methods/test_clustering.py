"""DeepCluster, DeepCluster-v2, SwAV and PCL: each against its paper, in plain loops."""

import dataclasses
import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from selftaught.losses import concentration, proto_nce
from selftaught.method import Batch, Method, Setting, Setup, detach
from selftaught.methods import METHODS
from selftaught.methods.clustering.pcl import PCL
from selftaught.methods.clustering.swav import SwAV
from selftaught.methods.parts.kmeans import kmeans, table, whiten
from selftaught.optim import OPTIMIZERS, SGD, Optimizer
from selftaught.training.loop import Loop, fit
from selftaught.training.step import Step
from tests.formulas import (
    Rows,
    close,
    dot,
    double,
    drifted,
    few,
    make,
    multi_crop,
    normal,
    plain_cross_entropy,
    plain_sinkhorn,
    rotation,
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
        distance = sum(
            math.sqrt(sum((a - b) ** 2 for a, b in zip(p, c, strict=True))) for p in members
        )
        width.append(
            distance / (len(members) * math.log(len(members) + alpha)) if len(members) > 1 else None
        )
    known = [w for w in width if w is not None]
    full = [max(known) if w is None else w for w in width]

    def percentile(share: float) -> float:
        place = share * (len(full) - 1)
        low = sorted(full)[math.floor(place)]
        return low + (place % 1) * (sorted(full)[math.ceil(place)] - low)

    low, high = percentile(0.1), percentile(0.9)
    cut = [min(max(w, low), high) for w in full]
    return [mean * w / (sum(cut) / len(cut)) for w in cut]


@few
@given(several, st.integers(2, 5), st.integers(1, 9), seeds)
def test_proto_nce_is_its_formula(b: int, d: int, k: int, seed: int) -> None:
    query, prototypes, phi = (
        unit(b, d, seed=seed),
        unit(k, d, seed=seed + 1),
        normal(k, seed=seed + 2).abs() + 0.1,
    )
    label = torch.randint(-1, k, (b,), generator=rng(seed))
    others = shuffle(k, seed)[: max(k // 2, 1)]
    formula = plain_proto_nce(
        query.tolist(), prototypes.tolist(), phi.tolist(), label.tolist(), others.tolist()
    )
    close(proto_nce(query, prototypes, phi, label, others), formula)


@few
@given(st.integers(3, 30), st.integers(1, 6), st.floats(0.05, 1), st.floats(1, 20), seeds)
def test_concentration_is_its_formula(n: int, k: int, mean: float, alpha: float, seed: int) -> None:
    points, centroids = unit(n, 3, seed=seed), unit(k, 3, seed=seed + 1)
    label = torch.randint(k, (n,), generator=rng(seed))
    label[1] = label[0]  # one cluster of two at the least
    formula = plain_concentration(points.tolist(), centroids.tolist(), label.tolist(), mean, alpha)
    close(
        concentration(points, centroids, label, mean, alpha),
        torch.tensor(formula, dtype=torch.float64),
    )


# Gradients, and invariances


def test_gradients_are_the_numerical_ones() -> None:
    query, phi = (
        normal(4, 3, seed=2).requires_grad_(),
        torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64),
    )
    prototypes, label = unit(3, 3, seed=3), torch.tensor([0, 2, -1, 0])
    assert torch.autograd.gradcheck(
        lambda q: proto_nce(q, prototypes, phi, label, torch.arange(3)), (query,)
    )


@few
@given(several, st.integers(2, 5), st.integers(2, 9), seeds)
def test_proto_nce_turns_with_everything_and_knows_no_order(
    b: int, d: int, k: int, seed: int
) -> None:
    query, prototypes, phi = (
        unit(b, d, seed=seed),
        unit(k, d, seed=seed + 1),
        normal(k, seed=seed + 2).abs() + 0.1,
    )
    label, others, turn = (
        torch.randint(k, (b,), generator=rng(seed)),
        torch.arange(k),
        rotation(d, seed),
    )
    loss, p = proto_nce(query, prototypes, phi, label, others), shuffle(b, seed)
    close(proto_nce(query @ turn, prototypes @ turn, phi, label, others), loss)
    close(proto_nce(query[p], prototypes, phi, label[p], others.flip(0)), loss)
    logits = query @ prototypes.T / phi
    close(loss, F.cross_entropy(logits, label))  # with all prototypes to tell it from


@few
@given(st.integers(4, 30), st.integers(1, 6), seeds)
def test_concentrations_have_the_mean_that_was_asked_for(n: int, k: int, seed: int) -> None:
    points, centroids = unit(n, 3, seed=seed), unit(k, 3, seed=seed + 1)
    phi = concentration(points, centroids, torch.randint(k, (n,), generator=rng(seed)), 0.2, 10)
    assert (phi > 0).all()
    close(phi.mean(), 0.2)


def test_concentrations_of_points_in_one_place_are_all_alike() -> None:
    points = unit(1, 3, seed=0).expand(8, -1)
    close(
        concentration(points, points[:3], torch.zeros(8).long(), 0.2, 10),
        torch.full((3,), 0.2, dtype=torch.float64),
    )


def test_a_looser_cluster_is_softer() -> None:
    axes = torch.eye(3, dtype=torch.float64)
    points = F.normalize(
        axes[[0] * 9 + [1] * 9] + torch.tensor([[0.01]] * 9 + [[0.3]] * 9) * normal(18, 3, seed=0),
        dim=1,
    )
    tight, loose = concentration(points, axes[:2], torch.tensor([0] * 9 + [1] * 9), 0.2, 10)
    assert loose > 2 * tight


# DeepCluster


def test_a_table_holds_what_was_seen_in_the_order_of_the_images() -> None:
    parts = [
        (torch.tensor([4, 1]), torch.tensor([[4.0], [1.0]])),
        (torch.tensor([3]), torch.tensor([[0.0]])),
    ]
    seen, rows = table(iter(parts), 6)
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
        predictions = method.predict(method.inputs(data))
        assert len(predictions) == 1 + symmetric
        loss += method.loss(predictions, method.targets(data, predictions)).item() / 4
        for logits in predictions:
            for row, label in zip(
                logits.tolist(), method.assigned[data.index].tolist(), strict=True
            ):
                costs.setdefault(label, []).append(surprise(row, label))
    sizes = {len(c) for c in costs.values()}
    assert len(sizes) > 1
    assert loss == pytest.approx(sum(sum(c) / len(c) for c in costs.values()) / len(costs))


def test_the_weighted_loss_is_its_formula_and_has_the_numerical_gradient() -> None:
    """An image of a cluster of n weighs N / (K n); one without a cluster costs nothing, and is
    counted all the same.
    """
    method, label = make("deepcluster"), torch.tensor([0, 4, -1, 2, 2])
    method.before_epoch(whole())
    said = tuple(normal(5, 5, seed=s).requires_grad_() for s in (0, 1))
    sizes = [method.assigned.tolist().count(k) for k in range(5)]
    assert len(set(sizes)) > 1
    costs = [
        IMAGES / (5 * sizes[k]) * surprise(row, k)
        for logits in said
        for row, k in zip(logits.tolist(), label.tolist(), strict=True)
        if k >= 0
    ]
    close(method.loss(said, label), sum(costs) / 10, 1e-6)  # weights are of single precision
    assert torch.autograd.gradcheck(lambda *logits: method.loss(logits, label), said)


def test_each_epoch_has_a_new_classifier_and_images_it_does_not_show_count_nothing() -> None:
    method = make("deepcluster")
    method.before_epoch(whole())
    assert (method.assigned >= 0).all()
    method.classifier.weight.data.fill_(7.0)
    method.before_epoch(whole()[:3])
    assert method.classifier.weight.std().item() == pytest.approx(0.01, rel=0.5)
    assert not method.classifier.bias.any()
    assert (method.assigned[:48] >= 0).all()
    assert (method.assigned[48:] == -1).all()
    unseen, half = whole()[3], batch(16, first=40, dtype=torch.float64)
    gone = method.predict(method.inputs(unseen))
    assert method.loss(gone, method.targets(unseen, gone)) == 0
    (p,) = method.predict(method.inputs(half))
    alone = method.loss((p[:8],), method.targets(half, (p,))[:8])
    # the mean is over all of the batch
    close(method.loss((p,), method.targets(half, (p,))), alone / 2)


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


def test_deepclusters_chance_is_that_of_the_clusters_in_use() -> None:
    method = make("deepcluster")
    assert method.collapsed_loss(8) is None
    method.before_epoch(whole())
    used = len(method.assigned.unique())
    assert method.collapsed_loss(8) == pytest.approx(math.log(used))
    method.classifier.weight.data.zero_()
    losses = []
    for data in whole():
        flat = method.predict(method.inputs(data))
        losses.append(method.loss(flat, method.targets(data, flat)))
    assert torch.stack(losses).mean().item() == pytest.approx(math.log(5))


@pytest.mark.parametrize(
    "name", ["cmc", "deepcluster", "deepcluster-v2", "instance-discrimination", "pcl", "pirl"]
)
def test_relabelling_leaves_the_running_statistics_alone(name: str) -> None:
    class Over(Exception):
        """No step follows."""

    def no_step(*_: int) -> Iterator[Batch]:
        raise Over
        yield

    def overview(number: int) -> list[Batch]:
        relabelled.append(number)
        return whole(torch.float32)

    relabelled: list[int] = []
    method = METHODS[name](config(name), Setup(Toy(norm=True), IMAGES))
    before = {
        k: v.clone() for k, v in method.state_dict().items() if "running" in k or "tracked" in k
    }
    step = Step(method)
    loop = Loop(steps=4, steps_per_epoch=2, schedule=lambda progress: 1)
    optimizer = SGD(lr=0.01).build(step.named_parameters())
    with pytest.raises(Over):
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
    predictions = method.predict(method.inputs(data))
    views, labels = (
        [method.network(v).tolist() for v in data.views],
        method.assigned[40:48].tolist(),
    )
    formula = plain_deepcluster_v2(views, labels, method.prototypes.tolist(), 0.3)
    assert len(predictions) == 2 + small
    close(method.loss(predictions, method.targets(data, predictions)), formula)


def test_deepcluster_v2s_gradient_is_the_numerical_one() -> None:
    """It flows into the embeddings of images that have a cluster, and not into centroids."""
    method, views = clustered(seed=0), tuple(normal(4, 8, seed=s).requires_grad_() for s in (1, 2))
    label = torch.tensor([[0, 4, 1], [2, -1, 3], [-1, -1, -1], [1, 1, 0]])
    assert torch.autograd.gradcheck(lambda *z: method.loss(z, label), views)
    for slope in torch.autograd.grad(method.loss(views, label), views):
        assert slope.any(1).tolist() == [True, True, False, True]
    assert "prototypes" not in dict(method.named_parameters())


def clustered(seed: int) -> Method:
    """As if after an epoch: with centroids anywhere on the sphere."""
    method = double("deepcluster-v2")
    method.prototypes.copy_(F.normalize(normal(3, 5, 8, seed=seed), dim=2))
    return method


@few
@given(several, seeds)
def test_deepcluster_v2_knows_no_order(b: int, seed: int) -> None:
    """Of images, of views, of clusterings, of clusters, whose numbers mean nothing, nor of
    dimensions.
    """
    method, views = clustered(seed), (unit(b, 8, seed=seed), unit(b, 8, seed=seed + 1))
    label = torch.randint(-1, 5, (b, 3), generator=rng(seed))
    loss, prototypes = method.loss(views, label), method.prototypes.clone()
    p, names, turn = shuffle(b, seed), shuffle(5, seed), rotation(8, seed)
    close(method.loss((views[0][p], views[1][p]), label[p]), loss)
    close(method.loss(views[::-1], label), loss)
    method.prototypes.copy_(prototypes.flip(0))
    close(method.loss(views, label.flip(1)), loss)
    method.prototypes.copy_(prototypes[:, names])
    close(method.loss(views, torch.where(label < 0, -1, names.argsort()[label])), loss)
    method.prototypes.copy_(prototypes @ turn)
    close(method.loss((views[0] @ turn, views[1] @ turn), label), loss)


def test_it_begins_with_what_the_untrained_network_says_of_each_view() -> None:
    method = double("deepcluster-v2")
    method.before_epoch(whole())
    for view in (0, 1):
        said = torch.cat([method.network(b.views[view]) for b in whole()])
        close(method.memory[view], said, 1e-6)


def test_clusterings_take_the_views_by_turns() -> None:
    """Clustering h is of view h modulo 2, from a start of its own; the second epoch looks at the
    memory, and at no image.
    """
    method = double("deepcluster-v2", clusterings=5)
    method.before_epoch(whole())
    memory = method.memory.clone()
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
    method, data = double("deepcluster-v2"), multi_crop()
    data = dataclasses.replace(data, index=torch.tensor([40, 3, 63, 0, 17, 5, 4, 50]))
    method.before_epoch(whole())
    before = {k: v.clone() for k, v in method.named_buffers()}
    drifted(method.network)  # otherwise it would say what it said of these views before
    predictions = method.predict(method.inputs(data))
    method.after_step(data, detach(predictions), method.targets(data, predictions))
    for view in (0, 1):
        for place, said in zip(data.index.tolist(), predictions[view], strict=True):
            close(method.memory[view, place], said, 1e-6)
    others = [i for i in range(IMAGES) if i not in data.index]
    assert torch.equal(method.memory[:, others], before["memory"][:, others])
    assert torch.equal(method.assigned, before["assigned"])
    assert torch.equal(method.prototypes, before["prototypes"])


def test_an_image_that_no_epoch_has_shown_is_not_learnt_from_until_one_does() -> None:
    method, (unseen, *others) = double("deepcluster-v2"), whole()
    method.before_epoch(others)
    assert (method.assigned[16:] >= 0).all()
    predictions = method.predict(method.inputs(unseen))
    targets = method.targets(unseen, predictions)
    assert (targets == -1).all()
    assert method.loss(predictions, targets) == 0
    method.after_step(unseen, detach(predictions), targets)
    method.before_epoch(iter(()))
    assert (method.assigned >= 0).all()


def test_constant_embeddings_have_the_chance_loss() -> None:
    method, same = double("deepcluster-v2"), unit(1, 8, seed=0)
    method.memory.copy_(same.expand_as(method.memory[0]))
    method.before_epoch(iter(()))
    everyone = (same.expand(IMAGES, -1), same.expand(IMAGES, -1))
    close(method.loss(everyone, method.assigned), method.collapsed_loss(8))


# SwAV


def swav(**fields: Any) -> SwAV:
    method = double("swav", **fields)
    assert isinstance(method, SwAV)
    return method


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
    for large, pool in enumerate(pools):
        code = plain_sinkhorn(pool, c.epsilon, c.iterations)[: len(views[large])]
        for other, scores in enumerate(views):
            if other != large:
                costs.append(
                    plain_cross_entropy([[x / c.temperature for x in row] for row in scores], code)
                )
    return sum(costs) / len(costs)


@pytest.mark.parametrize("small", [0, 2])
@pytest.mark.parametrize("queue", [0, 12])
def test_swav_is_its_formula(small: int, queue: int) -> None:
    method, data = (
        swav(queue=queue, temperature=0.3, epsilon=0.1, iterations=2),
        multi_crop(6, small),
    )
    taught(method, 2, 6)
    views = [plain_scores(method.network(v), method) for v in data.views]
    pools = [views[view] + plain_scores(method.queue[view], method) for view in (0, 1)]
    assert len(pools[0]) == 6 + queue
    predictions = method.predict(method.inputs(data))
    close(
        method.loss(predictions, method.targets(data, predictions)),
        plain_swav(views, pools, method),
    )


@pytest.mark.parametrize("small", [0, 2])
@pytest.mark.parametrize("queue", [0, 12])
def test_swav_is_lightlys(small: int, queue: int) -> None:
    """The loss and its gradient: with and without small views, and with the help of a queue."""
    method, data = swav(queue=queue), multi_crop(small=small)
    taught(method, 3, 6)
    c = method.config
    theirs = pytest.importorskip("lightly.loss").SwaVLoss(c.temperature, c.iterations, c.epsilon)
    predictions = method.predict(method.inputs(data))
    scores = [method.scores(z) for z in predictions]
    past = [method.scores(rows) for rows in method.queue] if queue else None
    mine, peers = (
        method.loss(predictions, method.targets(data, predictions)),
        theirs(scores[:2], scores[2:], past).squeeze(),
    )
    close(mine, peers)
    parameters = list(method.parameters())
    for a, b in zip(
        torch.autograd.grad(mine, parameters, retain_graph=True),
        torch.autograd.grad(peers, parameters),
        strict=True,
    ):
        close(a, b, 1e-6)


def test_swavs_queue_holds_the_newest_embeddings_of_each_large_view_first() -> None:
    """Batches of 6 do not go into 16 rows evenly: what falls off is the oldest."""
    method, kept = swav(queue=16), [torch.zeros(16, 8).double()] * 2
    for step in range(5):
        data = multi_crop(6, seed=step)
        predictions = detach(method.predict(method.inputs(data)))
        method.after_step(data, predictions, ())
        kept = [torch.cat([new, old])[:16] for new, old in zip(predictions[:2], kept, strict=True)]
        close(method.queue, torch.stack(kept))
        assert method.stored.value == 6 * (step + 1)


def test_a_batch_larger_than_swavs_queue_fills_it() -> None:
    method, data = swav(queue=4), batch(6, dtype=torch.float64)
    predictions = detach(method.predict(method.inputs(data)))
    method.after_step(data, predictions, ())
    close(method.queue, torch.stack([z[:4] for z in predictions]))


@pytest.mark.parametrize(
    ("steps", "progress", "used"),
    [(1, 0.5, False), (2, 0.29, False), (2, 0.3, True), (3, 1.0, True), (0, 1.0, False)],
)
def test_swavs_queue_helps_when_it_is_full_and_its_time_has_come(
    steps: int, progress: float, used: bool
) -> None:
    """12 rows are full after two batches of 6; what is in them before are zeros, which are no
    embeddings.
    """
    method, data = swav(queue=12, queue_start=0.3), batch(6, dtype=torch.float64)
    taught(method, steps, 6)
    method.progress = progress
    predictions = method.predict(method.inputs(data))
    codes = method.targets(data, predictions)
    assert len(codes) == 2
    for code, said, past in zip(codes, predictions, method.queue, strict=True):
        pool = plain_scores(torch.cat([said, past]) if used else said, method)
        close(code, torch.tensor(plain_sinkhorn(pool, 0.05, 3)[:6], dtype=torch.float64))
        assert not code.requires_grad


def test_swav_begins_from_random_weights_without_a_queue_and_with_sharper_codes() -> None:
    """With a queue of embeddings of weights long changed, and codes near uniform, 1,200 steps
    taught hardly anything.
    """
    setting = Setting(images=10_000, batch=64, steps=400, features=512)
    new, going_on = (
        SwAV.Config().defaults(dataclasses.replace(setting, pretrained=begun)).config
        for begun in (False, True)
    )
    assert (new.queue, new.epsilon, new.prototypes) == (0, 0.03, 200)
    assert (going_on.queue, going_on.epsilon, going_on.prototypes) == (2496, 0.05, 200)
    assert SwAV.Config(epsilon=0.025).defaults(setting).config.epsilon == 0.025


@pytest.mark.parametrize("kind", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
@pytest.mark.parametrize(("progress", "frozen"), [(0.0, True), (0.199, True), (0.2, False)])
def test_prototypes_wait_before_they_move_and_keep_their_length(
    kind: type[Optimizer], progress: float, frozen: bool
) -> None:
    """Decay and momentum cannot move them either: what decay does to the length, the step's end
    undoes.
    """
    method, data = swav(freeze_prototypes=0.2), batch(dtype=torch.float64)
    method.progress = progress
    optimizer = kind(lr=0.1, weight_decay=0.1).build(method.named_parameters())
    for group in optimizer.param_groups:
        group["lr"] = group["peak"]
    weight, first = method.prototypes.weight, next(method.network.parameters())
    close(weight.norm(dim=1), torch.ones(6), 1e-6)
    before, start = F.normalize(weight.detach(), dim=1), first.detach().clone()
    for _ in range(3):
        optimizer.zero_grad(set_to_none=True)
        predictions = method.predict(method.inputs(data))
        targets = method.targets(data, predictions)
        method.loss(predictions, targets).backward()
        method.after_backward()
        optimizer.step()
        method.after_step(data, detach(predictions), targets)
        close(weight.norm(dim=1), torch.ones(6))
    assert torch.allclose(weight, before, rtol=0, atol=1e-12) == frozen
    assert not torch.allclose(first, start)


# PCL


def pcl(**fields: Any) -> PCL:
    method = make("pcl", **fields)
    assert isinstance(method, PCL)
    return method


def test_pcl_begins_as_moco() -> None:
    method, data = pcl(warmup=0.4), batch(dtype=torch.float64)
    for method.progress in (0.0, 0.39):
        method.before_epoch(iter(()))  # it does not even look at the images
        predictions = method.predict(method.inputs(data))
        targets = method.targets(data, predictions)
        assert method.loss(predictions, targets) == method.moco.loss(predictions, targets[0])
        assert method.collapsed_loss(8) == pytest.approx(math.log(17))
    method.progress = 0.4
    method.before_epoch(whole())
    assert (method.assigned >= 0).all()
    assert method.collapsed_loss(8) == pytest.approx(
        math.log(17) + (math.log(5) + math.log(2) + math.log(1)) / 3
    )


def test_pcl_adds_a_softmax_over_each_clusterings_prototypes() -> None:
    method, data = pcl(clusters=12), batch(dtype=torch.float64)
    method.progress = 0.5
    method.before_epoch(whole())
    assert method.sizes == [12, 6, 3]
    predictions = method.predict(method.inputs(data))
    keys, labels = method.targets(data, predictions)
    each = zip(
        method.prototypes.split([12, 6, 3]),
        method.concentrations.split([12, 6, 3]),
        labels.T,
        strict=True,
    )
    proto = [F.cross_entropy(predictions[0] @ c.T / phi, label) for c, phi, label in each]
    close(
        method.loss(predictions, (keys, labels)),
        method.moco.loss(predictions, keys) + sum(proto) / 3,
    )


def test_pcl_clusters_what_the_key_encoder_says() -> None:
    method = pcl()
    method.progress = 0.5
    for p in method.moco.network.parameters():
        p.data.mul_(-1.7)  # not what the teacher says any more
    torch.manual_seed(5)
    method.before_epoch(whole())
    torch.manual_seed(5)
    points = torch.cat([method.moco.teacher(b.views[0]) for b in whole()])
    for m, (size, c, phi) in enumerate(
        zip(
            method.sizes,
            method.prototypes.split(method.sizes),
            method.concentrations.split(method.sizes),
            strict=True,
        )
    ):
        centroids, label = kmeans(points, size, 20)
        close(c, centroids)
        assert torch.equal(method.assigned[:, m], label)
        close(phi, concentration(points, centroids, label, method.config.temperature, 10.0))
        close(phi.mean(), 0.2)


def test_pcls_negative_prototypes_are_drawn_once_a_step() -> None:
    method, data = pcl(clusters=40, clusterings=1, negatives=3), batch(dtype=torch.float64)
    method.progress = 0.5
    method.before_epoch(whole())
    predictions = method.predict(method.inputs(data))
    targets = method.targets(data, predictions)
    losses = []
    for _ in range(6):
        loss = method.loss(predictions, targets).item()
        # whatever the state of the global generator, which differs between ranks
        torch.manual_seed(len(losses))
        assert method.loss(predictions, targets).item() == loss
        losses.append(loss)
        method.steps.value += 1
    assert len(set(losses)) == 6
    everything = dataclasses.replace(method.config, negatives=40)
    method.config = everything
    assert method.loss(predictions, targets).item() > max(losses)


def test_pcl_keeps_its_queue_as_moco_does_and_counts_steps() -> None:
    method = pcl()
    before = method.moco.queue.clone()
    for step in range(3):
        data = batch(6, seed=step, dtype=torch.float64)
        predictions = method.predict(method.inputs(data))
        targets = method.targets(data, predictions)
        method.after_step(data, detach(predictions), detach(targets))
        place = (6 * step + torch.arange(6)) % 16
        close(method.moco.queue[place], targets[0][0])
        before[place] = targets[0][0]
        close(method.moco.queue, before)
    assert method.steps.value == 3


@pytest.mark.parametrize(("version", "layers"), [("v1", 1), ("v2", 2)])
def test_pcls_versions_differ_in_the_head(version: Any, layers: int) -> None:
    head = pcl(version=version).moco.network[1]
    assert sum(isinstance(m, nn.Linear) for m in head.modules()) == layers


def test_images_that_an_epoch_does_not_show_have_no_prototype() -> None:
    method = pcl()
    method.progress = 0.5
    method.before_epoch(whole())
    method.before_epoch(whole()[:3])
    unseen = whole()[3]
    predictions = method.predict(method.inputs(unseen))
    targets = method.targets(unseen, predictions)
    assert (targets[1] == -1).all()
    assert method.loss(predictions, targets) == method.moco.loss(predictions, targets[0])


# Of all of them


@pytest.mark.parametrize("name", ["deepcluster", "deepcluster-v2", "pcl"])
def test_more_clusters_than_images_are_refused(name: str) -> None:
    with pytest.raises(
        Exception,
        match=r"65 clusters need as many images, and there are 64: lower --method\.clusters",
    ):
        make(name, clusters=65)
    method = make(name, clusters=60)
    method.progress = 0.5
    with pytest.raises(Exception, match="60 clusters need as many images, and there are 48"):
        method.before_epoch(whole()[:3])


def test_the_queue_of_swav_counts_what_a_loss_sees() -> None:
    """Of a batch in parts each loss balances one part alone; the queue was left out as though it
    saw all.
    """
    whole, parts = (
        Setting(images=10_000, batch=512, steps=1000, features=64, parts=n, pretrained=True)
        for n in (1, 8)
    )
    assert SwAV.Config().defaults(whole).config.queue == 0
    assert SwAV.Config().defaults(parts).config.queue >= 512


def test_prototypes_are_found_in_a_run_of_one_epoch_or_two() -> None:
    """Clusterings come at the starts of epochs: the first lay within the warmup, and PCL was MoCo,
    but for an end maybe.
    """
    of = {
        steps: PCL.Config()
        .defaults(Setting(images=640, batch=64, steps=steps, features=64))
        .config.warmup
        for steps in (20, 21)
    }
    assert of == {20: 0.0, 21: 0.1}
