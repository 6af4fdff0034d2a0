//! Collects a [`Report`] from an open file. Reads the header, the index and the statistics; no
//! weights.

use std::collections::{BTreeMap, HashMap};

use smq_format::header::{HEADER_BYTES, Section};
use smq_format::scale::ScaleFormat;
use smq_format::statistics::{ErrorSummary, Receipt, TensorStatistics};
use smq_format::{Role, Scheme, SmqFile, TensorEntry, bits};

use crate::choice::recorded_rule;

use super::number::{bits_per_elem, percent};
use super::report::*;
use super::tensor_name::place;

impl Report {
    /// Everything there is to say about `file`. Damaged statistics are said so, not an error.
    pub fn of(file: &SmqFile) -> Self {
        let index = file.index();
        let (statistics, state) = match file.statistics() {
            Ok(Some(s)) => (Some(s), StatisticsState::Present),
            Ok(None) => (None, StatisticsState::Absent),
            Err(error) => {
                let reason = error.to_string();
                (None, StatisticsState::Damaged { reason })
            }
        };
        let records: HashMap<&str, &TensorStatistics> = statistics
            .iter()
            .flat_map(|s| &s.tensors)
            .map(|t| (t.name.as_str(), t))
            .collect();
        let tensors: Vec<TensorReport> = index
            .tensors
            .iter()
            .map(|t| {
                let record = records.get(t.name.as_str()).copied();
                tensor(t, record, &index.provenance.parameters)
            })
            .collect();
        Report {
            report_version: REPORT_VERSION,
            path: file.path().display().to_string(),
            header: header(file),
            provenance: ProvenanceReport {
                producer: index.provenance.producer.clone(),
                parameters: index.provenance.parameters.clone(),
                sources: sources(file),
            },
            embedded_files: index
                .files
                .iter()
                .map(|f| EmbeddedFileReport {
                    name: f.name.clone(),
                    section: section(f.offset, f.length, &f.blake3),
                })
                .collect(),
            sizes: sizes(file, &tensors),
            schemes: schemes(&index.tensors),
            statistics: state,
            totals: totals(&tensors),
            output_errors: output_totals(&tensors),
            receipts: statistics
                .iter()
                .flat_map(|s| &s.receipts)
                .map(receipt)
                .collect(),
            tensors,
        }
    }
}

fn header(file: &SmqFile) -> HeaderReport {
    let h = file.header();
    let of = |s: &Section| section(s.offset, s.length, &s.hash);
    HeaderReport {
        version: format!("{}.{}", h.version.0, h.version.1),
        file_bytes: h.file_bytes,
        index: of(&h.index),
        statistics: (h.statistics.length > 0).then(|| of(&h.statistics)),
        incompatible_feature_bits: format!("{:#x}", h.incompatible),
        compatible_feature_bits: format!("{:#x}", h.compatible),
    }
}

fn section(offset_bytes: u64, length_bytes: u64, hash: &[u8; 32]) -> SectionReport {
    SectionReport {
        offset_bytes,
        length_bytes,
        blake3: hex(hash),
    }
}

fn hex(hash: &[u8; 32]) -> String {
    blake3::Hash::from_bytes(*hash).to_hex().to_string()
}

fn sources(file: &SmqFile) -> Vec<SourceReport> {
    let of = |s: &smq_format::SourceFile| SourceReport {
        name: s.name.clone(),
        length_bytes: s.length,
        blake3: hex(&s.blake3),
    };
    file.index().provenance.sources.iter().map(of).collect()
}

