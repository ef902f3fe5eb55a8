//! The anchor: a program that does nothing but let the packet pass.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// `r0 = -1; exit`, loaded as the same type as ours.
#[derive(Debug)]
pub struct EmptyProgram {
    fd: OwnedFd,
}

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;

/// The first fields of `union bpf_attr` for `BPF_PROG_LOAD` (include/uapi/linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// `union bpf_attr` for `BPF_PROG_TEST_RUN`.
#[repr(C)]
#[derive(Default)]
struct TestAttr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

impl EmptyProgram {
    /// Loads the program.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn load() -> io::Result<Self> {
        // mov64 r0, -1 ; exit
        let instructions: [u64; 2] = [0xffff_ffff_0000_00b7, 0x95];
        let license = c"GPL";
        let attr = LoadAttr {
            prog_type: BPF_PROG_TYPE_SCHED_CLS,
            insn_cnt: instructions.len() as u32,
            insns: instructions.as_ptr() as u64,
            license: license.as_ptr() as u64,
            ..LoadAttr::default()
        };
        let fd = bpf(BPF_PROG_LOAD, &attr)?;
        // SAFETY: the kernel just gave this descriptor to us alone.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        Ok(Self { fd })
    }

    /// Runs the program on a frame `repeat` times and returns the mean duration.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn run(&self, frame: &[u8], repeat: u32) -> io::Result<Duration> {
        let attr = TestAttr {
            prog_fd: self.fd.as_raw_fd() as u32,
            data_size_in: frame.len() as u32,
            data_in: frame.as_ptr() as u64,
            repeat,
            ..TestAttr::default()
        };
        bpf(BPF_PROG_TEST_RUN, &attr)?;
        // SAFETY: the kernel wrote the duration into `attr`; a volatile read sees it.
        let nanoseconds = unsafe { (&raw const attr.duration).read_volatile() };
        Ok(Duration::from_nanos(u64::from(nanoseconds)))
    }
}

fn bpf<T>(command: libc::c_long, attr: &T) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is a valid prefix of `union bpf_attr` for the command and its size is passed;
    // the pointers inside outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attr).cast_mut(),
            size_of::<T>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
