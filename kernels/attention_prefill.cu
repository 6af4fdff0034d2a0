// Attention of a prompt: `rows` new tokens in cache rows past .. past + rows - 1. They are one
// sequence's, whose positions those are, or (PACKED = 1) several sequences', each row with what it
// sees.
//
//   seen     PACKED = 1: for each row {context_begin, context_end, own_begin, position}. The row in
//            cache row c sees cache rows context_begin .. context_end - 1 and own_begin .. c;
//            context_begin is the first of all (where no context is seen,
//            context_begin = context_end = own_begin)
//   k_cache, v_cache  bf16 [KV_HEADS, capacity, HEAD_DIM]
//
// PAGED = 1: rows of many sequences (attention_single.cu has those of single tokens), each with
// keys and values in pages of PREFILL_KEYS tokens, so that a tile of keys is a page. A block's rows
// are those of one of `tiles`, {first row in q and out, rows (1 to 64; 0: none), position of the
// first row, where its pages begin in `tables`}.
//   k_cache, v_cache  KvUnit [pages, KV_HEADS, PREFILL_KEYS, KV_UNITS], bf16 or codes; of codes
//   k_scales, v_scales  u8 [pages, KV_HEADS, PREFILL_KEYS, KV_SCALES]  (kv_codes.cuh)
//   grid: (HEADS, tiles). Keys are taken from position 0 on in tiles of PREFILL_KEYS, whatever else
//   is in the step, so a row's result is the same bits however its sequence is cut and whatever it
//   is computed beside.
//
// attention_prefill out[i, h, :] =
//                     sum_j softmax_j(q[i, h, :] . k[j, h', :] / sqrt(HEAD_DIM)) v[j, h', :],
//                   h' = h / (HEADS / KV_HEADS), j <= past + i (with WINDOW > 0 also
//                   j > past + i - WINDOW), or the cache rows that row i sees (then WINDOW is in
//                   `seen`). SCORES_BITS replaces 1 / sqrt(HEAD_DIM) by the f32 of these bits; with
//                   SOFT_CAP_BITS what is scaled becomes c tanh(x / c) before the softmax
//   q        bf16 [rows, HEADS HEAD_DIM], rotated
//   out      bf16 [rows, OUT_STRIDE], plain or (X_INT4 = 1) in int4 order, zeros beyond
//            HEADS HEAD_DIM
//   grid: (HEADS, ceil(rows / (64 PREFILL_WARPGROUPS))), block: 128 PREFILL_WARPGROUPS.
//   The last rows see most keys, so their blocks come first.
//
//   Flash attention with wgmma: a warpgroup owns 64 queries, S = Q K^T and O += P V accumulate in
//   registers, and S, as it lies there, is P's fragment. Tile j + 1's S is computed before tile j's
//   P V, so that the tensor cores work on P V during the softmax of the next tile. Keys and values
//   come by cp.async, two tiles of each at a time.
//   Shared memory holds a tile as panels of 32 elements: [HEAD_DIM / 32][tokens][32], with the
//   64-byte swizzle. That is a wgmma operand for K (contiguous along HEAD_DIM, the summed
//   dimension) as well as for V (contiguous along N), for every HEAD_DIM.
//   Codes of fewer bits than bf16 (in pages) come as they are, RING tiles of each, and the block
//   widens a tile of keys and one of values between two barriers: their elements in the order of
//   attention_codes.cuh, in which queries are put, too. Values times scales are exact.
//
// Macros: HEADS, KV_HEADS, HEAD_DIM (32, 64, 96, 128, 256), WINDOW (0: none), X_INT4, PACKED,
// PAGED, PREFILL_WARPGROUPS (2, or 1: a little faster for up to 512 rows, but keys and values are
// read twice as often), DYNAMIC_SHARED (what the launch has); where a family asks for it,
// SCORES_BITS and SOFT_CAP_BITS; KV_CODE and what it may be.
#ifndef PACKED
#define PACKED 0
#endif
#ifndef PAGED
#define PAGED 0
#endif
// Blocks an SM, as far as registers go.
#if HEAD_DIM > 128
#define PREFILL_BLOCKS 1
#elif HEAD_DIM > 64 && HEAD_DIM <= 96 && defined KV_CODE
#define PREFILL_BLOCKS 3 // as many as there is shared memory for
#else
#define PREFILL_BLOCKS ((HEAD_DIM <= 96 && !PACKED ? 4 : 2) / PREFILL_WARPGROUPS)
#endif
#define RING 2
#define THREADS (128 * PREFILL_WARPGROUPS)
#include "attention.cuh"
#include "wgmma.cuh"
#if KV_CODE != KV_BF16
#include "attention_codes.cuh"
#endif

