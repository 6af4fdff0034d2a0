// Attention of a decode step: the new token over one sequence's key/value cache.
//
//   out[h, :] = sum_j softmax_j(q[h, :] . k[j, h', :] / sqrt(HEAD_DIM)) v[j, h', :],
//   h' = h / (HEADS / KV_HEADS),
//   over the positions j <= past (with WINDOW > 0 also j > past - WINDOW); row `past` is the new
//   one. SCORES_BITS replaces 1 / sqrt(HEAD_DIM) by an f32; with SOFT_CAP_BITS what is scaled
//   becomes c tanh(x / c) before the softmax.
//   LAYER_WINDOWS = 1: the phase says what WINDOW is, in word BIAS0; ROTATIONS > 1: which angles,
//   in word BIAS1.
//
// With QK_NORM queries and keys are normed before they are rotated: a warp takes a head at a time
// (PER_HEAD), or every block adds up the squares of all queries and of all keys (WHOLE_WIDTH). W2
// and S0 are then the weights, f32.
//
// Also rotates q and k (RoPE) and writes the new rows of k and v, rounded to bf16 and then to what
// the cache has (kv_codes.cuh), into the cache.
//
//   X          f32 [(HEADS + 2 KV_HEADS) HEAD_DIM], tagged, not rotated
//   W0, W1     keys, values, KvUnit [KV_HEADS, capacity, KV_UNITS]; `past` rows are filled. PAGED =
//              1: [pages, KV_HEADS, PAGE_TOKENS, KV_UNITS], and `pages` has the sequence's, in
//              order
//   S1, S2     scales of keys and of values, u8 [KV_HEADS, capacity, KV_SCALES], where rows have
//              any; PAGED = 1: [pages, KV_HEADS, PAGE_TOKENS, KV_SCALES]
//   SUMS       parts, f32 [HEADS, SPLITS, PART_FLOATS], tagged: output, maximum and sum of each
//              block
//   OUT        f32 [HEADS HEAD_DIM], tagged
//
// Of several tokens (ROWS) each goes over the cache as it would alone, so that its sums are added
// up as they would be then. The tokens ahead of it in the step are not in the cache yet: in their
// places it takes them from shared memory, as they will be cached.
//
// SPLITS blocks share a key/value head and all queries of it, or the first FEW_SPLITS of them where
// there are fewer than FEW_TOKENS tokens; they divide the cached tokens evenly, whatever `past` is.
// Keys and values of STAGE_TOKENS tokens come through the ring. Eight tokens are a warp's turn, a
// quad of lanes takes a token and keeps its own running maximum, sum and output: behind few tokens
// the phase is bound by memory and latency, so tensor cores would not help, and f32 arithmetic
// loses nothing. (Behind many, where queries share keys, they do: decode_attend_many.cuh.) At the
// end the quads of a warp are added up, then the warps of a block, then the blocks, each of which
// finishes a slice of HEAD_DIM. The order of additions is fixed.
#pragma once
#include "kv_codes.cuh"

constexpr int QUERIES = HEADS / KV_HEADS; // that share a key/value head
// A lane keeps BATCH HEAD_DIM / 4 outputs in registers (at most 64: of 128, with the values beside
// them, most would be spilled, and each token would read and write them all). More queries are
// other warps': GROUPS of MEMBERS warps go over the same tokens, each for its own BATCH of queries.
// Where even that is not all of them, it takes several passes.
constexpr int MOST_QUERIES = 256 / HEAD_DIM;
constexpr int BATCHES = (QUERIES + MOST_QUERIES - 1) / MOST_QUERIES;
constexpr int BATCH = (QUERIES + BATCHES - 1) / BATCHES;
constexpr int GROUPS = BATCHES > 5 && WARPS % 6 == 0   ? 6
                       : BATCHES > 3 && WARPS % 4 == 0 ? 4
                       : BATCHES > 2 && WARPS % 3 == 0 ? 3
                       : BATCHES > 1 && WARPS % 2 == 0 ? 2
                                                       : 1;
