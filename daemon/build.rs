//! Embeds the BPF object, if it was built from the sources in this tree.
//!
//! `cargo xtask build-ebpf` builds the object and a stamp of its sources. Without a matching stamp
//! nothing is embedded and `bpf_object()` says so at run time: `cargo check` and the unprivileged
//! tests need no BPF toolchain, and no binary ever carries a stale dataplane.

// `xtask` uses the rest of this file.
#[allow(dead_code)]
#[path = "../crates/xtask/src/bpf_stamp.rs"]
mod bpf_stamp;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use bpf_stamp::{OBJECT_ENV, ObjectState, input_paths, object_path, object_state, stamp_path};

fn main() {
    let package = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let root = package
        .parent()
        .expect("the daemon is a directory of the workspace");
    let object = object_path(root, env::var_os(OBJECT_ENV));
    watch(root, &object);

    let state = object_state(root, &object).unwrap_or_else(|error| {
        println!("cargo::warning=the BPF object is not embedded: {error}");
        ObjectState::Missing
    });
    let (name, bytes) = match state {
        ObjectState::Current(bytes) => ("current", bytes),
        ObjectState::Missing => ("missing", Vec::new()),
        ObjectState::Outdated => {
            println!(
                "cargo::warning=the BPF object is older than its sources and is not embedded; \
                 run `make build` (or `cargo xtask build-ebpf`)"
            );
            ("outdated", Vec::new())
        }
    };
    // The bytes that were checked are the bytes that are embedded.
    let embedded = Path::new(&variable("OUT_DIR")).join("portcullis-bpf.o");
    fs::write(&embedded, bytes)
        .unwrap_or_else(|error| panic!("cannot write {}: {error}", embedded.display()));
    println!("cargo::rustc-env=PORTCULLIS_BPF_STATE={name}");
}

/// Asks cargo to run this script again when a source, the object or the stamp changes.
fn watch(root: &Path, object: &Path) {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={OBJECT_ENV}");
    for path in input_paths(root) {
        println!("cargo::rerun-if-changed={}", path.display());
    }
    let files = [object.to_owned(), stamp_path(object)];
    if files.iter().all(|file| file.exists()) || env::var_os(OBJECT_ENV).is_some() {
        for file in files {
            println!("cargo::rerun-if-changed={}", file.display());
        }
    } else if let Some(directory) = object.parent() {
        // Cargo takes a file that does not exist for one that always changes, and would compile the
        // daemon anew each time. Until there is an object, its directory is watched. A tree that
        // cannot be written costs that new compilation, nothing else.
        let _ = fs::create_dir_all(directory);
        println!("cargo::rerun-if-changed={}", directory.display());
    }
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name} for build scripts"))
}
