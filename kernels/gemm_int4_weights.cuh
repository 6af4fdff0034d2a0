// The weights of gemm_int4.cu from shared memory to the tensor cores' fragments: a step of 128
// columns of a warp's 16 rows, 64 bytes each, to 8 k-steps of bf16, a chunk of CHUNK_STEPS of them
// at a time. In groups of 128 a k-step has columns in int4 order, else in plain order.
#pragma once

#if LUT4
#include "gemm_lut4_weights.cuh"
#elif PARTS == 1
#define LANE_PIECE(t) (t) // which 16 bytes of a row's step a lane begins to read at
// q / 4 of nibbles i and i + 4 of a word as bf16, exact; the scale makes up for the 4. Where
// int4_pair shifts for every i, odd ones here stay 4 bits higher: there the nibble n = q + 8 is the
// bf16 n 2^-129 (the first two binades are one linear scale), and n 2^-129 2^127 - 2 = q / 4.
DEVICE u32 quarter_pair(u32 word, int i) {
    u32 pair, shifted = i < 2 ? word : word >> 8;
    if (i % 2 == 0) {
        // The pair becomes 136 + q.
        asm("lop3.b32 %0, %1, 0x000f000f, 0x43084308, 0x6a;" : "=r"(pair) : "r"(shifted));
        asm("fma.rn.bf16x2 %0, %1, %2, %3;"
            : "=r"(pair)
            : "r"(pair), "r"(0x3e803e80u), "r"(0xc208c208u));
    } else {
        asm("lop3.b32 %0, %1, 0x00f000f0, 0x00800080, 0x6a;" : "=r"(pair) : "r"(shifted));
        asm("fma.rn.bf16x2 %0, %1, %2, %3;"
            : "=r"(pair)
            : "r"(pair), "r"(0x7f007f00u), "r"(0xc000c000u));
    }
    return pair;
}

// A lane's weights of a step: 16 bytes of fragment rows r and r + 8.
struct step_weights {
    uint4 w, w8;
    INSIDE void load(const uint4 *from) { w = from[0], w8 = from[32]; }
    // The A fragments of a chunk's k-steps.
    INSIDE void dequantize(u32 (&a)[CHUNK_STEPS][4], int chunk, int) const {
#pragma unroll
        for (int i = 0; i < CHUNK_STEPS; i++) {
            const int s = chunk * CHUNK_STEPS + i, first = s % 2 * 2;
            const u32 word = (&w.x)[s / 2], word8 = (&w8.x)[s / 2];
            a[i][0] = quarter_pair(word, first), a[i][1] = quarter_pair(word8, first);
            a[i][2] = quarter_pair(word, first + 1), a[i][3] = quarter_pair(word8, first + 1);
        }
    }
};
#else
#define LANE_PIECE(t) 0
#if NF4
#include "gemm_nf4_weights.cuh"
#else
// q / 4 of the two nibbles of byte t of a word as bf16, exact; the scale makes up for the 4. The
// byte goes into both halves of the pair. The lower one keeps its low nibble, made 136 + q as in
// int4_pair; the upper one its high nibble, which stays 4 bits higher: there n = q + 8 is the bf16
// n 2^-129 (the first two binades are one linear scale), and n 2^-129 2^127 - 2 = q / 4.
DEVICE u32 neighbours(u32 word, int t) {
    u32 pair = __byte_perm(word, 0, 0x4040 | t << 8 | t);
    asm("lop3.b32 %0, %1, 0x00f0000f, 0x00804308, 0x6a;" : "=r"(pair) : "r"(pair));
    asm("fma.rn.bf16x2 %0, %1, %2, %3;"
        : "=r"(pair)
        : "r"(pair), "r"(0x7f003e80u), "r"(0xc000c208u));
    return pair;
}
#endif

// A lane's weights of a step: byte t of each word of fragment rows r and r + 8. Two words are a
// k-step.
struct step_weights {
    const uint4 *rows;
    INSIDE void load(const uint4 *from) { rows = from; }
    // The A fragments of a chunk's k-steps.
    INSIDE void dequantize(u32 (&a)[CHUNK_STEPS][4], int chunk, int t) const {
#pragma unroll
        for (int i = 0; i < CHUNK_STEPS; i += 2) {
            const int s = chunk * CHUNK_STEPS + i;
            const uint4 w = rows[s / 2], w8 = rows[32 + s / 2];
            a[i][0] = neighbours(w.x, t), a[i][1] = neighbours(w8.x, t);
            a[i][2] = neighbours(w.y, t), a[i][3] = neighbours(w8.y, t);
            a[i + 1][0] = neighbours(w.z, t), a[i + 1][1] = neighbours(w8.z, t);
            a[i + 1][2] = neighbours(w.w, t), a[i + 1][3] = neighbours(w8.w, t);
        }
    }
};
#endif
