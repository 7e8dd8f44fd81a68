"""How the student's blocks run in steps: in their form with gradients where they have one, else by their own code.

Looks at held-out text, and all that is written, go through the model's own code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from layercoop_fast.engine.calls import BlockCall, Returned, replaced_forward
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.kernels.memory import is_native
from layercoop_fast.llama.training_block import TrainingBlock, training_block


@dataclass(frozen=True, eq=False)
class StudentBlocks:
    """The blocks of a student.

    Attributes:
        skeleton: of the student.
        made: the forms with gradients, by number of the block.
        recomputes: whether the other blocks compute their activations again in the backward pass.
    """

    skeleton: Skeleton
    made: Mapping[int, TrainingBlock]
    recomputes: bool

    @contextmanager
    def training(self) -> Iterator[None]:
        """Within the `with` block the model's forward pass runs its blocks as a step does."""
        blocks, convention = self.skeleton.blocks, self.skeleton.convention

        def forward(index: int) -> Callable[..., Returned]:
            own, made = blocks[index].forward, self.made.get(index)

            def run(*args: Any, **kwargs: Any) -> Returned:
                if made is not None:
                    return convention.wrap(made(BlockCall(args, kwargs).hidden(convention.takes)))
                if self.recomputes:
                    again: Returned = checkpoint(own, *args, use_reentrant=False, **kwargs)
                    return again
                plain: Returned = own(*args, **kwargs)
                return plain

            return run

        if not self.made and not self.recomputes:
            yield
            return
        with replaced_forward(blocks, forward):
            yield


def student_blocks(
    skeleton: Skeleton, trained: Mapping[str, nn.Parameter], window: int, *, recomputes: bool
) -> tuple[StudentBlocks, dict[str, nn.Parameter]]:
    """Give every block that is trained as a whole its form with gradients, where it has one.

    Returns the blocks and the trained parameters by name, tensors [...]: the joint matrices of such blocks in the place
    of the modules' own, which are views of them from now on.
    """
    names = dict(trained)
    made: dict[int, TrainingBlock] = {}
    if not recomputes and all(is_native(parameter) for parameter in skeleton.model.parameters()):
        ids = torch.arange(window, device=skeleton.device)[None] % skeleton.vocab_size
        context = skeleton.context(ids)
        for layer, block in enumerate(skeleton.blocks):
            prefix = f"{skeleton.blocks_path}.{layer}."
            own = [f"{prefix}{name}" for name, _ in block.named_parameters()]
            if not own or not all(name in names for name in own):
                continue
            form = training_block(block, context.call(layer), skeleton.convention)
            if form is None:
                continue
            made[layer] = form
            for name in own:
                names.pop(name).requires_grad_(False)
            names |= {f"{prefix}{name}": parameter for name, parameter in form.parameters.items()}
    return StudentBlocks(skeleton, made, recomputes), names
