//! Bad input: a clear error with the cause and a way out, and the state in force as it was.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use netns_tests::bed::{ADMIN, Bed, TCP, allow, allow_ingress, default_deny};
use netns_tests::portcullis::{Daemon, Options, Output, binary};
use testbed::require_root;

fn rules() -> String {
    default_deny() + &allow("web", "api", TCP)
}

fn start(bed: &Bed) -> Daemon {
    let daemon = Daemon::start(
        &bed.lab,
        Options::new().inventory(bed.inventory()).mode("protect"),
    );
    daemon.replace(&rules());
    daemon
}

#[track_caller]
fn enforced(bed: &Bed) {
    bed.both_allowed(&bed.web, &bed.api, TCP);
    bed.both_denied(&bed.web, &bed.api, ADMIN);
}

/// Failed with this code, said `error: ` and each of the texts.
#[track_caller]
fn refused(output: &Output, code: i32, texts: &[&str]) {
    assert_eq!(output.status, Some(code), "{output:#?}");
    assert!(output.stderr.contains("error: "), "{output:#?}");
    for text in texts {
        assert!(output.stderr.contains(text), "no `{text}` in {output:#?}");
    }
    assert_eq!(output.stdout, "", "{output:#?}");
    assert!(!output.stderr.contains("panicked"), "{output:#?}");
}

#[test]
fn policies_with_mistakes_are_refused_whole() {
    require_root!();
    let bed = Bed::new();
    let daemon = start(&bed);
    let in_force = daemon.in_force();
    // In each, a sound document that would open more comes first.
    let open = allow_ingress("web", "api", ADMIN);
    let spec = |text: &str| format!("{open}{}", netns_tests::bed::policy("shop", "bad", text));
    let cases: [(&str, String, &[&str]); 8] = [
        (
            "malformed",
            format!("{open}---\nkind: [unclosed\n"),
            &["<stdin>:"],
        ),
        (
            "unknown field",
            spec("podSelector: {}\npodSelektor: {}"),
            &["podSelektor", "<stdin>:"],
        ),
        (
            "unknown field deep inside",
            spec("podSelector: {}\ningress:\n- fron: []"),
            &["fron"],
        ),
        (
            "unknown kind",
            format!("{open}---\napiVersion: v1\nkind: Pod\nmetadata: {{name: x}}\n"),
            &["Pod"],
        ),
        (
            "bad block",
            spec("podSelector: {}\ningress:\n- from:\n  - ipBlock: {cidr: 10.0.0.0/33}"),
            &["10.0.0.0/33"],
        ),
        (
            "bad port",
            spec("podSelector: {}\ningress:\n- ports: [{port: 70000}]"),
            &["70000"],
        ),
        (
            "bad operator",
            spec("podSelector: {matchExpressions: [{key: a, operator: Nope}]}"),
            &["Nope"],
        ),
        (
            "the same name twice",
            spec("podSelector: {}") + &netns_tests::bed::policy("shop", "bad", "podSelector: {}"),
            &["shop/bad"],
        ),
    ];
    for (name, text, needles) in &cases {
        for command in ["apply", "replace"] {
            let output = daemon.cli_with_input(&["policy", command, "-f", "-"], text);
            refused(&output, 1, needles);
            assert_eq!(daemon.in_force(), in_force, "after {name}");
        }
        let checked = daemon.cli_with_input(&["policy", "check", "-f", "-"], text);
        assert_eq!(checked.status, Some(3), "{name}: {checked:#?}");
        for needle in *needles {
            assert!(checked.stdout.contains(needle), "{checked:#?}");
        }
    }
    let missing = daemon.cli(&["policy", "apply", "-f", "/nonexistent/policies"]);
    refused(&missing, 1, &["/nonexistent/policies"]);
    let unknown = daemon.cli(&["policy", "delete", "shop/no-such-policy"]);
    refused(&unknown, 1, &["shop/no-such-policy"]);
    let group = daemon.cli(&["mode", "set", "shop/nobody", "protect"]);
    assert_eq!(daemon.in_force()[0], in_force[0], "{group:#?}");
    let mode = daemon.cli(&["mode", "set", "--all", "enforce"]);
    assert_eq!(mode.status, Some(2), "{mode:#?}");
    assert!(
        mode.stderr.contains("discover, monitor or protect"),
        "{mode:#?}"
    );
    assert_eq!(daemon.in_force()[..4], in_force[..4]);
    enforced(&bed);
}

