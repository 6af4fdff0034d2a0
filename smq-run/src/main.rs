//! The program `smq-run`: reads its command line and says what went wrong.

use std::path::Path;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use smq_convert::cli::explain_json;
use smq_run::{Cli, is_broken_pipe, run};

fn main() -> ExitCode {
    smq_convert::cli::prepare();
    let cli = Cli::read().unwrap_or_else(|error| match model_for_command(&error) {
        Some(hint) => Cli::interface().error(error.kind(), hint).exit(),
        None => explain_json(error).exit(),
    });
    match run(&cli) {
        // Whoever read our output has seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        // Says each cause once.
        other => smq_convert::cli::exit(other.map(|()| ExitCode::SUCCESS)),
    }
}

/// What to say to somebody who gave a model where a command belongs.
fn model_for_command(error: &clap::Error) -> Option<String> {
    if error.kind() != ErrorKind::InvalidSubcommand {
        return None;
    }
    let Some(ContextValue::String(given)) = error.get(ContextKind::InvalidSubcommand) else {
        return None;
    };
    Path::new(given).exists().then(|| {
        format!(
            "{given} is a file or directory, and a command comes first: smq-run chat {given} talks \
             with it, smq-run generate {given} continues a prompt, smq-run serve {given} answers \
             HTTP clients"
        )
    })
}
