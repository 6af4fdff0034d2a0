// Calibrated rounding (spec/method.md, "Calibrated rounding") on the GPU: everything between the
// products, which are cuBLASLt's, and the factorizations, which are cuSOLVER's. The CPU's twin is
// smq-convert/src/calibrate.
//
// split_difference  high + low = x - y, each bf16, up to 2^-17 of it.
//   x, y      bf16 [tokens, stride];  high, low  bf16 [tokens, n]
//                                                              grid: tokens, block: 256
// add_block         sum += block, f32 onto f64.                grid: any, block: 256
// diagonal_of       out[i] = h[i, i], f64.                     grid: ceil(n / 256), block: 256
// gather_damped     out[i, j] = h[from[i], from[j]], plus `damping` where i = j; f64 [n, n].
//                                                              grid: (n / 64, n), block: 64
// upper_of          u[i, j] = l[n-1-i, n-1-j] for j >= i, else 0. l is f64 [n, n], stored by
//                   columns, u is f32, by rows.              grid: (n / 32, n / 32), block: (32, 8)
// narrow            f64 to f32.                                grid: any, block: 256
// whole_of          s[i, j] = h[i, j] + d[i, j] + d[j, i] + c[i, j], f64 to f32.
//                                                            grid: (n / 32, n / 32), block: (32, 8)
// permute           out[r, j] = t[r, order[j]].                grid: rows, block: 256
// round_nearest     codes of w under their scales.             grid: any, block: 256
// round_block       the column loop over up to 128 columns of every row, in the order of rounding:
//                       v = nearest level * s,  e = (w_j - v) / U_jj,
//                       w_k -= e U_jk  for the block's k > j
//                   It leaves -e in `errors`, f32 [rows, 128], for the product that hands them on
//                   to the columns behind. A warp takes ROWS rows at a time, of which a lane holds
//                   4 columns; the block of U is in shared memory. Multiplication and subtraction
//                   are not fused, as they are not on the CPU.    grid: ceil(rows / 32), block: 256
// errors_of         e = value of the code - w.                 grid: any, block: 256
// stand_in          bf16 of the codes' values.                 grid: any, block: 256
// dot               partial sums of a . b, f64.                grid: PARTS, block: 256
// losses            partial sums of e . p and of shift . (p + damping e), shift = t - w, f64.
//                                                              grid: PARTS, block: 256
//
// A weight at a row and a column has the scale (row * row_stride + column) / run.
// Macros: PARTS, the blocks of a sum, which are a constant so that its order is the same on every
// GPU.
#include "common.cuh"

constexpr int THREADS = 256;
constexpr int BLOCK = 128;      // columns of round_block
constexpr int ROWS = 4;         // rows of a warp at a time
constexpr int TILE = 32;        // of a transposition

struct Scales {
    const float *values;
    u32 run, row_stride;
    INSIDE float at(u32 row, u32 column) const { return values[(row * row_stride + column) / run]; }
};

// The values that a weight can take under a scale of 1: int4's integers, or a table that rises.
struct Levels {
    float values[16];
    int is_table;
    // The code nearest to w / scale; of zero where the scale is.
    INSIDE int code(float w, float scale) const {
        const float v = scale == 0.0f ? 0.0f : __fdiv_rn(w, scale);
        if (!is_table) return (int)rintf(fminf(fmaxf(v, -8.0f), 7.0f));
        int code = 0;
#pragma unroll
        for (int i = 0; i < 15; ++i) code += v > 0.5f * (values[i] + values[i + 1]);
        return code;
    }
    INSIDE float value(int code) const {
        if (!is_table) return (float)code;
        float v = values[0];
#pragma unroll
        for (int i = 1; i < 16; ++i) v = code == i ? values[i] : v;
        return v;
    }
};

#define FOR_EACH(i, count) \
    for (u64 i = blockIdx.x * (u64)THREADS + threadIdx.x; i < (count); \
         i += (u64)gridDim.x * THREADS)

