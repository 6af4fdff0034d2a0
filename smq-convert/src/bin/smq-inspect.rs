//! `smq-inspect`: what a .smq file holds, and what quantization did to it.

use std::process::ExitCode;

fn main() -> ExitCode {
    smq_convert::cli::prepare();
    smq_convert::cli::run_inspect()
}
