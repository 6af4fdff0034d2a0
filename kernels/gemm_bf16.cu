// Y = X W^T for any number of activation rows, in bf16 with f32 sums and in one order of additions:
// a row's result is the same bits however many rows there are. cuBLASLt, which is faster for many
// rows, chooses another order for another number.
//
//   X    bf16 [m, XK] plain; tensor map 2-D: sizes {XK, rows of the buffer}, box {64, TILE_M}
//   W    bf16 [ROWS, K]; tensor map 2-D: sizes {K, ROWS}, box {64, 128}
//        both: 128-byte swizzle, no interleave, no fill of NaN; what lies outside is zero
//
// Epilogues (m tokens):
//   EPILOGUE_BF16    out bf16 [m, OUT_STRIDE] = Y in the first ROWS columns; others are left alone
//   EPILOGUE_ADD     out f32 [m, ROWS] += Y, or (OVERWRITE = 1) out = Y
//
// Tensor cores: wgmma m64nNk16 with weights as A and tokens as B, both from shared memory. k-steps
// come in order, so that TILE_M does not matter to a token.
//
// Block: two consumer warpgroups of 64 weight rows each, which share the tokens, and a producer
// warp; a ring of STAGES stages of 64 columns: W [128][64], X [TILE_M][64]. Weights are on their
// way before the previous kernel is done. A cluster is SPLIT_K blocks with the same weight rows and
// consecutive columns, which add up through distributed shared memory in the order of columns.
// SPLIT_K depends on the matrix alone.
//
// Macros: K (multiple of 64), ROWS (multiple of 8), EPILOGUE and the numbers of those above,
// OUT_STRIDE (BF16), TILE_M (16, 32, 64, 128), SPLIT_K, STAGES, and what the launch has: THREADS a
// block, DYNAMIC_SHARED.
// Grid: x = token tiles SPLIT_K, so that neighbours share weights; y = ceil(ROWS / 128).
#include "wgmma_bf16.cuh"

#ifndef OVERWRITE
#define OVERWRITE 0
#endif

#define STEPS (K / 64)
#define W_BYTES 16384
#define X_BYTES (TILE_M * 128)
#define STAGE_BYTES (W_BYTES + X_BYTES)
#define OUT_PITCH 136 // elements of a token's 128 outputs in shared memory
#define OUT_OFFSET (STAGES * STAGE_BYTES)
#define OUT_BYTES (EPILOGUE == EPILOGUE_BF16 ? TILE_M * OUT_PITCH * 2 : 0)
#define BARRIER_OFFSET (OUT_OFFSET + OUT_BYTES)
#define SHARED_BYTES (BARRIER_OFFSET + 16 * STAGES + 1024) // 1024: the swizzle's alignment
#define CONSUMERS 256

static_assert(SHARED_BYTES == DYNAMIC_SHARED, "smq-engine launches with what the layout takes");
static_assert(THREADS == CONSUMERS + 32, "two warpgroups and a warp");
static_assert(K % 64 == 0 && ROWS % 8 == 0, "whole boxes, and outputs that are 16-byte aligned");
static_assert(SPLIT_K <= STEPS, "each block of a split has a step");
static_assert(SPLIT_K == 1 || TILE_M * 512 <= STAGES * STAGE_BYTES, "partial sums in the stages");

KERNEL __cluster_dims__(SPLIT_K, 1, 1) __launch_bounds__(THREADS, 1)
gemm_bf16(const __grid_constant__ tensor_map x_map, const __grid_constant__ tensor_map w_map, int m,
          void *out) {
    extern __shared__ u8 dynamic[];
    u8 *shared = dynamic + (-shared_address(dynamic) & 1023);
    u64 *full = (u64 *)(shared + BARRIER_OFFSET), *empty = full + STAGES;
    const u32 stages = shared_address(shared);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int split = blockIdx.x % SPLIT_K, tile = blockIdx.x / SPLIT_K;
    const int begin = STEPS * split / SPLIT_K, count = STEPS * (split + 1) / SPLIT_K - begin;

    let_next_kernel_start();
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; s++) {
            barrier_init(full + s, 1);
            barrier_init(empty + s, CONSUMERS / 32 * A_WARP);
        }
        fence_barrier_init();
    }
    __syncthreads();

    if (warp == CONSUMERS / 32) {
        if (lane == 0) {
            auto weights = [&](int step) {
                const int slot = step % STAGES;
                barrier_expect(full + slot, STAGE_BYTES);
                load_box(&w_map, stages + slot * STAGE_BYTES, full + slot, 64 * (begin + step),
                         128 * blockIdx.y);
            };
            auto tokens = [&](int step) {
                const int slot = step % STAGES;
                load_box(&x_map, stages + slot * STAGE_BYTES + W_BYTES, full + slot,
                         64 * (begin + step), TILE_M * tile);
            };
            const int ahead = min(count, STAGES);
            for (int step = 0; step < ahead; step++) weights(step);
            wait_for_previous_kernel();
            for (int step = 0; step < ahead; step++) tokens(step);
            for (int step = ahead; step < count; step++) {
                barrier_wait(empty + step % STAGES, (step / STAGES & 1) ^ 1);
                weights(step);
                tokens(step);
            }
        }
        __syncwarp();
        if (SPLIT_K > 1) { // the consumers' exchange of partial sums, and their reading of it
            cluster_arrive();
            cluster_wait();
            cluster_arrive();
            cluster_wait();
        }
        return;
    }

    const int warpgroup = warpgroup_of_thread(), quarter = warp % 4, r = lane / 4, t = lane % 4;
    float c[ACCUMULATORS];
