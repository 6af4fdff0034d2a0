// Rows of the key/value cache (spec/cache.md): a row is a head's keys or values of one token.
//
//   codes    KV_UNITS: bf16, E4M3 or int8 of each element, or bytes of two nibbles, the even
//            element in the low one
//   scales   KV_SCALES bytes: none of bf16; the exponent of a power of two; or of int4 sign |
//            exponent(5) | mantissa(2) of each 32 elements
//
// Macros: HEAD_DIM; KV_CODE, one of the numbers KV_BF16, KV_FP8, KV_INT8 and KV_INT4 (none of them:
// bf16).
#pragma once
#include "common.cuh"

#ifndef KV_CODE
#define KV_BF16 0
#define KV_FP8 1
#define KV_INT8 2
#define KV_INT4 3
#define KV_CODE KV_BF16
#endif
static_assert(KV_CODE == KV_BF16 || KV_CODE == KV_FP8 || KV_CODE == KV_INT8 || KV_CODE == KV_INT4,
              "a format of the cache");
static_assert(HEAD_DIM % 32 == 0, "an element a lane");
constexpr int KV_GROUPS = HEAD_DIM / 32; // of 32 elements
#if KV_CODE == KV_BF16
typedef u16 KvUnit;
constexpr int KV_UNITS = HEAD_DIM, KV_SCALES = 0;
#elif KV_CODE == KV_INT4
typedef u8 KvUnit;
constexpr int KV_UNITS = HEAD_DIM / 2, KV_SCALES = KV_GROUPS;
#else
typedef u8 KvUnit;
constexpr int KV_UNITS = HEAD_DIM, KV_SCALES = 1;
#endif
constexpr int KV_ROW = KV_UNITS * sizeof(KvUnit); // bytes
// A kernel's arguments beside keys and values, where these have scales.
#if KV_CODE == KV_BF16
#define SCALE_ARGUMENTS
#else
#define SCALE_ARGUMENTS u8 *k_scales, u8 *v_scales,
#endif
constexpr u32 KV_INFINITE = 0x7f80; // a bf16's bits without its sign

// What the values of a row's, or of a group's, codes are multiplied with. Of one that is not finite
// it is infinity: its codes are 0, so that all its elements, and all sums of them, are NaN.
DEVICE float kv_scale(u32 code) {
#if KV_CODE == KV_INT4
    // Sign, exponent of bias 21 and mantissa. Code 0 is not told apart: its group's codes are 0.
    const u32 bits = ((u32)((int)(code << 24) >> 3) & 0x8fe00000u) + ((127u - 21u) << 23);
    return __uint_as_float(code == 1 ? KV_INFINITE << 16 : bits);
#else
    return __uint_as_float(code << 23);
#endif
}

#if KV_CODE == KV_FP8
DEVICE u32 kv_code(float v) {
    u16 pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(v));
    return pair & 255u;
}
#elif KV_CODE == KV_INT8
DEVICE u32 kv_code(float v) { return (u32)min(max(__float2int_rn(v), -127), 127) & 255u; }
#endif

#if KV_CODE != KV_BF16
// A row, of which a lane has elements 32 c + lane, bf16, into its codes and scales. By a whole
// warp.
DEVICE void kv_encode(const u16 v[KV_GROUPS], u8 *codes, u8 *scales, int lane) {
#if KV_CODE == KV_INT4
#pragma unroll
    for (int c = 0; c < KV_GROUPS; c++) {
        // The first element of largest magnitude.
        const u32 best = __reduce_max_sync(0xffffffffu, (v[c] & 0x7fffu) << 5 | 31 - lane);
        const u32 magnitude = best >> 5;
        const u32 first = __shfl_sync(0xffffffffu, (u32)v[c], 31 - (best & 31));
        const bool is_negative = first & 0x8000u;
        // An eighth of it, rounded to two bits of mantissa, half to even; a subnormal is zero.
        const u32 eighth = __float_as_uint(__uint_as_float(magnitude << 16) * 0.125f);
        const u32 rounded = eighth + 0xfffffu + (eighth >> 21 & 1);
        const int field = (int)(rounded >> 23) - 127 + 21;
        // Under the window 0 or the smallest, over it the largest.
        u32 code = field > 0    ? min((u32)field << 2 | (rounded >> 21 & 3), 127u)
                   : field == 0 ? 4u
                                : 0u;
        if (eighth < 0x00800000u) code = 0;
        if (code && !is_negative) code |= 128u;
        if (magnitude >= KV_INFINITE) code = 1;
        const float scale = kv_scale(code);
        const int nearest = __float2int_rn(__fdiv_rn(bf16_to_f32(v[c]), scale));
        const int q = code > 1 ? min(max(nearest, -8), 7) : 0;
        const u32 odd = __shfl_down_sync(0xffffffffu, (u32)q, 1);
        if (lane % 2 == 0) codes[16 * c + lane / 2] = (u8)((u32)q & 15 | (odd & 15) << 4);
        if (lane == 0) scales[c] = (u8)code;
    }
#else
    u32 largest = 0;
#pragma unroll
    for (int c = 0; c < KV_GROUPS; c++) largest = max(largest, v[c] & 0x7fffu);
    largest = __reduce_max_sync(0xffffffffu, largest);
    const bool is_finite = largest < KV_INFINITE;
#if KV_CODE == KV_FP8
    const int fitting = (int)(largest >> 7) - 8 + ((largest & 127) > 96);
#else
    const int fitting = (int)(largest >> 7) - 6;
#endif
    const int exponent = max(fitting, 10);
    const float inverse = __uint_as_float((u32)(254 - exponent) << 23);
#pragma unroll
    for (int c = 0; c < KV_GROUPS; c++)
        codes[32 * c + lane] = (u8)(is_finite ? kv_code(bf16_to_f32(v[c]) * inverse) : 0u);
    if (lane == 0) scales[0] = (u8)(is_finite ? exponent : 255);
#endif
}

