// What products on Hopper's tensor cores share (PTX ISA, wgmma; sm_90a): descriptors of boxes of a
// matrix in shared memory, and lists of accumulator registers for the instructions' text.
#pragma once
#include "common.cuh"

// The thread's warpgroup of its block, in a way that tells the compiler that a warp's lanes have
// the same: descriptors that depend on it are then made by the uniform datapath. From threadIdx
// alone each would be made by every lane and moved over, word by word.
DEVICE int warpgroup_of_thread() { return __shfl_sync(0xffffffffu, threadIdx.x / 128, 0); }

DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING> DEVICE void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
// For the products that write `accumulators`, to read these then. The compiler may move arithmetic
// on registers across the wait itself, but not across their mention after it.
template <int PENDING, int N> DEVICE void wgmma_wait(float (&accumulators)[N]) {
    wgmma_wait<PENDING>();
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(accumulators[i])::"memory");
}

// Of rows of 64 bf16 with the 128-byte swizzle: it is 1024 bytes from eight rows to the next, and
// 32 bytes from a k-step of 16 to the next.
DEVICE u64 matrix_descriptor(u32 address) {
    return (u64)((address & 0x3ffff) >> 4) | (u64)1 << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}

// Accumulators c[o] on as operands, and the first operands' names.
#define C4(o) "+f"(c[o]), "+f"(c[o + 1]), "+f"(c[o + 2]), "+f"(c[o + 3])
#define C8(o) C4(o), C4(o + 4)
#define C16(o) C8(o), C8(o + 8)
#define L8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define L16 L8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define L32 L16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define L48 L32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define L52 L48 ", %48, %49, %50, %51"
#define L64 L48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// ---- clusters (PTX ISA, barrier.cluster) ----

// The same shared memory address in block `rank` of the cluster.
DEVICE u32 address_in(u32 address, u32 rank) {
    u32 mapped;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(rank));
    return mapped;
}

DEVICE u32 cluster_rank() {
    u32 rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

DEVICE void cluster_arrive() {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
// The same where no data changes hands: release would wait for every load and store in flight.
DEVICE void cluster_arrive_relaxed() {
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
DEVICE void cluster_wait() {
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

DEVICE float4 load_in_cluster(u32 p) {
    float4 v;
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(p) : "memory");
    return v;
}