constexpr int MEMBERS = WARPS / GROUPS;
constexpr int PASSES = (BATCHES + GROUPS - 1) / GROUPS;
// Whether many tokens are multiplied by tensor cores, for all queries at once.
#define BY_TENSOR_CORES                                                                            \
    (MANY_TOKENS && HEAD_DIM <= 128 && HEADS > KV_HEADS && HEADS <= 8 * KV_HEADS)
// Of many tokens the warps that share queries form teams, each of which has slots of the ring of
// its own, as in products: what a slot costs beside its turns, some 500 cycles, is paid by fewer.
constexpr INSIDE int teams_of(int members) {
    return !MANY_TOKENS || !APART ? 1 : members % 3 == 0 ? 3 : members % 2 == 0 ? 2 : 1;
}
constexpr int CHUNKS = HEAD_DIM / 32; // eights of a token that a lane reads, from 32 c + 8 t on
// Few tokens are fewer blocks', whose exchange is shorter.
constexpr int FEW_SPLITS = SPLITS < 8 ? SPLITS : 8, FEW_TOKENS = 1024;
constexpr int PART_FLOATS = HEAD_DIM + 4;
constexpr int QKV_ELEMS = (HEADS + 2 * KV_HEADS) * HEAD_DIM; // of a token
constexpr int ALL_PARTS = HEADS * SPLITS * PART_FLOATS; // of a token
// A slot: codes of keys, of values, scales of keys, of values. A bulk copy begins at a multiple of
// 16 bytes and takes as many, so that scales come for whole 16 tokens around those of the stage.
constexpr int STAGE_TOKENS =
    (WEIGHT_BYTES - 60 * KV_SCALES) / (2 * (KV_ROW + KV_SCALES)) / 8 * 8;
constexpr int SCALE_TOKENS = (STAGE_TOKENS + 30) / 16 * 16;
constexpr int VALUES_AT = STAGE_TOKENS * KV_ROW, SCALES_AT = 2 * VALUES_AT;
constexpr int VALUE_SCALES_AT = SCALE_TOKENS * KV_SCALES; // behind those of keys
static_assert(KV_ROW % 16 == 0 && SCALES_AT + 2 * VALUE_SCALES_AT <= WEIGHT_BYTES, "a slot");
static_assert(HEAD_DIM % 32 == 0 && HEAD_DIM <= 256 && 2 * ROTARY_HALF <= HEAD_DIM &&
                  HEADS % KV_HEADS == 0,
              "shape");
static_assert(PART_FLOATS == EXCHANGED_FLOATS, "what smq-engine leaves room for");
static_assert(HEAD_DIM % SPLITS == 0 && SPLITS * KV_HEADS <= GRID && STAGE_TOKENS >= 8, "shape");
// Scratch: rotated queries, times log2(e) / sqrt(HEAD_DIM); the new key and value; of several
// tokens their codes, too; maxima and sums; outputs.
constexpr int NEW_CODES = ROWS > 1 && KV_CODE != KV_BF16 ? 4 * HEAD_DIM : 0; // bytes a token
static_assert(ROWS * (4 * (QUERIES + 1) * HEAD_DIM + NEW_CODES) + 4 * BATCH * WARPS * HEAD_DIM +
                      8 * BATCH * WARPS <=
                  PARTIAL_BYTES,
              "scratch");
static_assert(ROWS == 1 || !MANY_TOKENS, "the kernel for many tokens is of one");

#if LAYER_WINDOWS
#define WINDOW_OF(phase) (int)phase.at(BIAS0)
#else
#define WINDOW_OF(phase) WINDOW
#endif

