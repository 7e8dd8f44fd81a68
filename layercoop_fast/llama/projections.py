"""Products with a model's own weights, several of one input joined into one.

The weights are copied once into a joint matrix and the model's own parameters become views of it, so that no second
copy remains (while some are being joined, those exist twice). A change of the parameters' values is a change of the
joint matrix, and the other way round.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from layercoop_fast.kernels.linear import linear
from layercoop_fast.kernels.rows import Product
from layercoop_fast.llama.block import LinearRows
from layercoop_fast.spans import BLOCK_PRODUCTS, timed


class Projection:
    """One product for several linear maps of the same input, outputs one after the other.

    It keeps no weight alive: the joint matrix is looked up through the modules' parameters at every call.

    Args:
        linears: layers, or all slices of one fused layer in order, whose weights are joint already.
    """

    def __init__(self, linears: Sequence[nn.Linear | LinearRows]) -> None:
        self.linears = list(linears)
        self.out_features = sum(linear.out_features for linear in linears)
        with torch.inference_mode(False), torch.no_grad():
            _join([linear.weight for linear in linears])
            biases = self._biases()
            self._joint_bias = len(biases) == len(self.linears)
            self._bias: Tensor | None = None
            if self._joint_bias:
                _join(biases)
            elif biases:
                parts: list[Tensor] = [
                    linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias
                    for linear in linears
                ]
                self._bias = torch.cat(parts)

    @property
    def holds(self) -> bool:
        """Whether the parameters still stand one behind the other: those that another projection joined do not."""
        groups = [[linear.weight for linear in self.linears]]
        if self._joint_bias:
            groups.append(self._biases())
        return all(_stand_joined(group) for group in groups)

    def product(self, maps: slice = slice(None)) -> Product:
        """Terms and columns of the product for all maps or for some neighbouring ones."""
        return self.linears[0].in_features, sum(linear.out_features for linear in self.linears[maps])

    @property
    def weight(self) -> Tensor:
        """The joint matrix [out, in]."""
        return _joint([linear.weight for linear in self.linears])

    @property
    def bias(self) -> Tensor | None:
        """The joint bias [out]; None where no map has one."""
        return _joint(self._biases()) if self._joint_bias else self._bias

    def _biases(self) -> list[Tensor]:
        return [linear.bias for linear in self.linears if linear.bias is not None]

    def __call__(self, x: Tensor, out: Tensor, maps: slice = slice(None)) -> Tensor:
        """x [R, in] → out [R, out], of all maps or of some neighbouring ones."""
        sizes = [linear.out_features for linear in self.linears]
        first = sum(sizes[: maps.start or 0])
        columns = slice(first, first + sum(sizes[maps]))
        bias = self.bias
        with timed(BLOCK_PRODUCTS):
            return linear(x, self.weight[columns], None if bias is None else bias[columns], out)


def _joint(parameters: Sequence[Tensor]) -> Tensor:
    """The tensor of which joined parameters are views."""
    first = parameters[0].detach()
    rows = sum(len(parameter) for parameter in parameters)
    return first.as_strided((rows, *first.shape[1:]), first.stride(), first.storage_offset())


def _stand_joined(parameters: Sequence[Tensor]) -> bool:
    """Whether parameters stand behind each other in one tensor."""
    first = parameters[0]
    expected = first.data_ptr()
    for parameter in parameters:
        same_storage = parameter.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not (parameter.is_contiguous() and parameter.data_ptr() == expected and same_storage):
            return False
        expected += parameter.numel() * parameter.element_size()
    return True


def _join(parameters: Sequence[Tensor]) -> None:
    """Move parameters into one new tensor, one after the other; nothing moves where they stand so already."""
    if _stand_joined(parameters):
        return
    joint = torch.cat([parameter.detach() for parameter in parameters])
    done = 0
    for parameter in parameters:
        parameter.data = joint[done : done + len(parameter)]
        done += len(parameter)
