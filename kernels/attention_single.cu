// Attention of single tokens: rows of many sequences, each the one new token of its tile, with keys
// and values in pages of PREFILL_KEYS tokens.
//
//   out[i, h, :] = sum_j softmax_j(q[i, h, :] . k[j, h', :] / sqrt(HEAD_DIM)) v[j, h', :]
//   with h' = h / (HEADS / KV_HEADS), over the positions j up to the token's own (with WINDOW > 0
//   also j > position - WINDOW); SCORES_BITS and SOFT_CAP_BITS as in attention_prefill.cu
//   tiles    for each {row in q and out, 1 (0: none), position, where its pages begin in `tables`}
//   q        bf16 [rows, HEADS HEAD_DIM], rotated
//   k_cache, v_cache  KvUnit [pages, KV_HEADS, PREFILL_KEYS, KV_UNITS], bf16 or codes; of codes
//            k_scales, v_scales  u8 [pages, KV_HEADS, PREFILL_KEYS, KV_SCALES]  (kv_codes.cuh)
//   out      bf16 [rows, OUT_STRIDE], plain or (X_INT4 = 1) in int4 order, zeros beyond
//            HEADS HEAD_DIM
//   grid: (KV_HEADS QUERY_TILES, tiles), block: THREADS
//
// ROTATES = 1: no sequence has two tiles (a draft's tokens have one each), so all its keys and
//   values but the new ones are of earlier steps, and are on their way before the kernel ahead has
//   ended. The kernel then does rope.cu's work, too, one kernel less between product and attention:
//   q is the product's result, the row's queries, keys and values; the new key and value go into
//   their tiles and into the cache.
//   q        bf16 [rows, (HEADS + 2 KV_HEADS) HEAD_DIM], not rotated
//   table, bias, q_norm, k_norm  as rope.cu has them
// ROTATES = 0: pages before the token's own are of earlier steps.
//
// A row has the bits that attention_prefill.cu gives it: keys are taken from the first page on, a
// tile at a time, and sums are in its order. mma.sync and wgmma add up alike (kernels/NOTES.md),
// but with mma.sync four warps share a row's work: each has 16 keys of a tile's scores, then all
// keys for a quarter of the output's columns. wgmma has a tile of 64 rows of which one is needed,
// and one warp's softmax of 16 rows between its two products. The queries that share a key are rows
// of the same mma.
// Scores pass through shared memory, for one barrier a tile: in between, tile j + 1's scores are
// computed beside tile j's softmax and output. Keys and values come by cp.async, RING tiles of each
// at a time, as panels with a swizzle (attention.cuh), so that ldmatrix meets no bank twice.
//
// Codes of fewer bits than bf16 stay codes in shared memory (attention_codes.cuh): a tile is read
// by ldmatrix as if two or four of them were a bf16, and a lane widens what it has, in registers.
// Scales of fp8 and int8 are powers of two, which a product's sum, or its other factor, is
// multiplied with as well as the codes; int4's are multiplied with the codes. Nothing is rounded on
// the way, so that the bits are those of attention_prefill.cu, which widens a tile. The warp that
// rotates the new key or value encodes it: this step, too, attends to what is cached.
//
// Macros: HEADS, KV_HEADS, HEAD_DIM (32, 64, 96, 128, 256), WINDOW (0: none), X_INT4, ROTATES, RING
// (2 or more), THREADS (128), DYNAMIC_SHARED (what the launch has), STATIC_SHARED (what there is
// beside it, at most); where a family asks for it, SCORES_BITS and SOFT_CAP_BITS; with ROTATES
// those of rotate.cuh; KV_CODE and what it may be.
#include "attention.cuh"
#if KV_CODE != KV_BF16
#include "attention_codes.cuh"
#endif
#if ROTATES
#include "head_part.cuh"
#endif

