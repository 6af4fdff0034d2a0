// How gemm_int4.cu's work is cut, by its macros: steps and their chunks, a block's rows, what lies
// where in shared memory, and registers.
#pragma once

#define STEPS ((K + 127) / 128)
#define COLUMNS_OF_LAST (K - 128 * (STEPS - 1)) // of the last step
#define PARTS (128 / GROUP)                     // groups of a step
#define GROUPS ((K + GROUP - 1) / GROUP)
#define CHUNKS (PARTS == 1 ? 2 : PARTS)         // of a step: whose weights are dequantized at once
#define CHUNK_STEPS (8 / CHUNKS)                // products of a chunk
#define AHEAD (PARTS == 1 ? 4 : 1)              // steps whose scales are loaded together at first
#define ROW_BYTES (K / 2)
#define CONSUMERS (128 * WARPGROUPS)
#define THREADS (CONSUMERS + 128)
#define BLOCK_ROWS (64 * WARPGROUPS)
#define BLOCKS_8 (TILE_M / 8) // blocks of 8 tokens, the columns of four accumulators
#define ACCUMULATORS (TILE_M / 2)
// Groups whose sums the tensor cores may be at work on: where registers suffice one is added up
// beside the next.
#define SUMS (PARTS == 1 && TILE_M <= 104 ? 2 : 1)
#define EMITTED ((BLOCKS_8 + SPLIT_K - 1) / SPLIT_K) // of them by a block of a split
#define ADDS (EPILOGUE == EPILOGUE_ADD && !OVERWRITE)
#define RESIDUAL_AHEAD (ADDS && TILE_M <= 32)

#if EPILOGUE == EPILOGUE_SWIGLU
#define INTERMEDIATE (ROWS / 2)
#define UNITS ((INTERMEDIATE + 127) / 128 * 4) // of a warpgroup's rows
#define UNIT_COLUMNS 32                        // output columns of a unit
#define OUT_COLUMNS (32 * UNITS)
#else
#define UNITS ((ROWS + 63) / 64)
#define UNIT_COLUMNS 64
#define OUT_COLUMNS ROWS
#endif
#ifndef OUT_STRIDE
#define OUT_STRIDE OUT_COLUMNS
#endif

// Shared memory: tokens | nibbles [BLOCK_ROWS][64] | scales [PARTS][BLOCK_ROWS], STAGES of each |
// bf16 output of each warpgroup, rows padded against bank conflicts | barriers.
#define HALF_BYTES (TILE_M * 128)
#define TOKEN_BYTES (2 * HALF_BYTES)
#define NIBBLE_BYTES (BLOCK_ROWS * 64)
#define NIBBLE_OFFSET (STAGES * TOKEN_BYTES)
#define SCALE_OFFSET (NIBBLE_OFFSET + STAGES * NIBBLE_BYTES)
#define OUT_OFFSET (SCALE_OFFSET + STAGES * PARTS * BLOCK_ROWS * 4)
#define OUT_PITCH (UNIT_COLUMNS + 8)
#define OUT_BYTES (EPILOGUE == EPILOGUE_ADD ? 0 : TILE_M * OUT_PITCH * 2)
#define BARRIER_OFFSET (OUT_OFFSET + WARPGROUPS * OUT_BYTES)
#define SHARED_BYTES (BARRIER_OFFSET + 16 * STAGES + 1024) // 1024: the swizzle's alignment

// Registers a thread: at launch, and after the producer gave some of its own away.
#define LAUNCH_REGISTERS (65536 / MIN_BLOCKS / THREADS / 8 * 8)
#define PRODUCER_REGISTERS 40
#define SHARED_OUT ((LAUNCH_REGISTERS * THREADS - 128 * PRODUCER_REGISTERS) / CONSUMERS / 8 * 8)
#define CONSUMER_REGISTERS (SHARED_OUT > 232 ? 232 : SHARED_OUT)

static_assert(K % 32 == 0 && ROWS % 8 == 0, "rows of nibbles and outputs are 16-byte aligned");
static_assert(TILE_M % 8 == 0, "the swizzle repeats every 8 rows");
static_assert(SHARED_BYTES == DYNAMIC_SHARED,
              "smq-engine launches with what the layout above takes");
static_assert(SPLIT_K == 1 || STAGES >= WARPGROUPS, "partial sums reuse the tokens' stages");
static_assert(SPLIT_K <= STEPS, "each block of a split has a step");
static_assert(GROUP == 128 || GROUP == 64 || GROUP == 32,
              "a step has whole groups, and a group whole words");
static_assert(!NF4 || (GROUP == 64 && K % 64 == 0), "NF4's blocks lie in rows");
