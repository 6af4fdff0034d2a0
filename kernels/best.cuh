// The largest of a row of logits as the next token, for decode.cu and logits.cu.
//
// Macros: DIVISOR_BITS and CAP_BITS, where a family has them; RING, NOT_FINITE and the places in
// `state` (decode.cu).
#pragma once
#include "common.cuh"

// The largest logit and its row; the lowest among equals, NaN before all.
struct Best {
    float value;
    u32 row;
    INSIDE void take(float other, u32 other_row) {
        if (other > value || (other != other && value == value) ||
            (other == value && other_row < row))
            value = other, row = other_row;
    }
    INSIDE void take_warp() {
#pragma unroll
        for (int d = 16; d > 0; d /= 2)
            take(__shfl_xor_sync(0xffffffffu, value, d), __shfl_xor_sync(0xffffffffu, row, d));
    }
    INSIDE bool is_finite() const { return value - value == 0.0f; }
    // One thread's: makes it the token behind `chosen` others, in `state` and in the host's
    // mailbox.
    INSIDE void hand_over(u32 chosen, int *state, volatile u64 *mailbox) const {
        const bool finite = is_finite();
        state[STATE_POSITION] += 1;
        state[STATE_CHOSEN] = (int)(chosen + 1);
        state[STATE_TOKEN] = finite ? (int)row : 0;
        mailbox[chosen % RING] = (u64)(chosen + 1) << 32 | (finite ? row : (u32)NOT_FINITE);
    }
};
#define LEAST __uint_as_float(0xff800000u)

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
