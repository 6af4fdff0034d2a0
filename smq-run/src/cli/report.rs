//! `smq-run report`: tables, plots and findings of what was measured.

use std::path::PathBuf;

use clap::Args;

use crate::study::contract::DEFAULT_PATH;
use crate::study::report;
use smq_convert::cli::{after_work, show};

#[derive(Debug, Args)]
pub(super) struct ReportArgs {
    /// The results directory of `smq-run matrix`
    results: PathBuf,
    /// The file that registered what was measured; without one at the default path, the copy of it
    /// that the program has
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
    config: PathBuf,
}

pub(super) fn run(args: &ReportArgs) -> anyhow::Result<()> {
    let written = report::write(&args.results, &args.config)?;
    after_work(show(&format!("{}\n", written.display())))
}
