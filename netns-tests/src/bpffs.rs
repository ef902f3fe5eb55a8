//! A BPF file system of a test's own, so that suites need none on the machine and never meet there.

use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A mounted BPF file system, unmounted on drop. What is still pinned in it then goes with it.
#[derive(Debug)]
pub struct Bpffs {
    path: PathBuf,
}

impl Bpffs {
    /// Mounts one on `path`, which is created.
    ///
    /// # Panics
    /// When it cannot be mounted.
    #[must_use]
    pub fn mount(path: PathBuf) -> Self {
        std::fs::create_dir_all(&path).expect("a place for the BPF file system");
        mount(
            Some("bpf"),
            &path,
            Some("bpf"),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
            Some("mode=0700"),
        )
        .unwrap_or_else(|error| panic!("cannot mount a bpffs on {}: {error}", path.display()));
        Self { path }
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every file and directory in it, ordered.
    ///
    /// # Panics
    /// When it cannot be read.
    #[must_use]
    pub fn entries(&self) -> Vec<PathBuf> {
        fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(directory).expect("a readable bpffs") {
                let path = entry.expect("a readable bpffs").path();
                if path.is_dir() {
                    walk(&path, found);
                }
                found.push(path);
            }
        }
        let mut found = Vec::new();
        walk(&self.path, &mut found);
        found.sort();
        found
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        // Busy only while a process holds a file of it open; the mount goes when that ends.
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
    }
}
