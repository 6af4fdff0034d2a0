// int4 weights of a decode product (decode_product.cuh), in groups of 128, or PARTS of 64 or 32 of
// these.
//
// 128 bytes of a row are 256 columns, a half is 128. mma.m16n8k32, s8 x s8 -> s32: w & 0xf0f0f0f0
// and the same of w << 4 are 8 nibbles as 16 q, in three instructions. x comes as 23-bit fixed
// point relative to the half's largest magnitude, in three limbs of 8 bits (balanced digits), one a
// column. The sum of a group is exact in s32; it is scaled in f32. This is no approximation of
// W4A16, since bf16 activations have 8 bits. The tile's scale codes follow each slot's weights and
// are decoded beside the mmas.
//
// An mma adds up over the four lanes of a row, so these have to be in one group. In groups of 128 a
// lane's four words are 16 consecutive bytes of a half; else each of its parts gives every lane
// 4 / PARTS words. Such loads of two rows meet in the same banks: of groups of 64, a line takes 16
// instead of 8 cycles of the shared-memory pipe, of the 82 that it takes to read.
//
// A slot is four warps', up to three (WARPS / 4) lines each, and the others have other slots or
// tiles (Team): what a slot costs beside its lines, waiting for it and adding up over lanes, is
// paid by four warps instead of twelve, and instructions are what bounds this loop.
#pragma once

constexpr int INT4_PARTS = 128 / INT4_GROUP; // groups of a half line
constexpr int PART_WORDS = 4 / INT4_PARTS;   // a lane's in each
static_assert(INT4_PARTS * PART_WORDS == 4, "groups of 128, 64 or 32");

// The row of a tile whose scales a lane loads.
DEVICE int int4_scale_row(int lane) { return INT4_PARTS == 1 ? lane / 2 % 8 : lane / 4; }

// An integer of up to 22 bits in the mantissa of 1.5 * 2^23: no conversion, an addition undoes it.
#define INT_IN_FLOAT 0x4b400000

// int4: one line's part of x. Every element is converted once, by the lane that loads it, and
// handed over in shared memory: converting what each lane needs would do every element several
// times, and that is on the critical path. BOOK is for a code book (decode_lut4.cuh), whose weights
// come in the order of columns and not as 16 q.
template <bool BOOK> struct __align__(16) LimbsOfLine {
    // Word 2 lane + odd is that limb of the lane's even or odd ones of 8 consecutive elements, or
    // with BOOK of its first or last 4.
    u32 limbs[3][64];
    float unit[2];    // of the fixed point over 16, of each half; BOOK: not over 16
    // Of several tokens a function of its own: for each line of each it would be longer than all
    // else of a product, and a step reads all of its code once a layer.
#if ROWS > 1
    __device__ __noinline__
#else
    INSIDE
#endif
    void store(Eight x, int lane) {
        const u32 largest = x.largest;
        // 2^(21 - e) with 2^e <= largest < 2^(e + 1): |fixed point| < 2^22. Tiny groups keep a
        // finite factor, and a group with an element that is not finite gets a unit that is NaN, so
        // that it is not lost.
        const bool finite = largest < 0x7f800000u;
        const u32 exponent = finite ? max(largest >> 23, 30u) : 127u;
        const float factor = __uint_as_float((127 + 21 + 127 - exponent) << 23);
        u32 y[8]; // the bytes of the fixed point plus 0x808080 are its balanced digits plus 128
#pragma unroll
        for (int i = 0; i < 8; i++)
            y[i] = __float_as_uint(fmaf(__uint_as_float(x.bits[i]), factor, 12582912.0f)) -
                   INT_IN_FLOAT + 0x808080;
        u32 out[3][2];
#pragma unroll
        for (int odd = 0; odd < 2; odd++) {
            const int first = BOOK ? 4 * odd : odd, step = BOOK ? 1 : 2;
            const u32 y0 = y[first], y1 = y[first + step], y2 = y[first + 2 * step],
                      y3 = y[first + 3 * step];
            u32 low01 = __byte_perm(y0, y1, 0x5140), low23 = __byte_perm(y2, y3, 0x5140);
            u32 top01 = __byte_perm(y0, y1, 0x0062), top23 = __byte_perm(y2, y3, 0x0062);
            out[0][odd] = __byte_perm(low01, low23, 0x5410) ^ 0x80808080u;
            out[1][odd] = __byte_perm(low01, low23, 0x7632) ^ 0x80808080u;
            out[2][odd] = __byte_perm(top01, top23, 0x5410) ^ 0x80808080u;
        }
#pragma unroll
        for (int i = 0; i < 3; i++)
            *(uint2 *)(limbs[i] + 2 * lane) = make_uint2(out[i][0], out[i][1]);
        if (lane % 16 == 0)
            unit[lane / 16] = finite ? __uint_as_float((exponent - (BOOK ? 21 : 25)) << 23)
                                     : __uint_as_float(0x7fffffffu);
    }
};
using LineLimbs = LimbsOfLine<false>;

