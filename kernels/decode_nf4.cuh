// NF4 weights of a decode product (decode_product.cuh): blocks of 64 columns with doubly quantized absmax.
//
// 128 bytes of a row are 256 columns: two halves of two blocks. mma.m16n8k16, f16 x f16 -> f32. The 16 values are f16 (2^-12
// of exact), looked up by byte permutes: four for the upper and the lower bytes of four nibbles, since a permute has
// eight entries, two to choose by the nibble's top bit, two to put bytes together. x is scaled by a power of two of
// each half and comes as hi + lo, f16 each. All 8 columns of b are used: column 4 half + 2 block + part holds that
// part of x, and zero where it is another block's, so that each block has a sum of its own to be scaled in f32.
//
// Teams, slots and lines as for int4; the slot's codes are bytes, then follow the scales of the codes.
#pragma once

#if NF4_CORES
#include "nf4.cuh"

__shared__ float nf4_codes[256];

struct __align__(16) LineHalves {
    u32 parts[2][128]; // hi, lo: pairs of neighbours, the odd one below, as the permutes give weights
    float unit[2];     // of each half
};

DEVICE u32 f16_pair(float low, float high) {
    u32 pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

DEVICE void store_halves(LineHalves &to, uint4 a, uint4 b, int lane) {
    u32 bits[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
    u32 largest = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        bits[i] &= ~3u; // without the tags
        largest = max(largest, bits[i] & 0x7fffffffu);
    }
#pragma unroll
    for (int d = 1; d < 16; d *= 2) largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, d));
    // |v factor| < 2; tiny halves keep a finite factor, and one that is not finite becomes NaN.
    const bool finite = largest < 0x7f800000u;
    const u32 exponent = finite ? max(largest >> 23, 30u) : 127u;
    const float factor = __uint_as_float((254 - exponent) << 23);
    u32 hi[4], lo[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float even = __uint_as_float(bits[2 * i]) * factor, odd = __uint_as_float(bits[2 * i + 1]) * factor;
        hi[i] = f16_pair(odd, even);
        lo[i] = f16_pair(odd - f16_to_f32((u16)hi[i]), even - f16_to_f32((u16)(hi[i] >> 16)));
    }
    *(uint4 *)(to.parts[0] + 4 * lane) = make_uint4(hi[0], hi[1], hi[2], hi[3]);
    *(uint4 *)(to.parts[1] + 4 * lane) = make_uint4(lo[0], lo[1], lo[2], lo[3]);
    if (lane % 16 == 0) to.unit[lane / 16] = finite ? __uint_as_float(exponent << 23) : __uint_as_float(0x7fffffffu);
}

struct Halves {
    u32 b[16];
    float unit; // of half lane / 4 % 2, the half of this lane's c
    INSIDE void load(const LineHalves &from, int lane) {
        const int r = lane / 4, t = lane % 4;
#pragma unroll
        for (int w = 0; w < 4; w++) {
            uint4 v = *(const uint4 *)(from.parts[r % 2] + 64 * (r / 4) + 16 * t + 4 * w);
            if (t / 2 != r / 2 % 2) v = make_uint4(0, 0, 0, 0); // another block's columns
            b[4 * w] = v.x, b[4 * w + 1] = v.y, b[4 * w + 2] = v.z, b[4 * w + 3] = v.w;
        }
        unit = from.unit[r % 2];
    }
};

// The upper and lower bytes of the f16 of the 16 codes, four a word.
struct Table {
    u32 upper[4], lower[4];
    INSIDE Table() {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            upper[i] = lower[i] = 0;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const u32 half = f16_pair(__uint_as_float(NF4_VALUE_BITS[4 * i + j]), 0.0f) & 0xffff;
                upper[i] |= (half >> 8) << (8 * j);
                lower[i] |= (half & 255) << (8 * j);
            }
        }
    }
    // The values of the four lowest nibbles as two pairs, lower nibble below.
    INSIDE void pairs(u32 nibbles, u32 out[2]) const {
        const u32 entry = nibbles & 0x7777u, side = (nibbles >> 1 & 0x4444u) | 0x3210u;
        const u32 up = __byte_perm(__byte_perm(upper[0], upper[1], entry), __byte_perm(upper[2], upper[3], entry), side);
        const u32 low = __byte_perm(__byte_perm(lower[0], lower[1], entry), __byte_perm(lower[2], lower[3], entry), side);
        out[0] = __byte_perm(low, up, 0x5140), out[1] = __byte_perm(low, up, 0x7362);
    }
};

