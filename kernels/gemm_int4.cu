// Y = X W^T for several activation rows: W int4 in groups of GROUP columns, X bf16, sums in f32.
//
//   X        bf16 [m, XK], XK = K rounded up to 128, zeros beyond K; GROUP = 128: columns in int4
//            order within each 128, else plain; given as a tensor map (below)
//   nibbles  [ROWS, K/2] bytes, low nibble = even column, two's complement
//   scales   one per (row, group), row-major; see load_scale
//
// Epilogues (m tokens):
//   EPILOGUE_BF16    out bf16 [m, OUT_STRIDE] = Y in the first ROWS columns, others beside it are
//                    left alone
//   EPILOGUE_ADD     out f32 [m, ROWS] += Y, the residual stream; OVERWRITE = 1: out = Y
//   EPILOGUE_SWIGLU  ROWS = 2 I, gate rows first: out bf16 [m, XI] = silu(gate) up, XI = I rounded
//                    up to 128, zeros beyond I, columns plain or (OUT_INT4 = 1) in int4 order;
//                    GATE_GELU_TANH: gelu for silu
//
// Tensor cores: wgmma m64nNk16 with weights as A, from registers, and tokens as N. Per warp, A is
// the m16k16 fragment of mma.m16n8k16, and in int4 order the canonical nibbles are that fragment:
// 16 bytes of a lane are its share of 128 columns of a row (8 k-steps), a part of each of them.
// Nothing is repacked. Smaller groups need k-steps that lie in one, and the other kernels know no
// order for that: X is plain, and a lane takes a byte of each word of a row. That is a permute for
// each pair of weights, and four times the shared memory's bytes for them.
//
// Numerics: the tensor cores multiply the integers q (over 4) by X, exactly; each group's sum is
// multiplied by its f32 scale and added up in f32. No weight is rounded. Neither TILE_M nor
// WARPGROUPS nor the grid changes a bit of a token's outputs; SPLIT_K does.
//
// Block: WARPGROUPS consumers of 64 weight rows each, which share the tokens, and a producer
// warpgroup that keeps STAGES steps of 128 columns on their way to shared memory: nibbles by
// cp.async, scales decoded to f32, tokens by TMA as [2][TILE_M][64] bf16, two halves of 64 columns
// with the 128-byte swizzle. (Nibbles straight to the consumers' registers: the compiler puts all
// those loads on one scoreboard, so waiting for the oldest waits for the newest; slower up to 64
// tokens.) A cluster is SPLIT_K blocks with the same weight rows and consecutive steps: they add up
// through distributed shared memory in the order of steps. Same bits every run.
//
// LUT4 = 1: a nibble is an index into the 16 bytes of `book`, each a level plus 128
// (gemm_lut4_weights.cuh); X's order and all else are int4's, GROUP included.
// NF4 = 1: nibbles are codes, the high one of a byte first, whose levels are rounded to bf16
// (gemm_nf4_weights.cuh); GROUP = 64, K a multiple of it; `scales` are absmax codes of a byte,
// `bias` the bits of what is added to each absmax, `nested_absmax` f32, one for 256 of them.
//
// Macros: LUT4 (0), NF4 (0), K (multiple of 32), ROWS (multiple of 8; SWIGLU: of 64), GROUP (128,
// 64, 32), EPILOGUE and the numbers of those above, OUT_INT4, TILE_M (tokens a tile: 16, 32, 64,
// 104, 128), WARPGROUPS, OUT_STRIDE (ROWS), SPLIT_K, STAGES, SCALE_FORMAT, SCALE_WIDTH,
// SCALE_MANTISSA, MIN_BLOCKS (blocks an SM, for the register allocation; 1), DYNAMIC_SHARED (what
// the launch has), NF4_TABLE_BYTES (with NF4: what the launch leaves beside it).
// Grid: x = ceil(UNITS / WARPGROUPS) SPLIT_K, UNITS = ceil(ROWS / 64), SWIGLU: XI / 32;
//       y = token tiles, or fewer where SPLIT_K = 1: a block then loops over tiles y,
//           y + gridDim.y, ...
// Block: 128 (WARPGROUPS + 1) threads.
// Tensor map of X: bf16, 2-D, sizes {XK, rows of the buffer}, row stride 2 XK bytes, box
// {64, TILE_M}, 128-byte swizzle, no interleave, no fill of NaN.
#include "wgmma.cuh"

