//! Vector registers behind one trait, so that each kernel is written once.
//!
//! Three implementations: AVX-512, AVX2 with FMA and F16C, and plain arrays for every other
//! machine. The kernels are generic over [`Lanes`] and instantiated inside functions that
//! enable the instruction set, which the compiler then inlines these methods into.

use smq_format::fp8;

/// A register of f32 lanes and the loads that fill it.
///
/// # Safety
/// Every method may only run on a CPU with the instruction set of its implementation; the
/// pointers must be readable for the bytes each method states.
pub(crate) trait Lanes {
    /// f32 values in a register.
    const COUNT: usize;
    /// The register.
    type V: Copy;
    /// `COUNT` lanes of 32 bits, each eight nibbles.
    type Nibbles: Copy;

    /// `x` in every lane.
    unsafe fn splat(x: f32) -> Self::V;
    /// `COUNT` f32, any alignment.
    unsafe fn load(p: *const f32) -> Self::V;
    /// Writes `COUNT` f32, any alignment.
    unsafe fn store(p: *mut f32, v: Self::V);
    /// `COUNT` little-endian f32 in bytes.
    unsafe fn load_f32(p: *const u8) -> Self::V {
        // SAFETY: the caller vouches for 4 * COUNT bytes; `load` takes any alignment.
        unsafe { Self::load(p.cast()) }
    }
    /// `COUNT` bf16, 2 bytes each, as f32.
    unsafe fn load_bf16(p: *const u8) -> Self::V;
    /// `COUNT` f16, 2 bytes each, as f32.
    unsafe fn load_f16(p: *const u8) -> Self::V;
    /// `COUNT` E4M3 codes, none of them NaN, as f32.
    unsafe fn load_e4m3(p: *const u8) -> Self::V;
    /// `4 * COUNT` bytes of nibbles, eight a lane.
    unsafe fn load_nibbles(p: *const u8) -> Self::Nibbles;
    /// Nibble `k` (0 the lowest, 0..8) of every lane, in two's complement, as f32.
    unsafe fn nibble(q: Self::Nibbles, k: u32) -> Self::V;
    /// What `levels` has for nibble `k` (0 the lowest, 0..8) of every lane.
    unsafe fn level(q: Self::Nibbles, k: u32, levels: &[f32; 16]) -> Self::V;
    /// Asks for the cache line at `p`, which may be any address.
    #[inline(always)]
    unsafe fn prefetch(_p: *const u8) {}
    /// `a * b + c`.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The sum of all lanes.
    unsafe fn sum(v: Self::V) -> f32;
}

/// Eight lanes in an array: the fallback, which compilers vectorise as they can.
pub(crate) struct Portable;

impl Lanes for Portable {
    const COUNT: usize = 8;
    type V = [f32; 8];
    type Nibbles = [u32; 8];

