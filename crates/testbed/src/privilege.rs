use std::io::Write;

/// Whether privileged tests can run here. Prints `SKIP: why` when they cannot.
///
/// # Panics
/// When they cannot and `REQUIRE_PRIVILEGED=1` is set.
#[must_use]
pub fn privileged(test: &str) -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    let why = "needs root to create network namespaces";
    assert!(
        std::env::var_os("REQUIRE_PRIVILEGED").is_none_or(|value| value != "1"),
        "{test}: {why}, and REQUIRE_PRIVILEGED=1 forbids skipping"
    );
    // Straight to stderr: the test harness captures the print macros and would hide it.
    let _ = writeln!(std::io::stderr(), "SKIP: {test}: {why}");
    false
}
