//! Products of many activation rows.

use bytemuck::Zeroable;
use half::bf16;
use rayon::prelude::*;

use super::copies::Copies;
use super::host::{Groups, bf16s, normals, sample};
use super::lab::{Floor, Lab, of};
use super::products::{Layer, RAGGED, layers};
use super::reference::{Exact, Rows, Worst, int4_order, products, swiglu};
use super::report::{Check, KernelReport};
use smq_engine::Result;
use smq_engine::cuda::{
    Activations, Call, DeviceBuffer, Epilogue, Form, Input, MatMul, Output, Target, fuses_bf16,
    int4_call, reads_int4_order, swiglu_call,
};
use smq_model::architecture::Activation;

const ROWS: [usize; 9] = [2, 4, 8, 16, 32, 64, 128, 512, 2048];
pub(super) const MOST: usize = 2048;
/// Everything is compared where that takes at most so many multiplications; else this many rows and
/// tokens.
const WORK: usize = 1 << 28;
const SAMPLE: (usize, usize) = (512, 32);

/// What products may be off by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tolerance {
    /// The part that is relative to the sum of the terms' magnitudes.
    relative: f64,
    /// In words: of f32, of bf16, which is also rounded.
    words: [&'static str; 2],
}

/// bf16 times int4, or a level, is exact; sums are f32.
const INT4: Tolerance = Tolerance {
    relative: 1.0 / 262_144.0,
    words: ["2^-18 sum |w| |x|", "2^-18 sum |w| |x| + 2^-8 |y|"],
};
/// Sums are f32, in tensor cores that truncate.
pub(super) const BF16: Tolerance = Tolerance {
    relative: 1.0 / 32_768.0,
    words: ["2^-15 sum |w| |x|", "2^-15 sum |w| |x| + 2^-8 |y|"],
};
/// Hopper's tensor cores add 32 products of FP8 to a sum at a time, each cut 13 bits below the
/// largest's leading one (DeepSeek-V3 report, section 3.3.2, found 14 bits kept); without fast
/// accumulation, every few such sums are added up in f32. 33 cuts of 2^-13 of the largest term,
/// which for normal factors is below a quarter of the 32 magnitudes' sum, are 2^-10 of that.
pub(super) const FP8: Tolerance = Tolerance {
    relative: 1.0 / 1024.0,
    words: ["2^-10 sum |w| |x|", "2^-10 sum |w| |x| + 2^-8 |y|"],
};

/// The layers that see more than one row; the head does not.
pub(super) fn row_layers(lab: &Lab<'_>, kernel: &str) -> Vec<Layer> {
    let all = layers(&lab.config).into_iter();
    all.filter(|l| l.epilogue != Epilogue::Logits && lab.wants(kernel, l.name))
        .collect()
}

/// Where a layer's product goes.
fn target(layer: &Layer, swiglu: bool, out: u64) -> Target {
    match layer.epilogue {
        Epilogue::Residual => Target::Add(out),
        Epilogue::Swiglu if swiglu => Target::Swiglu(out, true, Activation::Silu),
        Epilogue::Store | Epilogue::Swiglu | Epilogue::Logits => Target::Bf16(out, layer.rows),
    }
}

/// Checks and times int4 and lut4 products beside cuBLASLt's.
pub(super) fn run(lab: &mut Lab<'_>) -> Result<()> {
    let ragged = Some(RAGGED).filter(|l| lab.wants("gemm_int4", l.name));
    for layer in row_layers(lab, "gemm_int4").into_iter().chain(ragged) {
        for group in layer.groups() {
            of("gemm_int4", layer.name, int4_products(lab, &layer, group))?;
        }
    }
    for layer in row_layers(lab, "swiglu_bf16") {
        if layer.epilogue == Epilogue::Swiglu {
            of("swiglu_bf16", layer.name, bf16_swiglu(lab, &layer))?;
        }
    }
    for layer in row_layers(lab, "cublaslt") {
        of("cublaslt", layer.name, bf16_products(lab, &layer))?;
    }
    Ok(())
}

