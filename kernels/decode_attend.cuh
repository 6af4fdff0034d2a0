// What a quad of lanes makes of one token of the cache in a decode step's attention, and how the
// quads of a warp and the parts of several warps or blocks are added up. Included by
// decode_attention.cuh, which says the equation and the grid.
//
//   score = q . k              of each query of the lane's BATCH; lane t of a quad has elements
//                              32 c + 8 t .. + 7 of key, value and output, c < CHUNKS
//   out = out 2^(max - max') + 2^(score - max') v, max' the larger of both maxima; as sum, of v = 1
//
// Codes of fewer bits than bf16 are widened in registers, and a scale is multiplied where it is the
// same for all that it belongs to: a row's with its score and with its weight, a group's (int4)
// with the group's share of the score and, as a row's, with the weight. Values times scales are
// exact in bf16, so this changes no bit of what is read, only where f32 sums round.
#pragma once

DEVICE float shuffle_xor(float v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }

#ifdef SOFT_CAP_BITS
// c tanh(x / c) as c (1 - 2 / (1 + exp(2 x / c))), in units of ln 2.
DEVICE float capped_score(float score) {
    const float cap = __uint_as_float(SOFT_CAP_BITS) * 1.4426950408889634f;
    return cap - __fdividef(2.0f * cap, 1.0f + exp2_fast(fminf(score, 100.0f)));
}
#endif

// What a quad knows of the tokens that it has seen, for each query of the pass.
struct Running {
    float max[BATCH], sum[BATCH], out[BATCH][8 * CHUNKS];
};

// A token's key or value as it is cached: where in `shared` its codes are, from this lane's first
// element on, and the scales. Places and not pointers: of a pointer that may be one of two ptxas
// does not know that it is to shared memory.
struct Row {
    int codes, scales_at;
    INSIDE KvEight eight(int c) const {
        return *(const KvEight *)(shared + codes + 4 * (int)sizeof(KvUnit) * KV_EIGHT * c);
    }
    // What share c of the row is multiplied with, where each has its own.
    INSIDE float group_scale(int c) const {
        return KV_SCALES > 1 ? kv_scale(shared[scales_at + c]) : 1.0f;
    }
    // What the whole row is, where it has one.
    INSIDE float row_scale() const { return KV_SCALES == 1 ? kv_scale(shared[scales_at]) : 1.0f; }
};

// One token a quad. One that is not visible may hold anything.
DEVICE void attend(Running &running, Row key, Row value, bool visible, const float *queries) {
    float scores[BATCH] = {};
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        float k[8];
        kv_values(key.eight(c), k);
        const float scale = key.group_scale(c);
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
            const float4 *q = (const float4 *)(queries + b * HEAD_DIM + 32 * c);
            const float4 q0 = q[0], q1 = q[1];
            // Two chains: half the latency.
            scores[b] += scale * ((q0.x * k[0] + q0.z * k[2] + q1.x * k[4] + q1.z * k[6]) +
                                  (q0.y * k[1] + q0.w * k[3] + q1.y * k[5] + q1.w * k[7]));
        }
    }
    const float key_scale = key.row_scale();
    float v[CHUNKS][8], value_scales[CHUNKS];
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        kv_values(visible ? value.eight(c) : KvEight{}, v[c]);
        value_scales[c] = KV_SCALES > 1 ? value.group_scale(c) : value.row_scale();
        if (KV_SCALES > 0 && !visible) value_scales[c] = 0.0f;
    }
#pragma unroll
    for (int b = 0; b < BATCH; b++) {
        scores[b] += shuffle_xor(scores[b], 1);
        scores[b] += shuffle_xor(scores[b], 2);
        scores[b] *= key_scale;
#ifdef SOFT_CAP_BITS
        scores[b] = capped_score(scores[b]);
#endif
        if (!visible) scores[b] = MASKED;
        const float max = fmaxf(running.max[b], scores[b]);
        const float rescale = exp2_fast(running.max[b] - max), weight = exp2_fast(scores[b] - max);
        running.max[b] = max;
        running.sum[b] = running.sum[b] * rescale + weight;
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            const float scaled = weight * value_scales[c];
#pragma unroll
            for (int e = 0; e < 8; e++) {
                float &out = running.out[b][8 * c + e];
                out = out * rescale + scaled * v[c][e];
            }
        }
    }
}