#[test]
fn inventories_with_mistakes_are_refused_whole() {
    require_root!();
    let bed = Bed::new();
    let daemon = start(&bed);
    let in_force = daemon.in_force();
    let good = bed.inventory().text();
    let entry = |name: &str, interface: &str, ip: &str| {
        format!("- {{name: {name}, namespace: shop, interface: {interface}, ips: [\"{ip}\"]}}\n")
    };
    let peer = &bed.peer.interfaces[0].host_name;
    let without_peer = good.split("- name: peer").next().expect("a first part");
    let cases: [(&str, String, &[&str]); 6] = [
        (
            "malformed",
            "kind: Inventory\nworkloads: {".to_owned(),
            &["<stdin>:"],
        ),
        ("unknown field", format!("{good}colour: red\n"), &["colour"]),
        (
            "duplicate workload",
            good.clone() + &entry("web", "v-nobody", "10.61.0.99"),
            &["`web`", "declared twice"],
        ),
        (
            "missing interface",
            good.clone() + &entry("ghost", "v-ghost", "10.61.0.99"),
            &["v-ghost", "ghost"],
        ),
        (
            "address claimed twice",
            without_peer.to_owned() + &entry("thief", peer, "10.61.0.10"),
            &["10.61.0.10", "`web`"],
        ),
        (
            "interface claimed twice",
            good.clone() + &entry("twin", peer, "10.61.0.99"),
            &[peer, "`peer`"],
        ),
    ];
    for (name, text, needles) in &cases {
        let output = daemon.cli_with_input(&["inventory", "apply", "-f", "-"], text);
        refused(&output, 1, needles);
        assert!(
            output.stderr.contains("<stdin>:"),
            "no place in {output:#?}"
        );
        assert_eq!(daemon.in_force(), in_force, "after {name}");
    }
    enforced(&bed);
}

/// A start that must fail, beside what a stopped daemon left in force.
fn failing_start(start: impl FnOnce(&Bed, &Daemon) -> Output, texts: &[&str]) {
    let bed = Bed::new();
    let mut daemon = self::start(&bed);
    let in_force = daemon.in_force();
    daemon.stop();
    let output = start(&bed, &daemon);
    refused(&output, 1, texts);
    assert!(!daemon.socket().exists());
    enforced(&bed);
    daemon.restart();
    let after = daemon.in_force();
    assert_eq!(after[..4], in_force[..4]);
}

fn in_host(bed: &Bed, command: Command) -> Output {
    bed.lab
        .host()
        .run(|| Output::of(command, ""))
        .expect("the host namespace")
}

/// `command` run by another program, with the same environment.
fn through(program: &str, arguments: &[&str], command: &Command) -> Command {
    let mut outer = Command::new(program);
    outer
        .args(arguments)
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    outer
}

#[test]
fn without_privileges_it_does_not_start() {
    require_root!();
    // Root without capabilities, as in many containers.
    let capabilities = ["--bounding-set=-all", "--inh-caps=-all"];
    failing_start(
        |bed, daemon| {
            in_host(
                bed,
                through("setpriv", &capabilities, &daemon.run_command()),
            )
        },
        &["privileges", "CAP_NET_ADMIN", "hint: start as root"],
    );
}

