//! `smq-convert`: a safetensors checkpoint in, a .smq file out.

use std::process::ExitCode;

fn main() -> ExitCode {
    smq_convert::cli::prepare();
    smq_convert::cli::exit(smq_convert::cli::run().map(|()| ExitCode::SUCCESS))
}
