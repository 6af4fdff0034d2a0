//! Files made on the way, for whatever compares several of them: the demo, the suite,
//! sensitivities.

use std::path::Path;

use smq_convert::inspect::Report;
use smq_convert::{
    CalibrateOptions, Checkpoint, ConvertOptions, Method, QuantizeOptions, ScaleChoice, ScaleRule,
    Target, convert, convert_calibrated,
};
use smq_format::SmqFile;

/// Columns that share a scale.
pub(crate) const GROUP: usize = 128;

/// int4 in groups of `group`.
pub(crate) fn int4(scales: ScaleChoice, rule: ScaleRule, group: usize) -> Method {
    Method::Int4(QuantizeOptions {
        group,
        scales,
        rule,
    })
}

/// Converts into `path`, replacing it.
pub(crate) fn convert_to(
    checkpoint: &Checkpoint,
    path: &Path,
    target: &Target,
    method: Method,
) -> anyhow::Result<()> {
    convert(checkpoint, path, &options(target, method), &|_| true)?;
    Ok(())
}

/// Converts into `path` as [`convert_to`] does, with scales and codes chosen on texts.
pub(crate) fn convert_calibrated_to(
    checkpoint: &Checkpoint,
    path: &Path,
    target: &Target,
    method: Method,
    texts: &CalibrateOptions,
) -> anyhow::Result<()> {
    let options = options(target, method);
    convert_calibrated(checkpoint, path, &options, texts, &|_, _| true, &|_| true)?;
    Ok(())
}

fn options(target: &Target, method: Method) -> ConvertOptions {
    ConvertOptions {
        target: target.clone(),
        quantize: method,
        overwrite: true,
        jobs: 0,
    }
}

/// What `smq-inspect` says of a file.
pub(crate) fn report(path: &Path) -> anyhow::Result<Report> {
    Ok(Report::of(&SmqFile::open(path)?))
}
