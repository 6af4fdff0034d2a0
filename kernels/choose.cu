// The next token of each of many sequences, from its row of logits, and how likely tokens were.
//
// choose_rows: row i of `logits`, f32 [rows, VOCAB], by `choices[i]` (struct Choice):
//   GIVEN    no token is chosen; the log-probability is that of `token`.
//   GREEDY   the first of the largest logits, edited and among the allowed ones.
//   DRAW     as sample::Plan says: scores are logits over `temperature`, edited and among the
//            allowed ones. top_k keeps the largest and those equal to the last of them; then
//            `excluded`, 1 - top_p, leaves out the least likely ones that together have at most
//            that probability, equals together; then min_p keeps those that are at least so many
//            times as likely as the most likely one. `at` falls on one of them in order of ids.
//   chosen[i] = {token, bits of its log-probability}. The token is NOT_FINITE where a logit is not
//            finite, and NONE_LEFT where the settings leave none.
//   tops     [rows, MOST_TOPS] of {id, bits of its log-probability}: the choices[i].top largest
//            logits, of equals the lower id first.
//   Log-probabilities are of the logits as they were: before edits, mask and temperature.
//
//   edits    {id, add, repetition, subtract} for each edited token, each id once: `add` is added,
//            then what is positive is divided by `repetition` and what is not is multiplied, then
//            `subtract` is subtracted. `add` becomes the logit as it was.
//   masks    u32 words, bit id % 32 of word id / 32
//   grid: rows, block: CHOOSE_THREADS. A row is read from L2 several times; shared memory holds
//   histograms.
//
// Probabilities are summed as integers, in units of 2^-40 of the largest one: sums do not depend on
// the order of additions, so that a row's token is the same on every run. What weighs less than
// half a unit is never drawn.
//
// Macros: VOCAB, CHOOSE_THREADS, MOST_TOPS; GREEDY, DRAW, GIVEN; NOT_FINITE, NONE_LEFT.
#include "common.cuh"

static_assert(CHOOSE_THREADS == 1024, "32 warps, a lane each in the last step of a sum");

struct Choice {
    int kind, token, top, top_k;
    float temperature, excluded, min_p;
    int first_edit, edits, mask; // mask: where its words begin; -1: none
    double at;
};
static_assert(sizeof(Choice) == 48, "as smq-engine writes it");

#define LEAST __uint_as_float(0xff800000u)

// Orders as numbers do, -inf lowest.
DEVICE u32 key_of(float v) {
    const u32 bits = __float_as_uint(v);
    return bits ^ ((u32)((int)bits >> 31) | 0x80000000u);
}

// A candidate and its place: larger is better, of equals the lower id.
DEVICE u64 ranked(float v, int id) { return (u64)key_of(v) << 32 | (u32)~id; }
DEVICE int id_of(u64 rank) { return (int)~(u32)rank; }
DEVICE float value_of(u64 rank) {
    const u32 key = (u32)(rank >> 32);
    return __uint_as_float(key & 0x80000000u ? key ^ 0x80000000u : ~key);
}

__shared__ u64 of_warps[32];

DEVICE u64 block_max(u64 v) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) {
        const u64 other = __shfl_xor_sync(0xffffffffu, v, d);
        v = other > v ? other : v;
    }
    __syncthreads(); // what was there may still be read
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = v;
    __syncthreads();
    v = of_warps[threadIdx.x % 32];
#pragma unroll
    for (int d = 16; d > 0; d /= 2) {
        const u64 other = __shfl_xor_sync(0xffffffffu, v, d);
        v = other > v ? other : v;
    }
    return v;
}

DEVICE u64 warp_sum_u64(u64 v) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(0xffffffffu, v, d);
    return v;
}

// In the order of threads, which is fixed.
DEVICE double block_sum(double v) {
    __shared__ double parts[32];
#pragma unroll
    for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(0xffffffffu, v, d);
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
    __syncthreads();
    double sum = 0.0;
    for (int i = 0; i < 32; i++) sum += parts[i];
    return sum;
}

// Of a score below the largest one.
DEVICE u64 weight_of(float below) { return (u64)((double)expf(below) * 1099511627776.0 + 0.5); }

// What a row is drawn from.
struct Scores {
    const float *row;
    const u32 *mask;
    float temperature;
    // LEAST where the token is not allowed.
    INSIDE float at(int id) const {
        if (mask && !(mask[id / 32] >> (id % 32) & 1)) return LEAST;
        return row[id] / temperature;
    }
};

__shared__ u64 histogram[256];
__shared__ u64 picked_before;
__shared__ u32 picked;