template <int PENDING> DEVICE void wait_for_tiles() { // and lets wgmma see them, after a barrier
    wait_for_copies<PENDING>();
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

static_assert(HEAD_DIM % 32 == 0 && (HEAD_DIM <= 128 || HEAD_DIM == 256) && HEADS % KV_HEADS == 0,
              "shape");
static_assert(!PAGED || (!PACKED && PREFILL_WARPGROUPS == 1), "a block of pages has one warpgroup");
static_assert(PAGED || KV_CODE == KV_BF16, "codes lie in pages");

constexpr int TILE_ROWS = 64 * PREFILL_WARPGROUPS;
constexpr int Q_PANEL = 64 * TILE_ROWS, Q_BYTES = HEAD_DIM / 32 * Q_PANEL;
constexpr int OUT_WORDS = HEAD_DIM / 2;      // of a row of the block's output
constexpr int STAGED_STRIDE = OUT_WORDS + 4; // that in shared memory, spread over the banks
#if KV_CODE == KV_BF16
constexpr int WIDE_TILES = RING; // of keys, and of values
static_assert(Q_BYTES + 2 * RING * KV_BYTES == DYNAMIC_SHARED,
              "queries, and RING tiles of keys and of values");
#else
constexpr int WIDE_TILES = 1;
static_assert(Q_BYTES + 2 * (KV_BYTES + RING * CODES_BYTES) == DYNAMIC_SHARED,
              "queries, a tile of keys and one of values, and RING of each in codes");
#endif
static_assert(TILE_ROWS * STAGED_STRIDE * 4 <= Q_BYTES + 2 * WIDE_TILES * KV_BYTES,
              "the output is staged where the tiles were");

// A matrix of panels with the 64-byte swizzle: 8 rows are 512 bytes. `panels`: bytes from a panel
// to the next, if the contiguous dimension is not the summed one.
DEVICE u64 panels_descriptor(u32 address, u32 panels) {
    return (u64)(address >> 4) | (u64)(panels >> 4) << 16 | (u64)(512 >> 4) << 32 | (u64)2 << 62;
}

// c[64, PREFILL_KEYS] (+)= a b, a and b from shared memory, contiguous along the summed dimension.
DEVICE void multiply_keys(float (&c)[PREFILL_KEYS / 2], u64 a, u64 b, int accumulate) {
    static_assert(PREFILL_KEYS == 64, "the product's N");
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" L32
                 "}, %32, %33, p, 1, 1, 0, 0;\n}\n"
                 : C16(0), C16(16)
                 : "l"(a), "l"(b), "r"(accumulate));
}

#define MULTIPLY(n, list, inputs, ...) MULTIPLY_BY(b, n, list, inputs, __VA_ARGS__)
#define MULTIPLY_BY(b, n, list, inputs, ...)                                                       \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" list "}, " inputs    \
                 ", 1, 1, 1, 1;\n"                                                                 \
                 : __VA_ARGS__                                                                     \
                 : "r"(p[0]), "r"(p[1]), "r"(p[2]), "r"(p[3]), "l"(b))
// c[64, HEAD_DIM] += p b, p a fragment of 64 x 16, b from shared memory, contiguous along HEAD_DIM.
DEVICE void multiply_values(float (&c)[HEAD_DIM / 2], const u32 *p, u64 b) {
#if HEAD_DIM == 32
    MULTIPLY(32, L16, "{%16, %17, %18, %19}, %20", C16(0));
#elif HEAD_DIM == 64
    MULTIPLY(64, L32, "{%32, %33, %34, %35}, %36", C16(0), C16(16));
#elif HEAD_DIM == 96
    MULTIPLY(96, L48, "{%48, %49, %50, %51}, %52", C16(0), C16(16), C16(32));
#elif HEAD_DIM == 256
    // Two halves of 128 columns, four panels each.
    const u64 second = b + (4 * KV_PANEL >> 4);
    MULTIPLY(128, L64, "{%64, %65, %66, %67}, %68", C16(0), C16(16), C16(32), C16(48));
    MULTIPLY_BY(second, 128, L64, "{%64, %65, %66, %67}, %68", C16(64), C16(80), C16(96), C16(112));
#else
    MULTIPLY(128, L64, "{%64, %65, %66, %67}, %68", C16(0), C16(16), C16(32), C16(48));
#endif
}