    #[inline(always)]
    unsafe fn splat(x: f32) -> [f32; 8] {
        [x; 8]
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> [f32; 8] {
        // SAFETY: the caller vouches for 8 f32.
        unsafe { p.cast::<[f32; 8]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, v: [f32; 8]) {
        // SAFETY: the caller vouches for 8 writable f32.
        unsafe { p.cast::<[f32; 8]>().write_unaligned(v) }
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> [f32; 8] {
        // SAFETY: the caller vouches for 16 bytes.
        let raw = unsafe { p.cast::<[u16; 8]>().read_unaligned() };
        raw.map(|b| f32::from_bits(u32::from(u16::from_le(b)) << 16))
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> [f32; 8] {
        // SAFETY: the caller vouches for 16 bytes.
        let raw = unsafe { p.cast::<[u16; 8]>().read_unaligned() };
        raw.map(|b| half::f16::from_bits(u16::from_le(b)).to_f32())
    }

    #[inline(always)]
    unsafe fn load_e4m3(p: *const u8) -> [f32; 8] {
        // SAFETY: the caller vouches for 8 bytes.
        let raw = unsafe { p.cast::<[u8; 8]>().read() };
        raw.map(|code| fp8::VALUES[usize::from(code)])
    }

    #[inline(always)]
    unsafe fn load_nibbles(p: *const u8) -> [u32; 8] {
        // SAFETY: the caller vouches for 32 bytes.
        let raw = unsafe { p.cast::<[u32; 8]>().read_unaligned() };
        raw.map(u32::from_le)
    }

    #[inline(always)]
    unsafe fn nibble(q: [u32; 8], k: u32) -> [f32; 8] {
        q.map(|q| (((q << (28 - 4 * k)) as i32) >> 28) as f32)
    }

    #[inline(always)]
    unsafe fn level(q: [u32; 8], k: u32, levels: &[f32; 16]) -> [f32; 8] {
        q.map(|q| levels[(q >> (4 * k) & 15) as usize])
    }

    #[inline(always)]
    unsafe fn fma(a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    unsafe fn sum(v: [f32; 8]) -> f32 {
        ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]))
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Lanes;

    /// Eight lanes: AVX2, FMA, F16C.
    pub(crate) struct Avx2;

    impl Lanes for Avx2 {
        const COUNT: usize = 8;
        type V = __m256;
        type Nibbles = __m256i;

        #[inline(always)]
        unsafe fn splat(x: f32) -> __m256 {
            // SAFETY: AVX is there (trait contract).
            unsafe { _mm256_set1_ps(x) }
        }

        #[inline(always)]
        unsafe fn load(p: *const f32) -> __m256 {
            // SAFETY: 32 readable bytes (trait contract).
            unsafe { _mm256_loadu_ps(p) }
        }

        #[inline(always)]
        unsafe fn store(p: *mut f32, v: __m256) {
            // SAFETY: 32 writable bytes (trait contract).
            unsafe { _mm256_storeu_ps(p, v) }
        }

        #[inline(always)]
        unsafe fn load_bf16(p: *const u8) -> __m256 {
            // SAFETY: 16 readable bytes (trait contract); a bf16 is the top half of an f32.
            unsafe {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))
            }
        }

        #[inline(always)]
        unsafe fn load_f16(p: *const u8) -> __m256 {
            // SAFETY: 16 readable bytes (trait contract).
            unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
        }

        #[inline(always)]
        unsafe fn load_e4m3(p: *const u8) -> __m256 {
            // SAFETY: 8 readable bytes (trait contract). Shifted into an f16's exponent and
            // mantissa a code means 2^-8 of its value, subnormal codes too, since the formats'
            // biases differ by 8.
            unsafe {
                let wide = _mm_cvtepu8_epi16(_mm_loadl_epi64(p.cast()));
                let magnitude = _mm_slli_epi16(_mm_and_si128(wide, _mm_set1_epi16(0x7f)), 7);
                let sign = _mm_slli_epi16(_mm_and_si128(wide, _mm_set1_epi16(0x80)), 8);
                let scaled = _mm256_cvtph_ps(_mm_or_si128(magnitude, sign));
                _mm256_mul_ps(scaled, _mm256_set1_ps(256.0))
            }
        }

        #[inline(always)]
        unsafe fn load_nibbles(p: *const u8) -> __m256i {
            // SAFETY: 32 readable bytes (trait contract).
            unsafe { _mm256_loadu_si256(p.cast()) }
        }

        #[inline(always)]
        unsafe fn nibble(q: __m256i, k: u32) -> __m256 {
            // SAFETY: AVX2 is there (trait contract). The nibble goes to the top, and comes back
            // with its sign. `k` is constant once inlined, so both shifts are immediate.
            unsafe {
                let top = _mm256_sll_epi32(q, _mm_cvtsi32_si128(28 - 4 * k as i32));
                _mm256_cvtepi32_ps(_mm256_srai_epi32(top, 28))
            }
        }

        #[inline(always)]
        unsafe fn level(q: __m256i, k: u32, levels: &[f32; 16]) -> __m256 {
            // SAFETY: AVX2 is there (trait contract). Each permutation looks at three bits of an
            // index, so the two are the halves of the table, and the fourth bit, shifted to the
            // top, chooses between them.
            unsafe {
                let index = _mm256_srl_epi32(q, _mm_cvtsi32_si128(4 * k as i32));
                let low = _mm256_loadu_ps(levels.as_ptr());
                let high = _mm256_loadu_ps(levels.as_ptr().add(8));
                let low = _mm256_permutevar8x32_ps(low, index);
                let high = _mm256_permutevar8x32_ps(high, index);
                let upper = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28));
                _mm256_blendv_ps(low, high, upper)
            }
        }

        #[inline(always)]
        unsafe fn prefetch(p: *const u8) {
            // SAFETY: a prefetch never faults.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
        }

