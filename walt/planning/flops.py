"""Floating-point operations of a program: those of matrix products and convolutions, two a multiply-accumulate.

    y_BMN = x_BMK w_BKN                   2 B M N K
    y_BPO = sum_ti x_B,p(P,t),i w_tiO     2 B O I (pairs of an output position and a tap that meet an input position)

Everything else (norms, softmax, optimizers) is limited by memory, not by arithmetic, and counts nothing.

Taps that fall on padding, or on the zeros that a dilation puts between input positions, count nothing either: they are
no work that a convolution needs. So both gradients of a convolution cost exactly as much as the convolution, strided or
not: each of the three runs over the same triples of input position, tap and output position.

Of a Pallas kernel it is what its `cost_estimate` says.

What rematerialisation computes again is counted again. Of branches chosen by data the most expensive one counts.
"""

import math

import numpy as np

from walt.planning.program import Operation, Program


def flops(program: Program) -> int:
    """FLOPs of a run of `program`.

    Raises:
        ValueError: if a loop around them has no length that shapes know; on a kernel that does not say what it costs.
    """
    return sum(operation_flops(operation) for operation in program.operations)


def operation_flops(operation: Operation) -> int:
    """As `flops`, of one operation with its bodies."""
    if operation.name == 'dot_general':
        return _dot(operation)
    if operation.name == 'conv_general_dilated':
        return _convolution(operation)
    if operation.name == 'pallas_call':
        return _kernel(operation)
    inner = max(map(flops, operation.bodies), default=0)
    if inner and operation.times is None:
        raise ValueError(f'{operation.name} does {inner} FLOPs a turn, and shapes do not say how many turns')
    return inner and inner * operation.times


def _kernel(operation: Operation) -> int:
    cost = operation.params['cost_estimate']
    if cost is None:
        raise ValueError(f'the kernel {operation.params["name_and_src_info"]} has no cost_estimate')
    return cost.flops


def _dot(operation: Operation) -> int:
    (contracted, _), _ = operation.params['dimension_numbers']
    lhs, _ = operation.inputs
    return 2 * math.prod(operation.outputs[0].shape) * math.prod(lhs.shape[axis] for axis in contracted)


def _convolution(operation: Operation) -> int:
    params, (lhs, kernel), (out,) = operation.params, operation.inputs, operation.outputs
    lhs_axes, kernel_axes, out_axes = params['dimension_numbers']  # batch, channels, space; output, input, space
    pairs = math.prod(
        met(lhs.shape[i], kernel.shape[k], out.shape[o], stride, before, lhs_dilation, kernel_dilation)
        for i, k, o, stride, (before, _), lhs_dilation, kernel_dilation in zip(
            lhs_axes[2:],
            kernel_axes[2:],
            out_axes[2:],
            params['window_strides'],
            params['padding'],
            params['lhs_dilation'],
            params['rhs_dilation'],
        )
    )
    batch, channels = (out.shape[axis] for axis in out_axes[:2])
    # The kernel's input channels are those of one group.
    return 2 * batch * channels * kernel.shape[kernel_axes[1]] * pairs


def met(size: int, taps: int, out: int, stride: int, before: int, dilation: int, tap_dilation: int) -> int:
    """Pairs of an output position and a tap, along one axis, that meet one of `size` input positions."""
    place = stride * np.arange(out)[:, None] + tap_dilation * np.arange(taps) - before
    return int(((place >= 0) & (place <= (size - 1) * dilation) & (place % dilation == 0)).sum())