// The largest key for which what `f(key, score)` sums up to over keys from it on is at least
// `wanted` (FROM_TOP), or the
// smallest for which the sum over keys up to it is above `wanted`; digit by digit.
template <bool FROM_TOP, class F> DEVICE u32 select(const Scores &scores, u64 wanted, F f) {
    u32 prefix = 0;
    u64 before = 0; // the sum over keys that are past the prefix
#pragma unroll 1
    for (int shift = 24; shift >= 0; shift -= 8) {
        __syncthreads();
        if (threadIdx.x < 256) histogram[threadIdx.x] = 0;
        __syncthreads();
        for (int id = threadIdx.x; id < VOCAB; id += CHOOSE_THREADS) {
            const float score = scores.at(id);
            const u32 key = key_of(score);
            if (shift < 24 && key >> (shift + 8) != prefix >> (shift + 8)) continue;
            const u64 counts = f(key, score);
            if (counts) atomicAdd(&histogram[key >> shift & 255], counts);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            u64 sum = before;
            int digit = FROM_TOP ? 255 : 0;
            for (;; digit += FROM_TOP ? -1 : 1) {
                const u64 next = sum + histogram[digit];
                const bool last = FROM_TOP ? digit == 0 : digit == 255;
                if (last || (FROM_TOP ? next >= wanted : next > wanted)) break;
                sum = next;
            }
            picked = (u32)digit, picked_before = sum;
        }
        __syncthreads();
        prefix |= picked << shift;
        before = picked_before;
    }
    return prefix;
}

DEVICE int draw(const Scores &scores, const Choice &choice) {
    u64 best = 0;
    for (int id = threadIdx.x; id < VOCAB; id += CHOOSE_THREADS) {
        const u64 rank = ranked(scores.at(id), id);
        best = rank > best ? rank : best;
    }
    best = block_max(best);
    const float largest = value_of(best);
    if (!(largest > LEAST) || largest - largest != 0.0f) return NONE_LEFT;
    u32 lowest = key_of(LEAST) + 1; // the least key that is kept
    if (choice.top_k > 0 && choice.top_k < VOCAB)
        lowest = max(lowest, select<true>(scores, (u64)choice.top_k, [&](u32 key, float) {
                         return (u64)(key >= lowest);
                     }));
    auto weight = [&](u32 key, float score) {
        return key >= lowest ? weight_of(score - largest) : 0ull;
    };
    auto total = [&]() {
        u64 sum = 0;
        for (int id = threadIdx.x; id < VOCAB; id += CHOOSE_THREADS) {
            const float score = scores.at(id);
            sum += weight(key_of(score), score);
        }
        sum = warp_sum_u64(sum);
        __syncthreads();
        if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = sum;
        __syncthreads();
        return warp_sum_u64(of_warps[threadIdx.x % 32]);
    };
    if (choice.excluded > 0.0f) {
        const u64 out = (u64)((double)choice.excluded * (double)total());
        const u32 key = select<false>(scores, out, weight);
        lowest = max(lowest, min(key, (u32)(best >> 32)));
    }
    if (choice.min_p > 0.0f) {
        // exp is monotone: the least score that is likely enough has a key, found as above among
        // those that are kept.
        u64 least = ~0ull;
        for (int id = threadIdx.x; id < VOCAB; id += CHOOSE_THREADS) {
            const float score = scores.at(id);
            const u64 key = key_of(score);
            const bool kept = key >= lowest && expf(score - largest) >= choice.min_p;
            if (kept && key < least) least = key;
        }
        lowest = max(lowest, (u32)~block_max(~least));
    }
    // A warp has consecutive ids, so that the sum up to a token is in order of ids.
    constexpr int IDS_A_WARP = (VOCAB + 1023) / 1024 * 32;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int first = warp * IDS_A_WARP, end = min(first + IDS_A_WARP, VOCAB);
    u64 sum = 0;
    for (int id = first + lane; id < end; id += 32) {
        const float score = scores.at(id);
        sum += weight(key_of(score), score);
    }
    sum = warp_sum_u64(sum);
    __syncthreads();
    if (lane == 0) of_warps[warp] = sum;
    if (threadIdx.x == 0) picked = 0;
    __syncthreads();
    u64 all = 0, before = 0;
    for (int i = 0; i < 32; i++) {
        if (i < warp) before += of_warps[i];
        all += of_warps[i];
    }
    u64 target = (u64)(choice.at * (double)all);
    target = target < all ? target : all - 1;
    if (target >= before && target < before + sum) { // one warp
        u64 rest = target - before;
        for (int start = first; start < end; start += 32) {
            const int id = start + lane;
            const float score = id < end ? scores.at(id) : LEAST;
            const u64 own = id < end ? weight(key_of(score), score) : 0;
            u64 upto = own; // and the lanes before
#pragma unroll
            for (int d = 1; d < 32; d *= 2) {
                const u64 other = __shfl_up_sync(0xffffffffu, upto, d);
                if (lane >= d) upto += other;
            }
            const u32 past = __ballot_sync(0xffffffffu, upto > rest);
            if (past) {
                if (lane == 0) picked = (u32)(start + __ffs(past) - 1);
                break;
            }
            rest -= __shfl_sync(0xffffffffu, upto, 31);
        }
    }
    __syncthreads();
    return (int)picked;
}

