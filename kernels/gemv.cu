// Decode products: y[rows] = W[rows, K] x[K] for one activation row, W int4 (groups of 128) or bf16.
//
// Bound by the weights' bytes, so the memory pipe must never run dry, not even between kernels. One block
// an SM owns a contiguous run of tiles of 8 weight rows. Its last warp copies tile after tile into a
// ring in shared memory (bulk copies; a tile is contiguous in the file). It does not wait for the
// previous kernel: weights depend on nothing, so while that kernel computes, this one's ring fills
// (programmatic dependent launch; two kernels' rings fit an SM). The other warps share out the columns;
// each keeps its part of x in registers, in fragment order, for all tiles.
//
// A 16-byte shared load of a warp covers 4 rows x 128 bytes, whole lines without bank conflicts. In mma terms,
// fragment row r = lane / 4 is then weight row r / 2 and half r % 2 of those 128 bytes. The halves meet
// different x, so they get different columns of b: columns 0..3 hold x of the first half, 4..7 of the second, and
// only the matching quarter of c is used. One activation row leaves 7 of 8 columns free anyway.
//
//   int4  128 bytes = 256 columns, a half is a group. mma.m16n8k32, s8 x s8 -> s32: w & 0xf0f0f0f0 and the same
//         of w << 4 are 8 nibbles as 16 q, three instructions. x comes as 23-bit fixed point relative to the
//         group's largest magnitude, three limbs of 8 bits (balanced digits), one a column. The sum of a
//         group is exact in s32; it is scaled in f32. Not an approximation of W4A16: bf16 activations
//         have 8 bits.
//   bf16  128 bytes = 64 columns, a half is 32. mma.m16n8k16 in f32; x = hi + lo, bf16 each (2^-17), one a column.
//
// The ring is long, but only IN_FLIGHT stages are on their way at a time. More do not arrive sooner: they queue in
// the memory system, and whatever is asked for behind them, first of all the next kernel's x, waits until they have
// drained (NOTES.md).
//
// Every warp's partial sums of a row meet in shared memory and are added in the order of warps: deterministic.
//
// Fused around the product:
//   NORMED     x is x w (RMSNorm's weight), and 1 / sqrt(mean(x^2) + eps) multiplies the result; square_sums[GRID]
//              are partial sums of x^2
//   STORE      out[rows] = y
//   RESIDUAL   out[rows] += y; next_x = out * next_norm; next_square_sums[block] = the block's sum of out^2
//   SWIGLU     segment 0 is the gate, 1 the up projection, a tile 4 rows of each; next_x = silu(gate) up
//   LOGITS     STORE; best_value, best_index[block]: the block's largest (lowest index among equals; NaN wins)
//
// Up to 3 segments (q, k, v apart) of SEG0, SEG1, SEG2 rows, multiples of 8 (SWIGLU: 4), are one launch.
// grid: GRID = number of SMs; block: 32 (WARPS + 1); shared: SHARED_BYTES (see the end of this comment).
//
// Macros: K, INT4, EPILOGUE, NORMED, SEG0..2, GRID, WARPS, STAGES, UNROLL, IN_FLIGHT, KSPLIT (a ring stage is a
// tile's K / KSPLIT columns), HIDDEN, EPS_BITS (f32 bits of eps), SCALE_FORMAT, SCALE_WIDTH, SCALE_MANTISSA.
// SHARED_BYTES = STAGES * 8 * row bytes / KSPLIT + 128 + 4 * 8 * MAX_TILES * WARPS, and with int4
// 4 * 8 * MAX_TILES * SCALE_STRIDE rounded up to 16, + MAX_TILES * TILE_CODE_BYTES.
// Scales may be read up to 35 bytes past their stream's end.

#include "common.cuh"

#define STORE 0
#define RESIDUAL 1
#define SWIGLU 2
#define LOGITS 3

