//! The inner loops over one group, compiled for several instruction sets from one source.
//!
//! Sums run over [`LANES`] independent lanes that are added up in a fixed tree at the end, and
//! nothing is contracted into fused multiply-adds, so every instruction set gives the same bits.
//! The plain-Rust instance is the twin of the wide ones.

use smq_format::int4::pack_row;
use smq_format::{Dtype, fp8, widen};

use super::grid::Book;
use super::sums::Sums;

/// Independent partial sums a group.
pub(crate) const LANES: usize = 16;
/// Adding and subtracting this rounds an f32 of magnitude below 2^22 to an integer, half to even.
pub(crate) const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23

/// Error figures of one group, in f32 as the published reference has them.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct GroupError {
    /// Sum of `(w - w')^2`.
    pub squared_error: f32,
    /// Sum of `w^2` over the group.
    pub squared_weight: f32,
    /// Sum of `w'^2` over the group, of what is stored.
    pub squared_stored: f32,
    /// Sum of `w w'`.
    pub product: f32,
    /// Weights whose rounded quotient was outside -8..=7; of a code book, whose quotient was more
    /// than half a step beyond its ends.
    pub clipped: u32,
}

impl GroupError {
    /// `mean((w - w')^2) / max(mean(w^2), 1e-12)`.
    #[inline(always)]
    pub(super) fn rel_mse(&self, elems: usize) -> f32 {
        let n = elems as f32;
        (self.squared_error / n) / (self.squared_weight / n).max(1e-12)
    }

    /// `sum(w w') / (max(|w|, 1e-12) max(|w'|, 1e-12))` with Euclidean norms.
    #[inline(always)]
    pub(super) fn cosine(&self) -> f32 {
        let norms = self.squared_weight.sqrt().max(1e-12) * self.squared_stored.sqrt().max(1e-12);
        self.product / norms
    }
}

/// The loops for the processor at hand. Only [`Kernel::available`] makes one, so that whoever has
/// one may run it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kernel(Isa);

/// An instruction set that the loops over weights are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isa {
    /// What the target guarantees.
    Portable,
    /// 8 lanes an instruction.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// 16 lanes an instruction.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// Defines a method of [`Kernel`] that runs `$body` compiled for each instruction set.
