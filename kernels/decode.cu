// A decode step as one kernel: every layer of a token, from its embedding to the choice of the next
// one.
//
// The step is bound by the weights' bytes, so the memory pipe must never run dry. One block an SM
// stays for the whole step. Its last warps, the producers, copy weights, and the cached keys and
// values, into a ring in shared memory by bulk copies in the order of the phases; they wait for
// nothing but room, since these depend on nothing in this step. The other warps consume. While they
// wait for activations at the border of two phases the ring fills, and what it holds, about 8 us of
// memory's time, is then worked off faster than memory brings more.
//
// Blocks hand activations over as tagged values (common.cuh), which takes no barrier of the grid,
// no fence and one trip through L2. A buffer may be overwritten two phases after it was read: by
// then its overwriter has seen results that need every block's reading done. Each is used once a
// layer, so that holds for all.
//
// begin    residual = embedding[token] (f32, a register of the row's thread);
//          hidden = residual * norm; sums of squares
// phases   `program`, PHASE_WORDS each (enum Word): products (decode_product.cuh) and attention
//          (decode_attention.cuh)
// choice   the last product's epilogue: the last block takes the largest logit into `state` and the
//          host's mailbox, so that a step needs nothing from the host. Of equals the lowest id
//          wins, and NaN wins over all, so that it is not lost.
//
// state: STATE_POSITION: tokens in the cache, STATE_CHOSEN: tokens chosen, STATE_TOKEN: token;
//   STATE_STEPS: whole steps done, STATE_CHOICES: choices made, each of these by this kernel,
//   between whose steps may be another's.
// mailbox: RING u64 in host memory, slot chosen % RING = (chosen + 1) << 32 | id; the host knows a
//   new entry by its upper half. An id of NOT_FINITE says that a logit was not finite.
//
// The kernel is launched as a programmatic dependent of the step before: a block starts when that
// one's has left its SM, and copies the first weights before it waits.
//
// grid: GRID = number of SMs, all resident at once (one block an SM, by its shared memory);
//   block: 32 (WARPS + PRODUCERS).
//
// Macros of the model and the GPU: HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, ROTARY_HALF, WINDOW
// (0: none), SPLITS, EPS_BITS, GRID; INT4_GROUP (128, 64, 32); LUT4_SHIFTED; of each kind of
// product i < KINDS (at most MOST_KINDS): KINDi_K, KINDi_STORAGE, KINDi_EPILOGUE, KINDi_SEG0,
// KINDi_SEG1, KINDi_SEG2; and how many of them are stored so: INT4_KINDS, NF4_KINDS, FP8_KINDS,
// LUT4_KINDS.
//
// Of a family, each only where it asks for it: EMBEDDING_BITS, RESIDUAL_BITS, SCORES_BITS,
// SOFT_CAP_BITS, DIVISOR_BITS and CAP_BITS (f32: factors of the embedding, of what joins the
// residual stream and of scores, the cap of scores, what logits are divided by and their cap);
// GATE_GELU_TANH; QKV_BIAS; QK_NORM with PER_HEAD and WHOLE_WIDTH; AFTER_NORM (a norm of what joins
// the residual stream); PLAIN_INPUTS (no norm before attention and MLP); LAYER_WINDOWS and
// ROTATIONS (phases of attention say which window and which of two rotary embeddings they have).
// Without them no code is compiled for them.
//
// Of the cut (smq-engine/src/cuda/decode/plan.rs): WARPS, PRODUCERS, SLOTS, LANDED, SLOT_BYTES,
// WEIGHT_BYTES (of a slot), NESTED_BYTES, BOOK_BYTES, PARTIAL_BYTES, EXCHANGE_BYTES (of a warp: the
// largest that a storage of these products needs, 0 with bf16 alone), NF4_TABLE_BYTES,
// DYNAMIC_SHARED. COPIES: how often what all blocks read is written (store_copies). BOXES: whether
// rows of any kind of product take more than a slot, so that they come as boxes of the matrix.
//
// PAGED (0), PAGE_TOKENS: keys and values lie in pages (decode_attention.cuh), and the kernel's
// last argument has the sequence's, i32 each.
//
// KV_CODE (KV_BF16) and the numbers that it may be: how keys and values are cached (kv_codes.cuh).
//
// MANY_TOKENS (0): for steps behind many tokens. Attention is by teams of warps, and where queries
// share keys by tensor cores (decode_attention.cuh, decode_attend_many.cuh).
//
// ROWS (1): tokens a step, the one that was chosen last and behind it a guess, which is the kernel's
// last argument. What follows from each is what a step of that token alone would give, to the last
// bit. Weights are read once for all of them. Buffers that hold a value for a row of activations
// have those of each token, one token's behind the other's.
//
// What both sides call by a number: PHASE_WORDS, WORD_KIND and so on (enum Word), ATTENTION_KIND,
// SCALES_WIDTH_AT, SCALES_MANTISSA_AT; BF16, INT4, NF4, FP8, LUT4; STORE, RESIDUAL, SWIGLU, LOGITS;
// EXCHANGED_FLOATS (of a block's part of attention); RING, NOT_FINITE and the places in `state`.