KERNEL __launch_bounds__(CHOOSE_THREADS)
    choose_rows(float *logits, const Choice *choices, uint4 *edits, const u32 *masks, uint2 *chosen,
                uint2 *tops) {
    let_next_kernel_start();
    wait_for_previous_kernel();
    const Choice choice = choices[blockIdx.x];
    float *row = logits + (u64)blockIdx.x * VOCAB;

    u64 best = 0;
    bool finite = true;
    for (int id = threadIdx.x; id < VOCAB; id += CHOOSE_THREADS) {
        const float v = row[id];
        finite &= v - v == 0.0f;
        const u64 rank = ranked(v, id);
        best = rank > best ? rank : best;
    }
    if (!__syncthreads_and(finite)) {
        if (threadIdx.x == 0) chosen[blockIdx.x] = make_uint2((u32)NOT_FINITE, 0);
        return;
    }
    best = block_max(best);
    const float largest = value_of(best);
    double sum = 0.0;
    for (int id = threadIdx.x; id < VOCAB; id += CHOOSE_THREADS)
        sum += (double)expf(row[id] - largest);
    const double log_sum = (double)largest + log(block_sum(sum));
    auto log_prob = [&](float logit) { return __float_as_uint((float)((double)logit - log_sum)); };

    u64 next = best;
    for (int i = 0; i < min(choice.top, MOST_TOPS); i++) {
        if (i > 0) {
            const u64 last = next;
            next = 0;
            for (int id = threadIdx.x; id < VOCAB; id += CHOOSE_THREADS) {
                const u64 rank = ranked(row[id], id);
                if (rank < last && rank > next) next = rank;
            }
            next = block_max(next);
        }
        const uint2 top = make_uint2((u32)id_of(next), log_prob(value_of(next)));
        if (threadIdx.x == 0) tops[blockIdx.x * MOST_TOPS + i] = top;
    }

    if (choice.kind == GIVEN) {
        if (threadIdx.x == 0)
            chosen[blockIdx.x] = make_uint2((u32)choice.token, log_prob(row[choice.token]));
        return;
    }
    __syncthreads(); // everybody has read the row
    for (int i = threadIdx.x; i < choice.edits; i += CHOOSE_THREADS) {
        uint4 &edit = edits[choice.first_edit + i];
        const float repetition = __uint_as_float(edit.z), before = row[edit.x];
        float v = before + __uint_as_float(edit.y);
        v = v > 0.0f ? v / repetition : v * repetition;
        row[edit.x] = v - __uint_as_float(edit.w);
        edit.y = __float_as_uint(before);
    }
    __syncthreads();
    const Scores scores = {row, choice.mask < 0 ? nullptr : masks + choice.mask,
                           choice.kind == DRAW ? choice.temperature : 1.0f};
    int token;
    if (choice.kind == DRAW) {
        token = draw(scores, choice);
    } else {
        u64 most = 0;
        for (int id = threadIdx.x; id < VOCAB; id += CHOOSE_THREADS) {
            const u64 rank = ranked(scores.at(id), id);
            most = rank > most ? rank : most;
        }
        most = block_max(most);
        token = value_of(most) > LEAST ? id_of(most) : NONE_LEFT;
    }
    if (threadIdx.x == 0 && token < 0) chosen[blockIdx.x] = make_uint2((u32)token, 0);
    if (token < 0) return;
    // Its logit as it was.
    if (threadIdx.x == 0) chosen[blockIdx.x] = make_uint2((u32)token, log_prob(row[token]));
    __syncthreads();
    for (int i = threadIdx.x; i < choice.edits; i += CHOOSE_THREADS) {
        const uint4 edit = edits[choice.first_edit + i];
        if (edit.x == (u32)token)
            chosen[blockIdx.x] = make_uint2((u32)token, log_prob(__uint_as_float(edit.y)));
    }
}