macro_rules! for_each_isa {
    ($(#[$doc:meta])* $name:ident, $body:ident, ($($arg:ident: $ty:ty),*) -> $ret:ty) => {
        $(#[$doc])*
        pub(crate) fn $name(&self, $($arg: $ty),*) -> $ret {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2")]
            fn avx2($($arg: $ty),*) -> $ret {
                $body($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
            fn avx512($($arg: $ty),*) -> $ret {
                $body($($arg),*)
            }
            match self.isa() {
                $crate::quantize::Isa::Portable => $body($($arg),*),
                // SAFETY: a kernel's instruction set is private to its module, where only
                // `available` gives it this one, after it has found that the processor has it.
                #[cfg(target_arch = "x86_64")]
                $crate::quantize::Isa::Avx2 => unsafe { avx2($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::quantize::Isa::Avx512 => unsafe { avx512($($arg),*) },
            }
        }
    };
}
pub(crate) use for_each_isa;

impl Kernel {
    /// The widest instance this processor runs.
    pub(crate) fn detect() -> Self {
        Self::available().pop().unwrap_or(Self(Isa::Portable))
    }

    /// What it is compiled for.
    pub(crate) fn isa(self) -> Isa {
        self.0
    }

    /// Every instance this processor runs, narrowest first.
    pub(crate) fn available() -> Vec<Self> {
        #[allow(unused_mut)]
        let mut kernels = vec![Self(Isa::Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") {
                kernels.push(Self(Isa::Avx2));
            }
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq")
            {
                kernels.push(Self(Isa::Avx512));
            }
        }
        kernels
    }

    for_each_isa! {
        /// `max|w|` of a group; `None` where an element is NaN or infinite.
        max_abs, max_abs, (w: &[f32]) -> Option<f32>
    }

    for_each_isa! {
        /// Codes `q = clamp(round_half_even(w / s), -8, 7)` into `q`, and their errors; all 0 where
        /// `s` is. `largest` is [`Kernel::max_abs`] of `w`.
        quantize, quantize, (w: &[f32], largest: f32, s: f32, q: &mut [i8]) -> GroupError
    }

    for_each_isa! {
        /// [`Kernel::quantize`] under `s`, and beside its errors those of [`Kernel::errors`] under
        /// `exact`, in one pass.
        quantize_beside, quantize_beside,
        (w: &[f32], largest: f32, s: f32, exact: f32, q: &mut [i8]) -> [GroupError; 2]
    }

    for_each_isa! {
        /// [`smq_format::widen`], compiled for each instruction set.
        widen, widen, (dtype: Dtype, bytes: &[u8], out: &mut [f32]) -> ()
    }

    for_each_isa! {
        /// [`smq_format::int4::pack_row`], compiled for each instruction set.
        pack_row, pack_row, (row: &[i8], out: &mut [u8]) -> ()
    }

    for_each_isa! {
        /// The errors that [`Kernel::quantize`] would have.
        errors, errors, (w: &[f32], largest: f32, s: f32) -> GroupError
    }

    for_each_isa! {
        /// Codes into `q`, each the number of the book's midpoints below `w / s`, and their errors;
        /// all that of 0 where `s` is.
        quantize_levels, quantize_levels, (w: &[f32], s: f32, book: &Book, q: &mut [i8]) -> GroupError
    }

    for_each_isa! {
        /// The errors that [`Kernel::quantize_levels`] would have.
        errors_levels, errors_levels, (w: &[f32], s: f32, book: &Book) -> GroupError
    }

    for_each_isa! {
        /// Errors of given weights `v` against `w`, in the same order of summation.
        compare, compare, (w: &[f32], v: &[f32]) -> GroupError
    }

    for_each_isa! {
        /// [`GroupError::rel_mse`] and [`GroupError::cosine`] of groups of `elems` elements, at
        /// most as many as either slice holds.
        figures, figures,
        (errors: &[GroupError], elems: usize, rel_mse: &mut [f32], cosine: &mut [f32]) -> ()
    }

    for_each_isa! {
        /// FP8 E4M3 codes of `w / scale` into `q`.
        fp8_codes, fp8_codes, (w: &[f32], scale: f32, q: &mut [u8]) -> ()
    }
}

#[inline(always)]
pub(super) fn max_abs(w: &[f32]) -> Option<f32> {
    // Magnitudes order as their bits do, and every NaN lies above infinity. A maximum of integers
    // is the same in any order, so the compiler makes lanes of this by itself; of lanes written
    // out it makes gathers.
    let max = w
        .iter()
        .fold(0, |max: u32, v| max.max(v.to_bits() & 0x7fff_ffff));
    (max < 0x7f80_0000).then(|| f32::from_bits(max))
}

/// Whether a quotient may round to something outside -8..=7, where magnitudes are up to `largest`.
/// Quotients and roundings order as magnitudes do, so that of the largest says it of all: under
/// scales of `largest / 7`, and a little less, none does, and a loop that need not ask is shorter
/// by a third. A scale of 0 counts among those that have to ask.
#[inline(always)]
fn clips(largest: f32, s: f32) -> bool {
    let inside = (largest / s.abs() + ROUND) - ROUND <= 7.0;
    !inside
}

#[inline(always)]
fn quantize(w: &[f32], largest: f32, s: f32, q: &mut [i8]) -> GroupError {
    match clips(largest, s) {
        true => quantize_as::<true>(w, s, q),
        false => quantize_as::<false>(w, s, q),
    }
}

#[inline(always)]
fn quantize_as<const CLIPS: bool>(w: &[f32], s: f32, q: &mut [i8]) -> GroupError {
    let mut sums = Sums::default();
    let (w_chunks, w_tail) = w.as_chunks::<LANES>();
    let (q_chunks, q_tail) = q.as_chunks_mut::<LANES>();
    for (w, q) in w_chunks.iter().zip(q_chunks) {
        *q = sums.add::<true, CLIPS>(w, s);
    }
    if !w_tail.is_empty() {
        let codes = sums.add::<true, CLIPS>(&padded(w_tail), s);
        q_tail.copy_from_slice(&codes[..q_tail.len()]);
    }
    sums.total()
}

#[inline(always)]
fn errors(w: &[f32], largest: f32, s: f32) -> GroupError {
    match clips(largest, s) {
        true => errors_as::<true>(w, s),
        false => errors_as::<false>(w, s),
    }
}

#[inline(always)]
fn errors_as<const CLIPS: bool>(w: &[f32], s: f32) -> GroupError {
    let mut sums = Sums::default();
    let (chunks, tail) = w.as_chunks::<LANES>();
    for w in chunks {
        sums.add::<true, CLIPS>(w, s);
    }
    if !tail.is_empty() {
        sums.add::<true, CLIPS>(&padded(tail), s);
    }
    sums.total()
}

#[inline(always)]
fn quantize_beside(w: &[f32], largest: f32, s: f32, exact: f32, q: &mut [i8]) -> [GroupError; 2] {
    match clips(largest, s) | clips(largest, exact) {
        true => quantize_beside_as::<true>(w, s, exact, q),
        false => quantize_beside_as::<false>(w, s, exact, q),
    }
}

#[inline(always)]
fn quantize_beside_as<const CLIPS: bool>(
    w: &[f32],
    s: f32,
    exact: f32,
    q: &mut [i8],
) -> [GroupError; 2] {
    let (mut sums, mut exact_sums) = (Sums::default(), Sums::default());
    let (w_chunks, w_tail) = w.as_chunks::<LANES>();
    let (q_chunks, q_tail) = q.as_chunks_mut::<LANES>();
    for (w, q) in w_chunks.iter().zip(q_chunks) {
        *q = sums.add::<true, CLIPS>(w, s);
        exact_sums.add::<false, CLIPS>(w, exact);
    }
    if !w_tail.is_empty() {
        let w = padded(w_tail);
        q_tail.copy_from_slice(&sums.add::<true, CLIPS>(&w, s)[..q_tail.len()]);
        exact_sums.add::<false, CLIPS>(&w, exact);
    }
    sums.total_beside(&exact_sums)
}

#[inline(always)]
fn quantize_levels(w: &[f32], s: f32, book: &Book, q: &mut [i8]) -> GroupError {
    let mut sums = Sums::default();
    let (w_chunks, w_tail) = w.as_chunks::<LANES>();
    let (q_chunks, q_tail) = q.as_chunks_mut::<LANES>();
    for (w, q) in w_chunks.iter().zip(q_chunks) {
        *q = sums.add_levels(w, LANES, s, book);
    }
    if !w_tail.is_empty() {
        let codes = sums.add_levels(&padded(w_tail), w_tail.len(), s, book);
        q_tail.copy_from_slice(&codes[..q_tail.len()]);
    }
    sums.total()
}

#[inline(always)]
fn errors_levels(w: &[f32], s: f32, book: &Book) -> GroupError {
    let mut sums = Sums::default();
    let (chunks, tail) = w.as_chunks::<LANES>();
    for w in chunks {
        sums.add_levels(w, LANES, s, book);
    }
    if !tail.is_empty() {
        sums.add_levels(&padded(tail), tail.len(), s, book);
    }
    sums.total()
}

#[inline(always)]
fn compare(w: &[f32], v: &[f32]) -> GroupError {
    let mut sums = Sums::default();
    let ((w_chunks, w_tail), (v_chunks, v_tail)) = (w.as_chunks::<LANES>(), v.as_chunks::<LANES>());
    for (w, v) in w_chunks.iter().zip(v_chunks) {
        sums.accumulate::<true>(w, v);
    }
    if !w_tail.is_empty() {
        sums.accumulate::<true>(&padded(w_tail), &padded(v_tail));
    }
    sums.total()
}

#[inline(always)]
fn figures(errors: &[GroupError], elems: usize, rel_mse: &mut [f32], cosine: &mut [f32]) {
    // Each figure on its own, so that divisions and roots are wide.
    for (rel_mse, errors) in rel_mse.iter_mut().zip(errors) {
        *rel_mse = errors.rel_mse(elems);
    }
    for (cosine, errors) in cosine.iter_mut().zip(errors) {
        *cosine = errors.cosine();
    }
}

#[inline(always)]
fn fp8_codes(w: &[f32], scale: f32, q: &mut [u8]) {
    for (q, w) in q.iter_mut().zip(w) {
        *q = fp8::encode(w / scale);
    }
}

/// Zeros add nothing to any sum.
#[inline(always)]
fn padded(tail: &[f32]) -> [f32; LANES] {
    let mut chunk = [0.0; LANES];
    chunk[..tail.len()].copy_from_slice(tail);
    chunk
}
