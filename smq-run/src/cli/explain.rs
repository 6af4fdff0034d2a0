//! How a figure of `smq-run eval` was taken: a line, or with `--explain` all of it.

use std::io::Write;

use clap::Args;

#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    /// Say in full how the figures are taken
    #[arg(long)]
    explain: bool,
}

impl ExplainArgs {
    /// Prints one of the two.
    pub(super) fn print(
        &self,
        out: &mut impl Write,
        in_short: &str,
        in_full: &str,
    ) -> std::io::Result<()> {
        match self.explain {
            true => writeln!(out, "protocol: {in_full}"),
            false => writeln!(out, "protocol: {in_short}; --explain says it in full"),
        }
    }
}
