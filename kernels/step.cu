// The first and the last kernel of a decode step.
//
// begin_step: x = embedding[token] (f32), next_x = x * norm for the first product, and partial sums of x^2 (the
//   first holds all, the others zero); cos and sin of the position, rope[2][ROTARY_HALF]: angle = position *
//   inv_freq in f32 as the CPU reference has it, times the attention factor. grid: 1, block: 1024.
// choose_token: greedy choice from the head's per-block maxima: the largest logit, the lowest id among
//   equals. The id goes to the next step's input and to the host, and the position moves on: a step needs
//   nothing from the host. grid: 1, block: 1024.
//
// state: [0] position (tokens in the cache), [1] steps done, [2] token.
// mailbox: RING u64 in host memory, slot steps % RING = (steps + 1) << 32 | id; the host knows a new
//   entry by its upper half. An id of 0xffffffff says that a logit was not finite.
//
// Macros: HIDDEN, ROTARY_HALF, GRID (blocks of a product: partial sums, candidates), RING.

#include "common.cuh"

KERNEL __launch_bounds__(1024) begin_step(const int *state, const u16 *embedding, const float *norm,
                                          const float *inv_freq, float attention_factor, float *x, float *next_x,
                                          float *square_sums, float *rope) {
    let_next_kernel_start();
    wait_for_previous_kernel();
    const u16 *row = embedding + (u64)(u32)state[2] * HIDDEN;
    float square_sum = 0.0f;
    for (int k = threadIdx.x; k < HIDDEN; k += 1024) {
        float v = bf16_to_f32(row[k]);
        x[k] = v;
        next_x[k] = v * norm[k];
        square_sum += v * v;
    }
    for (int i = threadIdx.x; i < ROTARY_HALF; i += 1024) {
        float angle = (float)state[0] * inv_freq[i];
        rope[i] = cosf(angle) * attention_factor;
        rope[ROTARY_HALF + i] = sinf(angle) * attention_factor;
    }
    store_block_sum(square_sum, square_sums, GRID);
}

KERNEL __launch_bounds__(1024) choose_token(const float *best_value, const int *best_index, int *state,
                                            volatile u64 *mailbox) {
    let_next_kernel_start();
    wait_for_previous_kernel();
    float value = __uint_as_float(0xff800000u);
    int index = 0x7fffffff;
    auto take = [&](float other, int other_index) {
        // NaN wins, so that it is not lost.
        if (other > value || other != other || (other == value && other_index < index))
            value = other, index = other_index;
    };
    for (int i = threadIdx.x; i < GRID; i += 1024) take(best_value[i], best_index[i]);
    __shared__ float values[32];
    __shared__ int indices[32];
    for (int round = 0; round < 2; round++) {
#pragma unroll
        for (int d = 16; d > 0; d /= 2) {
            float other = __shfl_xor_sync(0xffffffffu, value, d);
            int other_index = __shfl_xor_sync(0xffffffffu, index, d);
            take(other, other_index);
        }
        if (round == 0) {
            if (threadIdx.x % 32 == 0) values[threadIdx.x / 32] = value, indices[threadIdx.x / 32] = index;
            __syncthreads();
            if (threadIdx.x >= 32) return;
            value = values[threadIdx.x], index = indices[threadIdx.x];
        }
    }
    if (threadIdx.x == 0) {
        bool finite = value - value == 0.0f;
        u32 steps = (u32)state[1];
        state[0] += 1;
        state[1] = (int)(steps + 1);
        state[2] = finite ? index : 0;
        mailbox[steps % RING] = (u64)(steps + 1) << 32 | (finite ? (u32)index : 0xffffffffu);
    }
}
