// Kernels that show what a launch passed.
#include "common.cuh"
struct Three { int a; float b; u16 c; u16 d; };
KERNEL arguments(float *out, int i, float f, u64 wide, Three three) {
    out[0] = i; out[1] = f; out[2] = (float)wide; out[3] = three.a; out[4] = three.b; out[5] = three.d;
}
// A chain whose order shows, each link waiting for the one before.
KERNEL link(u32 *state, u32 add) {
    let_next_kernel_start();
    wait_for_previous_kernel();
    if (threadIdx.x == 0) state[blockIdx.x] = state[blockIdx.x] * 3 + add;
}
KERNEL shared_sum(u32 *out, u32 words) {
    extern __shared__ u32 memory[];
    for (u32 i = threadIdx.x; i < words; i += blockDim.x) memory[i] = i;
    __syncthreads();
    if (threadIdx.x != 0) return;
    u32 sum = 0;
    for (u32 i = 0; i < words; i++) sum += memory[i];
    *out = sum;
}
// One box of a bf16 matrix by TMA, out as it lies in shared memory (swizzled).
struct __align__(64) Map { u64 words[16]; };
KERNEL box(const __grid_constant__ Map map, int column, int row, u16 *out) {
    __shared__ __align__(1024) u16 tile[8 * 64];
    __shared__ __align__(8) u64 barrier;
    u32 at = (u32)__cvta_generic_to_shared(&barrier), to = (u32)__cvta_generic_to_shared(tile);
    if (threadIdx.x == 0) {
        asm volatile("mbarrier.init.shared.b64 [%0], 1;" :: "r"(at));
        asm volatile("fence.mbarrier_init.release.cluster;");
        asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], 1024;" :: "r"(at) : "memory");
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                     "[%0], [%1, {%2, %3}], [%4];" :: "r"(to), "l"(&map), "r"(column), "r"(row), "r"(at) : "memory");
        u32 done = 0;
        while (!done)
            asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], 0; selp.u32 %0, 1, 0, p; }"
                         : "=r"(done) : "r"(at) : "memory");
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 8 * 64; i += blockDim.x) out[i] = tile[i];
}
KERNEL nothing() { let_next_kernel_start(); wait_for_previous_kernel(); }
