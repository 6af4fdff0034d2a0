//! Fused int4 x f32 product: nibbles become f32 in registers, a group's scale is applied once
//! to its partial sum.
//!
//! Activations are packed first: for each group, blocks of `2 * lanes` columns with the even
//! columns before the odd ones, so that a register of low nibbles and one of high nibbles meet
//! theirs without a shuffle. The last block of a group is padded with zeros.

use super::lanes::{Isa, Lanes, dispatch};

/// Rows `[rows, cols]` of an int4 matrix.
#[derive(Clone, Copy)]
pub(crate) struct Int4Rows<'a> {
    /// Two's-complement pairs, low nibble = even column, `[rows, ceil(cols / 2)]`.
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
        let block = 2 * lanes;
        let padded = |len: usize| len.div_ceil(block) * block;
        let last = cols % group;
        let stride = cols / group * padded(group) + padded(last);
        let mut data = vec![0.0; m * stride];
        for (row, packed) in x.chunks_exact(cols).zip(data.chunks_exact_mut(stride)) {
            let mut at = 0;
            for columns in row.chunks(group) {
                for (from, to) in columns.chunks(block).zip(packed[at..].chunks_mut(block)) {
                    for (i, &value) in from.iter().enumerate() {
                        to[i / 2 + (i % 2) * lanes] = value;
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
pub(crate) fn product(w: Int4Rows<'_>, x: &PackedX, out: &mut [f32]) {
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
    run(x.isa, w, x, out);
}

dispatch! {
    fn run => kernel(w: Int4Rows<'_>, x: &PackedX, out: &mut [f32])
}

#[inline(always)]
unsafe fn kernel<L: Lanes>(w: Int4Rows<'_>, x: &PackedX, out: &mut [f32]) {
    // SAFETY: `product` checked every length; L's instruction set is there.
    unsafe {
        let mut i = 0;
        while i < x.m {
            i += match x.m - i {
                1 => columns::<L, 4, 1>(w, x, i, out),
                2 => columns::<L, 2, 2>(w, x, i, out),
                3 => columns::<L, 2, 3>(w, x, i, out),
                _ => columns::<L, 2, 4>(w, x, i, out),
            }
        }
    }
}

/// Activation rows `i .. i + M` against every weight row, `R` weight rows at a time.
#[inline(always)]
unsafe fn columns<L: Lanes, const R: usize, const M: usize>(
    w: Int4Rows<'_>,
    x: &PackedX,
    i: usize,
    out: &mut [f32],
) -> usize {
    let rows = out.len() / x.m;
    let mut row = 0;
    // SAFETY: rows row .. row + R (or + 1) are below `rows`, as `tile` demands.
    unsafe {
        while row + R <= rows {
            tile::<L, R, M>(w, x, row, i, out);
            row += R;
        }
        while row < rows {
            tile::<L, 1, M>(w, x, row, i, out);
            row += 1;
        }
    }
    M
}

/// An `[R, M]` tile of the output.
#[inline(always)]
unsafe fn tile<L: Lanes, const R: usize, const M: usize>(
    w: Int4Rows<'_>,
    x: &PackedX,
    row: usize,
    i: usize,
    out: &mut [f32],
) {
    let row_bytes = w.cols.div_ceil(2);
    let groups = w.cols.div_ceil(w.group);
    let block = 2 * L::COUNT;
    // SAFETY: pointers stay inside: `row + R <= rows`, `i + M <= m`; a group's blocks read
    // `len / 2` bytes of its row and `padded(len)` packed activations; the bytes of a partial
    // block go through `tail`.
    unsafe {
        let nibbles: [*const u8; R] =
            std::array::from_fn(|r| w.nibbles.as_ptr().add((row + r) * row_bytes));
        let scales: [*const f32; R] =
            std::array::from_fn(|r| w.scales.as_ptr().add((row + r) * groups));
        let mut xs: [*const f32; M] =
            std::array::from_fn(|j| x.data.as_ptr().add((i + j) * x.stride));
        let mut total = [[L::splat(0.0); M]; R];
        for g in 0..groups {
            let len = w.group.min(w.cols - g * w.group);
            let start = g * w.group / 2;
            let mut partial = [[L::splat(0.0); M]; R];
            for b in 0..len / block {
                let q: [_; R] =
                    std::array::from_fn(|r| L::load_int4(nibbles[r].add(start + b * L::COUNT)));
                accumulate::<L, R, M>(&q, &mut xs, &mut partial);
            }
            let rest = len % block;
            if rest > 0 {
                let from = start + len / block * L::COUNT;
                let q: [_; R] = std::array::from_fn(|r| {
                    let mut tail = [0u8; 16];
                    std::ptr::copy_nonoverlapping(
                        nibbles[r].add(from),
                        tail.as_mut_ptr(),
                        rest.div_ceil(2),
                    );
                    L::load_int4(tail.as_ptr())
                });
                accumulate::<L, R, M>(&q, &mut xs, &mut partial);
            }
            for r in 0..R {
                let scale = L::splat(*scales[r].add(g));
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

/// One block of `2 * COUNT` columns: even ones first, then odd ones.
#[inline(always)]
unsafe fn accumulate<L: Lanes, const R: usize, const M: usize>(
    q: &[(L::V, L::V); R],
    xs: &mut [*const f32; M],
    partial: &mut [[L::V; M]; R],
) {
    for j in 0..M {
        // SAFETY: the packed row holds 2 * COUNT values from here (see `tile`).
        unsafe {
            let even = L::load(xs[j]);
            let odd = L::load(xs[j].add(L::COUNT));
            for r in 0..R {
                partial[r][j] = L::fma(q[r].0, even, partial[r][j]);
                partial[r][j] = L::fma(q[r].1, odd, partial[r][j]);
            }
            xs[j] = xs[j].add(2 * L::COUNT);
        }
    }
}
