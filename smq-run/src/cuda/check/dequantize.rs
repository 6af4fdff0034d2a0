//! Widening int4, NF4 and FP8 weights to bf16.

use half::bf16;
use rayon::prelude::*;
use smq_convert::Method;
use smq_format::scale::ScaleFormat;
use smq_format::{Dtype, Scheme, fp8, nf4};

use super::copies::Copies;
use super::host::{HostMatrix, parse_scales};
use super::lab::{Floor, Lab, of};
use super::products::Layer;
use super::reference::Worst;
use super::report::{Check, KernelReport};
use super::rows::row_layers;
use crate::cuda::kernels::Call;
use crate::cuda::memory::DeviceBuffer;
use crate::cuda::rows::widen;
use crate::cuda::weights::{DeviceMatrix, Format};
use crate::error::{Error, Result};

/// Formats of scales that it is checked with.
const SCALES: [&str; 6] = ["E5M0", "E5M3", "E5M5", "E5M10", "f16", "f32"];

/// Checks and times widening, of a whole matrix.
pub(super) fn run(lab: &mut Lab<'_>) -> Result<()> {
    for layer in row_layers(lab, "dequantize") {
        if matches!(layer.name, "gate_up" | "down") {
            for name in SCALES {
                let format = parse_scales(name).map_err(Error::Cuda)?;
                of("dequantize", layer.name, int4(lab, &layer, format))?;
            }
            for method in [Method::Nf4, Method::Fp8] {
                of("dequantize", layer.name, coded(lab, &layer, method))?;
            }
        }
    }
    Ok(())
}

fn int4(lab: &mut Lab<'_>, layer: &Layer, format: ScaleFormat) -> Result<()> {
    let host = HostMatrix::int4(40, layer.rows, layer.cols, format);
    let copies = Copies::new(lab, &host)?;
    // q s is rounded to f32, then to bf16.
    let row = |r: usize| host.row(r).into_iter().map(|v| v as f32).collect();
    let report = |report: KernelReport| report.weights(&host);
    widening(lab, layer, &copies.matrices, &row, &report)
}

/// Normal weights as the quantizer stores them.
fn coded(lab: &mut Lab<'_>, layer: &Layer, method: Method) -> Result<()> {
    let (rows, cols) = (layer.rows, layer.cols);
    let source = HostMatrix::bf16(41, rows, cols).data;
    let quantized = method.quantize("weights", &source, Dtype::Bf16, (rows, cols));
    let quantized = quantized.map_err(|e| Error::Cuda(format!("{e:?}")))?;
    let blobs = &quantized.blobs;
    let count = lab.copies_of(blobs.iter().map(Vec::len).sum());
    let copies: Vec<Vec<DeviceBuffer>> = (0..count)
        .map(|_| blobs.iter().map(|blob| lab.upload(blob)).collect())
        .collect::<Result<_>>()?;
    let matrices: Vec<DeviceMatrix> = copies
        .iter()
        .map(|blobs| DeviceMatrix {
            rows,
            cols,
            data: blobs[0].span(),
            format: match quantized.scheme {
                Scheme::Nf4 { offset_bits } => Format::Nf4 {
                    absmax: blobs[1].span(),
                    nested_absmax: blobs[2].span(),
                    offset: f32::from_bits(offset_bits),
                },
                _ => Format::Fp8 {
                    scales: blobs[1].span(),
                },
            },
        })
        .collect();
    let f32s = |bytes: &[u8]| -> Vec<f32> {
        let chunks = bytes.as_chunks::<4>().0.iter();
        chunks.map(|b| f32::from_le_bytes(*b)).collect()
    };
    let scales = f32s(blobs.last().map_or(&[], Vec::as_slice));
    let nf4_row = |offset: f32, r: usize| {
        let first = r * cols;
        let of_blocks = first / nf4::BLOCK_ELEMS..nf4::blocks(first + cols);
        let absmax: Vec<f32> = of_blocks
            .map(|k| nf4::absmax(blobs[1][k], scales[k / nf4::NESTED_BLOCK_CODES], offset))
            .collect();
        let mut row = vec![0.0; cols];
        nf4::dequantize(&blobs[0], &absmax, first, &mut row);
        row
    };
    let row = |r: usize| -> Vec<f32> {
        match quantized.scheme {
            Scheme::Nf4 { offset_bits } => nf4_row(f32::from_bits(offset_bits), r),
            _ => blobs[0][r * cols..(r + 1) * cols]
                .iter()
                .map(|code| fp8::VALUES[usize::from(*code)] * scales[r])
                .collect(),
        }
    };
    let report = |mut report: KernelReport| {
        report.weights = Some(method.name());
        report
    };
    widening(lab, layer, &matrices, &row, &report)
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