// A block's tokens.
struct Share {
    int splits; // blocks of a head that have one
    int begin, limit, stages;
    INSIDE Share(int past, int window) {
        const int split = blockIdx.x % SPLITS;
        const int first = window > 0 ? max(past - window + 1, 0) : 0;
        const int groups = (past - first + 7) / 8;
        splits = past - first < FEW_TOKENS ? FEW_SPLITS : SPLITS;
        begin = first + 8 * (int)((u64)groups * split / splits);
        limit = min(first + 8 * (int)((u64)groups * (split + 1) / splits), past);
        stages = (max(limit - begin, 0) + STAGE_TOKENS - 1) / STAGE_TOKENS;
    }
    INSIDE bool none() const { return (int)blockIdx.x % SPLITS >= splits; }
};

#if PAGED
static_assert(PAGE_TOKENS % 16 == 0, "16 tokens' scales are one page's");
// Which of all rows in pages a token's of a head is.
DEVICE u64 paged_row(const int *pages, int head, int token) {
    const u64 page = load_relaxed(pages + token / PAGE_TOKENS);
    return (page * KV_HEADS + head) * PAGE_TOKENS + token % PAGE_TOKENS;
}
#endif

DEVICE void produce_cache(const Words &phase, Pump &pump, int past, const int *pages) {
    if (blockIdx.x >= KV_HEADS * SPLITS) return;
#if !PAGED
    const u64 head = (u64)(blockIdx.x / SPLITS) * phase.at(FIRST1);
#endif
    const KvUnit *keys = phase.pointer<const KvUnit>(W0), *values = phase.pointer<const KvUnit>(W1);
#pragma unroll 1
    for (int pass = 0; pass < ROWS * PASSES; pass++) {
        const int row = ROWS == 1 ? 0 : pass / PASSES;
        const Share share(past + row, WINDOW_OF(phase));
        if (share.none()) continue;
        const int limit = min(share.limit, past); // what is cached
#pragma unroll 1
        for (int stage = pump.skip; stage < share.stages; stage += PRODUCERS) {
            const int token = share.begin + stage * STAGE_TOKENS;
            int count = min(limit - token, STAGE_TOKENS);
            if (ROWS > 1) count = max(count, 0);
            const int from = token & ~15,
                      scales = ROWS > 1 && count == 0 ? 0 : ((token + count + 15) & ~15) - from;
            u8 *slot = pump.next(2 * (count * KV_ROW + scales * KV_SCALES));
#if PAGED
            for (int done = 0; done < count;) {
                const int rows = min(count - done, PAGE_TOKENS - (token + done) % PAGE_TOKENS);
                const u64 at = paged_row(pages, blockIdx.x / SPLITS, token + done) * KV_UNITS;
                pump.copy(slot + done * KV_ROW, keys + at, rows * KV_ROW);
                pump.copy(slot + (STAGE_TOKENS + done) * KV_ROW, values + at, rows * KV_ROW);
                done += rows;
            }
            if constexpr (KV_SCALES > 0)
                for (int done = 0; done < scales;) {
                    const int rows =
                        min(scales - done, PAGE_TOKENS - (from + done) % PAGE_TOKENS);
                    const u64 at = paged_row(pages, blockIdx.x / SPLITS, from + done) * KV_SCALES;
                    u8 *to = slot + SCALES_AT + done * KV_SCALES;
                    pump.copy(to, phase.pointer<const u8>(S1) + at, rows * KV_SCALES);
                    pump.copy(to + VALUE_SCALES_AT, phase.pointer<const u8>(S2) + at,
                              rows * KV_SCALES);
                    done += rows;
                }
#else
            if (ROWS > 1 && count == 0) {
                pump.done();
                continue;
            }
            pump.copy(slot, keys + (head + token) * KV_UNITS, count * KV_ROW);
            pump.copy(slot + VALUES_AT, values + (head + token) * KV_UNITS, count * KV_ROW);
            if constexpr (KV_SCALES > 0) {
                const u64 at = (head + from) * KV_SCALES;
                const u8 *key_scales = phase.pointer<const u8>(S1) + at;
                const u8 *value_scales = phase.pointer<const u8>(S2) + at;
                pump.copy(slot + SCALES_AT, key_scales, scales * KV_SCALES);
                pump.copy(slot + SCALES_AT + VALUE_SCALES_AT, value_scales, scales * KV_SCALES);
            }
#endif
            pump.done();
        }
        pump.end(share.stages);
    }
}

