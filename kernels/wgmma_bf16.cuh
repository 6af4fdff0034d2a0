// The product of bf16 weights with TILE_M tokens, both in shared memory (PTX ISA, wgmma; sm_90a).
// Macros: TILE_M (16, 32, 64, 128).
#pragma once
#include "wgmma.cuh"

#define ACCUMULATORS (TILE_M / 2)

#define WGMMA(n, list, inputs, predicate, ...)                                                     \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " predicate ", 0;\n"                            \
                 "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" list "}, " inputs    \
                 ", p, 1, 1, 0, 0;\n}\n"                                                           \
                 : __VA_ARGS__                                                                     \
                 : "l"(a), "l"(b), "r"(accumulate))
// c[64, TILE_M] (+)= a[64, 16] b[TILE_M, 16]^T. Asynchronous: c is in use until the wait.
DEVICE void wgmma(float (&c)[ACCUMULATORS], u64 a, u64 b, u32 accumulate) {
#if TILE_M == 16
    WGMMA(16, L8, "%8, %9", "%10", C8(0));
#elif TILE_M == 32
    WGMMA(32, L16, "%16, %17", "%18", C16(0));
#elif TILE_M == 64
    WGMMA(64, L32, "%32, %33", "%34", C16(0), C16(16));
#elif TILE_M == 128
    WGMMA(128, L64, "%64, %65", "%66", C16(0), C16(16), C16(32), C16(48));
#else
#error "TILE_M is 16, 32, 64 or 128"
#endif
}
