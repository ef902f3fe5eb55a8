//! Ties a built BPF object to the sources it was built from.
//!
//! `xtask` writes a stamp beside the object; `daemon/build.rs` includes this very file and embeds the
//! object only if the stamp still describes the sources in the tree. An object that merely *looks*
//! newer than its sources (a checkout, a copied target directory) is therefore never embedded.
//!
//! Only `std` is used, because a build script compiles this file too.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Environment variable that moves the object (and, beside it, its stamp) elsewhere. A relative path
/// is taken from the workspace root.
pub(crate) const OBJECT_ENV: &str = "PORTCULLIS_BPF_OBJECT";

/// Where the object lies when [`OBJECT_ENV`] is not set, relative to the workspace root. It does not
/// depend on `CARGO_TARGET_DIR`, so that every target directory embeds the same object.
pub(crate) const OBJECT_DEFAULT: &str = "target/bpf/portcullis-bpf.o";

/// The target triple of the object. Both supported hosts (`x86_64`, `aarch64`) are little endian.
pub(crate) const BPF_TARGET: &str = "bpfel-unknown-none";

/// The cargo profile of the object; see `[profile.bpf]` in the root `Cargo.toml`.
pub(crate) const BPF_PROFILE: &str = "bpf";

/// Compiler flags the object depends on. They are part of the digest. `--btf` makes bpf-linker turn
/// the debug info into BTF.
pub(crate) const BPF_RUSTFLAGS: &[&str] = &["-Ctarget-cpu=v3", "-Clink-arg=--btf"];

/// Files and directories the object is built from, relative to the workspace root.
const INPUTS: &[&str] = &[
    "Cargo.lock",
    "Cargo.toml",
    "crates/dataplane-common/Cargo.toml",
    "crates/dataplane-common/src",
    "dataplane-ebpf/Cargo.toml",
    "dataplane-ebpf/build.rs",
    "dataplane-ebpf/src",
];

/// The object's path for the given value of [`OBJECT_ENV`].
pub(crate) fn object_path(root: &Path, overridden: Option<OsString>) -> PathBuf {
    match overridden {
        Some(path) if !path.is_empty() => root.join(path),
        _ => root.join(OBJECT_DEFAULT),
    }
}

/// The stamp that belongs to `object`.
pub(crate) fn stamp_path(object: &Path) -> PathBuf {
    object.with_extension("stamp")
}

/// The existing inputs, as paths a build script can watch.
pub(crate) fn input_paths(root: &Path) -> Vec<PathBuf> {
    let paths = INPUTS.iter().map(|input| root.join(input));
    paths.filter(|path| path.exists()).collect()
}

/// Digest of everything the object is built from: the name, length and content of each input file,
/// the target and the compiler flags.
///
/// # Errors
/// An input that cannot be read, with its path in the message.
pub(crate) fn sources_digest(root: &Path) -> io::Result<String> {
    let mut files = Vec::new();
    for input in input_paths(root) {
        collect_files(&input, &mut files)?;
    }
    files.sort();
    let mut digest = Digest::new();
    for setting in [BPF_TARGET, BPF_PROFILE].iter().chain(BPF_RUSTFLAGS) {
        digest.field(setting.as_bytes());
    }
    for file in &files {
        let name = file.strip_prefix(root).unwrap_or(file);
        digest.field(name.as_os_str().as_encoded_bytes());
        digest.field(&read(file)?);
    }
    Ok(digest.finish())
}

/// Digest of one byte string, in the form the stamp uses.
pub(crate) fn bytes_digest(bytes: &[u8]) -> String {
    let mut digest = Digest::new();
    digest.field(bytes);
    digest.finish()
}

/// What is known about a built object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// [`sources_digest`] at the time of the build.
    pub(crate) sources: String,
    /// [`bytes_digest`] of the object.
    pub(crate) object: String,
    /// Compiler and linker, for people.
    pub(crate) toolchain: String,
}

impl Stamp {
    /// The text of the stamp file: one `key = value` a line.
    pub(crate) fn to_text(&self) -> String {
        format!(
            "sources = {}\nobject = {}\ntoolchain = {}\n",
            self.sources, self.object, self.toolchain
        )
    }

    /// Reads the text of a stamp file; `None` unless every key is there.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let value = |key: &str| {
            text.lines().find_map(|line| {
                let (name, value) = line.split_once('=')?;
                (name.trim() == key).then(|| value.trim().to_owned())
            })
        };
        Some(Self {
            sources: value("sources")?,
            object: value("object")?,
            toolchain: value("toolchain")?,
        })
    }
}

/// Whether a built object may be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ObjectState {
    /// Built from the sources in the tree; these are its bytes.
    Current(Vec<u8>),
    /// There is no object.
    Missing,
    /// There is one, but not of these sources, or it is not the one the stamp describes.
    Outdated,
}

/// Compares the object and its stamp with the sources in the tree.
///
/// # Errors
/// A source, or an object that exists, cannot be read.
pub(crate) fn object_state(root: &Path, object: &Path) -> io::Result<ObjectState> {
    if !object.exists() {
        return Ok(ObjectState::Missing);
    }
    let bytes = read(object)?;
    let stamp = fs::read_to_string(stamp_path(object)).ok();
    let Some(stamp) = stamp.as_deref().and_then(Stamp::parse) else {
        return Ok(ObjectState::Outdated);
    };
    if stamp.object == bytes_digest(&bytes) && stamp.sources == sources_digest(root)? {
        Ok(ObjectState::Current(bytes))
    } else {
        Ok(ObjectState::Outdated)
    }
}

fn collect_files(path: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    if !path.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(path).map_err(|error| at(path, &error))? {
        let entry = entry.map_err(|error| at(path, &error))?;
        // Editors keep swap files beside the source they edit.
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            collect_files(&entry.path(), files)?;
        }
    }
    Ok(())
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    fs::read(path).map_err(|error| at(path, &error))
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// FNV-1a with 128 bits: the stamp guards against accident, not against an attacker, who could write
/// the stamp as well.
struct Digest(u128);

impl Digest {
    const OFFSET_BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;

    fn new() -> Self {
        Self(Self::OFFSET_BASIS)
    }

    /// Adds a field with its length, so that bytes cannot wander from one field to the next.
    fn field(&mut self, bytes: &[u8]) {
        let length = (bytes.len() as u64).to_le_bytes();
        for byte in length.iter().chain(bytes) {
            self.0 = (self.0 ^ u128::from(*byte)).wrapping_mul(Self::PRIME);
        }
    }

    fn finish(self) -> String {
        format!("{:032x}", self.0)
    }
}
