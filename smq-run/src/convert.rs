//! Files made on the way, for whatever compares several of them: the demo, the suite,
//! sensitivities.

use std::path::Path;

use smq_convert::inspect::Report;
use smq_convert::{
    Checkpoint, ConvertOptions, Method, QuantizeOptions, ScaleChoice, ScaleRule, Target, convert,
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
    let options = ConvertOptions {
        target: target.clone(),
        quantize: method,
        overwrite: true,
        jobs: 0,
    };
    convert(checkpoint, path, &options, &|_| true)?;
    Ok(())
}

/// What `smq-inspect` says of a file.
pub(crate) fn report(path: &Path) -> anyhow::Result<Report> {
    Ok(Report::of(&SmqFile::open(path)?))
}
