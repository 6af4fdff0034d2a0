//! Widening int4, lut4, NF4 and FP8 weights to bf16.

use half::bf16;
use rayon::prelude::*;
use smq_convert::Method;
use smq_format::ScaleChoice;
use smq_format::scale::ScaleFormat;

use super::coded::Coded;
use super::copies::Copies;
use super::host::{Groups, HostMatrix, format_of};
use super::lab::{Floor, Lab, of};
use super::products::{Layer, RAGGED};
use super::reference::Worst;
use super::report::{Check, KernelReport};
use super::rows::row_layers;
use smq_engine::Result;
use smq_engine::cuda::{Call, DeviceMatrix, widen};

/// Formats of scales that it is checked with.
const SCALES: [ScaleChoice; 6] = [
    ScaleChoice::e5(0),
    ScaleChoice::e5(3),
    ScaleChoice::e5(5),
    ScaleChoice::e5(10),
    ScaleChoice::F16,
    ScaleChoice::F32,
];

/// Checks and times widening, of a whole matrix.
pub(super) fn run(lab: &mut Lab<'_>) -> Result<()> {
    for layer in row_layers(lab, "dequantize") {
        if matches!(layer.name, "gate_up" | "down") {
            for scales in SCALES {
                let format = format_of(scales)?;
                for group in layer.groups() {
                    of(
                        "dequantize",
                        layer.name,
                        grouped(lab, &layer, format, group),
                    )?;
                }
            }
            for method in [Method::Nf4, Method::Fp8] {
                of("dequantize", layer.name, coded(lab, &layer, method))?;
            }
        }
    }
    if lab.wants("dequantize", RAGGED.name) {
        for group in RAGGED.groups() {
            let scales = lab.scales;
            of(
                "dequantize",
                RAGGED.name,
                grouped(lab, &RAGGED, scales, group),
            )?;
        }
    }
    Ok(())
}

fn grouped(lab: &mut Lab<'_>, layer: &Layer, format: ScaleFormat, groups: Groups) -> Result<()> {
    let host = HostMatrix::grouped(40, (layer.rows, layer.cols), format, groups);
    let copies = Copies::new(lab, &host)?;
    // q s is rounded to f32, then to bf16.
    let row = |r: usize| host.row(r).into_iter().map(|v| v as f32).collect();
    let report = |report: KernelReport| report.weights(&host);
    widening(lab, layer, &copies.matrices, &row, &report)
}

/// Normal weights as the quantizer stores them.
fn coded(lab: &mut Lab<'_>, layer: &Layer, method: Method) -> Result<()> {
    let coded = Coded::new(lab, layer, method)?;
    let row = |r: usize| coded.row(r);
    let report = |mut report: KernelReport| {
        report.weights = Some(method.family().name());
        report
    };
    widening(lab, layer, &coded.matrices, &row, &report)
}

/// Checks and times copies of one matrix, whose row `r` is `row(r)` before it is rounded to bf16.
fn widening(
    lab: &mut Lab<'_>,
    layer: &Layer,
    matrices: &[DeviceMatrix],
    row: &(dyn Fn(usize) -> Vec<f32> + Sync),
    describe: &dyn Fn(KernelReport) -> KernelReport,
) -> Result<()> {
    let len = layer.rows * layer.cols;
    // Outputs rotate too, through as much memory as is needed.
    let outs = lab.copies_of(2 * len);
    let out = lab.poisoned(2 * len * outs)?;
    let calls: Vec<Call> = matrices
        .iter()
        .enumerate()
        .map(|(i, w)| widen(&lab.kernels, w, out.ptr() + (i % outs * 2 * len) as u64))
        .collect::<Result<_>>()?;
    lab.run(&calls[0])?;
    let got: Vec<u16> = lab.download(&out, len)?;
    let wrong = got
        .par_chunks(layer.cols)
        .enumerate()
        .find_map_first(|(r, got)| {
            let want = row(r).into_iter().map(|v| bf16::from_f32(v).to_bits());
            let wrong = want.zip(got).position(|(want, got)| want != *got)?;
            Some(format!("row {r}, column {wrong} has other bits"))
        });
    let mut worst = Worst::default();
    worst.require(wrong.is_none(), || wrong.unwrap_or_default());
    let check = Check::new(
        worst,
        format!("all {} rows", layer.rows),
        "none: bit for bit",
    );
    let us = lab.time(&calls)?;
    let bytes = matrices[0].bytes() + 2 * len;
    let floor = Floor::Copy(bytes, lab.copy_floor(bytes, true)?);
    let report = KernelReport::new("dequantize", layer.name, us, check);
    lab.report(describe(report), &floor);
    Ok(())
}
