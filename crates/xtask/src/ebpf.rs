//! Builds the BPF object and its stamp.
//!
//! The object needs a compiler that knows `core` for the BPF target and a linker that turns LLVM
//! bitcode into BPF. Two toolchains provide that: a distribution's `rustc` with a prebuilt `core`
//! (`libstd-rust-*-dev-bpf`), or a rustup nightly with `rust-src`. See `docs/adr/0001-toolchain.md`.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::bpf_stamp::{
    BPF_PROFILE, BPF_RUSTFLAGS, BPF_TARGET, OBJECT_ENV, ObjectState, Stamp, bytes_digest,
    object_path, object_state, sources_digest, stamp_path,
};
use crate::say;

/// The nightly whose LLVM fits the bpf-linker that `scripts/setup` installs. Any other nightly with
/// `rust-src` named `nightly` is taken when this one is not installed.
const PINNED_NIGHTLY: &str = "nightly-2026-05-20";

/// A `rustc` that has `core` for the BPF target.
const RUSTC_ENV: &str = "PORTCULLIS_BPF_RUSTC";
/// A rustup toolchain with `rust-src`.
const TOOLCHAIN_ENV: &str = "PORTCULLIS_BPF_TOOLCHAIN";
/// The `bpf-linker` to use.
const LINKER_ENV: &str = "PORTCULLIS_BPF_LINKER";

/// The oldest compiler the workspace builds with, as in `rust-version`.
const OLDEST_RUSTC: (u32, u32) = (1, 95);

/// What `cargo run` and rustup set for this process and the BPF build must not inherit: they name
/// another compiler, other flags, another target directory.
const NOT_INHERITED: &[&str] = &[
    "CARGO",
    "CARGO_BUILD_TARGET",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_TARGET_DIR",
    "LD_LIBRARY_PATH",
    "RUSTC",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTDOC",
    "RUSTFLAGS",
    "RUSTUP_TOOLCHAIN",
];

/// Builds the object unless the one present is current, and returns its path.
pub(crate) fn build(root: &Path) -> Result<PathBuf> {
    let object = object_path(root, env::var_os(OBJECT_ENV));
    if let ObjectState::Current(_) = object_state(root, &object)? {
        say(format_args!("BPF object is current: {}", object.display()));
        return Ok(object);
    }
    let toolchain = Toolchain::find()?;
    say(format_args!(
        "building the BPF object with {}",
        toolchain.description
    ));
    // A source edited while the compiler runs gives an object of unknown sources: build again.
    for _ in 0..3 {
        let sources = sources_digest(root)?;
        let built = toolchain.compile(root)?;
        if sources_digest(root)? == sources {
            let stamp = Stamp {
                sources,
                object: bytes_digest(&built),
                toolchain: toolchain.description.clone(),
            };
            install(&object, &built, &stamp)?;
            say(format_args!(
                "BPF object: {} ({} bytes)",
                object.display(),
                built.len()
            ));
            return Ok(object);
        }
        say(format_args!(
            "sources changed during the build; building again"
        ));
    }
    bail!("the sources of the BPF object kept changing during the build; run it again");
}

/// Reports what the build would use, for `scripts/setup --check`.
pub(crate) fn describe_toolchain() -> Result<String> {
    Ok(Toolchain::find()?.description)
}

/// Replaces object and stamp. The old stamp goes first: at no moment does a stamp lie beside an
/// object that it does not describe.
fn install(object: &Path, bytes: &[u8], stamp: &Stamp) -> Result<()> {
    let directory = object
        .parent()
        .context("the BPF object's path has no directory")?;
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    let stamp_file = stamp_path(object);
    if stamp_file.exists() {
        fs::remove_file(&stamp_file)
            .with_context(|| format!("cannot remove {}", stamp_file.display()))?;
    }
    replace_file(object, bytes)?;
    replace_file(&stamp_file, stamp.to_text().as_bytes())
}