#define ROW_BYTES (INT4 ? K / 2 : 2 * K)
#define CHUNK_BYTES (ROW_BYTES / KSPLIT)
#define STAGE_BYTES (8 * CHUNK_BYTES)
#define LINES ((CHUNK_BYTES + 127) / 128) // 128-byte pieces of a row in a stage
#define LINES_A_WARP ((LINES + WARPS - 1) / WARPS)
#define GROUPS ((K + 127) / 128)
#define SCALE_STRIDE (GROUPS | 1)
#define TILE_STEP (EPILOGUE == SWIGLU ? 4 : 8)
#define TILES0 (SEG0 / TILE_STEP)
#define TILES1 (EPILOGUE == SWIGLU ? 0 : SEG1 / TILE_STEP)
#define TILES (TILES0 + TILES1 + SEG2 / TILE_STEP)
#define MAX_TILES ((TILES + GRID - 1) / GRID)
#define CONSUMERS (32 * WARPS)
#define RUNS (EPILOGUE == SWIGLU ? 2 : 1) // of scale codes, a tile
#define RUN_ROWS (8 / RUNS)
// A run's codes begin at any bit: whole 16 bytes around them, and the word after the last.
#define RUN_BYTES ((RUN_ROWS * GROUPS * SCALE_WIDTH / 8 + 16 + 4 + 15) / 16 * 16)
#define TILE_CODE_BYTES (RUNS * RUN_BYTES)
static_assert(STAGES > KSPLIT * (UNROLL - 1), "the tiles done together must fit the ring");

struct Segment {
    const u8 *weights;
    const void *scales;
    u32 first_scale; // index in `scales` of its row 0's first
    int bias;
};

// A run of bytes of a stage: where from, where to in the stage.
struct Piece {
    const u8 *from;
    int offset, bytes;
};

// An integer of up to 22 bits in the mantissa of 1.5 * 2^23: no conversion, an addition undoes it.
#define INT_IN_FLOAT 0x4b400000

// int4: one line's part of x as this lane's b registers: column r = lane / 4 is limb r % 4 of half r / 4. Every element is converted once, by the lane that loads it, and handed over in `exchange`, the
// warp's own: loading what each lane needs directly would read and convert every element several times, and
// that is on the critical path. Elements from K on count as zero.
#if INT4
DEVICE void mma_s8(int c[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

#define EXCHANGE_WORDS (3 * 64)

struct Activation {
    u32 b[8];    // word u of a lane's 32 elements: b[2u] its even, b[2u + 1] its odd ones
    float scale; // one unit of the fixed point, of half lane / 4 % 2 (the half of this lane's c)
};

struct Elements {
    float4 v0, v1;
};

DEVICE Elements load_elements(const float *x, int line, int lane) {
    const int k = 256 * line + 8 * lane;
    float4 zero = make_float4(0, 0, 0, 0);
    Elements e = {k < K ? *(const float4 *)(x + k) : zero, k < K ? *(const float4 *)(x + k + 4) : zero};
    return e;
}

DEVICE Activation convert(Elements e, int lane, u32 *exchange) {
    float v[8] = {e.v0.x, e.v0.y, e.v0.z, e.v0.w, e.v1.x, e.v1.y, e.v1.z, e.v1.w};
    u32 largest = 0; // magnitudes compare as their bits do, NaN and infinity above all numbers
#pragma unroll
    for (int i = 0; i < 8; i++) largest = max(largest, __float_as_uint(v[i]) & 0x7fffffffu);
#pragma unroll
    for (int d = 1; d < 16; d *= 2) largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, d));
    // 2^(21 - e) with 2^e <= largest < 2^(e + 1): |fixed point| < 2^22. Tiny groups keep a finite factor, and a group
    // with an element that is not finite gets a unit that is NaN, so that it is not lost.
    const bool finite = largest < 0x7f800000u;
    u32 exponent = finite ? max(largest >> 23, 30u) : 127u;
    float factor = __uint_as_float((127 + 21 + 127 - exponent) << 23);
    u32 y[8]; // the bytes of the fixed point plus 0x808080 are its balanced digits plus 128
#pragma unroll
    for (int i = 0; i < 8; i++)
        y[i] = __float_as_uint(fmaf(v[i], factor, 12582912.0f)) - INT_IN_FLOAT + 0x808080;
    __syncwarp();
#pragma unroll
    for (int odd = 0; odd < 2; odd++) {
        u32 low01 = __byte_perm(y[odd], y[2 + odd], 0x5140), low23 = __byte_perm(y[4 + odd], y[6 + odd], 0x5140);
        u32 top01 = __byte_perm(y[odd], y[2 + odd], 0x0062), top23 = __byte_perm(y[4 + odd], y[6 + odd], 0x0062);
        exchange[2 * lane + odd] = __byte_perm(low01, low23, 0x5410) ^ 0x80808080u;
        exchange[64 + 2 * lane + odd] = __byte_perm(low01, low23, 0x7632) ^ 0x80808080u;
        exchange[128 + 2 * lane + odd] = __byte_perm(top01, top23, 0x5410) ^ 0x80808080u;
    }
    __syncwarp();
    Activation out;
    const int r = lane / 4, t = lane % 4, part = r % 4;
    const uint4 *from = (const uint4 *)(exchange + 64 * min(part, 2) + 32 * (r / 4) + 8 * t);
    uint4 a = from[0], b = from[1], none = {0, 0, 0, 0};
    if (part == 3) a = none, b = none;
    out.b[0] = a.x, out.b[1] = a.y, out.b[2] = a.z, out.b[3] = a.w;
    out.b[4] = b.x, out.b[5] = b.y, out.b[6] = b.z, out.b[7] = b.w;
    float unit = finite ? __uint_as_float((exponent - 21) << 23) : __uint_as_float(0x7fffffffu);
    out.scale = __shfl_sync(0xffffffffu, unit, r % 2 * 16);
    return out;
}
#endif

