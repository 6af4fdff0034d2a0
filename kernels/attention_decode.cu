// Attention of the next token (or the next few tokens) of one sequence over its key/value cache.
//
//   out[m, h, :] = sum_j softmax_j(q[m, h, :] . k[j, h', :] / sqrt(HEAD_DIM)) v[j, h', :],  h' = h / (HEADS / KV_HEADS)
//   over the positions j <= *position + m (with WINDOW > 0 also j > *position + m - WINDOW).
//
// The kernel also rotates q and k (RoPE) and writes the new rows of k and v, rounded to bf16, into the cache.
//
//   qkv            f32 [ROWS, (HEADS + 2 KV_HEADS) HEAD_DIM], not rotated
//   k_cache, v_cache  bf16 [KV_HEADS, capacity, HEAD_DIM]; *position rows are filled, rows *position + m are added
//   rope           f32 [ROWS, 2, ROTARY_HALF]: cosines, then sines, of each row's position
//   out            f32 [ROWS, HEADS HEAD_DIM]
//
// Macros: HEADS, KV_HEADS, HEAD_DIM (32, 64, 96, 128), ROTARY_HALF, ROWS (1 to 8), WINDOW (0: none),
// SPLITS (1, 2, 4, 8).
// Grid (SPLITS, KV_HEADS), clusters of SPLITS blocks, 32 DECODE_WARPS threads, and this much dynamic shared memory:
//   32 HEAD_DIM DECODE_UNROLL DECODE_STAGES DECODE_WARPS + 4 HEAD_DIM (QUERIES + ROWS)
//     + 4 BATCH (HEAD_DIM + 2) DECODE_WARPS + 4 BATCH (HEAD_DIM + 2 SPLITS) bytes, with
//   QUERIES = ROWS HEADS / KV_HEADS, PASSES = ceil(QUERIES / floor(512 / HEAD_DIM)), BATCH = ceil(QUERIES / PASSES).
//
// One cluster handles one key/value head and all queries that share it; its blocks divide the cached tokens evenly,
// whatever *position is, so that one CUDA graph serves every length. At one row the kernel is bound by memory:
// tensor cores would not help, and f32 arithmetic loses nothing. Every warp has a ring of its own, filled by bulk
// copies of 8 DECODE_UNROLL tokens (contiguous in the cache): no block barrier in the loop, and few instructions
// keep much in flight. A quad of lanes takes a token and keeps its own running maximum, sum and output. At the end
// the quads of a warp are added up, then the warps of a block; the block sends every block of the cluster that
// block's slice of HEAD_DIM with asynchronous stores that count down an mbarrier there. (A cluster barrier would need
// a release of all global writes first.) The order of additions is fixed.
#include "common.cuh"

#ifndef DECODE_WARPS
#define DECODE_WARPS 4
#endif
#ifndef DECODE_UNROLL
#define DECODE_UNROLL 4 // tokens a quad takes at once
#endif
#ifndef DECODE_STAGES
#define DECODE_STAGES 2 // times that in flight
#endif

constexpr int GROUP = HEADS / KV_HEADS;
constexpr int QUERIES = ROWS * GROUP; // query vectors that share the cluster's key/value head: row * GROUP + head
// A lane keeps BATCH * HEAD_DIM / 4 outputs in registers (at most 128); more queries take several passes.
constexpr int PASSES = (QUERIES + 512 / HEAD_DIM - 1) / (512 / HEAD_DIM);
constexpr int BATCH = (QUERIES + PASSES - 1) / PASSES;
constexpr int THREADS = 32 * DECODE_WARPS;
constexpr int CHUNKS = HEAD_DIM / 32; // 16-byte pieces of a token that a lane reads: from element 32 c + 8 t on
constexpr int ROW_WIDTH = (HEADS + 2 * KV_HEADS) * HEAD_DIM;
constexpr int SLICE = HEAD_DIM / SPLITS; // output elements that a block finishes
static_assert(HEAD_DIM % 32 == 0 && HEAD_DIM <= 128 && 2 * ROTARY_HALF <= HEAD_DIM && HEADS % KV_HEADS == 0, "shape");
static_assert(SPLITS == 1 || SPLITS == 2 || SPLITS == 4 || SPLITS == 8, "a portable cluster size");

