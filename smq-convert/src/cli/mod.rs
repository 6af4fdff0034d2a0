//! What the command lines share.

mod auto;
mod convert;
mod export;
mod progress;
mod summary;
mod synth;
mod words;

use std::process::ExitCode;

pub use convert::run;
pub(crate) use progress::progress_bar;
pub use words::scale_rule;

/// Prints an error and ends with 1, or ends with what the program says.
pub fn exit(result: anyhow::Result<ExitCode>) -> ExitCode {
    exit_with(result, ExitCode::FAILURE)
}

/// As [`exit`], with another code for errors.
pub fn exit_with(result: anyhow::Result<ExitCode>, error_code: ExitCode) -> ExitCode {
    match result {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", sentence(&error));
            error_code
        }
    }
}

/// Tells what was taken and what was left, where there was a choice.
pub fn print_notes(notes: &[String]) {
    for note in notes {
        eprintln!("note: {note}");
    }
}

/// An error and its causes, without those that the text before already gives.
fn sentence(error: &anyhow::Error) -> String {
    let mut out = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !out.contains(&cause) {
            out = format!("{out}: {cause}");
        }
    }
    out
}

/// Whether the reader of our output went away (`| head`), which is no failure of ours.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_cause_is_said_once() {
        let io = std::io::Error::other("no space left");
        let wrapped = anyhow::Error::from(io).context("out.smq: cannot write it: no space left");
        let error = wrapped.context("while converting");
        assert_eq!(
            super::sentence(&error),
            "while converting: out.smq: cannot write it: no space left"
        );
    }
}
