"""Weighted sums along the edges of a fixed mesh topology, and the products with matrices that go with them.

Sums are taken where the rows lie (`embedding_bag`), forward and backward, so that no copy of neighbours is made; the
work goes part by part and basis by basis, so that what passes from sums to products stays in the cache.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from vqhps.errors import VqhpsError

_PART_NUMBERS = 1 << 19
"""Numbers of the side of more channels worked on at a time: 2 MB in single precision."""

_MIN_COLUMNS = 32
"""Matrix products of fewer columns waste the processor."""


class _Part(NamedTuple):
    """A run of gathering vertices, the edges they gather along, the row of each edge, and the first edge of each."""

    vertices: slice
    edges: slice
    rows: Int[Tensor, "E"]
    offsets: Int[Tensor, "N"]

    def gather(self, x: Float[Tensor, "V D"], weights: Float[Tensor, "E"]) -> Float[Tensor, "N D"]:
        """Weighted sums of rows of x."""
        return _weighted_sums(x, weights, self.rows, self.offsets)


class MeshEdges(nn.Module):
    """The edges of a table of neighbours in the two orders in which sums run over them.

    One side gathers: each of its vertices has a weighted sum over its edges of the other side's rows. `spread` is the
    adjoint: each vertex of the other side sums over its edges.

    Args:
        neighbours: (V, M) indices into the input vertices; `inputs` means none.
        inputs: number of input vertices.
        gather_on_inputs: the input vertices gather; by default the output vertices.

    Raises:
        VqhpsError: an index is negative or beyond `inputs`.
    """

    rows: Int[Tensor, "E"]
    offsets: Int[Tensor, "V"]
    slots: Int[Tensor, "E"]
    spread_order: Int[Tensor, "E"]
    spread_rows: Int[Tensor, "E"]
    spread_offsets: Int[Tensor, "Vo"]

    def __init__(self, neighbours: Int[Tensor, "V M"], inputs: int, gather_on_inputs: bool = False) -> None:
        super().__init__()
        low, high = int(neighbours.min()), int(neighbours.max())
        if low < 0 or high > inputs:
            raise VqhpsError(f"neighbours must lie in 0..{inputs} ({inputs} means none), got {low}..{high}")
        slots = (neighbours.flatten() < inputs).nonzero()[:, 0]
        here, there = slots // neighbours.shape[1], neighbours.flatten()[slots]
        self.gatherers, self.others = len(neighbours), inputs
        if gather_on_inputs:
            here, there, self.gatherers, self.others = there, here, inputs, len(neighbours)
        order = here.argsort(stable=True)
        here, there, slots = here[order], there[order], slots[order]
        spread_order = there.argsort(stable=True)
        self.gather_on_inputs = gather_on_inputs
        offsets = _starts(here, self.gatherers)
        self._bounds = (*offsets.tolist(), len(slots))
        tensors = {
            "rows": there,
            "offsets": offsets,
            "slots": slots,
            "spread_order": spread_order,
            "spread_rows": here[spread_order],
            "spread_offsets": _starts(there, self.others),
        }
        for name, value in tensors.items():
            self.register_buffer(name, value, persistent=False)

    def weights(self, table: Float[Tensor, "V M W"]) -> Float[Tensor, "W E"]:
        """The weights of the edges out of a table for all neighbours."""
        return table.flatten(0, 1).index_select(0, self.slots).T.contiguous()

    def parts(self, width: int) -> Iterator[_Part]:
        """The gathering vertices, as many at a time as keep rows of `width` numbers in the cache."""
        step = max(1, _PART_NUMBERS // width)
        for first in range(0, self.gatherers, step):
            vertices = slice(first, min(first + step, self.gatherers))
            edges = slice(self._bounds[first], self._bounds[vertices.stop])
            yield _Part(vertices, edges, self.rows[edges], self.offsets[vertices] - edges.start)

    def gather(self, x: Float[Tensor, "Vo D"], weights: Float[Tensor, "E"]) -> Float[Tensor, "V D"]:
        """Weighted sums of rows for each gathering vertex."""
        return _weighted_sums(x, weights, self.rows, self.offsets)

    def spread(self, sums: Float[Tensor, "V D"], weights: Float[Tensor, "E"]) -> Float[Tensor, "Vo D"]:
        """The adjoint of `gather`, computed as a gathering too, along the edges in the order of their other ends."""
        return _weighted_sums(sums, weights.index_select(0, self.spread_order), self.spread_rows, self.spread_offsets)


def _weighted_sums(
    x: Float[Tensor, "V D"], weights: Float[Tensor, "E"], rows: Int[Tensor, "E"], offsets: Int[Tensor, "N"]
) -> Float[Tensor, "N D"]:
    """Sums over runs of edges, each from its offset to the next."""
    return F.embedding_bag(rows, x, offsets, mode="sum", per_sample_weights=weights)


def _starts(group: Int[Tensor, "E"], count: int) -> Int[Tensor, "count"]:
    """Where each group starts in a list sorted by group."""
    sizes = torch.bincount(group, minlength=count)
    return sizes.cumsum(0) - sizes


def _group(matrices: Float[Tensor, "W Cn Cw"]) -> int:
    """How many bases share a matrix product: all where a single one would have a few columns only."""
    return max(1, _MIN_COLUMNS // matrices.shape[1])


def _side_by_side(columns: list[Float[Tensor, "N D"]], channels: int) -> Float[Tensor, "NB GC"]:
    """Sums of the bases of a group as one matrix, a row a vertex and mesh."""
    split = [x.view(-1, channels) for x in columns]
    return split[0] if len(split) == 1 else torch.cat(split, 1)


def _lift(
    narrow: Float[Tensor, "Vo B Cn"],
    weights: Float[Tensor, "W E"],
    matrices: Float[Tensor, "W Cn Cw"],
    edges: MeshEdges,
) -> Float[Tensor, "V B Cw"]:
    """Gather on the side of fewer channels, then multiply up to more."""
    _, batch, channels = narrow.shape
    rows, size = narrow.flatten(1), _group(matrices)
    wide = narrow.new_zeros(edges.gatherers, batch, matrices.shape[2])
    for part in edges.parts(batch * matrices.shape[2]):
        side = wide[part.vertices].flatten(0, 1)
        for some, matrix in zip(weights[:, part.edges].split(size), matrices.split(size), strict=True):
            sums = [part.gather(rows, own) for own in some]
            side.addmm_(_side_by_side(sums, channels), matrix.flatten(0, 1))
    return wide


def _lower(
    wide: Float[Tensor, "V B Cw"], weights: Float[Tensor, "W E"], matrices: Float[Tensor, "W Cn Cw"], edges: MeshEdges
) -> Float[Tensor, "Vo B Cn"]:
    """The adjoint of `_lift`: multiply down to fewer channels, then spread."""
    batch, channels, size = wide.shape[1], matrices.shape[1], _group(matrices)
    rows = wide.flatten(0, 1)
    narrow = wide.new_zeros(edges.others, batch * channels)
    for some, matrix in zip(weights.split(size), matrices.split(size), strict=True):
        products = (rows @ matrix.flatten(0, 1).T).split(channels, 1)
        for own, product in zip(some, products, strict=True):
            narrow += edges.spread(product.reshape(-1, batch * channels), own)
    return narrow.view(-1, batch, channels)


def _parameter_gradients(
    narrow: Float[Tensor, "Vo B Cn"],
    wide: Float[Tensor, "V B Cw"],
    weights: Float[Tensor, "W E"],
    matrices: Float[Tensor, "W Cn Cw"],
    edges: MeshEdges,
) -> tuple[Float[Tensor, "W E"], Float[Tensor, "W Cn Cw"]]:
    """Gradients of `(wide * _lift(narrow)).sum()`, which is `(narrow * _lower(wide)).sum()`."""
    _, batch, channels = narrow.shape
    rows, size = narrow.flatten(1), _group(matrices)
    weights_grad, matrices_grad = torch.zeros_like(weights), torch.zeros_like(matrices)
    for part in edges.parts(batch * matrices.shape[2]):
        side = wide[part.vertices].flatten(0, 1)
        tensors = (weights[:, part.edges], weights_grad[:, part.edges], matrices, matrices_grad)
        for some, some_grad, matrix, matrix_grad in zip(*(x.split(size) for x in tensors), strict=True):
            with torch.enable_grad():
                leaves = [own.detach().requires_grad_() for own in some]
                sums = [part.gather(rows, own) for own in leaves]
            mixed = _side_by_side([x.detach() for x in sums], channels)
            matrix_grad.flatten(0, 1).addmm_(mixed.T, side)
            products = (side @ matrix.flatten(0, 1).T).split(channels, 1)
            found = torch.autograd.grad(sums, leaves, [x.reshape(-1, batch * channels) for x in products])
            some_grad.copy_(torch.stack(found))
    return weights_grad, matrices_grad


class Convolve(torch.autograd.Function):
    """`y_p = sum_w A_w^T sum_n b[p,n,w] x_n`, by `_lift` if the output is the wider side, else by `_lower`.

    Either is the gradient of the other by its input. Sums and products are computed anew in the backward pass, which
    takes less time than writing them to memory and reading them again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "Vi B Ci"],
        table: Float[Tensor, "V M W"],
        matrices: Float[Tensor, "W Cn Cw"],
        edges: MeshEdges,
    ) -> Float[Tensor, "V B Co"]:
        """Convolve.

        Args:
            ctx: what backward needs.
            x: input.
            table: coefficients b.
            matrices: `A_w`, contiguous, from the side of fewer channels (Cn) to the other (Cw).
            edges: gathering on the side of more channels.
        """
        ctx.save_for_backward(x, table, matrices)
        ctx.edges = edges
        return (_lower if edges.gather_on_inputs else _lift)(x, edges.weights(table), matrices, edges)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients by input, coefficients and matrices."""
        x, table, matrices = ctx.saved_tensors
        edges, lowered = ctx.edges, ctx.edges.gather_on_inputs
        weights, x_grad, table_grad, matrices_grad = edges.weights(table), None, None, None
        if ctx.needs_input_grad[0]:
            x_grad = (_lift if lowered else _lower)(grads[0], weights, matrices, edges)
        if any(ctx.needs_input_grad[1:]):
            narrow, wide = (grads[0], x) if lowered else (x, grads[0])
            weights_grad, matrices_grad = _parameter_gradients(narrow, wide, weights, matrices, edges)
            table_grad = torch.zeros_like(table)
            table_grad.flatten(0, 1).index_copy_(0, edges.slots, weights_grad.T)
        return x_grad, table_grad, matrices_grad, None


class Blend(torch.autograd.Function):
    """`y_p = sum_n w[p,n] x_n`, the gradient by x gathered over the inverse neighbours."""

    @staticmethod
    def forward(
        ctx: Any, x: Float[Tensor, "Vi D"], weights: Float[Tensor, "E"], edges: MeshEdges
    ) -> Float[Tensor, "V D"]:
        """Blend rows; `weights` are those of `edges`, which gather on the output."""
        ctx.save_for_backward(x, weights)
        ctx.edges = edges
        return edges.gather(x, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients by rows and weights."""
        x, weights = ctx.saved_tensors
        with torch.enable_grad():
            own = weights.detach().requires_grad_()
            sums = ctx.edges.gather(x, own)
        grad = grads[0].contiguous()
        return ctx.edges.spread(grad, weights), torch.autograd.grad(sums, own, grad)[0], None