// Where a lane finds the absmax of its two rows, lane / 8 and 4 + lane / 8, in a slot.
struct Nf4Scales {
    u32 code[2]; // index of the row's run's first code in its stream
    u32 step;    // codes a tile
    int in_run;  // codes before row 4 + lane / 8 beyond those before row lane / 8, and before the latter
    int before;
    int run_bytes, runs;
    float offset[2];
#if SEGMENTED
    int next_tile[2];
    float next_offset[2];
#endif
    INSIDE void advance(int from, int tiles) {
#pragma unroll
        for (int i = 0; i < 2; i++) code[i] += step * tiles;
#if SEGMENTED
#pragma unroll
        for (int i = 0; i < 2; i++)
            if (from < next_tile[i] && from + tiles >= next_tile[i])
                code[0] = code[1] = step * (from + tiles - next_tile[i]), offset[0] = offset[1] = next_offset[i];
#endif
    }
    // Of row `second` of the two, block `block` of it.
    INSIDE float load(const u8 *slot, int second, int block) const {
        const int run = second && runs == 2;
        const u8 *codes = slot + WEIGHT_BYTES + run * run_bytes;
        const float *nested = (const float *)(slot + WEIGHT_BYTES + runs * run_bytes + run * NESTED_BYTES);
        const u32 first = code[run], at = (second ? in_run : 0) + before + block;
        const float scale = nested[(first + at) / 256 - first / 1024 * 4];
        return __fadd_rn(__fmul_rn(nf4_codes[codes[first % 16 + at]], scale), offset[run]);
    }
};

DEVICE Nf4Scales nf4_scales(const Shape &s, const Phase &phase, const Tiles &tiles, int lane) {
    const Place place(s, tiles.first);
    const u32 first1 = phase.at(FIRST1);
    Nf4Scales out;
    out.runs = s.paired ? 2 : 1, out.run_bytes = phase.at(RUN_BYTES);
    out.code[0] = first_bit(s, place, 0, first1, 1), out.code[1] = first_bit(s, place, 1, first1, 1);
    out.step = s.step * s.groups;
    out.before = lane / 8 * s.groups, out.in_run = s.paired ? 0 : 4 * s.groups;
    const float offsets[3] = {__uint_as_float(phase.at(BIAS0)), __uint_as_float(phase.at(BIAS1)),
                              __uint_as_float(phase.at(BIAS2))};
    const int segment = s.paired ? 0 : place.segment;
    out.offset[0] = segment == 0 ? offsets[0] : segment == 1 ? offsets[1] : offsets[2];
    out.offset[1] = s.paired ? offsets[1] : out.offset[0];
#if SEGMENTED
    out.next_tile[0] = s.paired ? -1 : s.tiles[0] - tiles.first;
    out.next_tile[1] = s.paired ? -1 : s.tiles[1] - tiles.first;
    out.next_offset[0] = offsets[1], out.next_offset[1] = offsets[2];
#endif
    return out;
}

