// Weights back to bf16, for products with so many rows that a bf16 GEMM wins: int4 (w' = q s'),
// code books, NF4 and FP8.
//
// dequantize_int4:
//   nibbles  [*, K/2] bytes, low nibble = even column, two's complement
//   scales   one per (row, group of GROUP columns), row-major; see load_scale
//   out      [rows, OUT_K] bf16: rows first_row .. first_row + rows - 1 of the tensor
//
// OUT_INT4 = 0: columns in plain order, OUT_K = K.
// OUT_INT4 = 1: columns in int4 order within each group of 128 (the order in which gemm_int4 takes
//   its activations), OUT_K = K rounded up to 128, zeros beyond K.
//
// q is exact in f32, the product is rounded to f32 and then, to nearest even, to bf16: the bits are
// those of `bf16(q as f32 * s)` on a CPU.
//
// dequantize_nf4, dequantize_fp8: their bits are a CPU's, too. The blobs are a file's
// (spec/format.md), columns come in plain order, and GROUP, OUT_INT4 and the scale macros do not
// matter. NF4's blocks run over rows: K / 64 need not be whole.
//
// Macros: LUT4 (1 for dequantize_lut4 too), K (a multiple of 32), GROUP (a multiple of 32),
// OUT_INT4, SCALE_FORMAT, SCALE_WIDTH, SCALE_MANTISSA, THREADS, CHUNKS_A_BLOCK.
// Grid: ceil(rows * OUT_K / 8 / CHUNKS_A_BLOCK) blocks of THREADS.
// The kernel moves 2.5 bytes a weight and does little else. A thread makes chunks of 8 outputs, so
// that a warp reads 128 and writes 512 contiguous bytes; it has CHUNKS of them in flight, since
// more did not help.
#include "common.cuh"
#include "nf4.cuh"

#ifndef LUT4
#define LUT4 0
#endif
#ifndef OUT_INT4
#define OUT_INT4 0
#endif
#define CHUNKS (CHUNKS_A_BLOCK / THREADS)
static_assert(CHUNKS_A_BLOCK == THREADS * CHUNKS, "whole chunks a thread");
#define GROUPS ((K + GROUP - 1) / GROUP)
#define OUT_K (OUT_INT4 ? (K + 127) / 128 * 128 : K)
#define CHUNKS_A_ROW (OUT_K / 8)
// Nibble words that feed one chunk: in int4 order its pairs come from four of them.
#define WORDS (OUT_INT4 ? 4 : 1)

static_assert(K % 32 == 0 && GROUP % 32 == 0,
              "a word of eight nibbles lies in one row and one group");

// Column of the first nibble in word `w` of chunk `c` of a row.
DEVICE u32 word_column(u32 c, int w) {
#if OUT_INT4
    // Chunk 4 u + i of a group holds the pairs (32 t + 8 u + i, 32 t + 8 u + i + 4), t = 0..3.
    return c / 16 * 128 + 32 * w + c % 16 / 4 * 8;
#else
    return c * 8;
#endif
}

DEVICE u32 scaled_pair(u32 pair, float scale) {
    return bf16_pair(bf16_low(pair) * scale, bf16_high(pair) * scale);
}