// A thread's two rows (r and r + 8 of its warp's 16): running maximum of the scores, sum of its
// weights.
struct Rows {
    float max[2], sum[2];
};

// Scores of a tile -> weights, relative to the new running maximum; rescale = what older weights
// are worth now. Scores s[4 n .. 4 n + 3] are columns 8 n + 2 t, 8 n + 2 t + 1 of row r, then of
// row r + 8.
DEVICE void softmax(float (&s)[PREFILL_KEYS / 2], Rows &rows, float rescale[2]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) rescale[h] = softmax_row<4>(s + 2 * h, rows.max[h], rows.sum[h]);
}

#if KV_CODE != KV_BF16
// Queries of a head, whose rows are HEADS HEAD_DIM elements apart, into their tile in the order of
// keys' elements; zeros from row `end` on.
DEVICE void place_queries(u8 *tile, const u16 *from, int end) {
    constexpr int UNITS = HEAD_DIM / 8 / KV_PARTS; // of KV_PARTS pieces
#pragma unroll 1
    for (int index = threadIdx.x; index < TILE_ROWS * UNITS; index += THREADS) {
        const int row = index % TILE_ROWS, unit = index / TILE_ROWS;
        u32 words[4 * KV_PARTS] = {};
        if (row < end) {
            const u16 *at = from + (u64)row * (HEADS * HEAD_DIM) + unit * 8 * KV_PARTS;
#pragma unroll
            for (int i = 0; i < KV_PARTS; ++i) {
                const uint4 four = ((const uint4 *)at)[i];
                words[4 * i] = four.x, words[4 * i + 1] = four.y;
                words[4 * i + 2] = four.z, words[4 * i + 3] = four.w;
            }
        }
#pragma unroll
        for (int i = 0; i < KV_PARTS; ++i)
            *(uint4 *)(tile + piece_offset(row, KV_PARTS * unit + i, Q_PANEL)) =
                make_uint4(query_word(words, i, 0), query_word(words, i, 1),
                           query_word(words, i, 2), query_word(words, i, 3));
    }
}

// A tile of codes into bf16; zeros from row `end` on. Eight lanes have eight rows' same piece, so
// that neither codes nor what is widened meet a bank twice.
DEVICE void widen_tile(u8 *wide, const u8 *tile, int end) {
    constexpr int PIECES = PREFILL_KEYS * KV_PIECES;
#pragma unroll 1 // registers are products'
    for (int index = threadIdx.x; index < PIECES; index += THREADS) {
        const int row = index % PREFILL_KEYS, piece = index / PREFILL_KEYS;
        const uint4 codes = *(const uint4 *)(tile + code_offset(row, piece));
        const u8 *scales = tile + SCALES_AT + row * KV_SCALES;
        const u32 scale = row < end ? scale_bf16(scales[KV_SCALES > 1 ? piece : 0]) : 0;
        const PairScale by(scale | scale << 16);
#pragma unroll
        for (int i = 0; i < KV_PARTS; ++i)
            *(uint4 *)(wide + piece_offset(row, KV_PARTS * piece + i)) =
                make_uint4(scaled_pair(codes.x, i, by), scaled_pair(codes.y, i, by),
                           scaled_pair(codes.z, i, by), scaled_pair(codes.w, i, by));
    }
}
#endif