fn sizes(file: &SmqFile, tensors: &[TensorReport]) -> SizeReport {
    let h = file.header();
    let sum = |of: fn(&TensorReport) -> u64| tensors.iter().map(of).sum::<u64>();
    let quantized = || tensors.iter().filter(|t| t.is_quantized());
    let stored_bytes = sum(|t| t.stored_bytes);
    let scale_bytes = sum(|t| t.scale_bytes);
    let quantized_bytes: u64 = quantized().map(|t| t.stored_bytes).sum();
    let quantized_elems = quantized().map(|t| t.elems).sum();
    let total_elems = sum(|t| t.elems);
    let source_tensor_bytes = sum(|t| t.source_bytes);
    let embedded_bytes = file.index().files.iter().map(|f| f.length).sum::<u64>();
    let f16_bits = ScaleFormat::F16.width_bits();
    let scale_f16_bytes = quantized()
        .filter_map(|t| bits::stream_bytes(t.groups, f16_bits))
        .sum::<u64>();
    let header_bytes = HEADER_BYTES as u64;
    let accounted =
        header_bytes + stored_bytes + embedded_bytes + h.index.length + h.statistics.length;
    SizeReport {
        file_bytes: h.file_bytes,
        source_tensor_bytes,
        file_of_source_percent: percent(h.file_bytes, source_tensor_bytes),
        header_bytes,
        nibble_bytes: quantized_bytes - scale_bytes,
        scale_bytes,
        raw_bytes: stored_bytes - quantized_bytes,
        embedded_bytes,
        index_bytes: h.index.length,
        statistics_bytes: h.statistics.length,
        padding_bytes: h.file_bytes.saturating_sub(accounted),
        quantized_elems,
        total_elems,
        bits_per_quantized_weight: bits_per_elem(quantized_bytes, quantized_elems),
        bits_per_weight_in_file: bits_per_elem(h.file_bytes, total_elems),
        scale_f16_bytes,
        scale_savings_vs_f16_percent: percent(scale_bytes, scale_f16_bytes).map(|p| 100.0 - p),
    }
}

fn schemes(tensors: &[TensorEntry]) -> Vec<SchemeCount> {
    let mut counts: BTreeMap<(String, String), SchemeCount> = BTreeMap::new();
    for t in tensors {
        let (scales, group) = (scale_format(t.scheme), group_elems(t));
        let dtype = match t.scheme {
            Scheme::Raw(dtype) => Some(dtype.name().to_owned()),
            Scheme::Int4 { .. } | Scheme::Lut4 { .. } | Scheme::Nf4 { .. } | Scheme::Fp8 => None,
        };
        // Rows of many lengths are one scheme.
        let fixed_group = group.filter(|_| t.scheme != Scheme::Fp8);
        let key = (
            t.scheme.name().to_owned(),
            format!("{:?}", (&scales, fixed_group, &dtype)),
        );
        let count = counts.entry(key).or_insert_with(|| SchemeCount {
            scheme: t.scheme.name().to_owned(),
            scale_bits: scales.as_ref().map(|s| s.1),
            scale_format: scales.map(|s| s.0),
            group_elems: fixed_group,
            dtype,
            tensors: 0,
            elems: 0,
            stored_bytes: 0,
        });
        count.tensors += 1;
        count.elems += t.elems() as u64;
        count.stored_bytes += t.stored_bytes();
    }
    let mut counts: Vec<_> = counts.into_values().collect();
    counts.sort_by_key(|c| std::cmp::Reverse(c.stored_bytes));
    counts
}

/// Name and bits of a scale; of NF4's, the byte that is its own.
fn scale_format(scheme: Scheme) -> Option<(String, u32)> {
    match scheme {
        Scheme::Raw(_) => None,
        Scheme::Int4 { scales, .. } | Scheme::Lut4 { scales, .. } => {
            Some((scales.to_string(), scales.width_bits()))
        }
        Scheme::Nf4 { .. } => Some(("dq8".to_owned(), 8)),
        Scheme::Fp8 => Some((ScaleFormat::F32.to_string(), 32)),
    }
}

/// Elements that share a scale.
fn group_elems(entry: &TensorEntry) -> Option<usize> {
    entry.scheme.group(*entry.shape.last()?)
}

