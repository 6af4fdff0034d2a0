//! NVIDIA's libraries: each is opened once, and stays open as long as the process runs.
//!
//! cudarc asks whether a library is there by opening it and closing it again, and then opens it
//! anew. cuBLASLt alone takes 50 ms each time (on the host of an H200), so here it stays open from
//! the first time on, and what cudarc opens is there already.

use std::sync::OnceLock;
use std::thread;

use libloading::Library;

/// The driver's interface, by either of its names.
pub(super) static DRIVER: Shared = Shared::new(&["cuda", "nvcuda"]);
/// The compiler of kernels.
pub(super) static NVRTC: Shared = Shared::new(&["nvrtc"]);
/// Products of matrices.
pub(super) static CUBLASLT: Shared = Shared::new(&["cublasLt"]);
/// Factorizations, for calibration.
pub(super) static CUSOLVER: Shared = Shared::new(&["cusolver"]);

/// A library that is opened where it is first asked for.
#[derive(Debug)]
pub(super) struct Shared {
    names: &'static [&'static str],
    open: OnceLock<Option<Library>>,
}

impl Shared {
    const fn new(names: &'static [&'static str]) -> Self {
        let open = OnceLock::new();
        Self { names, open }
    }

    /// Whether it is there. Where another thread is opening it, this one waits.
    pub(super) fn is_there(&self) -> bool {
        let open = || {
            let files = |name: &&str| cudarc::get_lib_name_candidates(name);
            let mut files = self.names.iter().flat_map(files);
            // SAFETY: the initialisers are NVIDIA's own, and it is never closed.
            files.find_map(|file| unsafe { Library::new(file) }.ok())
        };
        self.open.get_or_init(open).is_some()
    }
}

/// Does `work` while another thread opens what a model needs of the libraries besides.
pub(super) fn open_beside<T>(work: impl FnOnce() -> T) -> T {
    thread::scope(|scope| {
        // Where no thread is to be had, they are opened once they are asked for.
        let _ = thread::Builder::new().spawn_scoped(scope, || {
            CUBLASLT.is_there();
            NVRTC.is_there();
        });
        work()
    })
}
