#!/usr/bin/env bash
# Sourced by the scripts that run programs: settings of the process that only its parent can make.

# Programs compiled by one run are there for the next.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax}

# XLA on a CPU takes large buffers from malloc in every step, and gives them back; glibc returns them to the kernel, which
# clears every page anew. Kept, and in huge pages, large convolutions run up to three times as fast.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184:glibc.malloc.arena_max=1}