#ifndef OUT_INT4
#define OUT_INT4 0
#endif
#ifndef LUT4
#define LUT4 0
#endif
#ifndef NF4
#define NF4 0
#endif
#ifndef OVERWRITE
#define OVERWRITE 0
#endif
#ifndef MIN_BLOCKS
#define MIN_BLOCKS 1
#endif

#include "gemm_int4_layout.cuh"

// ---- copies (PTX ISA, cp.async) ----

// 16 bytes to shared memory, zeros unless `present`; asks L2 for whole lines, whose rest comes
// next.
DEVICE void copy_16(u32 destination, const u8 *p, bool present) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(destination),
                 "l"(p), "r"(present ? 16 : 0)
                 : "memory");
}

// Arrives when this thread's copies so far are complete.
DEVICE void barrier_arrive_after_copies(u64 *barrier) {
    asm volatile(
        "cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(barrier))
        : "memory");
}

// ---- wgmma ----

#define WGMMA(n, list, inputs, predicate, ...)                                                     \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " predicate ", 0;\n"                            \
                 "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" list "}, " inputs    \
                 ", p, 1, 1, 0;\n}\n"                                                              \
                 : __VA_ARGS__                                                                     \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(tokens), "r"(accumulate))
// c[64, TILE_M] (+)= a[64, 16] tokens[TILE_M, 16]^T. Asynchronous: c and a are in use until the
// wait.
DEVICE void wgmma(float (&c)[ACCUMULATORS], const u32 (&a)[4], u64 tokens, u32 accumulate) {
#if TILE_M == 16
    WGMMA(16, L8, "{%8, %9, %10, %11}, %12", "%13", C8(0));
#elif TILE_M == 32
    WGMMA(32, L16, "{%16, %17, %18, %19}, %20", "%21", C16(0));
#elif TILE_M == 64
    WGMMA(64, L32, "{%32, %33, %34, %35}, %36", "%37", C16(0), C16(16));
#elif TILE_M == 104
    WGMMA(104, L52, "{%52, %53, %54, %55}, %56", "%57", C16(0), C16(16), C16(32), C4(48));
#elif TILE_M == 128
    WGMMA(128, L64, "{%64, %65, %66, %67}, %68", "%69", C16(0), C16(16), C16(32), C16(48));
#else
#error "TILE_M is 16, 32, 64, 104 or 128"
#endif
}

// ---- weights ----

#include "gemm_int4_weights.cuh"

#include "gemm_int4_outputs.cuh"

// ---- the kernel ----

// All threads of the block: the barriers are initialised, here and in the cluster.
DEVICE void barriers_ready() {
    sync_threads(0, THREADS);
    if (SPLIT_K > 1) {
        cluster_arrive_relaxed();
        cluster_wait();
    }
}

KERNEL __cluster_dims__(SPLIT_K, 1, 1) __launch_bounds__(THREADS, MIN_BLOCKS)
    gemm_int4(const __grid_constant__ tensor_map x_map, const u8 *__restrict__ nibbles,
              const void *__restrict__ scales, int bias, int m, void *out
#if LUT4
              , uint4 book
#elif NF4
              , const float *__restrict__ nested_absmax
#endif
    ) {
    extern __shared__ u8 dynamic[];
    u8 *shared = dynamic + (-shared_address(dynamic) & 1023);
    u64 *full = (u64 *)(shared + BARRIER_OFFSET), *empty = full + STAGES;

    let_next_kernel_start();
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    u32 split = SPLIT_K > 1 ? cluster_rank() : 0;
    // Both count steps of 128 columns.
    int begin = STEPS * split / SPLIT_K,
        count = (STEPS % SPLIT_K == 0 ? STEPS / SPLIT_K : STEPS * (split + 1) / SPLIT_K - begin);
    int tiles = (m + TILE_M - 1) / TILE_M;
    int first_unit = blockIdx.x / SPLIT_K * WARPGROUPS;

    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; s++) {
            // The tokens' arrival, scales' by warp and nibbles' by thread.
            barrier_init(full + s, 1 + 4 * A_WARP + 128);
            barrier_init(empty + s, A_WARP * 4 * WARPGROUPS);
        }
        fence_barrier_init();
    }

