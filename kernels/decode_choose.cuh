// What a decode step makes of its logits, and its choice of the next token.
//
// Macros: DIVISOR_BITS and CAP_BITS, where a family has them; RING, NOT_FINITE and the places in `state` (decode.cu).
#pragma once

// The largest logit and its row; the lowest among equals, NaN before all.
struct Best {
    float value;
    u32 row;
    INSIDE void take(float other, u32 other_row) {
        if (other > value || (other != other && value == value) || (other == value && other_row < row))
            value = other, row = other_row;
    }
    INSIDE void take_warp() {
#pragma unroll
        for (int d = 16; d > 0; d /= 2)
            take(__shfl_xor_sync(0xffffffffu, value, d), __shfl_xor_sync(0xffffffffu, row, d));
    }
};
#define LEAST __uint_as_float(0xff800000u)

// The first warp of the last block, which always has tiles: the best of all blocks. A block's entry is its logit and its row with a tag above.
DEVICE void choose(const Shape &s, const u64 *entries, int *state, int whole, volatile u64 *mailbox, int lane) {
    const u32 chosen = (u32)state[STATE_CHOSEN], tag = (chosen + 1) & 3;
    Best best = {LEAST, 0x3fffffffu};
    for (int b = lane; b < GRID; b += 32) {
        if (first_of(s.tiles[2], b + 1) == first_of(s.tiles[2], b)) continue;
        u64 entry;
        do asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(entry) : "l"(entries + b) : "memory");
        while ((u32)(entry >> 62) != tag);
        best.take(__uint_as_float((u32)entry), (u32)(entry >> 32) & 0x3fffffffu);
    }
    best.take_warp();
    if (lane == 0) {
        const bool finite = best.value - best.value == 0.0f;
        state[STATE_POSITION] += 1;
        state[STATE_CHOSEN] = (int)(chosen + 1);
        state[STATE_TOKEN] = finite ? (int)best.row : 0;
        state[STATE_STEPS] += whole;
        mailbox[chosen % RING] = (u64)(chosen + 1) << 32 | (finite ? best.row : (u32)NOT_FINITE);
    }
}

// A logit as the family has it.
DEVICE float finished(float logit) {
#ifdef DIVISOR_BITS
    logit /= __uint_as_float(DIVISOR_BITS);
#endif
#ifdef CAP_BITS
    logit = tanhf(logit / __uint_as_float(CAP_BITS)) * __uint_as_float(CAP_BITS);
#endif
    return logit;
}