constexpr int WARPS = THREADS / 32;
constexpr int QUERY_TILES = (GROUP + 15) / 16;   // of the queries that share a key
constexpr int QUERIES = GROUP < 16 ? GROUP : 16; // of a tile
constexpr int HALVES = QUERIES > 8 ? 2 : 1;      // a lane's rows of an mma: lane / 4, and 8 more
constexpr int KEY_STEPS = HEAD_DIM / 16, VALUE_STEPS = PREFILL_KEYS / 16;
constexpr int OUT_BLOCKS = HEAD_DIM / 8 / WARPS; // of 8 columns, a warp's
constexpr int PITCH = PREFILL_KEYS + 8;          // of a row of scores, spread over the banks
static_assert(THREADS == 128 && PREFILL_KEYS == 16 * WARPS && HEAD_DIM % (8 * WARPS) == 0,
              "a warp's share");
#if KV_CODE == KV_BF16
constexpr int TILE_BYTES = KV_BYTES;
#else
constexpr int TILE_BYTES = CODES_BYTES;
#endif
static_assert(2 * RING * TILE_BYTES == DYNAMIC_SHARED, "RING tiles of keys and of values");
static_assert(QUERIES * (2 * HEAD_DIM + 8 * PITCH) + 4 * HEAD_DIM <= STATIC_SHARED,
              "queries, scores, the new key and value");

#include "attention_single_outputs.cuh"

#if ROTATES
#define ROTATION_ARGUMENTS , const float *table BIAS_ARGUMENT NORM_ARGUMENTS
#else
#define ROTATION_ARGUMENTS
#endif

// A tile of `k` or `v` from `page`, as far as there are rows.
#if KV_CODE == KV_BF16
#define COPY_TILE(k, rows)                                                                         \
    copy_tile<PREFILL_KEYS>(k##_tiles + tile % RING * TILE_BYTES,                                  \
                            k##_cache + offset_of(page, HEAD_DIM), HEAD_DIM, rows,                 \
                            ROTATES && tile == last ? own_row : -1)
#else
#define COPY_TILE(k, rows)                                                                         \
    copy_codes(k##_tiles + tile % RING * TILE_BYTES, k##_cache + offset_of(page, KV_ROW),          \
               k##_scales + offset_of(page, KV_SCALES), rows,                                      \
               ROTATES && tile == last ? own_row : -1)
#endif

