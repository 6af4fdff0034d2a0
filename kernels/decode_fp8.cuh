// FP8 weights of a decode product (decode_product.cuh): E4M3, one f32 scale a row, times
// activations rounded to E4M3 with one scale for all of a token's x, which is absmax / 448, as the
// prompt's kernels have it.
//
// 128 bytes of a row are 128 columns, a half is 64. Both sides are exact in f16: mma.m16n8k16,
// f16 x f16 -> f32, so that sums are f32's (tensor cores add FP8 products with fewer bits). Column
// 4 half + token of b holds that half's x.
//
// Every warp has a line of each slot, and the rows' scales follow a slot's weights. Rows are
// multiples of 16 bytes, so a last line may be short.
#pragma once

#if FP8_KINDS
#define FP8_LINE_BYTES (2 * 128) // a line's activations as f16
static_assert(FP8_LINE_BYTES <= EXCHANGE_BYTES, "a warp exchanges a line's");

DEVICE u32 f16_of_e4m3(u32 two) { // of the lower 16 bits
    u32 pair;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(pair) : "h"((u16)two));
    return pair;
}
DEVICE u32 round_to_e4m3(float low, float high) {
    u16 two;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(two) : "f"(high), "f"(low));
    return two;
}

// The x of all tokens, each in its columns of b, and their scales.
template <int K, int KSPLIT>
DEVICE void load_fp8(u32 (&b)[KSPLIT][8], float (&x_scale)[ROWS], const Multiply &m, u8 *scratch) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, r = lane / 4, t = lane % 4;
    __shared__ u32 maxima[ROWS][WARPS];

    // A lane's 4 of each line's 128 columns.
    auto column = [&](int i) { return min(128 * (i * WARPS + warp) + 4 * lane, K); };
    uint4 raw[ROWS * KSPLIT];
    u32 missing = 0;
#pragma unroll
    for (int i = 0; i < ROWS * KSPLIT; i++) {
        raw[i] = make_uint4(0, 0, 0, 0);
        if (column(i % KSPLIT) < K) missing |= 1u << i;
    }
    while (__any_sync(0xffffffffu, missing)) {
#pragma unroll
        for (int i = 0; i < ROWS * KSPLIT; i++)
            if (missing >> i & 1)
                raw[i] = load_relaxed_16(m.x + i / KSPLIT * X_STRIDE<K> + column(i % KSPLIT));
#pragma unroll
        for (int i = 0; i < ROWS * KSPLIT; i++)
            if (m.tag.on(raw[i])) missing &= ~(1u << i);
    }
    // Magnitudes compare as their bits do, NaN and infinity above all numbers.
    u32 largest[ROWS] = {};
#pragma unroll
    for (int i = 0; i < ROWS * KSPLIT; i++) {
        raw[i].x &= ~3u, raw[i].y &= ~3u, raw[i].z &= ~3u, raw[i].w &= ~3u; // without the tags
        u32 &of_token = largest[i / KSPLIT];
        of_token =
            max(max(max(raw[i].x & 0x7fffffffu, raw[i].y & 0x7fffffffu), raw[i].z & 0x7fffffffu),
                max(raw[i].w & 0x7fffffffu, of_token));
    }
#pragma unroll
    for (int token = 0; token < ROWS; token++) {
        largest[token] = __reduce_max_sync(0xffffffffu, largest[token]);
        if (lane == 0) maxima[token][warp] = largest[token];
    }
    sync_threads(1, CONSUMERS);
#pragma unroll
    for (int token = 0; token < ROWS; token++) {
#pragma unroll
        for (int w = 0; w < WARPS; w++) largest[token] = max(largest[token], maxima[token][w]);
        x_scale[token] = largest[token] > 0 ? __uint_as_float(largest[token]) / 448.0f : 1.0f;
    }
    u32 *exchange = (u32 *)(scratch + warp * FP8_LINE_BYTES);
