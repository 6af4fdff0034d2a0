// The weights of gemm_int4.cu that are NF4 (spec/format.md, nf4-dq), as gemm_int4_weights.cuh has
// int4's in groups of 64.
//
// A level is rounded to bf16, as the tensor cores take it. Which of the levels that hurts depends
// on where they lie between powers of two, so they are multiplied by a factor first, for which the
// scale makes up: with this one no level is off by more than 0.0016 of itself. Without a factor it
// would be 0.0031, and a weight that is widened to bf16 is off by up to 0.0039.
//
// A table in shared memory has the pair of levels of every byte, once for each lane, so that no
// look-up meets another lane's bank: a permute, a multiplication and a load for a pair.
#pragma once
#include "nf4.cuh"

#define NF4_FACTOR 1.18881f
#define LANE_PIECE(t) 0

__shared__ float nf4_codes[256];   // values of absmax codes
__shared__ u32 nf4_pairs[256][32]; // of every byte, for every lane: its high nibble's level below
static_assert(sizeof nf4_codes + sizeof nf4_pairs == NF4_TABLE_BYTES,
              "what smq-engine leaves room for");

// By all threads, before their first barrier.
DEVICE void fill_nf4_tables() {
    auto level = [](int code) { return __uint_as_float(NF4_VALUE_BITS[code]) * NF4_FACTOR; };
    for (int i = threadIdx.x; i < 256 * 32; i += THREADS)
        nf4_pairs[i / 32][i % 32] = bf16_pair(level(i / 512), level(i / 32 % 16));
    for (int i = threadIdx.x; i < 256; i += THREADS)
        nf4_codes[i] = __uint_as_float(NF4_ABSMAX_BITS[i]);
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
            a[i][0] = pair(w.x, t), a[i][1] = pair(w8.x, t), a[i][2] = pair(w.y, t),
                a[i][3] = pair(w8.y, t);
            a[i + 1][0] = pair(w.z, t), a[i + 1][1] = pair(w8.z, t);
            a[i + 1][2] = pair(w.w, t), a[i + 1][3] = pair(w8.w, t);
        }
    }
};
