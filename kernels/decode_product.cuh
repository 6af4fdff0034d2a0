// A product of a decode step: y[rows] = W[rows, K] x[K] for one activation row, where W is bf16,
// int4, NF4, FP8 or lut4 (a code book).
//
// A block owns a contiguous run of tiles of 8 weight rows. A tile takes ksplit slots of the ring,
// each up to WARPS lines: 128 bytes of each of the 8 rows. A warp keeps the x of its lines in
// registers, in fragment order, for all tiles.
//
// A 16-byte shared load of a warp covers 4 rows x 128 bytes, whole lines without bank conflicts. In
// mma terms, fragment row r = lane / 4 is then weight row r / 2 and half r % 2 of those 128 bytes.
// The halves meet different x, so they get different columns of b: columns 0..3 hold x of the first
// half, 4..7 of the second, and only the matching quarter of c is used. One activation row leaves 7
// of 8 columns free anyway.
//
// How a slot's weights are multiplied is each storage's own: decode_bf16.cuh, decode_int4.cuh,
// decode_nf4.cuh, decode_fp8.cuh, decode_lut4.cuh.
//
// Every warp's partial sums of a row meet in shared memory and are added in the order of warps, so
// that the sum is deterministic.
//
//   STORE      out[rows] = y, or (QKV_BIAS) y + bias, tagged                                  (qkv)
//   RESIDUAL   residual += y; out = residual * norm, tagged; out_sums[block] = the block's sum of
//              residual^2 (o, down). With AFTER_NORM y is normed first: the blocks exchange their
//              sums of y^2, one more trip through L2. With RESIDUAL_BITS what is added has that
//              factor
//   SWIGLU     segment 0 is the gate, 1 the up projection, a tile 4 rows of each;
//              out = silu(gate) up, tagged
//   LOGITS     out = y, or what DIVISOR_BITS and CAP_BITS make of it; each block's largest goes to
//              the last block, which chooses
// All but RESIDUAL follow a norm (with PLAIN_INPUTS LOGITS alone): x is x w (RMSNorm's weight), and
// 1 / sqrt(mean(x^2) + eps) multiplies y; sums[GRID] are partial sums of x^2.
//
// Up to 3 segments (q, k, v apart) of SEG0, SEG1, SEG2 rows, multiples of 8 (SWIGLU: 4). Scales may
// be read up to 35 bytes past their stream's end.

// Whether weights are laid out as int4's.
#if LUT4_KINDS
#define IS_INT4(storage) ((storage) == INT4 || (storage) == LUT4)
#else
#define IS_INT4(storage) ((storage) == INT4)
#endif

// A kind of product, as the producers and the epilogues need it; what multiplies is compiled for
// each storage and K apart. All that takes a division is worked out here.
struct Shape {
    int k, storage, epilogue;
    bool paired;
    int row_bytes, lines, ksplit;
    int slot_row_bytes; // from row to row of a tile in a slot
    int groups; // scale codes a row
    int step;     // outputs a tile
    int tiles[3]; // where segments end
    constexpr INSIDE Shape(int k, int storage, int epilogue, int rows0, int rows1, int rows2)
        : k(k), storage(storage), epilogue(epilogue), paired(epilogue == SWIGLU),
          row_bytes(storage == BF16 ? 2 * k : storage == FP8 ? k : k / 2),
          lines((row_bytes + 127) / 128), ksplit((lines + WARPS - 1) / WARPS),
          slot_row_bytes(ksplit > 1 ? 128 * WARPS : row_bytes),
          groups(storage == FP8   ? 1
                 : storage == NF4 ? k / 64
                                  : (k + INT4_GROUP - 1) / INT4_GROUP),
          step(paired ? 4 : 8), tiles{rows0 / step, (rows0 + (paired ? 0 : rows1)) / step,
                                      (rows0 + (paired ? 0 : rows1) + rows2) / step} {}
};