// Shared memory, in bytes.
constexpr int STEP_TOKENS = 8 * DECODE_UNROLL;
constexpr int SLOT_BYTES = STEP_TOKENS * HEAD_DIM * 2; // keys or values of a warp's step
constexpr int RING_BYTES = DECODE_WARPS * DECODE_STAGES * 2 * SLOT_BYTES;
constexpr int QUERY_BYTES = QUERIES * HEAD_DIM * 4; // f32, rotated, times log2(e) / sqrt(HEAD_DIM)
constexpr int NEW_BYTES = ROWS * HEAD_DIM * 2;      // the new keys; the new values follow
constexpr int RECEIVED_BYTES = 4 * BATCH * (HEAD_DIM + 2 * SPLITS);

constexpr float MASKED = -3e38f; // a score that weighs nothing, below LOWEST
constexpr float LOWEST = -1e30f; // start of a running maximum: finite, so that no difference is inf - inf

// ---- PTX ----

// Two halves of a barrier of the cluster's threads; as relaxed, the first orders no memory access.
DEVICE void arrive_at_cluster() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
DEVICE void wait_for_cluster() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// Like barrier_wait, and what other blocks of the cluster sent is visible afterwards.
DEVICE void wait_for_sends(u64 *barrier, u32 parity) {
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again;\n"
                 "}\n" ::"r"(shared_address(barrier)),
                 "r"(parity)
                 : "memory");
}
// The same variable in the shared memory of block `rank` of the cluster.
DEVICE u32 address_in_block(u32 address, u32 rank) {
    u32 there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
    return there;
}
// Stores into a block of the cluster and counts the bytes at its barrier.
DEVICE void send(u32 to, u32 barrier, float v) {
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(to), "f"(v),
                 "r"(barrier)
                 : "memory");
}
DEVICE void send(u32 to, u32 barrier, float2 v) {
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(to),
                 "f"(v.x), "f"(v.y), "r"(barrier)
                 : "memory");
}

DEVICE float exp2_fast(float x) { // 2 ulp
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE float shuffle_xor(float v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }

// ---- pieces ----

DEVICE void unpack(uint4 raw, float v[8]) {
    v[0] = bf16_low(raw.x), v[1] = bf16_high(raw.x), v[2] = bf16_low(raw.y), v[3] = bf16_high(raw.y);
    v[4] = bf16_low(raw.z), v[5] = bf16_high(raw.z), v[6] = bf16_low(raw.w), v[7] = bf16_high(raw.w);
}

// What a quad knows of the tokens that it has seen, for each query of the pass.
struct Running {
    float max[BATCH], sum[BATCH], out[BATCH][8 * CHUNKS];
};

// scores[b][u] = log2(e) / sqrt(HEAD_DIM) q_b . k_u for the quad's N tokens; all four lanes get them.
// keys: this lane's first element of its first token; token u is the row 8 u further.
template <int N> DEVICE void score(float scores[BATCH][N], const u16 *keys, const float *queries, int first_query) {
#pragma unroll
    for (int b = 0; b < BATCH; ++b)
#pragma unroll
        for (int u = 0; u < N; ++u) scores[b][u] = 0.0f;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
        float k[N][8];
#pragma unroll
        for (int u = 0; u < N; ++u) unpack(*(const uint4 *)(keys + 8 * u * HEAD_DIM + 32 * c), k[u]);
#pragma unroll
        for (int b = 0; b < BATCH; ++b) {
            const float4 *q = (const float4 *)(queries + min(first_query + b, QUERIES - 1) * HEAD_DIM + 32 * c);
            const float4 q0 = q[0], q1 = q[1];
#pragma unroll
            for (int u = 0; u < N; ++u) { // two chains: half the latency
                const float even = q0.x * k[u][0] + q0.z * k[u][2] + q1.x * k[u][4] + q1.z * k[u][6];
                const float odd = q0.y * k[u][1] + q0.w * k[u][3] + q1.y * k[u][5] + q1.w * k[u][7];
                scores[b][u] += even + odd;
            }
        }
    }
#pragma unroll
    for (int b = 0; b < BATCH; ++b)
#pragma unroll
        for (int u = 0; u < N; ++u) {
            scores[b][u] += shuffle_xor(scores[b][u], 1);
            scores[b][u] += shuffle_xor(scores[b][u], 2);
        }
}

// Hides what query b (position past + row) may not see; token u is at position token + 8 u, `limit` ends all.
template <int N> DEVICE void mask(float scores[BATCH][N], int token, int limit, int past, int first_query) {
#pragma unroll
    for (int b = 0; b < BATCH; ++b) {
        const int query_position = past + min(first_query + b, QUERIES - 1) / GROUP;
#pragma unroll
        for (int u = 0; u < N; ++u) {
            const int j = token + 8 * u;
            const bool visible = j < limit && j <= query_position && (WINDOW == 0 || j > query_position - WINDOW);
            if (!visible) scores[b][u] = MASKED;
        }
    }
}

