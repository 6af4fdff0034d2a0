// Attention of a decode step behind many tokens by tensor cores, where queries share keys
// (BY_TENSOR_CORES). Included by decode_attention.cuh, which says the equation and the grid.
//
// Rows of a fragment are queries, in two bf16 each: rows 0 to 7 have the upper, 8 to 15 what these
// leave, so that products are exact but for 2^-17 of a query or of a weight.
//
//   scores[query, token] = q[query, :] k[token, :]     m16n8k16, a lane's token is lane / 4
//   out[query, :] += weights[query, token] v[token, :]  m16n8k8, weights are where scores were
//
// Lane 4 n + t has elements 32 i + 4 n .. + 3 of the values of tokens 2 t and 2 t + 1; they are
// columns n of tiles 4 i .. + 3.
#pragma once

static_assert(1 < QUERIES && QUERIES <= 8, "a row of a fragment each");
static_assert(PASSES == 1, "the cache is copied once");

// Eight tokens as they are cached, or one alone: where in `shared` the first one's codes and scales
// are. Tokens from `visible` on may hold anything. Places and not pointers, as in `Row`.
struct Turn {
    bool alone;
    int keys, values, key_scales, value_scales, visible;
    // From a token's to the one's after it; that alone is all of them.
    INSIDE int row() const { return alone ? 0 : KV_ROW; }
    INSIDE int scales_row() const { return alone ? 0 : KV_SCALES; }
};

// c[16, 8] += a[16, 8] b[8, 8].
DEVICE void mma_bf16_k8(float c[4], u32 a0, u32 a1, u32 b0) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(b0));
}

// Which of eight elements is number e of pair i, as codes are widened.
DEVICE int element_of(int i, int e) {
#if KV_CODE == KV_BF16
    return 2 * i + e;
#elif KV_CODE == KV_INT4
    return i + 4 * e;
#else
    return i / 2 * 4 + i % 2 + 2 * e;
#endif
}
DEVICE void key_pairs(KvEight raw, u32 pairs[4]) {
#if KV_CODE == KV_BF16
    pairs[0] = raw.x, pairs[1] = raw.y, pairs[2] = raw.z, pairs[3] = raw.w;
#elif KV_CODE == KV_INT4
    for (int i = 0; i < 4; i++) pairs[i] = int4_pair(raw, i);
#else
    pairs[0] = code_pair(raw.x, 0), pairs[1] = code_pair(raw.x, 1);
    pairs[2] = code_pair(raw.y, 0), pairs[3] = code_pair(raw.y, 1);
#endif
}

// Four elements of two tokens' values, by pairs of tokens.
#if KV_CODE == KV_BF16
typedef uint2 KvFour;
#elif KV_CODE == KV_INT4
typedef u16 KvFour;
#else
typedef u32 KvFour;
#endif
DEVICE void value_pairs(KvFour a, KvFour b, [[maybe_unused]] u32 scales, u32 pairs[4]) {
#if KV_CODE == KV_BF16
    pairs[0] = __byte_perm(a.x, b.x, 0x5410), pairs[1] = __byte_perm(a.x, b.x, 0x7632);
    pairs[2] = __byte_perm(a.y, b.y, 0x5410), pairs[3] = __byte_perm(a.y, b.y, 0x7632);
#elif KV_CODE == KV_INT4
    const u32 both = a | (u32)b << 16;
    const PairScale by(scales);
#pragma unroll
    for (int i = 0; i < 4; i++) pairs[i] = scaled_pair(both, i, by);
#else
    const u32 low = __byte_perm(a, b, 0x5410), high = __byte_perm(a, b, 0x7632);
    pairs[0] = code_pair(low, 0), pairs[1] = code_pair(low, 1);
    pairs[2] = code_pair(high, 0), pairs[3] = code_pair(high, 1);
#endif
}

// What of a pair of f32 two bf16 leave.
DEVICE u32 rest_of(float low, float high, u32 pair) {
    return bf16_pair(low - bf16_low(pair), high - bf16_high(pair));
}

// What a warp knows of the tokens that it has seen, for all queries. There is room for the outputs
// of BATCH of them at a time, in so many rounds.
struct ByTensorCores {
    static constexpr int GROUPS = 1, ROUNDS = BATCHES;
    static INSIDE int first_query(int round, int) { return round * BATCH; }
    static INSIDE int first_computed(int round, int) { return min(round * BATCH, QUERIES - BATCH); }
    static INSIDE int part(int b, int, int warp) { return b * WARPS + warp; }
    static constexpr int TEAMS = teams_of(WARPS), TEAM_WARPS = WARPS / TEAMS;

