// What memory alone allows: `smq-run kernels` holds every other kernel against these two.
//
// read_bytes: reads `words` 16-byte words and keeps nothing. The store that never happens, unless
//   the words' xor is one value of 2^32, keeps the loads.
// copy_bytes: to[i] = from[i], i < words.
//
// grid: ceil(words / (THREADS LOADS)), block: THREADS. A thread has LOADS words in flight, and a
// warp's loads cover 512 contiguous bytes. Like the decode products, both load before they wait for
// the kernel ahead of them, since what they read depends on nothing.
//
// Macros: LOADS, THREADS.

#include "common.cuh"

// As load_once, of what nobody writes.
DEVICE uint4 load_constant(const void *p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}

DEVICE void load_words(uint4 v[LOADS], const uint4 *from, u32 first, u32 words) {
#pragma unroll
    for (int j = 0; j < LOADS; j++) {
        u32 i = first + j * THREADS;
        v[j] = i < words ? load_constant(from + i) : make_uint4(0, 0, 0, 0);
    }
}

KERNEL __launch_bounds__(THREADS) read_bytes(const uint4 *from, u32 words, u32 *sink) {
    let_next_kernel_start();
    uint4 v[LOADS];
    load_words(v, from, blockIdx.x * (THREADS * LOADS) + threadIdx.x, words);
    u32 all = 0;
#pragma unroll
    for (int j = 0; j < LOADS; j++) all ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
    wait_for_previous_kernel();
    if (all == 0x12345678) *sink = all;
}

KERNEL __launch_bounds__(THREADS) copy_bytes(const uint4 *from, uint4 *to, u32 words) {
    let_next_kernel_start();
    uint4 v[LOADS];
    const u32 first = blockIdx.x * (THREADS * LOADS) + threadIdx.x;
    load_words(v, from, first, words);
    wait_for_previous_kernel();
#pragma unroll
    for (int j = 0; j < LOADS; j++) {
        u32 i = first + j * THREADS;
        if (i < words) to[i] = v[j];
    }
}
