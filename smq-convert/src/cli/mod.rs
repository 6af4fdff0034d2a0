//! What the command lines share.

mod auto;
mod convert;
mod export;
mod inspect;
mod json;
mod preset;
mod progress;
mod signals;
mod summary;
mod synth;
mod task;
mod vllm;
mod words;

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use smq_format::printable;

use crate::error::ConvertError;

pub use convert::{convert_interface, run};
pub use inspect::{inspect_interface, run_inspect};
pub use json::{JsonArgs, explain_json};
pub(crate) use progress::progress_bar;
pub use signals::{Interruptible, interrupts, prepare};
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
            tell(&format!("error: {}", sentence(&error)));
            match is_interrupt(&error) {
                true => ExitCode::from(signals::INTERRUPTED_CODE),
                false => error_code,
            }
        }
    }
}

/// Tells what was taken and what was left, where there was a choice.
pub fn print_notes(notes: &[String]) {
    for note in notes {
        print_note(note);
    }
}

/// Tells one such thing.
pub fn print_note(note: &str) {
    tell(&format!("note: {note}"));
}

/// Writes a line to standard error, where all that programs say beside their results goes. Much of
/// it is from files, so nothing in it reaches a terminal that is not text ([`printable`]). That it
/// cannot be written is no reason to stop: there is nowhere left to say so.
pub fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "{}", printable(line));
}

/// Standard output for what people read, in which nothing from a file is more than text, either.
pub fn stdout() -> impl Write {
    Printable(std::io::stdout().lock())
}

struct Printable<W>(W);

impl<W: Write> Write for Printable<W> {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        // Formatting writes whole characters.
        let shown = String::from_utf8_lossy(text);
        self.0.write_all(printable(&shown).as_bytes())?;
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

/// Writes to [`stdout`].
///
/// # Errors
/// What cannot be written, as where a disk is full.
pub fn show(text: &str) -> anyhow::Result<()> {
    let mut out = stdout();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .context("cannot write to standard output")
}

/// What printing the summary of finished work came to, which is no failure of the work: its file is
/// there, whole.
pub fn after_work(printed: anyhow::Result<()>) -> anyhow::Result<()> {
    match printed {
        Err(error) if !is_broken_pipe(&error) => {
            print_note(&format!(
                "the file is written; only the summary is not: {}",
                sentence(&error)
            ));
            Ok(())
        }
        printed => printed,
    }
}

fn is_interrupt(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let convert = cause.downcast_ref::<ConvertError>();
        convert.is_some_and(|e| matches!(e, ConvertError::Interrupted))
    })
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
