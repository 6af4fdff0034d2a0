// What every kernel file shares. Self-contained: NVRTC needs no CUDA header for it.
//
// Kernels are compiled for one model at a time: shapes are macros (-DHIDDEN=3072 ...), so loops
// have constant bounds and division by a constant is a multiplication. Macros also carry every
// number that smq-engine knows too, or a static_assert holds it against one, so that neither can
// change alone.
//
// Macros of every file (smq-engine/src/cuda/contract.rs): SCALES_MINI, SCALES_F16, SCALES_F32,
// TAG_MASK; of those that join gate and up, GATE_GELU_TANH where that is the gate's function.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define DEVICE static __device__ __forceinline__
#define INSIDE __device__ __forceinline__ // of a member
#define KERNEL extern "C" __global__ void

// ---- programmatic dependent launch (PTX ISA, griddepcontrol; needs sm_90) ----

// Everything that the kernel before this one in the stream wrote is visible afterwards. Before it,
// a kernel may touch only what no kernel of the step writes, which is weights and the cache's rows
// of earlier steps.
DEVICE void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next kernel start as soon as every block of this one got here.
DEVICE void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// ---- bf16 (held as u16, pairs as u32 with the lower index in the low half) ----

DEVICE float bf16_low(u32 pair) { return __uint_as_float(pair << 16); }
DEVICE float bf16_high(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }
DEVICE float bf16_to_f32(u16 v) { return __uint_as_float((u32)v << 16); }

// Round to nearest even.
DEVICE u32 bf16_pair(float low, float high) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
DEVICE u16 bf16_of(float v) { return (u16)bf16_pair(v, 0.0f); }

DEVICE float f16_to_f32(u16 v) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v));
    return f;
}

// Eight bf16 in a register quad.
DEVICE void unpack(uint4 raw, float v[8]) {
    v[0] = bf16_low(raw.x), v[1] = bf16_high(raw.x);
    v[2] = bf16_low(raw.y), v[3] = bf16_high(raw.y);
    v[4] = bf16_low(raw.z), v[5] = bf16_high(raw.z);
    v[6] = bf16_low(raw.w), v[7] = bf16_high(raw.w);
}

DEVICE float exp2_fast(float x) { // 2 ulp
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// ---- attention ----

constexpr float MASKED = -3e38f; // a score that weighs nothing, below LOWEST
// Start of a running maximum: finite, so that no difference is inf - inf.
constexpr float LOWEST = -1e30f;

// What becomes of queries, keys and values before they are rotated: nothing, where a family does
// not ask for it.
#ifndef QKV_BIAS
#define QKV_BIAS 0
#endif
#ifndef QK_NORM
#define QK_NORM 0
#endif

// ---- loads and stores ----

// 16 bytes that are read once: past L1. Not with .nc, which says that nobody writes them while the
// kernel runs: the kernel ahead of it may, and ptxas has moved such loads ahead of
// wait_for_previous_kernel. Nor is a pointer to what that one writes __restrict__ and const.
DEVICE uint4 load_once(const void *p) {
    uint4 v;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p)
                 : "memory");
    return v;
}

// ---- values that carry a tag ----
//
// Blocks of one kernel hand f32 values over without a barrier: the two lowest mantissa bits say
// which use of the buffer a value belongs to, so whoever needs it reads until they fit. 22 bits of
// mantissa are left, more than what the products keep of an activation. NaN and infinity stay not
// finite.

static_assert(TAG_MASK == 3, "the two lowest bits");
DEVICE void store_tagged(float *p, float v, u32 tag) {
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(p),
                 "r"((__float_as_uint(v) & ~3u) | tag)
                 : "memory");
}
DEVICE u32 load_relaxed(const void *p) {
    u32 v;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}
DEVICE void store_relaxed_16(void *p, uint4 v) {
    asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x),
                 "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
}
DEVICE uint4 load_relaxed_16(const void *p) {
    uint4 v;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p)
                 : "memory");
    return v;
}

DEVICE float untagged(u32 v) { return __uint_as_float(v & ~3u); }

// What a reader waits for: bits `tag` under `mask` (0: values without tags, of a kernel before).
struct Tag {
    u32 tag, mask;
    INSIDE bool on(u32 v) const { return ((v ^ tag) & mask) == 0; }
    INSIDE bool on(uint4 v) const {
        return (((v.x ^ tag) | (v.y ^ tag) | (v.z ^ tag) | (v.w ^ tag)) & mask) == 0;
    }
    // Loads it again until it is there; without the tag, so that results do not depend on it.
    INSIDE float wait(u32 v, const float *p) const {
        while (!on(v)) v = load_relaxed(p);
        return untagged(v);
    }
};

