//! Fused product of 4-bit codes (int4, code books, NF4) and f32: nibbles become f32 in registers, a
//! group's scale is applied once to its partial sum.
//!
//! A register of nibbles holds eight columns a lane: lane `i`, nibble `k` is column `8 i + k` of a
//! block of `8 * lanes` columns. Activations are packed to match: for each `k`, one register of
//! columns `8 i + k`. The last block of a group is padded with zeros, which also silence the
//! nibbles that its register reads beyond the group.

use smq_format::nf4;

use super::lanes::{Isa, Lanes, dispatch};

/// What a nibble means.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Code {
    /// Two's complement, the even column in the low half of a byte.
    Int4,
    /// An index into these levels, in the same order.
    Book([f32; 16]),
    /// A value of NF4's table, the even column in the high half.
    Nf4,
}

/// Rows `[rows, cols]` of a matrix of 4-bit codes.
#[derive(Clone, Copy)]
pub(crate) struct NibbleRows<'a> {
    /// What they mean.
    pub code: Code,
    /// `[rows, ceil(cols / 2)]`.
    pub nibbles: &'a [u8],
    /// `[rows, ceil(cols / group)]`.
    pub scales: &'a [f32],
    /// Columns that share a scale, even.
    pub group: usize,
    /// Elements of a row.
    pub cols: usize,
}

/// `m` activation rows in the kernel's order.
pub(crate) struct PackedX {
    data: Vec<f32>,
    /// f32 a row.
    stride: usize,
    m: usize,
    /// The instruction set whose lane count set the order.
    isa: Isa,
    group: usize,
    cols: usize,
}

impl PackedX {
    /// Packs `x`, `[m, cols]`, for groups of `group` columns.
    pub(crate) fn new(isa: Isa, x: &[f32], m: usize, cols: usize, group: usize) -> Self {
        let lanes = isa.lanes();
        let block = 8 * lanes;
        let padded = |len: usize| len.div_ceil(block) * block;
        let last = cols % group;
        let stride = cols / group * padded(group) + padded(last);
        let mut data = vec![0.0; m * stride];
        for (row, packed) in x.chunks_exact(cols).zip(data.chunks_exact_mut(stride)) {
            let mut at = 0;
            for columns in row.chunks(group) {
                for (from, to) in columns.chunks(block).zip(packed[at..].chunks_mut(block)) {
                    for (i, &value) in from.iter().enumerate() {
                        to[i / 8 + (i % 8) * lanes] = value;
                    }
                }
                at += padded(columns.len());
            }
        }
        Self {
            data,
            stride,
            m,
            isa,
            group,
            cols,
        }
    }

    /// Columns of a group.
    pub(crate) fn group(&self) -> usize {
        self.group
    }
}

/// `out[row, i] = sum over columns of w[row, column] * x[i, column]`, `out` is `[rows, m]`.
pub(crate) fn product(w: NibbleRows<'_>, x: &PackedX, out: &mut [f32]) {
    let rows = out.len() / x.m;
    // These are what the kernel's pointer arithmetic relies on.
    assert_eq!(out.len(), rows * x.m, "output is [rows, m]");
    assert_eq!(
        w.nibbles.len(),
        rows * w.cols.div_ceil(2),
        "nibbles are [rows, ceil(cols / 2)]"
    );
    assert_eq!(
        w.scales.len(),
        rows * w.cols.div_ceil(w.group),
        "scales are [rows, groups]"
    );
    assert!(
        w.group == x.group && w.cols == x.cols && w.group.is_multiple_of(2),
        "packed for another matrix"
    );
    assert_eq!(x.data.len(), x.m * x.stride);
    match w.code {
        Code::Int4 => run_int4(x.isa, w, x, out),
        Code::Book(levels) => run_book(x.isa, w, &levels, x, out),
        Code::Nf4 => run_nf4(x.isa, w, x, out),
    }
}