fn replace_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    fs::write(&temporary, bytes)
        .and_then(|()| fs::rename(&temporary, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// A compiler and a linker that can build the object.
struct Toolchain {
    compiler: Compiler,
    linker: PathBuf,
    description: String,
}

impl Toolchain {
    fn find() -> Result<Self> {
        let linker = find_linker()?;
        let linker_version = first_line(Command::new(&linker).arg("--version"))
            .with_context(|| format!("{} does not run", linker.display()))?;
        let compiler = Compiler::find()?;
        Ok(Self {
            description: format!("{compiler}, {linker_version}"),
            compiler,
            linker,
        })
    }

    /// Runs cargo and returns the object's bytes.
    fn compile(&self, root: &Path) -> Result<Vec<u8>> {
        let target_dir = root.join("target/bpf-build");
        let mut cargo = self.compiler.cargo();
        cargo
            .current_dir(root)
            .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &self.linker)
            .env(
                "CARGO_ENCODED_RUSTFLAGS",
                encoded_rustflags(root, self.compiler.sysroot()),
            )
            .args(["--package", "dataplane-ebpf", "--profile", BPF_PROFILE])
            .args(["--target", BPF_TARGET])
            .arg("--target-dir")
            .arg(&target_dir);
        let status = cargo
            .status()
            .with_context(|| format!("cannot run {}", cargo.get_program().display()))?;
        if !status.success() {
            bail!("the BPF object does not build ({status}); the compiler's message is above");
        }
        let built = target_dir
            .join(BPF_TARGET)
            .join(BPF_PROFILE)
            .join("portcullis-bpf");
        let bytes = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
        check_object(&bytes).with_context(|| format!("{} is unusable", built.display()))?;
        Ok(bytes)
    }
}

/// The flags in cargo's encoded form, which allows spaces in paths. Paths of this machine are
/// remapped: BTF line information would carry them into the release binary.
fn encoded_rustflags(root: &Path, sysroot: Option<&Path>) -> OsString {
    let mut flags: Vec<OsString> = BPF_RUSTFLAGS.iter().map(OsString::from).collect();
    let mut remap = |from: &Path, to: &str| {
        let mut flag = OsString::from("--remap-path-prefix=");
        flag.push(from);
        flag.push("=");
        flag.push(to);
        flags.push(flag);
    };
    remap(root, ".");
    if let Some(home) = cargo_home() {
        remap(&home, "cargo");
    }
    if let Some(sysroot) = sysroot {
        remap(sysroot, "rust");
    }
    flags.join(OsStr::new("\x1f"))
}

/// The object must be an ELF file for BPF with BTF, from which the verifier's log takes its source
/// lines.
fn check_object(bytes: &[u8]) -> Result<()> {
    const EM_BPF: [u8; 2] = 247_u16.to_le_bytes();
    if !bytes.starts_with(b"\x7fELF") || bytes.get(18..20) != Some(&EM_BPF) {
        bail!("it is not an ELF file for BPF");
    }
    if !bytes.windows(5).any(|window| window == b".BTF\0") {
        bail!("it carries no BTF; bpf-linker 0.13 or later is needed");
    }
    Ok(())
}

/// Where a compiler with `core` for BPF comes from.
#[derive(Debug, PartialEq, Eq)]
enum Compiler {
    /// `core` is prebuilt. `RUSTC_BOOTSTRAP` opens the unstable features that aya-ebpf needs.
    Prebuilt { rustc: PathBuf, version: String },
    /// `core` is built from `rust-src`.
    Nightly {
        toolchain: String,
        version: String,
        sysroot: PathBuf,
    },
}

impl std::fmt::Display for Compiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Prebuilt { rustc, version } => write!(f, "{version} at {}", rustc.display()),
            Self::Nightly {
                toolchain, version, ..
            } => write!(f, "{version} of rustup {toolchain}"),
        }
    }
}

