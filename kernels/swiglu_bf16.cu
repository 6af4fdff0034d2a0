// out = silu(X Wg^T) (X Wu^T), or (GATE_GELU_TANH) gelu in place of silu: gate and up projections
// of a short prompt or of a step of many sequences, in bf16, with sums in f32.
//
//   X    bf16 [m, XK] plain; tensor map 2-D: sizes {XK, rows of the buffer}, box {64, TILE_M}
//   W    bf16 [2 I, K], gate rows first; tensor map 4-D: sizes {K, 8, 2, I / 8} of column, row of
//        eight, gate or up, and eight; box {64, 8, 2, 8}: 64 gate rows and their up rows, eights in
//        turns
//        both: 128-byte swizzle, no interleave, no fill of NaN
//   out  bf16 [m, I]
//
// The kernel is bound by memory: every weight is read once, while the tokens come from L2 again for
// each block (as many bytes at 128 tokens; two blocks that share those reads by multicast are no
// faster). It takes 39 us for Phi-3.5's at 128 tokens and 36 at 16, where reading the weights alone
// takes 32.5; cuBLASLt takes 39.4 at 128, and writes gate and up for swiglu_rows to read again.
//
// Tensor cores: wgmma m64nNk16 with weights as A and tokens as B, both from shared memory. A
// consumer warpgroup has 32 gate rows and their up rows: in a warp's 16 rows of the result, rows
// 0 .. 7 are gate's and 8 .. 15 up's, so a thread has both.
//
// A block has two consumer warpgroups and a producer warp, and a ring of STAGES stages of 64
// columns: W [128][64], X [TILE_M][64]. Weights are on their way before the previous kernel is
// done.
//
// Macros: K (multiple of 64), INTERMEDIATE (multiple of 64), TILE_M (16, 32, 64, 128), STAGES, and
// what the launch has: THREADS a block, DYNAMIC_SHARED. Grid: x = tiles of tokens,
// y = INTERMEDIATE / 64.
#include "wgmma_bf16.cuh"

#define STEPS (K / 64)
#define W_BYTES 16384
#define X_BYTES (TILE_M * 128)
#define STAGE_BYTES (W_BYTES + X_BYTES)
#define OUT_PITCH 72 // elements of a token's 64 outputs in shared memory
#define OUT_OFFSET (STAGES * STAGE_BYTES)
#define BARRIER_OFFSET (OUT_OFFSET + TILE_M * OUT_PITCH * 2)
#define SHARED_BYTES (BARRIER_OFFSET + 16 * STAGES + 1024) // 1024: the swizzle's alignment
#define CONSUMERS 256

static_assert(SHARED_BYTES == DYNAMIC_SHARED,
              "smq-engine launches with what the layout above takes");
static_assert(THREADS == CONSUMERS + 32, "two warpgroups and a warp");
static_assert(K % 64 == 0 && INTERMEDIATE % 64 == 0, "whole boxes");

// 64 gate rows from row 8 `eight` on and their up rows.
DEVICE void load_weights(const tensor_map *map, u32 to, u64 *barrier, int column, int eight) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
        "[%1, {%2, %3, %3, %4}], [%5];" ::"r"(to),
        "l"(map), "r"(column), "r"(0), "r"(eight), "r"(shared_address(barrier))
        : "memory");
}

KERNEL __launch_bounds__(THREADS, 1)
    swiglu_bf16(const __grid_constant__ tensor_map x_map, const __grid_constant__ tensor_map w_map,
                int m, u16 *out) {
    extern __shared__ u8 dynamic[];
    u8 *shared = dynamic + (-shared_address(dynamic) & 1023);
    u64 *full = (u64 *)(shared + BARRIER_OFFSET), *empty = full + STAGES;
    const u32 stages = shared_address(shared);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

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
                load_weights(&w_map, stages + slot * STAGE_BYTES, full + slot, 64 * step,
                             8 * blockIdx.y);
            };
            auto tokens = [&](int step) {
                const int slot = step % STAGES;
                load_box(&x_map, stages + slot * STAGE_BYTES + W_BYTES, full + slot, 64 * step,
                         TILE_M * blockIdx.x);
            };
            constexpr int AHEAD = STEPS < STAGES ? STEPS : STAGES;
            for (int step = 0; step < AHEAD; step++) weights(step);
            wait_for_previous_kernel();
            for (int step = 0; step < AHEAD; step++) tokens(step);
            for (int step = AHEAD; step < STEPS; step++) {
                barrier_wait(empty + step % STAGES, (step / STAGES & 1) ^ 1);
                weights(step);
                tokens(step);
            }
        }
    } else {
        const int warpgroup = warpgroup_of_thread(), quarter = warp % 4, r = lane / 4, t = lane % 4;
        float c[ACCUMULATORS];
#pragma unroll 1
        for (int step = 0; step < STEPS; step++) {
            const u32 stage = stages + step % STAGES * STAGE_BYTES;
            const u64 a = matrix_descriptor(stage + warpgroup * 8192),
                      b = matrix_descriptor(stage + W_BYTES);
            barrier_wait(full + step % STAGES, step / STAGES & 1);
            wgmma_fence();
#pragma unroll
            for (int s = 0; s < 4; s++) wgmma(c, a + 2 * s, b + 2 * s, step + s > 0);
            wgmma_commit();
            wgmma_wait<1>(); // the step before is done
            if (step > 0) barrier_arrive_warp(empty + (step - 1) % STAGES);
        }
        wgmma_wait<0>(c);
        // Through shared memory, so that whole sectors are written. Accumulators 4 j .. are tokens
        // 8 j + 2 t and + 1: gate, gate, up, up.
        u16 *staged = (u16 *)(shared + OUT_OFFSET);
#pragma unroll
        for (int j = 0; j < TILE_M / 8; j++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const float gate = c[4 * j + e], up = c[4 * j + 2 + e];
                staged[(8 * j + 2 * t + e) * OUT_PITCH + 32 * warpgroup + 8 * quarter + r] =
                    bf16_of(gate / (1.0f + __expf(-gate_exponent(gate))) * up);
            }
        wait_for_previous_kernel();
        sync_threads(1, CONSUMERS);
        const int first = TILE_M * blockIdx.x;
        for (int i = threadIdx.x; i < min(TILE_M, m - first) * 8; i += CONSUMERS)
            *(uint4 *)(out + (u64)(first + i / 8) * INTERMEDIATE + 64 * blockIdx.y + i % 8 * 8) =
                *(const uint4 *)(staged + i / 8 * OUT_PITCH + i % 8 * 8);
    }
}
