//! Options of running a model, where a command has no use for them: they are not in its help, and
//! refused where they are given.

use anyhow::bail;
use clap::{Arg, Command as Clap, CommandFactory, FromArgMatches};

use super::{Cli, Command, EvalCommand, Global};

/// Names of the options that all commands share.
const DEVICE: &str = "device";
const CONTEXT: &str = "context";
const KV_CACHE: &str = "kv_cache";
const THREADS: &str = "threads";
const VERIFY: &str = "verify";

impl Cli {
    /// The command line, each command with the options that it obeys.
    #[must_use]
    pub fn interface() -> Clap {
        let shared: Vec<Arg> = Self::command().get_arguments().cloned().collect();
        let hide = |command: Clap, unused: &[&str]| {
            let hidden = shared
                .iter()
                .filter(|arg| unused.contains(&arg.get_id().as_str()));
            // A command's own option goes before the shared one of its name; its value is found
            // where that one's would be.
            command.args(hidden.cloned().map(|arg| arg.global(false).hide(true)))
        };
        let mut whole = Self::command();
        let names: Vec<String> = whole
            .get_subcommands()
            .map(|c| c.get_name().to_owned())
            .collect();
        for name in &names {
            whole = whole.mut_subcommand(name, |command| match name.as_str() {
                "eval" => {
                    let nested: Vec<_> = command
                        .get_subcommands()
                        .map(|c| c.get_name().to_owned())
                        .collect();
                    nested.iter().fold(command, |command, name| {
                        command.mut_subcommand(name, |c| hide(c, unused(name)))
                    })
                }
                name => hide(command, unused(name)),
            });
        }
        whole
    }

    /// What the program was started with.
    ///
    /// # Errors
    /// What clap says of it.
    pub fn read() -> Result<Self, clap::Error> {
        Self::from_arg_matches(&Self::interface().try_get_matches()?)
    }
}

/// The shared options that a command ignores.
fn unused(command: &str) -> &'static [&'static str] {
    match command {
        // They run no model.
        "load" | "report" | "manual" => &[DEVICE, CONTEXT, KV_CACHE, THREADS, VERIFY],
        // Its shapes are given, and it runs on a GPU or compiles for one.
        "kernels" => &[DEVICE, KV_CACHE, VERIFY],
        // They make the files that they run, as long as the workloads are, and the study's cache is
        // the device's own.
        "matrix" | "demo" => &[CONTEXT, KV_CACHE, VERIFY],
        "cells" => &[KV_CACHE],
        // A checkpoint directory has no hashes, and weights alone are compared.
        "suite" | "sensitivity" => &[KV_CACHE, VERIFY],
        _ => &[],
    }
}

/// Refuses a shared option that the command would ignore.
///
/// # Errors
/// The first such option.
pub(super) fn refuse(cli: &Cli) -> anyhow::Result<()> {
    let name = match &cli.command {
        Command::Load(_) => "load",
        Command::Report(_) => "report",
        Command::Manual(_) => "manual",
        Command::Kernels(_) => "kernels",
        Command::Matrix(_) => "matrix",
        Command::Demo(_) => "demo",
        Command::Cells(_) => "cells",
        Command::Eval(EvalCommand::Suite(_)) => "suite",
        Command::Eval(EvalCommand::Sensitivity(_)) => "sensitivity",
        Command::Generate(_)
        | Command::Chat(_)
        | Command::Bench(_)
        | Command::Eval(_)
        | Command::Serve(_) => return Ok(()),
    };
    let Global {
        device,
        context,
        kv_cache,
        threads,
        verify,
    } = &cli.global;
    let given = [
        (DEVICE, device.is_some()),
        (CONTEXT, context.is_some()),
        (KV_CACHE, kv_cache.is_some()),
        (THREADS, threads.is_some()),
        (VERIFY, *verify),
    ];
    match given
        .iter()
        .find(|(option, given)| *given && unused(name).contains(option))
    {
        Some((option, _)) => bail!(
            "--{} has no effect on {name}; leave it out",
            option.replace('_', "-")
        ),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interface_is_sound_and_hides_what_is_ignored() {
        let mut whole = Cli::interface();
        whole.build();
        whole.clone().debug_assert();
        let help = |path: &[&str]| {
            let found = path
                .iter()
                .fold(&whole, |c, name| c.find_subcommand(name).unwrap());
            found.clone().render_long_help().to_string()
        };
        assert!(!help(&["report"]).contains("--device"));
        assert!(!help(&["eval", "suite"]).contains("--verify"));
        assert!(help(&["eval", "suite"]).contains("--device"));
        assert!(help(&["generate"]).contains("--context"));
    }

    #[test]
    fn what_is_ignored_is_refused_wherever_it_stands() {
        let refusal = |line: &str| {
            let matches = Cli::interface()
                .try_get_matches_from(line.split(' '))
                .unwrap();
            refuse(&Cli::from_arg_matches(&matches).unwrap())
                .err()
                .map(|e| e.to_string())
        };
        let expected = Some("--device has no effect on report; leave it out".to_owned());
        assert_eq!(refusal("smq-run report x --device cpu"), expected);
        assert_eq!(refusal("smq-run --device cpu report x"), expected);
        assert_eq!(refusal("smq-run report x"), None);
        let suite = "smq-run --device cpu eval suite m --data d --out o";
        assert_eq!(refusal(suite), None);
        assert!(refusal(&format!("{suite} --verify")).is_some());
        let expected = Some("--kv-cache has no effect on suite; leave it out".to_owned());
        assert_eq!(refusal(&format!("{suite} --kv-cache fp8")), expected);
        assert_eq!(refusal("smq-run bench m --kv-cache fp8"), None);
    }
}