impl Compiler {
    fn find() -> Result<Self> {
        if let Some(rustc) = non_empty_env(RUSTC_ENV) {
            return prebuilt(Path::new(&rustc))
                .with_context(|| format!("{RUSTC_ENV}={} cannot be used", rustc.display()));
        }
        if let Some(toolchain) = non_empty_env(TOOLCHAIN_ENV) {
            let toolchain = toolchain.to_string_lossy();
            return nightly(&toolchain)
                .with_context(|| format!("{TOOLCHAIN_ENV}={toolchain} cannot be used"));
        }
        let mut tried = Vec::new();
        for rustc in ["/usr/bin/rustc", "/usr/local/bin/rustc"] {
            match prebuilt(Path::new(rustc)) {
                Ok(compiler) => return Ok(compiler),
                Err(error) => tried.push(format!("  {rustc}: {error:#}")),
            }
        }
        for toolchain in [PINNED_NIGHTLY, "nightly"] {
            match nightly(toolchain) {
                Ok(compiler) => return Ok(compiler),
                Err(error) => tried.push(format!("  rustup toolchain {toolchain}: {error:#}")),
            }
        }
        bail!(
            "no compiler for BPF found\n{}\nhint: run `scripts/setup`; or install a rustup nightly: \
             rustup toolchain install {PINNED_NIGHTLY} --profile minimal --component rust-src\n\
             hint: {RUSTC_ENV} names a rustc with core for {BPF_TARGET}, {TOOLCHAIN_ENV} a rustup \
             toolchain with rust-src",
            tried.join("\n")
        );
    }

    fn cargo(&self) -> Command {
        match self {
            Self::Prebuilt { rustc, .. } => {
                let mut cargo = clean(Command::new(sibling_cargo(rustc)));
                cargo
                    .arg("build")
                    .env("RUSTC", rustc)
                    .env("RUSTC_BOOTSTRAP", "1");
                cargo
            }
            Self::Nightly { toolchain, .. } => {
                let mut cargo = clean(Command::new("rustup"));
                cargo.args(["run", toolchain, "cargo", "build", "-Z", "build-std=core"]);
                cargo
            }
        }
    }

    /// Where `core` is compiled from, if it is.
    fn sysroot(&self) -> Option<&Path> {
        match self {
            Self::Prebuilt { .. } => None,
            Self::Nightly { sysroot, .. } => Some(sysroot),
        }
    }
}

/// The cargo beside `rustc`, or the one on `PATH`.
fn sibling_cargo(rustc: &Path) -> PathBuf {
    let cargo = rustc.with_file_name("cargo");
    if cargo.exists() {
        cargo
    } else {
        PathBuf::from("cargo")
    }
}

fn prebuilt(rustc: &Path) -> Result<Compiler> {
    if !rustc.exists() {
        bail!("not there");
    }
    let version = first_line(clean(Command::new(rustc)).arg("--version"))?;
    check_version(&version)?;
    let libraries = first_line(clean(Command::new(rustc)).args([
        "--print",
        "target-libdir",
        "--target",
        BPF_TARGET,
    ]))?;
    let has_core = fs::read_dir(&libraries).is_ok_and(|mut entries| {
        entries.any(|entry| {
            entry.is_ok_and(|entry| {
                entry
                    .file_name()
                    .as_encoded_bytes()
                    .starts_with(b"libcore-")
            })
        })
    });
    if !has_core {
        bail!("{version} has no core for {BPF_TARGET}");
    }
    Ok(Compiler::Prebuilt {
        rustc: rustc.to_owned(),
        version,
    })
}

fn nightly(toolchain: &str) -> Result<Compiler> {
    let rustc = |argument: &[&str]| {
        let mut rustup = clean(Command::new("rustup"));
        // Never let a mere look-up download a toolchain.
        rustup.env("RUSTUP_AUTO_INSTALL", "0");
        first_line(rustup.args(["run", toolchain, "rustc"]).args(argument))
    };
    let version = rustc(&["--version"])?;
    check_version(&version)?;
    let sysroot = PathBuf::from(rustc(&["--print", "sysroot"])?);
    if !sysroot.join("lib/rustlib/src/rust/library/core").exists() {
        bail!("{version} lacks the rust-src component");
    }
    Ok(Compiler::Nightly {
        toolchain: toolchain.to_owned(),
        version,
        sysroot,
    })
}

