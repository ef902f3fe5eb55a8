//! The endpoint state words, memory-mapped.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use dataplane_common::endpoint::EndpointState;

/// The array `endpoint_states`, mapped into this process so that a state changes with one aligned
/// 64-bit store; a `bpf(2)` update would copy the bytes without promising that.
#[derive(Debug)]
pub(super) struct StateWords {
    words: NonNull<AtomicU64>,
    len: u32,
    bytes: usize,
}

// SAFETY: the mapping is shared memory reached only through atomics and unmapped once, on drop.
unsafe impl Send for StateWords {}
// SAFETY: as above.
unsafe impl Sync for StateWords {}

impl StateWords {
    /// Maps an array of `len` 64-bit words.
    pub(super) fn map(fd: BorrowedFd<'_>, len: u32) -> io::Result<Self> {
        let page = 4096;
        let bytes = (len as usize * size_of::<u64>()).next_multiple_of(page);
        // SAFETY: a fresh shared mapping of a BPF array made with BPF_F_MMAPABLE; the kernel checks
        // flags and size, and the result is checked below.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let words = NonNull::new(address.cast()).ok_or_else(|| io::Error::other("null mapping"))?;
        Ok(Self { words, len, bytes })
    }

    /// Number of slots.
    pub(super) fn len(&self) -> u32 {
        self.len
    }

    pub(super) fn load(&self, slot: u32) -> EndpointState {
        EndpointState(self.word(slot).load(Ordering::Acquire))
    }

    /// Puts a state in force: the next packet of the endpoint is judged under it.
    pub(super) fn store(&self, slot: u32, state: EndpointState) {
        self.word(slot).store(state.0, Ordering::Release);
    }

    fn word(&self, slot: u32) -> &AtomicU64 {
        assert!(
            slot < self.len,
            "slots are allocated below the array's length"
        );
        // SAFETY: in bounds by the assert; the mapping lives as long as `self`.
        unsafe { self.words.add(slot as usize).as_ref() }
    }
}

impl Drop for StateWords {
    fn drop(&mut self) {
        // SAFETY: maps exactly what `map` mapped; nothing refers to it any more.
        unsafe { libc::munmap(self.words.as_ptr().cast(), self.bytes) };
    }
}

/// Waits until every BPF program that was running at the call has returned, so that what no state
/// word points to any more can be freed. `membarrier(MEMBARRIER_CMD_GLOBAL)` is `synchronize_rcu()`
/// (kernel/sched/membarrier.c), and programs run inside RCU read sections.
pub(super) fn wait_for_running_programs() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: the call takes plain integers and touches no memory of ours.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result != 0 {
        // Kernels with nohz_full refuse the command. A program runs for microseconds.
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}