KERNEL __launch_bounds__(THREADS, PREFILL_BLOCKS)
#if PAGED
    attention_prefill(const u16 *q, const KvUnit *k_cache, const KvUnit *v_cache,
                      SCALE_ARGUMENTS int capacity, const int4 *tiles, const int *tables,
                      u16 *out) {
    let_next_kernel_start();
    // The host wrote these before the step's first kernel.
    const int4 of = tiles[blockIdx.y];
    const int rows = of.y, past = of.z;
    if (rows == 0) return;
    const int *pages = tables + of.w;
    q += (u64)of.x * (HEADS * HEAD_DIM);
    out += (u64)of.x * OUT_STRIDE;
    constexpr int first_row = 0;
#else
    attention_prefill(const u16 *q, const u16 *k_cache, const u16 *v_cache, int capacity, int rows,
                      int past, const int4 *seen, u16 *out) {
    let_next_kernel_start();
    const int first_row = (gridDim.y - 1 - blockIdx.y) * TILE_ROWS;
#endif
    extern __shared__ __align__(1024) u8 shared[];
    const u32 q_tile = shared_address(shared), k_tiles = q_tile + Q_BYTES,
              v_tiles = k_tiles + WIDE_TILES * KV_BYTES;

    const int head = blockIdx.x;
    const int warpgroup = PREFILL_WARPGROUPS > 1 ? warpgroup_of_thread() : 0,
              lane = threadIdx.x % 32, t = lane % 4;
    const int group_row = first_row + 64 * warpgroup; // the warpgroup's first
    // The thread's rows are this one and row + 8.
    const int row = group_row + threadIdx.x % 128 / 32 * 16 + lane / 4;
    const int last_row = min(first_row + TILE_ROWS, rows) - 1,
              last_group_row = min(group_row + 63, rows - 1);

    wait_for_previous_kernel();
#if PACKED
    // What this thread's two rows see, and the first that some row of the block does.
    const int4 sees[2] = {seen[min(row, rows - 1)], seen[min(row + 8, rows - 1)]};
    __shared__ int first_seen[THREADS / 32];
    const int warp_first = __reduce_min_sync(0xffffffffu, min(sees[0].x, sees[1].x));
    if (lane == 0) first_seen[threadIdx.x / 32] = warp_first;
    sync_threads(1, THREADS);
    int block_first = first_seen[0];
#pragma unroll
    for (int i = 1; i < THREADS / 32; ++i) block_first = min(block_first, first_seen[i]);
    const int begin = block_first / PREFILL_KEYS;
#else
    const int begin = WINDOW > 0 ? max(past + first_row - WINDOW + 1, 0) / PREFILL_KEYS : 0;
#endif
    // Tiles of keys that some row of the block sees; of the warpgroup (none, if it has no rows).
    const int end = (past + last_row) / PREFILL_KEYS + 1;
    const int group_end = group_row < rows ? (past + last_group_row) / PREFILL_KEYS + 1 : begin;

#if KV_CODE == KV_BF16
    // What a thread copies of every tile. The compiler would rather make these anew for each than
    // keep them, in four times the instructions that the copies are.
    const int positions = PAGED ? PREFILL_KEYS : capacity; // of a head, one after the other
    const u64 from_head = (u64)(head / GROUP) * positions * HEAD_DIM + piece_of_tile(HEAD_DIM);
    const u16 *keys_from = k_cache + from_head, *values_from = v_cache + from_head;
    u32 keys_to = k_tiles + place_in_tile();
    int present = past + rows - (int)threadIdx.x / 4; // rows of the cache, from the thread's first
    asm volatile("" : "+l"(keys_from), "+l"(values_from), "+r"(keys_to), "+r"(present));
    auto copy_keys_or_values = [&](u32 to, const u16 *from, int tile) {
        if (tile >= end) return;
#if PAGED
        from += (u64)__ldg(pages + tile) * (KV_HEADS * PREFILL_KEYS * HEAD_DIM);
#else
        from += (u64)tile * (PREFILL_KEYS * HEAD_DIM);
#endif
        copy_pieces<PREFILL_KEYS>(to + tile % RING * KV_BYTES, from, HEAD_DIM,
                                  present - tile * PREFILL_KEYS);
    };
    auto copy_keys = [&](int tile) { copy_keys_or_values(keys_to, keys_from, tile); };
    auto copy_values = [&](int tile) {
        copy_keys_or_values(keys_to + RING * KV_BYTES, values_from, tile);
    };
#else
    // Codes of keys, RING tiles, and behind them of values.
    u8 *codes = shared + Q_BYTES + 2 * KV_BYTES;
    auto codes_of = [&](int is_value, int tile) {
        return codes + (is_value * RING + tile % RING) * CODES_BYTES;
    };
    auto copy_keys_or_values = [&](int is_value, int tile) {
        if (tile >= end) return;
        const u64 first = ((u64)__ldg(pages + tile) * KV_HEADS + head / GROUP) * PREFILL_KEYS;
        copy_codes(shared_address(codes_of(is_value, tile)),
                   (is_value ? v_cache : k_cache) + first * KV_ROW,
                   (is_value ? v_scales : k_scales) + first * KV_SCALES,
                   past + rows - tile * PREFILL_KEYS);
    };
    auto copy_keys = [&](int tile) { copy_keys_or_values(0, tile); };
    auto copy_values = [&](int tile) { copy_keys_or_values(1, tile); };
    // Into the tile of keys, or of values, which products no longer read. Seen by them after a
    // barrier.
    auto widen = [&](int is_value, int tile) {
        if (tile < end)
            widen_tile(shared + Q_BYTES + is_value * KV_BYTES, codes_of(is_value, tile),
                       past + rows - tile * PREFILL_KEYS);
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    };
#endif

    float s[PREFILL_KEYS / 2], o[HEAD_DIM / 2], rescale[2];
    u32 p[PREFILL_KEYS / 4];
    Rows running = {{LOWEST, LOWEST}, {0.0f, 0.0f}};
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 2; ++i) o[i] = 0.0f;

    auto start_scores = [&](int tile) {
        const u64 a = panels_descriptor(q_tile + 64 * 64 * warpgroup, 16);
        const u64 b = panels_descriptor(k_tiles + tile % WIDE_TILES * KV_BYTES, 16);
#pragma unroll
        for (int step = 0; step < HEAD_DIM / 16; ++step)
            multiply_keys(s, a + (step / 2 * Q_PANEL + step % 2 * 32 >> 4),
                          b + (step / 2 * KV_PANEL + step % 2 * 32 >> 4), step > 0);
        wgmma_commit();
    };
    auto start_output = [&](int tile) {
        const u64 b = panels_descriptor(v_tiles + tile % WIDE_TILES * KV_BYTES, KV_PANEL);
#pragma unroll
        for (int step = 0; step < PREFILL_KEYS / 16; ++step)
            multiply_values(o, p + 4 * step, b + (16 * 64 * step >> 4));
        wgmma_commit();
    };
    auto weigh = [&](int tile) { // mask and softmax
        const int first_key = tile * PREFILL_KEYS;
#ifdef SOFT_CAP_BITS
#pragma unroll
        for (int i = 0; i < PREFILL_KEYS / 2; ++i) s[i] = capped(s[i]);
#endif
#if PACKED
        // Mostly all of a warp's rows see the whole tile.
        bool whole = true;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int last_key = first_key + PREFILL_KEYS - 1;
            whole &= (first_key >= sees[h].x && last_key < sees[h].y) ||
                     (first_key >= sees[h].z && last_key <= past + row + 8 * h);
        }
        if (!__all_sync(0xffffffffu, whole))
#pragma unroll
            for (int i = 0; i < PREFILL_KEYS / 2; ++i) {
                const int key = first_key + i / 4 * 8 + 2 * t + i % 2, h = i / 2 % 2;
                const bool in_context = key >= sees[h].x && key < sees[h].y;
                if (!in_context && (key < sees[h].z || key > past + row + 8 * h)) s[i] = MASKED;
            }
#else
        if (first_key + PREFILL_KEYS - 1 > past + group_row ||
            (WINDOW > 0 && first_key <= past + group_row + 63 - WINDOW))
#pragma unroll
            for (int i = 0; i < PREFILL_KEYS / 2; ++i) {
                const int key = first_key + i / 4 * 8 + 2 * t + i % 2,
                          position = past + row + i / 2 % 2 * 8;
                if (key > position || (WINDOW > 0 && key <= position - WINDOW)) s[i] = MASKED;
            }
#endif
        softmax(s, running, rescale);
    };
    auto pack_weights = [&]() {
#pragma unroll
        for (int i = 0; i < PREFILL_KEYS / 4; ++i) p[i] = bf16_pair(s[2 * i], s[2 * i + 1]);
    };
    // After it this tile's values and the next tile's keys are there and the tiles before are no
    // longer in use; the last values and keys that the ring has room for are on their way.
    auto next_tiles = [&](int tile) {
        wait_for_tiles<RING - 2>();
        sync_threads(1, THREADS);
        copy_values(tile + RING - 1);
        copy_keys(tile + RING);
        commit_copies();
#if KV_CODE != KV_BF16
        widen(0, tile + 1);
        widen(1, tile);
        sync_threads(1, THREADS);
#endif
    };
    auto copy_queries = [&]() {
#if KV_CODE != KV_BF16
        place_queries(shared, q + head * HEAD_DIM, rows);
#else
        copy_tile<TILE_ROWS>(q_tile, q + ((u64)first_row * HEADS + head) * HEAD_DIM,
                             HEADS * HEAD_DIM, rows - first_row);
#endif
    };

    copy_queries();
    copy_keys(begin);
    commit_copies();
