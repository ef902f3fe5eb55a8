//! Workloads that come back, and addresses that change hands.

use std::net::SocketAddr;

use netns_tests::bed::{
    ADMIN, Bed, Family, Inventory, PATIENT, SILENCE, TCP, allow, connect, default_deny, policy, tcp,
};
use netns_tests::portcullis::{Daemon, Options, SOON};
use testbed::{Connection, Outcome, Workload, require_root, wait_until};

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

fn build(bed: &Bed, name: &str, host_name: &str, number: u8) -> Workload {
    bed.lab
        .workload(name)
        .on(&bed.bridge)
        .v4(&format!("10.61.0.{number}"))
        .v6(&format!("fd61::{number:x}"))
        .host_name(host_name)
        .build()
        .expect("a workload")
}

fn wait_enforced(daemon: &Daemon, name: &str, enforced: bool) {
    wait_until(SOON, &format!("{name} to be enforced: {enforced}"), || {
        daemon
            .workload(name)
            .is_some_and(|workload| workload["enforced"] == enforced)
    })
    .unwrap_or_else(|error| panic!("{error}: {:#}", daemon.json(&["workloads"])));
}

#[test]
fn a_workload_that_returns_with_another_address_keeps_identity_group_and_rules() {
    require_root!();
    let mut bed = Bed::new();
    let daemon = start(&bed);
    bed.both_allowed(&bed.web, &bed.api, TCP);
    let before = daemon.workload("web").expect("web is known");

    bed.lab.remove(&bed.web).expect("web was there");
    bed.web = build(&bed, "web", "v-web2", 20);
    let web = bed.web.clone();
    bed.serve(&web);
    daemon.inventory(&bed.inventory().text());
    bed.both_allowed(&bed.web, &bed.api, TCP);
    bed.both_denied(&bed.web, &bed.api, ADMIN);
    bed.both_denied(&bed.api, &bed.web, TCP);
    let after = daemon.workload("web").expect("web is known");
    for field in ["identity", "group", "labels", "mode"] {
        assert_eq!(after[field], before[field], "{field}");
    }
    assert_ne!(after["addresses"], before["addresses"]);
}

#[test]
fn an_address_given_to_another_workload_brings_neither_rules_nor_flows() {
    require_root!();
    let mut bed = Bed::new();
    let daemon = start(&bed);
    // A connection from a port that the next owner of the address will use too.
    const PORT: u16 = 40_001;
    let old = bed.web.clone();
    for family in Family::BOTH {
        let to = SocketAddr::new(family.of(&bed.api), TCP);
        let mut connection = old
            .run(|| Connection::open_from(PORT, to, PATIENT))
            .expect("a namespace")
            .expect("web may");
        assert_eq!(connection.exchange("mine", PATIENT), Outcome::Replied);
        connection.abort();
    }
    bed.lab.remove(&bed.web).expect("web was there");
    let heir = build(&bed, "heir", "v-heir", 10);
    bed.web = build(&bed, "web", "v-web", 20);
    let web = bed.web.clone();
    bed.serve(&web);
    let inventory = bed
        .inventory()
        .workload(&heir, "lab", &[("app", "heir")])
        .text();
    daemon.apply(&policy(
        "lab",
        "open-egress",
        "podSelector: {}\npolicyTypes: [Egress]\negress: [{}]",
    ));
    daemon.inventory(&inventory);
    for family in Family::BOTH {
        let to = SocketAddr::new(family.of(&bed.api), TCP);
        // Old owners were counted under the same address, so compare.
        let seen = bed.reached(family.of(&heir), to.ip());
        let refused = heir
            .run(|| Connection::open_from(PORT, to, SILENCE))
            .expect("a namespace");
        assert_eq!(refused.err(), Some(Outcome::TimedOut));
        assert_eq!(bed.reached(family.of(&heir), to.ip()), seen);
    }
    bed.both_allowed(&bed.web, &bed.api, TCP);
    let refused = daemon.flow(&[
        "--verdict",
        "dropped",
        "--from",
        "lab/heir",
        "--to",
        "shop/api",
    ]);
    assert_eq!(refused["direction"], "ingress", "{refused}");
    let inherited = daemon.flows(&["--verdict", "forwarded", "--from", "lab/heir"]);
    let to_api: Vec<_> = inherited
        .iter()
        .filter(|flow| flow["direction"] == "ingress" && flow["destination"]["workload"] == "api")
        .collect();
    assert!(to_api.is_empty(), "{to_api:#?}");
}

#[test]
fn an_interface_that_returns_under_its_name_is_enforced_without_a_command() {
    require_root!();
    let mut bed = Bed::new();
    let daemon = start(&bed);
    let identity = daemon.workload("web").expect("web is known")["identity"].clone();
    let mut other = connect(Family::V4, &bed.web, &bed.api, TCP);
    for _ in 0..2 {
        let index = bed.web.interfaces[0].host_ifindex;
        bed.lab.remove(&bed.web).expect("web was there");
        wait_enforced(&daemon, "web", false);
        // The others are not touched by it.
        bed.both_denied(&bed.peer, &bed.api, TCP);
        bed.web = build(&bed, "web", "v-web", 10);
        assert_ne!(bed.web.interfaces[0].host_ifindex, index);
        wait_enforced(&daemon, "web", true);
        bed.both_allowed(&bed.web, &bed.api, TCP);
        bed.both_denied(&bed.web, &bed.api, ADMIN);
        let web = daemon.workload("web").expect("web is known");
        assert_eq!(web["identity"], identity);
        assert_eq!(web["interface"], "v-web");
    }
    assert_ne!(other.exchange("gone", SILENCE), Outcome::Replied);
}

#[test]
fn a_namespace_without_an_entry_becomes_a_workload_and_is_judged_by_default() {
    require_root!();
    let mut bed = Bed::new();
    let daemon = Daemon::start(
        &bed.lab,
        Options::new()
            .inventory(
                Inventory::new()
                    .workload(&bed.web, "shop", &[("app", "web")])
                    .workload(&bed.api, "shop", &[("app", "api")]),
            )
            .mode("protect"),
    );
    daemon.replace(&rules());
    let peer = bed.peer.netns.name().expect("a named namespace").to_owned();
    let found = daemon.workload(&peer).expect("it was there at the start");
    assert_eq!(found["source"], "netns", "{found}");
    bed.both_denied(&bed.peer, &bed.api, TCP);
    assert_eq!(found["enforced"], true, "{found}");

    // One that comes later is found by itself.
    let late = build(&bed, "late", "v-late", 30);
    bed.serve(&late);
    let name = late.netns.name().expect("a named namespace").to_owned();
    wait_enforced(&daemon, &name, true);
    bed.both_denied(&late, &bed.api, TCP);
    let refused = tcp(Family::V4, &bed.web, &late, TCP, SILENCE);
    assert_eq!(refused, Outcome::TimedOut);

    bed.lab.remove(&late).expect("late was there");
    wait_until(SOON, "it to disappear", || daemon.workload(&name).is_none())
        .expect("nobody declared it");
    bed.both_allowed(&bed.web, &bed.api, TCP);
}
