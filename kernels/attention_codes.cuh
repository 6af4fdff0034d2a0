// Tiles of keys and values that are cached in fewer bits than bf16 (kv_codes.cuh), in shared memory
// as they are cached, and what attention multiplies of them.
//
// A tile is PREFILL_KEYS rows of KV_PIECES pieces of 16 bytes, swizzled so that eight rows' pieces
// lie in different banks, and behind them the rows' scales. What an mma takes of it is pairs of
// bf16: a word of codes has KV_PARTS pairs, each of which takes every KV_PARTS-th code of the word,
// since two of them then come apart by one mask. A product's k, or n, goes by another name for the
// same element, and what is added up is the same:
//
//   keys     k = 16 step + 2 t + e and 8 more, of word `4 piece + t` of a row: pairs 0 and 1 of it
//            in one step, and, of int4, 2 and 3 in the next (key_element)
//   values   n of a block of eight columns, of which KV_PARTS share a piece: in each kernel the
//            order that it meets them in, which its output is put back from
//
// attention_prefill.cu and attention_single.cu give k the same elements, so that a row has the same
// bits by either.
//
// Macros: as attention.cuh.
#pragma once
#include "attention.cuh"

constexpr int KV_PIECES = KV_ROW / 16;
constexpr int KV_PARTS = KV_CODE == KV_INT4 ? 4 : 2;
constexpr int CODES_BYTES = PREFILL_KEYS * (KV_ROW + KV_SCALES); // of a tile
constexpr int SCALES_AT = PREFILL_KEYS * KV_ROW;                 // in a tile
static_assert(PREFILL_KEYS * KV_SCALES % 16 == 0 && KV_ROW % 16 == 0, "whole pieces");

// Where piece `piece` of a row lies in its tile. The largest power of two that divides the number
// of pieces, and so the stride of rows, says how many rows apart two meet in the same bank. Eight
// rows on it is the same.
DEVICE u32 code_offset(u32 row, u32 piece) {
    constexpr u32 EVEN = KV_PIECES & -KV_PIECES, BANKS = EVEN < 8 ? EVEN : 8;
    return row * KV_ROW + (piece ^ row / (8 / BANKS) % BANKS) * 16;
}

// A tile from its page: codes and scales of the head's first row on. Rows from `end` on are not
// looked at, so they are not read; nor is row `skipped`, but for its scale, which means nothing.
// Two threads have a row, of which each has every other piece.
DEVICE void copy_codes(u32 to, const u8 *codes, const u8 *scales, int end, int skipped = -1) {
    static_assert(THREADS == 2 * PREFILL_KEYS, "two threads a row");
    const int row = threadIdx.x / 2, first = threadIdx.x % 2;
    const bool valid = row < end;
    const u8 *from = codes + (valid ? row * KV_ROW + first * 16 : 0);
    if (row != skipped)
#pragma unroll
        for (int i = 0; i < KV_PIECES; i += 2)
            if (i + 1 < KV_PIECES || first == 0)
                copy_async(to + code_offset(row, first ^ i), from + 16 * i, valid);
    constexpr int SCALE_PIECES = PREFILL_KEYS * KV_SCALES / 16;
    static_assert(SCALE_PIECES <= THREADS, "one each");
    if (threadIdx.x < SCALE_PIECES)
        copy_async(to + SCALES_AT + threadIdx.x * 16, scales + threadIdx.x * 16, true);
}

// ---- which element is which ----

// Element e (0, 1) of the pair that lane t of a quad has as k = 2 t + 8 high + e of a step.
DEVICE int key_element(int step, int high, int t, int e) {
#if KV_CODE == KV_INT4
    return 32 * (step / 2) + 8 * t + 2 * (step % 2) + high + 4 * e;
#else
    return 16 * step + 4 * t + high + 2 * e;
#endif
}

// The elements of KV_PARTS pieces of queries in the order of keys' k: word t of piece i.
DEVICE u32 query_word(const u32 *words, int i, int t) {
    const int first = KV_PARTS * t + i / 2;
    return __byte_perm(words[first], words[first + KV_PARTS / 2], i % 2 ? 0x7632 : 0x5410);
}

// The pair of bf16 from two elements of a row.
DEVICE u32 two_of(const u16 *row, int low, int high) { return row[low] | (u32)row[high] << 16; }

// Word `word` of a head's output (output_word), from its HEAD_DIM elements in shared memory.
DEVICE u32 staged_word(const u16 *row, int word) {
    const int segment = 32 * (word / 16), pair = word % 16;
#if X_INT4
    const int low = segment + pair / 4 * 8 + pair % 4;
    return two_of(row, low, low + 4);
#else
    return *(const u32 *)(row + segment + 2 * pair);
#endif
}