#pragma unroll
    for (int i = 0; i < RING - 1; ++i) {
        copy_values(begin + i);
        copy_keys(begin + i + 1);
        commit_copies();
    }
    wait_for_tiles<RING - 1>();
    sync_threads(1, THREADS);
#if KV_CODE != KV_BF16
    widen(0, begin);
    sync_threads(1, THREADS);
#endif
    int tile = begin;
    if (begin < group_end) {
        wgmma_fence();
        start_scores(begin);
        wgmma_wait<0>(s);
        weigh(begin);
        pack_weights();
        for (; tile < group_end - 1; ++tile) {
            next_tiles(tile);
            wgmma_fence();
            start_scores(tile + 1);
            start_output(tile);
            wgmma_wait<1>(s);
            weigh(tile + 1);
            // Mostly no maximum grows, and nothing needs rescaling.
            const bool rescales = __any_sync(0xffffffffu, rescale[0] != 1.0f || rescale[1] != 1.0f);
            // The softmax comes before the wait, while the tensor cores work: a branch, which is
            // never taken, keeps ptxas from moving the wait ahead of it. Not the one below: a
            // warpgroup's warps must all wait at one place.
            if (capacity == 0)
                asm volatile("wgmma.wait_group.sync.aligned 0;\n\ttrap;" ::: "memory");
            wgmma_wait<0>(o);
            if (rescales)
#pragma unroll
                for (int i = 0; i < HEAD_DIM / 2; ++i) o[i] *= rescale[i / 2 % 2];
            pack_weights();
        }
        next_tiles(tile);
        wgmma_fence();
        start_output(tile);
        wgmma_wait<0>(o);
        ++tile;
    }
