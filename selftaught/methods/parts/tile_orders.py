"""Orders of nine tiles that differ from each other in as many places as possible.

Three groups of permutations give them, so there is no search and no file. No set of more than 72
orders differs in 8 places throughout, and none of more than 504 in 7.

| orders up to | group | places that differ, at least |
| --- | --- | --- |
| 72 | x -> m x + c over the field of 9 elements | 8 |
| 504 | x -> (a x + b) / (c x + d) over the field of 8 elements and infinity | 7 |
| 1512 | the same, of x, its square or its fourth power | 6 |
"""

from collections.abc import Sequence
from functools import lru_cache

from selftaught.errors import UserError

Order = tuple[int, ...]

# The field of 9 elements: tile 3 a + b is a + b i, where i * i = -1 modulo 3.
ROWS = tuple(3 * ((k // 3 + 1) % 3) + k % 3 for k in range(9))  # x + 1
COLUMNS = tuple(3 * (k // 3) + (k % 3 + 1) % 3 for k in range(9))  # x + i
SPIRAL = tuple(3 * ((k // 3 - k % 3) % 3) + (k // 3 + k % 3) % 3 for k in range(9))  # (1 + i) x

# The field of 8 elements, g * g * g = g + 1: tile k is the power k of g, 7 is zero, 8 infinity.
POWER = (1, 2, 3, 4, 5, 6, 0, 7, 8)  # g x
NEXT = (7, 3, 6, 1, 5, 4, 2, 0, 8)  # x + 1
SQUARE = (0, 2, 4, 6, 1, 3, 5, 7, 8)  # x x
CYCLE = (4, 8, 3, 0, 5, 1, 2, 6, 7)  # 1 / (x + g), which moves every tile through all places

# generators of maps that move a tile to each place, and of those that leave one tile where it is
GROUPS = (
    ((ROWS, COLUMNS), (SPIRAL,)),
    ((CYCLE,), (POWER, NEXT)),
    ((CYCLE,), (POWER, NEXT, SQUARE)),
)


@lru_cache
def list_orders(count: int) -> tuple[Order, ...]:
    """Return `count` orders; entry k of an order is the tile that comes at place k.

    The first one is the order of reading. Of every nine in sequence, each has another tile at a
    place. Raises UserError for more than 1512.
    """
    for moving, fixing in GROUPS:
        orders = [_chain(move, fix) for fix in _group(fixing) for move in _group(moving)]
        if count <= len(orders):
            return tuple(orders[:count])
    raise UserError(f"there are {len(orders)} orders of tiles, not {count}: lower --method.orders")


def _group(generators: Sequence[Order]) -> list[Order]:
    """Return all products of the generators, from the identity on."""
    elements = [tuple(range(9))]
    for element in elements:  # grows meanwhile
        for product in (_chain(generator, element) for generator in generators):
            if product not in elements:
                elements.append(product)
    return elements


def _chain(second: Order, first: Order) -> Order:
    return tuple(second[k] for k in first)