#include "common.cuh"

#ifndef ROWS
#define ROWS 1
#endif
#ifndef PAGED
#define PAGED 0
#endif
#ifndef MANY_TOKENS
#define MANY_TOKENS 0
#endif
#ifndef AFTER_NORM
#define AFTER_NORM 0
#endif
#ifndef PLAIN_INPUTS
#define PLAIN_INPUTS 0
#endif
#ifndef LAYER_WINDOWS
#define LAYER_WINDOWS 0
#endif
#ifndef ROTATIONS
#define ROTATIONS 1
#endif

#define CONSUMERS (32 * WARPS)
static_assert(ROWS == 1 || ROWS == 2, "one guess at most");
constexpr int ANGLES = ROTATIONS * 2 * ROTARY_HALF; // cosines and sines of a token
static_assert(SLOTS % PRODUCERS == 0, "a slot is always the same producer's");
static_assert(WEIGHT_BYTES == 8 * 128 * WARPS && WEIGHT_BYTES <= SLOT_BYTES,
              "a slot has 8 rows of a line a warp, then scale codes");
constexpr int SCRATCH_AT = SLOTS * SLOT_BYTES + 128, WORDS_AT = SCRATCH_AT + 2 * PARTIAL_BYTES;
static_assert(DYNAMIC_SHARED == WORDS_AT + PRODUCERS * 2 * 4 * PHASE_WORDS,
              "the ring, two phases' scratch, two phases' words for each producer");
static_assert(KINDS <= MOST_KINDS && KINDS <= ATTENTION_KIND, "every kind has a number of its own");

extern __shared__ __align__(128) u8 shared[];

// A phase's words, where smq-engine/src/cuda/decode/program.rs puts them; addresses take two.
enum Word {
    KIND = WORD_KIND,
    USE_IN = WORD_USE_IN,   // which use in this step of their buffers input
    USE_OUT = WORD_USE_OUT, // and output are
    CHECK = WORD_CHECK,     // TAG_MASK: the input is tagged, 0: it is not
    W0 = WORD_WEIGHTS,      // weights of up to three segments; attention: keys, values
    W1 = W0 + 2,
    W2 = W0 + 4,
    // Scales; lut4: the book is before them; attention: S1, S2 those of keys and values.
    S0 = WORD_SCALES_AT,
    S1 = S0 + 2,
    S2 = S0 + 4,
    // Index in S1 of segment 1's first scale; attention: positions that the cache holds.
    FIRST1 = WORD_FIRST1,
    // NF4: the offset's bits; attention: the layer's window (0: none), which rotary embedding.
    BIAS0 = WORD_BIAS,
    BIAS1 = BIAS0 + 1,
    BIAS2 = BIAS0 + 2,
    SCALES = WORD_SCALES, // format | width << SCALES_WIDTH_AT | mantissa << SCALES_MANTISSA_AT
    RUN_BYTES = WORD_RUN_BYTES,
    X = WORD_X,
    // Of squares of the input; attention: where blocks exchange their parts; RESIDUAL with
    // AFTER_NORM: of squares of the product.
    SUMS = WORD_SUMS,
    NEXT_NORM = WORD_NEXT_NORM, // of the next RESIDUAL phase, or 0; STORE with QKV_BIAS: the bias
    OUT = WORD_OUT,
    OUT_SUMS = WORD_OUT_SUMS, // sums of squares of the output; the head's: best logits
};
static_assert(PHASE_WORDS == 32, "a word a lane");
static_assert(SCALES_WIDTH_AT == 8 && SCALES_MANTISSA_AT == 16,
              "format and width have a byte each");