fn tensor(
    entry: &TensorEntry,
    record: Option<&TensorStatistics>,
    parameters: &BTreeMap<String, String>,
) -> TensorReport {
    let place = place(&entry.name);
    let elems = entry.elems() as u64;
    let scale_blobs = entry.blobs.iter().filter(|b| is_scales(b.role));
    TensorReport {
        name: entry.name.clone(),
        layer: place.layer,
        projection: place.projection,
        shape: entry.shape.clone(),
        source_dtype: entry.source_dtype.name().to_owned(),
        scheme: entry.scheme.name().to_owned(),
        scale_format: scale_format(entry.scheme).map(|s| s.0),
        scale_rule: match entry.scheme {
            Scheme::Int4 { .. } | Scheme::Lut4 { .. } => {
                recorded_rule(parameters, &entry.name).map(|rule| rule.to_string())
            }
            Scheme::Raw(_) | Scheme::Nf4 { .. } | Scheme::Fp8 => None,
        },
        scale_bias: match entry.scheme {
            Scheme::Int4 {
                scales: ScaleFormat::Mini(m),
                ..
            }
            | Scheme::Lut4 {
                scales: ScaleFormat::Mini(m),
                ..
            } => Some(m.bias()),
            Scheme::Int4 {
                scales: ScaleFormat::F16 | ScaleFormat::F32,
                ..
            }
            | Scheme::Lut4 {
                scales: ScaleFormat::F16 | ScaleFormat::F32,
                ..
            }
            | Scheme::Raw(_)
            | Scheme::Nf4 { .. }
            | Scheme::Fp8 => None,
        },
        levels: match entry.scheme {
            Scheme::Lut4 { levels, .. } => Some(levels.bytes()),
            Scheme::Raw(_) | Scheme::Int4 { .. } | Scheme::Nf4 { .. } | Scheme::Fp8 => None,
        },
        group_elems: group_elems(entry),
        elems,
        groups: entry.scheme.groups(&entry.shape) as u64,
        source_bytes: entry.source_bytes(),
        stored_bytes: entry.stored_bytes(),
        scale_bytes: scale_blobs.map(|b| b.length).sum(),
        bits_per_weight: bits_per_elem(entry.stored_bytes(), elems),
        blobs: entry
            .blobs
            .iter()
            .map(|b| BlobReport {
                role: b.role.name().to_owned(),
                section: section(b.offset, b.length, &b.blake3),
            })
            .collect(),
        errors: record.map(errors),
        output_error: record.and_then(|r| r.output).map(|o| OutputReport {
            rounded: o.rounded,
            stored: o.stored,
            is_rounded: o.is_rounded,
        }),
    }
}

fn receipt(r: &Receipt) -> ReceiptReport {
    ReceiptReport {
        text: r.text.clone(),
        blake3: hex(&r.blake3),
        window_tokens: r.window,
        tokens_scored: r.tokens_scored,
        mean_kl_nats: r.mean_kl,
        kl_stderr_nats: r.kl_stderr,
        perplexity: r.perplexity,
        base_perplexity: r.base_perplexity,
        top1_agreement_percent: 100.0 * r.top1_agreement,
    }
}

fn output_totals(tensors: &[TensorReport]) -> Option<OutputTotals> {
    let known: Vec<OutputReport> = tensors.iter().filter_map(|t| t.output_error).collect();
    let sorted = |of: fn(&OutputReport) -> f64| {
        let mut all: Vec<f64> = known.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        let median = all.get(all.len().div_ceil(2).saturating_sub(1)).copied()?;
        Some((median, all.last().copied()?))
    };
    let (median_rounded, max_rounded) = sorted(|o| o.rounded)?;
    let (median_stored, max_stored) = sorted(|o| o.stored)?;
    Some(OutputTotals {
        tensors: known.len(),
        rounded_tensors: known.iter().filter(|o| o.is_rounded).count(),
        median_rounded,
        median_stored,
        max_rounded,
        max_stored,
    })
}

fn is_scales(role: Role) -> bool {
    match role {
        Role::Scales | Role::Absmax | Role::NestedAbsmax => true,
        Role::Data | Role::Nibbles => false,
    }
}

