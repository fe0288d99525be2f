"""L-BFGS (Nocedal, 1980) for many small convex problems at once, each with its own step and its own
end.

torch.optim.LBFGS and scipy solve one problem a call; the folds of a cross-validation are several
over the same features, and side by side they share one matrix product.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@torch.no_grad()
def minimise(
    objective: Objective,
    start: Tensor,
    *,
    iterations: int = 300,
    memory: int = 10,
    tolerance: float = 1e-5,
) -> Tensor:
    """start [P, N] -> minimisers [P, N] of P smooth convex problems.

    `objective(x [p, N], which [p]) -> (values [p] float64, gradients [p, N])` for the problems
    `which` still running. One ends when its largest gradient entry is at most `tolerance`, when no
    step lowers its value any more, or after `iterations`.
    """
    result = start.clone()
    which = torch.arange(len(start), device=start.device)
    x = start
    value, gradient = objective(x, which)
    moves: list[Tensor] = []
    changes: list[Tensor] = []
    inverses: list[
        Tensor
    ] = []  # 1 / (move . change) of each problem, 0 where the pair says nothing
    for _ in range(iterations):
        running = gradient.abs().amax(1) > tolerance
        if not bool(running.all()):
            result[which] = x
            which, x, value, gradient = (
                which[running],
                x[running],
                value[running],
                gradient[running],
            )
            moves, changes, inverses = (
                [h[running] for h in history] for history in (moves, changes, inverses)
            )
        if len(which) == 0:
            return result
        direction = -_inverse_hessian(gradient, moves, changes, inverses)
        slope = (direction * gradient).sum(1)
        # a direction spoilt by rounding: go down the gradient instead
        bad = slope >= 0
        direction = torch.where(bad[:, None], -gradient, direction)
        slope = torch.where(bad, -gradient.square().sum(1), slope)
        new_value, new_gradient, move, stuck = _line_search(
            objective, which, x, value=value, direction=direction, slope=slope
        )
        change = new_gradient - gradient
        curvature = (move * change).sum(1)
        useful = curvature > torch.finfo(x.dtype).eps * change.square().sum(1)
        moves.append(move)
        changes.append(change)
        inverses.append(torch.where(useful, 1 / curvature, torch.zeros_like(curvature)))
        if len(moves) > memory:
            del moves[0], changes[0], inverses[0]
        x, value = x + move, new_value
        # stuck ends it
        gradient = torch.where(stuck[:, None], torch.zeros_like(gradient), new_gradient)
    result[which] = x
    return result


def _inverse_hessian(
    gradient: Tensor, moves: list[Tensor], changes: list[Tensor], inverses: list[Tensor]
) -> Tensor:
    """The two-loop recursion, a row a problem."""
    q = gradient.clone()
    shares = []
    for s, y, inverse in zip(reversed(moves), reversed(changes), reversed(inverses), strict=True):
        share = inverse * (s * q).sum(1)
        q -= share[:, None] * y
        shares.append(share)
    if moves:
        scale = 1 / (inverses[-1] * changes[-1].square().sum(1))
        q *= torch.where(torch.isfinite(scale), scale, torch.ones_like(scale))[:, None]
    for s, y, inverse, share in zip(moves, changes, inverses, reversed(shares), strict=True):
        q += (share - inverse * (y * q).sum(1))[:, None] * s
    return q


def _line_search(
    objective: Objective,
    which: Tensor,
    x: Tensor,
    *,
    value: Tensor,
    direction: Tensor,
    slope: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Backtracks each problem until Armijo's condition holds -> value, gradient, move, found none.

    Curvature needs no condition of its own: between two points of a strictly convex function it is
    positive.
    """
    step = torch.ones_like(slope)
    new_value, new_gradient = value.clone(), torch.zeros_like(x)
    rounding = torch.finfo(x.dtype).eps * value.abs()  # values are not known better than this
    move = torch.zeros_like(x)
    open_ = torch.arange(len(x), device=x.device)
    for _ in range(25):
        trial = step[open_, None] * direction[open_]
        found, slopes = objective(x[open_] + trial, which[open_])
        good = found <= value[open_] + 1e-4 * step[open_] * slope[open_] + rounding[open_]
        done = open_[good]
        new_value[done], new_gradient[done], move[done] = found[good], slopes[good], trial[good]
        open_ = open_[~good]
        if len(open_) == 0:
            break
        step[open_] *= 0.5
    stuck = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    stuck[open_] = True
    return new_value, new_gradient, move, stuck
