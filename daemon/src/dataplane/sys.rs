//! The `bpf(2)` commands aya has no call for.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const BPF_OBJ_GET: libc::c_long = 7;
const BPF_LINK_DETACH: libc::c_long = 34;

/// Detaches a pinned link at once and removes its pin. Dropping the last reference alone detaches
/// only after a grace period, so the program would outlive the call. Returns false when there is no
/// such pin.
pub(super) fn detach_pinned_link(path: &Path) -> io::Result<bool> {
    #[repr(C)]
    struct ObjGet {
        pathname: u64,
        bpf_fd: u32,
        file_flags: u32,
    }
    #[repr(C)]
    struct LinkDetach {
        link_fd: u32,
    }

    let pathname = CString::new(path.as_os_str().as_bytes())?;
    let attr = ObjGet {
        pathname: pathname.as_ptr() as u64,
        bpf_fd: 0,
        file_flags: 0,
    };
    let link = match bpf(BPF_OBJ_GET, &attr) {
        // SAFETY: the kernel just gave this descriptor to us alone.
        Ok(fd) => unsafe { OwnedFd::from_raw_fd(fd) },
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    match bpf(
        BPF_LINK_DETACH,
        &LinkDetach {
            link_fd: link.as_raw_fd() as u32,
        },
    ) {
        Ok(_) => {}
        // The interface is gone, and the link with it.
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
        Err(error) => return Err(error),
    }
    std::fs::remove_file(path)?;
    Ok(true)
}

fn bpf<T>(command: libc::c_long, attr: &T) -> io::Result<libc::c_int> {
    // SAFETY: `attr` is a valid prefix of `union bpf_attr` (include/uapi/linux/bpf.h) for the
    // command, its size is passed, and the pointers inside outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attr),
            size_of::<T>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result as libc::c_int)
    }
}
