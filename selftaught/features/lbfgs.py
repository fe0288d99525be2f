"""L-BFGS (Nocedal, 1980) for a batch of small convex problems.

torch.optim.LBFGS and scipy solve one problem a call. The folds of a cross-validation are several
problems over the same features; in a batch they share one matrix product.
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
    """Minimise P smooth convex problems from `start` [P, N]; returns the minimisers [P, N].

    `objective(x [p, N], which [p])` returns values [p] float64 and gradients [p, N] of the problems
    `which`. A problem ends when its largest gradient entry is at most `tolerance`. It also ends
    when no step lowers its value, and after `iterations`. Each problem has its own step length.
    """
    result = start.clone()
    which = torch.arange(len(start), device=start.device)
    x = start
    value, gradient = objective(x, which)
    moves: list[Tensor] = []
    changes: list[Tensor] = []
    # 1 / (move . change) of each problem; 0 where the pair has no usable curvature.
    inverses: list[Tensor] = []
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
        # Rounding can make the direction ascend; then the negative gradient is used.
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
        # A gradient of zero ends the problems whose line search failed.
        gradient = torch.where(stuck[:, None], torch.zeros_like(gradient), new_gradient)
    result[which] = x
    return result


def _inverse_hessian(
    gradient: Tensor, moves: list[Tensor], changes: list[Tensor], inverses: list[Tensor]
) -> Tensor:
    """Multiply by the inverse Hessian, by the two-loop recursion; each row is a problem."""
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
    """Backtrack each problem until Armijo's condition holds.

    Returns values [p], gradients [p, N], moves [p, N], and the problems without a step [p] bool. A
    curvature condition is not needed, because a strictly convex function has positive curvature.
    """
    step = torch.ones_like(slope)
    new_value, new_gradient = value.clone(), torch.zeros_like(x)
    rounding = torch.finfo(x.dtype).eps * value.abs()  # the precision of values
    move = torch.zeros_like(x)
    open_ = torch.arange(len(x), device=x.device)
    for _ in range(25):
        trial = step[open_, None] * direction[open_]
        values, gradients = objective(x[open_] + trial, which[open_])
        good = values <= value[open_] + 1e-4 * step[open_] * slope[open_] + rounding[open_]
        done = open_[good]
        new_value[done], new_gradient[done] = values[good], gradients[good]
        move[done] = trial[good]
        open_ = open_[~good]
        if len(open_) == 0:
            break
        step[open_] *= 0.5
    stuck = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    stuck[open_] = True
    return new_value, new_gradient, move, stuck
