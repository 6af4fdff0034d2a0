//! From kernel source to machine code: the sources are embedded, NVRTC compiles them for the device
//! at hand, and [`cache`] keeps the result. Works where there is no GPU.

use std::collections::BTreeMap;
use std::ffi::{CString, c_char};
use std::ptr;

use cudarc::nvrtc::sys::{self as nvrtc, nvrtcProgram, nvrtcResult};

use super::cache;
use super::contract::common_defines;
use super::libraries::NVRTC;
use crate::error::{Error, Result};

/// Every kernel file by name.
const SOURCES: &[(&str, &str)] = &[
    (
        "attention_prefill.cu",
        include_str!("../../../kernels/attention_prefill.cu"),
    ),
    (
        "attention_single.cu",
        include_str!("../../../kernels/attention_single.cu"),
    ),
    (
        "calibrate.cu",
        include_str!("../../../kernels/calibrate.cu"),
    ),
    ("choose.cu", include_str!("../../../kernels/choose.cu")),
    ("decode.cu", include_str!("../../../kernels/decode.cu")),
    (
        "dequantize.cu",
        include_str!("../../../kernels/dequantize.cu"),
    ),
    ("fp8.cu", include_str!("../../../kernels/fp8.cu")),
    (
        "gemm_bf16.cu",
        include_str!("../../../kernels/gemm_bf16.cu"),
    ),
    (
        "gemm_int4.cu",
        include_str!("../../../kernels/gemm_int4.cu"),
    ),
    ("kv_cache.cu", include_str!("../../../kernels/kv_cache.cu")),
    ("leave.cu", include_str!("../../../kernels/leave.cu")),
    ("logits.cu", include_str!("../../../kernels/logits.cu")),
    ("measure.cu", include_str!("../../../kernels/measure.cu")),
    ("rope.cu", include_str!("../../../kernels/rope.cu")),
    ("rows.cu", include_str!("../../../kernels/rows.cu")),
    (
        "swiglu_bf16.cu",
        include_str!("../../../kernels/swiglu_bf16.cu"),
    ),
];

/// What kernel files include.
const HEADERS: &[(&str, &str)] = &[
    (
        "attention.cuh",
        include_str!("../../../kernels/attention.cuh"),
    ),
    (
        "attention_codes.cuh",
        include_str!("../../../kernels/attention_codes.cuh"),
    ),
    (
        "attention_single_outputs.cuh",
        include_str!("../../../kernels/attention_single_outputs.cuh"),
    ),
    ("best.cuh", include_str!("../../../kernels/best.cuh")),
    ("common.cuh", include_str!("../../../kernels/common.cuh")),
    (
        "decode_attend.cuh",
        include_str!("../../../kernels/decode_attend.cuh"),
    ),
    (
        "decode_attend_many.cuh",
        include_str!("../../../kernels/decode_attend_many.cuh"),
    ),
    (
        "decode_attention.cuh",
        include_str!("../../../kernels/decode_attention.cuh"),
    ),
    (
        "decode_bf16.cuh",
        include_str!("../../../kernels/decode_bf16.cuh"),
    ),
    (
        "decode_choose.cuh",
        include_str!("../../../kernels/decode_choose.cuh"),
    ),
    (
        "decode_fp8.cuh",
        include_str!("../../../kernels/decode_fp8.cuh"),
    ),
    (
        "decode_input.cuh",
        include_str!("../../../kernels/decode_input.cuh"),
    ),
    (
        "decode_int4.cuh",
        include_str!("../../../kernels/decode_int4.cuh"),
    ),
    (
        "decode_kinds.cuh",
        include_str!("../../../kernels/decode_kinds.cuh"),
    ),
    (
        "decode_lut4.cuh",
        include_str!("../../../kernels/decode_lut4.cuh"),
    ),
    (
        "decode_norm_heads.cuh",
        include_str!("../../../kernels/decode_norm_heads.cuh"),
    ),
    (
        "decode_nf4.cuh",
        include_str!("../../../kernels/decode_nf4.cuh"),
    ),
    (
        "decode_product.cuh",
        include_str!("../../../kernels/decode_product.cuh"),
    ),
    (
        "gemm_int4_layout.cuh",
        include_str!("../../../kernels/gemm_int4_layout.cuh"),
    ),
    (
        "gemm_int4_outputs.cuh",
        include_str!("../../../kernels/gemm_int4_outputs.cuh"),
    ),
    (
        "gemm_int4_weights.cuh",
        include_str!("../../../kernels/gemm_int4_weights.cuh"),
    ),
    (
        "gemm_lut4_weights.cuh",
        include_str!("../../../kernels/gemm_lut4_weights.cuh"),
    ),
    (
        "gemm_nf4_weights.cuh",
        include_str!("../../../kernels/gemm_nf4_weights.cuh"),
    ),
    (
        "head_part.cuh",
        include_str!("../../../kernels/head_part.cuh"),
    ),
    (
        "kv_codes.cuh",
        include_str!("../../../kernels/kv_codes.cuh"),
    ),
    ("nf4.cuh", include_str!("../../../kernels/nf4.cuh")),
    ("rotate.cuh", include_str!("../../../kernels/rotate.cuh")),
    ("wgmma.cuh", include_str!("../../../kernels/wgmma.cuh")),
    (
        "wgmma_bf16.cuh",
        include_str!("../../../kernels/wgmma_bf16.cuh"),
    ),
];