KERNEL __launch_bounds__(THREADS)
    split_difference(const u16 *x, const u16 *y, u16 *high, u16 *low, int n, int stride) {
    const u64 token = blockIdx.x;
    for (int k = threadIdx.x; k < n; k += THREADS) {
        const float d = bf16_to_f32(x[token * stride + k]) - bf16_to_f32(y[token * stride + k]);
        const u16 h = bf16_of(d);
        high[token * n + k] = h;
        low[token * n + k] = bf16_of(d - bf16_to_f32(h));
    }
}

KERNEL __launch_bounds__(THREADS) add_block(double *sum, const float *block, u64 count) {
    FOR_EACH(i, count) sum[i] += block[i];
}

KERNEL __launch_bounds__(THREADS) diagonal_of(const double *h, double *out, int n) {
    const int i = blockIdx.x * THREADS + threadIdx.x;
    if (i < n) out[i] = h[(u64)i * n + i];
}

KERNEL gather_damped(const double *h, const int *from, double damping, double *out, int n) {
    const int j = blockIdx.x * blockDim.x + threadIdx.x, i = blockIdx.y;
    if (j >= n) return;
    const double v = h[(u64)from[i] * n + from[j]];
    out[(u64)i * n + j] = i == j ? v + damping : v;
}

// tile[a][b] = from[(row + a) * n + column + b] for a tile of the matrix.
DEVICE void load_tile(double (&tile)[TILE][TILE + 1], const double *from, int row, int column,
                      int n) {
    for (int a = threadIdx.y; a < TILE; a += 8)
        tile[a][threadIdx.x] = from[(u64)(row + a) * n + column + threadIdx.x];
    __syncthreads();
}

KERNEL __launch_bounds__(THREADS) upper_of(const double *l, float *u, int n) {
    __shared__ double tile[TILE][TILE + 1];
    const int i0 = blockIdx.y * TILE, j0 = blockIdx.x * TILE;
    // l[n-1-i, n-1-j] by columns lies at (n-1-j) * n + n-1-i.
    load_tile(tile, l, n - TILE - j0, n - TILE - i0, n);
    for (int a = threadIdx.y; a < TILE; a += 8) {
        const int i = i0 + a, j = j0 + threadIdx.x;
        u[(u64)i * n + j] = j >= i ? (float)tile[TILE - 1 - threadIdx.x][TILE - 1 - a] : 0.0f;
    }
}

KERNEL __launch_bounds__(THREADS) narrow(const double *from, float *to, u64 count) {
    FOR_EACH(i, count) to[i] = (float)from[i];
}

KERNEL __launch_bounds__(THREADS)
    whole_of(const double *h, const double *d, const double *c, float *s, int n) {
    __shared__ double tile[TILE][TILE + 1];
    const int i0 = blockIdx.y * TILE, j0 = blockIdx.x * TILE;
    load_tile(tile, d, j0, i0, n);
    for (int a = threadIdx.y; a < TILE; a += 8) {
        const u64 at = (u64)(i0 + a) * n + j0 + threadIdx.x;
        s[at] = (float)(h[at] + d[at] + tile[threadIdx.x][a] + c[at]);
    }
}

KERNEL __launch_bounds__(THREADS) permute(const float *t, const int *order, float *out, int n) {
    const u64 row = (u64)blockIdx.x * n;
    for (int j = threadIdx.x; j < n; j += THREADS) out[row + j] = t[row + order[j]];
}

KERNEL __launch_bounds__(THREADS)
    round_nearest(const float *w, Scales scales, Levels levels, signed char *codes, int n,
                  u64 count) {
    FOR_EACH(i, count) {
        const u32 row = i / n, column = i % n;
        codes[i] = (signed char)levels.code(w[i], scales.at(row, column));
    }
}

