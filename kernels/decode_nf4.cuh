// NF4 weights of a decode product (decode_product.cuh): blocks of 64 columns with doubly quantized
// absmax.
//
// 128 bytes of a row are 256 columns, four blocks. mma.m16n8k16, f16 x f16 -> f32. The 16 values
// are f16, which is within 2^-12 of exact. A table in shared memory has the pair of values of every
// byte, once for each lane, so that no look-up meets another lane's bank: that takes three
// instructions for two weights, on three pipes, and about half of the shared-memory pipe's time at
// the rate that memory brings them (byte permutes took six, more than the integer pipe has). x is
// scaled by a power of two of each half and comes as hi + lo, f16 each: column 2 block + part of b
// holds that part of that block's x.
//
// A warp's 8-byte shared load covers 2 rows x 128 bytes, and four of them (e = 0..3) the 8 rows.
// Row r = lane / 4 of load e's half of a fragment is then weight row 2 e + r / 4 and block (r % 4)
// ^ e, and of its c the pair of columns of that block counts, which lane t = lane % 4 = (r % 4) ^ e
// has: of the four loads' pairs each lane has one that counts, block t of row nf4_row, and that
// block's absmax to scale it by.
#pragma once

// The row of a tile whose sums a lane has.
DEVICE int nf4_row(int lane) { return 2 * ((lane ^ lane / 4) % 4) + lane / 16; }

#if NF4_KINDS
#include "nf4.cuh"