/// Names of the embedded kernel files.
pub fn files() -> impl Iterator<Item = &'static str> {
    SOURCES.iter().map(|&(name, _)| name)
}

/// BLAKE3 of each embedded file, headers too, in hex.
#[must_use]
pub fn hashes() -> BTreeMap<String, String> {
    let hash = |text: &str| blake3::hash(text.as_bytes()).to_hex().to_string();
    let all = SOURCES.iter().chain(HEADERS);
    all.map(|&(name, text)| (name.to_owned(), hash(text)))
        .collect()
}

/// Machine code and what the compiler said.
#[derive(Debug)]
pub struct Compiled {
    /// A cubin.
    pub cubin: Vec<u8>,
    /// Warnings, and what verbose options print.
    pub log: String,
}

/// Machine code of kernel file `file` for `arch` (`sm_90a`), from the cache if it is there.
///
/// # Errors
/// [`Error::Cuda`] if there is no such file, NVRTC is not installed, or it refuses the source: then
/// with its log.
pub fn compile(arch: &str, file: &str, defines: &[(&str, i64)]) -> Result<Vec<u8>> {
    compile_text(arch, file, source(file)?, defines)
}

/// As [`compile`], of a source that is not embedded.
///
/// # Errors
/// As [`compile`].
pub fn compile_text(
    arch: &str,
    file: &str,
    source: &str,
    defines: &[(&str, i64)],
) -> Result<Vec<u8>> {
    let (major, minor) = nvrtc_version()?;
    let version = format!("nvrtc {major}.{minor}");
    let options = options(arch, defines);
    let mut parts = vec![version.as_str(), file, source];
    parts.extend(HEADERS.iter().flat_map(|&(name, text)| [name, text]));
    parts.extend(options.iter().map(String::as_str));
    cache::get_or_make(cache::directory().as_deref(), &parts, || {
        Ok(compile_source(file, source, &options)?.cubin)
    })
}

/// Compiles anew, whatever is cached, with further options to NVRTC.
///
/// # Errors
/// As [`compile`].
pub fn compile_uncached(
    arch: &str,
    file: &str,
    defines: &[(&str, i64)],
    extra: &[&str],
) -> Result<Compiled> {
    nvrtc_version()?;
    let mut options = options(arch, defines);
    options.extend(extra.iter().map(|&o| o.to_owned()));
    compile_source(file, source(file)?, &options)
}

/// NVRTC's version: major, minor.
///
/// # Errors
/// [`Error::Cuda`] with the remedy if NVRTC is not installed.
pub fn nvrtc_version() -> Result<(i32, i32)> {
    if !NVRTC.is_there() {
        return Err(Error::Cuda(
            "NVRTC (libnvrtc.so.13) was not found, which compiles the kernels; install the CUDA 13 toolkit, \
             or `pip install nvidia-cuda-nvrtc` and put its folder (nvidia/cu13/lib) on LD_LIBRARY_PATH, or \
             run with --device cpu"
                .into(),
        ));
    }
    let (mut major, mut minor) = (0, 0);
    // SAFETY: NVRTC is there, and both pointers take results.
    let result = unsafe { nvrtc::nvrtcVersion(&raw mut major, &raw mut minor) };
    check(result, "saying its version")?;
    Ok((major, minor))
}

fn source(file: &str) -> Result<&'static str> {
    let found = SOURCES.iter().find(|&&(name, _)| name == file);
    let unknown = || Error::Cuda(format!("there is no kernel file {file}"));
    found.map(|&(_, text)| text).ok_or_else(unknown)
}

fn options(arch: &str, defines: &[(&str, i64)]) -> Vec<String> {
    let mut options = vec![
        format!("--gpu-architecture={arch}"),
        "-std=c++17".into(),
        // Which helpers a file uses depends on its macros.
        "--diag-suppress=177".into(),
    ];
    let define = |(name, value): &(&str, i64)| format!("-D{name}={value}");
    options.extend(common_defines().iter().chain(defines).map(define));
    // For compute-sanitizer (kernels/README.md).
    if std::env::var_os("SMQ_SANITIZE").is_some() {
        options.push("-DSANITIZE=1".into());
    }
    options
}

/// A program being compiled; NVRTC frees it on drop.
struct Program(nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: the handle is alive and not used after this.
        let _ = unsafe { nvrtc::nvrtcDestroyProgram(&raw mut self.0) };
    }
}

