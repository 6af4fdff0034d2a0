// FOR_KINDS(f) is f(i) for every kind of product of a step. The preprocessor counts no further than
// what is written out here.
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
