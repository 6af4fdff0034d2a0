// Weights of a decode product (decode_product.cuh) that are indices into a code book:
// decode_int4.cuh with another way from a nibble to a byte of the mma's fragment. Lines, slots,
// limbs, scales and the order of sums are int4's.
//
// prmt looks up four nibbles in 8 bytes: bits 0 to 2 of a nibble choose one, and where bit 3 is set
// the byte's sign fills the result. So it looks four up in the lower half of a book, and four of
// word ^ 0x88888888 in the upper half. What the half that is not meant gives is 0 or -1, by the
// sign of its byte at that index; this is known for each index, and is taken off the byte that is
// meant (smq-engine/src/cuda/book.rs). So nothing selects: the mma adds both halves. That is four
// instructions for four nibbles and the shift of their word, where int4 has three for eight, and
// two mmas for one.
//
// A byte holds all that unless index 7 is negative and index 15 is 127, which would have to be 128.
// Then all levels are one less, and a third mma, with 1 for all weights, adds one (LUT4_SHIFTED: a
// model has such a book; `shift` is 0 for the others).
//
// Bounds: a byte is -128 to 127, a balanced digit of x -128 to 127, and a group has 128 at most, so
// each mma's sum is at most 2^21 in magnitude, and so is the sum of levels times digits, since it
// is what levels of a byte give. It is exact in s32, and in the 22 bits that INT_IN_FLOAT leaves,
// which is int4's own bound (its weights are 16 q).
//
// BOOK_BYTES before its scales a tensor has its book: 8 bytes of the lower half, 8 of the upper,
// and `shift` in each byte of a word. It comes with the codes of every slot, behind them, one a
// run: so nothing waits for it, and a tile's is its segment's.
#pragma once

#if LUT4_KINDS
static_assert(sizeof(LimbsOfLine<true>) <= EXCHANGE_BYTES, "a warp exchanges a line's");
static_assert(BOOK_BYTES % 16 == 0 && BOOK_BYTES >= 20, "whole pieces of a bulk copy");

struct Book {
    uint4 halves; // x, y: indices 0 to 7; z, w: 8 to 15
    u32 shift;
    INSIDE void load(const u8 *from) {
        halves = *(const uint4 *)from;
        if (LUT4_SHIFTED) shift = *(const u32 *)(from + 16);
    }
};

DEVICE u32 look_up(u32 low, u32 high, u32 nibbles) {
    u32 bytes;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(low), "r"(high), "r"(nibbles));
    return bytes;
}

// Four columns' bytes of a word: both halves, of columns 0 to 3 and 4 to 7.
struct Looked {
    u32 lower[2], upper[2];
    INSIDE Looked(const Book &book, u32 word) {
        const u32 flipped = word ^ 0x88888888u;
        lower[0] = look_up(book.halves.x, book.halves.y, word);
        lower[1] = look_up(book.halves.x, book.halves.y, word >> 16);
        upper[0] = look_up(book.halves.z, book.halves.w, flipped);
        upper[1] = look_up(book.halves.z, book.halves.w, flipped >> 16);
    }
};

// books: where a slot has those of a tile's first four rows, and of its last, half the word above.
template <int K>
__device__ __noinline__ Multiplied multiply_lut4(Multiply m, LaneScales scales, u32 packed,
                                                 u32 books, u8 *scratch) {
    using Mine = Team<K, LUT4>;
    constexpr int KSPLIT = Mine::KSPLIT, MINE = Mine::MINE;
    const Mine of;
    const int lane = of.lane, r = lane / 4, t = lane % 4;
    const Ring ring = m.at.ring();

    LimbsOfLane<true> x[ROWS][MINE][TEAM_LINES];
    of.load(x, m, scratch);
    SquareSums squares;
    squares.load(m.sums, lane);

    const bool counts = t / 2 == r % 2; // as in multiply_int4, as all that follows
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
            Book first, last; // of lows and highs
            first.load(slot + (books & 0xffff)), last.load(slot + (books >> 16));
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
            for (int i = 0; i < TEAM_LINES; i++) {
                if (i >= Mine::most_lines(mine)) break;
                const u8 *from = base + 128 * i;
                u32 lows[4], highs[4];
                load_words(lows, from), load_words(highs, from + 4 * stride);
#pragma unroll
                for (int part = 0; part < INT4_PARTS; part++) {
                    // Of the lower and of the upper half, apart, because an mma waits for the one
                    // before it.
                    int d[ROWS][4], e[ROWS][4] = {};
#pragma unroll
                    for (int c = 0; c < 4 * ROWS; c++) d[c / 4][c % 4] = INT_IN_FLOAT;
#pragma unroll
                    for (int w = part * PART_WORDS; w < (part + 1) * PART_WORDS; w++) {
                        const Looked low(first, lows[w]), high(last, highs[w]);
#pragma unroll
                        for (int token = 0; token < ROWS; token++) {
                            const u32 b0 = x[token][mine][i].b[2 * w],
                                      b1 = x[token][mine][i].b[2 * w + 1];
                            mma_s8(d[token], low.lower[0], high.lower[0], low.lower[1],
                                   high.lower[1], b0, b1);
                            mma_s8(e[token], low.upper[0], high.upper[0], low.upper[1],
                                   high.upper[1], b0, b1);
                            if (LUT4_SHIFTED)
                                mma_s8(d[token], first.shift, last.shift, first.shift, last.shift,
                                       b0, b1);
                        }
                    }
#pragma unroll
                    for (int h = 0; h < 2; h++) {
                        const int holder = scale_lane(i, 4 * h + lane / 8, r % 2, part);
                        const float s =
                            __shfl_sync(0xffffffffu, scale[scale_load(i, part)], holder);
#pragma unroll
                        for (int token = 0; token < ROWS; token++) {
                            const int *lower = d[token] + 2 * h, *upper = e[token] + 2 * h;
                            const float exact =
                                fmaf(__int_as_float(lower[0] + upper[0]), limb0, base0) +
                                fmaf(__int_as_float(lower[1] + upper[1]), limb1, base1);
                            sum[token][h] =
                                fmaf(exact, x[token][mine][i].scale * s, sum[token][h]);
                        }
                    }
                }
            }
            ring.release(at, TEAMS);
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
#endif
