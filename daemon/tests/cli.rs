//! The command line as a user meets it: arguments, exit codes, where output goes. No privileges.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const GOOD: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: api, namespace: shop}
spec:
  podSelector: {}
  policyTypes: [Ingress]
";

fn portcullis(arguments: &[&str]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    command(dir.path(), arguments).output().unwrap()
}

/// A command in a world of its own: no environment, no daemon.
fn command(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command
        .args(arguments)
        .env_clear()
        .env("PORTCULLIS_SOCKET", dir.join("none.sock"))
        .env("PORTCULLIS_STATE_DIR", dir.join("state"))
        .env("PORTCULLIS_BPFFS", dir.join("bpf"))
        .current_dir(dir)
        .stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[track_caller]
fn assert_code(output: &Output, code: i32) {
    assert_eq!(
        output.status.code(),
        Some(code),
        "stdout: {}\nstderr: {}",
        text(&output.stdout),
        text(&output.stderr)
    );
}

#[test]
fn help_and_version_are_data_and_no_error() {
    for argument in ["--help", "--version", "help"] {
        let output = portcullis(&[argument]);
        assert_code(&output, 0);
        assert!(!output.stdout.is_empty());
        assert!(output.stderr.is_empty());
    }
    let help = text(&portcullis(&["--help"]).stdout);
    for command in [
        "run",
        "demo",
        "doctor",
        "status",
        "workloads",
        "groups",
        "inventory",
        "mode",
        "policy",
        "flows",
        "graph",
        "detach",
    ] {
        assert!(
            help.contains(&format!("\n  {command}")),
            "{command} is missing: {help}"
        );
    }
}

#[test]
fn wrong_arguments_are_usage_errors_on_standard_error() {
    for arguments in [
        &[][..],
        &["nope"],
        &["status", "-o", "xml"],
        &["mode", "set"],
        &["mode", "set", "shop/web"],
        &["mode", "set", "shop/web", "strict"],
        &["mode", "set", "--all"],
        &["mode", "set", "--all", "strict"],
        &["mode", "set", "--all", "shop/web", "protect"],
        &[
            "mode",
            "set",
            "shop/web",
            "protect",
            "--confirm-within",
            "soon",
        ],
        &["policy", "apply"],
        &["policy", "delete"],
        &["policy", "explain", "--from", "a"],
        &["run", "--default-mode", "strict"],
        &["run", "--unselected", "maybe"],
        &["run", "--listen", "127.0.0.1:7979"],
        &["run", "--docker-socket", "/x", "--no-docker"],
        &["flows", "--verdict", "denied"],
        &["flows", "--not", "x"],
        &["status", "--log", "=="],
    ] {
        let output = portcullis(arguments);
        assert_code(&output, 2);
        assert!(output.stdout.is_empty(), "{arguments:?}");
        assert!(!output.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn every_client_command_without_a_daemon_fails_with_a_way_out() {
    for arguments in [
        &["status"][..],
        &["workloads"],
        &["groups", "-o", "json"],
        &["counters"],
        &["history"],
        &["mode", "get"],
        &["mode", "set", "--all", "protect"],
        &[
            "mode",
            "set",
            "shop/web",
            "protect",
            "--confirm-within",
            "5m",
        ],
        &["mode", "confirm"],
        &["mode", "revert"],
        &["policy", "list"],
        &["policy", "show", "shop/api"],
        &["policy", "delete", "shop/api"],
        &["policy", "suggest"],
        &["policy", "export"],
        &[
            "policy", "explain", "--from", "a", "--to", "b", "--port", "80",
        ],
        &["inventory", "show"],
        &["flows", "--follow", "--verdict", "dropped", "--since", "5m"],
        &["graph", "-o", "svg"],
    ] {
        let output = portcullis(arguments);
        assert_code(&output, 1);
        let stderr = text(&output.stderr);
        assert!(
            stderr.starts_with("error: cannot reach the daemon on "),
            "{stderr}"
        );
        assert!(
            stderr.contains("\nhint: start it with `portcullis run`"),
            "{stderr}"
        );
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn policy_check_needs_no_daemon_and_names_each_mistake() {
    let dir = tempfile::tempdir().unwrap();
    let good = dir.path().join("good.yaml");
    std::fs::write(&good, GOOD).unwrap();
    let output = command(dir.path(), &["policy", "check", "-f", "good.yaml"])
        .output()
        .unwrap();
    assert_code(&output, 0);
    assert_eq!(text(&output.stdout), "1 policy is valid\n");

    let bad = dir.path().join("bad.yaml");
    std::fs::write(&bad, GOOD.replace("policyTypes", "policyTipes")).unwrap();
    let output = command(
        dir.path(),
        &["policy", "check", "-f", "bad.yaml", "-o", "json"],
    )
    .output()
    .unwrap();
    assert_code(&output, 3);
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let error = result["errors"][0].as_str().unwrap();
    assert!(error.starts_with("bad.yaml:6:"), "{error}");

    // The directory holds both, and the same policy twice.
    let output = command(dir.path(), &["policy", "check", "-f", "."])
        .output()
        .unwrap();
    assert_code(&output, 3);

    let output = command(dir.path(), &["policy", "check", "-f", "missing.yaml"])
        .output()
        .unwrap();
    assert_code(&output, 1);
    assert!(text(&output.stderr).contains("missing.yaml"));
}

#[test]
fn documents_are_read_from_standard_input() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = command(dir.path(), &["policy", "check", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(GOOD.as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert_code(&output, 0);
}

#[test]
fn a_closed_pipe_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("good.yaml"), GOOD).unwrap();
    let mut child = command(dir.path(), &["policy", "check", "-f", "good.yaml"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_code(&output, 0);
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn doctor_without_a_daemon_looks_for_itself_and_reports_as_json() {
    let dir = tempfile::tempdir().unwrap();
    let output = command(dir.path(), &["doctor", "-o", "json"])
        .output()
        .unwrap();
    let findings: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = findings.as_array().unwrap();
    let of = |subject: &str| {
        findings
            .iter()
            .find(|finding| finding["subject"] == subject)
            .unwrap_or_else(|| panic!("no finding about {subject}"))
    };
    assert_eq!(of("daemon")["level"], "warn");
    assert_eq!(
        of("bpffs")["level"],
        "fail",
        "the directory is an ordinary one"
    );
    assert!(of("bpffs")["hint"].as_str().unwrap().contains("bpf"));
    assert_code(&output, 1);
}

#[test]
fn run_refuses_a_host_that_is_not_fit_and_touches_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let output = command(dir.path(), &["run", "--no-docker"])
        .output()
        .unwrap();
    assert_code(&output, 1);
    let stderr = text(&output.stderr);
    assert!(stderr.contains("error: cannot start: "), "{stderr}");
    assert!(stderr.contains("hint: "), "{stderr}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn detach_beside_a_running_daemon_needs_force_and_warns() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api.sock");
    let _daemon = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let run = |force: &[&str]| {
        let mut arguments = vec!["detach", "--socket", socket.to_str().unwrap()];
        arguments.extend(force);
        command(dir.path(), &arguments).output().unwrap()
    };
    let refused = run(&[]);
    assert_code(&refused, 1);
    assert!(text(&refused.stderr).contains("--force"));
    let forced = run(&["--force"]);
    assert_code(&forced, 0);
    assert_eq!(text(&forced.stdout), "nothing was attached\n");
    assert!(text(&forced.stderr).contains("warning: the daemon on"));
}