impl Program {
    fn new(file: &str, source: &str) -> Result<Self> {
        let (source, file) = (c_string(source)?, c_string(file)?);
        let texts = strings(HEADERS.iter().map(|&(_, text)| text))?;
        let names = strings(HEADERS.iter().map(|&(name, _)| name))?;
        let (texts, names) = (pointers(&texts), pointers(&names));
        let mut program = Self(ptr::null_mut());
        // SAFETY: every string ends in a zero and lives through the call, which copies it; `texts`
        // and `names` are as long as said.
        let result = unsafe {
            nvrtc::nvrtcCreateProgram(
                &raw mut program.0,
                source.as_ptr(),
                file.as_ptr(),
                texts.len() as i32,
                texts.as_ptr(),
                names.as_ptr(),
            )
        };
        check(result, "taking a program")?;
        Ok(program)
    }

    fn compile(&self, options: &[String]) -> Result<nvrtcResult> {
        let options = strings(options.iter().map(String::as_str))?;
        let options = pointers(&options);
        // SAFETY: the program is alive, and so are the options, as many as said.
        Ok(unsafe { nvrtc::nvrtcCompileProgram(self.0, options.len() as i32, options.as_ptr()) })
    }

    fn log(&self) -> Result<String> {
        let what = "giving its log";
        let mut size = 0;
        // SAFETY: the program is alive, and `size` takes the result.
        let result = unsafe { nvrtc::nvrtcGetProgramLogSize(self.0, &raw mut size) };
        check(result, what)?;
        let mut log = vec![0_u8; size];
        // SAFETY: `log` has the size that NVRTC asked for.
        let result = unsafe { nvrtc::nvrtcGetProgramLog(self.0, log.as_mut_ptr().cast()) };
        check(result, what)?;
        let text = String::from_utf8_lossy(&log);
        Ok(text.trim_end_matches(['\0', '\n']).to_owned())
    }

    fn cubin(&self) -> Result<Vec<u8>> {
        let what = "giving machine code";
        let mut size = 0;
        // SAFETY: the program is alive, and `size` takes the result.
        let result = unsafe { nvrtc::nvrtcGetCUBINSize(self.0, &raw mut size) };
        check(result, what)?;
        let mut cubin = vec![0_u8; size];
        // SAFETY: `cubin` has the size that NVRTC asked for.
        let result = unsafe { nvrtc::nvrtcGetCUBIN(self.0, cubin.as_mut_ptr().cast()) };
        check(result, what)?;
        Ok(cubin)
    }
}

fn compile_source(file: &str, source: &str, options: &[String]) -> Result<Compiled> {
    let program = Program::new(file, source)?;
    let result = program.compile(options)?;
    let log = program.log()?;
    if result != nvrtcResult::NVRTC_SUCCESS {
        let options = options.join(" ");
        return Err(Error::Cuda(format!(
            "kernel file {file} does not compile with {options} ({result:?}):\n{log}"
        )));
    }
    let cubin = program.cubin()?;
    Ok(Compiled { cubin, log })
}

fn check(result: nvrtcResult, what: &str) -> Result<()> {
    match result {
        nvrtcResult::NVRTC_SUCCESS => Ok(()),
        error => Err(Error::Cuda(format!("NVRTC failed at {what} ({error:?})"))),
    }
}

fn c_string(s: &str) -> Result<CString> {
    CString::new(s)
        .map_err(|_| Error::Cuda("a kernel source or option has a zero byte in it".into()))
}

fn strings<'a>(list: impl Iterator<Item = &'a str>) -> Result<Vec<CString>> {
    list.map(c_string).collect()
}

fn pointers(list: &[CString]) -> Vec<*const c_char> {
    list.iter().map(|s| s.as_ptr()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_name_the_device_and_the_shapes() {
        let options = options("sm_90a", &[("HIDDEN", 3072), ("BIAS", -3)]);
        assert_eq!(
            options.join(" "),
            "--gpu-architecture=sm_90a -std=c++17 --diag-suppress=177 -DSCALES_MINI=0 -DSCALES_F16=1 -DSCALES_F32=2 \
             -DTAG_MASK=3 -DHIDDEN=3072 -DBIAS=-3"
        );
    }

    #[test]
    fn an_unknown_file_is_named() {
        let message = source("nothing.cu").unwrap_err().to_string();
        assert_eq!(message, "there is no kernel file nothing.cu");
    }

    #[test]
    fn nf4_tables_are_the_formats() {
        let (_, text) = HEADERS.iter().find(|h| h.0 == "nf4.cuh").unwrap();
        let words: Vec<u32> = text
            .split("0x")
            .skip(1)
            .map(|word| u32::from_str_radix(&word[..8], 16).unwrap())
            .collect();
        let values = smq_format::nf4::VALUES.iter();
        let values = values.chain(&smq_format::nf4::ABSMAX_VALUES);
        assert_eq!(words, values.map(|v| v.to_bits()).collect::<Vec<_>>());
    }

    #[test]
    fn every_include_is_embedded() {
        let has = |name: &str| HEADERS.iter().any(|&(header, _)| header == name);
        for (file, text) in SOURCES.iter().chain(HEADERS) {
            for line in text
                .lines()
                .filter_map(|l| l.trim().strip_prefix("#include"))
            {
                assert!(has(line.trim().trim_matches('"')), "{file} includes {line}");
            }
        }
    }
}