    u32 q[2 * CHUNKS][4];     // a fragments
    float max, sum;           // of query lane / 4; the sum of this lane's tokens
    float out[4 * CHUNKS][4]; // c fragments

    INSIDE ByTensorCores(const float *queries, int lane) : max(LOWEST), sum(0.0f) {
        const int r = lane / 4, t = lane % 4;
        const float *own = queries + min(r, QUERIES - 1) * HEAD_DIM + 8 * t;
#pragma unroll
        for (int c = 0; c < CHUNKS; c++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float low = own[32 * c + element_of(i, 0)],
                            high = own[32 * c + element_of(i, 1)];
                const u32 pair = bf16_pair(low, high);
                q[2 * c + i / 2][i % 2 * 2] = pair;
                q[2 * c + i / 2][i % 2 * 2 + 1] = rest_of(low, high, pair);
            }
#pragma unroll
        for (int n = 0; n < 4 * CHUNKS; n++)
            for (int e = 0; e < 4; e++) out[n][e] = 0.0f;
    }

    INSIDE void attend(const Turn &turn, int lane) {
        const int n = lane / 4, t = lane % 4, first = 2 * t;
        const int row = turn.row(), scales_row = turn.scales_row(), visible = turn.visible;
        const u8 *const key = shared + turn.keys + n * row + t * (int)sizeof(KvEight);
        float s[2][4] = {};
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            u32 k[4];
            key_pairs(*(const KvEight *)(key + 4 * (int)sizeof(KvEight) * c), k);
            if constexpr (KV_CODE == KV_INT4) {
                float d[4] = {};
                mma_bf16(d, q[2 * c][0], q[2 * c][1], q[2 * c][2], q[2 * c][3], k[0], k[1]);
                mma_bf16(d, q[2 * c + 1][0], q[2 * c + 1][1], q[2 * c + 1][2], q[2 * c + 1][3],
                         k[2], k[3]);
                const u8 *scales = shared + turn.key_scales + first * scales_row + c;
                const float scale0 = kv_scale(scales[0]), scale1 = kv_scale(scales[scales_row]);
                s[0][0] += scale0 * (d[0] + d[2]), s[0][1] += scale1 * (d[1] + d[3]);
            } else {
                mma_bf16(s[0], q[2 * c][0], q[2 * c][1], q[2 * c][2], q[2 * c][3], k[0], k[1]);
                mma_bf16(s[1], q[2 * c + 1][0], q[2 * c + 1][1], q[2 * c + 1][2],
                         q[2 * c + 1][3], k[2], k[3]);
            }
        }
        float a = (s[0][0] + s[1][0]) + (s[0][2] + s[1][2]),
              b = (s[0][1] + s[1][1]) + (s[0][3] + s[1][3]);
        if constexpr (KV_SCALES == 1 && KV_CODE != KV_INT4) {
            a *= kv_scale(shared[turn.key_scales + first * scales_row]);
            b *= kv_scale(shared[turn.key_scales + (first + 1) * scales_row]);
        }
#ifdef SOFT_CAP_BITS
        a = capped_score(a), b = capped_score(b);
#endif
        if (first >= visible) a = MASKED;
        if (first + 1 >= visible) b = MASKED;
        float largest = fmaxf(a, b);
        largest = fmaxf(largest, shuffle_xor(largest, 1));
        largest = fmaxf(fmaxf(largest, shuffle_xor(largest, 2)), max);
        const float rescale = exp2_fast(max - largest);
        max = largest;
        a = exp2_fast(a - max), b = exp2_fast(b - max);
        sum = sum * rescale + (a + b);
        if (__any_sync(0xffffffffu, rescale != 1.0f))
#pragma unroll
            for (int i = 0; i < 4 * CHUNKS; i++)
#pragma unroll
                for (int e = 0; e < 4; e++) out[i][e] *= rescale;
        if constexpr (KV_SCALES == 1 && KV_CODE != KV_INT4) {
            const u8 *scales = shared + turn.value_scales + first * scales_row;
            a *= first < visible ? kv_scale(scales[0]) : 0.0f;
            b *= first + 1 < visible ? kv_scale(scales[scales_row]) : 0.0f;
        }
        const u32 weights = bf16_pair(a, b), rest = rest_of(a, b, weights);
        const u8 *from = shared + turn.values + first * row + 4 * n * KV_ROW / HEAD_DIM;
#pragma unroll
        for (int i = 0; i < CHUNKS; i++) {
            const int at = i * (32 * KV_ROW / HEAD_DIM);
            KvFour low = *(const KvFour *)(from + at), high = *(const KvFour *)(from + row + at);
            u32 scales = 0;
            if constexpr (KV_CODE == KV_INT4) {
                const u8 *codes = shared + turn.value_scales + first * scales_row + i;
                scales = __byte_perm(__float_as_uint(kv_scale(codes[0])),
                                     __float_as_uint(kv_scale(codes[scales_row])), 0x7632);
            }
            u32 pairs[4];
            value_pairs(low, high, scales, pairs);
            if (visible < 8) { // of the last tokens
                const u32 kept = (first < visible ? 0xffffu : 0u) |
                                 (first + 1 < visible ? 0xffff0000u : 0u);
#pragma unroll
                for (int e = 0; e < 4; e++) pairs[e] &= kept;
            }
#pragma unroll
            for (int e = 0; e < 4; e++) mma_bf16_k8(out[4 * i + e], weights, rest, pairs[e]);
        }
    }

    // The tokens of a block's share that are this warp's, and before them the new one, which is at
    // `new_at` (in a warp that has none, -1). Returns where the next phase's slots begin.
    INSIDE Cursor attend_share(Cursor at, const Share &share, int new_at, int lane) {
        const Ring ring = Cursor::ring();
        const Cursor behind = at.after(share.stages);
        const int team = threadIdx.x / 32 / TEAM_WARPS, member = threadIdx.x / 32 % TEAM_WARPS;
        at.advance(team);
        // Turns of eight tokens, counted through the team's stages. Before them the new token's, in
        // a stage of its own.
        constexpr int TURNS = STAGE_TOKENS / 8;
        const bool has_new = new_at >= 0;
        int turn = has_new ? member - TEAM_WARPS : member, end = has_new ? 0 : TURNS;
#pragma unroll 1
        for (int stage = has_new ? team - TEAMS : team; stage < share.stages; stage += TEAMS) {
            const bool alone = stage < 0;
            if (!alone) ring.wait(at);
            const int begin = share.begin + stage * STAGE_TOKENS;
#pragma unroll 1
            for (; turn < end; turn += TEAM_WARPS) {
                const int first = 8 * (turn - end + TURNS), slot = at.slot * SLOT_BYTES;
                const int keys = alone ? new_at : slot + first * KV_ROW;
                const int scales = alone ? new_at + 2 * KV_ROW
                                         : slot + SCALES_AT + ((begin & 15) + first) * KV_SCALES;
                attend({alone, keys, keys + (alone ? KV_ROW : VALUES_AT), scales,
                        scales + (alone ? KV_SCALES : VALUE_SCALES_AT),
                        alone ? 1 : share.limit - begin - first},
                       lane);
            }
            end += TURNS;
            if (alone) continue;
            ring.release(at, TEAMS);
            at.advance(TEAMS);
        }
        return behind;
    }

    // The sums of all lanes.
    INSIDE void add_lanes() {
        sum += shuffle_xor(sum, 1);
        sum += shuffle_xor(sum, 2);
    }

    // What the warp has of a round's queries, where the block's warps are added up.
    INSIDE void store(int round, float *outputs, float2 *states, int lane) const {
        const int b = lane / 4 - first_computed(round, 0), t = lane % 4;
        if (b < 0 || b >= BATCH) return;
        const int own = part(b, 0, threadIdx.x / 32);
        float *to = outputs + own * HEAD_DIM + 8 * t;
#pragma unroll
        for (int i = 0; i < CHUNKS; i++)
#pragma unroll
            for (int side = 0; side < 2; side++) {
                float v[4];
#pragma unroll
                for (int e = 0; e < 4; e++) v[e] = out[4 * i + e][side] + out[4 * i + e][side + 2];
                *(float4 *)(to + 32 * i + 4 * side) = make_float4(v[0], v[1], v[2], v[3]);
            }
        if (t == 0) states[own] = make_float2(max, sum);
    }
};

