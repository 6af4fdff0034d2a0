// Row-wise kernels of a prompt's pass (many activation rows).
//
// embed_rows:  x[m, HIDDEN] (f32) = embedding[tokens[m]], times the f32 of EMBEDDING_BITS.
//                                                            grid: rows, block: 256
// norm_rows:   out[m, XK] (bf16) = x[m] / sqrt(mean(x[m]^2) + eps) * weight, in plain or in int4
//              order (common.cuh), columns HIDDEN .. XK zero.
//                                                            grid: rows, block: 256
// norm_some_rows: the same of x[rows[m]].                    grid: rows, block: 256
// swiglu_rows: out[m, XI] (bf16) = silu(gate[m]) * up[m] of gate_up[m, 2 INTERMEDIATE] (bf16),
//              plain or int4 order; with GATE_GELU_TANH gelu in place of silu, with GATE_UP_BIAS
//              after bias (f32 [2 INTERMEDIATE]) is added.grid: (ceil(XI / 2048), rows), block: 256
// last_row:    next_x = x * norm of one row and its sum of squares for the head's product, as
//              decode.cu reads them.                         grid: 1, block: 1024
// score_rows:  log_probs[m] = logits[m, target[m]] - ln sum exp logits[m] of f32 logits
//              [rows, VOCAB], sums in f64 over threads; is_top[m] = 1 where target[m] is the first
//              of the largest logits, else 0.                   grid: rows, block: 512
//
// They are bound by memory, so a thread moves 16 bytes at a time.
// Macros: HIDDEN, INTERMEDIATE, VOCAB, EPS_BITS, GRID (partial sums of last_row), and threads of
// the launches' blocks: ROW_THREADS, LAST_ROW_THREADS, SCORE_THREADS. The order is an argument,
// int4_order. Where a family has them: EMBEDDING_BITS, GATE_GELU_TANH, GATE_UP_BIAS.

#include "common.cuh"

static_assert(ROW_THREADS == 256 && LAST_ROW_THREADS == 1024 && SCORE_THREADS == 512,
              "as the loops here count");

#define XK ((HIDDEN + 127) / 128 * 128)
#define XI ((INTERMEDIATE + 127) / 128 * 128)

DEVICE float block_sum_256(float v) {
    __shared__ float warps[8];
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = v;
    __syncthreads();
    v = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; i++) v += warps[i];
    return v;
}

// A value of the embedding as the residual stream begins with it.
DEVICE float embedded(float v) {
#ifdef EMBEDDING_BITS
    return v * __uint_as_float(EMBEDDING_BITS);
#else
    return v;
#endif
}

KERNEL __launch_bounds__(256) embed_rows(const int *tokens, const u16 *embedding, float *x) {
    let_next_kernel_start();
    wait_for_previous_kernel();
    const u64 m = blockIdx.x;
    const u16 *row = embedding + (u64)(u32)tokens[m] * HIDDEN;
    for (int k = threadIdx.x * 8; k < HIDDEN; k += 256 * 8) {
        uint4 v = *(const uint4 *)(row + k);
        float4 *to = (float4 *)(x + m * HIDDEN + k);
        to[0] = make_float4(embedded(bf16_low(v.x)), embedded(bf16_high(v.x)),
                            embedded(bf16_low(v.y)), embedded(bf16_high(v.y)));
        to[1] = make_float4(embedded(bf16_low(v.z)), embedded(bf16_high(v.z)),
                            embedded(bf16_low(v.w)), embedded(bf16_high(v.w)));
    }
}

// Row m of `out` is that of x[m], or of x[rows[m]] if there are `rows`.
DEVICE void norm(const float *x, const int *rows, const float *weight, u16 *out, int int4_order) {
    let_next_kernel_start();
    constexpr int STEPS = (XK / 8 + 255) / 256;
    const u64 m = blockIdx.x;
    float v[STEPS][8];
    float4 w[STEPS][2]; // before the wait: one trip to memory less behind it
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        const int k = (s * 256 + threadIdx.x) * 8;
        const float4 *from = (const float4 *)(weight + k);
        if (k < HIDDEN) w[s][0] = from[0], w[s][1] = from[1];
    }
    wait_for_previous_kernel();
    const u64 row = rows ? rows[m] : m;
    float square_sum = 0.0f;
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        int k = (s * 256 + threadIdx.x) * 8;
        bool in = k < HIDDEN;
        const float4 *from = (const float4 *)(x + row * HIDDEN + k);
        float4 zero = make_float4(0, 0, 0, 0), a = in ? from[0] : zero, b = in ? from[1] : zero;
        v[s][0] = a.x, v[s][1] = a.y, v[s][2] = a.z, v[s][3] = a.w;
        v[s][4] = b.x, v[s][5] = b.y, v[s][6] = b.z, v[s][7] = b.w;