// One word a lane.
struct Phase {
    u32 word;
    INSIDE u32 at(int i) const { return __shfl_sync(0xffffffffu, word, i); }
    template <class T> INSIDE T *pointer(int i) const {
        return (T *)((u64)at(i + 1) << 32 | at(i));
    }
};

// The tag of use `use` of a buffer in the step after `steps` steps. Consecutive uses differ.
DEVICE u32 tag_of(u32 steps, u32 use) { return (steps * (LAYERS + 1) + use + 1) & 3; }

// A place in the ring.
struct Ring;
struct Cursor {
    int slot;
    u32 parity;
    INSIDE void advance(int slots = 1) {
        slot += slots;
        if (slot >= SLOTS) slot -= SLOTS, parity ^= 1;
    }
    INSIDE Cursor after(int slots) const {
        const int to = slot + slots;
        return {to % SLOTS, parity ^ (u32)(to / SLOTS & 1)};
    }
    INSIDE Cursor before(int slots) const { // at most SLOTS
        const int to = slot - slots;
        return {to < 0 ? to + SLOTS : to, parity ^ (u32)(to < 0)};
    }
    static INSIDE Ring ring();
};

struct Ring {
    u8 *slots;
    u64 *full, *empty;
    INSIDE u8 *at(const Cursor &c) const { return slots + c.slot * SLOT_BYTES; }
    INSIDE void wait(const Cursor &c) const { barrier_wait(&full[c.slot], c.parity); }
    // By each warp that shares the slot: WARPS / weight of them.
    INSIDE void release(const Cursor &c, int weight) const {
        barrier_arrive_warp(&empty[c.slot], weight);
    }
};
__shared__ u64 barriers[2 * SLOTS]; // full, empty
INSIDE Ring Cursor::ring() { return {shared, barriers, barriers + SLOTS}; }

// The same words for one thread, in shared memory: in registers they would be half of those that a
// producer needs, and the next phase's beside them the other half.
struct Words {
    const u32 *words;
    INSIDE u32 at(int i) const { return words[i]; }
    template <class T> INSIDE T *pointer(int i) const {
        return (T *)*(const u64 *)(words + i);
    }
};

// Copies a phase's words, of which there are a few, while the thread goes on.
DEVICE void fetch_words(u32 *to, const u32 *program, int phase) {
#pragma unroll
    for (int i = 0; i < PHASE_WORDS; i += 4)
        asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(shared_address(to + i)),
                     "l"(program + PHASE_WORDS * phase + i)
                     : "memory");
}

// Where teams of warps have slots of their own (decode_int4.cuh, decode_attend_many.cuh), a team
// goes from one of its slots to its next one, at most TEAM_GAP later, whatever the others wait for,
// and so do the producers. A barrier tells two uses of a slot in a row apart, and no more: whoever
// waits for a use has to know that the one before it has arrived, or takes the one before that for
// it. So a slot is filled only once all those LANDED or more before it are there: then whatever a
// team waits for next, the use before it has arrived. A producer waits for those that the slot
// LANDED before it did not wait for itself; none of them can have been filled anew, since that
// would have waited for this one.
constexpr int TEAM_GAP = 5;
constexpr int WAITED_FOR = LANDED + PRODUCERS < 2 * LANDED ? LANDED + PRODUCERS : 2 * LANDED;
constexpr bool TOLD_APART = LANDED + TEAM_GAP <= SLOTS && LANDED + WAITED_FOR - 1 <= SLOTS;
constexpr bool APART = INT4_KINDS + NF4_KINDS + LUT4_KINDS > 0 || (MANY_TOKENS && TOLD_APART);
static_assert(!APART || TOLD_APART, "uses of a slot are told apart");

