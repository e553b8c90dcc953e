"""Published figures of accelerators: the one place where they are.

The memory of TPUs is printed as GB and is GiB: their compiler has 31.24 GiB of a v6e's 32 to give.

Arithmetic is dense bfloat16 with float32 sums. `links` are the chip's own, each with `link_bandwidth` in each of its
two directions at a time; vendors print the sum of all links, often of both directions.

    v5e     197 TFLOP/s, 16 GiB at 819 GB/s, 2-D torus of 4 links, 400 GB/s both ways
            https://docs.cloud.google.com/tpu/docs/v5e
    v5p     459 TFLOP/s, 95 GiB at 2765 GB/s, 3-D torus of 6 links, 1200 GB/s both ways
            https://docs.cloud.google.com/tpu/docs/v5p
    v6e     918 TFLOP/s, 32 GiB at 1638 GB/s, 2-D torus of 4 links, 800 GB/s both ways
            https://docs.cloud.google.com/tpu/docs/v6e
    a100    312 TFLOP/s, 80 GB at 2039 GB/s, NVLink 600 GB/s both ways
            "NVIDIA A100 Tensor Core GPU datasheet", SXM, 80 GB
    h100    989 TFLOP/s, 80 GB at 3.35 TB/s, NVLink 900 GB/s both ways
            "NVIDIA H100 Tensor Core GPU datasheet", SXM, without sparsity
    h200    989 TFLOP/s, 141 GB at 4.8 TB/s, NVLink 900 GB/s both ways
            "NVIDIA H200 Tensor Core GPU datasheet", SXM, without sparsity

Clocks are the peak over what the matrix units do in a cycle: 8 units of 128 x 128 in a v5p, 4 in a v5e, and in a
v6e two of 256 x 256 that take two products a cycle; two FLOPs a product. The compiler counts in these cycles.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """
    Attributes:
        peak_flops: a second, bfloat16.
        hbm_bytes, hbm_bandwidth: capacity; bytes a second.
        torus: axes of the network; 0: a switch, all to all.
        wraps: a slice whose side is a multiple of it is closed to a ring along that axis.
        link_bandwidth: bytes a second of one link in one direction; of a switch, of the whole chip.
        clock: cycles a second; 0 where no compiler counts in them.
        cores: that share its work.
        vendor: 'tpu' or 'gpu'.
    """

    name: str
    vendor: str
    peak_flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    link_bandwidth: float
    torus: int = 0
    wraps: int = 0
    clock: float = 0.0
    cores: int = 1


CHIPS = {
    chip.name: chip
    for chip in (
        Chip('v5e', 'tpu', 197e12, 16 * 2**30, 819e9, 50e9, torus=2, wraps=16, clock=1.5e9),
        Chip('v5p', 'tpu', 459e12, 95 * 2**30, 2765e9, 100e9, torus=3, wraps=4, clock=1.75e9, cores=2),
        Chip('v6e', 'tpu', 918e12, 32 * 2**30, 1638e9, 100e9, torus=2, wraps=16, clock=1.75e9),
        Chip('a100', 'gpu', 312e12, 80e9, 2039e9, 300e9),
        Chip('h100', 'gpu', 989e12, 80e9, 3350e9, 450e9),
        Chip('h200', 'gpu', 989e12, 141e9, 4800e9, 450e9),
    )
}

_DEVICE_KINDS = {
    'TPU v5 lite': 'v5e',
    'TPU v5e': 'v5e',
    'TPU v5': 'v5p',
    'TPU v5p': 'v5p',
    'TPU v6 lite': 'v6e',
    'TPU v6e': 'v6e',
    'NVIDIA A100-SXM4-80GB': 'a100',
    'NVIDIA H100 80GB HBM3': 'h100',
    'NVIDIA H200': 'h200',
}


def chip_of(device_kind: str) -> Chip | None:
    """The chip that JAX calls so (`device.device_kind`); None where the table has none.

    Names are compared whole: a card of the same name with another ending (PCIe, NVL) has other figures.
    """
    return CHIPS.get(_DEVICE_KINDS.get(device_kind))
