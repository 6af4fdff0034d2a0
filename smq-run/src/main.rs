//! `smq-run`: generate, bench and evaluate with a .smq file or a checkpoint.

use std::process::ExitCode;

fn main() -> ExitCode {
    smq_convert::cli::exit(smq_run::cli::run())
}