#if KV_CODE != KV_BF16
static_assert(2 * (KV_ROW + KV_SCALES) <= 4 * HEAD_DIM, "encoded where a warp's outputs will be");

// The new token's key and value, bf16, in the codes of the cache: both rows' codes, then their
// scales. By a warp.
DEVICE void encode_new(const u16 *key, const u16 *value, u8 *codes, int lane) {
    u8 *scales = codes + 2 * KV_ROW;
    kv_encode_row(key, codes, scales, lane);
    kv_encode_row(value, codes + KV_ROW, scales + KV_SCALES, lane);
    __syncwarp();
}

// A row of these into the cache.
DEVICE void cache_new(u8 *row, u8 *row_scales, const u8 *codes, const u8 *scales, int lane) {
    static_assert(KV_ROW <= 8 * 32, "eight bytes a lane");
    if (lane < KV_ROW / 8) ((uint2 *)row)[lane] = ((const uint2 *)codes)[lane];
    if (lane < KV_SCALES) row_scales[lane] = scales[lane];
}
#endif

// Adds up the eight quads of a warp. Afterwards max and sum are the warp's, and lane 4 quad + t
// holds in out[b][8 c] the sum of element 32 c + 8 t + quad: at each step a lane gives half of its
// elements away and keeps the other.
DEVICE void merge_quads(Running &running, int lane) {
#pragma unroll
    for (int b = 0; b < BATCH; b++) {
        float max = running.max[b];
#pragma unroll
        for (int step = 16; step >= 4; step /= 2) max = fmaxf(max, shuffle_xor(max, step));
        const float rescale = exp2_fast(running.max[b] - max);
        running.max[b] = max;
        running.sum[b] *= rescale;
#pragma unroll
        for (int e = 0; e < 8 * CHUNKS; e++) running.out[b][e] *= rescale;
#pragma unroll
        for (int step = 16; step >= 4; step /= 2) {
            running.sum[b] += shuffle_xor(running.sum[b], step);
            const bool upper = lane & step;
#pragma unroll
            for (int c = 0; c < CHUNKS; c++)
#pragma unroll
                for (int e = 0; e < step / 4; e++) {
                    float &low = running.out[b][8 * c + e];
                    const float high = running.out[b][8 * c + e + step / 4];
                    low = (upper ? high : low) + shuffle_xor(upper ? low : high, step);
                }
        }
    }
}

// weights[i] = what the outputs of part i (of maximum and sum parts[i]) count in the whole; returns
// the whole's two. The maximum is one that a tag does not change.
template <int N> DEVICE float2 merge_weights(float weights[N], const float2 *parts) {
    float2 whole = make_float2(LOWEST, 0.0f);
#pragma unroll
    for (int i = 0; i < N; i++) whole.x = fmaxf(whole.x, parts[i].x);
    whole.x = __uint_as_float(__float_as_uint(whole.x) & ~3u);
#pragma unroll
    for (int i = 0; i < N; i++) {
        weights[i] = exp2_fast(parts[i].x - whole.x);
        whole.y += weights[i] * parts[i].y;
    }
    return whole;
}

// Who has which queries in a pass: groups of warps. The last group with queries may have fewer;
// what is computed beyond is not used.
struct ByQuads {
    static constexpr int GROUPS = ::GROUPS;
    static INSIDE int first_query(int pass, int group) { return (pass * GROUPS + group) * BATCH; }
    static INSIDE int first_computed(int pass, int group) {
        return min(first_query(pass, group), QUERIES - BATCH);
    }
    // Which of a pass's parts is a warp's, of its query b. A group's lie one behind the other.
    static INSIDE int part(int b, int group, int member) {
        return (b * GROUPS + group) * MEMBERS + member;
    }
};

