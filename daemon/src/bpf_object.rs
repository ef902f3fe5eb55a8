//! The BPF object inside this binary.
//!
//! `build.rs` embeds the object only if it was built from the very sources this binary was built
//! from; otherwise every caller gets [`MissingObject`].

use thiserror::Error;

/// Why this binary carries no BPF object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MissingObject {
    /// There was no object when the binary was built.
    #[error(
        "this binary was built without a BPF object: build it with `make build`, or run \
         `cargo xtask build-ebpf` and build again"
    )]
    NotBuilt,
    /// There was one, but of other sources.
    #[error(
        "this binary was built with an outdated BPF object, which was left out: build it with \
         `make build`, or run `cargo xtask build-ebpf` and build again"
    )]
    Outdated,
}

/// The BPF object as an ELF file, aligned to 8 bytes as ELF parsers need it.
///
/// # Errors
/// [`MissingObject`] if the binary was built without an object of its own sources.
pub fn bpf_object() -> Result<&'static [u8], MissingObject> {
    match STATE {
        "current" => Ok(OBJECT),
        "outdated" => Err(MissingObject::Outdated),
        _ => Err(MissingObject::NotBuilt),
    }
}

const STATE: &str = env!("PORTCULLIS_BPF_STATE");

/// Empty unless [`STATE`] is `current`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/portcullis-bpf.o"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_for_bpf_and_aligned_and_its_absence_names_the_way_out() {
        match bpf_object() {
            Ok(object) => {
                assert_eq!(&object[..4], b"\x7fELF");
                assert_eq!(u16::from_le_bytes([object[18], object[19]]), 247, "EM_BPF");
                assert!(object.as_ptr().addr().is_multiple_of(8));
            }
            Err(missing) => {
                assert!(OBJECT.is_empty(), "a stale object is in the binary");
                assert!(missing.to_string().contains("`cargo xtask build-ebpf`"));
                assert!(missing.to_string().contains("`make build`"));
            }
        }
    }

    #[test]
    fn privileged_suites_never_run_without_an_object() {
        if std::env::var_os("REQUIRE_PRIVILEGED").is_some_and(|value| value == "1") {
            assert_eq!(bpf_object().err(), None);
        }
    }
}