// Adds the N tokens, whose values lie as the keys did.
template <int N> DEVICE void attend(Running &running, float scores[BATCH][N], const u16 *values) {
#pragma unroll
    for (int b = 0; b < BATCH; ++b) {
        float max = running.max[b];
#pragma unroll
        for (int u = 0; u < N; ++u) max = fmaxf(max, scores[b][u]);
        const float rescale = exp2_fast(running.max[b] - max);
        running.max[b] = max;
        running.sum[b] *= rescale;
#pragma unroll
        for (int u = 0; u < N; ++u) {
            scores[b][u] = exp2_fast(scores[b][u] - max);
            running.sum[b] += scores[b][u];
        }
#pragma unroll
        for (int e = 0; e < 8 * CHUNKS; ++e) running.out[b][e] *= rescale;
    }
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c)
#pragma unroll
        for (int u = 0; u < N; ++u) {
            float v[8];
            unpack(*(const uint4 *)(values + 8 * u * HEAD_DIM + 32 * c), v);
#pragma unroll
            for (int b = 0; b < BATCH; ++b)
#pragma unroll
                for (int e = 0; e < 8; ++e) running.out[b][8 * c + e] += scores[b][u] * v[e];
        }
}

// Adds up the eight quads of a warp. Afterwards max and sum are the warp's, and lane 4 quad + t holds in out[b][8 c]
// the sum of element 32 c + 8 t + quad: at each step a lane gives half of its elements away and keeps the other.
DEVICE void merge_quads(Running &running, int lane) {
#pragma unroll
    for (int b = 0; b < BATCH; ++b) {
        float max = running.max[b];
#pragma unroll
        for (int step = 16; step >= 4; step /= 2) max = fmaxf(max, shuffle_xor(max, step));
        const float rescale = exp2_fast(running.max[b] - max);
        running.max[b] = max;
        running.sum[b] *= rescale;
#pragma unroll
        for (int e = 0; e < 8 * CHUNKS; ++e) running.out[b][e] *= rescale;
#pragma unroll
        for (int step = 16; step >= 4; step /= 2) {
            running.sum[b] += shuffle_xor(running.sum[b], step);
            const bool upper = lane & step;
#pragma unroll
            for (int c = 0; c < CHUNKS; ++c)
#pragma unroll
                for (int e = 0; e < step / 4; ++e) {
                    const float low = running.out[b][8 * c + e], high = running.out[b][8 * c + e + step / 4];
                    running.out[b][8 * c + e] = (upper ? high : low) + shuffle_xor(upper ? low : high, step);
                }
        }
    }
}

// weights[i] = what the outputs of part i (of maximum and sum parts[i]) count in the whole; returns the whole's two.
template <int N> DEVICE float2 merge_weights(float weights[N], const float2 *parts) {
    float2 part[N], whole = make_float2(LOWEST, 0.0f);
#pragma unroll
    for (int i = 0; i < N; ++i) {
        part[i] = parts[i];
        whole.x = fmaxf(whole.x, part[i].x);
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
        weights[i] = exp2_fast(part[i].x - whole.x);
        whole.y += weights[i] * part[i].y;
    }
    return whole;
}

// ---- the kernel ----