KERNEL __launch_bounds__(THREADS, HEAD_DIM <= 96 ? 4 : HEAD_DIM <= 128 ? 3 : 1)
    attention_single(const u16 *q, KvUnit *k_cache, KvUnit *v_cache,
                     SCALE_ARGUMENTS const int4 *tiles, const int *tables,
                     u16 *out ROTATION_ARGUMENTS) {
    let_next_kernel_start();
    // The host wrote these before the step's first kernel.
    const int4 of = tiles[blockIdx.y];
    const int past = of.z;
    if (of.y == 0) return;
    const int *pages = tables + of.w;
    const int kv_head = blockIdx.x / QUERY_TILES, query_tile = blockIdx.x % QUERY_TILES;
    const int first_head = kv_head * GROUP + 16 * query_tile;
    const int queries =
        GROUP % 16 == 0 || QUERY_TILES == 1 ? QUERIES : min(GROUP - 16 * query_tile, 16);

    extern __shared__ __align__(128) u8 shared[];
    __shared__ __align__(16) float scores[2][QUERIES][PITCH];
    const u32 k_tiles = shared_address(shared), v_tiles = k_tiles + RING * TILE_BYTES;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, r = lane / 4, t = lane % 4;

    const int begin = WINDOW > 0 ? max(past - WINDOW + 1, 0) / PREFILL_KEYS : 0;
    const int last = past / PREFILL_KEYS, end = last + 1;
    const int own_row = past % PREFILL_KEYS; // of the last tile
    auto page_of = [&](int tile) { return __ldg(pages + min(tile, last)); };
    auto offset_of = [&](int page, int of_row) {
        return ((u64)page * KV_HEADS + kv_head) * (PREFILL_KEYS * of_row);
    };
    auto copy_keys = [&](int tile, int page) {
        if (tile < end) COPY_TILE(k, past + 1 - tile * PREFILL_KEYS);
    };
    auto copy_values = [&](int tile, int page) {
        if (tile < end) COPY_TILE(v, past + 1 - tile * PREFILL_KEYS);
    };
    int first_pages[RING + 1];
#pragma unroll
    for (int i = 0; i <= RING; ++i) first_pages[i] = page_of(begin + i);
    auto copy_first_keys = [&](int i) { copy_keys(begin + i, first_pages[i]); };
    auto copy_first_values = [&](int i) { copy_values(begin + i, first_pages[i]); };

    u32 query[KEY_STEPS][2 * HALVES]; // the fragment's row r, and r + 8
#if ROTATES
    __shared__ __align__(16) u16 rotated[QUERIES][HEAD_DIM], fresh[2][HEAD_DIM];
    HeadPart part;
    auto place_fresh = [&](int is_value) {
        if (warp != (queries + is_value) % WARPS) return;
        u8 *tile = shared + (is_value * RING + last % RING) * TILE_BYTES;
#if KV_CODE == KV_BF16
        part.place(fresh[is_value], tile, own_row);
#else
        if (lane < KV_PIECES)
            *(uint4 *)(tile + code_offset(own_row, lane)) = ((const uint4 *)fresh[is_value])[lane];
#endif
    };
    copy_first_keys(0);
    commit_copies();
#pragma unroll
    for (int i = 1; i < RING; ++i) {
        copy_first_values(i - 1);
        copy_first_keys(i);
        commit_copies();
    }
    const int own_page = page_of(last);
    wait_for_previous_kernel();
    for (int vector = warp; vector < queries + 2; vector += WARPS) {
        const bool is_query = vector < queries, is_value = vector == queries + 1;
        const int head = is_query ? first_head + vector : HEADS + is_value * KV_HEADS + kv_head;
#if QKV_BIAS
        const float *head_bias = bias + head * HEAD_DIM;
#else
        const float *head_bias = nullptr;
#endif
#if QK_NORM
        const float *weight = is_query ? q_norm : k_norm;
#else
        const float *weight = nullptr;
#endif
        part.load(q + (u64)of.x * QKV_WIDTH + head * HEAD_DIM, table + (u64)of.x * 2 * ROTARY_HALF,
                  is_value, head_bias, weight);
        part.store(is_query ? rotated[vector] : fresh[is_value]);
#if KV_CODE == KV_BF16
        if (!is_query && query_tile == 0)
            part.store((is_value ? v_cache : k_cache) + offset_of(own_page, HEAD_DIM) +
                       own_row * HEAD_DIM);
#else
        if (!is_query)
            encode_fresh(fresh[is_value], query_tile == 0,
                         (is_value ? v_cache : k_cache) + offset_of(own_page, KV_ROW) +
                             own_row * KV_ROW,
                         (is_value ? v_scales : k_scales) + offset_of(own_page, KV_SCALES) +
                             own_row * KV_SCALES);
#endif
    }
    if (last < begin + RING) place_fresh(0);
    if (last < begin + RING - 1) place_fresh(1);
    const u16 *rows = rotated[0];
#else
    // Of two rounds the second has what this step writes.
#pragma unroll
    for (int round = 0; round < 2; ++round) {
        if (round == 1) wait_for_previous_kernel();
#pragma unroll
        for (int i = 0; i < RING; ++i)
            if ((begin + i == last) == round) {
                copy_first_keys(i);
                if (i < RING - 1) copy_first_values(i);
            }
    }
    commit_copies();
#pragma unroll
    for (int i = 1; i < RING; ++i) commit_copies(); // as many as above
    const u16 *rows = q + ((u64)of.x * HEADS + first_head) * HEAD_DIM;
#endif
    wait_for_copies<RING - 1>();
    sync_threads(1, THREADS);
#if KV_CODE != KV_BF16
    // A tile's scales of keys, or of values.
    auto scales_of = [&](int is_value, int tile) {
        return shared + (is_value * RING + tile % RING) * TILE_BYTES + SCALES_AT;
    };
#if ROTATES
    // The new token's into the last tile, once the copy has come over their place: each thread what
    // lies in its own piece.
    auto place_scales = [&](int is_value) {
        if (threadIdx.x >= PREFILL_KEYS * KV_SCALES / 16) return;
        u8 *to = scales_of(is_value, last);
        const u8 *own = (const u8 *)fresh[is_value] + KV_ROW;
#pragma unroll
        for (int g = 0; g < KV_SCALES; ++g)
            if ((own_row * KV_SCALES + g) / 16 == threadIdx.x) to[own_row * KV_SCALES + g] = own[g];
    };
    // What `tile`'s step begins with after its barrier: its values, and the next tile's keys.
    auto place_for = [&](int tile) {
        if (tile + 1 == last) place_scales(0);
        if (tile == last) place_scales(1);
    };
    if (begin == last) {
        place_scales(0);
        sync_threads(1, THREADS);
    }
#endif
#endif
#pragma unroll
    for (int step = 0; step < KEY_STEPS; ++step)
#pragma unroll
        for (int h = 0; h < HALVES; ++h)
#pragma unroll
            for (int high = 0; high < 2; ++high) {
                const int row = r + 8 * h;
#if KV_CODE == KV_BF16
                const u16 *from =
                    rows + min(row, queries - 1) * HEAD_DIM + 16 * step + 8 * high + 2 * t;
                query[step][2 * h + high] = row < queries ? *(const u32 *)from : 0;
#else
                const u16 *from = rows + min(row, queries - 1) * HEAD_DIM;
                const u32 two = two_of(from, key_element(step, high, t, 0),
                                       key_element(step, high, t, 1));
                query[step][2 * h + high] = row < queries ? two : 0;
#endif
            }
    // a0 .. a3 of an mma from a row's two words and those of the row 8 below.
    auto multiply = [&](float (&c)[4], const u32 (&a)[2 * HALVES], u32 b0, u32 b1) {
        mma_bf16(c, a[0], HALVES == 2 ? a[2 * HALVES - 2] : 0, a[1],
                 HALVES == 2 ? a[2 * HALVES - 1] : 0, b0, b1);
    };

#if KV_CODE != KV_BF16
    // The scales of an even row of a tile and of the one behind it, codes in bytes 0 and 1.
    auto two_scales = [&](int is_value, int tile, int row, int group) -> u32 {
        const u8 *from = scales_of(is_value, tile) + row * KV_SCALES + group;
        return KV_SCALES == 1 ? *(const u16 *)from : from[0] | (u32)from[KV_SCALES] << 8;
    };
    // Those of two values as a pair of bf16; in the last tile 0 behind the new one: what lies there
    // must not meet a weight of 0.
    auto value_pair = [&](int tile, bool is_last, int row, int group) {
        const u32 codes = two_scales(1, tile, row, group);
#if KV_CODE == KV_INT4
        u32 pair = scale_bf16(codes & 255) | scale_bf16(codes >> 8) << 16;
#else
        u32 pair = __byte_perm(codes, 0, 0x4140) << 7; // exponents of bf16
#endif
        if (is_last && row + 1 > own_row) pair &= row > own_row ? 0 : 0xffffu;
        return pair;
    };
#endif

    // This warp's 16 keys of a tile.
    auto score = [&](int tile) {
        const u32 base = k_tiles + tile % RING * TILE_BYTES;
        float c[2][4] = {};
#if KV_CODE != KV_BF16
#pragma unroll
        for (int piece = 0; piece < KV_PIECES; piece += 2) {
            // Two pieces, each of keys 0 to 7 and 8 to 15; of an odd number the last one twice.
            const int row = 16 * warp + lane % 16;
            const int own_piece = piece + 1 < KV_PIECES ? piece ^ lane / 16 : piece;
            u32 words[4];
            load_matrices(words, base + code_offset(row, own_piece));
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int own = piece + i / 2;
                if (own >= KV_PIECES) break;
#if KV_CODE == KV_INT4
                const int key = 16 * warp + i % 2 * 8 + r;
                const u32 scale = scale_bf16(scales_of(0, tile)[key * KV_SCALES + own]);
                const PairScale by(scale | scale << 16);
#pragma unroll
                for (int step = 0; step < 2; ++step)
                    multiply(c[i % 2], query[2 * own + step], scaled_pair(words[i], 2 * step, by),
                             scaled_pair(words[i], 2 * step + 1, by));
#else
                multiply(c[i % 2], query[own], code_pair(words[i], 0), code_pair(words[i], 1));
#endif
            }
        }
#if KV_CODE != KV_INT4
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            const u32 codes = two_scales(0, tile, 16 * warp + 8 * j + 2 * t, 0);
            const float low = kv_scale(codes & 255), high = kv_scale(codes >> 8);
#pragma unroll
            for (int h = 0; h < HALVES; ++h) c[j][2 * h] *= low, c[j][2 * h + 1] *= high;
        }