/// Activations of a layer, its output buffer for all rows and one more, and what the output starts
/// as.
pub(super) struct Io {
    pub x: Vec<bf16>,
    start: Vec<f32>,
    pub out: DeviceBuffer,
    /// Bytes of an output row.
    row_bytes: usize,
    /// Outputs of joined gate and up are in plain order.
    plain: bool,
}

impl Io {
    pub(super) fn new(lab: &Lab<'_>, layer: &Layer, swiglu: bool) -> Result<Self> {
        let row_bytes = match layer.epilogue {
            Epilogue::Residual => 4 * layer.rows,
            Epilogue::Swiglu if swiglu => layer.rows,
            Epilogue::Store | Epilogue::Swiglu | Epilogue::Logits => 2 * layer.rows,
        };
        let start = match layer.epilogue {
            Epilogue::Residual => normals(31, MOST * layer.rows),
            Epilogue::Store | Epilogue::Swiglu | Epilogue::Logits => Vec::new(),
        };
        Ok(Self {
            x: bf16s(30, MOST * layer.cols),
            start,
            out: DeviceBuffer::new(&lab.gpu, (MOST + 1) * row_bytes, "a check")?,
            row_bytes,
            plain: false,
        })
    }

    /// Poison, and below it what `m` rows start as.
    pub(super) fn reset(&self, lab: &Lab<'_>, layer: &Layer, m: usize) -> Result<()> {
        self.out.fill(lab.stream(), 0xff)?;
        if !self.start.is_empty() {
            self.out
                .upload(lab.stream(), 0, &self.start[..m * layer.rows])?;
        }
        Ok(())
    }

    /// Row `t` of the activations.
    pub(super) fn token(&self, layer: &Layer, t: usize) -> Vec<f64> {
        let x = &self.x[t * layer.cols..(t + 1) * layer.cols];
        x.iter().map(|v| v.to_f64()).collect()
    }

    /// Compares `m` rows of the product of `w` and `x`.
    pub(super) fn check(
        &self,
        lab: &Lab<'_>,
        layer: &Layer,
        (w, x): (Rows<'_>, Rows<'_>),
        m: usize,
        tolerance: Tolerance,
    ) -> Result<Check> {
        let Tolerance { relative, words } = tolerance;
        let everything = m * layer.rows * layer.cols <= WORK;
        let (rows, tokens) = if everything { (layer.rows, m) } else { SAMPLE };
        let halves = usize::from(self.row_bytes == layer.rows) + 1;
        let rows = sample(32, layer.rows / halves, rows / halves);
        let tokens = sample(33, m, tokens);
        let x: Vec<Vec<f64>> = tokens.iter().map(|t| x(*t)).collect();
        let exact: Vec<Vec<Exact>> = products(w, &rows, &x);
        let ups: Vec<usize> = rows.iter().map(|r| r + layer.rows / 2).collect();
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
                    Epilogue::Swiglu if halves == 2 => {
                        let (want, tolerance) = swiglu(e, ups[i][j], relative);
                        let column = if self.plain { *r } else { int4_order(*r) };
                        (column, want, tolerance + f64::exp2(-8.0) * want.abs())
                    }
                    Epilogue::Store | Epilogue::Swiglu | Epilogue::Logits => (
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
            true => format!("all {} rows, {m} tokens", layer.rows),
            false => format!(
                "{} of {} rows, {} of {m} tokens",
                halves * rows.len(),
                layer.rows,
                tokens.len()
            ),
        };
        Ok(Check::new(worst, checked, words[usize::from(!is_f32)]))
    }
}

pub(super) fn flop(layer: &Layer, m: usize) -> f64 {
    2.0 * (m * layer.rows) as f64 * layer.cols as f64
}