#if NF4
    fill_nf4_tables(THREADS, nf4_levels);
#endif
    int slot = 0;
    u32 phase = 0;
    int warpgroup = warp / 4;
    if (warpgroup == WARPGROUPS) {
        if (CONSUMER_REGISTERS > LAUNCH_REGISTERS) {
            asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(PRODUCER_REGISTERS));
        }
        // A thread copies 16 bytes of rows thread / 4 + 32 i, and decodes the scales of rows
        // thread + 128 i.
        int thread = threadIdx.x % 128;
        const int copies = BLOCK_ROWS / 32, decodes = (BLOCK_ROWS + 127) / 128;
        u32 offset[copies], scale_index[decodes];
#pragma unroll
        for (int i = 0; i < copies; i++) {
            offset[i] =
                (u32)weight_row(first_unit, thread / 4 + 32 * i) * ROW_BYTES + thread % 4 * 16;
        }
#pragma unroll
        for (int i = 0; i < decodes; i++) {
            scale_index[i] =
                weight_row(first_unit, (thread + 128 * i) % BLOCK_ROWS) * GROUPS + PARTS * begin;
        }
        // Whether the thread's columns of the last step are beyond K.
        bool beyond_last = 32 * (thread % 4) >= COLUMNS_OF_LAST;
        u32 nibble_slot = shared_address(shared) + NIBBLE_OFFSET + thread * 16;
        float *scale_slot = (float *)(shared + SCALE_OFFSET) + thread;
        barriers_ready();

        auto copy_nibbles = [&](int slot, int g) {
            bool present = COLUMNS_OF_LAST == 128 || begin + g < STEPS - 1 || !beyond_last;
#pragma unroll
            for (int i = 0; i < copies; i++) {
                copy_16(nibble_slot + slot * NIBBLE_BYTES + i * 2048,
                        nibbles + offset[i] + (begin + g) * 64, present);
            }
            barrier_arrive_after_copies(full + slot);
        };
        // Loaded a step before they are decoded, so that nothing waits for memory in between.
        auto scale_at = [&](int i, int g) {
            u32 index = scale_index[i / PARTS] + PARTS * g + i % PARTS;
            // Of a group that is not there, whose sum is 0, the last one's: what follows may be no
            // number.
            if (GROUPS % PARTS) index -= max(PARTS * (begin + g) + i % PARTS - (GROUPS - 1), 0);
            return index;
        };
        auto load_scales = [&](uint2 (&words)[PARTS * decodes], int g) {
#pragma unroll
            for (int i = 0; i < PARTS * decodes; i++) {
#if NF4
                const u32 block = scale_at(i, g);
                words[i] = make_uint2(((const u8 *)scales)[block],
                                      __float_as_uint(nested_absmax[block / 256]));
#else
                words[i] = load_code_words((const u32 *)scales, 0, scale_at(i, g), SCALE_WIDTH);
#endif
            }
        };
        auto store_scales = [&](int slot, const uint2 (&words)[PARTS * decodes], int g) {
#pragma unroll
            for (int i = 0; i < PARTS * decodes; i++) {
#if NF4
                const float absmax = nf4_absmax(nf4_codes[words[i].x], __uint_as_float(words[i].y),
                                                __int_as_float(bias));
                const float scale = absmax * (1.0f / NF4_FACTOR);
#else
                const u32 code = code_in(words[i], 0, scale_at(i, g), SCALE_WIDTH);
                // Times 4: see quarter_pair; 64: gemm_lut4_weights.cuh.
                const float scale =
                    (LUT4 ? 64.0f : 4.0f) *
                    decode_scale(code, SCALE_FORMAT, SCALE_WIDTH, SCALE_MANTISSA, bias);
#endif
                if (thread + 128 * (i / PARTS) < BLOCK_ROWS)
                    scale_slot[(slot * PARTS + i % PARTS) * BLOCK_ROWS + 128 * (i / PARTS)] = scale;
            }
            barrier_arrive_warp(full + slot);
        };
        auto copy_tokens = [&](int slot, int g, int tile) {
            u32 stage = shared_address(shared) + slot * TOKEN_BYTES;
            barrier_expect(full + slot, TOKEN_BYTES);
            for (int half = 0; half < 2; half++)
                load_box(&x_map, stage + half * HALF_BYTES, full + slot,
                         128 * (begin + g) + 64 * half, tile * TILE_M);
        };

        // The first stages: weights before the previous kernel is done, tokens after it.
        int first = min(STAGES, count);
        for (int g = 0; g < first; g++) copy_nibbles(g, g);
        uint2 words[AHEAD][PARTS * decodes];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) load_scales(words[i], min(i, count - 1));
        wait_for_previous_kernel();
        if (thread == 0) {
            for (int g = 0; g < first; g++) copy_tokens(g, g, blockIdx.y);
        }
        for (int g = 0; g < first; g += AHEAD) {
#pragma unroll
            for (int i = 0; i < AHEAD; i++)
                if (g + i < first) store_scales(g + i, words[i], g + i);
#pragma unroll
            for (int i = 0; i < AHEAD; i++) load_scales(words[i], min(g + AHEAD + i, count - 1));
        }
        load_scales(words[0], first < count ? first : 0);
        slot = first % STAGES, phase = first / STAGES;
        int g = first;
        for (int tile = blockIdx.y; tile < tiles; tile += gridDim.y) {
#pragma unroll 1
            for (; g < count; g++) {
                barrier_wait(empty + slot, phase ^ 1);
                copy_nibbles(slot, g);
                if (thread == 0) copy_tokens(slot, g, tile);
                store_scales(slot, words[0], g);
                load_scales(words[0], g + 1 < count ? g + 1 : 0);
                if (++slot == STAGES) slot = 0, phase ^= 1;
            }
            g = 0;
        }
        __syncwarp();
        if (SPLIT_K > 1) { // the consumers' exchange of partial sums
            cluster_arrive();
            cluster_wait();
        }
    } else {
        if (CONSUMER_REGISTERS > LAUNCH_REGISTERS) {
            asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(CONSUMER_REGISTERS));
        }
        barriers_ready();

        int r = lane / 4, t = lane % 4, quarter = warp % 4, unit = first_unit + warpgroup;
        const uint4 *w =
            (const uint4 *)(shared + NIBBLE_OFFSET) + (16 * warp + r) * 4 + LANE_PIECE(t);
        const float *scale = (const float *)(shared + SCALE_OFFSET) + 16 * warp + r;
        int column = output_column(unit, quarter, r), staged_column = column - unit * UNIT_COLUMNS;
        if (EPILOGUE == EPILOGUE_SWIGLU && OUT_INT4)
            staged_column = 8 * (r % 4) + 2 * quarter + r / 4;

        lane_output output;
        output.row = column;
        auto at_tile = [&](int tile) {
            output.residual = (float *)out + (u64)(tile * TILE_M + 2 * t) * ROWS + column;
            output.tokens = m - tile * TILE_M - 2 * t;
        };
