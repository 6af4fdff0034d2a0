// Between two products of a prompt's pass, where a family does more with what attention and MLP
// give than add it to the residual stream: the output of one block joins the stream, and the input
// of the next one is made.
//
// leave_rows   z = y[m] + bias; with weights `after`, z = z / sqrt(mean(z^2) + eps) * after;
//              x[m] += RESIDUAL z;
//              out[m] (bf16, XK columns, plain or int4 order) =
//              x[m] / sqrt(mean(x[m]^2) + eps) * before, or without weights `before` x[m] itself;
//              columns HIDDEN .. XK zero
//   x        f32 [rows, HIDDEN], the residual stream
//   y        f32 [rows, HIDDEN], or null: x stays as it is
//   bias, after, before  f32 [HIDDEN], or null
//   out      bf16 [rows, XK], or null: nothing follows
//   grid: rows, block: ROW_THREADS
//
// The kernel is bound by memory: a thread moves 8 columns at a time and keeps them, so that each
// array is touched once. Which parts there are is an argument, since no branch costs anything
// beside memory here.
//
// Macros: HIDDEN (multiple of 8), EPS_BITS, RESIDUAL_BITS (an f32), ROW_THREADS. The order is an
// argument.
#include "common.cuh"

static_assert(ROW_THREADS == 256, "as the loops here count");
static_assert(HIDDEN % 8 == 0, "a thread moves 8 columns");

#define XK ((HIDDEN + 127) / 128 * 128)

DEVICE float block_sum(float v, float *warps) {
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = v;
    __syncthreads();
    v = 0.0f;
#pragma unroll
    for (int i = 0; i < ROW_THREADS / 32; i++) v += warps[i];
    return v;
}

DEVICE void load_eight(float v[8], const float *from) {
    const float4 a = ((const float4 *)from)[0], b = ((const float4 *)from)[1];
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}

DEVICE float inverse_rms(float square_sum) {
    return 1.0f / sqrtf(square_sum / HIDDEN + __uint_as_float(EPS_BITS));
}

KERNEL __launch_bounds__(ROW_THREADS)
    leave_rows(float *x, const float *y, const float *bias, const float *after, const float *before,
               u16 *out, int int4_order) {
    let_next_kernel_start();
    constexpr int STEPS = (XK / 8 + ROW_THREADS - 1) / ROW_THREADS;
    __shared__ float sums[2][ROW_THREADS / 32];
    const u64 row = blockIdx.x;
    float v[STEPS][8], z[STEPS][8];
    wait_for_previous_kernel();
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        const int k = (s * ROW_THREADS + threadIdx.x) * 8;
#pragma unroll
        for (int i = 0; i < 8; i++) v[s][i] = z[s][i] = 0.0f;
        if (k < HIDDEN) load_eight(v[s], x + row * HIDDEN + k);
        if (k < HIDDEN && y) load_eight(z[s], y + row * HIDDEN + k);
    }
    if (y) {
        float squares = 0.0f;
#pragma unroll
        for (int s = 0; s < STEPS; s++) {
            const int k = (s * ROW_THREADS + threadIdx.x) * 8;
            if (k < HIDDEN && bias) {
                float b[8];
                load_eight(b, bias + k);
#pragma unroll
                for (int i = 0; i < 8; i++) z[s][i] += b[i];
            }
#pragma unroll
            for (int i = 0; i < 8; i++) squares += z[s][i] * z[s][i];
        }
        const float factor = after ? inverse_rms(block_sum(squares, sums[0])) : 1.0f;
#pragma unroll
        for (int s = 0; s < STEPS; s++) {
            const int k = (s * ROW_THREADS + threadIdx.x) * 8;
            if (k >= HIDDEN) continue;
            if (after) {
                float w[8];
                load_eight(w, after + k);
#pragma unroll
                for (int i = 0; i < 8; i++) z[s][i] = z[s][i] * factor * w[i];
            }
#pragma unroll
            for (int i = 0; i < 8; i++) v[s][i] += z[s][i] * __uint_as_float(RESIDUAL_BITS);
            float4 *to = (float4 *)(x + row * HIDDEN + k);
            to[0] = make_float4(v[s][0], v[s][1], v[s][2], v[s][3]);
            to[1] = make_float4(v[s][4], v[s][5], v[s][6], v[s][7]);
        }
    }
    if (!out) return;
    float squares = 0.0f;
#pragma unroll
    for (int s = 0; s < STEPS; s++)
#pragma unroll
        for (int i = 0; i < 8; i++) squares += v[s][i] * v[s][i];
    const float factor = before ? inverse_rms(block_sum(squares, sums[1])) : 1.0f;
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        const int k = (s * ROW_THREADS + threadIdx.x) * 8;
        if (k >= XK) break;
        if (k < HIDDEN && before) {
            float w[8];
            load_eight(w, before + k);
#pragma unroll
            for (int i = 0; i < 8; i++) v[s][i] = v[s][i] * factor * w[i];
        }
        store_eight(out + row * XK, k, v[s], int4_order);
    }
}