KERNEL __launch_bounds__(THREADS, 2)
    round_block(float *w, const int *order, Scales scales, Levels levels, const float *u,
                float *errors, signed char *codes, int n, int first, int rows) {
    extern __shared__ float4 block[]; // [BLOCK][BLOCK / 4]
    const int width = min(BLOCK, n - first), lane = threadIdx.x % 32, column = lane * 4;
    for (int i = threadIdx.x; i < BLOCK * BLOCK / 4; i += THREADS) {
        const int j = i / (BLOCK / 4), k = i % (BLOCK / 4) * 4;
        // Rows of n are in fours, and so is the width.
        block[i] = j < width && k < width ? *(const float4 *)(u + (u64)(first + j) * n + first + k)
                                          : make_float4(0, 0, 0, 0);
    }
    __syncthreads();
    const int row0 = (blockIdx.x * (THREADS / 32) + threadIdx.x / 32) * ROWS;
    if (row0 >= rows) return;
    const bool inside = column < width;
    int place[4] = {};
    float v[ROWS][4] = {}, s[ROWS][4], e[ROWS][4] = {};
    int code[ROWS][4] = {};
#pragma unroll
    for (int i = 0; i < 4; ++i) place[i] = inside ? order[first + column + i] : 0;
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        const u32 row = min(row0 + r, rows - 1);
        if (inside) {
            const float4 four = *(const float4 *)(w + (u64)row * n + first + column);
            v[r][0] = four.x, v[r][1] = four.y, v[r][2] = four.z, v[r][3] = four.w;
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) s[r][i] = scales.at(row, place[i]);
    }
    for (int owner = 0; owner * 4 < width; ++owner) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float4 four = block[(owner * 4 + i) * (BLOCK / 4) + lane];
            const float of_u[4] = {four.x, four.y, four.z, four.w};
            const float diagonal = __shfl_sync(~0u, of_u[i], owner);
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                const float x = __shfl_sync(~0u, v[r][i], owner),
                            scale = __shfl_sync(~0u, s[r][i], owner);
                const int nearest = levels.code(x, scale);
                const float error =
                    __fdiv_rn(__fsub_rn(x, __fmul_rn(levels.value(nearest), scale)), diagonal);
                if (lane == owner) code[r][i] = nearest, e[r][i] = -error;
                // Columns before this one have zeros in U; this one has been rounded.
#pragma unroll
                for (int k = 0; k < 4; ++k) v[r][k] = __fsub_rn(v[r][k], __fmul_rn(error, of_u[k]));
            }
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        const u64 row = row0 + r;
        if (row >= rows) break;
        *(float4 *)(errors + row * BLOCK + column) =
            make_float4(e[r][0], e[r][1], e[r][2], e[r][3]);
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (inside) codes[row * n + place[i]] = (signed char)code[r][i];
    }
}

KERNEL __launch_bounds__(THREADS)
    errors_of(const signed char *codes, Scales scales, Levels levels, const float *w, float *e,
              int n, u64 count) {
    FOR_EACH(i, count) {
        const u32 row = i / n, column = i % n;
        e[i] = __fsub_rn(__fmul_rn(levels.value(codes[i]), scales.at(row, column)), w[i]);
    }
}

KERNEL __launch_bounds__(THREADS)
    stand_in(const signed char *codes, Scales scales, Levels levels, u16 *out, int n, u64 count) {
    FOR_EACH(i, count) {
        const u32 row = i / n, column = i % n;
        out[i] = bf16_of(__fmul_rn(levels.value(codes[i]), scales.at(row, column)));
    }
}

// The sum over a block, in the same order every time, in thread 0.
DEVICE double block_sum(double v, double *shared) {
    shared[threadIdx.x] = v;
    for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    }
    __syncthreads();
    return shared[0];
}

KERNEL __launch_bounds__(THREADS) dot(const float *a, const float *b, double *parts, u64 count) {
    __shared__ double shared[THREADS];
    double sum = 0.0;
    FOR_EACH(i, count) sum += (double)a[i] * b[i];
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

KERNEL __launch_bounds__(THREADS)
    losses(const float *e, const float *p, const float *t, const float *w, double damping,
           double *parts, u64 count) {
    __shared__ double shared[THREADS];
    double output = 0.0, cross = 0.0;
    FOR_EACH(i, count) {
        const double shift = __fsub_rn(t[i], w[i]);
        output += (double)e[i] * p[i];
        cross += shift * (p[i] + damping * e[i]);
    }
    output = block_sum(output, shared);
    __syncthreads();
    cross = block_sum(cross, shared);
    if (threadIdx.x == 0) parts[blockIdx.x] = output, parts[PARTS + blockIdx.x] = cross;
}