// A producer's side, one thread's. Producers take slots in turns, and each has one on its way:
// alone, one thread's latency from slot to slot would bound the step, and more than PRODUCERS slots
// do not arrive sooner, they queue in the memory system, and activations queue behind them.
struct Pump {
    Ring ring;
    Cursor head, last; // the next slot to fill, the one on its way
    int index;         // of the next, among all of the step
    int skip; // slots of the next phase that are other producers', before its first
    // Makes the next slot ready for `bytes`.
    INSIDE u8 *next(int bytes) {
        barrier_wait(&ring.empty[head.slot], head.parity ^ 1);
        if (last.slot >= 0) barrier_wait(&ring.full[last.slot], last.parity);
        if constexpr (APART) {
#pragma unroll
            for (int back = LANDED; back < WAITED_FOR; back++)
                if (back != PRODUCERS && index >= back) ring.wait(head.before(back));
        }
        barrier_expect(&ring.full[head.slot], bytes);
        return ring.at(head);
    }
    INSIDE void copy(u8 *to, const void *from, int bytes) {
        bulk_copy(to, from, bytes, &ring.full[head.slot]);
    }
    INSIDE void box(u8 *to, const tensor_map *map, int column, int row) {
        load_box(map, shared_address(to), &ring.full[head.slot], column, row);
    }
    INSIDE void done() {
        last = head;
        head.advance(PRODUCERS);
        index += PRODUCERS;
    }
    // After a phase of `slots`.
    INSIDE void end(int slots) { skip = ((skip - slots) % PRODUCERS + PRODUCERS) % PRODUCERS; }
};

// What every block reads is written COPIES times, each `stride` values behind the one before, and
// each block reads its own: all would read the same few lines of L2 at the same time.
DEVICE void store_copies(float *p, int stride, float v, u32 tag) {
#pragma unroll
    for (int copy = 0; copy < COPIES; copy++) store_tagged(p + copy * stride, v, tag);
}
DEVICE int own_copy() { return blockIdx.x % COPIES; }

// What a consumer carries from phase to phase.
struct Consumer {
    Ring ring;
    Cursor at;
    u32 steps;      // whole steps done
    // Where in `shared` this phase's scratch is: PARTIAL_BYTES for every other phase that the block
    // has a part in. Of two in a row, the barrier in the later one parts the earlier one's last
    // reading from the next writing.
    int partial;
    u8 *exchange;   // of activations, EXCHANGE_BYTES a warp
    float residual; // of row 8 first_tile + threadIdx.x of the residual stream
};

// At the start of a phase in which the block has a part.
DEVICE void take_scratch(Consumer &c) {
    c.partial = 2 * SCRATCH_AT + PARTIAL_BYTES - c.partial;
}

// A block of 512 threads gets 128 registers each. Producers do with fewer, and what they leave lets
// a warp that multiplies have three lines in registers, with a chain of mmas each.
constexpr int CONSUMER_REGISTERS = 144, PRODUCER_REGISTERS = 80;
static_assert(WARPS % 4 == 0 && PRODUCERS == 4, "whole warpgroups take and leave registers");
static_assert(CONSUMERS * CONSUMER_REGISTERS + 32 * PRODUCERS * PRODUCER_REGISTERS <= 65536,
              "an SM has no more");
template <bool MORE> DEVICE void set_registers() {
#if __CUDA_ARCH__ >= 900
    if (MORE) asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(CONSUMER_REGISTERS));
    else asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(PRODUCER_REGISTERS));