#pragma unroll 1
    for (int step = 0; step < count; step++) {
        const u32 stage = stages + step % STAGES * STAGE_BYTES;
        const u64 a = matrix_descriptor(stage + warpgroup * 8192);
        const u64 b = matrix_descriptor(stage + W_BYTES);
        barrier_wait(full + step % STAGES, step / STAGES & 1);
        wgmma_fence();
#pragma unroll
        for (int s = 0; s < 4; s++) wgmma(c, a + 2 * s, b + 2 * s, step + s > 0);
        wgmma_commit();
        wgmma_wait<1>(); // the step before is done
        if (step > 0) barrier_arrive_warp(empty + (step - 1) % STAGES);
    }
    wgmma_wait<0>(c);
    wait_for_previous_kernel(); // it may still read or write `out`

    // Accumulators 4 j .. are tokens 8 j + 2 t and + 1 of weight row `row`, then of row + 8.
    const int row = 64 * warpgroup + 16 * quarter + r, first_row = 128 * blockIdx.y;
    const int present = min(TILE_M, m - TILE_M * tile); // tokens of the tile
    u16 *staged = (u16 *)(shared + OUT_OFFSET);
    auto emit = [&](int j, float4 v) {
        const float values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int token = 8 * j + 2 * t + i % 2, at = row + i / 2 * 8;
            if (EPILOGUE == EPILOGUE_BF16) {
                staged[token * OUT_PITCH + at] = bf16_of(values[i]);
            } else if (token < present && first_row + at < ROWS) {
                float *to = (float *)out + (u64)(TILE_M * tile + token) * ROWS + first_row + at;
#if OVERWRITE
                *to = values[i];
#else
                *to += values[i];
#endif
            }
        }
    };
    auto four = [&](int j) {
        return make_float4(c[4 * j], c[4 * j + 1], c[4 * j + 2], c[4 * j + 3]);
    };
    if (SPLIT_K > 1) {
        sync_threads(1, CONSUMERS); // the stages are free
#pragma unroll
        for (int j = 0; j < TILE_M / 8; j++)
            ((float4 *)shared)[j * CONSUMERS + threadIdx.x] = four(j);
        cluster_arrive();
        cluster_wait();
        const u32 mine = stages + threadIdx.x * 16;
        for (int j = split; j < TILE_M / 8 && 8 * j < present; j += SPLIT_K) {
            float4 part[SPLIT_K];
#pragma unroll
            for (int k = 0; k < SPLIT_K; k++)
                part[k] = load_in_cluster(address_in(mine + j * CONSUMERS * 16, k));
            float4 v = part[0];
#pragma unroll
            for (int k = 1; k < SPLIT_K; k++)
                v.x += part[k].x, v.y += part[k].y, v.z += part[k].z, v.w += part[k].w;
            emit(j, v);
        }
    } else {
#pragma unroll
        for (int j = 0; j < TILE_M / 8; j++)
            if (8 * j < present) emit(j, four(j));
    }
#if EPILOGUE == EPILOGUE_BF16
    sync_threads(1, CONSUMERS);
    // 16 bytes a thread, a token's columns after the other.
    for (int i = threadIdx.x; i < present * 16; i += CONSUMERS) {
        const int token = i / 16, column = i % 16 * 8;
        if (SPLIT_K > 1 && token / 8 % SPLIT_K != split) continue;
        if (first_row + column >= ROWS) continue;
        *(uint4 *)((u16 *)out + (u64)(TILE_M * tile + token) * OUT_STRIDE + first_row + column) =
            *(const uint4 *)(staged + token * OUT_PITCH + column);
    }
#endif
    if (SPLIT_K > 1) { // others may still read this block's shared memory
        __syncwarp();
        cluster_arrive();
        cluster_wait();
    }
}
