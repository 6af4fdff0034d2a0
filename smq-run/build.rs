//! Tells the program which commit it is built from: `SMQ_COMMIT` if that is set, else git's, else
//! `unknown`.

use std::process::Command;

/// What decides how the program behaves; results are not part of it.
const SOURCES: [&str; 8] = [
    "smq-format/src",
    "smq-model/src",
    "smq-engine/src",
    "smq-convert/src",
    "smq-run/src",
    "smq-run/build.rs",
    "kernels",
    "Cargo.lock",
];

fn main() {
    println!("cargo:rerun-if-env-changed=SMQ_COMMIT");
    for path in SOURCES {
        println!("cargo:rerun-if-changed=../{path}");
    }
    // Changes with every commit and checkout.
    for name in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&["rev-parse", "--path-format=absolute", "--git-path", name])
            && std::path::Path::new(&path).exists()
        {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    let named = std::env::var("SMQ_COMMIT").ok().filter(|c| !c.is_empty());
    let commit = named.or_else(from_git).unwrap_or("unknown".to_owned());
    println!("cargo:rustc-env=SMQ_COMMIT={commit}");
}

/// The checked-out commit, `-dirty` where the sources differ from it.
fn from_git() -> Option<String> {
    // A copy of the sources inside another repository is not that repository's commit.
    git(&["ls-files", "--error-unmatch", "build.rs"])?;
    let commit = git(&["rev-parse", "HEAD"])?;
    let mut args = vec!["-C", "..", "status", "--porcelain", "--"];
    args.extend(SOURCES);
    let clean = git(&args)?.is_empty();
    Some(if clean { commit } else { commit + "-dirty" })
}

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