dispatch! { fn run_int4 => int4(w: NibbleRows<'_>, x: &PackedX, out: &mut [f32]) }
dispatch! {
    fn run_book => book(w: NibbleRows<'_>, levels: &[f32; 16], x: &PackedX, out: &mut [f32])
}
dispatch! { fn run_nf4 => nf4(w: NibbleRows<'_>, x: &PackedX, out: &mut [f32]) }

/// [`Code::Int4`], [`Code::Book`] and [`Code::Nf4`] as the kernel is instantiated for them.
const INT4: u8 = 0;
const BOOK: u8 = 1;
const NF4: u8 = 2;

#[inline(always)]
unsafe fn int4<L: Lanes>(w: NibbleRows<'_>, x: &PackedX, out: &mut [f32]) {
    // SAFETY: `product` checked every length; L's instruction set is there.
    unsafe { kernel::<L, INT4>(w, &nf4::VALUES, x, out) }
}

#[inline(always)]
unsafe fn book<L: Lanes>(w: NibbleRows<'_>, levels: &[f32; 16], x: &PackedX, out: &mut [f32]) {
    // SAFETY: as above.
    unsafe { kernel::<L, BOOK>(w, levels, x, out) }
}

#[inline(always)]
unsafe fn nf4<L: Lanes>(w: NibbleRows<'_>, x: &PackedX, out: &mut [f32]) {
    // SAFETY: as above.
    unsafe { kernel::<L, NF4>(w, &nf4::VALUES, x, out) }
}

/// Column `k` of the eight in each lane; integers have no `levels`.
#[inline(always)]
unsafe fn value<L: Lanes, const CODE: u8>(q: L::Nibbles, k: u32, levels: &[f32; 16]) -> L::V {
    // SAFETY: L's instruction set is there.
    unsafe {
        match CODE {
            INT4 => L::nibble(q, k),
            NF4 => L::level(q, k ^ 1, levels),
            _ => L::level(q, k, levels),
        }
    }
}

#[inline(always)]
unsafe fn kernel<L: Lanes, const CODE: u8>(
    w: NibbleRows<'_>,
    levels: &[f32; 16],
    x: &PackedX,
    out: &mut [f32],
) {
    // SAFETY: `product` checked every length; L's instruction set is there.
    unsafe {
        let mut i = 0;
        while i < x.m {
            i += match x.m - i {
                1 => columns::<L, CODE, 4, 1>(w, levels, x, i, out),
                2 => columns::<L, CODE, 2, 2>(w, levels, x, i, out),
                3 => columns::<L, CODE, 2, 3>(w, levels, x, i, out),
                _ => columns::<L, CODE, 2, 4>(w, levels, x, i, out),
            }
        }
    }
}

/// Activation rows `i .. i + M` against every weight row, `R` weight rows at a time.
#[inline(always)]
unsafe fn columns<L: Lanes, const CODE: u8, const R: usize, const M: usize>(
    w: NibbleRows<'_>,
    levels: &[f32; 16],
    x: &PackedX,
    i: usize,
    out: &mut [f32],
) -> usize {
    let rows = out.len() / x.m;
    // A row's last register may read beyond it: fine but for the last rows.
    let readable = w.nibbles.len().saturating_sub(4 * L::COUNT) / w.cols.div_ceil(2);
    let mut row = 0;
    // SAFETY: rows row .. row + R (or + 1) are below `rows`, and below `readable` for the tile
    // that does not look where the nibbles end, as `tile` demands.
    unsafe {
        while row + R <= readable {
            tile::<L, CODE, R, M, false>(w, levels, x, row, i, out);
            row += R;
        }
        while row < rows {
            tile::<L, CODE, 1, M, true>(w, levels, x, row, i, out);
            row += 1;
        }
    }
    M
}

/// An `[R, M]` tile of the output; `LAST` if its registers may reach beyond the nibbles' end.
///
/// Loops are plain: closures would not inherit the instruction set, and each intrinsic in them
/// would be a call.
#[inline(always)]
unsafe fn tile<L: Lanes, const CODE: u8, const R: usize, const M: usize, const LAST: bool>(
    w: NibbleRows<'_>,
    levels: &[f32; 16],
    x: &PackedX,
    row: usize,
    i: usize,
    out: &mut [f32],
) {
    let row_bytes = w.cols.div_ceil(2);
    let groups = w.cols.div_ceil(w.group);
    let block = 8 * L::COUNT;
    let end = w.nibbles.as_ptr_range().end;
    // SAFETY: `row + R <= rows` and `i + M <= m`, so rows, scales and activations start inside.
    // A group has `blocks` packed blocks, and as many of nibbles from its start. The last one
    // reaches at most 4 * COUNT bytes beyond its row, which the slice still holds unless `LAST`.
    unsafe {
        let nibbles = w.nibbles.as_ptr().add(row * row_bytes);
        let scales = w.scales.as_ptr().add(row * groups);
        let mut xs = x.data.as_ptr().add(i * x.stride);
        let mut total = [[L::splat(0.0); M]; R];
        for g in 0..groups {
            let blocks = w.group.min(w.cols - g * w.group).div_ceil(block);
            let mut from = nibbles.add(g * w.group / 2);
            let mut partial = [[L::splat(0.0); M]; R];
            for _ in 0..blocks {
                let mut q = [load::<L, LAST>(from, end); R];
                for r in 1..R {
                    q[r] = load::<L, LAST>(from.add(r * row_bytes), end);
                }
                // Several short rows at once are no stream that hardware recognises.
                for r in R..2 * R {
                    L::prefetch(from.wrapping_add(r * row_bytes));
                }
                for k in 0..8 {
                    let mut weights = [value::<L, CODE>(q[0], k, levels); R];
                    for r in 1..R {
                        weights[r] = value::<L, CODE>(q[r], k, levels);
                    }
                    for j in 0..M {
                        let x = L::load(xs.add(j * x.stride + k as usize * L::COUNT));
                        for r in 0..R {
                            partial[r][j] = L::fma(weights[r], x, partial[r][j]);
                        }
                    }
                }
                // After the last block neither is read any more, and either may be beyond the end of
                // what it points into, where only a wrapping step may go.
                from = from.wrapping_add(4 * L::COUNT);
                xs = xs.wrapping_add(block);
            }
            for r in 0..R {
                let scale = L::splat(*scales.add(r * groups + g));
                for j in 0..M {
                    total[r][j] = L::fma(scale, partial[r][j], total[r][j]);
                }
            }
        }
        for r in 0..R {
            for j in 0..M {
                out[(row + r) * x.m + i + j] = L::sum(total[r][j]);
            }
        }
    }
}

/// A register of nibbles from `p < end`; if `LAST`, bytes from `end` on are zero instead of read.
#[inline(always)]
unsafe fn load<L: Lanes, const LAST: bool>(p: *const u8, end: *const u8) -> L::Nibbles {
    // SAFETY: both lie in one slice; what is read or copied is inside it (see `tile`).
    unsafe {
        let left = end.offset_from(p) as usize;
        if !LAST || left >= 4 * L::COUNT {
            return L::load_nibbles(p);
        }
        let mut bytes = [0u8; 64];
        std::ptr::copy_nonoverlapping(p, bytes.as_mut_ptr(), left);
        L::load_nibbles(bytes.as_ptr())
    }
}
