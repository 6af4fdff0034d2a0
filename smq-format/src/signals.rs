//! Signals that would end a program and leave its unfinished files.

use crate::partial::abandon_unfinished;

/// Prepares a program for them; the first thing that its `main` does.
///
/// - SIGBUS: a file that is mapped became shorter than it was. The program says which, removes what
///   it has not finished, and ends with 1. Reading the files in place of mapping them would report
///   an error instead of a signal, and needs no handler. But every tensor would be copied, and held
///   twice, where a map costs nothing and pages that were read are given back under pressure.
/// - SIGABRT, as after an allocation that failed: what is not finished is removed.
/// - SIGXFSZ: a file over the limit of `ulimit -f` is an error of the write.
///
/// Does nothing where there are no such signals.
pub fn catch_signals() {
    #[cfg(unix)]
    unix::catch();
}

/// Removes what this process has not finished, and ends it: at once, without waiting for its other
/// threads or for libraries that would clean up after themselves.
pub fn end_at_once(code: u8) -> ! {
    abandon_unfinished();
    #[cfg(unix)]
    // SAFETY: ends the process, and touches no memory.
    unsafe {
        libc::_exit(code.into())
    }
    #[cfg(not(unix))]
    std::process::exit(code.into())
}

#[cfg(unix)]
mod unix {
    use std::mem;
    use std::ptr;

    use libc::{SIG_DFL, SIG_IGN, SIGABRT, SIGBUS, SIGXFSZ, c_int, c_void, siginfo_t};

    use crate::map::file_at;
    use crate::partial::abandon_unfinished;

    /// Seconds after which a process that aborts ends even if its files are not removed by then.
    const PATIENCE_SECONDS: u32 = 5;

    pub(super) fn catch() {
        // SAFETY: all fields of a `sigaction` may be zero; the two handlers have the signature that
        // SA_SIGINFO asks for; the pointers are valid for the calls. A call that fails leaves the
        // signal's default, which is no worse than before.
        unsafe {
            for (signal, handler) in [
                (SIGBUS, on_fault as *const () as usize),
                (SIGABRT, on_abort as *const () as usize),
            ] {
                let mut action: libc::sigaction = mem::zeroed();
                action.sa_sigaction = handler;
                action.sa_flags = libc::SA_SIGINFO;
                libc::sigaction(signal, &action, ptr::null_mut());
            }
            libc::signal(SIGXFSZ, SIG_IGN);
        }
    }

    /// A handler of SIGBUS. It allocates and takes locks, which a handler may do only where what it
    /// interrupts is in no function that does. That holds of a fault in a map of ours: the kernel
    /// raises it in the thread that reads the mapped bytes, at the instruction that does, and
    /// neither the allocator nor whoever holds one of the locks taken here reads mapped bytes. Of
    /// any other fault nothing is known, and it ends the process as it would have.
    extern "C" fn on_fault(signal: c_int, info: *mut siginfo_t, _: *mut c_void) {
        // SAFETY: with SA_SIGINFO the system passes a valid `siginfo_t`, and SIGBUS has an address.
        let address = unsafe { (*info).si_addr() } as usize;
        let Some(path) = file_at(address) else {
            // SAFETY: sets the default action, which the instruction then meets again.
            unsafe { libc::signal(signal, SIG_DFL) };
            return;
        };
        let message = format!(
            "error: {} became shorter while it was read; nothing was written, so run this again \
             when the file is whole and nobody writes to it\n",
            path.display()
        );
        // SAFETY: the buffer is valid for its length; `_exit` ends the process without running
        // handlers, which may need locks that another thread holds.
        unsafe {
            libc::write(libc::STDERR_FILENO, message.as_ptr().cast(), message.len());
            abandon_unfinished();
            libc::_exit(1)
        }
    }

    /// A handler of SIGABRT, after which the process ends. An allocation that failed leaves the
    /// allocator in order; should something else be amiss, an alarm ends the wait for a lock.
    extern "C" fn on_abort(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
        // SAFETY: `alarm` may be called in a handler and touches no memory.
        unsafe { libc::alarm(PATIENCE_SECONDS) };
        abandon_unfinished();
    }
}