KERNEL __launch_bounds__(THREADS)
    dequantize_int4(const u8 *__restrict__ nibbles, const void *__restrict__ scales, int bias,
                    int rows, int first_row, u16 *__restrict__ out) {
    let_next_kernel_start();
    u32 chunks = (u32)rows * CHUNKS_A_ROW;
    u32 first = blockIdx.x * CHUNKS_A_BLOCK + threadIdx.x;
    u32 words[CHUNKS][WORDS];
    float scale[CHUNKS][WORDS];
#pragma unroll
    for (int n = 0; n < CHUNKS; n++) {
        u32 index = first + n * THREADS;
        u32 row = first_row + index / CHUNKS_A_ROW;
#pragma unroll
        for (int w = 0; w < WORDS; w++) {
            u32 column = word_column(index % CHUNKS_A_ROW, w);
            words[n][w] = 0;
            scale[n][w] = 0.0f;
            if (index < chunks && column < K) {
                words[n][w] = ((const u32 *)(nibbles + (u64)row * (K / 2)))[column / 8];
                scale[n][w] = load_scale(scales, row * GROUPS + column / GROUP, SCALE_FORMAT,
                                         SCALE_WIDTH, SCALE_MANTISSA, bias);
            }
        }
    }
    wait_for_previous_kernel(); // it may still read `out`
#pragma unroll
    for (int n = 0; n < CHUNKS; n++) {
        u32 index = first + n * THREADS;
        if (index >= chunks) break;
        uint4 v;
#if OUT_INT4
        // A nibble pair is a pair of neighbours here; which one (i) differs by thread.
        int i = index % 4;
        v.x = scaled_pair(int4_pair(words[n][0], i), scale[n][0]);
        v.y = scaled_pair(int4_pair(words[n][1], i), scale[n][1]);
        v.z = scaled_pair(int4_pair(words[n][2], i), scale[n][2]);
        v.w = scaled_pair(int4_pair(words[n][3], i), scale[n][3]);
#else
        u32 p[4]; // (i, i + 4)
#pragma unroll
        for (int i = 0; i < 4; i++) p[i] = scaled_pair(int4_pair(words[n][0], i), scale[n][0]);
        v.x = __byte_perm(p[0], p[1], 0x5410);
        v.y = __byte_perm(p[2], p[3], 0x5410);
        v.z = __byte_perm(p[0], p[1], 0x7632);
        v.w = __byte_perm(p[2], p[3], 0x7632);
#endif
        ((uint4 *)out)[index] = v;
    }
}

#if LUT4
// As dequantize_int4 in plain order, but that a nibble is an index into the 16 bytes of `book`: the
// bits of `bf16(level as f32 * s)` on a CPU.
KERNEL __launch_bounds__(THREADS)
    dequantize_lut4(const u8 *__restrict__ nibbles, const void *__restrict__ scales, int bias,
                    uint4 book, int rows, int first_row, u16 *__restrict__ out) {
    static_assert(!OUT_INT4, "plain order alone");
    __shared__ float values[16];
    let_next_kernel_start();
    if (threadIdx.x < 16) {
        const u32 i = threadIdx.x / 4,
                  word = i == 0 ? book.x : i == 1 ? book.y : i == 2 ? book.z : book.w;
        values[threadIdx.x] = (float)(int)(signed char)(word >> 8 * (threadIdx.x % 4));
    }
    __syncthreads();
    u32 chunks = (u32)rows * CHUNKS_A_ROW;
    u32 first = blockIdx.x * CHUNKS_A_BLOCK + threadIdx.x;
    u32 words[CHUNKS];
    float scale[CHUNKS];
#pragma unroll
    for (int n = 0; n < CHUNKS; n++) {
        u32 index = first + n * THREADS;
        u32 row = first_row + index / CHUNKS_A_ROW, column = index % CHUNKS_A_ROW * 8;
        words[n] = 0;
        scale[n] = 0.0f;
        if (index < chunks) {
            words[n] = ((const u32 *)(nibbles + (u64)row * (K / 2)))[column / 8];
            scale[n] = load_scale(scales, row * GROUPS + column / GROUP, SCALE_FORMAT, SCALE_WIDTH,
                                  SCALE_MANTISSA, bias);
        }
    }
    wait_for_previous_kernel(); // it may still read `out`
#pragma unroll
    for (int n = 0; n < CHUNKS; n++) {
        u32 index = first + n * THREADS;
        if (index >= chunks) break;
        u32 p[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u32 byte = words[n] >> (8 * i) & 255;
            p[i] = bf16_pair(values[byte & 15] * scale[n], values[byte >> 4] * scale[n]);
        }
        ((uint4 *)out)[index] = make_uint4(p[0], p[1], p[2], p[3]);
    }
}
#endif