// ---- tensor cores ----

// c[16, 8] += a[16, 16] b[16, 8], bf16 in, f32 out (PTX ISA, "Matrix Fragments for mma.m16n8k16").
// Lane = 4 r + t: a holds rows r (a0, a2) and r + 8 (a1, a3), columns 2t, 2t + 1 (a0, a1) and
// 2t + 8, 2t + 9 (a2, a3); b holds column r, rows 2t, 2t + 1 (b0) and 2t + 8, 2t + 9 (b1);
// c holds rows r (c0, c1) and r + 8 (c2, c3), columns 2t and 2t + 1.
DEVICE void mma_bf16(float c[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
                 "{%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// The same of f16.
DEVICE void mma_f16(float c[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// ---- int4 ----

// Nibbles i and i + 4 of a word of eight (element 0 in the lowest bits) as a pair of bf16, exact:
// 0x4300 | n is 128 + n, and n ^ 8 is q + 8 for a two's complement q, so subtracting 136 leaves q.
DEVICE u32 int4_pair(u32 word, int i) {
    u32 pair;
    // (word >> 4 i & 0x000f000f) ^ 0x43084308
    asm("lop3.b32 %0, %1, 0x000f000f, 0x43084308, 0x6a;" : "=r"(pair) : "r"(word >> (4 * i)));
    asm("fma.rn.bf16x2 %0, %1, %2, %3;"
        : "=r"(pair)
        : "r"(pair), "r"(0x3f803f80u), "r"(0xc308c308u));
    return pair;
}

// ---- scales: formats of smq-format's ScaleFormat ----
//
// SCALES_MINI is a stream of sign | exponent | mantissa codes, LSB first.

// The words in which code `i` of an LSB-first stream of `width`-bit codes lies, counted from bit
// `first_bit` of `words`. Both that a code may touch are read, which is safe because a stream ends
// in 8 zero bytes.
DEVICE uint2 load_code_words(const u32 *words, u64 first_bit, u32 i, int width) {
    words += first_bit + (u64)i * (u32)width >> 5;
    return make_uint2(words[0], words[1]);
}
// The code in them.
DEVICE u32 code_in(uint2 words, u64 first_bit, u32 i, int width) {
    u32 bit = (u32)first_bit + i * (u32)width;
    return __funnelshift_r(words.x, words.y, bit & 31) & (0xffffffffu >> (32 - width));
}
DEVICE u32 load_code(const u32 *words, u64 first_bit, u32 i, int width) {
    return code_in(load_code_words(words, first_bit, i, width), first_bit, i, width);
}

// The value of a valid code; codes are checked when a model is loaded. Of MINI, `mantissa` is its
// bits of mantissa, and `bias` is the whole tensor's.
DEVICE float decode_scale(u32 code, int format, int width, int mantissa, int bias) {
    if (format == SCALES_F32) return __uint_as_float(code);
    if (format == SCALES_F16) return f16_to_f32((u16)code);
    u32 sign = code >> (width - 1) << 31;
    u32 magnitude = code & ((1u << (width - 1)) - 1);
    u32 bits = (magnitude << (23 - mantissa)) + ((u32)(127 - bias) << 23);
    return magnitude == 0 ? 0.0f : __uint_as_float(sign | bits);
}

// Scale i of a tensor.
DEVICE float load_scale(const void *scales, u32 i, int format, int width, int mantissa, int bias) {
    return decode_scale(load_code((const u32 *)scales, 0, i, width), format, width, mantissa, bias);
}

// ---- activations of many rows ----

// Position of column k in a row in int4 order, the order in which the multi-row int4 products read
// activations: within each 128 columns, k = 32 t + 8 j + 4 half + i lies at
// 16 s + 8 (i & 1) + 2 t + half, s = 2 j + i / 2 (README.md).
DEVICE u32 int4_order(u32 k) {
    u32 kk = k % 128, t = kk / 32, j = kk % 32 / 8, i = kk % 4, half = kk % 8 / 4;
    return k / 128 * 128 + 16 * (2 * j + i / 2) + 8 * (i & 1) + 2 * t + half;
}

// Eight values of a row, columns k .. k + 7, as bf16 where the order wants them.
DEVICE void store_eight(u16 *row, int k, const float v[8], bool in_int4_order) {
    if (in_int4_order) {
        // Pairs (i, i + 4) are neighbours; i even and odd lie 8 apart, words of i / 2 lie 16 apart.
#pragma unroll
        for (int i = 0; i < 4; i++) *(u32 *)(row + int4_order(k + i)) = bf16_pair(v[i], v[i + 4]);
    } else {
        uint4 out = {bf16_pair(v[0], v[1]), bf16_pair(v[2], v[3]), bf16_pair(v[4], v[5]),
                     bf16_pair(v[6], v[7])};
        *(uint4 *)(row + k) = out;
    }
}

// ---- a gate's function ----

#ifdef GATE_GELU_TANH
// x / 2 (1 + tanh(u)) is x / (1 + exp(-2 u)), with u = sqrt(2 / pi) (x + 0.044715 x^3).
DEVICE float gate_exponent(float x) { return 1.5957691216057308f * (x + 0.044715f * x * x * x); }
#else
DEVICE float gate_exponent(float x) { return x; } // SiLU
#endif

// ---- sums over a block ----

DEVICE float warp_sum(float v) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(0xffffffffu, v, d);
    return v;
}

// Of a block of 1024 threads: the sum over all in sums[0], zeros in sums[1 .. parts].
DEVICE void store_block_sum(float v, float *sums, int parts) {
    __shared__ float warps[32];
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = v;
    __syncthreads();
    if (threadIdx.x < 32) {
        v = warp_sum(warps[threadIdx.x]);
        for (int p = threadIdx.x; p < parts; p += 32) sums[p] = p == 0 ? v : 0.0f;
    }
}

// ---- bulk copies into shared memory, and the barriers they complete on (PTX ISA; sm_90) ----

DEVICE u32 shared_address(const void *p) { return (u32)__cvta_generic_to_shared(p); }

DEVICE void barrier_init(u64 *barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
                 "r"(arrivals)
                 : "memory");
}

// After initialising barriers, before the copy engine uses them.
DEVICE void fence_barrier_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

DEVICE void barrier_arrive(u64 *barrier, u32 arrivals = 1) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
                 "r"(arrivals)
                 : "memory");
}

