// The weights of gemm_int4.cu that are NF4 (spec/format.md, nf4-dq), as gemm_int4_weights.cuh has
// int4's in groups of 64.
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
#define LANE_PIECE(t) 0

// A pair of them, the high nibble's below.
DEVICE u32 nf4_levels(float low, float high) {
    return bf16_pair(high * NF4_FACTOR, low * NF4_FACTOR);
}

// A lane's weights of a step: byte t of each word of fragment rows r and r + 8. Two words are a
// k-step.
struct step_weights {
    const uint4 *rows;
    INSIDE void load(const uint4 *from) { rows = from; }
    static INSIDE u32 pair(u32 word, int t) {
        return nf4_pairs[__byte_perm(word, 0, 0x4440 | t)][threadIdx.x % 32];
    }
    // The A fragments of a chunk's k-steps.
    INSIDE void dequantize(u32 (&a)[CHUNK_STEPS][4], int chunk, int t) const {
#pragma unroll
        for (int i = 0; i < CHUNK_STEPS; i += 2) {
            const int s = chunk * CHUNK_STEPS + i;
            const uint4 w = rows[s / 2], w8 = rows[32 + s / 2];
            a[i][0] = pair(w.x, t), a[i][1] = pair(w8.x, t);
            a[i][2] = pair(w.y, t), a[i][3] = pair(w8.y, t);
            a[i + 1][0] = pair(w.z, t), a[i + 1][1] = pair(w8.z, t);
            a[i + 1][2] = pair(w.w, t), a[i + 1][3] = pair(w8.w, t);
        }
    }
};