// nibbles [*, K/2] bytes, high nibble = even column; absmax one byte a block of 64 elements of the
// whole tensor; nested_absmax one f32 for 256 of these.
// Grid: ceil(rows * K / 8 / CHUNKS_A_BLOCK).
KERNEL __launch_bounds__(THREADS)
    dequantize_nf4(const u8 *__restrict__ nibbles, const u8 *__restrict__ absmax,
                   const float *__restrict__ nested_absmax, float offset, int rows, int first_row,
                   u16 *__restrict__ out) {
    __shared__ float values[16];
    let_next_kernel_start();
    if (threadIdx.x < 16) values[threadIdx.x] = __uint_as_float(NF4_VALUE_BITS[threadIdx.x]);
    __syncthreads();
    u32 chunks = (u32)rows * (K / 8);
    u32 first = blockIdx.x * CHUNKS_A_BLOCK + threadIdx.x;
    u64 before = (u64)first_row * (K / 8); // chunks of the tensor
    u32 words[CHUNKS];
    float scale[CHUNKS];
#pragma unroll
    for (int n = 0; n < CHUNKS; n++) {
        u32 index = first + n * THREADS;
        words[n] = 0;
        scale[n] = 0.0f;
        if (index < chunks) {
            words[n] = ((const u32 *)nibbles)[before + index];
            u64 block = (before + index) / 8;
            const float value = __uint_as_float(NF4_ABSMAX_BITS[absmax[block]]);
            scale[n] = nf4_absmax(value, nested_absmax[block / 256], offset);
        }
    }
    wait_for_previous_kernel(); // it may still read `out`
#pragma unroll
    for (int n = 0; n < CHUNKS; n++) {
        u32 index = first + n * THREADS;
        if (index >= chunks) break;
        u32 p[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u32 byte = words[n] >> (8 * i) & 255;
            p[i] = bf16_pair(values[byte >> 4] * scale[n], values[byte & 15] * scale[n]);
        }
        ((uint4 *)out)[index] = make_uint4(p[0], p[1], p[2], p[3]);
    }
}

// The value of an E4M3 code that is no NaN. Shifted into an f16's exponent and mantissa it means
// 2^-8 of its value, subnormal codes too, since the formats' biases differ by 8.
DEVICE float e4m3_to_f32(u32 code) {
    return f16_to_f32((u16)((code & 0x7f) << 7 | (code & 0x80) << 8)) * 256.0f;
}

// codes [*, K] bytes of E4M3, none of them NaN; scales one f32 a row. Grid as above.
KERNEL __launch_bounds__(THREADS)
    dequantize_fp8(const u8 *__restrict__ codes, const float *__restrict__ scales, int rows,
                   int first_row, u16 *__restrict__ out) {
    let_next_kernel_start();
    u32 chunks = (u32)rows * (K / 8);
    u32 first = blockIdx.x * CHUNKS_A_BLOCK + threadIdx.x;
    uint2 words[CHUNKS];
    float scale[CHUNKS];
#pragma unroll
    for (int n = 0; n < CHUNKS; n++) {
        u32 index = first + n * THREADS;
        words[n] = make_uint2(0, 0);
        scale[n] = 0.0f;
        if (index < chunks) {
            words[n] = ((const uint2 *)(codes + (u64)first_row * K))[index];
            scale[n] = scales[first_row + index / (K / 8)];
        }
    }
    wait_for_previous_kernel(); // it may still read `out`
#pragma unroll
    for (int n = 0; n < CHUNKS; n++) {
        u32 index = first + n * THREADS;
        if (index >= chunks) break;
        u32 p[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u32 pair = (i < 2 ? words[n].x : words[n].y) >> (16 * (i & 1));
            p[i] = bf16_pair(e4m3_to_f32(pair & 255) * scale[n],
                             e4m3_to_f32(pair >> 8 & 255) * scale[n]);
        }
        ((uint4 *)out)[index] = make_uint4(p[0], p[1], p[2], p[3]);
    }
}