KERNEL __launch_bounds__(CONSUMERS + 32, 2) gemv(
    const u8 *w0, const void *s0, u32 first0, int bias0, const u8 *w1, const void *s1, u32 first1, int bias1,
    const u8 *w2, const void *s2, u32 first2, int bias2, const float *x, const float *square_sums, float *out,
    const float *next_norm, float *next_x, float *next_square_sums, float *best_value, int *best_index) {
    let_next_kernel_start();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int first_tile = (u64)TILES * blockIdx.x / GRID;
    const int tiles = (u64)TILES * (blockIdx.x + 1) / GRID - first_tile;

    extern __shared__ __align__(128) u8 shared[];
    u8 *ring = shared;
    float *partial = (float *)(shared + STAGES * STAGE_BYTES + 128); // [MAX_TILES * 8][WARPS]
    __shared__ u64 full[STAGES], empty[STAGES];
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; s++) {
            barrier_init(&full[s], 1);
            barrier_init(&empty[s], WARPS);
        }
    }
    // Selected, not indexed: an indexed array would live in local memory.
    [[maybe_unused]] auto segment_of = [&](int tile) {
        Segment a = {w0, s0, first0, bias0}, b = {w1, s1, first1, bias1}, c = {w2, s2, first2, bias2};
        return tile < TILES0 ? a : tile < TILES0 + (EPILOGUE == SWIGLU ? 1 : TILES1) ? b : c;
    };
    [[maybe_unused]] auto tile_in_segment = [&](int tile) {
        return tile < TILES0 ? tile : tile < TILES0 + TILES1 ? tile - TILES0 : tile - TILES0 - TILES1;
    };
#if INT4
    float *scales = partial + MAX_TILES * 8 * WARPS;           // [MAX_TILES * 8][SCALE_STRIDE]
    u8 *codes = (u8 *)(scales + (MAX_TILES * 8 * SCALE_STRIDE + 3) / 4 * 4); // [MAX_TILES * RUNS][RUN_BYTES]
    __shared__ u64 scales_here;
    if (threadIdx.x == 0) barrier_init(&scales_here, 1);
    // A run: RUN_ROWS consecutive rows of one segment, whose codes are consecutive too.
    struct Run {
        Segment segment;
        u64 first_bit;
    };
    auto run_of = [&](int run) {
        int tile = first_tile + run / RUNS;
        Segment s = EPILOGUE == SWIGLU ? segment_of(run % 2 ? TILES0 : 0) : segment_of(tile);
        int row = EPILOGUE == SWIGLU ? 4 * tile : 8 * tile_in_segment(tile);
        Run out = {s, (u64)(s.first_scale + (u32)row * GROUPS) * SCALE_WIDTH};
        return out;
    };