fn int4_products(lab: &mut Lab<'_>, layer: &Layer, groups: Groups) -> Result<()> {
    let host = layer.weights(lab, Some(groups));
    let copies = Copies::new(lab, &host)?;
    // What follows a product with smaller groups is another kernel's.
    let largest = reads_int4_order(&copies.matrices[..1], 1);
    let io = Io::new(lab, layer, largest)?;
    let stride = host.cols.next_multiple_of(128);
    let mut ordered = vec![bf16::zeroed(); MOST * stride];
    for (to, from) in ordered.chunks_mut(stride).zip(io.x.chunks(host.cols)) {
        for (k, v) in from.iter().enumerate() {
            to[if largest { int4_order(k) } else { k }] = *v;
        }
    }
    let x = lab.upload(&ordered)?;
    let activations = Activations {
        span: x.span(),
        capacity: MOST,
        stride,
    };
    let target = target(layer, largest, io.out.ptr());
    for m in ROWS {
        let calls: Vec<Call> = copies
            .matrices
            .iter()
            .map(|w| int4_call(&lab.kernels, w, m, &activations, target))
            .collect::<Result<_>>()?;
        io.reset(lab, layer, m)?;
        lab.run(&calls[0])?;
        let factors: (Rows<'_>, Rows<'_>) = (&|r| host.row(r), &|t| io.token(layer, t));
        let check = io.check(lab, layer, factors, m, INT4)?;
        let us = lab.time(&calls)?;
        let floor: Floor = copies.floor(lab)?;
        let report = KernelReport::new("gemm_int4", layer.name, us, check);
        let report = report.weights(&host).rows(m).flop(flop(layer, m));
        lab.report(report, &floor);
    }
    Ok(())
}

/// Gate and up in bf16, joined.
fn bf16_swiglu(lab: &mut Lab<'_>, layer: &Layer) -> Result<()> {
    let host = layer.weights(lab, None);
    let copies = Copies::new(lab, &host)?;
    let mut io = Io::new(lab, layer, true)?;
    io.plain = true;
    let x = lab.upload(&io.x)?;
    let activations = Activations {
        span: x.span(),
        capacity: MOST,
        stride: host.cols,
    };
    for m in ROWS {
        if !fuses_bf16(&copies.matrices[..1], m) {
            continue;
        }
        let calls: Vec<Call> = copies
            .matrices
            .iter()
            .map(|w| {
                swiglu_call(
                    &lab.kernels,
                    w,
                    m,
                    &activations,
                    (io.out.ptr(), Activation::Silu),
                )
            })
            .collect::<Result<_>>()?;
        io.reset(lab, layer, m)?;
        lab.run(&calls[0])?;
        let factors: (Rows<'_>, Rows<'_>) = (&|r| host.row(r), &|t| io.token(layer, t));
        let check = io.check(lab, layer, factors, m, BF16)?;
        let us = lab.time(&calls)?;
        let floor: Floor = copies.floor(lab)?;
        let report = KernelReport::new("swiglu_bf16", layer.name, us, check);
        let report = report.weights(&host).rows(m).flop(flop(layer, m));
        lab.report(report, &floor);
    }
    Ok(())
}

fn bf16_products(lab: &mut Lab<'_>, layer: &Layer) -> Result<()> {
    let host = layer.weights(lab, None);
    let copies = Copies::new(lab, &host)?;
    let io = Io::new(lab, layer, false)?;
    let x = lab.upload(&io.x)?;
    let add = layer.epilogue == Epilogue::Residual;
    for m in ROWS {
        let plan = lab.blas.plan(&MatMul {
            m,
            n: host.rows,
            k: host.cols,
            form: Form::XWt,
            x_stride: host.cols,
            w_stride: host.cols,
            y_stride: host.rows,
            input: Input::Bf16,
            output: if add { Output::F32 } else { Output::Bf16 },
            accumulate: add,
        })?;
        io.reset(lab, layer, m)?;
        let product = |stream: &_, i: usize| {
            let w = copies.matrices[i].data.ptr();
            // SAFETY: every buffer has the plan's size and outlives the wait; all products are on
            // one stream.
            unsafe { lab.blas.run(stream, &plan, w, x.ptr(), io.out.ptr()) }
        };
        product(lab.stream(), 0)?;
        lab.stream().synchronize()?;
        let factors: (Rows<'_>, Rows<'_>) = (&|r| host.row(r), &|t| io.token(layer, t));
        let check = io.check(lab, layer, factors, m, BF16)?;
        let us = lab.time_each(copies.matrices.len(), product)?;
        let floor: Floor = copies.floor(lab)?;
        let report = KernelReport::new("cublaslt", layer.name, us, check);
        let report = report.weights(&host).rows(m).flop(flop(layer, m));
        lab.report(report, &floor);
    }
    Ok(())
}
