"""Bytes of trees, and the greatest memory that a program holds at a time.

A program is run in its own order: the result of every operation is an array of its own, from the operation until the
last one that reads it. Through a training step the sum of them climbs during the forward pass, over all that the
backward pass will read, and falls again while gradients take the place of activations:

    bytes              ___
                    __/   \\__          activations
                 __/         \\__
              __/               \\__ _ _ _ _
           __/       gradients     \\/
                 forward  |  backward

The peak is an estimate of what a compiler reserves beside the arguments, and it errs to both sides: compilers fuse
elementwise operations and then hold less; they reorder, pad to tiles, copy to other layouts and then hold more. Peak
by reserved bytes (`compiled.memory_analysis().temp_size_in_bytes`, XLA of JAX 0.10.2), for training steps of small
networks of this project:

                                                    CPU            TPU v5p
    tokenizer, float32                              0.84 .. 0.98   1.21
    tokenizer, bfloat16 (CPUs compute in float32)   0.86           1.12
    denoiser, float32                               1.07           1.28
    denoiser, bfloat16                              0.70           1.09
    denoiser, float32, blocks recomputed            0.91           1.76
    denoiser, bfloat16, blocks recomputed           0.68           1.90

Encoding and decoding alone: 0.80 .. 0.89 on a CPU; 0.42 and 0.89 on the TPU, which pads 64 channels to 128. Where
blocks are recomputed the peak is inside one block, and most of what it counts there is fused.
"""

import math
from typing import Any

import jax
import numpy as np

from walt.planning.flops import operation_flops
from walt.planning.program import Program, Value


def array_bytes(leaf: jax.ShapeDtypeStruct | jax.Array | np.ndarray | Value) -> int:
    """Bytes of an array or of what stands for one; a typed key counts as two words of 32 bits."""
    size = 8 if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended) else np.dtype(leaf.dtype).itemsize
    return math.prod(leaf.shape) * size


def tree_bytes(tree: Any) -> int:
    return sum(map(array_bytes, jax.tree.leaves(tree)))


def peak_bytes(program: Program) -> int:
    """The greatest sum of bytes that `program` holds at a time, its inputs and constants not counted.

    It is taken until the last matrix product or convolution. In a training step an optimizer comes after it, which a
    compiler runs parameter by parameter, in place; the trace does not, and would hold several copies of all.
    """
    products = [index for index, operation in enumerate(program.operations) if operation_flops(operation)]
    end = max(products, default=len(program.operations) - 1) + 1
    last_reader = dict.fromkeys(program.outputs, end)
    for index, operation in reversed(list(enumerate(program.operations))):
        for value in operation.inputs:
            last_reader.setdefault(value, min(index, end))

    peak, holding = 0, 0
    freed = [[] for _ in range(end + 1)]
    for index, operation in enumerate(program.operations[:end]):
        for value in operation.outputs:
            if value in last_reader:
                freed[last_reader[value]].append(value)
                holding += array_bytes(value)
        peak = max(peak, holding + max(map(peak_bytes, operation.bodies), default=0))
        holding -= sum(map(array_bytes, freed[index]))
    return peak
