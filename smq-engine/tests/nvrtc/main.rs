//! Compiles every kernel for an H100, and those that use nothing newer for older GPUs. Needs NVRTC
//! but no GPU; where it is absent the tests count as ignored.
//!
//! Each prints the BLAKE3 of its machine code, so that two versions of the kernels can be compared
//! (kernels/README.md).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use smq_engine::cuda::BLOCK_SHARED_BYTES;
use smq_engine::cuda::compile::{compile, compile_text, compile_uncached, files, nvrtc_version};

mod families;
mod variants;

use variants::{Variant, kernel_variants};

const ARCH: &str = "sm_90a";
/// Files that use nothing newer compile for these too.
const OLDER: [&str; 2] = ["sm_80", "sm_89"];
const PORTABLE: [&str; 3] = ["dequantize.cu", "measure.cu", "rows.cu"];

fn main() -> ExitCode {
    let args = Arguments::from_args();
    let absent = nvrtc_version().err().map(|why| Arc::from(why.to_string()));
    if !args.list {
        match &absent {
            None => println!("compiling for {ARCH}"),
            Some(why) => println!("kernels are not compiled: {why}"),
        }
    }
    let with_nvrtc = |name: String, test: Box<dyn FnOnce() -> Result<(), Failed> + Send>| {
        let absent: Option<Arc<str>> = absent.clone();
        Trial::ignorable_test(name, move || match absent {
            None => test().map(|()| Completion::Completed),
            Some(_) => Ok(Completion::ignored_with("no NVRTC")),
        })
    };
    let mut trials = vec![
        Trial::test("every_file_has_a_variant", every_file_has_a_variant),
        with_nvrtc(
            "errors_carry_the_log".into(),
            Box::new(errors_carry_the_log),
        ),
        with_nvrtc(
            "an_old_device_is_refused".into(),
            Box::new(an_old_device_is_refused),
        ),
    ];
    for variant in kernel_variants() {
        let older = OLDER
            .into_iter()
            .filter(|_| PORTABLE.contains(&variant.file));
        for arch in older.chain([ARCH]) {
            let (name, v) = (
                format!("{} {} {arch}", variant.file, variant.name),
                variant.clone(),
            );
            trials.push(with_nvrtc(
                name.clone(),
                Box::new(move || compiles(&name, arch, &v)),
            ));
        }
    }
    libtest_mimic::run(&args, trials).exit_code()
}

/// Within the shared memory of a block, without warnings, nor ptxas's notes on wgmma (C7510 and on:
/// waits it had to add, products it runs one by one); prints what ptxas tells.
fn compiles(name: &str, arch: &str, variant: &Variant) -> Result<(), Failed> {
    let verbose = ["--ptxas-options=-v"];
    let compiled = compile_uncached(arch, variant.file, &variant.defines, &verbose)?;
    if !compiled.cubin.starts_with(b"\x7fELF") {
        return Err("the machine code is not a cubin".into());
    }
    let hash = blake3::hash(&compiled.cubin).to_hex();
    let mut lines = vec![format!("cubin {} {name}", &hash[..32])];
    lines.extend(resources(&compiled.log));
    println!("{}", lines.join("\n"));
    let dynamic = variant.defines.iter().find(|d| d.0 == "DYNAMIC_SHARED");
    let dynamic = dynamic.map_or(0, |d| d.1);
    let fixed = static_shared(&compiled.log);
    if fixed + dynamic > BLOCK_SHARED_BYTES as i64 {
        let message = format!(
            "a block takes {fixed} static and {dynamic} dynamic bytes of shared memory, and has {BLOCK_SHARED_BYTES}"
        );
        return Err(message.into());
    }
    match compiled.log.contains("warning") || compiled.log.contains("(C75") {
        true => Err(Failed::from(compiled.log)),
        false => Ok(()),
    }
}

/// Bytes of static shared memory of the kernel that has most.
fn static_shared(log: &str) -> i64 {
    let used = log.lines().filter_map(|l| l.split_once("Used "));
    let bytes = used.map(|(_, used)| {
        let shared = used.split(", ").find_map(|u| u.strip_suffix(" bytes smem"));
        shared.map_or(0, |bytes| bytes.parse().unwrap())
    });
    bytes.max().unwrap()
}

/// Registers, shared memory and spills of each kernel.
fn resources(log: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let (mut kernel, mut spills) = ("", "");
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            kernel = rest.split('\'').next().unwrap_or("");
        } else if let Some((_, rest)) = line.split_once("bytes stack frame, ") {
            spills = rest;
        } else if let Some((_, used)) = line.split_once("Used ") {
            lines.push(format!("  {kernel}: {used}, {spills}"));
        }
    }
    lines
}

fn every_file_has_a_variant() -> Result<(), Failed> {
    let variants = kernel_variants();
    let missing: Vec<_> = files()
        .filter(|&f| variants.iter().all(|v| v.file != f))
        .collect();
    match missing[..] {
        [] => Ok(()),
        _ => Err(format!("no variant compiles {missing:?}").into()),
    }
}

fn errors_carry_the_log() -> Result<(), Failed> {
    match compile_text(ARCH, "broken.cu", "__global__ void f() { x; }", &[]) {
        Err(e) if e.to_string().contains("identifier \"x\" is undefined") => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}

fn an_old_device_is_refused() -> Result<(), Failed> {
    match files().next().map(|file| compile("sm_10", file, &[])) {
        Some(Err(e)) if e.to_string().contains("sm_10") => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}
