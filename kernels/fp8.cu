// Activations as FP8, for products with FP8 weights (spec/method.md, "FP8"): a scale for each
// token.
//
// quantize_rows: scales[m] = max(max |x[m]|, 1e-12) / 448,
//                codes[m, K] = E4M3(x[m] / scales[m]), to nearest even.
//   x       [*, stride] bf16, plain order, columns 0 .. K - 1; stride in elements
//   codes   [*, K] bytes
//   scales  [*] f32
//   Grid: rows, block: THREADS.
//
// Both divisions are IEEE's, so that codes and scales are the bits of the CPU engine for the same
// activations. A row of zeros gets the floor's scale and codes of zero. A thread keeps its part of
// the row in registers, so that the row is read once.
//
// Macros: K (a multiple of 16), THREADS.
#include "common.cuh"

#define CHUNKS ((K / 8 + THREADS - 1) / THREADS)

static_assert(K % 16 == 0, "rows of codes start at 16 bytes");

// E4M3 codes of two values, the first in the low byte; magnitudes over 448 become it.
DEVICE u32 e4m3_pair(float low, float high) {
    u16 pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
    return pair;
}

// The codes of two pairs of bf16.
DEVICE u32 codes_of(u32 a, u32 b, float scale) {
    return e4m3_pair(bf16_low(a) / scale, bf16_high(a) / scale) |
           e4m3_pair(bf16_low(b) / scale, bf16_high(b) / scale) << 16;
}

KERNEL __launch_bounds__(THREADS)
    quantize_rows(const u16 *x, int stride, u8 *codes, float *scales) {
    __shared__ float maxima[THREADS / 32];
    let_next_kernel_start();
    wait_for_previous_kernel();
    const u64 m = blockIdx.x;
    uint4 v[CHUNKS];
    float largest = 0.0f;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        int k = (c * THREADS + threadIdx.x) * 8;
        v[c] = k < K ? *(const uint4 *)(x + m * (u32)stride + k) : make_uint4(0, 0, 0, 0);
        u32 pairs[4] = {v[c].x, v[c].y, v[c].z, v[c].w};
#pragma unroll
        for (int i = 0; i < 4; i++)
            largest = fmaxf(largest, fmaxf(fabsf(bf16_low(pairs[i])), fabsf(bf16_high(pairs[i]))));
    }
#pragma unroll
    for (int d = 16; d > 0; d /= 2)
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, d));
    if (threadIdx.x % 32 == 0) maxima[threadIdx.x / 32] = largest;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < THREADS / 32; i++) largest = fmaxf(largest, maxima[i]);
    const float scale = fmaxf(largest, 1e-12f) / 448.0f;
    if (threadIdx.x == 0) scales[m] = scale;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        int k = (c * THREADS + threadIdx.x) * 8;
        if (k >= K) break;
        *(uint2 *)(codes + m * K + k) =
            make_uint2(codes_of(v[c].x, v[c].y, scale), codes_of(v[c].z, v[c].w, scale));
    }
}