KERNEL __cluster_dims__(SPLITS, 1, 1) __launch_bounds__(THREADS)
    attention_decode(const float *qkv, u16 *k_cache, u16 *v_cache, int capacity, const int *position, const float *rope,
                     float *out) {
    let_next_kernel_start();
    extern __shared__ __align__(16) u8 shared[];
    float *queries = (float *)(shared + RING_BYTES);
    u16 *new_keys = (u16 *)(shared + RING_BYTES + QUERY_BYTES), *new_values = new_keys + ROWS * HEAD_DIM;
    float2 *states = (float2 *)(shared + RING_BYTES + QUERY_BYTES + 2 * NEW_BYTES); // [BATCH][DECODE_WARPS]: max, sum
    float *partials = (float *)(states + BATCH * DECODE_WARPS);                     // [BATCH][DECODE_WARPS][HEAD_DIM]
    float2 *block_states = (float2 *)(partials + BATCH * DECODE_WARPS * HEAD_DIM);  // [BATCH][SPLITS], from the cluster
    float *block_partials = (float *)(block_states + BATCH * SPLITS);               // [BATCH][SPLITS][SLICE]
    __shared__ u64 received, arrived[DECODE_WARPS][DECODE_STAGES][2]; // of sends; of a slot's keys, values

    const int split = blockIdx.x, kv_head = blockIdx.y;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, quad = lane / 4, t = lane % 4;
    if (threadIdx.x == 0) {
        barrier_init(&received, 1);
        fence_barrier_init();
        barrier_expect(&received, RECEIVED_BYTES);
    }
    arrive_at_cluster(); // nobody writes into a block before it runs and its barrier is set up

    // Old tokens: every warp of the cluster gets an equal, contiguous share, in groups of eight.
    constexpr int WARPS = SPLITS * DECODE_WARPS;
    const int past = *position, cluster_warp = split * DECODE_WARPS + warp;
    const int first = WINDOW > 0 ? max(past - WINDOW + 1, 0) : 0;
    const int groups = (past - first + 7) / 8;
    const int token_begin = first + 8 * (groups * cluster_warp / WARPS);
    const int limit = min(first + 8 * (groups * (cluster_warp + 1) / WARPS), past);
    const int steps = (max(limit - token_begin, 0) + STEP_TOKENS - 1) / STEP_TOKENS;
    const u64 head_offset = (u64)kv_head * capacity * HEAD_DIM;
    u16 *ring = (u16 *)(shared + warp * (DECODE_STAGES * 2 * SLOT_BYTES));

    // Steps count on through the passes.
    auto token_of = [&](int step) { return token_begin + (PASSES == 1 ? step : step % steps) * STEP_TOKENS; };
    // Fetches the keys (0) or values (1) of a step.
    auto fetch = [&](const u16 *cache, int is_value, int step) {
        if (step >= steps * PASSES) return;
        const int token = token_of(step), count = min(limit - token, STEP_TOKENS);
        const int stage = step % DECODE_STAGES;
        u16 *slot = ring + (2 * stage + is_value) * (SLOT_BYTES / 2);
        if (is_value && count < STEP_TOKENS) // whatever lies there must not meet a weight of 0
            for (int i = count * (HEAD_DIM / 8) + lane; i < STEP_TOKENS * HEAD_DIM / 8; i += 32)
                ((uint4 *)slot)[i] = make_uint4(0, 0, 0, 0);
        if (lane == 0) {
            u64 *barrier = &arrived[warp][stage][is_value];
            barrier_expect(barrier, count * HEAD_DIM * 2);
            bulk_copy(slot, cache + head_offset + (u64)token * HEAD_DIM, count * HEAD_DIM * 2, barrier);
        }
    };
    if (lane == 0) {
#pragma unroll
        for (int i = 0; i < 2 * DECODE_STAGES; ++i) barrier_init(&arrived[warp][i / 2][i % 2], 1);
        fence_barrier_init();
    }
    __syncwarp();
#pragma unroll
    for (int stage = 0; stage < DECODE_STAGES; ++stage) {
        fetch(k_cache, 0, stage);
        fetch(v_cache, 1, stage);
    }

#pragma unroll 1
    for (int pass = 0; pass < PASSES; ++pass) {
        const int first_query = pass * BATCH;
        // Warp 0 of block 0 has the fewest old tokens, so it takes the new ones.
        if (pass == 0) {
            wait_for_previous_kernel();
            const int pairs = (split == 0 ? QUERIES + 2 * ROWS : QUERIES) * (HEAD_DIM / 2);
            for (int index = threadIdx.x; index < pairs; index += THREADS) {
                const int vector = index / (HEAD_DIM / 2), i = index % (HEAD_DIM / 2);
                const bool is_query = vector < QUERIES, is_key = !is_query && vector < QUERIES + ROWS;
                const int row = is_query ? vector / GROUP : (vector - QUERIES) % ROWS;
                const int head = is_query ? kv_head * GROUP + vector % GROUP
                                          : HEADS + (is_key ? 0 : KV_HEADS) + kv_head;
                const bool rotates = i < ROTARY_HALF;
                const int low = rotates ? i : 2 * i, high = rotates ? i + ROTARY_HALF : 2 * i + 1;
                const float *x = qkv + row * ROW_WIDTH + head * HEAD_DIM;
                float a = x[low], b = x[high];
                if (rotates && (is_query || is_key)) {
                    const float cosine = rope[row * 2 * ROTARY_HALF + i], sine = rope[(row * 2 + 1) * ROTARY_HALF + i];
                    const float rotated = a * cosine - b * sine;
                    b = b * cosine + a * sine;
                    a = rotated;
                }
                if (is_query) {
                    const float scale = 1.4426950408889634f / sqrtf((float)HEAD_DIM);
                    queries[vector * HEAD_DIM + low] = a * scale;
                    queries[vector * HEAD_DIM + high] = b * scale;
                } else {
                    const u64 offset = head_offset + (u64)(past + row) * HEAD_DIM;
                    u16 *copy = new_keys + (is_key ? row : ROWS + row) * HEAD_DIM; // the new values follow the keys
                    u16 *cached = is_key ? k_cache + offset : v_cache + offset;
                    copy[low] = cached[low] = bf16_of(a);
                    copy[high] = cached[high] = bf16_of(b);
                }
            }
            __syncthreads();
        }

        Running running;
#pragma unroll
        for (int b = 0; b < BATCH; ++b) {
            running.max[b] = LOWEST;
            running.sum[b] = 0.0f;
#pragma unroll
            for (int e = 0; e < 8 * CHUNKS; ++e) running.out[b][e] = 0.0f;
        }
        if (split == 0 && warp == 0) {
            const int row = min(quad, ROWS - 1) * HEAD_DIM + 8 * t;
            float scores[BATCH][1];
            score<1>(scores, new_keys + row, queries + 8 * t, first_query);
            mask<1>(scores, past + quad, past + ROWS, past, first_query);
            attend<1>(running, scores, new_values + row);
        }
#pragma unroll 1
        for (int step = pass * steps; step < (pass + 1) * steps; ++step) {
            const int stage = step % DECODE_STAGES, parity = step / DECODE_STAGES % 2;
            const u16 *slot = ring + 2 * stage * (SLOT_BYTES / 2) + quad * HEAD_DIM + 8 * t;
            float scores[BATCH][DECODE_UNROLL];
            barrier_wait(&arrived[warp][stage][0], parity);
            score<DECODE_UNROLL>(scores, slot, queries + 8 * t, first_query);
            __syncwarp();
            fetch(k_cache, 0, step + DECODE_STAGES);
            mask<DECODE_UNROLL>(scores, token_of(step) + quad, limit, past, first_query);
            barrier_wait(&arrived[warp][stage][1], parity);
            attend<DECODE_UNROLL>(running, scores, slot + SLOT_BYTES / 2);
            __syncwarp();
            fetch(v_cache, 1, step + DECODE_STAGES);
        }
        merge_quads(running, lane);

        // The block's warps, one element a thread; then to every block its slice.
#pragma unroll
        for (int b = 0; b < BATCH; ++b) {
            float *partial = partials + (b * DECODE_WARPS + warp) * HEAD_DIM + 8 * t + quad;
#pragma unroll
            for (int c = 0; c < CHUNKS; ++c) partial[32 * c] = running.out[b][8 * c];
            if (lane == 0) states[b * DECODE_WARPS + warp] = make_float2(running.max[b], running.sum[b]);
        }
        wait_for_cluster();
        __syncthreads();
        for (int index = threadIdx.x; index < BATCH * HEAD_DIM; index += THREADS) {
            const int b = index / HEAD_DIM, d = index % HEAD_DIM;
            float weights[DECODE_WARPS];
            const float2 state = merge_weights<DECODE_WARPS>(weights, states + b * DECODE_WARPS);
            float sum = 0.0f;
#pragma unroll
            for (int w = 0; w < DECODE_WARPS; ++w) sum += weights[w] * partials[(b * DECODE_WARPS + w) * HEAD_DIM + d];
            const int to = d / SLICE;
            const u32 there = address_in_block(shared_address(&received), to);
            const float *slot = block_partials + (b * SPLITS + split) * SLICE + d % SLICE;
            send(address_in_block(shared_address(slot), to), there, sum);
            if (d % SLICE == 0)
                send(address_in_block(shared_address(block_states + b * SPLITS + split), to), there, state);
        }
        wait_for_sends(&received, pass % 2);

        // The cluster's blocks, one element of this block's slice a thread.
        for (int index = threadIdx.x; index < BATCH * SLICE; index += THREADS) {
            const int b = index / SLICE, query = first_query + b;
            float weights[SPLITS];
            const float2 state = merge_weights<SPLITS>(weights, block_states + b * SPLITS);
            float sum = 0.0f;
#pragma unroll
            for (int from = 0; from < SPLITS; ++from)
                sum += weights[from] * block_partials[(b * SPLITS + from) * SLICE + index % SLICE];
            if (query < QUERIES) {
                const int k = (kv_head * GROUP + query % GROUP) * HEAD_DIM + split * SLICE + index % SLICE;
                out[query / GROUP * (HEADS * HEAD_DIM) + k] = sum / state.y;
            }
        }
        if (pass + 1 < PASSES) { // what this pass received may be overwritten
            if (threadIdx.x == 0) barrier_expect(&received, RECEIVED_BYTES);
            __syncthreads();
            arrive_at_cluster();
        }
    }
}
