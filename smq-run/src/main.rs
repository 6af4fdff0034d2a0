//! The `smq-run` program.

use std::process::ExitCode;

use clap::Parser;
use smq_run::{Cli, is_broken_pipe, run};

fn main() -> ExitCode {
    smq_convert::cli::prepare();
    match run(&Cli::parse()) {
        // Whoever read our output has seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        // Says each cause once.
        other => smq_convert::cli::exit(other.map(|()| ExitCode::SUCCESS)),
    }
}
