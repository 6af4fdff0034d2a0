// The weights of gemm_int4.cu that are NF4 (spec/format.md, nf4-dq), for gemm_int4_weights.cuh,
// which has them as int4's in groups of 64.
//
// A level is rounded to bf16, as the tensor cores take it. Which of the levels that hurts depends
// on where they lie between powers of two, so they are multiplied by a factor first, for which the
// scale makes up: with this one no level is off by more than 0.0016 of itself. Without a factor it
// would be 0.0031, and a weight that is widened to bf16 is off by up to 0.0039.
//
// A table in shared memory has the pair of levels of every byte (nf4.cuh): a permute, a
// multiplication and a load for a pair.
#pragma once
#include "nf4.cuh"

#define NF4_FACTOR 1.18881f

// A pair of them, the high nibble's below.
DEVICE u32 nf4_levels(float low, float high) {
    return bf16_pair(high * NF4_FACTOR, low * NF4_FACTOR);
}

// The levels of the two codes of byte t of a word.
DEVICE u32 neighbours(u32 word, int t) {
    return nf4_pairs[__byte_perm(word, 0, 0x4440 | t)][threadIdx.x % 32];
}