        #[inline(always)]
        unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
            // SAFETY: FMA is there (trait contract).
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }

        #[inline(always)]
        unsafe fn sum(v: __m256) -> f32 {
            // SAFETY: AVX is there (trait contract).
            unsafe {
                let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
                let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)))
            }
        }
    }

    /// Sixteen lanes: AVX-512 F.
    pub(crate) struct Avx512;

    impl Lanes for Avx512 {
        const COUNT: usize = 16;
        type V = __m512;
        type Nibbles = __m512i;

        #[inline(always)]
        unsafe fn splat(x: f32) -> __m512 {
            // SAFETY: AVX-512F is there (trait contract).
            unsafe { _mm512_set1_ps(x) }
        }

        #[inline(always)]
        unsafe fn load(p: *const f32) -> __m512 {
            // SAFETY: 64 readable bytes (trait contract).
            unsafe { _mm512_loadu_ps(p) }
        }

        #[inline(always)]
        unsafe fn store(p: *mut f32, v: __m512) {
            // SAFETY: 64 writable bytes (trait contract).
            unsafe { _mm512_storeu_ps(p, v) }
        }

        #[inline(always)]
        unsafe fn load_bf16(p: *const u8) -> __m512 {
            // SAFETY: 32 readable bytes (trait contract); a bf16 is the top half of an f32.
            unsafe {
                let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))
            }
        }

        #[inline(always)]
        unsafe fn load_f16(p: *const u8) -> __m512 {
            // SAFETY: 32 readable bytes (trait contract).
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
        }

        #[inline(always)]
        unsafe fn load_e4m3(p: *const u8) -> __m512 {
            // SAFETY: 16 readable bytes (trait contract); as `Avx2::load_e4m3`.
            unsafe {
                let wide = _mm256_cvtepu8_epi16(_mm_loadu_si128(p.cast()));
                let magnitude = _mm256_and_si256(wide, _mm256_set1_epi16(0x7f));
                let sign = _mm256_and_si256(wide, _mm256_set1_epi16(0x80));
                let half =
                    _mm256_or_si256(_mm256_slli_epi16(magnitude, 7), _mm256_slli_epi16(sign, 8));
                _mm512_mul_ps(_mm512_cvtph_ps(half), _mm512_set1_ps(256.0))
            }
        }

        #[inline(always)]
        unsafe fn load_nibbles(p: *const u8) -> __m512i {
            // SAFETY: 64 readable bytes (trait contract).
            unsafe { _mm512_loadu_si512(p.cast()) }
        }

        #[inline(always)]
        unsafe fn nibble(q: __m512i, k: u32) -> __m512 {
            // SAFETY: AVX-512F is there (trait contract). The permutation looks only at the four
            // low bits of each index, so it is a 16-entry table of the nibbles' values. `k` is
            // constant once inlined, so the shift is immediate.
            unsafe {
                let table = _mm512_setr_ps(
                    0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, -8.0, -7.0, -6.0, -5.0, -4.0, -3.0,
                    -2.0, -1.0,
                );
                let index = _mm512_srl_epi32(q, _mm_cvtsi32_si128(4 * k as i32));
                _mm512_permutexvar_ps(index, table)
            }
        }

        #[inline(always)]
        unsafe fn level(q: __m512i, k: u32, levels: &[f32; 16]) -> __m512 {
            // SAFETY: AVX-512F is there (trait contract); as `nibble`, with another table.
            unsafe {
                let table = _mm512_loadu_ps(levels.as_ptr());
                let index = _mm512_srl_epi32(q, _mm_cvtsi32_si128(4 * k as i32));
                _mm512_permutexvar_ps(index, table)
            }
        }

        #[inline(always)]
        unsafe fn prefetch(p: *const u8) {
            // SAFETY: a prefetch never faults.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
        }

        #[inline(always)]
        unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
            // SAFETY: AVX-512F is there (trait contract).
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }

        #[inline(always)]
        unsafe fn sum(v: __m512) -> f32 {
            // SAFETY: AVX-512F is there (trait contract).
            unsafe { _mm512_reduce_add_ps(v) }
        }
    }
}

/// The instruction sets kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isa {
    /// Arrays.
    Portable,
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512F.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    /// Every set this CPU has, the fastest last.
    pub(crate) fn available() -> Vec<Self> {
        let mut found = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                found.push(Self::Avx2);
                if is_x86_feature_detected!("avx512f") {
                    found.push(Self::Avx512);
                }
            }
        }
        found
    }

    /// The fastest set of this CPU, found once.
    pub(crate) fn best() -> Self {
        static BEST: std::sync::OnceLock<Isa> = std::sync::OnceLock::new();
        *BEST.get_or_init(|| Self::available().pop().unwrap_or(Self::Portable))
    }

    /// f32 values in a register.
    pub(crate) fn lanes(self) -> usize {
        match self {
            Self::Portable => Portable::COUNT,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => Avx2::COUNT,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => Avx512::COUNT,
        }
    }
}

/// Defines `fn $name(isa, args...)` that runs the generic `$kernel::<L>` for `isa`.
macro_rules! dispatch {
    ($(#[$doc:meta])* $vis:vis fn $name:ident => $kernel:ident ( $($arg:ident : $ty:ty),* $(,)? )) => {
        $(#[$doc])*
        $vis fn $name(isa: $crate::linear::lanes::Isa, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2($($arg: $ty),*) {
                // SAFETY: this function runs only where AVX2, FMA and F16C are.
                unsafe { $kernel::<$crate::linear::lanes::Avx2>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx2,fma,f16c")]
            fn avx512($($arg: $ty),*) {
                // SAFETY: this function runs only where AVX-512F is.
                unsafe { $kernel::<$crate::linear::lanes::Avx512>($($arg),*) }
            }
            match isa {
                // SAFETY: plain Rust needs no instruction set.
                $crate::linear::lanes::Isa::Portable => unsafe {
                    $kernel::<$crate::linear::lanes::Portable>($($arg),*)
                },
                // SAFETY: an `Isa` other than Portable exists only where the CPU reported it.
                #[cfg(target_arch = "x86_64")]
                $crate::linear::lanes::Isa::Avx2 => unsafe { avx2($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::linear::lanes::Isa::Avx512 => unsafe { avx512($($arg),*) },
            }
        }
    };
}
pub(crate) use dispatch;