#endif
    if (threadIdx.x == 0) fence_barrier_init();
    __syncthreads();

    if (warp == WARPS) {
#if INT4
        // The tiles' scale codes come first: they are few, and queued behind the weights they would be late.
        if (lane == 0) barrier_expect(&scales_here, tiles * TILE_CODE_BYTES);
        __syncwarp();
        for (int i = lane; i < tiles * RUNS; i += 32) {
            Run run = run_of(i);
            u64 byte = run.first_bit / 128 * 16;
            bulk_copy(codes + i * RUN_BYTES, (const u8 *)run.segment.scales + byte, RUN_BYTES, &scales_here);
        }
#endif
        // This lane's piece of stage i, if it has one.
        auto piece_of = [&](int i) {
            int tile = first_tile + i / KSPLIT, chunk = i % KSPLIT;
            constexpr int ROWS = KSPLIT > 1 ? 1 : EPILOGUE == SWIGLU ? 4 : 8; // contiguous in the file
            int row = lane * ROWS;
#if EPILOGUE == SWIGLU
            const u8 *rows = (row < 4 ? w0 : w1) + (u64)(4 * tile + row % 4) * ROW_BYTES;
#else
            const u8 *rows = segment_of(tile).weights + (u64)(8 * tile_in_segment(tile) + row) * ROW_BYTES;
#endif
            Piece piece = {rows + chunk * CHUNK_BYTES, row * CHUNK_BYTES, row < 8 ? ROWS * CHUNK_BYTES : 0};
            return piece;
        };
        const int stages = tiles * KSPLIT;
        for (int i = 0; i < stages; i++) {
            int stage = i % STAGES;
            if (i >= STAGES) barrier_wait(&empty[stage], (i / STAGES - 1) & 1);
            if (i >= IN_FLIGHT) barrier_wait(&full[(i - IN_FLIGHT) % STAGES], (i - IN_FLIGHT) / STAGES & 1);
            if (lane == 0) barrier_expect(&full[stage], STAGE_BYTES);
            __syncwarp();
            Piece piece = piece_of(i);
            if (piece.bytes > 0) bulk_copy(ring + stage * STAGE_BYTES + piece.offset, piece.from, piece.bytes, &full[stage]);
        }
        return;
    }

#if INT4
    barrier_wait(&scales_here, 0);
    for (int i = threadIdx.x; i < tiles * 8 * GROUPS; i += CONSUMERS) {
        int row = i / GROUPS, group = i % GROUPS;
        Run run = run_of(row / RUN_ROWS);
        const u32 *words = (const u32 *)(codes + row / RUN_ROWS * RUN_BYTES);
        u32 code = load_code(words, run.first_bit % 128, row % RUN_ROWS * GROUPS + group, SCALE_WIDTH);
        // Weights come as 16 q.
        scales[row * SCALE_STRIDE + group] =
            decode_scale(code, SCALE_FORMAT, SCALE_WIDTH, SCALE_MANTISSA, run.segment.bias) * 0.0625f;
    }
    sync_threads(1, CONSUMERS);
#endif
    const int rows = tiles * TILE_STEP;
#if EPILOGUE == RESIDUAL
    const int out_row = first_tile * 8 + threadIdx.x;
    const float norm = threadIdx.x < rows ? next_norm[out_row] : 0.0f;
#endif
    wait_for_previous_kernel();

    // Everything that the epilogue and the product need from memory is asked for before any of it is used.
    [[maybe_unused]] float square_sum = 0.0f;
#if NORMED
    float part[(GRID + 31) / 32];
#pragma unroll
    for (int i = 0; i < (GRID + 31) / 32; i++) part[i] = 32 * i + lane < GRID ? square_sums[32 * i + lane] : 0.0f;
#endif
#if EPILOGUE == RESIDUAL
    float residual = threadIdx.x < rows ? out[out_row] : 0.0f;
#endif
#if INT4
    __shared__ __align__(16) u32 exchange[WARPS][EXCHANGE_WORDS];
    Elements elements[KSPLIT][LINES_A_WARP];
#pragma unroll
    for (int chunk = 0; chunk < KSPLIT; chunk++)
#pragma unroll
        for (int i = 0; i < LINES_A_WARP; i++) {
            int line = warp + i * WARPS;
            elements[chunk][i] = load_elements(x, line < LINES ? chunk * LINES + line : 1 << 20, lane);
        }
    Activation activation[KSPLIT][LINES_A_WARP];
#pragma unroll
    for (int chunk = 0; chunk < KSPLIT; chunk++)
#pragma unroll
        for (int i = 0; i < LINES_A_WARP; i++) activation[chunk][i] = convert(elements[chunk][i], lane, exchange[warp]);
