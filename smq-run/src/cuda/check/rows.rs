//! Products of many activation rows.

use bytemuck::Zeroable;
use half::bf16;
use rayon::prelude::*;

use super::copies::Copies;
use super::host::{HostMatrix, bf16s, normals, sample};
use super::lab::{Floor, Lab, of};
use super::products::{Layer, layers};
use super::reference::{Exact, Worst, int4_order, products, swiglu};
use super::report::{Check, KernelReport};
use crate::cuda::blas::{MatMul, Output};
use crate::cuda::decode::plan::Epilogue;
use crate::cuda::kernels::Call;
use crate::cuda::memory::DeviceBuffer;
use crate::cuda::rows::{Activations, Target, int4_call};
use crate::error::Result;

const ROWS: [usize; 9] = [2, 4, 8, 16, 32, 64, 128, 512, 2048];
const MOST: usize = 2048;
/// Everything is compared where that takes at most so many multiplications; else this many rows and tokens.
const WORK: usize = 1 << 28;
const SAMPLE: (usize, usize) = (512, 32);

/// The layers that see more than one row; the head does not.
pub(super) fn row_layers(lab: &Lab<'_>, kernel: &str) -> Vec<Layer> {
    let all = layers(&lab.config).into_iter();
    all.filter(|l| l.epilogue != Epilogue::Logits && lab.wants(kernel, l.name))
        .collect()
}

/// Where a layer's product goes.
fn target(layer: &Layer, out: u64) -> Target {
    match layer.epilogue {
        Epilogue::Residual => Target::Add(out),
        Epilogue::Swiglu => Target::Swiglu(out, true),
        _ => Target::Bf16(out, layer.rows),
    }
}

/// Checks and times int4 products beside cuBLASLt's.
pub(super) fn run(lab: &mut Lab<'_>) -> Result<()> {
    for layer in row_layers(lab, "gemm_int4") {
        of("gemm_int4", layer.name, int4_products(lab, &layer))?;
    }
    for layer in row_layers(lab, "cublaslt") {
        of("cublaslt", layer.name, bf16_products(lab, &layer))?;
    }
    Ok(())
}

/// Activations of a layer, its output buffer for all rows and one more, and what the output starts as.
struct Io {
    x: Vec<bf16>,
    start: Vec<f32>,
    out: DeviceBuffer,
    /// Bytes of an output row.
    row_bytes: usize,
}

impl Io {
    fn new(lab: &Lab<'_>, layer: &Layer, swiglu: bool) -> Result<Self> {
        let row_bytes = match layer.epilogue {
            Epilogue::Residual => 4 * layer.rows,
            Epilogue::Swiglu if swiglu => layer.rows,
            _ => 2 * layer.rows,
        };
        let start = match layer.epilogue {
            Epilogue::Residual => normals(31, MOST * layer.rows),
            _ => Vec::new(),
        };
        Ok(Self {
            x: bf16s(30, MOST * layer.cols),
            start,
            out: DeviceBuffer::new(&lab.gpu, (MOST + 1) * row_bytes, "a check")?,
            row_bytes,
        })
    }

    /// Poison, and below it what `m` rows start as.
    fn reset(&self, lab: &Lab<'_>, layer: &Layer, m: usize) -> Result<()> {
        self.out.fill(lab.stream(), 0xff)?;
        if !self.start.is_empty() {
            self.out
                .upload(lab.stream(), 0, &self.start[..m * layer.rows])?;
        }
        Ok(())
    }