#endif
}

constexpr int ROW_TILES = HIDDEN / 8; // of a product into the residual stream
// The block's index, read anew, so that nothing that is worked out from it is kept in registers for
// the whole step.
DEVICE int block_index() {
    int i;
    asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(i));
    return i;
}
DEVICE int first_of(int tiles, int block) { return (int)((u32)tiles * (u32)block / GRID); }

constexpr int MOST_WARPS = ((ROW_TILES + GRID - 1) / GRID * 8 + 31) / 32;
static_assert(ROWS * MOST_WARPS <= WARPS, "one thread a row of each token");
// Of the residual stream a thread has row own_row() of the block's, of token own_token().
constexpr int TOKEN_THREADS = 32 * MOST_WARPS;
DEVICE u32 own_token() { return ROWS == 1 ? 0 : threadIdx.x / TOKEN_THREADS; }
DEVICE u32 own_row() { return ROWS == 1 ? threadIdx.x : threadIdx.x % TOKEN_THREADS; }
DEVICE bool has_row(int rows) { return own_row() < rows && own_token() < ROWS; }

// Weights of the block's rows in the next norm, each its row's thread's. They come from memory by a
// copy that nobody waits for until they are used: a register would be waited for at the next call,
// some thousand cycles in which the block publishes nothing and asks for nothing.
__shared__ float next_norms[ROWS * TOKEN_THREADS];
DEVICE void ask_for_norm(const float *norm) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(
                     shared_address(next_norms + threadIdx.x)),
                 "l"(norm)
                 : "memory");
}
DEVICE void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// 2^-22 relative.
DEVICE void publish_squares(float square, float *sums, u32 tag, int rows) {
    __shared__ float squares[ROWS * MOST_WARPS];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (warp >= ROWS * MOST_WARPS) return;
    square = warp_sum(square);
    if (MOST_WARPS > 1) {
        if (lane == 0) squares[warp] = square;
        sync_threads(2, ROWS * TOKEN_THREADS);
        const float *own = squares + MOST_WARPS * own_token();
        square = own[0];
        for (int v = 1; v < MOST_WARPS; v++) square += own[v];
        sync_threads(2, ROWS * TOKEN_THREADS);
    }
    if (own_row() == 0 && rows > 0)
        store_tagged(sums + GRID * own_token() + blockIdx.x, square, tag);
}

#include "decode_kinds.cuh"
#include "decode_product.cuh"
#include "decode_attention.cuh"