#if INT4_KINDS
static_assert(sizeof(LineLimbs) <= EXCHANGE_BYTES, "a warp exchanges a line's");
#endif

// A lane's part of it: its b registers, column r = lane / 4 being limb r % 4 of half r / 4. There
// are three: the fourth column is the third again, and what comes of it is multiplied by 0.
template <bool BOOK> struct LimbsOfLane {
    using Line = LimbsOfLine<BOOK>;
    // Word u of a lane's 32 elements, in the order of its weights: b[2u] has its even ones and
    // b[2u + 1] its odd ones, or with BOOK 4 and 4.
    u32 b[8];
    float scale; // the unit of half lane / 4 % 2, the half of this lane's c
    INSIDE void load(const Line &from, int lane) {
        const int r = lane / 4, t = lane % 4, part = r % 4;
        const u32 *half = from.limbs[min(part, 2)] + 32 * (r / 4);
        if constexpr (INT4_PARTS < 4) {
            const uint4 *words = (const uint4 *)(half + 2 * PART_WORDS * t);
            const uint4 p = words[0], q = words[INT4_PARTS == 1 ? 1 : 4];
            b[0] = p.x, b[1] = p.y, b[2] = p.z, b[3] = p.w;
            b[4] = q.x, b[5] = q.y, b[6] = q.z, b[7] = q.w;
        } else {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const uint2 p = *(const uint2 *)(half + 8 * i + 2 * t);
                b[2 * i] = p.x, b[2 * i + 1] = p.y;
            }
        }
        scale = from.unit[r % 2];
    }
};
using Limbs = LimbsOfLane<false>;

// A lane's four words of a row of a line: the first byte's place, and what is there.
DEVICE int first_byte(int lane) {
    return INT4_PARTS == 1 ? lane % 8 * 16 : lane / 4 % 2 * 64 + lane % 4 * 4 * PART_WORDS;
}
DEVICE void load_words(u32 (&words)[4], const u8 *from) {
    if constexpr (INT4_PARTS == 1) {
        const uint4 v = *(const uint4 *)from;
        words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
    } else if constexpr (INT4_PARTS == 2) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint2 v = *(const uint2 *)(from + 32 * i);
            words[2 * i] = v.x, words[2 * i + 1] = v.y;
        }
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++) words[i] = *(const u32 *)(from + 16 * i);
    }
}

// The scales of the 8 rows of `LINES` lines, which the lanes of a warp load: in groups of 128 two
// lines' at a time, one in each half of the lanes, and else those of one row of a line by four
// lanes.
template <int LINES>
constexpr int SCALE_LOADS = INT4_PARTS == 1 ? (LINES + 1) / 2 : LINES * INT4_PARTS / 2;
constexpr int LOADS_A_LINE = (INT4_PARTS + 1) / 2;
// Lines whose mmas go in turns: an mma waits for the one before it in its sum, of which a group of
// 128 has four.
constexpr int TOGETHER = INT4_PARTS == 1 ? TEAM_LINES : 1;
// Load `n` of a lane: the line, and the group of the line's.
template <int LINES> DEVICE int scale_line(int n, int lane) {
    return INT4_PARTS == 1 ? 2 * n + (2 * n + 1 < LINES ? lane / 16 : 0) : n / LOADS_A_LINE;
}
DEVICE int scale_group(int n, int lane) {
    return INT4_PARTS == 1 ? lane % 2
                           : INT4_PARTS * (lane / 2 % 2) + n % LOADS_A_LINE * 2 + lane % 2;
}
// Which load has group `part` of a half of a row of a line, and in which lane.
DEVICE int scale_load(int line, int part) {
    return INT4_PARTS == 1 ? line / 2 : (line * INT4_PARTS + part) / 2;
}
DEVICE int scale_lane(int line, int row, int half, int part) {
    return INT4_PARTS == 1 ? 16 * (line % 2) + 2 * row + half : 4 * row + 2 * half + part % 2;
}

