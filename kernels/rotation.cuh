// Rotation of queries and keys by their positions (RoPE): elements j and j + ROTARY_HALF of a head are a pair.
//
// Angles come from a table, f32 [rows, 2, ROTARY_HALF]: cosines, then sines, of each row (rope.cu, rotation_table).
// Macros: HEADS, KV_HEADS, HEAD_DIM, ROTARY_HALF (multiple of 8).
#pragma once
#include "common.cuh"

#ifndef PACKED
#define PACKED 0
#endif

static_assert(ROTARY_HALF % 8 == 0 && 2 * ROTARY_HALF <= HEAD_DIM, "a thread rotates 8 pairs");
constexpr int QKV_WIDTH = (HEADS + 2 * KV_HEADS) * HEAD_DIM;

DEVICE void unpack(uint4 raw, float v[8]) {
    v[0] = bf16_low(raw.x), v[1] = bf16_high(raw.x), v[2] = bf16_low(raw.y), v[3] = bf16_high(raw.y);
    v[4] = bf16_low(raw.z), v[5] = bf16_high(raw.z), v[6] = bf16_low(raw.w), v[7] = bf16_high(raw.w);
}
DEVICE uint4 pack(const float v[8]) {
    return make_uint4(bf16_pair(v[0], v[1]), bf16_pair(v[2], v[3]), bf16_pair(v[4], v[5]), bf16_pair(v[6], v[7]));
}

// 8 elements and the 8 that they rotate with, by angles whose sines come ROTARY_HALF after their cosines.
struct Angles {
    float4 cosines[2], sines[2];
    INSIDE void load(const float *at) {
        const float4 *from = (const float4 *)at;
        cosines[0] = from[0], cosines[1] = from[1];
        sines[0] = from[ROTARY_HALF / 4], sines[1] = from[ROTARY_HALF / 4 + 1];
    }
    INSIDE void rotate(uint4 &low, uint4 &high) const {
        const float c[8] = {cosines[0].x, cosines[0].y, cosines[0].z, cosines[0].w,
                            cosines[1].x, cosines[1].y, cosines[1].z, cosines[1].w};
        const float s[8] = {sines[0].x, sines[0].y, sines[0].z, sines[0].w, sines[1].x, sines[1].y, sines[1].z, sines[1].w};
        float a[8], b[8];
        unpack(low, a);
        unpack(high, b);
#pragma unroll
        for (int e = 0; e < 8; ++e) {
            const float rotated = a[e] * c[e] - b[e] * s[e];
            b[e] = b[e] * c[e] + a[e] * s[e];
            a[e] = rotated;
        }
        low = pack(a), high = pack(b);
    }
};