#if RESIDUAL_AHEAD
        // With few tokens what they are added to is loaded now, not where everything waits for it.
        wait_for_previous_kernel();
        at_tile(blockIdx.y);
        float4 residual[EMITTED];
#pragma unroll
        for (int i = 0; i < EMITTED; i++) residual[i] = load_residual(output, split + i * SPLIT_K);
#endif
        auto added_to = [&](int i, int j) {
#if RESIDUAL_AHEAD
            return residual[i];
#elif ADDS
            return load_residual(output, j);
#else
            return make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#endif
        };

        float total[ACCUMULATORS], group_sums[SUMS][ACCUMULATORS];
#pragma unroll
        for (int i = 0; i < SUMS * ACCUMULATORS; i++)
            group_sums[i / ACCUMULATORS][i % ACCUMULATORS] = 0.0f;
        for (int tile = blockIdx.y; tile < tiles; tile += gridDim.y) {
#pragma unroll
            for (int i = 0; i < ACCUMULATORS; i++) total[i] = 0.0f;
            u32 a[2][CHUNK_STEPS][4];
            step_weights weights;
            auto load_weights = [&] {
                barrier_wait(full + slot, phase);
                weights.load(w + slot * (NIBBLE_BYTES / 16));
            };
            auto dequantize = [&](int chunk) {
#if LUT4
                weights.dequantize(a[chunk % 2], chunk, t, book);
#else
                weights.dequantize(a[chunk % 2], chunk, t);
#endif
            };
            auto multiply = [&](int chunk, float (&sums)[ACCUMULATORS]) {
                u64 tokens = matrix_descriptor(shared_address(shared) + slot * TOKEN_BYTES);
                wgmma_fence();
#pragma unroll
                for (int s = 0; s < CHUNK_STEPS; s++) {
                    const int step = chunk * CHUNK_STEPS + s;
                    wgmma(sums, a[chunk % 2][s],
                          tokens + step / 4 * (HALF_BYTES / 16) + step % 4 * 2,
                          s > 0 || chunk % (CHUNKS / PARTS) > 0);
                }
                wgmma_commit();
            };
            // A step. Where two groups' sums are under way its first chunk already is, and the next
            // step's is begun unless this is the last: then one chunk is under way where the loop
            // below closes, the first time, too. The compiler lets products run beside other
            // instructions only where it can tell which they are.
            auto take_step = [&](bool last, float (&sums)[ACCUMULATORS],
                                 float (&next_sums)[ACCUMULATORS]) {
                const int used = slot;
                if (SUMS == 1) multiply(0, sums);
#pragma unroll
                for (int chunk = 1; chunk <= CHUNKS; chunk++) {
                    const int part = (chunk - 1) * PARTS / CHUNKS;
                    const bool ends_step = chunk == CHUNKS,
                               ends_group = chunk * PARTS / CHUNKS != part;
                    const bool drains = ends_group && (SUMS == 1 || (ends_step && last));
                    const float *of_part = scale + (used * PARTS + part) * BLOCK_ROWS;
                    const float scale_r = of_part[0], scale_r8 = of_part[8];
                    auto add_up = [&] {
                        if (ends_step) barrier_arrive_warp(empty + used);
#pragma unroll
                        for (int n = 0; n < ACCUMULATORS; n++)
                            total[n] += sums[n] * (n & 2 ? scale_r8 : scale_r);
                    };
                    if (ends_step) {
                        if (++slot == STAGES) slot = 0, phase ^= 1;
                        if (!last) load_weights();
                    }
                    // The registers are free again: a group's end waited for that, within one it is
                    // done here.
                    if (CHUNKS > PARTS && chunk > 1) wgmma_wait<1>();
                    if (!ends_step || !last) dequantize(chunk % CHUNKS);
                    if (drains) {
                        wgmma_wait<0>(sums);
                        add_up();
                    }
                    if (!ends_step || (SUMS == 2 && !last))
                        multiply(chunk % CHUNKS, ends_group ? next_sums : sums);
                    if (ends_group && !drains) {
                        wgmma_wait<1>(sums);
                        add_up();
                    }
                }
            };
            load_weights();
            dequantize(0);
#if SUMS == 2
            multiply(0, group_sums[0]);
            int left = count;
#pragma unroll 1
            for (; left > 2; left -= 2) {
                take_step(false, group_sums[0], group_sums[1]);
                take_step(false, group_sums[1], group_sums[0]);
            }
            if (left == 2) {
                take_step(false, group_sums[0], group_sums[1]);
                take_step(true, group_sums[1], group_sums[0]);
            } else {
                take_step(true, group_sums[0], group_sums[1]);
            }
#else
            // The last is not peeled off: without its branch the compiler widens the next step's
            // weights only once the tensor cores are done with this one's.
#pragma unroll 1
            for (int left = count; left > 0; left--)
                take_step(left == 1, group_sums[0], group_sums[0]);
#endif

            // That one may still read or write `out`.
            if (tile == (int)blockIdx.y) wait_for_previous_kernel();
            u16 *staged = (u16 *)(shared + OUT_OFFSET + warpgroup * OUT_BYTES);
            output.staged = staged + 2 * t * OUT_PITCH + staged_column;
            at_tile(tile);
            u32 mine = shared_address(shared) + threadIdx.x * 16;
            if (SPLIT_K > 1) {
                sync_threads(1 + WARPGROUPS, CONSUMERS); // the stages are free
            } else if (EPILOGUE != EPILOGUE_ADD) {
                sync_threads(1 + warpgroup, 128); // the last tile's output is out
            }
#pragma unroll
            for (int j = 0; j < BLOCKS_8; j++) {
                float4 v =
                    make_float4(total[4 * j], total[4 * j + 1], total[4 * j + 2], total[4 * j + 3]);
                if (SPLIT_K > 1) {
                    ((float4 *)shared)[j * CONSUMERS + threadIdx.x] = v;
                } else if (tile * TILE_M + 8 * j < m) {
                    emit(output, j, v, added_to(j, j));
                }
            }
            if (SPLIT_K > 1) {
                cluster_arrive();
                cluster_wait();
#pragma unroll(RESIDUAL_AHEAD ? EMITTED : 1)
                for (int i = 0; i < EMITTED; i++) {
                    const int j = split + i * SPLIT_K;
                    if (j >= BLOCKS_8 || tile * TILE_M + 8 * j >= m) break;
                    float4 part[SPLIT_K];
#pragma unroll
                    for (int k = 0; k < SPLIT_K; k++) {
                        part[k] = load_in_cluster(address_in(mine + j * CONSUMERS * 16, k));
                    }
                    float4 v = part[0];
#pragma unroll
                    for (int k = 1; k < SPLIT_K; k++) {
                        v.x += part[k].x, v.y += part[k].y, v.z += part[k].z, v.w += part[k].w;
                    }
                    emit(output, j, v, added_to(i, j));
                }
            }
#if EPILOGUE != EPILOGUE_ADD
            sync_threads(1 + warpgroup, 128);
            // 16 bytes a thread, a token's columns after the other.
            const int chunks = UNIT_COLUMNS / 8;
            int present = min(TILE_M, m - tile * TILE_M);
            for (int i = threadIdx.x % 128; i < present * chunks; i += 128) {
                int token = i / chunks, first = unit * UNIT_COLUMNS + i % chunks * 8;
                if (SPLIT_K > 1 && token / 8 % SPLIT_K != (int)split) continue;
                if (unit >= UNITS || first >= OUT_COLUMNS) continue;
                *(uint4 *)((u16 *)out + (u64)(tile * TILE_M + token) * OUT_STRIDE + first) =
                    *(const uint4 *)(staged + token * OUT_PITCH + i % chunks * 8);
            }
#endif
        }
    }
    // Others may still read this block's shared memory, or arrive at its barriers.
    if (SPLIT_K > 1) {
        __syncwarp();
        cluster_arrive_relaxed();
        cluster_wait();
    }
}
