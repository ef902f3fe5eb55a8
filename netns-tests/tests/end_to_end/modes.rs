//! Modes: discover, monitor, protect, of all groups and of single ones.

use netns_tests::bed::{ADMIN, Bed, Family, TCP, allow, default_deny};
use netns_tests::portcullis::{Daemon, Options, SOON};
use testbed::{require_root, wait_until};

#[test]
fn every_change_of_mode_is_in_force_when_the_command_returns() {
    require_root!();
    let bed = Bed::new();
    let daemon = Daemon::start(&bed.lab, Options::new().inventory(bed.inventory()));
    daemon.replace(&(default_deny() + &allow("web", "api", TCP)));
    for _ in 0..2 {
        bed.both_allowed(&bed.web, &bed.api, ADMIN);
        daemon.mode("monitor");
        bed.both_allowed(&bed.web, &bed.api, ADMIN);
        daemon.mode("protect");
        bed.both_denied(&bed.web, &bed.api, ADMIN);
        bed.both_allowed(&bed.web, &bed.api, TCP);
        daemon.mode("discover");
    }
}

#[test]
fn monitor_passes_everything_and_records_what_policy_would_deny() {
    require_root!();
    let bed = Bed::new();
    let daemon = Daemon::start(
        &bed.lab,
        Options::new().inventory(bed.inventory()).mode("monitor"),
    );
    daemon.replace(&(default_deny() + &allow("web", "api", TCP)));
    bed.both_allowed(&bed.web, &bed.api, TCP);
    bed.both_allowed(&bed.web, &bed.api, ADMIN);
    for direction in ["egress", "ingress"] {
        let audited = daemon.flow(&[
            "--verdict",
            "audit",
            "--from",
            "shop/web",
            "--to",
            "shop/api",
            "--direction",
            direction,
            "--event",
            "new",
        ]);
        assert_eq!(audited["destination"]["port"], ADMIN, "{audited}");
        assert_eq!(audited["drop_reason"], "policy_default_deny", "{audited}");
        let passed = daemon.flow(&[
            "--verdict",
            "forwarded",
            "--from",
            "shop/web",
            "--to",
            "shop/api",
            "--direction",
            direction,
        ]);
        assert_eq!(passed["destination"]["port"], TCP, "{passed}");
    }
    let allowed = daemon.flows(&["--verdict", "audit", "--port", "8080/tcp"]);
    assert!(allowed.is_empty(), "{allowed:#?}");
    assert_eq!(daemon.packets("dropped", ""), 0);
    assert!(daemon.packets("audit", "") > 0);
}

#[test]
fn each_end_is_judged_in_the_mode_of_its_own_group() {
    require_root!();
    let bed = Bed::new();
    let daemon = Daemon::start(&bed.lab, Options::new().inventory(bed.inventory()));
    daemon.replace(&default_deny());
    daemon.ok(&["mode", "set", "shop/api", "protect"]);
    // The ingress of api is protected, the egress of web and peer is not.
    bed.both_denied(&bed.web, &bed.api, TCP);
    bed.both_denied(&bed.api, &bed.web, TCP);
    bed.both_allowed(&bed.peer, &bed.web, TCP);
    daemon.ok(&["mode", "set", "shop/api", "monitor"]);
    daemon.ok(&["mode", "set", "shop/web", "protect"]);
    bed.both_denied(&bed.web, &bed.api, TCP);
    bed.both_denied(&bed.peer, &bed.web, TCP);
    bed.both_allowed(&bed.peer, &bed.api, TCP);
    let modes = daemon.json(&["mode", "get"]);
    assert_eq!(modes["default"], "discover", "{modes:#}");

    daemon.mode("discover");
    bed.both_allowed(&bed.web, &bed.api, TCP);
    bed.both_allowed(&bed.peer, &bed.web, TCP);
}

#[test]
fn a_mode_that_nobody_confirms_is_taken_back() {
    require_root!();
    let bed = Bed::new();
    let daemon = Daemon::start(&bed.lab, Options::new().inventory(bed.inventory()));
    daemon.replace(&default_deny());
    daemon.ok(&["mode", "set", "--all", "protect", "--confirm-within", "3s"]);
    bed.denied(Family::V4, &bed.web, &bed.api, TCP);
    wait_until(SOON, "the mode to be taken back", || {
        daemon.json(&["mode", "get"])["default"] == "discover"
    })
    .expect("nobody confirmed");
    bed.both_allowed(&bed.web, &bed.api, TCP);

    daemon.ok(&["mode", "set", "--all", "protect", "--confirm-within", "5m"]);
    daemon.ok(&["mode", "confirm"]);
    assert!(daemon.json(&["mode", "get"]).get("pending").is_none());
    bed.both_denied(&bed.web, &bed.api, TCP);

    daemon.ok(&["mode", "set", "--all", "monitor", "--confirm-within", "5m"]);
    bed.both_allowed(&bed.web, &bed.api, TCP);
    daemon.ok(&["mode", "revert"]);
    bed.both_denied(&bed.web, &bed.api, TCP);
}