#include "decode_attend.cuh"
#if BY_TENSOR_CORES
#include "decode_attend_many.cuh"
#endif

// What queries are multiplied with, so that their products with keys are in units of ln 2; with a
// soft cap, twice their products' part of the cap.
DEVICE float query_scale() {
#ifdef SCORES_BITS
    float scale = 1.4426950408889634f * __uint_as_float(SCORES_BITS);
#else
    float scale = 1.4426950408889634f / sqrtf((float)HEAD_DIM);
#endif
#ifdef SOFT_CAP_BITS
    scale *= 2.0f / __uint_as_float(SOFT_CAP_BITS);
#endif
    return scale;
}

// Whether a block works out new keys and values. Of several tokens, what is one's new token is
// another's last cached one, whichever block has that.
DEVICE bool takes_new(int split) { return ROWS > 1 || split == 0; }

#if QK_NORM
#include "decode_norm_heads.cuh"
#endif

DEVICE void consume_cache(const Phase &phase, Consumer &c, int past, const float *rope,
                          const int *pages) {
    if (blockIdx.x >= KV_HEADS * SPLITS) return;
    const int split = blockIdx.x % SPLITS, kv_head = blockIdx.x / SPLITS;
    const Tag made = {tag_of(c.steps, phase.at(USE_OUT)), TAG_MASK};
    float *parts = phase.pointer<float>(SUMS);
    const Share share(past + ROWS - 1, WINDOW_OF(phase));
    if (share.none()) {
        // Whoever reads this block's parts when it has some again must not take older ones for
        // them.
        for (int row = 0; row < ROWS; row++)
            tag_parts(parts + row * ALL_PARTS, kv_head, split, made.tag);
        return;
    }
    take_scratch(c);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, quad = lane / 4, t = lane % 4;
    float *queries = (float *)(shared + c.partial);
    u16 *new_rows = (u16 *)(queries + ROWS * QUERIES * HEAD_DIM); // bf16 [ROWS][2][HEAD_DIM]
    u8 *new_codes = (u8 *)(new_rows + ROWS * 2 * HEAD_DIM);       // [ROWS][NEW_CODES]
    float2 *states = (float2 *)(new_codes + ROWS * NEW_CODES); // [BATCH][WARPS]: max, sum
    float *outputs = (float *)(states + BATCH * WARPS); // [BATCH][WARPS][HEAD_DIM]
    const float *qkv = phase.pointer<const float>(X);
    float *out = phase.pointer<float>(OUT);
    const Tag in = {tag_of(c.steps, phase.at(USE_IN)), phase.at(CHECK)};
#if ROTATIONS > 1
    rope += phase.at(BIAS1) * 2 * ROTARY_HALF;
#endif
    // Where the first new token is cached; the next one is behind it.
#if PAGED
    static_assert(ROWS == 1, "the next one may be in another page");
    const u64 own = paged_row(pages, kv_head, past);
#else
    const u64 own = (u64)kv_head * phase.at(FIRST1) + past;
#endif
    const u64 at = own * KV_UNITS;
    KvUnit *key_row = phase.pointer<KvUnit>(W0) + at, *value_row = phase.pointer<KvUnit>(W1) + at;
#if KV_CODE != KV_BF16
    const u64 scales_at = own * KV_SCALES;
    u8 *key_scales = phase.pointer<u8>(S1) + scales_at;
    u8 *value_scales = phase.pointer<u8>(S2) + scales_at;
#endif
    // Tokens whose heads are made at a time: normed ones are staged in one place.
    constexpr int MADE_AT_ONCE = QK_NORM ? 1 : ROWS;
#pragma unroll 1
    for (int first = 0; first < ROWS; first += MADE_AT_ONCE) {
#if QK_NORM
        float *staged = outputs; // [QUERIES + 2][HEAD_DIM], before the outputs are written
        if (first > 0) sync_threads(1, CONSUMERS); // the token before has been read there
        norm_heads(phase, qkv + first * QKV_ELEMS, in, kv_head, split, staged);
#endif

        // Block 0 of a head has the fewest old tokens, so it takes the new one.
        const int vectors = takes_new(split) ? QUERIES + 2 : QUERIES;
        const int pairs = vectors * (HEAD_DIM / 2);
        for (int index = threadIdx.x; index < MADE_AT_ONCE * pairs; index += CONSUMERS) {
            const int row = MADE_AT_ONCE == 1 ? first : index / pairs;
            const int vector = index / (HEAD_DIM / 2) - (row - first) * vectors,
                      i = index % (HEAD_DIM / 2);
            const bool is_query = vector < QUERIES, is_key = vector == QUERIES;
            const float *own_rope = rope + row * ANGLES;
            const int head =
                is_query ? kv_head * QUERIES + vector : HEADS + (is_key ? 0 : KV_HEADS) + kv_head;
            const bool rotates = i < ROTARY_HALF;
            const int low = rotates ? i : 2 * i, high = rotates ? i + ROTARY_HALF : 2 * i + 1;
#if QK_NORM
            float a = staged[vector * HEAD_DIM + low], b = staged[vector * HEAD_DIM + high];
#else
            const float *x = qkv + row * QKV_ELEMS + head * HEAD_DIM;
            u32 raw_a, raw_b;
            do raw_a = load_relaxed(x + low), raw_b = load_relaxed(x + high);
            while (!in.on(raw_a) || !in.on(raw_b));
            float a = untagged(raw_a), b = untagged(raw_b);
#endif
            if (rotates && (is_query || is_key)) {
                const float cosine = own_rope[i], sine = own_rope[ROTARY_HALF + i];
                const float rotated = a * cosine - b * sine;
                b = b * cosine + a * sine;
                a = rotated;
            }
            if (is_query) {
                const float scale = query_scale();
                float *query = queries + (row * QUERIES + vector) * HEAD_DIM;
                query[low] = a * scale;
                query[high] = b * scale;
            } else {
                u16 *copy = new_rows + (2 * row + !is_key) * HEAD_DIM;
                copy[low] = bf16_of(a);
                copy[high] = bf16_of(b);
#if KV_CODE == KV_BF16
                if (ROWS > 1 && split > 0) continue; // block 0 of the head caches it
                u16 *cached = (is_key ? key_row : value_row) + row * KV_UNITS;
                cached[low] = bf16_of(a);
                cached[high] = bf16_of(b);
#endif
            }
        }
    }
    sync_threads(1, CONSUMERS);
#if ROWS > 1 && KV_CODE != KV_BF16
    if (warp < ROWS) {
        const u16 *new_key = new_rows + warp * 2 * HEAD_DIM;
        u8 *codes = new_codes + warp * NEW_CODES, *scales = codes + 2 * KV_ROW;
        encode_new(new_key, new_key + HEAD_DIM, codes, lane);
        if (split == 0) {
            const int row = warp * KV_UNITS, scale = warp * KV_SCALES;
            cache_new((u8 *)(key_row + row), key_scales + scale, codes, scales, lane);
            cache_new((u8 *)(value_row + row), value_scales + scale, codes + KV_ROW,
                      scales + KV_SCALES, lane);
        }
    }
    sync_threads(1, CONSUMERS);
#endif

#if BY_TENSOR_CORES
    // The last warp takes the new token, as below.
    const bool has_new = split == 0 && warp == WARPS - 1;
#if KV_CODE == KV_BF16
    const int new_at = c.partial + 4 * QUERIES * HEAD_DIM;
#else
    const u16 *new_key = new_rows, *new_value = new_key + HEAD_DIM;
    u8 *codes = (u8 *)(outputs + warp * HEAD_DIM), *scales = codes + 2 * KV_ROW;
    const int new_at = codes - shared;
    if (has_new) {
        encode_new(new_key, new_value, codes, lane);
        cache_new(key_row, key_scales, codes, scales, lane);
        cache_new(value_row, value_scales, codes + KV_ROW, scales + KV_SCALES, lane);
    }
#endif
    ByTensorCores all(queries, lane);
    c.at = all.attend_share(c.at, share, has_new ? new_at : -1, lane);
    __syncwarp(); // the outputs will be where the new token's codes are
    all.add_lanes();
    for (int round = 0; round < ByTensorCores::ROUNDS; round++) {
        all.store(round, outputs, states, lane);
        sync_threads(1, CONSUMERS);
        add_warps<ByTensorCores>(outputs, states, parts, made, round, kv_head, split);
        if (round + 1 < ByTensorCores::ROUNDS) sync_threads(1, CONSUMERS); // they are written again
    }
    for (int round = 0; round < ByTensorCores::ROUNDS; round++)
        if (FEW_SPLITS == SPLITS || share.splits == SPLITS)
            add_blocks<ByTensorCores, SPLITS>(parts, out, made, round, kv_head, split);
        else
            add_blocks<ByTensorCores, FEW_SPLITS>(parts, out, made, round, kv_head, split);
#else
    constexpr int CACHE_TEAMS = teams_of(MEMBERS), TEAM_MEMBERS = MEMBERS / CACHE_TEAMS;
    const int group = warp % GROUPS, member = warp / GROUPS;
    auto finish = [&](int row, int pass, int splits) {
        const float *from = parts + row * ALL_PARTS;
        float *to = out + row * COPIES * HEADS * HEAD_DIM;
        if (FEW_SPLITS == SPLITS || splits == SPLITS)
            add_blocks<ByQuads, SPLITS>(from, to, made, pass, kv_head, split);
        else
            add_blocks<ByQuads, FEW_SPLITS>(from, to, made, pass, kv_head, split);
    };
#if ROWS > 1
#pragma unroll 1 // code that is read once a layer
#endif
    for (int index = 0; index < ROWS * PASSES; index++) {
        const int row = ROWS == 1 ? 0 : index / PASSES, pass = index - row * PASSES;
        const Share own_share = ROWS == 1 ? share : Share(past + row, WINDOW_OF(phase));
        float *own_parts = parts + row * ALL_PARTS;
        if (ROWS > 1 && own_share.none()) {
            tag_parts(own_parts, kv_head, split, made.tag);
            continue;
        }
        const float *own_queries =
            queries + (row * QUERIES + ByQuads::first_computed(pass, group)) * HEAD_DIM + 8 * t;
        Running running;
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
            running.max[b] = LOWEST;
            running.sum[b] = 0.0f;
#pragma unroll
            for (int e = 0; e < 8 * CHUNKS; e++) running.out[b][e] = 0.0f;
        }
        // The warp whose turns come last takes the new token, as it is cached, before them. Of
        // fewer bits than bf16 it encodes it itself, where its outputs will be: the others need not
        // wait for it.
        const bool has_new = split == 0 && member == MEMBERS - 1;
        const int own_part = t * (int)sizeof(KvEight);
#if KV_CODE == KV_BF16
        const int new_at = c.partial + 4 * ROWS * QUERIES * HEAD_DIM + own_part;
        auto new_row = [&](int row, int is_value) {
            return Row{new_at + (2 * row + is_value) * KV_ROW, 0};
        };
#elif ROWS > 1
        const int new_at = new_codes - shared;
        auto new_row = [&](int row, int is_value) {
            const int at = new_at + row * NEW_CODES;
            return Row{at + is_value * KV_ROW + own_part,
                       at + 2 * KV_ROW + is_value * KV_SCALES};
        };
#else
        const u16 *new_key = new_rows, *new_value = new_key + HEAD_DIM;
        u8 *codes = (u8 *)(outputs + (group * MEMBERS + member) * HEAD_DIM);
        u8 *scales = codes + 2 * KV_ROW;
        const int new_at = codes - shared, new_scales = new_at + 2 * KV_ROW;
        auto new_row = [&](int, int is_value) {
            return Row{new_at + is_value * KV_ROW + own_part, new_scales + is_value * KV_SCALES};
        };
        if (has_new) {
            encode_new(new_key, new_value, codes, lane);
            if (pass == 0 && group == 0) {
                cache_new(key_row, key_scales, codes, scales, lane);
                cache_new(value_row, value_scales, codes + KV_ROW, scales + KV_SCALES, lane);
            }
        }
#endif
        // Turns of eight tokens, counted through the team's stages; one below 0 is the new token's.
        const int team = CACHE_TEAMS > 1 ? member / TEAM_MEMBERS : 0,
                  in_team = member - team * TEAM_MEMBERS;
        [[maybe_unused]] const Cursor start = c.at;
        if (CACHE_TEAMS > 1) c.at.advance(team);
        int turn = has_new ? in_team - TEAM_MEMBERS : in_team;
#pragma unroll 1
        for (int stage = has_new ? team - CACHE_TEAMS : team; stage < own_share.stages;
             stage += CACHE_TEAMS) {
            if (stage >= 0) c.ring.wait(c.at);
            const int begin = own_share.begin + stage * STAGE_TOKENS;
            const int own = (stage - team) / CACHE_TEAMS; // among the team's
#pragma unroll 1
            for (; turn < (own + 1) * (STAGE_TOKENS / 8); turn += TEAM_MEMBERS) {
                const int token = 8 * turn - own * STAGE_TOKENS + quad;
                const int slot = c.at.slot * SLOT_BYTES, at = slot + token * KV_ROW + own_part;
                const int scales_at = slot + SCALES_AT + ((begin & 15) + token) * KV_SCALES;
                Row key = {at, scales_at};
                Row value = {at + STAGE_TOKENS * KV_ROW, scales_at + VALUE_SCALES_AT};
                if (ROWS > 1 && begin + token >= past) {
                    const int ahead = min(begin + token - past, ROWS - 1);
                    key = new_row(ahead, 0), value = new_row(ahead, 1);
                }
                attend(running, stage < 0 ? new_row(row, 0) : key,
                       stage < 0 ? new_row(row, 1) : value,
                       stage < 0 ? quad == 0 : begin + token < own_share.limit, own_queries);
            }
            if (stage < 0) continue;
            c.ring.release(c.at, CACHE_TEAMS);
            c.at.advance(CACHE_TEAMS);
        }
        if (CACHE_TEAMS > 1) c.at = start.after(own_share.stages);
        __syncwarp(); // the outputs will be where the new token's codes are
        merge_quads(running, lane);

#pragma unroll
        for (int b = 0; b < BATCH; b++) {
            const int own = ByQuads::part(b, group, member);
            float *to = outputs + own * HEAD_DIM + 8 * t + quad;
#pragma unroll
            for (int i = 0; i < CHUNKS; i++) to[32 * i] = running.out[b][8 * i];
            if (lane == 0) states[own] = make_float2(running.max[b], running.sum[b]);
        }
        sync_threads(1, CONSUMERS);
        add_warps<ByQuads>(outputs, states, own_parts, made, pass, kv_head, split);
        if (ROWS == 1) finish(row, pass, own_share.splits);
        if (index + 1 < ROWS * PASSES) sync_threads(1, CONSUMERS); // `outputs` are written again
    }
#pragma unroll 1
    for (int index = 0; ROWS > 1 && index < ROWS * PASSES; index++) {
        const int row = index / PASSES;
        const Share own_share(past + row, WINDOW_OF(phase));
        if (!own_share.none()) finish(row, index % PASSES, own_share.splits);
    }
#endif
}