__constant__ Shape SHAPES[] = {
#define SHAPE(i)                                                                                   \
    {KIND##i##_K,    KIND##i##_STORAGE, KIND##i##_EPILOGUE,                                        \
     KIND##i##_SEG0, KIND##i##_SEG1,    KIND##i##_SEG2},
    FOR_KINDS(SHAPE)
#undef SHAPE
    {128, BF16, STORE, 8, 0, 0} // so that there is one
};

// A block's share of a product.
struct Tiles {
    int first, count;
    INSIDE Tiles(const Shape &s, int block) {
        first = first_of(s.tiles[2], block);
        count = first_of(s.tiles[2], block + 1) - first;
    }
};

// Which segment a tile is of, and its row there.
struct Place {
    int segment, row;
    INSIDE Place(const Shape &s, int tile) {
        const bool only = s.tiles[0] == s.tiles[2];
        segment = only || tile < s.tiles[0] ? 0 : tile < s.tiles[1] ? 1 : 2;
        row = s.step * (segment == 0 ? tile : tile - (segment == 1 ? s.tiles[0] : s.tiles[1]));
    }
};

// Bit at which the scale codes of run `run` of a tile begin: run 1, of the up projection, may lie
// in a stream of both.
DEVICE u32 first_bit(const Shape &s, const Place &place, int run, u32 first1, u32 width) {
    return ((run ? first1 : 0) + place.row * s.groups) * width;
}

// NF4: the scales of 256 codes each follow a stream of codes, at the next multiple of 16 bytes. A
// tile needs a few of them, and takes NESTED_BYTES, the whole 16 bytes around them.
DEVICE u32 nested_at(const Shape &s, int segment, u32 first1) {
    const int rows =
        s.step * (s.paired ? s.tiles[0] : s.tiles[segment] - (segment ? s.tiles[segment - 1] : 0));
    const u32 codes = s.paired && first1 ? 2 * first1 : (u32)(rows * s.groups);
    return (codes + 15) / 16 * 16;
}

constexpr int BOX_COLUMNS = 128 * WARPS / 8; // of 8 bytes
static_assert(SLOT_BYTES % (BOXES ? 128 : 32) == 0, "a box lies at 128 bytes");

DEVICE void produce(const Shape &s, const Words &phase, Pump &pump) {
    const u8 *w0 = phase.pointer<const u8>(W0), *w1 = phase.pointer<const u8>(W1),
             *w2 = phase.pointer<const u8>(W2);
    const u8 *s0 = phase.pointer<const u8>(S0), *s1 = phase.pointer<const u8>(S1),
             *s2 = phase.pointer<const u8>(S2);
    const u32 first1 = phase.at(FIRST1), width = phase.at(SCALES) >> SCALES_WIDTH_AT & 255;
    const int runs = s.paired ? 2 : 1, run_bytes = s.storage != BF16 ? phase.at(RUN_BYTES) : 0;
#if LUT4_KINDS
    const int beside = s.storage == NF4 ? NESTED_BYTES : s.storage == LUT4 ? BOOK_BYTES : 0;
#else
    const int beside = s.storage == NF4 ? NESTED_BYTES : 0;
#endif
    const int code_bytes = runs * (run_bytes + beside);
    const int row_bytes = s.row_bytes;
    const Tiles tiles(s, blockIdx.x);
    int chunk = pump.skip;
#pragma unroll 1
    for (int i = 0; i < tiles.count; i++, chunk -= s.ksplit) {
        const Place place(s, tiles.first + i);
        const int segment = s.paired ? 0 : place.segment;
        const u8 *matrix = segment == 0 ? w0 : segment == 1 ? w1 : w2;
        // The tile's second half: the up projection's rows.
        const u8 *matrix1 = s.paired ? w1 : matrix;
        const int row1 = s.paired ? place.row : place.row + 4;
#pragma unroll 1
        for (; chunk < s.ksplit; chunk += PRODUCERS) {
            u8 *slot = pump.next(8 * s.slot_row_bytes + code_bytes);
            if (s.ksplit > 1) {
                // Parts of rows are boxes of 4 rows, by tensor maps in place of the matrices. What
                // a box has beyond a row's end is zero.
                const int column = chunk * BOX_COLUMNS;
                pump.box(slot, (const tensor_map *)matrix, column, place.row);
                pump.box(slot + WEIGHT_BYTES / 2, (const tensor_map *)matrix1, column, row1);
            } else if (s.paired) {
                pump.copy(slot, matrix + (u64)place.row * row_bytes, 4 * row_bytes);
                pump.copy(slot + 4 * row_bytes, matrix1 + (u64)row1 * row_bytes, 4 * row_bytes);
            } else {
                // Rows that are contiguous in the file are one copy.
                pump.copy(slot, matrix + (u64)place.row * row_bytes, 8 * row_bytes);
            }
            if (s.storage != BF16)
#pragma unroll 1
                for (int run = 0; run < runs; run++) {
                    const u8 *scales = run ? s1 : segment == 0 ? s0 : segment == 1 ? s1 : s2;
                    const u32 bit = first_bit(s, place, run, first1, width);
                    pump.copy(slot + WEIGHT_BYTES + run * run_bytes, scales + bit / 128 * 16,
                              run_bytes);
#if LUT4_KINDS
                    if (s.storage == LUT4)
                        pump.copy(slot + WEIGHT_BYTES + runs * run_bytes + run * BOOK_BYTES,
                                  scales - BOOK_BYTES, BOOK_BYTES);
#endif
                    if (s.storage == NF4)
                        pump.copy(slot + WEIGHT_BYTES + runs * run_bytes + run * NESTED_BYTES,
                                  scales + nested_at(s, segment, first1) + bit / 8 / 256 / 4 * 16,
                                  NESTED_BYTES);
                }
            pump.done();
        }
    }
    pump.end(tiles.count * s.ksplit);
}

// From one token's x to the next one's, of K columns.
template <int K> constexpr int X_STRIDE = COPIES * K;

#include "decode_input.cuh"

// ---- the product ----

// Where a lane finds its share of the tiles' scales: those of its row.
struct LaneScales {
    u32 bit;    // of its run's first code, in the stream
    u32 step;   // bits a tile
    u32 offset; // bits from there to the code of the row's first group
    int run_offset, bias;
#if SEGMENTED
    int next_tile[2], next_bias[2]; // where the next segments begin
#endif
    INSIDE void advance(int from, int tiles) {
        bit += step * tiles;
#if SEGMENTED
#pragma unroll
        for (int i = 0; i < 2; i++)
            if (from < next_tile[i] && from + tiles >= next_tile[i])
                bit = step * (from + tiles - next_tile[i]), bias = next_bias[i];
#endif
    }
    // Of group `group` of the row, which has `groups`; 0 where it is not there.
    INSIDE float load(const u8 *slot, int group, int groups, u32 packed) const {
#if SCALE_WIDTH
        const int format = SCALE_FORMAT, width = SCALE_WIDTH, mantissa = SCALE_MANTISSA;
#else
        const int format = packed & 255, width = packed >> SCALES_WIDTH_AT & 255,
                  mantissa = packed >> SCALES_MANTISSA_AT;
#endif
        const u32 at = (bit & 127) + offset + (u32)min(group, groups - 1) * width;
        const u32 *words = (const u32 *)(slot + WEIGHT_BYTES + run_offset) + (at >> 5);
        const u32 code =
            __funnelshift_r(words[0], words[1], at & 31) & (0xffffffffu >> (32 - width));
        const float scale = decode_scale(code, format, width, mantissa, bias);
        return group < groups ? scale : 0.0f;
    }
};

// What a phase's multiplication gets and leaves.
struct Multiply {
    // Input of the first token; its blocks' sums of squares, or null in all warps but one a token.
    const float *x, *sums;
    Tag tag;   // of both
    int count; // tiles
    Cursor at;
    int partial; // where in `shared`, f32 [ROWS][8 count][WARPS]
    // Of the sum of a row of the tiles, the part that a warp has.
    INSIDE float &part(int token, int row, int warp) const {
        return ((float *)(shared + partial))[(token * 8 * count + row) * WARPS + warp];
    }
};
struct Multiplied {
    Cursor next;
    float square_sum; // of the input
};

// Eight lanes share two rows of a tile, and each adds up one: its row of the tile, in lanes with
// lane & 6 == 0.
DEVICE float add_lanes(float row0, float row4, int lane) {
    float keep = lane % 2 ? row4 : row0, give = lane % 2 ? row0 : row4;
    keep += __shfl_xor_sync(0xffffffffu, give, 1);
    keep += __shfl_xor_sync(0xffffffffu, keep, 2);
    return keep + __shfl_xor_sync(0xffffffffu, keep, 4);
}

// The sums over K of `count` tiles' rows, in parts of warps: partial[token][8 tile + row][part].
// They are functions of their own for each K, and not inlined: a step goes through all of its code once a
// layer, so code is read from the instruction cache or from memory.
//
// Teams of four warps, and the lines that a warp has in a slot.
constexpr int FOUR = 4, TEAMS = WARPS / FOUR, TEAM_LINES = WARPS / FOUR;
// Parts that a row's sum has.
constexpr INSIDE int parts_of(const Shape &s) {
    if (s.storage == BF16 || s.storage == FP8) return s.lines < WARPS ? s.lines : WARPS;
    return s.ksplit < TEAMS ? FOUR : WARPS;
}

#include "decode_bf16.cuh"
#include "decode_int4.cuh"
#include "decode_nf4.cuh"
#include "decode_fp8.cuh"
#include "decode_lut4.cuh"

// ---- what follows ----

#include "decode_choose.cuh"

// Compiled for each kind of product: what is known of it then is not computed in each layer, on a
// path on which every block waits for the last one.
template <int K, int STORAGE, int EPILOGUE, int ROWS0, int ROWS1, int ROWS2>
DEVICE void consume(const Phase &phase, Consumer &c, int *state, int whole, volatile u64 *mailbox,
                    int guess) {
    constexpr Shape s = {K, STORAGE, EPILOGUE, ROWS0, ROWS1, ROWS2};
    static_assert((u64)s.tiles[2] * GRID < 1ull << 32, "what first_of reckons with");
    // NF4's products need the registers (kernels/NOTES.md, 38).
    const Tiles tiles(s, STORAGE == NF4 ? block_index() : (int)blockIdx.x);
    if (tiles.count == 0) return;
    take_scratch(c);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int rows = tiles.count * s.step, first_row = tiles.first * s.step;
    const Tag tag = {tag_of(c.steps, phase.at(USE_IN)), phase.at(CHECK)};
#if PLAIN_INPUTS
    const bool normed = s.epilogue == LOGITS;
#else
    const bool normed = s.epilogue != RESIDUAL;
#endif

    [[maybe_unused]] LaneScales scales = {};
    [[maybe_unused]] const u32 packed = phase.at(SCALES);
    if (s.storage != BF16) {
        const u32 width = s.storage == NF4   ? 8
                          : s.storage == FP8 ? 32
                          : SCALE_WIDTH      ? SCALE_WIDTH
                                             : packed >> SCALES_WIDTH_AT & 255;
        // The row whose scales a lane loads.
        const int row = IS_INT4(s.storage) ? int4_scale_row(lane)
                        : s.storage == NF4 ? nf4_row(lane)
                                           : 4 * (lane % 2) + lane / 8;
        const int run_rows = s.step, run = row / run_rows;
        const Place place(s, tiles.first);
        scales.bit = first_bit(s, place, run, phase.at(FIRST1), width);
        scales.step = run_rows * s.groups * width;
        scales.offset = row % run_rows * s.groups * width;
        scales.run_offset = run * phase.at(RUN_BYTES);
        const int bias0 = phase.at(BIAS0), bias1 = phase.at(BIAS1), bias2 = phase.at(BIAS2);
        const int segment = s.paired ? run : place.segment;
        scales.bias = segment == 0 ? bias0 : segment == 1 ? bias1 : bias2;
#if SEGMENTED
        // A tile of a paired product, or of the first segment, begins none.
        scales.next_tile[0] = s.paired ? -1 : s.tiles[0] - tiles.first;
        scales.next_tile[1] = s.paired ? -1 : s.tiles[1] - tiles.first;
        scales.next_bias[0] = bias1, scales.next_bias[1] = bias2;
#endif
    }
#if QKV_BIAS || AFTER_NORM
    // Asked for long before it is used: the bias, or the weight of the norm, of the thread's row.
    float of_row = 0.0f;
    const float *of_rows =
        s.epilogue == STORE      ? (QKV_BIAS ? phase.pointer<const float>(NEXT_NORM) : nullptr)
        : s.epilogue == RESIDUAL ? (AFTER_NORM ? phase.pointer<const float>(W1) : nullptr)
                                 : nullptr;
    if (of_rows && own_row() < rows) of_row = of_rows[first_row + own_row()];
#endif
    int partial = c.partial;
    if (s.epilogue == LOGITS) {
        // It takes both phases' scratch, and the one before may still be read.
        sync_threads(1, CONSUMERS);
        partial = SCRATCH_AT;
    }
    // The last warp's team has the fewest tiles. Of each token one of its warps adds up.
    static_assert(ROWS <= FOUR, "a warp of the last team a token");
    const bool adds_squares = normed && (ROWS == 1 ? warp == WARPS - 1 : warp >= WARPS - ROWS);
    const int squares_of = ROWS == 1 ? 0 : WARPS - 1 - warp; // where it does
    const float *sums = phase.pointer<const float>(SUMS) + GRID * squares_of;
    const float *x = phase.pointer<const float>(X) + (tag.mask ? own_copy() * K : 0);
    const Multiply m = {x, adds_squares ? sums : nullptr, tag, tiles.count, c.at, partial};
    Multiplied done = {};
    if constexpr (STORAGE == BF16) done = multiply_bf16<K>(m);
    if constexpr (STORAGE == INT4) done = multiply_int4<K>(m, scales, packed, c.exchange);
#if NF4_KINDS
    if constexpr (STORAGE == NF4)
        done = multiply_nf4<K>(m, scales, nested_in_slot(s, scales, phase.at(RUN_BYTES)),
                               c.exchange);
#endif
#if FP8_KINDS
    if constexpr (STORAGE == FP8) done = multiply_fp8<K>(m, scales, c.exchange);
#endif
#if LUT4_KINDS
    // One a run, behind the codes.
    const u32 book = WEIGHT_BYTES + (s.paired ? 2 : 1) * phase.at(RUN_BYTES),
              books = book | (s.paired ? book + BOOK_BYTES : book) << 16;
    if constexpr (STORAGE == LUT4)
        done = multiply_lut4<K>(m, scales, packed, books, c.exchange);
#endif
    c.at = done.next;

    // As the scratch: the barrier of the phase between parts the reading from the next writing.
    __shared__ float norm_factors[2 * ROWS];
    float *norm_factor = norm_factors + (c.partial != SCRATCH_AT) * ROWS;
    if (adds_squares && lane == 0)
        norm_factor[squares_of] =
            1.0f / sqrtf(done.square_sum / HIDDEN + __uint_as_float(EPS_BITS));
    sync_threads(1, CONSUMERS);

    // All threads have outputs of a token's, but for the residual stream's.
    constexpr int threads = CONSUMERS / ROWS;
    const u32 token = s.epilogue == RESIDUAL ? own_token()
                      : ROWS == 1            ? 0
                                             : threadIdx.x / threads,
              thread = s.epilogue == RESIDUAL ? own_row() : threadIdx.x - token * threads;
    const float factor = normed ? norm_factor[token] : 1.0f;

    constexpr int parts = parts_of(s);
    const int first_sum = ROWS == 1 ? 0 : (int)token * 8 * tiles.count;
    auto row_sum = [&](int row) {
        float y = 0.0f;
        const float4 *from = (const float4 *)(shared + partial) + (first_sum + row) * (WARPS / 4);
#pragma unroll
        for (int v = 0; v < WARPS / 4; v++) {
            if (4 * v >= parts) break;
            const float4 four = from[v];
            y += four.x;
            if (4 * v + 1 < parts) y += four.y;
            if (4 * v + 2 < parts) y += four.z;
            if (4 * v + 3 < parts) y += four.w;
        }
        return y * factor;
    };
    // Of what all blocks read there are copies.
    constexpr int copies = s.epilogue == STORE || s.epilogue == LOGITS ? 1 : COPIES,
                  columns = s.step * s.tiles[2];
    float *out = phase.pointer<float>(OUT) + token * copies * columns + first_row,
          *out_sums = phase.pointer<float>(OUT_SUMS);
    const u32 out_tag = tag_of(c.steps, phase.at(USE_OUT));
    if (s.epilogue == STORE) {
#if QKV_BIAS
#pragma unroll 1
        for (int i = thread; i < rows; i += threads)
            store_tagged(out + i, row_sum(i) + (i < threads ? of_row : of_rows[first_row + i]),
                         out_tag);
#else
#pragma unroll 1
        for (int i = thread; i < rows; i += threads)
            store_tagged(out + i, row_sum(i), out_tag);
#endif
    } else if (s.epilogue == SWIGLU) {
#pragma unroll 1
        for (int i = thread; i < rows; i += threads) {
            const float gate = row_sum(i / 4 * 8 + i % 4), up = row_sum(i / 4 * 8 + 4 + i % 4);
            const float y = gate / (1.0f + expf(-gate_exponent(gate))) * up;
            store_copies(out + i, columns, y, out_tag);
        }
    } else if (s.epilogue == RESIDUAL) {
        float y = 0.0f;
#if AFTER_NORM
        float z = has_row(rows) ? row_sum(thread) : 0.0f;
        float *product_sums = phase.pointer<float>(SUMS);
        publish_squares(z * z, product_sums, out_tag, rows);
        if (thread - lane < rows && token < ROWS) { // a warp with rows
            product_sums += GRID * token;
            SquareSums squares;
            squares.load(product_sums, lane);
            const float sum = squares.sum(product_sums, {out_tag, TAG_MASK}, lane);
            z *= 1.0f / sqrtf(sum / HIDDEN + __uint_as_float(EPS_BITS)) * of_row;
        }
#endif
        if (has_row(rows)) {
#if AFTER_NORM
            y = z;
#else
            y = row_sum(thread);
#endif
#ifdef RESIDUAL_BITS
            y *= __uint_as_float(RESIDUAL_BITS);
#endif
            y = c.residual + y;
            wait_for_copies();
            store_copies(out + thread, HIDDEN, y * next_norms[threadIdx.x], out_tag);
            c.residual = y;
        }
        publish_squares(y * y, out_sums, out_tag, rows);
        // For the next of these phases, long before it.
        const float *norms = phase.pointer<const float>(NEXT_NORM);
        if (norms && has_row(rows)) ask_for_norm(norms + first_row + thread);
    } else {
        Best best = {LEAST, 0x3fffffffu};
#pragma unroll 1
        for (int i = thread; i < rows; i += threads) {
            const float y = finished(row_sum(i));
            out[i] = y;
            best.take(y, first_row + i);
        }
        __shared__ Best bests[WARPS];
        best.take_warp();
        if (lane == 0) bests[warp] = best;
        sync_threads(1, CONSUMERS);
        u64 *entries = (u64 *)out_sums;
        if (thread == 0) {
            const Best *own = bests + token * (threads / 32);
            for (int v = 1; v < threads / 32; v++) best.take(own[v].value, own[v].row);
            const u64 entry = (u64)((((u32)state[STATE_CHOICES] + 1) & 3) << 30 | best.row) << 32 |
                              __float_as_uint(best.value);
            asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(entries + GRID * token +
                                                                     blockIdx.x),
                         "l"(entry)
                         : "memory");
        }
        if (blockIdx.x == GRID - 1 && warp == 0)
            choose(s, entries, state, whole, mailbox, guess, lane);
    }
}
