//! The report as CSV, with a row for each tensor.

use std::borrow::Cow;

use serde::Serialize;
use smq_format::plain_cell;

use super::error::InspectError;
use super::number::times;
use super::report::TensorReport;

/// The columns, named as in the JSON report; errors of the stored tensor have no prefix. Empty
/// where there is no value.
#[derive(Serialize)]
struct Row<'a> {
    name: Cow<'a, str>,
    layer: Option<u32>,
    projection: &'a str,
    shape: String,
    source_dtype: &'a str,
    scheme: &'a str,
    scale_format: Option<&'a str>,
    scale_rule: Option<&'a str>,
    scale_bias: Option<i16>,
    group_elems: Option<usize>,
    elems: u64,
    groups: u64,
    source_bytes: u64,
    stored_bytes: u64,
    scale_bytes: u64,
    bits_per_weight: Option<f64>,
    mean_rel_mse: Option<f64>,
    p50_rel_mse: Option<f32>,
    p90_rel_mse: Option<f32>,
    p99_rel_mse: Option<f32>,
    p999_rel_mse: Option<f32>,
    max_rel_mse: Option<f32>,
    mean_cosine: Option<f64>,
    sqnr_db: Option<f64>,
    exact_mean_rel_mse: Option<f64>,
    exact_max_rel_mse: Option<f32>,
    exact_mean_cosine: Option<f64>,
    exact_sqnr_db: Option<f64>,
    scale_format_cost_percent: Option<f64>,
    clipped_weights: Option<u64>,
    under_window_scales: Option<u64>,
    zero_groups: Option<u64>,
    output_error_rounded: Option<f64>,
    output_error_stored: Option<f64>,
    output_is_rounded: Option<bool>,
}

impl<'a> Row<'a> {
    fn of(t: &'a TensorReport) -> Self {
        let errors = t.errors.as_ref();
        let stored = errors.map(|e| &e.stored);
        let exact = errors.map(|e| &e.exact);
        Row {
            name: plain_cell(&t.name),
            layer: t.layer,
            projection: &t.projection,
            shape: times(&t.shape),
            source_dtype: &t.source_dtype,
            scheme: &t.scheme,
            scale_format: t.scale_format.as_deref(),
            scale_rule: t.scale_rule.as_deref(),
            scale_bias: t.scale_bias,
            group_elems: t.group_elems,
            elems: t.elems,
            groups: t.groups,
            source_bytes: t.source_bytes,
            stored_bytes: t.stored_bytes,
            scale_bytes: t.scale_bytes,
            bits_per_weight: t.bits_per_weight,
            mean_rel_mse: stored.map(|s| s.mean_rel_mse),
            p50_rel_mse: stored.map(|s| s.p50_rel_mse),
            p90_rel_mse: stored.map(|s| s.p90_rel_mse),
            p99_rel_mse: stored.map(|s| s.p99_rel_mse),
            p999_rel_mse: stored.map(|s| s.p999_rel_mse),
            max_rel_mse: stored.map(|s| s.max_rel_mse),
            mean_cosine: stored.map(|s| s.mean_cosine),
            sqnr_db: stored.and_then(|s| s.sqnr_db),
            exact_mean_rel_mse: exact.map(|s| s.mean_rel_mse),
            exact_max_rel_mse: exact.map(|s| s.max_rel_mse),
            exact_mean_cosine: exact.map(|s| s.mean_cosine),
            exact_sqnr_db: exact.and_then(|s| s.sqnr_db),
            scale_format_cost_percent: errors.and_then(|e| e.scale_format_cost_percent),
            clipped_weights: errors.map(|e| e.clipped_weights),
            under_window_scales: errors.map(|e| e.under_window_scales),
            zero_groups: errors.map(|e| e.zero_groups),
            output_error_rounded: t.output_error.map(|o| o.rounded),
            output_error_stored: t.output_error.map(|o| o.stored),
            output_is_rounded: t.output_error.map(|o| o.is_rounded),
        }
    }
}

/// A header line and a row for each tensor, in the order given.
///
/// # Errors
/// None that a tensor can cause; the CSV writer's are passed on.
pub fn csv(tensors: &[&TensorReport]) -> Result<Vec<u8>, InspectError> {
    let mut writer = ::csv::Writer::from_writer(Vec::new());
    for t in tensors {
        writer.serialize(Row::of(t))?;
    }
    writer
        .into_inner()
        .map_err(|e| InspectError::Csv(e.into_error().into()))
}
