// What a decode product takes in (decode_product.cuh): tagged activations, and the sums of squares
// of the blocks that they come from.
#pragma once

// The x of a warp's lines: columns from column(i) on for each of N, those from K on count as zero.
// All are asked for at once, and again until they are there.
template <int K, int N> struct Elements {
    uint4 v[N][2];
    template <class Column> INSIDE void wait(const float *x, Tag tag, Column column) {
        u32 missing = 0;
#pragma unroll
        for (int i = 0; i < N; i++) {
            v[i][0] = v[i][1] = make_uint4(0, 0, 0, 0);
            if (column(i) < K) missing |= 1u << i;
        }
        while (__any_sync(0xffffffffu, missing)) {
#pragma unroll
            for (int i = 0; i < N; i++)
                if (missing >> i & 1) {
                    v[i][0] = load_relaxed_16(x + column(i));
                    v[i][1] = load_relaxed_16(x + column(i) + 4);
                }
#pragma unroll
            for (int i = 0; i < N; i++)
                if (tag.on(v[i][0]) && tag.on(v[i][1])) missing &= ~(1u << i);
        }
    }
};

// Eight elements of a lane without their tags, and the bits of the largest magnitude of its half
// warp's: they compare as magnitudes do, NaN and infinity above all numbers.
struct Eight {
    u32 bits[8], largest;
};
// Those of N lines, whose chains of shuffles go in turns.
template <int N> DEVICE void untag(Eight (&lines)[N], const uint4 (&raw)[N][2]) {
#pragma unroll
    for (int n = 0; n < N; n++) {
        const uint4 a = raw[n][0], b = raw[n][1];
        const u32 bits[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
        lines[n].largest = 0;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            lines[n].bits[i] = bits[i] & ~3u;
            lines[n].largest = max(lines[n].largest, bits[i] & 0x7ffffffcu);
        }
    }
#pragma unroll
    for (int d = 1; d < 16; d *= 2)
#pragma unroll
        for (int n = 0; n < N; n++)
            lines[n].largest =
                max(lines[n].largest, __shfl_xor_sync(0xffffffffu, lines[n].largest, d));
}

// Sums of squares come with x, and are needed only at the end. One warp adds them up.
struct SquareSums {
    static constexpr int A_LANE = (GRID + 31) / 32;
    u32 part[A_LANE];
    // Whether block `b` has one. Tagged ones come from the blocks that have rows of the residual
    // stream.
    static INSIDE bool there(int b, Tag tag) {
        if (b >= GRID) return false;
        return ROW_TILES >= GRID || tag.mask == 0 ||
               first_of(ROW_TILES, b + 1) > first_of(ROW_TILES, b);
    }
    INSIDE void load(const float *sums, int lane) {
        if (!sums) return;
#pragma unroll
        for (int i = 0; i < A_LANE; i++)
            part[i] = 32 * i + lane < GRID ? load_relaxed(sums + 32 * i + lane) : 0;
    }
    INSIDE float sum(const float *sums, Tag tag, int lane) {
        if (!sums) return 0.0f;
        bool here;
        do { // all at once, and again
            here = true;
#pragma unroll
            for (int i = 0; i < A_LANE; i++)
                if (there(32 * i + lane, tag) && !tag.on(part[i]))
                    here = false, part[i] = load_relaxed(sums + 32 * i + lane);
        } while (!here);
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < A_LANE; i++)
            sum += there(32 * i + lane, tag) ? untagged(part[i]) : 0.0f;
        return warp_sum(sum);
    }
};
