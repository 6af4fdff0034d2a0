// The weights of gemm_int4.cu that are indices into a code book, as gemm_int4_weights.cuh has
// int4's.
//
// A level plus 128 is a byte u, and the bf16 with the bits u means u 2^-133: the first two binades
// are one linear scale. Times 2^127, less 2, that is level / 64, exactly: 8 bits. The scale makes
// up for the 64.
#pragma once

// Four nibbles, in the low 16 bits, as prmt looks them up: their bits 0 to 2, and which half of the
// book bit 3 says.
struct Indices {
    u32 index, half;
    INSIDE Indices(u32 word)
        : index(word & 0x77777777u), half((word >> 1 & 0x44444444u) | 0x32103210u) {}
    INSIDE u32 low(const uint4 &book) const { return look_up(book, index, half); }
    INSIDE u32 high(const uint4 &book) const { return look_up(book, index >> 16, half >> 16); }
    // prmt itself: __byte_perm would take bit 3 off each index, which is off already.
    static INSIDE u32 permute(u32 a, u32 b, u32 by) {
        u32 bytes;
        asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(a), "r"(b), "r"(by));
        return bytes;
    }
    static INSIDE u32 look_up(const uint4 &book, u32 index, u32 half) {
        return permute(permute(book.x, book.y, index), permute(book.z, book.w, index), half);
    }
};

// Two bytes, each in the low half of 16 bits whose upper half is 0.
DEVICE u32 level_pair(u32 bytes) {
    u32 pair;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;"
        : "=r"(pair)
        : "r"(bytes), "r"(0x7f007f00u), "r"(0xc000c000u));
    return pair;
}

#if PARTS == 1
#define LANE_PIECE(t) (t) // which 16 bytes of a row's step a lane begins to read at

// Pairs (i, i + 4) of a word's nibbles, i = 0 to 3.
DEVICE void level_pairs(u32 (&pairs)[4], const uint4 &book, u32 word) {
    const Indices four(word);
    const u32 low = four.low(book), high = four.high(book);
    const u32 first = __byte_perm(low, high, 0x5410), last = __byte_perm(low, high, 0x7632);
    pairs[0] = level_pair(first & 0x00ff00ffu),
        pairs[1] = level_pair(__byte_perm(first, 0, 0x4341));
    pairs[2] = level_pair(last & 0x00ff00ffu), pairs[3] = level_pair(__byte_perm(last, 0, 0x4341));
}

// A lane's weights of a step: 16 bytes of fragment rows r and r + 8.
struct step_weights {
    uint4 w, w8;
    INSIDE void load(const uint4 *from) { w = from[0], w8 = from[32]; }
    // The A fragments of a chunk's k-steps.
    INSIDE void dequantize(u32 (&a)[CHUNK_STEPS][4], int chunk, int, const uint4 &book) const {
#pragma unroll
        for (int i = 0; i < CHUNK_STEPS; i += 2) {
            const int first = chunk * CHUNK_STEPS + i;
            u32 pairs[4], pairs8[4];
            level_pairs(pairs, book, (&w.x)[first / 2]),
                level_pairs(pairs8, book, (&w8.x)[first / 2]);
#pragma unroll
            for (int s = 0; s < 2; s++) {
                a[i + s][0] = pairs[2 * s], a[i + s][1] = pairs8[2 * s];
                a[i + s][2] = pairs[2 * s + 1], a[i + s][3] = pairs8[2 * s + 1];
            }
        }
    }
};
#else
#define LANE_PIECE(t) 0

// The pairs of neighbours in byte t of two words.
DEVICE void level_neighbours(u32 &x, u32 &y, const uint4 &book, u32 word_x, u32 word_y, int t) {
    const u32 bytes = Indices(__byte_perm(word_x, word_y, t | (4 + t) << 4)).low(book);
    x = level_pair(__byte_perm(bytes, 0, 0x4140)), y = level_pair(__byte_perm(bytes, 0, 0x4342));
}

// A lane's weights of a step: byte t of each word of fragment rows r and r + 8. Two words are a
// k-step.
struct step_weights {
    const uint4 *rows;
    INSIDE void load(const uint4 *from) { rows = from; }
    // The A fragments of a chunk's k-steps.
    INSIDE void dequantize(u32 (&a)[CHUNK_STEPS][4], int chunk, int t, const uint4 &book) const {
#pragma unroll
        for (int i = 0; i < CHUNK_STEPS; i += 2) {
            const int s = chunk * CHUNK_STEPS + i;
            const uint4 w = rows[s / 2], w8 = rows[32 + s / 2];
            level_neighbours(a[i][0], a[i][2], book, w.x, w.y, t),
                level_neighbours(a[i][1], a[i][3], book, w8.x, w8.y, t);
            level_neighbours(a[i + 1][0], a[i + 1][2], book, w.z, w.w, t);
            level_neighbours(a[i + 1][1], a[i + 1][3], book, w8.z, w8.w, t);
        }
    }
};
#endif