#else
    // Pairs of elements, hi parts then lo parts of each line of 64: 32 words each. In shared memory, because in
    // registers they would keep a second block off the SM.
    __shared__ __align__(16) u32 parts[(K + 63) / 64][2][32];
    for (int i = threadIdx.x; i < (K + 63) / 64 * 32; i += CONSUMERS) {
        float2 v = 2 * i < K ? *(const float2 *)(x + 2 * i) : make_float2(0, 0);
        u32 hi = bf16_pair(v.x, v.y);
        parts[i / 32][0][i % 32] = hi;
        parts[i / 32][1][i % 32] = bf16_pair(v.x - bf16_low(hi), v.y - bf16_high(hi));
    }
    sync_threads(1, CONSUMERS);
#endif
#if NORMED
#pragma unroll
    for (int i = 0; i < (GRID + 31) / 32; i++) square_sum += part[i];
#endif

    // c0 and c1 are columns 2t and 2t + 1; of a row of the first half (r even) columns 0..3 count, else 4..7.
    const int r = lane / 4, t = lane % 4;
    const bool counts = t / 2 == r % 2;
#if INT4
    const float limb0 = counts ? (t % 2 ? 65536.0f : 1.0f) : 0.0f, limb1 = counts && t % 2 == 0 ? 256.0f : 0.0f;
#endif
    // UNROLL tiles together: a tile alone is a chain of dependent loads, mmas and shuffles.
    for (int tile0 = 0; tile0 < tiles; tile0 += UNROLL) {
        float sum[UNROLL][2] = {}; // rows lane / 8 and 4 + lane / 8 of each tile
#if !INT4
        float c[UNROLL][4] = {};
#endif
#pragma unroll
        for (int chunk = 0; chunk < KSPLIT; chunk++) {
            int stages[UNROLL];
#pragma unroll
            for (int u = 0; u < UNROLL; u++) {
                // Past the end the last tile is done again and not used.
                int i = min(tile0 + u, tiles - 1) * KSPLIT + chunk;
                stages[u] = i % STAGES;
                barrier_wait(&full[stages[u]], i / STAGES & 1);
            }
#pragma unroll
            for (int l = 0; l < LINES_A_WARP; l++) {
                int line = warp + l * WARPS;
                if (LINES % WARPS != 0 && line >= LINES) break;
#if INT4
                const Activation &a = activation[chunk][l];
#else
                // Column r = lane / 4 of b is part r % 4 (hi, lo, none, none) of half r / 4.
                const u32 *pair = parts[chunk * LINES + line][r & 1] + 16 * (r / 4) + 4 * t;
                uint4 b = r % 4 < 2 ? *(const uint4 *)pair : make_uint4(0, 0, 0, 0);
#endif
#pragma unroll
                for (int u = 0; u < UNROLL; u++) {
                    const u8 *base =
                        ring + stages[u] * STAGE_BYTES + lane / 8 * CHUNK_BYTES + line * 128 + lane % 8 * 16;
                    uint4 low = *(const uint4 *)base, high = *(const uint4 *)(base + 4 * CHUNK_BYTES);
#if INT4
                    int c[4] = {INT_IN_FLOAT, INT_IN_FLOAT, INT_IN_FLOAT, INT_IN_FLOAT};
                    u32 lows[4] = {low.x, low.y, low.z, low.w}, highs[4] = {high.x, high.y, high.z, high.w};
#pragma unroll
                    for (int w = 0; w < 4; w++)
                        mma_s8(c, lows[w] << 4 & 0xf0f0f0f0u, highs[w] << 4 & 0xf0f0f0f0u, lows[w] & 0xf0f0f0f0u,
                               highs[w] & 0xf0f0f0f0u, a.b[2 * w], a.b[2 * w + 1]);
                    int group = 2 * (chunk * LINES + line) + r % 2;
#pragma unroll
                    for (int h = 0; h < 2; h++) {
                        float exact = (__int_as_float(c[2 * h]) - 12582912.0f) * limb0 +
                                      (__int_as_float(c[2 * h + 1]) - 12582912.0f) * limb1;
                        int row = min(tile0 + u, tiles - 1) * 8 + 4 * h + lane / 8;
                        bool in = GROUPS % 2 == 0 || group < GROUPS;
                        sum[u][h] += exact * (a.scale * (in ? scales[row * SCALE_STRIDE + group] : 0.0f));
                    }
#else
                    mma_bf16(c[u], low.x, high.x, low.y, high.y, b.x, b.y);
                    mma_bf16(c[u], low.z, high.z, low.w, high.w, b.z, b.w);
#endif
                }
            }
            __syncwarp();
            if (lane == 0)
#pragma unroll
                for (int u = 0; u < UNROLL; u++)
                    if (tile0 + u < tiles) barrier_arrive(&empty[stages[u]]);
        }
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
#if !INT4
            if (counts) sum[u][0] = c[u][0] + c[u][1], sum[u][1] = c[u][2] + c[u][3];
#endif
            // Eight lanes share each of the two rows: the first exchange leaves one row a lane.
            float keep = lane % 2 ? sum[u][1] : sum[u][0], give = lane % 2 ? sum[u][0] : sum[u][1];
            keep += __shfl_xor_sync(0xffffffffu, give, 1);
            keep += __shfl_xor_sync(0xffffffffu, keep, 2);
            keep += __shfl_xor_sync(0xffffffffu, keep, 4);
            if ((lane & 6) == 0 && tile0 + u < tiles)
                partial[((tile0 + u) * 8 + 4 * (lane % 2) + lane / 8) * WARPS + warp] = keep;
        }
    }
