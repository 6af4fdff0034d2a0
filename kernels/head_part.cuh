// The new token's part of attention_single.cu: a head of the product's result, rotated as rope.cu
// does it, into shared memory, its tile and the cache. Macros: rotate.cuh, attention.cuh.
#pragma once
#include "attention.cuh"
#include "rotate.cuh"
#if KV_CODE != KV_BF16
#include "attention_codes.cuh"
#endif

// A lane's part of the head of a row at `from`, as attention takes it: 8 elements, and where it has
// two pieces the 8 that they rotate with. A warp takes a head. A value is not normed and not
// rotated.
struct HeadPart {
    int first, second; // pieces; -1: none
    uint4 low, high;
    INSIDE HeadPart() {
        const int lane = threadIdx.x % 32, rest = lane - HEAD_PAIRS;
        first = rest < 0 ? lane : rest < HEAD_REST ? HEAD_PAIRS + lane : -1;
        second = rest < 0 ? lane + HEAD_PAIRS : -1;
    }
    INSIDE void load(const u16 *from, const float *angles, bool is_value, const float *bias,
                     const float *weight) {
        Angles by;
        low = load_once(from + 8 * max(first, 0));
        high = load_once(from + 8 * max(second, 0));
        by.load(angles + (second < 0 ? 0 : 8 * first));
#if QKV_BIAS || QK_NORM
        float factor = 1.0f;
#if QK_NORM
        factor = norm_factor(head_squares(from, bias), HEAD_DIM);
#endif
        float a[8], b[8];
        unpack(low, a);
        unpack(high, b);
        const int a_at = 8 * max(first, 0), b_at = 8 * max(second, 0);
        adjust(a, bias + a_at, is_value ? nullptr : weight + a_at, factor);
        adjust(b, bias + b_at, is_value ? nullptr : weight + b_at, factor);
        if (!is_value && second >= 0) by.rotate(a, b);
        low = pack(a), high = pack(b);
#else
        if (!is_value && second >= 0) by.rotate(low, high);
#endif
    }
    INSIDE void store(u16 *head) const {
        if (first >= 0) *(uint4 *)(head + 8 * first) = low;
        if (second >= 0) *(uint4 *)(head + 8 * second) = high;
    }
#if KV_CODE == KV_BF16
    // The same lane's copy of a stored head into row `row` of a tile.
    INSIDE void place(const u16 *head, u8 *tile, int row) const {
        if (first >= 0)
            *(uint4 *)(tile + piece_offset(row, first)) = *(const uint4 *)(head + 8 * first);
        if (second >= 0)
            *(uint4 *)(tile + piece_offset(row, second)) = *(const uint4 *)(head + 8 * second);
    }
#endif
};
#if KV_CODE != KV_BF16
// A new key or value, bf16 in shared memory, into its codes and behind them its scales there, and
// if `cached` into the cache. By a whole warp.
DEVICE void encode_fresh(u16 *fresh, bool cached, u8 *codes, u8 *scales) {
    const int lane = threadIdx.x % 32;
    u8 *own = (u8 *)fresh;
    u16 v[KV_GROUPS];
    __syncwarp();
#pragma unroll
    for (int c = 0; c < KV_GROUPS; c++) v[c] = fresh[32 * c + lane];
    __syncwarp();
    kv_encode(v, own, own + KV_ROW, lane);
    __syncwarp();
    if (!cached) return;
    if (lane < KV_PIECES) ((uint4 *)codes)[lane] = ((const uint4 *)own)[lane];
    if (lane < KV_SCALES) scales[lane] = own[KV_ROW + lane];
}
#endif