    /// Compares `m` rows, which may be off by `relative` of their products' magnitude, and bf16 by its rounding.
    fn check(
        &self,
        lab: &Lab<'_>,
        layer: &Layer,
        w: &HostMatrix,
        m: usize,
        relative: f64,
    ) -> Result<Check> {
        let everything = m * w.rows * w.cols <= WORK;
        let (rows, tokens) = if everything { (w.rows, m) } else { SAMPLE };
        let halves = usize::from(self.row_bytes == layer.rows) + 1;
        let rows = sample(32, w.rows / halves, rows / halves);
        let tokens = sample(33, m, tokens);
        let token = |t: &usize| {
            let x = &self.x[t * w.cols..(t + 1) * w.cols];
            x.iter().map(|v| v.to_f64()).collect()
        };
        let x: Vec<Vec<f64>> = tokens.iter().map(token).collect();
        let exact: Vec<Vec<Exact>> = products(w, &rows, &x);
        let ups: Vec<usize> = rows.iter().map(|r| r + w.rows / 2).collect();
        let ups = if halves == 2 {
            products(w, &ups, &x)
        } else {
            Vec::new()
        };

        let bytes: Vec<u8> = lab.download(&self.out, (m + 1) * self.row_bytes)?;
        let (written, past) = bytes.split_at(m * self.row_bytes);
        let mut worst = Worst::default();
        worst.require(past.iter().all(|b| *b == 0xff), || {
            "rows behind the last are written".into()
        });
        let is_f32 = layer.epilogue == Epilogue::Residual;
        let element = |at: usize| match is_f32 {
            true => f64::from(bytemuck::pod_read_unaligned::<f32>(
                &written[4 * at..4 * at + 4],
            )),
            false => bytemuck::pod_read_unaligned::<bf16>(&written[2 * at..2 * at + 2]).to_f64(),
        };
        let width = self.row_bytes / if is_f32 { 4 } else { 2 };
        let all_numbers = (0..m * width).into_par_iter().all(|i| !element(i).is_nan());
        worst.require(all_numbers, || {
            "some outputs are not written, or not numbers".into()
        });
        for (i, r) in rows.iter().enumerate() {
            for (j, t) in tokens.iter().enumerate() {
                let e = exact[i][j];
                let (column, want, tolerance) = match layer.epilogue {
                    Epilogue::Residual => {
                        let want = e.value + f64::from(self.start[t * layer.rows + r]);
                        (
                            *r,
                            want,
                            relative * e.magnitude + f64::exp2(-23.0) * want.abs(),
                        )
                    }
                    _ if halves == 2 => {
                        let (want, tolerance) = swiglu(e, ups[i][j], relative);
                        (
                            int4_order(*r),
                            want,
                            tolerance + f64::exp2(-8.0) * want.abs(),
                        )
                    }
                    _ => (
                        *r,
                        e.value,
                        relative * e.magnitude + f64::exp2(-8.0) * e.value.abs(),
                    ),
                };
                worst.take(element(t * width + column), want, tolerance, || {
                    format!("token {t}, row {r}")
                });
            }
        }
        let checked = match everything {
            true => format!("all {} rows, {m} tokens", w.rows),
            false => format!(
                "{} of {} rows, {} of {m} tokens",
                halves * rows.len(),
                w.rows,
                tokens.len()
            ),
        };
        let tolerance = match (is_f32, relative < 1e-5) {
            (true, true) => "2^-18 sum |w| |x|",
            (true, false) => "2^-15 sum |w| |x|",
            (false, true) => "2^-18 sum |w| |x| + 2^-8 |y|",
            (false, false) => "2^-15 sum |w| |x| + 2^-8 |y|",
        };
        Ok(Check::new(worst, checked, tolerance))
    }
}

fn flop(w: &HostMatrix, m: usize) -> f64 {
    2.0 * (m * w.rows) as f64 * w.cols as f64
}

/// Columns of the layers here are multiples of 128: no padding.
fn int4_products(lab: &mut Lab<'_>, layer: &Layer) -> Result<()> {
    let host = layer.weights(lab, true);
    let copies = Copies::new(lab, &host)?;
    let io = Io::new(lab, layer, true)?;
    let mut ordered = vec![bf16::zeroed(); io.x.len()];
    for (to, from) in ordered.chunks_mut(host.cols).zip(io.x.chunks(host.cols)) {
        for (k, v) in from.iter().enumerate() {
            to[int4_order(k)] = *v;
        }
    }
    let x = lab.upload(&ordered)?;
    let activations = Activations {
        span: x.span(),
        capacity: MOST,
        stride: host.cols,
    };
    let target = target(layer, io.out.ptr());
    for m in ROWS {
        let calls: Vec<Call> = copies
            .matrices
            .iter()
            .map(|w| int4_call(&lab.kernels, w, m, &activations, target))
            .collect::<Result<_>>()?;
        io.reset(lab, layer, m)?;
        lab.run(&calls[0])?;
        // bf16 times int4 is exact; sums are f32.
        let check = io.check(lab, layer, &host, m, f64::exp2(-18.0))?;
        let us = lab.time(&calls)?;
        let floor: Floor = copies.floor(lab)?;
        let report = KernelReport::new("gemm_int4", layer.name, us, check);
        let report = report.weights(&host).rows(m).flop(flop(&host, m));
        lab.report(report, &floor);
    }
    Ok(())
}

fn bf16_products(lab: &mut Lab<'_>, layer: &Layer) -> Result<()> {
    let host = layer.weights(lab, false);
    let copies = Copies::new(lab, &host)?;
    let io = Io::new(lab, layer, false)?;
    let x = lab.upload(&io.x)?;
    let add = layer.epilogue == Epilogue::Residual;
    for m in ROWS {
        let plan = lab.blas.plan(&MatMul {
            m,
            n: host.rows,
            k: host.cols,
            x_stride: host.cols,
            y_stride: host.rows,
            output: if add { Output::F32 } else { Output::Bf16 },
            accumulate: add,
        })?;
        io.reset(lab, layer, m)?;
        let product = |stream: &_, i: usize| {
            let w = copies.matrices[i].data.ptr();
            // SAFETY: every buffer has the plan's size and outlives the wait; all products are on one stream.
            unsafe { lab.blas.run(stream, &plan, w, x.ptr(), io.out.ptr()) }
        };
        product(lab.stream(), 0)?;
        lab.stream().synchronize()?;
        let check = io.check(lab, layer, &host, m, f64::exp2(-15.0))?;
        let us = lab.time_each(copies.matrices.len(), product)?;
        let floor: Floor = copies.floor(lab)?;
        let report = KernelReport::new("cublaslt", layer.name, us, check);
        let report = report.weights(&host).rows(m).flop(flop(&host, m));
        lab.report(report, &floor);
    }
    Ok(())
}