/// Checks `rustc 1.96.0 (...)` against [`OLDEST_RUSTC`].
fn check_version(version: &str) -> Result<()> {
    let number = version.split_whitespace().nth(1).unwrap_or_default();
    let mut parts = number.split('.').map(|part| part.parse().unwrap_or(0));
    let found = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    if found < OLDEST_RUSTC {
        let (major, minor) = OLDEST_RUSTC;
        bail!("{version} is older than {major}.{minor}");
    }
    Ok(())
}

fn find_linker() -> Result<PathBuf> {
    if let Some(linker) = non_empty_env(LINKER_ENV) {
        return Ok(PathBuf::from(linker));
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let home = env::home_dir();
    env::split_paths(&path)
        .chain(cargo_home().map(|home| home.join("bin")))
        .chain(home.map(|home| home.join(".local/bin")))
        .map(|directory| directory.join("bpf-linker"))
        .find(|candidate| candidate.is_file())
        .with_context(|| {
            format!(
                "bpf-linker not found on PATH, in cargo's bin directory or in ~/.local/bin\n\
                 hint: run `scripts/setup`, or name it in {LINKER_ENV}"
            )
        })
}

fn cargo_home() -> Option<PathBuf> {
    match non_empty_env("CARGO_HOME") {
        Some(home) => Some(PathBuf::from(home)),
        None => env::home_dir().map(|home| home.join(".cargo")),
    }
}

fn non_empty_env(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

/// `command` without what this process inherited from cargo and rustup.
fn clean(mut command: Command) -> Command {
    for name in NOT_INHERITED {
        command.env_remove(name);
    }
    command
}

/// The first line of a command's output; its error output is the error.
fn first_line(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{}",
            message
                .lines()
                .next()
                .unwrap_or("failed without a message")
                .trim()
        );
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_compilers_new_enough_pass() {
        for good in [
            "rustc 1.95.0 (59807616e 2026-04-14)",
            "rustc 1.97.0-nightly (x)",
            "rustc 2.0.0",
        ] {
            check_version(good).unwrap();
        }
        for bad in [
            "rustc 1.94.9",
            "rustc 1.63.0 (x)",
            "rustc 0.99.0",
            "rustc",
            "",
        ] {
            let message = check_version(bad).unwrap_err().to_string();
            assert!(message.contains("older than 1.95"), "{bad}: {message}");
        }
    }

    #[test]
    fn only_bpf_elf_with_btf_passes() {
        let mut object = vec![0_u8; 64];
        object[..4].copy_from_slice(b"\x7fELF");
        object[18] = 247;
        assert!(
            check_object(&object)
                .unwrap_err()
                .to_string()
                .contains("no BTF")
        );
        object.extend_from_slice(b"\0.BTF\0");
        check_object(&object).unwrap();
        object[18] = 62; // x86-64
        assert!(
            check_object(&object)
                .unwrap_err()
                .to_string()
                .contains("not an ELF file for BPF")
        );
        assert!(check_object(b"\x7fELF").is_err());
        assert!(check_object(b"").is_err());
    }

    #[test]
    fn a_compiler_that_is_not_there_is_said_to_be_missing() {
        let error = prebuilt(Path::new("/nonexistent/rustc")).unwrap_err();
        assert_eq!(error.to_string(), "not there");
        assert!(nightly("no-such-toolchain").is_err());
    }

    #[test]
    fn replacing_an_object_replaces_its_stamp() {
        let directory = tempfile::tempdir().unwrap();
        let object = directory.path().join("deep/portcullis-bpf.o");
        for bytes in [b"first".as_slice(), b"second"] {
            let stamp = Stamp {
                sources: "s".to_owned(),
                object: bytes_digest(bytes),
                toolchain: "t".to_owned(),
            };
            install(&object, bytes, &stamp).unwrap();
            assert_eq!(fs::read(&object).unwrap(), bytes);
            let text = fs::read_to_string(stamp_path(&object)).unwrap();
            assert_eq!(Stamp::parse(&text), Some(stamp));
        }
        let left = fs::read_dir(object.parent().unwrap()).unwrap().count();
        assert_eq!(left, 2, "a temporary file was left behind");
    }
}