#if KV_CODE == KV_BF16
    for (; tile < end; ++tile) next_tiles(tile); // the other warpgroups' tiles
#endif

    // Through shared memory, for whole sectors to write.
    sync_threads(1, THREADS);
    u32 *staged = (u32 *)shared;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        float sum = running.sum[h];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        const float inverse = 1.0f / sum;
        u32 *to = staged + (row - first_row + 8 * h) * STAGED_STRIDE;
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 8; ++n) {
            const float low = o[4 * n + 2 * h] * inverse, high = o[4 * n + 2 * h + 1] * inverse;
#if KV_CODE != KV_BF16
            // The columns of word t of a piece's pair n % KV_PARTS.
            const int column = 8 * KV_PARTS * (n / KV_PARTS) + 2 * KV_PARTS * t + n % KV_PARTS;
            ((u16 *)to)[column] = bf16_of(low), ((u16 *)to)[column + KV_PARTS] = bf16_of(high);
#elif X_INT4
            // Columns 2 t and 2 t + 1 of eight; lanes t and t + 2 exchange one, for pairs
            // (i, i + 4).
            const float other = __shfl_xor_sync(0xffffffffu, t < 2 ? high : low, 2);
            const int i = t < 2 ? 2 * t : 2 * t - 3;
            to[(n % 4 * 4 + i) * (HEAD_DIM / 32) + n / 4] =
                t < 2 ? bf16_pair(low, other) : bf16_pair(other, high);
#else
            to[4 * n + t] = bf16_pair(low, high);
#endif
        }
    }
    sync_threads(1, THREADS);
    constexpr int SEGMENTS = HEAD_DIM / 32;
    for (int index = threadIdx.x; index < TILE_ROWS * OUT_WORDS; index += THREADS) {
        const int i = index / OUT_WORDS, word = index % OUT_WORDS;
        const int segment = X_INT4 ? word % SEGMENTS : word / 16,
                  pair = X_INT4 ? word / SEGMENTS : word % 16;
#if KV_CODE == KV_BF16
        const u32 two = staged[i * STAGED_STRIDE + word];
#else
        const u32 two =
            staged_word((const u16 *)(staged + i * STAGED_STRIDE), 16 * segment + pair);
#endif
        if (first_row + i < rows)
            ((u32 *)out)[(u64)(first_row + i) * (OUT_STRIDE / 2) +
                         output_word(head * SEGMENTS + segment, pair)] = two;
    }
    constexpr int PADDING = OUT_STRIDE / 32 - HEADS * SEGMENTS; // segments beyond the last head
    if (PADDING > 0 && head == HEADS - 1)
        for (int index = threadIdx.x; index < TILE_ROWS * PADDING * 16; index += THREADS) {
            const int i = index / (PADDING * 16 + (PADDING == 0)),
                      word = index % (PADDING * 16 + (PADDING == 0));
            if (first_row + i < rows)
                ((u32 *)out)[(u64)(first_row + i) * (OUT_STRIDE / 2) +
                             output_word(HEADS * SEGMENTS + word / 16, word % 16)] = 0;
        }
}