#pragma unroll
        for (int i = 0; i < 8; i++) square_sum += v[s][i] * v[s][i];
    }
    float factor = 1.0f / sqrtf(block_sum_256(square_sum) / HIDDEN + __uint_as_float(EPS_BITS));
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        int k = (s * 256 + threadIdx.x) * 8;
        if (k >= XK) break;
        const float weights[8] = {w[s][0].x, w[s][0].y, w[s][0].z, w[s][0].w,
                                  w[s][1].x, w[s][1].y, w[s][1].z, w[s][1].w};
        float y[8];
#pragma unroll
        for (int i = 0; i < 8; i++) y[i] = k < HIDDEN ? v[s][i] * factor * weights[i] : 0.0f;
        store_eight(out + m * XK, k, y, int4_order);
    }
}

KERNEL __launch_bounds__(256)
    norm_rows(const float *x, const float *weight, u16 *out, int int4_order) {
    norm(x, 0, weight, out, int4_order);
}

KERNEL __launch_bounds__(256)
    norm_some_rows(const float *x, const int *rows, const float *weight, u16 *out, int int4_order) {
    norm(x, rows, weight, out, int4_order);
}

#ifdef GATE_UP_BIAS
#define GATE_UP_BIAS_ARGUMENT , const float *bias
#else
#define GATE_UP_BIAS_ARGUMENT
#endif

KERNEL __launch_bounds__(256)
    swiglu_rows(const u16 *gate_up, u16 *out, int int4_order GATE_UP_BIAS_ARGUMENT) {
    let_next_kernel_start();
    wait_for_previous_kernel();
    const u64 m = blockIdx.y;
    int k = (blockIdx.x * 256 + threadIdx.x) * 8;
    if (k >= XI) return;
    float y[8] = {};
    if (k < INTERMEDIATE) {
        uint4 gate = *(const uint4 *)(gate_up + m * 2 * INTERMEDIATE + k);
        uint4 up = *(const uint4 *)(gate_up + m * 2 * INTERMEDIATE + INTERMEDIATE + k);
        u32 g[4] = {gate.x, gate.y, gate.z, gate.w}, u[4] = {up.x, up.y, up.z, up.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float a = bf16_low(g[i]), b = bf16_high(g[i]);
#ifdef GATE_UP_BIAS
            a += bias[k + 2 * i], b += bias[k + 2 * i + 1];
            const float *of_up = bias + INTERMEDIATE + k + 2 * i;
            y[2 * i] = a / (1.0f + expf(-gate_exponent(a))) * (bf16_low(u[i]) + of_up[0]);
            y[2 * i + 1] = b / (1.0f + expf(-gate_exponent(b))) * (bf16_high(u[i]) + of_up[1]);
#else
            y[2 * i] = a / (1.0f + expf(-gate_exponent(a))) * bf16_low(u[i]);
            y[2 * i + 1] = b / (1.0f + expf(-gate_exponent(b))) * bf16_high(u[i]);
#endif
        }
    }
    store_eight(out + m * XI, k, y, int4_order);
}

KERNEL __launch_bounds__(1024)
    last_row(const float *x, const float *norm, float *next_x, float *square_sums) {
    let_next_kernel_start();
    wait_for_previous_kernel();
    float square_sum = 0.0f;
    for (int k = threadIdx.x; k < HIDDEN; k += 1024) {
        next_x[k] = x[k] * norm[k];
        square_sum += x[k] * x[k];
    }
    store_block_sum(square_sum, square_sums, GRID);
}

KERNEL __launch_bounds__(512)
    score_rows(const float *logits, const int *targets, double *log_probs, int *is_top) {
    let_next_kernel_start();
    wait_for_previous_kernel();
    const u64 m = blockIdx.x;
    const float *row = logits + m * VOCAB;
    __shared__ float maxima[16];
    __shared__ double sums[16];
    float largest = __uint_as_float(0xff800000u);
    for (int i = threadIdx.x; i < VOCAB; i += 512) largest = fmaxf(largest, row[i]);
#pragma unroll
    for (int d = 16; d > 0; d /= 2)
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, d));
    if (threadIdx.x % 32 == 0) maxima[threadIdx.x / 32] = largest;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 16; i++) largest = fmaxf(largest, maxima[i]);
    const int target = targets[m];
    const float chosen = row[target];
    double sum = 0.0;
    int beaten = 0;
    for (int i = threadIdx.x; i < VOCAB; i += 512) {
        const float logit = row[i];
        sum += (double)expf(logit - largest);
        beaten |= logit > chosen || (logit == chosen && i < target);
    }
#pragma unroll
    for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    beaten = __syncthreads_or(beaten); // also the barrier before the sums are read
    if (threadIdx.x == 0) {
        sum = 0.0;
        for (int i = 0; i < 16; i++) sum += sums[i];
        log_probs[m] = (double)chosen - (double)largest - log(sum);
        is_top[m] = !beaten;
    }
}