DEVICE u32 f16_pair(float low, float high) {
    u32 pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

struct __align__(16) LineHalves {
    u32 parts[2][128]; // hi, lo: pairs of neighbours, the odd one below, as a byte has weights
    float unit[2];     // of each half
    INSIDE void store(const Eight &x, int lane) {
        const u32 largest = x.largest;
        // |v factor| < 2; tiny halves keep a finite factor, and one that is not finite becomes NaN.
        const bool finite = largest < 0x7f800000u;
        const u32 exponent = finite ? max(largest >> 23, 30u) : 127u;
        const float factor = __uint_as_float((254 - exponent) << 23);
        u32 hi[4], lo[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float even = __uint_as_float(x.bits[2 * i]) * factor,
                        odd = __uint_as_float(x.bits[2 * i + 1]) * factor;
            hi[i] = f16_pair(odd, even);
            lo[i] = f16_pair(odd - f16_to_f32((u16)hi[i]), even - f16_to_f32((u16)(hi[i] >> 16)));
        }
        *(uint4 *)(parts[0] + 4 * lane) = make_uint4(hi[0], hi[1], hi[2], hi[3]);
        *(uint4 *)(parts[1] + 4 * lane) = make_uint4(lo[0], lo[1], lo[2], lo[3]);
        if (lane % 16 == 0)
            unit[lane / 16] =
                finite ? __uint_as_float(exponent << 23) : __uint_as_float(0x7fffffffu);
    }
};

static_assert(sizeof(LineHalves) <= EXCHANGE_BYTES, "a warp exchanges a line's");

// A lane's part of it: its b registers, and the unit of block lane % 4.
struct Halves {
    using Line = LineHalves;
    u32 b[8];
    float unit;
    INSIDE void load(const LineHalves &from, int lane) {
        const int r = lane / 4, t = lane % 4;
        const uint4 *words = (const uint4 *)(from.parts[r % 2] + 32 * (r / 2) + 8 * t),
                    p = words[0], q = words[1];
        b[0] = p.x, b[1] = p.y, b[2] = p.z, b[3] = p.w;
        b[4] = q.x, b[5] = q.y, b[6] = q.z, b[7] = q.w;
        unit = from.unit[t / 2];
    }
};

// The pair of byte `byte` of a word from a lane's table: a permute, a multiplication (another
// pipe's) and a load.
DEVICE u32 nf4_pair(u32 table, u32 word, int byte) {
    const u32 at = __byte_perm(word, 0, 0x4440 + byte) * (u32)sizeof nf4_pairs[0] + table;
    u32 pair;
    asm("ld.shared.u32 %0, [%1];" : "=r"(pair) : "r"(at));
    return pair;
}

// Where a slot has the scales of codes of a lane's run: behind all runs' codes.
DEVICE u32 nested_in_slot(const Shape &s, const LaneScales &scales, u32 run_bytes) {
    return WEIGHT_BYTES + (s.paired ? 2 : 1) * run_bytes + (scales.run_offset ? NESTED_BYTES : 0);
}

// The absmax of block `block` of a lane's row; `nested` is nested_in_slot. Scales of 256 codes each
// are there from a multiple of four on.
DEVICE float nf4_absmax_of(const LaneScales &scales, const u8 *slot, u32 nested, int block) {
    const u32 first = scales.bit / 8, at = scales.offset / 8 + block;
    const u8 code = slot[WEIGHT_BYTES + scales.run_offset + first % 16 + at];
    const float scale = *(const float *)(slot + nested + (first % 1024 + at) / 256 * 4);
    return nf4_absmax(nf4_codes[code], scale, __int_as_float(scales.bias));
}

template <int K>
__device__ __noinline__ Multiplied multiply_nf4(Multiply m, LaneScales scales, u32 nested,
                                                u8 *scratch) {
    static_assert(K % 64 == 0, "blocks lie in one row");
    using Mine = Team<K, NF4>;
    constexpr int KSPLIT = Mine::KSPLIT, MINE = Mine::MINE;
    const Mine of;
    const int lane = of.lane, r = lane / 4, t = lane % 4;
    const Ring ring = m.at.ring();

    Halves x[ROWS][MINE][TEAM_LINES];
    of.load(x, m, scratch);
    SquareSums squares;
    squares.load(m.sums, lane);

    const u32 table = shared_address(&nf4_pairs[0][lane]);
    const bool second = (t ^ r % 4) / 2, odd = (t ^ r % 4) % 2;
    scales.advance(0, of.first_tile());
#pragma unroll 1
    for (int tile = of.first_tile(); tile < m.count; tile += Mine::TILE_STEP) {
        float sum[ROWS] = {};
#pragma unroll
        for (int mine = 0; mine < MINE; mine++) {
            if (!Mine::ROTATES && of.slot(mine) >= KSPLIT) break;
            const Cursor at = m.at.after(tile * KSPLIT + of.slot(mine));
            ring.wait(at);
            const u8 *slot = ring.at(at);
            constexpr int stride = Mine::S.slot_row_bytes;
#pragma unroll
            for (int i = 0; i < TEAM_LINES; i++) {
                if (i >= Mine::most_lines(mine)) break;
                const u8 *base = slot + r / 4 * stride + (of.first_line(mine) + i) * 128 + 8 * t;
                const float absmax =
                    nf4_absmax_of(scales, slot, nested,
                                  min(4 * of.line(mine, i) + t, Mine::S.groups - 1));
                u32 words[4][2];
                float d[ROWS][2][4] = {};
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const uint2 v = *(const uint2 *)(base + 2 * e * stride + 32 * (r % 4 ^ e));
                    words[e][0] = v.x, words[e][1] = v.y;
                }
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    // All look-ups of a word before their products, which are two chains.
                    u32 pairs[4][4];
#pragma unroll
                    for (int byte = 0; byte < 4; byte++)
#pragma unroll
                        for (int e = 0; e < 4; e++)
                            pairs[byte][e] = nf4_pair(table, words[e][j], byte);
#pragma unroll
                    for (int byte = 0; byte < 4; byte += 2)
#pragma unroll
                        for (int g = 0; g < 2; g++)
#pragma unroll
                            for (int token = 0; token < ROWS; token++) {
                                const Halves &a = x[token][mine][i];
                                mma_f16(d[token][g], pairs[byte][2 * g], pairs[byte][2 * g + 1],
                                        pairs[byte + 1][2 * g], pairs[byte + 1][2 * g + 1],
                                        a.b[4 * j + byte], a.b[4 * j + byte + 1]);
                            }
                }
                // Of the lane's eight sums, the pair of the load that counts.
#pragma unroll
                for (int token = 0; token < ROWS; token++) {
                    const float *d0 = d[token][0], *d1 = d[token][1];
                    const float low = second ? d1[0] + d1[1] : d0[0] + d0[1],
                                high = second ? d1[2] + d1[3] : d0[2] + d0[3];
                    const float exact = odd ? high : low; // 0 of a block that is not there
                    sum[token] = fmaf(exact, x[token][mine][i].unit * absmax, sum[token]);
                }
            }
            ring.release(at, TEAMS);
        }
        scales.advance(tile, Mine::TILE_STEP);
#pragma unroll
        for (int token = 0; token < ROWS; token++) {
            float all = sum[token];
            all += __shfl_xor_sync(0xffffffffu, all, 5); // the row's other blocks
            all += __shfl_xor_sync(0xffffffffu, all, 10);
            if (r % 4 == 0) m.part(token, 8 * tile + nf4_row(lane), of.part()) = all;
        }
    }
    return {m.at.after(m.count * KSPLIT), squares.sum(m.sums, m.tag, lane)};
}
#endif