#if NORMED
    const float factor = 1.0f / sqrtf(warp_sum(square_sum) / HIDDEN + __uint_as_float(EPS_BITS));
#else
    const float factor = 1.0f;
#endif
    sync_threads(1, CONSUMERS);

    auto row_sum = [&](int row) {
        float y = 0.0f;
#pragma unroll
        for (int v = 0; v < WARPS; v++) y += partial[row * WARPS + v];
        return y * factor;
    };
#if EPILOGUE == STORE
    for (int i = threadIdx.x; i < rows; i += CONSUMERS) out[first_tile * 8 + i] = row_sum(i);
#elif EPILOGUE == SWIGLU
    for (int i = threadIdx.x; i < rows; i += CONSUMERS) {
        float gate = row_sum(i / 4 * 8 + i % 4), up = row_sum(i / 4 * 8 + 4 + i % 4);
        next_x[first_tile * 4 + i] = gate / (1.0f + expf(-gate)) * up;
    }
#elif EPILOGUE == RESIDUAL
    static_assert(MAX_TILES * 8 <= CONSUMERS, "one thread a row");
    float y = 0.0f;
    if (threadIdx.x < rows) {
        y = residual + row_sum(threadIdx.x);
        out[out_row] = y;
        next_x[out_row] = y * norm;
    }
    constexpr int ROW_WARPS = (MAX_TILES * 8 + 31) / 32;
    __shared__ float squares[ROW_WARPS];
    if (warp < ROW_WARPS) {
        float square = warp_sum(y * y);
        if (lane == 0) squares[warp] = square;
        if (ROW_WARPS > 1) sync_threads(2, 32 * ROW_WARPS);
        if (threadIdx.x == 0) {
            square = squares[0];
            for (int v = 1; v < ROW_WARPS; v++) square += squares[v];
            next_square_sums[blockIdx.x] = square;
        }
    }
#elif EPILOGUE == LOGITS
    float value = __uint_as_float(0xff800000u);
    int index = 0x7fffffff;
    auto take = [&](float other, int other_index) {
        if (other > value || other != other || (other == value && other_index < index))
            value = other, index = other_index;
    };
    for (int i = threadIdx.x; i < rows; i += CONSUMERS) {
        float y = row_sum(i);
        out[first_tile * 8 + i] = y;
        take(y, first_tile * 8 + i);
    }
    __shared__ float values[WARPS];
    __shared__ int indices[WARPS];
#pragma unroll
    for (int d = 16; d > 0; d /= 2)
        take(__shfl_xor_sync(0xffffffffu, value, d), __shfl_xor_sync(0xffffffffu, index, d));
    if (lane == 0) values[warp] = value, indices[warp] = index;
    sync_threads(1, CONSUMERS);
    if (threadIdx.x == 0) {
        for (int v = 1; v < WARPS; v++) take(values[v], indices[v]);
        best_value[blockIdx.x] = value;
        best_index[blockIdx.x] = index;
    }
#endif
}
