// Lists that the macros of a compilation cut: FOR_KINDS(f) is f(i) for every kind of product of a
// step, FOR_CORES a BF16_CORE(K), INT4_CORE(K) and so on for every K that products stored so have.
// The preprocessor counts no further than what is written out here.
#pragma once

// f(i) for every kind of product.
#if KINDS > 0
#define KIND_0(f) f(0)
#else
#define KIND_0(f)
#endif
#if KINDS > 1
#define KIND_1(f) f(1)
#else
#define KIND_1(f)
#endif
#if KINDS > 2
#define KIND_2(f) f(2)
#else
#define KIND_2(f)
#endif
#if KINDS > 3
#define KIND_3(f) f(3)
#else
#define KIND_3(f)
#endif
#if KINDS > 4
#define KIND_4(f) f(4)
#else
#define KIND_4(f)
#endif
#if KINDS > 5
#define KIND_5(f) f(5)
#else
#define KIND_5(f)
#endif
#if KINDS > 6
#define KIND_6(f) f(6)
#else
#define KIND_6(f)
#endif
#if KINDS > 7
#define KIND_7(f) f(7)
#else
#define KIND_7(f)
#endif
#if KINDS > 8
#define KIND_8(f) f(8)
#else
#define KIND_8(f)
#endif
static_assert(MOST_KINDS == 9, "as many as are listed here");
#define FOR_KINDS(f)                                                                               \
    KIND_0(f) KIND_1(f) KIND_2(f) KIND_3(f) KIND_4(f) KIND_5(f) KIND_6(f) KIND_7(f) KIND_8(f)
// BF16_CORE(K), INT4_CORE(K) and so on for every K that products stored so have.
#if BF16_CORES > 0
#define BF16_CORE_0 BF16_CORE(BF16_CORE0_K)
#else
#define BF16_CORE_0
#endif
#if BF16_CORES > 1
#define BF16_CORE_1 BF16_CORE(BF16_CORE1_K)
#else
#define BF16_CORE_1
#endif
#if BF16_CORES > 2
#define BF16_CORE_2 BF16_CORE(BF16_CORE2_K)
#else
#define BF16_CORE_2
#endif
#if INT4_CORES > 0
#define INT4_CORE_0 INT4_CORE(INT4_CORE0_K)
#else
#define INT4_CORE_0
#endif
#if INT4_CORES > 1
#define INT4_CORE_1 INT4_CORE(INT4_CORE1_K)
#else
#define INT4_CORE_1
#endif
#if INT4_CORES > 2
#define INT4_CORE_2 INT4_CORE(INT4_CORE2_K)
#else
#define INT4_CORE_2
#endif
#if NF4_CORES > 0
#define NF4_CORE_0 NF4_CORE(NF4_CORE0_K)
#else
#define NF4_CORE_0
#endif
#if NF4_CORES > 1
#define NF4_CORE_1 NF4_CORE(NF4_CORE1_K)
#else
#define NF4_CORE_1
#endif
#if NF4_CORES > 2
#define NF4_CORE_2 NF4_CORE(NF4_CORE2_K)
#else
#define NF4_CORE_2
#endif
#if FP8_CORES > 0
#define FP8_CORE_0 FP8_CORE(FP8_CORE0_K)
#else
#define FP8_CORE_0
#endif
#if FP8_CORES > 1
#define FP8_CORE_1 FP8_CORE(FP8_CORE1_K)
#else
#define FP8_CORE_1
#endif
#if FP8_CORES > 2
#define FP8_CORE_2 FP8_CORE(FP8_CORE2_K)
#else
#define FP8_CORE_2
#endif
#if LUT4_CORES > 0
#define LUT4_CORE_0 LUT4_CORE(LUT4_CORE0_K)
#else
#define LUT4_CORE_0
#endif
#if LUT4_CORES > 1
#define LUT4_CORE_1 LUT4_CORE(LUT4_CORE1_K)
#else
#define LUT4_CORE_1
#endif
#if LUT4_CORES > 2
#define LUT4_CORE_2 LUT4_CORE(LUT4_CORE2_K)
#else
#define LUT4_CORE_2
#endif
static_assert(BF16_CORES <= 3 && INT4_CORES <= 3 && NF4_CORES <= 3 && FP8_CORES <= 3 &&
                  LUT4_CORES <= 3,
              "no more are listed here");
#define FOR_CORES \
    BF16_CORE_0 BF16_CORE_1 BF16_CORE_2 \
    INT4_CORE_0 INT4_CORE_1 INT4_CORE_2 \
    NF4_CORE_0 NF4_CORE_1 NF4_CORE_2 \
    FP8_CORE_0 FP8_CORE_1 FP8_CORE_2 \
    LUT4_CORE_0 LUT4_CORE_1 LUT4_CORE_2