// Of a row in bf16, which the codes do not overwrite.
DEVICE void kv_encode_row(const u16 *row, u8 *codes, u8 *scales, int lane) {
    u16 v[KV_GROUPS];
#pragma unroll
    for (int c = 0; c < KV_GROUPS; c++) v[c] = row[32 * c + lane];
    kv_encode(v, codes, scales, lane);
}
#endif

// Eight codes, of elements 8 i .. 8 i + 7 of a row, as values before they are multiplied with their
// scale: of E4M3 by the conversion to pairs of f16, an instruction for two, of integers by numbers
// whose lowest bits a code takes, from which an addition leaves it.
#if KV_CODE == KV_BF16
typedef uint4 KvEight;
DEVICE void kv_values(KvEight raw, float v[8]) { unpack(raw, v); }
#elif KV_CODE == KV_INT4
typedef u32 KvEight;
DEVICE void kv_values(KvEight raw, float v[8]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const u32 pair = int4_pair(raw, i); // elements i and i + 4
        v[i] = bf16_low(pair), v[i + 4] = bf16_high(pair);
    }
}
#else
typedef uint2 KvEight;
DEVICE void kv_four(u32 raw, float v[4]) {
#if KV_CODE == KV_FP8
    u32 pairs[2];
    asm("{\n"
        ".reg .b16 low, high;\n"
        "mov.b32 {low, high}, %2;\n"
        "cvt.rn.f16x2.e4m3x2 %0, low;\n"
        "cvt.rn.f16x2.e4m3x2 %1, high;\n"
        "}\n" : "=r"(pairs[0]), "=r"(pairs[1]) : "r"(raw));
#pragma unroll
    for (int i = 0; i < 2; i++) {
        v[2 * i] = f16_to_f32((u16)pairs[i]);
        v[2 * i + 1] = f16_to_f32((u16)(pairs[i] >> 16));
    }
#else
    // A byte with its sign turned over, in the lowest bits of 2^23, is 2^23 + 128 + q.
    const u32 turned = raw ^ 0x80808080u;
#pragma unroll
    for (int i = 0; i < 4; i++)
        v[i] = __uint_as_float(__byte_perm(turned, 0x4b000000u, 0x7440 | i)) - 8388736.0f;
#endif
}
DEVICE void kv_values(KvEight raw, float v[8]) { kv_four(raw.x, v), kv_four(raw.y, v + 4); }
#endif
constexpr int KV_EIGHT = sizeof(KvEight) / sizeof(KvUnit);

#if KV_CODE != KV_BF16
// ---- products of pairs of bf16 ----

DEVICE u32 pair_times(u32 a, u32 b) {
    u32 product;
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
    return product;
}

// What a scale's code stands for, as bf16: exact.
DEVICE u32 scale_bf16(u32 code) { return __float_as_uint(kv_scale(code)) >> 16; }

// What a pair's two values are multiplied with.
struct PairScale {
    u32 factors;
#if KV_CODE == KV_INT4
    u32 offsets; // -136 of them: at most seven bits
#endif
    INSIDE PairScale() {}
    INSIDE explicit PairScale(u32 pair) : factors(pair) {
#if KV_CODE == KV_INT4
        offsets = pair_times(pair, 0xc308c308u);
#endif
    }
};

#if KV_CODE == KV_INT4
// Nibbles `part` and part + 4 of a word, times their scales.
DEVICE u32 scaled_pair(u32 word, int part, PairScale by) {
    u32 pair;
    // 136 + q, as in int4_pair.
    asm("lop3.b32 %0, %1, 0x000f000f, 0x43084308, 0x6a;" : "=r"(pair) : "r"(word >> 4 * part));
    asm("fma.rn.bf16x2 %0, %1, %2, %3;"
        : "=r"(pair)
        : "r"(pair), "r"(by.factors), "r"(by.offsets));
    return pair;
}
#else
// Bytes `part` and part + 2 of a word, without their scales.
DEVICE u32 code_pair(u32 word, int part) {
#if KV_CODE == KV_FP8
    // An exponent of bias 7 in the place of one of bias 127, subnormals included.
    const u32 there = word << 8 * (1 - part);
    return pair_times(there & 0x80008000u | there >> 4 & 0x07f007f0u, 0x7b807b80u);
#else
    // 128 + the seven low bits, less 128 or, of a negative one, 256.
    const u32 there = word >> 8 * part;
    u32 pair;
    asm("sub.rn.bf16x2 %0, %1, %2;"
        : "=r"(pair)
        : "r"(there & 0x007f007fu | 0x43004300u), "r"(there & 0x00800080u | 0x43004300u));
    return pair;
#endif
}
DEVICE u32 scaled_pair(u32 word, int part, PairScale by) {
    return pair_times(code_pair(word, part), by.factors);
}
#endif
#endif