DEVICE void mma_s8(int c[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// int4, code books and NF4: what a warp has of the slots of a product. Tiles of fewer slots than
// there are teams go around the teams, each with all slots of its tiles; else each team has the
// same MINE slots of every tile. The four share a slot's lines evenly: the last slot may have fewer
// than the others.
template <int K, int STORAGE> struct Team {
    static constexpr Shape S = {K, STORAGE, STORE, 0, 0, 0};
    static constexpr int LINES = S.lines, KSPLIT = S.ksplit;
    static constexpr bool ROTATES = KSPLIT < TEAMS;
    static constexpr int MINE = ROTATES ? KSPLIT : (KSPLIT + TEAMS - 1) / TEAMS;
    // Lines that a warp has of the last slot.
    static constexpr int LAST_LINES = (LINES - (KSPLIT - 1) * WARPS + FOUR - 1) / FOUR;
    int warp, lane, team, member;
    INSIDE Team()
        : warp(threadIdx.x / 32), lane(threadIdx.x % 32), team(warp / FOUR), member(warp % FOUR) {}
    INSIDE int first_tile() const { return ROTATES ? team : 0; }
    static constexpr int TILE_STEP = ROTATES ? TEAMS : 1;
    static constexpr int SLOT_STEP = ROTATES ? 1 : TEAMS; // to a team's next slot of a tile
    INSIDE int slot(int mine) const { return (ROTATES ? 0 : team) + mine * SLOT_STEP; }
    // From a slot of a team to its next: with ROTATES over the others' tiles, else from its last of
    // a tile, of which there are fewer than TEAMS behind, to its first of the next.
    static_assert((ROTATES ? (TEAMS - 1) * KSPLIT + 1 : 2 * TEAMS - 1) <= TEAM_GAP,
                  "what producers reckon with");
    // Its lines of a slot, and the first of them there. Of those behind a row's last x is zero, so
    // that the loop asks for none of them: what it does is the same for all warps and known where
    // it is compiled, and the mmas of several lines can go in turns.
    INSIDE int lines(int mine) const {
        return LAST_LINES < TEAM_LINES && slot(mine) == KSPLIT - 1 ? LAST_LINES : TEAM_LINES;
    }
    INSIDE int first_line(int mine) const { return member * lines(mine); }
    INSIDE int line(int mine, int i) const { return slot(mine) * WARPS + first_line(mine) + i; }
    // The most lines that any team's slot `mine` gives a warp.
    static constexpr INSIDE int most_lines(int mine) {
        return mine * SLOT_STEP == KSPLIT - 1 ? LAST_LINES : TEAM_LINES;
    }
    // Where its sum of a row goes among those of the others.
    INSIDE int part() const { return ROTATES ? member : warp; }
    // The x of its lines, of one token after the other: asked for all at once they come no sooner
    // (kernels/NOTES.md, 45).
    template <class Part>
    INSIDE void load(Part (&x)[ROWS][MINE][TEAM_LINES], const Multiply &m, u8 *scratch) const {
        typename Part::Line *exchange = (typename Part::Line *)scratch;
#pragma unroll
        for (int token = 0; token < ROWS; token++) {
            const float *from = m.x + token * X_STRIDE<K>;
            if constexpr (ROTATES) {
                // Every line by one warp, a slot's at a time.
                Elements<K, KSPLIT> raw;
                raw.wait(from, m.tag, [&](int i) {
                    return i * WARPS + warp < LINES ? 256 * (i * WARPS + warp) + 8 * lane : K;
                });
                Eight own[KSPLIT];
                untag(own, raw.v);
#pragma unroll
                for (int mine = 0; mine < MINE; mine++) {
                    if (token + mine > 0) sync_threads(1, CONSUMERS);
                    if (warp < FOUR * most_lines(mine)) exchange[warp].store(own[mine], lane);
                    sync_threads(1, CONSUMERS);
#pragma unroll
                    for (int i = 0; i < TEAM_LINES; i++)
                        if (i < most_lines(mine))
                            x[token][mine][i].load(exchange[first_line(mine) + i], lane);
                }
            } else {
#pragma unroll
                for (int mine = 0; mine < MINE; mine++) {
                    Elements<K, TEAM_LINES> raw;
                    raw.wait(from, m.tag, [&](int i) {
                        return i < lines(mine) ? 256 * line(mine, i) + 8 * lane : K;
                    });
                    Eight own[TEAM_LINES];
                    untag(own, raw.v);
#pragma unroll
                    for (int i = 0; i < TEAM_LINES; i++) {
                        if (i >= most_lines(mine)) break;
                        __syncwarp();
                        exchange[warp].store(own[i], lane);
                        __syncwarp();
                        x[token][mine][i].load(exchange[warp], lane);
                    }
                }
            }
        }
    }
};

template <int K>
__device__ __noinline__ Multiplied multiply_int4(Multiply m, LaneScales scales, u32 packed,
                                                 u8 *scratch) {
    using Mine = Team<K, INT4>;
    constexpr int KSPLIT = Mine::KSPLIT, MINE = Mine::MINE;
    const Mine of;
    const int lane = of.lane, r = lane / 4, t = lane % 4;
    const Ring ring = m.at.ring();

    Limbs x[ROWS][MINE][TEAM_LINES];
    of.load(x, m, scratch);
    SquareSums squares;
    squares.load(m.sums, lane);

    // c0 and c1 are columns 2t and 2t + 1. Of a row of the first half (r even) columns 0..3 count,
    // and of one of the second columns 4..7.
    const bool counts = t / 2 == r % 2;
    const float limb0 = counts ? (t % 2 ? 65536.0f : 1.0f) : 0.0f,
                limb1 = counts && t % 2 == 0 ? 256.0f : 0.0f;
    const float base0 = -12582912.0f * limb0, base1 = -12582912.0f * limb1;
    scales.advance(0, of.first_tile());
#pragma unroll 1
    for (int tile = of.first_tile(); tile < m.count; tile += Mine::TILE_STEP) {
        float sum[ROWS][2] = {}; // rows lane / 8 and 4 + lane / 8
#pragma unroll
        for (int mine = 0; mine < MINE; mine++) {
            if (!Mine::ROTATES && of.slot(mine) >= KSPLIT) break;
            const Cursor at = m.at.after(tile * KSPLIT + of.slot(mine));
            ring.wait(at);
            const u8 *slot = ring.at(at);
            constexpr int stride = Mine::S.slot_row_bytes;
            const u8 *base =
                slot + lane / 8 * stride + of.first_line(mine) * 128 + first_byte(lane);
            float scale[SCALE_LOADS<TEAM_LINES>];
#pragma unroll
            for (int n = 0; n < SCALE_LOADS<TEAM_LINES>; n++) {
                const int line = of.line(mine, scale_line<TEAM_LINES>(n, lane));
                scale[n] = scales.load(slot, 2 * INT4_PARTS * line + scale_group(n, lane),
                                       Mine::S.groups, packed);
            }
#pragma unroll
            for (int first = 0; first < TEAM_LINES; first += TOGETHER) {
                u32 lows[TOGETHER][4], highs[TOGETHER][4];
                int d[TOGETHER][ROWS][INT4_PARTS][4];
#pragma unroll
                for (int i = 0; i < TOGETHER; i++) {
                    if (first + i >= Mine::most_lines(mine)) break;
                    const u8 *from = base + 128 * (first + i);
                    load_words(lows[i], from), load_words(highs[i], from + 4 * stride);
#pragma unroll
                    for (int part = 0; part < ROWS * INT4_PARTS; part++)
#pragma unroll
                        for (int c = 0; c < 4; c++)
                            d[i][part / INT4_PARTS][part % INT4_PARTS][c] = INT_IN_FLOAT;
                }
                // All of the slot is in registers: it can be filled again.
                if (first + TOGETHER >= TEAM_LINES) ring.release(at, TEAMS);
#pragma unroll
                for (int w = 0; w < 4; w++)
#pragma unroll
                    for (int i = 0; i < TOGETHER; i++) {
                        if (first + i >= Mine::most_lines(mine)) break;
                        const u32 low = lows[i][w], high = highs[i][w];
#pragma unroll
                        for (int token = 0; token < ROWS; token++) {
                            const Limbs &a = x[token][mine][first + i];
                            mma_s8(d[i][token][w / PART_WORDS], low << 4 & 0xf0f0f0f0u,
                                   high << 4 & 0xf0f0f0f0u, low & 0xf0f0f0f0u, high & 0xf0f0f0f0u,
                                   a.b[2 * w], a.b[2 * w + 1]);
                        }
                    }
#pragma unroll
                for (int i = 0; i < TOGETHER; i++) {
                    if (first + i >= Mine::most_lines(mine)) break;
#pragma unroll
                    for (int part = 0; part < INT4_PARTS; part++)
#pragma unroll
                        for (int h = 0; h < 2; h++) {
                            const int load = scale_load(first + i, part);
                            const int holder =
                                scale_lane(first + i, 4 * h + lane / 8, r % 2, part);
                            const float s = __shfl_sync(0xffffffffu, scale[load], holder);
#pragma unroll
                            for (int token = 0; token < ROWS; token++) {
                                const int *sums = d[i][token][part] + 2 * h;
                                const float exact = fmaf(__int_as_float(sums[0]), limb0, base0) +
                                                    fmaf(__int_as_float(sums[1]), limb1, base1);
                                sum[token][h] = fmaf(exact, x[token][mine][first + i].scale * s,
                                                     sum[token][h]);
                            }
                        }
                }
            }
        }
        scales.advance(tile, Mine::TILE_STEP);
#pragma unroll
        for (int token = 0; token < ROWS; token++) {
            const float total = add_lanes(sum[token][0], sum[token][1], lane);
            if ((lane & 6) == 0)
                m.part(token, 8 * tile + 4 * (lane % 2) + lane / 8, of.part()) = total;
        }
    }
    return {m.at.after(m.count * KSPLIT), squares.sum(m.sums, m.tag, lane)};
}