KERNEL __launch_bounds__(CONSUMERS + 32 * PRODUCERS, 1)
    decode(const u32 *program, int phases, int whole, int *state, const u16 *embedding,
           const float *norm, const float *first_norm, const float *inv_freq,
           float attention_factor, float *hidden, float *hidden_sums, volatile u64 *mailbox
#if ROTATIONS > 1
           , const float *other_inv_freq, float other_attention_factor
#endif
#if ROWS > 1
           , int guess
#endif
#if PAGED
           , const int *pages) {
#else
    ) {
    const int *const pages = nullptr;
#endif
#if ROWS == 1
    constexpr int guess = 0;
#endif
    let_next_kernel_start();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    __shared__ float rope[ROWS * ANGLES];
    const Ring ring = Cursor::ring();
    if (threadIdx.x == 0) {
        for (int s = 0; s < SLOTS; s++) {
            barrier_init(&ring.full[s], 1);
            barrier_init(&ring.empty[s], A_WARP * WARPS);
        }
        fence_barrier_init();
    }
    __syncthreads();

    if (warp >= WARPS) {
        set_registers<false>();
        // A copy is one thread's, and a warp's would be issued one after the other.
        if (lane > 0) return;
        const int producer = warp - WARPS;
        Pump pump = {ring, {producer, 0}, {-1, 0}, producer, producer};
        int past = -1;
        u32 *words = (u32 *)(shared + WORDS_AT) + producer * 2 * PHASE_WORDS;
        fetch_words(words, program, 0);
        for (int p = 0; p < phases; p++) {
            wait_for_copies();
            fetch_words(words + (p + 1) % 2 * PHASE_WORDS, program, min(p + 1, phases - 1));
            const Words phase = {words + p % 2 * PHASE_WORDS};
            const u32 kind = phase.at(KIND);
            if (kind == ATTENTION_KIND && past < 0) {
                // Only from here on does what it copies depend on the step before.
                wait_for_previous_kernel();
                fence_proxy_async();
                past = state[STATE_POSITION];
            }
            if (kind == ATTENTION_KIND)
                produce_cache(phase, pump, past, pages);
            else
                produce(SHAPES[kind], phase, pump);
        }
        wait_for_copies();
        return;
    }

    set_registers<true>();
    Phase phase = {program[lane]};
#if NF4_KINDS
    fill_nf4_tables(CONSUMERS, f16_pair); // the low nibble's level below the other's
#endif
    wait_for_previous_kernel();
    const int past = state[STATE_POSITION];
#if EXCHANGE_BYTES
    __shared__ __align__(16) u8 exchange[WARPS * EXCHANGE_BYTES];
#else
    u8 *exchange = nullptr;
#endif
    Consumer c = {ring, {0, 0}, (u32)state[STATE_STEPS], SCRATCH_AT, exchange, 0.0f};
#pragma unroll 1
    for (int token = 0; token < ROWS; token++) {
        float *own = rope + token * ANGLES;
        for (int i = threadIdx.x; i < ROTARY_HALF; i += CONSUMERS) {
            float angle = (float)(past + token) * inv_freq[i];
            own[i] = cosf(angle) * attention_factor;
            own[ROTARY_HALF + i] = sinf(angle) * attention_factor;
#if ROTATIONS > 1
            angle = (float)(past + token) * other_inv_freq[i];
            own[2 * ROTARY_HALF + i] = cosf(angle) * other_attention_factor;
            own[3 * ROTARY_HALF + i] = sinf(angle) * other_attention_factor;
#endif
        }
    }
    const int first = 8 * first_of(ROW_TILES, blockIdx.x),
              rows = 8 * first_of(ROW_TILES, blockIdx.x + 1) - first;
    const int row = first + own_row();
    if (whole) {
        const u32 tag = tag_of(c.steps, 0);
        float *own_hidden = hidden + own_token() * COPIES * HIDDEN;
        if (has_row(rows)) {
            const u32 token = own_token() == 0 ? state[STATE_TOKEN] : guess;
            c.residual = bf16_to_f32(embedding[(u64)token * HIDDEN + row]);
#ifdef EMBEDDING_BITS
            c.residual *= __uint_as_float(EMBEDDING_BITS);
#endif
#if PLAIN_INPUTS
            store_copies(own_hidden + row, HIDDEN, c.residual, tag);
#else
            store_copies(own_hidden + row, HIDDEN, c.residual * norm[row], tag);
#endif
        }
        publish_squares(c.residual * c.residual, hidden_sums, tag, rows);
    }
#if PLAIN_INPUTS
    if (has_row(rows)) next_norms[threadIdx.x] = 1.0f;
#else
    if (first_norm && has_row(rows)) ask_for_norm(first_norm + row);
#endif
    sync_threads(1, CONSUMERS);

    for (int p = 0; p < phases; p++) {
        Phase next = {program[PHASE_WORDS * min(p + 1, phases - 1) + lane]};
        const u32 kind = phase.at(KIND);
        if (kind == ATTENTION_KIND)
            consume_cache(phase, c, past, rope, pages);
#define CONSUME(i)                                                                                 \
    else if (kind == i)                                                                            \
        consume<KIND##i##_K, KIND##i##_STORAGE, KIND##i##_EPILOGUE, KIND##i##_SEG0,                \
                KIND##i##_SEG1, KIND##i##_SEG2>(phase, c, state, whole, mailbox, guess);
        FOR_KINDS(CONSUME)
        phase = next;
    }
}