#pragma unroll
    for (int i = 0; i < ROWS * KSPLIT; i++) {
        const int token = i / KSPLIT;
        const float scale = x_scale[token];
        const u32 low =
            round_to_e4m3(__uint_as_float(raw[i].x) / scale, __uint_as_float(raw[i].y) / scale);
        const u32 high =
            round_to_e4m3(__uint_as_float(raw[i].z) / scale, __uint_as_float(raw[i].w) / scale);
        __syncwarp();
        *(uint2 *)(exchange + 2 * lane) = make_uint2(f16_of_e4m3(low), f16_of_e4m3(high));
        __syncwarp();
        const uint4 *from = (const uint4 *)(exchange + 32 * (r / 4) + 8 * t), none = {0, 0, 0, 0};
        if (token > 0 && r % 4 != token) continue; // columns of the tokens before, or none
        const uint4 p = r % 4 != token ? none : from[0], q = r % 4 != token ? none : from[1];
        u32 *words = b[i % KSPLIT];
        words[0] = p.x, words[1] = p.y, words[2] = p.z, words[3] = p.w;
        words[4] = q.x, words[5] = q.y, words[6] = q.z, words[7] = q.w;
    }
}

template <int K>
__device__ __noinline__ Multiplied multiply_fp8(Multiply m, LaneScales scales, u8 *scratch) {
    constexpr Shape S = {K, FP8, STORE, 0, 0, 0};
    constexpr int LINES = S.lines, KSPLIT = S.ksplit;
    static_assert(K % 16 == 0, "rows are copied in 16 bytes");
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, r = lane / 4, t = lane % 4;
    const Ring ring = m.at.ring();

    u32 b[KSPLIT][8];
    float x_scale[ROWS];
    load_fp8<K>(b, x_scale, m, scratch);
    SquareSums squares;
    squares.load(m.sums, lane);

    // Whose c0 and c2 are columns 0 (r even) or 4, and c1 and c3 the second token's.
    const bool counts = t == 2 * (r % 2);
#pragma unroll 1
    for (int tile = 0; tile < m.count; tile++) {
        float acc[4] = {}, scale = 0.0f;
#pragma unroll
        for (int chunk = 0; chunk < KSPLIT; chunk++) {
            ring.wait(m.at);
            const u8 *slot = ring.at(m.at);
            if (chunk == 0)
                scale = *(const float *)(slot + WEIGHT_BYTES + scales.run_offset +
                                         ((scales.bit & 127) + scales.offset) / 8);
            if (chunk * WARPS + warp < LINES) {
                constexpr int stride = S.slot_row_bytes;
                const u8 *base = slot + lane / 8 * stride + warp * 128 + lane % 8 * 16;
                // What follows a short line in the slot may be NaN, which an x of 0 would not hide.
                const bool there = K % 128 == 0 || 128 * (chunk * WARPS + warp) + lane % 8 * 16 < K;
                const uint4 none = {0, 0, 0, 0}, low = there ? *(const uint4 *)base : none;
                const uint4 high = there ? *(const uint4 *)(base + 4 * stride) : none;
                const u32 lows[4] = {low.x, low.y, low.z, low.w},
                          highs[4] = {high.x, high.y, high.z, high.w};
#pragma unroll
                for (int w = 0; w < 4; w++)
                    mma_f16(acc, f16_of_e4m3(lows[w]), f16_of_e4m3(highs[w]),
                            f16_of_e4m3(lows[w] >> 16), f16_of_e4m3(highs[w] >> 16),
                            b[chunk][2 * w], b[chunk][2 * w + 1]);
            }
            ring.release(m.at, 1);
            m.at.advance();
        }
        scales.advance(tile, 1);
#pragma unroll
        for (int token = 0; token < ROWS; token++) {
            const float total =
                add_lanes(counts ? acc[token] : 0.0f, counts ? acc[2 + token] : 0.0f, lane);
            if ((lane & 6) == 0 && warp < LINES)
                m.part(token, 8 * tile + 4 * (lane % 2) + lane / 8, warp) =
                    total * (scale * x_scale[token]);
        }
    }
    return {m.at, squares.sum(m.sums, m.tag, lane)};
}
#endif