#ifndef SANITIZE
#define SANITIZE 0 // 1: for compute-sanitizer, see README.md
#endif

// Arrives for the whole warp, whose lanes are done with what the barrier guards. The racecheck of
// compute-sanitizer does not follow a lane's reads to another lane's arrival behind __syncwarp
// (README.md), so for it every lane arrives.
#if SANITIZE
#define A_WARP 32 // arrivals that a barrier expects of it
DEVICE void barrier_arrive_warp(u64 *barrier, u32 arrivals = 1) {
    for (u32 i = 0; i < arrivals; i++) barrier_arrive(barrier);
}
#else
#define A_WARP 1
DEVICE void barrier_arrive_warp(u64 *barrier, u32 arrivals = 1) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(barrier, arrivals);
}
#endif

// Arrives and announces the bytes that copies will bring.
DEVICE void barrier_expect(u64 *barrier, u32 bytes) {
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
        "r"(bytes)
        : "memory");
}

// Before bulk copies that read what other kernels stored.
DEVICE void fence_proxy_async() { asm volatile("fence.proxy.async.global;" ::: "memory"); }

DEVICE void barrier_wait(u64 *barrier, u32 parity) {
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again;\n"
                 "}\n" ::"r"(shared_address(barrier)),
                 "r"(parity)
                 : "memory");
}

// `bytes` is a multiple of 16, both addresses are 16-byte aligned.
DEVICE void bulk_copy(void *to_shared, const void *from, u32 bytes, u64 *barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
            "r"(shared_address(to_shared)),
        "l"(from), "r"(bytes), "r"(shared_address(barrier))
        : "memory");
}

// A matrix as the copy engine sees it (PTX ISA, cp.async.bulk.tensor).
struct __align__(64) tensor_map { u64 words[16]; };

// Box at (column, row) of a matrix to shared memory.
DEVICE void load_box(const tensor_map *map, u32 destination, u64 *barrier, int column, int row) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
        "[%1, {%2, %3}], [%4];" ::"r"(destination),
        "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier))
        : "memory");
}

// Waits for the first `threads` threads of the block (whole warps) at barrier `id` (0 to 15).
DEVICE void sync_threads(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