#[test]
fn an_ordinary_user_cannot_start_it_nor_ask_it() {
    require_root!();
    let bed = Bed::new();
    let daemon = start(&bed);
    let in_force = daemon.in_force();
    // The build directory may be closed to others.
    let open = tempfile::tempdir().expect("a temporary directory");
    let everyone = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(open.path(), everyone).expect("permissions");
    let copy = open.path().join("portcullis");
    std::fs::copy(binary(), &copy).expect("a copy of the binary");
    let nobody = |arguments: &[&str]| {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(&copy)
            .args(arguments)
            .env("PORTCULLIS_SOCKET", daemon.socket())
            .env("PORTCULLIS_STATE_DIR", open.path().join("state"))
            .env("PORTCULLIS_BPFFS", daemon.pins());
        in_host(&bed, command)
    };
    refused(
        &nobody(&["run", "--no-docker"]),
        1,
        &["privileges", "CAP_NET_ADMIN", "hint: start as root"],
    );
    refused(&nobody(&["status"]), 1, &["ermission denied", "hint: "]);
    refused(
        &nobody(&["mode", "set", "--all", "discover"]),
        1,
        &["ermission denied", "hint: "],
    );
    refused(&nobody(&["detach", "--force"]), 1, &["hint: run as root"]);
    assert_eq!(daemon.in_force(), in_force);
    enforced(&bed);
}

#[test]
fn an_old_kernel_is_refused_by_name() {
    require_root!();
    failing_start(
        |bed, daemon| {
            let release = daemon.file("osrelease", "4.19.0-27-amd64\n");
            let release = release.to_string_lossy();
            let script = "mount --bind \"$1\" /proc/sys/kernel/osrelease && shift && exec \"$@\"";
            let unshare = ["--mount", "sh", "-c", script, "sh", &release];
            in_host(bed, through("unshare", &unshare, &daemon.run_command()))
        },
        &[
            "kernel",
            "4.19.0-27-amd64",
            "5.15",
            "hint: run a newer kernel",
        ],
    );
}

#[test]
fn a_docker_socket_that_was_asked_for_must_answer() {
    require_root!();
    failing_start(
        |bed, daemon| {
            let mut command = daemon.command();
            command.args(["run", "--docker-socket", "/nonexistent/docker.sock"]);
            in_host(bed, command)
        },
        &["/nonexistent/docker.sock", "leave the setting out"],
    );
}

#[test]
fn files_given_at_start_are_checked_before_anything_changes() {
    require_root!();
    failing_start(
        |bed, daemon| {
            let policies = daemon.file("bad.yaml", "kind: NetworkPolicy\nspek: {}\n");
            let mut command = daemon.run_command();
            command.arg("--policies").arg(policies);
            in_host(bed, command)
        },
        &["bad.yaml", "spek"],
    );
    failing_start(
        |bed, daemon| {
            let text = "kind: Inventory\nworkloads:\n- {name: a, interface: v-web, colour: red}\n";
            let inventory = daemon.file("bad-inventory.yaml", text);
            let mut command = daemon.command();
            command
                .args(["run", "--no-docker", "--inventory"])
                .arg(inventory);
            in_host(bed, command)
        },
        &["bad-inventory.yaml:3", "colour"],
    );
    failing_start(
        |bed, daemon| {
            let text = "kind: Inventory\nworkloads:\n- {name: a, interface: v-nowhere}\n";
            let inventory = daemon.file("ghost.yaml", text);
            let mut command = daemon.command();
            command
                .args(["run", "--no-docker", "--inventory"])
                .arg(inventory);
            in_host(bed, command)
        },
        &["ghost.yaml:3", "v-nowhere"],
    );
}

#[test]
fn a_place_for_pins_that_is_no_bpffs_is_refused() {
    require_root!();
    failing_start(
        |bed, daemon| {
            let mut command = daemon.run_command();
            command.args(["--bpffs", "/tmp/portcullis-no-bpffs"]);
            in_host(bed, command)
        },
        &["bpffs", "/tmp/portcullis-no-bpffs", "hint: "],
    );
}

#[test]
fn commands_without_a_daemon_say_how_to_start_one() {
    require_root!();
    let bed = Bed::new();
    let daemon = Daemon::prepare(&bed.lab, Options::new());
    for command in ["status", "workloads", "flows", "graph", "policy list"] {
        let arguments: Vec<&str> = command.split(' ').collect();
        let output = daemon.cli(&arguments);
        let socket = daemon.socket();
        refused(
            &output,
            1,
            &[
                &socket.to_string_lossy(),
                "hint: start it with `portcullis run`",
            ],
        );
    }
}
