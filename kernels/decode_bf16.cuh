// bf16 weights of a decode product (decode_product.cuh).
//
// 128 bytes of a row are 64 columns, a half is 32. mma.m16n8k16 in f32; x = hi + lo, bf16 each
// (2^-17), one a column. A half has four columns of b, so that a second token takes no more
// products. Every warp has a line of each slot.
#pragma once

// Column r = lane / 4 of b is part r % 4 (hi, lo of the first token, of the second or none) of half
// r / 4.
struct Parts {
    u32 b[4];
};

DEVICE Parts to_parts(uint4 a, uint4 b, int lane) {
    const u32 bits[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
    const int part = lane / 4 % 4;
    Parts out;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float low = untagged(bits[2 * i]), high = untagged(bits[2 * i + 1]);
        u32 hi = bf16_pair(low, high), lo = bf16_pair(low - bf16_low(hi), high - bf16_high(hi));
        out.b[i] = part == 0 ? hi : part == 1 ? lo : ROWS == 1 ? 0 : part == 2 ? hi : lo;
    }
    return out;
}

template <int K> __device__ __noinline__ Multiplied multiply_bf16(Multiply m) {
    constexpr Shape S = {K, BF16, STORE, 0, 0, 0};
    constexpr int LINES = S.lines, KSPLIT = S.ksplit, BATCH = KSPLIT < 4 ? KSPLIT : 4;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, r = lane / 4, t = lane % 4;
    const Ring ring = m.at.ring();

    Parts x[KSPLIT];
#pragma unroll
    for (int first = 0; first < KSPLIT; first += BATCH) {
        // A lane's 8 of 64 columns, the lanes of hi and lo alike, the others none.
        Elements<K, BATCH> raw;
        raw.wait(m.x + (ROWS == 1 ? 0 : r % 4 / 2 * X_STRIDE<K>), m.tag, [&](int i) {
            const int line = (first + i) * WARPS + warp;
            return first + i < KSPLIT && line < LINES && r % 4 < 2 * ROWS
                       ? 64 * line + 32 * (r / 4) + 8 * t
                       : K;
        });
#pragma unroll
        for (int i = 0; i < BATCH; i++)
            if (first + i < KSPLIT) x[first + i] = to_parts(raw.v[i][0], raw.v[i][1], lane);
    }
    SquareSums squares;
    squares.load(m.sums, lane);

    const bool counts = t / 2 == r % 2; // as in multiply_int4
#pragma unroll 1
    for (int tile = 0; tile < m.count; tile++) {
        float acc[4] = {};
#pragma unroll
        for (int chunk = 0; chunk < KSPLIT; chunk++) {
            ring.wait(m.at);
            if (chunk * WARPS + warp < LINES) {
                constexpr int stride = S.slot_row_bytes;
                const u8 *base = ring.at(m.at) + lane / 8 * stride + warp * 128 + lane % 8 * 16;
                const uint4 low = *(const uint4 *)base, high = *(const uint4 *)(base + 4 * stride);
                mma_bf16(acc, low.x, high.x, low.y, high.y, x[chunk].b[0], x[chunk].b[1]);
                mma_bf16(acc, low.z, high.z, low.w, high.w, x[chunk].b[2], x[chunk].b[3]);
            }
            ring.release(m.at, 1);
            m.at.advance();
        }
#pragma unroll
        for (int token = 0; token < ROWS; token++) {
            const bool own = counts && (ROWS == 1 || t % 2 == token);
            const float total =
                add_lanes(own ? acc[0] + acc[1] : 0.0f, own ? acc[2] + acc[3] : 0.0f, lane);
            if ((lane & 6) == 0 && warp < LINES)
                m.part(token, 8 * tile + 4 * (lane % 2) + lane / 8, warp) = total;
        }
    }
    return {m.at, squares.sum(m.sums, m.tag, lane)};
}