template <int K> __device__ __noinline__ Multiplied multiply_nf4(Multiply m, Nf4Scales scales, u8 *scratch) {
    static_assert(K % 64 == 0, "blocks lie in one row");
    constexpr Shape S = {K, NF4, STORE, 0, 0, 0};
    constexpr int LINES = S.lines, KSPLIT = S.ksplit;
    constexpr bool WHOLE = KSPLIT == 1; // as in multiply_int4
    constexpr int MINE = (KSPLIT + TEAMS - 1) / TEAMS;
    LineHalves *exchange = (LineHalves *)scratch;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, r = lane / 4, t = lane % 4;
    const int team = warp / FOUR, member = warp % FOUR;
    const Ring ring = m.at.ring();
    auto line_of = [&](int mine, int i) { return (WHOLE ? 0 : (team + mine * TEAMS) * WARPS) + member * TEAM_LINES + i; };

    Halves x[MINE][TEAM_LINES];
    if constexpr (WHOLE) {
        Elements<K, 1> raw;
        raw.wait(m.x, m.tag, [&](int) { return warp < LINES ? 256 * warp + 8 * lane : K; });
        if (warp < LINES) store_halves(exchange[warp], raw.v[0][0], raw.v[0][1], lane);
        sync_threads(1, CONSUMERS);
#pragma unroll
        for (int i = 0; i < TEAM_LINES; i++) x[0][i].load(exchange[min(line_of(0, i), LINES - 1)], lane);
    } else {
#pragma unroll
        for (int mine = 0; mine < MINE; mine++) {
            Elements<K, TEAM_LINES> raw;
            raw.wait(m.x, m.tag, [&](int i) { return min(256 * line_of(mine, i) + 8 * lane, K); });
#pragma unroll
            for (int i = 0; i < TEAM_LINES; i++) {
                __syncwarp();
                store_halves(exchange[warp], raw.v[i][0], raw.v[i][1], lane);
                __syncwarp();
                x[mine][i].load(exchange[warp], lane);
            }
        }
    }
    SquareSums squares;
    squares.load(m.sums, lane);

    const Table table;
    const bool counts = t / 2 == r % 2;
    if (WHOLE) scales.advance(0, team);
#pragma unroll 1
    for (int tile = WHOLE ? team : 0; tile < m.count; tile += WHOLE ? TEAMS : 1) {
        float sum[2] = {}; // rows lane / 8 and 4 + lane / 8
#pragma unroll
        for (int mine = 0; mine < MINE; mine++) {
            if (!WHOLE && team + mine * TEAMS >= KSPLIT) break;
            const Cursor at = m.at.after(WHOLE ? tile : tile * KSPLIT + team + mine * TEAMS);
            ring.wait(at);
            const u8 *slot = ring.at(at);
            const int stride = WHOLE ? S.row_bytes : min(S.row_bytes - (team + mine * TEAMS) * 128 * WARPS, 128 * WARPS);
            const u8 *base = slot + lane / 8 * stride + member * TEAM_LINES * 128 + lane % 8 * 16;
#pragma unroll
            for (int i = 0; i < TEAM_LINES; i++) {
                const int line = line_of(mine, i), block = 4 * line + 2 * (r % 2) + t % 2;
                if (line >= LINES) break;
                const uint4 low = *(const uint4 *)(base + 128 * i), high = *(const uint4 *)(base + 128 * i + 4 * stride);
                const u32 lows[4] = {low.x, low.y, low.z, low.w}, highs[4] = {high.x, high.y, high.z, high.w};
                const Halves &a = x[mine][i];
                float d[4] = {};
#pragma unroll
                for (int w = 0; w < 4; w++)
#pragma unroll
                    for (int h = 0; h < 2; h++) {
                        u32 p[2], q[2];
                        table.pairs(lows[w] >> (16 * h), p);
                        table.pairs(highs[w] >> (16 * h), q);
                        mma_f16(d, p[0], q[0], p[1], q[1], a.b[4 * w + 2 * h], a.b[4 * w + 2 * h + 1]);
                    }
                const bool in = counts && block < S.groups;
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const float absmax = scales.load(slot, h, min(block, S.groups - 1));
                    sum[h] += in ? (d[2 * h] + d[2 * h + 1]) * (a.unit * absmax) : 0.0f;
                }
            }
            ring.release(at, TEAMS);
        }
        scales.advance(tile, WHOLE ? TEAMS : 1);
        const float total = add_lanes(sum[0], sum[1], lane);
        if ((lane & 6) == 0 && (WHOLE || team < KSPLIT))
            m.partial[(8 * tile + 4 * (lane % 2) + lane / 8) * WARPS + (WHOLE ? member : warp)] = total;
    }
    return {m.at.after(m.count * KSPLIT), squares.sum(m.sums, m.tag, lane)};
}
#endif
