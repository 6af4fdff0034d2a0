// What becomes of a row's queries, keys and values between their product and attention: bias, norm
// of each head, rotation. rope.cu does it for the rows of a pass, attention_single.cu for the one
// token of each of its tiles. Sums and products are spelled out, so that a row has the same bits by
// either.
//
// Macros: HEADS, KV_HEADS, HEAD_DIM, ROTARY_HALF (multiple of 8); where a family has them QKV_BIAS;
// QK_NORM, EPS_BITS and the numbers PER_HEAD, WHOLE_WIDTH (rope.cu says what they are).
#pragma once
#include "common.cuh"

static_assert(ROTARY_HALF % 8 == 0 && 2 * ROTARY_HALF <= HEAD_DIM, "a thread rotates 8 pairs");
constexpr int QKV_WIDTH = (HEADS + 2 * KV_HEADS) * HEAD_DIM;
// A head is so many pairs of 8 elements and the 8 that they rotate with, and then, if rotation is
// partial, so many times 8 elements that stay as they are.
constexpr int HEAD_PAIRS = ROTARY_HALF / 8, HEAD_REST = HEAD_DIM / 8 - 2 * HEAD_PAIRS;

#if QKV_BIAS
#define BIAS_ARGUMENT , const float *bias
#else
#define BIAS_ARGUMENT
#endif
#if QK_NORM
static_assert(QK_NORM == PER_HEAD || QK_NORM == WHOLE_WIDTH, "one of the two");
#define NORM_ARGUMENTS , const float *q_norm, const float *k_norm
#else
#define NORM_ARGUMENTS
#endif

DEVICE uint4 pack(const float v[8]) {
    return make_uint4(bf16_pair(v[0], v[1]), bf16_pair(v[2], v[3]), bf16_pair(v[4], v[5]),
                      bf16_pair(v[6], v[7]));
}

// 8 elements and the 8 that they rotate with, by angles whose sines come ROTARY_HALF after their
// cosines.
struct Angles {
    float4 cosines[2], sines[2];
    INSIDE void load(const float *at) {
        const float4 *from = (const float4 *)at;
        cosines[0] = from[0], cosines[1] = from[1];
        sines[0] = from[ROTARY_HALF / 4], sines[1] = from[ROTARY_HALF / 4 + 1];
    }
    INSIDE void rotate(uint4 &low, uint4 &high) const {
        float a[8], b[8];
        unpack(low, a);
        unpack(high, b);
        rotate(a, b);
        low = pack(a), high = pack(b);
    }
    INSIDE void rotate(float a[8], float b[8]) const {
        const float c[8] = {cosines[0].x, cosines[0].y, cosines[0].z, cosines[0].w,
                            cosines[1].x, cosines[1].y, cosines[1].z, cosines[1].w};
        const float s[8] = {sines[0].x, sines[0].y, sines[0].z, sines[0].w,
                            sines[1].x, sines[1].y, sines[1].z, sines[1].w};
#pragma unroll
        for (int e = 0; e < 8; ++e) {
            const float rotated = __fmaf_rn(a[e], c[e], -__fmul_rn(b[e], s[e]));
            b[e] = __fmaf_rn(b[e], c[e], __fmul_rn(a[e], s[e]));
            a[e] = rotated;
        }
    }
};

#if QK_NORM
// The sum of squares of a head, with its bias where there is one: a warp's, and the same in each
// lane.
DEVICE float head_squares(const u16 *from, const float *bias) {
    float squares = 0.0f;
    for (int i = threadIdx.x % 32 * 2; i < HEAD_DIM; i += 64) {
        const u32 pair = *(const u32 *)(from + i);
        float a = bf16_low(pair), b = bf16_high(pair);
#if QKV_BIAS
        a += bias[i], b += bias[i + 1];
#endif
        squares = __fadd_rn(squares, __fmaf_rn(a, a, __fmul_rn(b, b)));
    }
    return warp_sum(squares);
}

// What `count` elements of these squares are multiplied with, beside their weights.
DEVICE float norm_factor(float squares, int count) {
    return 1.0f / sqrtf(squares / count + __uint_as_float(EPS_BITS));
}
#endif

#if QKV_BIAS || QK_NORM
// Elements of a head before the rotation: `bias` and `weight` are those of the first (no weight: a
// value, which is not normed).
DEVICE void adjust(float v[8], const float *bias, const float *weight, float factor) {
#if QKV_BIAS
#pragma unroll
    for (int e = 0; e < 8; ++e) v[e] += bias[e];
#endif
#if QK_NORM
    if (weight == nullptr) return;
#pragma unroll
    for (int e = 0; e < 8; ++e) v[e] = __fmul_rn(__fmul_rn(v[e], factor), weight[e]);
#endif
}
#endif