#endif
#else
        const int key = 16 * warp + lane / 16 * 8 + lane % 8;
        u32 keys[KEY_STEPS][4];
#pragma unroll
        for (int step = 0; step < KEY_STEPS; ++step)
            load_matrices(keys[step], base + piece_offset(key, 2 * step + lane / 8 % 2));
#pragma unroll
        for (int step = 0; step < KEY_STEPS; ++step) {
            multiply(c[0], query[step], keys[step][0], keys[step][1]);
            multiply(c[1], query[step], keys[step][2], keys[step][3]);
        }
#endif
#pragma unroll
        for (int h = 0; h < HALVES; ++h)
            if (r + 8 * h < QUERIES)
#pragma unroll
                for (int j = 0; j < 2; ++j)
                    *(float2 *)&scores[tile % 2][r + 8 * h][16 * warp + 8 * j + 2 * t] =
                        make_float2(c[j][2 * h], c[j][2 * h + 1]);
    };

    float o[OUT_BLOCKS][4] = {}, running_max[HALVES], running_sum[HALVES];
#pragma unroll
    for (int h = 0; h < HALVES; ++h) running_max[h] = LOWEST, running_sum[h] = 0.0f;
    // A row's scores of a tile, the lane's columns.
    struct Scores {
        float of[HALVES][2 * (PREFILL_KEYS / 8)];
    };
    auto load_scores = [&](int tile) {
        Scores s;
#pragma unroll
        for (int h = 0; h < HALVES; ++h)
#pragma unroll
            for (int n = 0; n < PREFILL_KEYS / 8; ++n) {
                const float2 two =
                    *(const float2 *)&scores[tile % 2][min(r + 8 * h, QUERIES - 1)][8 * n + 2 * t];
                s.of[h][2 * n] = two.x, s.of[h][2 * n + 1] = two.y;
            }
        return s;
    };
    // Their softmax, each warp for itself, and this warp's columns of the output.
    auto attend = [&](int tile, Scores s, bool is_last) {
        const bool masked = WINDOW > 0 || is_last;
        u32 weights[VALUE_STEPS][2 * HALVES];
#if KV_CODE == KV_FP8 || KV_CODE == KV_INT8
        u32 scales[2 * VALUE_STEPS];
#pragma unroll
        for (int i = 0; i < 2 * VALUE_STEPS; ++i)
            scales[i] = value_pair(tile, is_last, 8 * i + 2 * t, 0);
#endif
#pragma unroll
        for (int h = 0; h < HALVES; ++h) {
#ifdef SOFT_CAP_BITS
#pragma unroll
            for (int i = 0; i < 2 * (PREFILL_KEYS / 8); ++i) s.of[h][i] = capped(s.of[h][i]);
#endif
            if (masked)
#pragma unroll
                for (int i = 0; i < 2 * (PREFILL_KEYS / 8); ++i) {
                    const int key = tile * PREFILL_KEYS + i / 2 * 8 + 2 * t + i % 2;
                    if (key > past || (WINDOW > 0 && key <= past - WINDOW)) s.of[h][i] = MASKED;
                }
            const float rescale = softmax_row<2>(s.of[h], running_max[h], running_sum[h]);
#pragma unroll
            for (int n = 0; n < OUT_BLOCKS; ++n) o[n][2 * h] *= rescale, o[n][2 * h + 1] *= rescale;
#pragma unroll
            for (int i = 0; i < 2 * VALUE_STEPS; ++i)
                weights[i / 2][2 * h + i % 2] = bf16_pair(s.of[h][2 * i], s.of[h][2 * i + 1]);
#if KV_CODE == KV_FP8 || KV_CODE == KV_INT8
#pragma unroll
            for (int i = 0; i < 2 * VALUE_STEPS; ++i) {
                u32 &weight = weights[i / 2][2 * h + i % 2];
                weight = pair_times(weight, scales[i]);
            }
#endif
        }
        const u32 base = v_tiles + tile % RING * TILE_BYTES;
#if KV_CODE != KV_BF16
#if KV_CODE == KV_INT4
        PairScale scales[2 * VALUE_STEPS];
#endif
        u32 words[VALUE_STEPS / 2][4]; // of a piece, of eight values each
#pragma unroll
        for (int n = 0; n < OUT_BLOCKS; ++n) {
            const int block = warp * OUT_BLOCKS + n, piece = block / KV_PARTS;
            const int part = OUT_BLOCKS % KV_PARTS == 0 ? n % KV_PARTS : block % KV_PARTS;
#if KV_CODE == KV_INT4
            // A piece is a group. A lane makes the scales of two of its values, and has others'.
            if (n == 0 || part == 0) {
                const u32 own = value_pair(tile, is_last, 2 * lane, piece);
#pragma unroll
                for (int i = 0; i < 2 * VALUE_STEPS; ++i)
                    scales[i] = PairScale(__shfl_sync(0xffffffffu, own, 4 * i + t));
            }
#endif
            if (OUT_BLOCKS % KV_PARTS != 0 || n % KV_PARTS == 0)
#pragma unroll
                for (int half = 0; half < VALUE_STEPS / 2; ++half)
                    load_transposed(words[half], base + code_offset(32 * half + lane, piece));
#pragma unroll
            for (int step = 0; step < VALUE_STEPS; ++step) {
                const u32 *two = words[step / 2] + step % 2 * 2;
#if KV_CODE == KV_INT4
                multiply(o[n], weights[step], scaled_pair(two[0], part, scales[2 * step]),
                         scaled_pair(two[1], part, scales[2 * step + 1]));
#else
                multiply(o[n], weights[step], code_pair(two[0], part), code_pair(two[1], part));
#endif
            }
        }
#else
#pragma unroll
        for (int step = 0; step < VALUE_STEPS; ++step) {
            const int key = 16 * step + lane / 8 % 2 * 8 + lane % 8;
#pragma unroll
            for (int n = 0; n < OUT_BLOCKS; n += 2) {
                // Of an odd number the last is taken twice.
                const int block = warp * OUT_BLOCKS + min(n + lane / 16, OUT_BLOCKS - 1);
                u32 values[4];
                load_transposed(values, base + piece_offset(key, block));
                multiply(o[n], weights[step], values[0], values[1]);
                if (n + 1 < OUT_BLOCKS)
                    multiply(o[n + 1 < OUT_BLOCKS ? n + 1 : n], weights[step], values[2],
                             values[3]);
            }
        }
#endif
    };

    score(begin);
    wait_for_copies<RING - 2>();
