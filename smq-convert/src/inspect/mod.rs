//! What `smq-inspect` knows about a file: facts, error figures, and their text, JSON, CSV and HTML
//! forms.
//!
//! [`Report::of`] collects everything once from an open file, without touching the weights; every
//! output form reads that one structure.

mod collect;
mod detail;
mod diff;
mod error;
mod html;
mod number;
mod outputs;
mod overview;
mod recheck;
mod report;
mod rows;
mod sort;
mod table;
mod tensor_name;
#[cfg(test)]
mod tests;
mod verify;

pub use detail::tensor_detail;
pub use diff::{
    BlobCounts, Change, Counted, Diff, Fact, TensorDiff, WeightDiff, diff_bytes, diff_text,
};
pub use error::InspectError;
pub use html::{figure, write_page};
pub use outputs::output_table;
pub use overview::overview;
pub use recheck::{Difference, RecheckReport, recheck};
pub use report::{
    BlobReport, EmbeddedFileReport, ErrorReport, HeaderReport, OutputReport, OutputTotals,
    ProvenanceReport, ReceiptReport, Report, SchemeCount, SectionReport, SizeReport, SourceReport,
    StatisticsState, TensorErrors, TensorReport, Totals,
};
pub use rows::csv;
pub use sort::{Sort, sorted};
pub use table::error_table;
pub use tensor_name::{Place, place};
pub use verify::{Verified, byte_bar, verify};
