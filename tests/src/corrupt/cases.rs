//! The list of cases.

mod calibrated;
mod contents;
mod header;
mod index;
mod levels;

use std::error::Error;

use super::{Case, Sample};

type Made = Result<Vec<u8>, Box<dyn Error>>;
type Add<'a> = &'a mut dyn FnMut(&str, Made) -> Result<(), Box<dyn Error>>;

/// Every case, made from `sample`.
///
/// # Errors
/// A case that cannot be made: the sample no longer has what the case is about.
pub fn cases(sample: &Sample) -> Result<Vec<Case>, Box<dyn Error>> {
    let mut cases = Vec::new();
    let mut add = |name: &str, made: Made| -> Result<(), Box<dyn Error>> {
        let bytes = made.map_err(|e| format!("{name}: {e}"))?;
        cases.push(Case {
            name: name.to_owned(),
            bytes,
        });
        Ok(())
    };
    header::whole_file(sample, &mut add)?;
    header::header(sample, &mut add)?;
    index::index_form(sample, &mut add)?;
    index::index_types(sample, &mut add)?;
    index::names(sample, &mut add)?;
    index::schemes(sample, &mut add)?;
    levels::code_books(sample, &mut add)?;
    contents::layout(sample, &mut add)?;
    contents::blobs(sample, &mut add)?;
    contents::statistics(sample, &mut add)?;
    Ok(cases)
}

/// Every `from` replaced by `to`.
fn replace_all(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = bytes;
    while let Some((&first, tail)) = rest.split_first() {
        if let Some(after) = rest.strip_prefix(from) {
            out.extend(to);
            rest = after;
        } else {
            out.push(first);
            rest = tail;
        }
    }
    out
}