#if KV_CODE != KV_BF16 && ROTATES
    place_for(begin);
#endif
    sync_threads(1, THREADS);
    int values_page = first_pages[RING - 1], keys_page = first_pages[RING];
#pragma unroll 1
    for (int tile = begin; tile < last; ++tile) {
        // Before the next tile's are stored, and the page long before it is used: loads in between
        // wait for nothing.
        const Scores s = load_scores(tile);
        const int next_page = page_of(tile + RING + 1);
        // The tile before's values and this one's keys are no longer in use.
        copy_values(tile + RING - 1, values_page);
        copy_keys(tile + RING, keys_page);
        commit_copies();
        values_page = keys_page, keys_page = next_page;
        score(tile + 1);
        attend(tile, s, false);
#if ROTATES
        if (tile + RING - 1 == last) place_fresh(1);
        if (tile + RING == last) place_fresh(0);
#endif
        wait_for_copies<RING - 2>();
#if KV_CODE != KV_BF16 && ROTATES
        place_for(tile + 1);
#endif
        sync_threads(1, THREADS);
    }
    attend(last, load_scores(last), true);
    float inverse[HALVES];
#pragma unroll
    for (int h = 0; h < HALVES; ++h) {
        float sum = running_sum[h];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        inverse[h] = 1.0f / sum;
    }

    put_outputs(out, of.x, first_head, queries, o, inverse, shared);
    constexpr int PADDING =
        OUT_STRIDE / 32 - HEADS * (HEAD_DIM / 32); // segments beyond the last head
    if (PADDING > 0 && blockIdx.x == gridDim.x - 1)
        for (int i = threadIdx.x; i < PADDING * 16; i += THREADS)
            ((u32 *)out)[(u64)of.x * (OUT_STRIDE / 2) +
                         output_word(HEADS * (HEAD_DIM / 32) + i / 16, i % 16)] = 0;
}
