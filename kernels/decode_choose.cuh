// A decode step's choice of the next token.
#pragma once
#include "best.cuh"

// By a warp: the best of all blocks. A block's entry is its logit and its row with a tag above.
DEVICE Best best_of(const Shape &s, const u64 *entries, u32 tag, int lane) {
    Best best = {LEAST, 0x3fffffffu};
    for (int b = lane; b < GRID; b += 32) {
        if (first_of(s.tiles[2], b + 1) == first_of(s.tiles[2], b)) continue;
        u64 entry;
        do
            asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];"
                         : "=l"(entry)
                         : "l"(entries + b)
                         : "memory");
        while ((u32)(entry >> 62) != tag);
        best.take(__uint_as_float((u32)entry), (u32)(entry >> 32) & 0x3fffffffu);
    }
    best.take_warp();
    return best;
}

// The first warp of the last block, which always has tiles. What follows a guess counts if that is
// what was chosen.
DEVICE void choose(const Shape &s, const u64 *entries, int *state, int whole, volatile u64 *mailbox,
                   int guess, int lane) {
    const u32 chosen = (u32)state[STATE_CHOSEN], tag = ((u32)state[STATE_CHOICES] + 1) & 3;
    const Best best = best_of(s, entries, tag, lane);
    Best next = {};
    if constexpr (ROWS > 1) next = best_of(s, entries + GRID, tag, lane);
    if (lane == 0) {
        state[STATE_STEPS] += whole;
        state[STATE_CHOICES] += 1;
        best.hand_over(chosen, state, mailbox);
        if (ROWS > 1 && best.is_finite() && best.row == (u32)guess)
            next.hand_over(chosen + 1, state, mailbox);
    }
}