fn errors(r: &TensorStatistics) -> TensorErrors {
    TensorErrors {
        zero_groups: r.zero_groups,
        under_window_scales: r.under_window,
        clipped_weights: r.clipped,
        stored: summary(&r.stored),
        exact: summary(&r.exact),
        scale_format_cost_percent: cost_percent(r.stored.mean_rel_mse, r.exact.mean_rel_mse),
        first_exponent: r.first_exponent,
        exponent_counts: r.exponent_counts.clone(),
        block_rows: r.block_rows,
        row_block_mean_rel_mse: r.row_blocks.clone(),
    }
}

fn summary(s: &ErrorSummary) -> ErrorReport {
    let [p50_rel_mse, p90_rel_mse, p99_rel_mse, p999_rel_mse] = s.percentiles_rel_mse;
    ErrorReport {
        mean_rel_mse: s.mean_rel_mse,
        p50_rel_mse,
        p90_rel_mse,
        p99_rel_mse,
        p999_rel_mse,
        max_rel_mse: s.max_rel_mse,
        mean_cosine: s.mean_cosine,
        sqnr_db: Some(s.sqnr_db()).filter(|db| db.is_finite()),
        squared_error: s.squared_error,
        squared_weight: s.squared_weight,
    }
}

/// How much larger `stored` is than `exact`, in percent: 0 where both are 0, `None` where only
/// `exact` is.
pub(crate) fn cost_percent(stored: f64, exact: f64) -> Option<f64> {
    if stored == exact {
        return Some(0.0);
    }
    Some(100.0 * (stored / exact - 1.0)).filter(|p| p.is_finite())
}

fn totals(tensors: &[TensorReport]) -> Option<Totals> {
    let known: Vec<_> = tensors
        .iter()
        .filter_map(|t| Some((t, t.errors.as_ref()?)))
        .collect();
    let groups: u64 = known.iter().map(|(t, _)| t.groups).sum();
    if groups == 0 {
        return None;
    }
    // Counts come from the statistics section, which nothing bounds: saturate.
    let count =
        |of: fn(&TensorErrors) -> u64| known.iter().fold(0u64, |n, (_, e)| n.saturating_add(of(e)));
    let mean = |of: fn(&TensorErrors) -> f64| {
        let weighted = known.iter().map(|(t, e)| t.groups as f64 * of(e));
        weighted.sum::<f64>() / groups as f64
    };
    let sqnr = |of: fn(&TensorErrors) -> &ErrorReport| {
        let all = ErrorSummary {
            squared_error: known.iter().map(|(_, e)| of(e).squared_error).sum(),
            squared_weight: known.iter().map(|(_, e)| of(e).squared_weight).sum(),
            ..ErrorSummary::default()
        };
        Some(all.sqnr_db()).filter(|db| db.is_finite())
    };
    let clipped_weights = count(|e| e.clipped_weights);
    let mean_rel_mse = mean(|e| e.stored.mean_rel_mse);
    let exact_mean_rel_mse = mean(|e| e.exact.mean_rel_mse);
    Some(Totals {
        tensors: known.len(),
        groups,
        zero_groups: count(|e| e.zero_groups),
        under_window_scales: count(|e| e.under_window_scales),
        clipped_weights,
        clipped_percent: percent(clipped_weights, known.iter().map(|(t, _)| t.elems).sum()),
        mean_rel_mse,
        exact_mean_rel_mse,
        scale_format_cost_percent: cost_percent(mean_rel_mse, exact_mean_rel_mse),
        max_rel_mse: known
            .iter()
            .map(|(_, e)| e.stored.max_rel_mse)
            .fold(0.0, f32::max),
        mean_cosine: mean(|e| e.stored.mean_cosine),
        exact_mean_cosine: mean(|e| e.exact.mean_cosine),
        sqnr_db: sqnr(|e| &e.stored),
        exact_sqnr_db: sqnr(|e| &e.exact),
    })
}
