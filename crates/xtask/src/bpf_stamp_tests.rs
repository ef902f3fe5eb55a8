//! Tests of [`crate::bpf_stamp`], apart from it because a build script includes that file.

use std::fs;
use std::path::Path;

use crate::bpf_stamp::{
    ObjectState, Stamp, bytes_digest, object_path, object_state, sources_digest, stamp_path,
};

fn tree() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in [
        ("Cargo.toml", "[profile.bpf]"),
        ("Cargo.lock", "version = 4"),
        ("crates/dataplane-common/Cargo.toml", "[package]"),
        ("crates/dataplane-common/src/lib.rs", "a"),
        ("dataplane-ebpf/Cargo.toml", "[package]"),
        ("dataplane-ebpf/src/main.rs", "b"),
        ("dataplane-ebpf/src/deep/parse.rs", "c"),
    ] {
        write(root.path(), path, text);
    }
    root
}

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

#[test]
fn every_input_changes_the_digest() {
    let root = tree();
    let mut seen = vec![sources_digest(root.path()).unwrap()];
    for (path, text) in [
        ("Cargo.toml", "[profile.bpf]\nopt-level = 2"),
        ("Cargo.lock", "version = 5"),
        ("crates/dataplane-common/Cargo.toml", "[package] "),
        ("crates/dataplane-common/src/lib.rs", "a2"),
        ("dataplane-ebpf/Cargo.toml", "[package] "),
        ("dataplane-ebpf/src/main.rs", "b2"),
        ("dataplane-ebpf/src/deep/parse.rs", "c2"),
        ("dataplane-ebpf/src/new.rs", ""),
        ("dataplane-ebpf/build.rs", "fn main() {}"),
    ] {
        write(root.path(), path, text);
        let digest = sources_digest(root.path()).unwrap();
        assert!(!seen.contains(&digest), "{path} is not part of the digest");
        seen.push(digest);
    }
    fs::rename(
        root.path().join("dataplane-ebpf/src/new.rs"),
        root.path().join("dataplane-ebpf/src/renamed.rs"),
    )
    .unwrap();
    assert!(!seen.contains(&sources_digest(root.path()).unwrap()));
}

#[test]
fn nothing_else_changes_the_digest() {
    let root = tree();
    let before = sources_digest(root.path()).unwrap();
    write(root.path(), "daemon/src/main.rs", "x");
    write(root.path(), "dataplane-ebpf/src/.main.rs.swp", "x");
    assert_eq!(sources_digest(root.path()).unwrap(), before);
}

#[test]
fn moving_bytes_between_files_changes_the_digest() {
    let root = tree();
    let before = sources_digest(root.path()).unwrap();
    write(root.path(), "crates/dataplane-common/src/lib.rs", "");
    write(root.path(), "dataplane-ebpf/src/main.rs", "ab");
    assert_ne!(sources_digest(root.path()).unwrap(), before);
}

#[test]
fn an_object_is_current_only_with_the_stamp_of_these_sources_and_these_bytes() {
    let root = tree();
    let object = object_path(root.path(), None);
    let state = || object_state(root.path(), &object).unwrap();
    assert_eq!(state(), ObjectState::Missing);

    write(root.path(), "target/bpf/portcullis-bpf.o", "object");
    assert_eq!(state(), ObjectState::Outdated, "no stamp");

    let stamp = Stamp {
        sources: sources_digest(root.path()).unwrap(),
        object: bytes_digest(b"object"),
        toolchain: "rustc = 1.96.0; bpf-linker 0.13.0".to_owned(),
    };
    fs::write(stamp_path(&object), stamp.to_text()).unwrap();
    assert_eq!(state(), ObjectState::Current(b"object".to_vec()));

    write(root.path(), "target/bpf/portcullis-bpf.o", "0bject");
    assert_eq!(state(), ObjectState::Outdated, "another object");
    write(root.path(), "target/bpf/portcullis-bpf.o", "object");
    assert_eq!(state(), ObjectState::Current(b"object".to_vec()));

    write(root.path(), "dataplane-ebpf/src/main.rs", "edited");
    assert_eq!(state(), ObjectState::Outdated, "other sources");
}

#[test]
fn a_stamp_survives_its_text_form() {
    let stamp = Stamp {
        sources: "00".to_owned(),
        object: "11".to_owned(),
        toolchain: "rustc 1.96.0 (flags = none)".to_owned(),
    };
    assert_eq!(Stamp::parse(&stamp.to_text()), Some(stamp));
    assert_eq!(Stamp::parse("sources = 00\nobject = 11\n"), None);
    assert_eq!(Stamp::parse(""), None);
}

#[test]
fn the_object_path_follows_the_override() {
    let root = Path::new("/src");
    let default = Path::new("/src/target/bpf/portcullis-bpf.o");
    assert_eq!(object_path(root, None), default);
    assert_eq!(object_path(root, Some("".into())), default);
    assert_eq!(
        object_path(root, Some("/elsewhere/x.o".into())),
        Path::new("/elsewhere/x.o")
    );
    assert_eq!(
        object_path(root, Some("out/x.o".into())),
        Path::new("/src/out/x.o")
    );
}