// Where a block's part of a query is.
DEVICE int part_at(int kv_head, int query, int split) {
    return ((kv_head * QUERIES + query) * SPLITS + split) * PART_FLOATS;
}

// Tags a block's parts without values.
DEVICE void tag_parts(float *parts, int kv_head, int split, u32 tag) {
    static_assert(PART_FLOATS % 4 == 0, "16 bytes a store");
    for (int i = threadIdx.x; i < QUERIES * PART_FLOATS / 4; i += CONSUMERS) {
        float *to = parts + part_at(kv_head, i / (PART_FLOATS / 4), split);
        store_relaxed_16(to + i % (PART_FLOATS / 4) * 4, make_uint4(tag, tag, tag, tag));
    }
}

// Adds up the parts of the block's warps, one element a thread, to the block's.
template <class Way>
DEVICE void add_warps(const float *outputs, const float2 *states, float *parts, Tag made, int pass,
                      int kv_head, int split) {
    constexpr int GROUPS = Way::GROUPS, MEMBERS = WARPS / GROUPS;
    for (int index = threadIdx.x; index < GROUPS * BATCH * HEAD_DIM; index += CONSUMERS) {
        const int b = index / HEAD_DIM / GROUPS, of = index / HEAD_DIM % GROUPS;
        const int d = index % HEAD_DIM;
        const int query = Way::first_computed(pass, of) + b;
        if (query < Way::first_query(pass, of)) continue; // another group's, or of the pass before
        float weights[MEMBERS];
        const float2 state = merge_weights<MEMBERS>(weights, states + Way::part(b, of, 0));
        float sum = 0.0f;
#pragma unroll
        for (int m = 0; m < MEMBERS; m++)
            sum += weights[m] * outputs[Way::part(b, of, m) * HEAD_DIM + d];
        float *to = parts + part_at(kv_head, query, split);
        store_tagged(to + d, sum, made.tag);
        if (d == 0) {
            store_tagged(to + HEAD_DIM, state.x, made.tag);
            store_tagged(to + HEAD_DIM + 1, state.y, made.tag);
        }
    }
}

// Adds up the parts of a head's COUNT blocks, one element of this block's slice a thread.
template <class Way, int COUNT>
DEVICE void add_blocks(const float *parts, float *out, Tag made, int pass, int kv_head, int split) {
    constexpr int GROUPS = Way::GROUPS, SLICE = HEAD_DIM / COUNT;
    for (int index = threadIdx.x; index < GROUPS * BATCH * SLICE; index += CONSUMERS) {
        const int b = index / SLICE / GROUPS, group = index / SLICE % GROUPS;
        const int d = split * SLICE + index % SLICE;
        const int query = Way::first_computed(pass, group) + b;
        if (query < Way::first_query(pass, group)) continue;
        const int head = kv_head * QUERIES + query;
        const float *from = parts + part_at(kv_head, query, 0);
        float2 states[COUNT];
        float values[COUNT], weights[COUNT];
        u32 raw[COUNT][3];
        bool here;
        do { // all at once, and again
            here = true;
#pragma unroll
            for (int s = 0; s < COUNT; s++) {
                raw[s][0] = load_relaxed(from + s * PART_FLOATS + d);
                raw[s][1] = load_relaxed(from + s * PART_FLOATS + HEAD_DIM);
                raw[s][2] = load_relaxed(from + s * PART_FLOATS + HEAD_DIM + 1);
            }
#pragma unroll
            for (int s = 0; s < COUNT; s++)
                here &= made.on(raw[s][0]) && made.on(raw[s][1]) && made.on(raw[s][2]);
        } while (!here);
#pragma unroll
        for (int s = 0; s < COUNT; s++) {
            values[s] = untagged(raw[s][0]);
            states[s] = make_float2(untagged(raw[s][1]), untagged(raw[s][2]));
        }
        const float2 state = merge_weights<COUNT>(weights, states);
        float sum = 0.0f;
#pragma unroll
        for (int s = 0; s < COUNT; s++) sum += weights[s] * values[s];
        store_copies(out + head * HEAD_DIM + d, HEADS * HEAD_DIM, sum / state.y, made.tag);
    }
}
