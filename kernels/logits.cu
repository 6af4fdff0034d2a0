// Behind the head, where decode.cu does not do it: what a family makes of logits, and the choice of
// one sequence's next token.
//
// finish_logits   logits[m, i] = c tanh(logits[m, i] / (DIVISOR c)), or without CAP_BITS
//                 logits[m, i] / DIVISOR
//   logits   f32 [rows, VOCAB]
//   grid: (ceil(VOCAB / (4 FINISH_THREADS)), rows), block: FINISH_THREADS. It is bound by memory: a
//   thread has 16 bytes.
//
// choose_token    the largest logit goes into `state` and into the mailbox of the host, as
//                 decode.cu has them. Of equals the lowest id wins, and NaN wins over all, so that
//                 it is not lost
//   logits   f32 [VOCAB]
//   state    i32: places STATE_POSITION, STATE_CHOSEN, STATE_TOKEN
//   mailbox  RING u64 in host memory: slot chosen % RING = (chosen + 1) << 32 | id, or NOT_FINITE
//            for an id
//   grid: 1, block: CHOOSE_THREADS. One block reads a MiB of logits at most; a step's weights are a
//   thousand times that.
//
// Macros: VOCAB (multiple of 8), DIVISOR_BITS, CAP_BITS (only where there is a cap),
// FINISH_THREADS, CHOOSE_THREADS, RING, NOT_FINITE and the places in `state`.
#include "best.cuh"

static_assert(VOCAB % 8 == 0, "16 bytes a thread");
static_assert(CHOOSE_THREADS == 1024, "a warp of warps");

KERNEL __launch_bounds__(FINISH_THREADS) finish_logits(float *logits) {
    let_next_kernel_start();
    wait_for_previous_kernel();
    const int i = (blockIdx.x * FINISH_THREADS + threadIdx.x) * 4;
    if (i >= VOCAB) return;
    float4 *at = (float4 *)(logits + (u64)blockIdx.y * VOCAB + i);
    const float4 v = *at;
    *at = make_float4(finished(v.x), finished(v.y), finished(v.z), finished(v.w));
}

KERNEL __launch_bounds__(CHOOSE_THREADS)
    choose_token(const float *logits, int *state, volatile u64 *mailbox) {
    let_next_kernel_start();
    wait_for_previous_kernel();
    __shared__ Best bests[32];
    Best best = {LEAST, 0x7fffffffu};
    for (int i = threadIdx.x * 4; i < VOCAB; i += CHOOSE_THREADS * 4) {
        const float4 v = *(const float4 *)(logits + i);
        best.take(v.x, i), best.take(v.y, i + 1), best.take(v.z, i + 2), best.take(v.w, i + 3);
    }
    best.take_warp();
    if (threadIdx.x % 32 == 0) bests[threadIdx.x / 32] = best;
    __syncthreads();
    if (threadIdx.x >= 32) return;
    best = bests[threadIdx.x];
    best.take_warp();
    if (threadIdx.x == 0) best.hand_over((u32)state[STATE_CHOSEN], state, mailbox);
}
