//! The demo as a user runs it: the whole story in namespaces of its own, judged by its own numbers
//! and by what it leaves behind.

#![allow(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

use std::collections::BTreeSet;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use testbed::{require_root, wait_until};

fn demo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command.arg("demo").args(arguments).stdin(Stdio::null());
    command
}

/// Everything a demo of this process could leave behind.
fn remains(process: u32) -> BTreeSet<String> {
    let tag = format!("portcullis-demo-{process}");
    let mut found = BTreeSet::new();
    for directory in ["/run", "/run/netns", "/sys/fs/bpf"] {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name == tag || name.starts_with(&format!("{tag}-")) {
                found.insert(format!("{directory}/{name}"));
            }
        }
    }
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(&tag) {
            found.insert(format!("process {}", entry.file_name().to_string_lossy()));
        }
    }
    found
}

/// Runs the demo and gives its output and what it left behind.
fn run(arguments: &[&str]) -> (Output, BTreeSet<String>) {
    let child = demo(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let process = child.id();
    let output = child.wait_with_output().unwrap();
    (output, remains(process))
}

#[track_caller]
fn assert_success(output: &Output) -> Value {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    serde_json::from_slice(&output.stdout).expect("standard output is the summary and nothing else")
}

#[track_caller]
fn assert_story(summary: &Value, edges: u64) {
    let number = |path: &str| summary.pointer(path).and_then(Value::as_u64);
    assert_eq!(summary["ok"], true, "{summary:#}");
    assert_eq!(summary["failures"].as_array().map(Vec::len), Some(0));
    assert_eq!(number("/services"), Some(9));
    assert_eq!(number("/workloads"), Some(10));
    assert_eq!(number("/edges"), Some(edges));
    assert!(number("/rules") >= Some(2 * (edges - 3)), "{summary:#}");
    for phase in ["before", "after"] {
        let total = number(&format!("/requests/{phase}/total"));
        assert!(total > Some(0));
        assert_eq!(number(&format!("/requests/{phase}/ok")), total);
        assert_eq!(number(&format!("/requests/edges_{phase}")), Some(edges));
    }
    assert_eq!(number("/would_deny"), Some(0));
    assert_eq!(number("/collateral_drops"), Some(0));
    assert_eq!(number("/lost_events"), Some(0));
    assert_eq!(number("/old_connections/opened"), Some(4));
    assert!(number("/attacks/tried") >= Some(18));
    assert_eq!(number("/attacks/denied"), number("/attacks/tried"));
    assert_eq!(
        number("/attacks/rehearsed_reached"),
        number("/attacks/tried")
    );
    assert_eq!(number("/attacks/leaked"), Some(0));
    assert_eq!(number("/attacks/leaked_bytes"), Some(0));
    for account in summary["attacks"]["accounts"].as_array().unwrap() {
        assert_ne!(account["drop_reason"], "", "{account}");
        // A packet that is not the workload's own is refused before any rule is asked.
        let spoofed = account["drop_reason"] == "source_spoofed";
        assert_eq!(account["rule"] == "", spoofed, "{account}");
    }
    assert_eq!(summary["cleaned_up"], true);
}

#[test]
fn the_story_in_namespaces_holds_and_leaves_nothing() {
    require_root!();
    let kept = tempfile::tempdir().unwrap();
    let (output, remains) = run(&["-o", "json", "--save", kept.path().to_str().unwrap()]);
    let summary = assert_success(&output);
    assert_eq!(summary["place"], "namespaces");
    assert_story(&summary, 26);
    assert_eq!(remains, BTreeSet::new());

    // What it saved is what it says: policies that check, and pictures.
    let policies = kept.path().join("networkpolicy.yaml");
    let check = Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(["policy", "check", "-o", "json", "-f"])
        .arg(&policies)
        .output()
        .unwrap();
    let result: Value = serde_json::from_slice(&check.stdout).unwrap();
    assert_eq!(result["errors"].as_array().map(Vec::len), Some(0));
    assert_eq!(
        result["policies"].as_array().map(|p| p.len() as u64),
        summary["policies"].as_u64()
    );
    for (name, begins) in [
        ("graph.mmd", "flowchart"),
        ("graph.dot", "digraph"),
        ("graph.svg", "<svg"),
    ] {
        let text = std::fs::read_to_string(kept.path().join(name)).unwrap();
        assert!(text.starts_with(begins), "{name}: {text}");
    }
}

#[test]
fn the_story_in_docker_holds_and_leaves_nothing() {
    require_root!();
    let (output, remains) = run(&["--docker", "-o", "json"]);
    let summary = assert_success(&output);
    assert_eq!(summary["place"], "docker");
    assert_story(&summary, 25);
    assert_eq!(remains, BTreeSet::new());
}

#[test]
fn an_interrupted_demo_removes_everything() {
    require_root!();
    let mut child = demo(&[])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let process = child.id();
    let pins = format!("/sys/fs/bpf/portcullis-demo-{process}");
    wait_until(
        Duration::from_secs(30),
        "the daemon to pin its maps",
        || std::path::Path::new(&pins).exists(),
    )
    .unwrap();
    assert!(remains(process).len() > 10);
    // SAFETY: kill(2) takes two integers; the child is not reaped before `wait_with_output`.
    assert_eq!(unsafe { libc::kill(process as i32, libc::SIGINT) }, 0);
    let _ = child.try_wait();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("interrupted"), "{stderr}");
    assert_eq!(remains(process), BTreeSet::new());
}

#[test]
fn a_reader_that_goes_away_leaves_nothing_behind() {
    require_root!();
    let mut child = demo(&[])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let process = child.id();
    drop(child.stdout.take());
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(1));
    assert_eq!(remains(process), BTreeSet::new());
}
