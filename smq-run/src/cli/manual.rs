//! `smq-run manual`: man pages and shell completions, made of the command lines themselves.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Command};
use clap_complete::{Shell, generate_to};
use smq_convert::cli::{after_work, convert_interface, inspect_interface, show};

use super::Cli;

const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

#[derive(Debug, Args)]
pub(super) struct ManualArgs {
    /// Where they go: man/man1, bash, zsh and fish below it
    #[arg(value_name = "DIR")]
    out: PathBuf,
}

pub(super) fn run(args: &ManualArgs) -> anyhow::Result<()> {
    let pages = args.out.join("man/man1");
    create(&pages)?;
    for program in programs() {
        let fail = |path: &Path| format!("cannot write into {}", path.display());
        clap_mangen::generate_to(program.clone(), &pages).with_context(|| fail(&pages))?;
        for shell in SHELLS {
            let dir = args.out.join(shell.to_string());
            create(&dir)?;
            let name = program.get_name().to_owned();
            generate_to(shell, &mut program.clone(), name, &dir).with_context(|| fail(&dir))?;
        }
    }
    let out = args.out.display();
    after_work(show(&format!(
        "{out}: man pages in man/man1 (man -M {out}/man smq-run), completions in bash, zsh and \
         fish\n"
    )))
}

/// The three programs, without what only they start.
fn programs() -> [Command; 3] {
    let run = Cli::interface().mut_subcommand("cells", |cells| cells.hide(true));
    [convert_interface(), inspect_interface(), run]
}

fn create(dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_has_a_page_and_completions() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("manual");
        run(&ManualArgs { out: out.clone() }).unwrap();
        let read = |name: &str| fs::read_to_string(out.join(name)).unwrap();
        assert!(read("man/man1/smq-convert.1").contains("preset"));
        assert!(read("man/man1/smq-inspect-diff.1").contains("differs"));
        assert!(read("man/man1/smq-run-chat.1").contains("system"));
        assert!(!read("man/man1/smq-run-report.1").contains("device"));
        assert!(read("bash/smq-convert.bash").contains("--calibrate"));
        assert!(read("zsh/_smq-run").contains("generate"));
        assert!(read("fish/smq-inspect.fish").contains("verify"));
    }
}
