//! The daemon's death, restart and end: what is in force stays in force, until `detach`, and then
//! nothing is left. Each story runs with TCX links and with the clsact fallback.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use netns_tests::bed::{
    ADMIN, Bed, Family, PATIENT, SILENCE, TCP, allow, connect, default_deny, tcp,
};
use netns_tests::objects::{Objects, network_configuration};
use netns_tests::portcullis::{Daemon, Options};
use testbed::{Outcome, require_root};

fn tcx() -> Options {
    Options::new()
}

fn clsact() -> Options {
    Options::new().env("PORTCULLIS_ATTACH", "clsact")
}

fn rules() -> String {
    default_deny() + &allow("web", "api", TCP)
}

fn start(bed: &Bed, options: Options) -> Daemon {
    let daemon = Daemon::start(&bed.lab, options.inventory(bed.inventory()).mode("protect"));
    daemon.replace(&rules());
    daemon
}

/// Verdicts of the rules above, for new connections.
#[track_caller]
fn enforced(bed: &Bed) {
    bed.both_allowed(&bed.web, &bed.api, TCP);
    bed.both_denied(&bed.web, &bed.api, ADMIN);
    bed.both_denied(&bed.peer, &bed.api, TCP);
}

fn killed_and_restarted(options: Options) {
    let bed = Bed::new();
    let mut daemon = start(&bed, options);
    let mut connections: Vec<_> = Family::BOTH
        .iter()
        .map(|&family| connect(family, &bed.web, &bed.api, TCP))
        .collect();
    let in_force = daemon.in_force();
    let workloads = [&bed.web, &bed.api, &bed.peer];
    let objects = Objects::attached(&bed.lab, &workloads);
    assert!(!objects.is_empty());

    daemon.kill9();
    enforced(&bed);
    for connection in &mut connections {
        assert_eq!(connection.exchange("alone", PATIENT), Outcome::Replied);
    }
    assert_eq!(Objects::attached(&bed.lab, &workloads), objects);

    daemon.restart();
    enforced(&bed);
    for connection in &mut connections {
        assert_eq!(connection.exchange("adopted", PATIENT), Outcome::Replied);
    }
    let adopted = Objects::attached(&bed.lab, &workloads);
    let kept = (&adopted.maps & &objects.maps).len();
    assert_eq!(
        kept,
        daemon.pinned_maps().len(),
        "every pinned map is adopted"
    );
    assert_eq!(adopted.programs.len(), objects.programs.len());
    // All but the generation, which may only rise.
    let after = daemon.in_force();
    let (generation, rest) = after.split_last().expect("five values");
    let (former, expected) = in_force.split_last().expect("five values");
    assert_eq!(rest, expected);
    assert!(generation.as_u64() >= former.as_u64());
    assert_eq!(daemon.packets("dropped", "no_endpoint"), 0, "an outage");

    // It is in charge again, of the old connections too.
    daemon.replace(&default_deny());
    bed.both_denied(&bed.web, &bed.api, TCP);
    for connection in &mut connections {
        assert_eq!(connection.exchange("revoked", SILENCE), Outcome::TimedOut);
    }
}

#[test]
fn a_killed_daemon_leaves_enforcement_and_its_successor_adopts_it() {
    require_root!();
    killed_and_restarted(tcx());
}

#[test]
fn a_killed_daemon_leaves_enforcement_and_its_successor_adopts_it_with_clsact() {
    require_root!();
    killed_and_restarted(clsact());
}

fn no_gap(options: Options) {
    let bed = Bed::new();
    let mut daemon = start(&bed, options);
    let stop = AtomicBool::new(false);
    let (tried, leaked) = (AtomicU64::new(0), AtomicU64::new(0));
    let mut connection = connect(Family::V4, &bed.web, &bed.api, TCP);
    std::thread::scope(|scope| {
        for family in Family::BOTH {
            let (bed, stop, tried, leaked) = (&bed, &stop, &tried, &leaked);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    // The attempt itself is the point; waiting for its failure is not.
                    let silence = SILENCE / 20;
                    if tcp(family, &bed.peer, &bed.api, TCP, silence) != Outcome::TimedOut {
                        leaked.fetch_add(1, Ordering::Relaxed);
                    }
                    tried.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let stop = StopOnDrop(&stop);
        for _ in 0..2 {
            daemon.kill9();
            assert_eq!(connection.exchange("dead", PATIENT), Outcome::Replied);
            daemon.restart();
            assert_eq!(connection.exchange("alive", PATIENT), Outcome::Replied);
        }
        daemon.stop();
        daemon.restart();
        assert_eq!(connection.exchange("again", PATIENT), Outcome::Replied);
        drop(stop);
    });
    assert!(tried.load(Ordering::Relaxed) > 20);
    assert_eq!(leaked.load(Ordering::Relaxed), 0, "of {tried:?}");
    let (peer, api) = (bed.peer.addresses(), bed.api.addresses());
    for (from, to) in peer.into_iter().zip(api) {
        assert_eq!(bed.reached(from, to), 0, "{from} reached {to}");
    }
}

/// Ends the other threads also when an assertion of this one fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn no_packet_slips_through_while_daemons_come_and_go() {
    require_root!();
    no_gap(tcx());
}

#[test]
fn no_packet_slips_through_while_daemons_come_and_go_with_clsact() {
    require_root!();
    no_gap(clsact());
}

/// Without empty clsact qdiscs: another tool may have made them, so `detach` takes only our filters
/// out of them, which [`Objects::attached`] asserts.
fn without_clsact(mut lines: Vec<String>) -> Vec<String> {
    lines.retain(|line| !line.contains("qdisc clsact"));
    lines
}

fn stopped_and_detached(options: Options) {
    let bed = Bed::new();
    let workloads = [&bed.web, &bed.api, &bed.peer];
    let before = network_configuration(bed.lab.host());
    let mut daemon = start(&bed, options);
    enforced(&bed);
    let objects = Objects::attached(&bed.lab, &workloads);
    assert_eq!(objects.alive(), objects);
    assert!(!daemon.pinned_maps().is_empty());
    // Enforcement is BPF alone: no rule, no route, no packet filter.
    let during = without_clsact(network_configuration(bed.lab.host()));
    assert_eq!(during, before);

    daemon.stop();
    enforced(&bed);
    assert_eq!(Objects::attached(&bed.lab, &workloads), objects);

    let said = daemon.detach().stdout;
    assert!(said.contains("removed"), "{said}");
    bed.both_allowed(&bed.web, &bed.api, ADMIN);
    bed.both_allowed(&bed.peer, &bed.api, TCP);
    assert!(Objects::attached(&bed.lab, &workloads).is_empty());
    objects.wait_until_gone();
    assert!(!daemon.pins().exists(), "{:?}", daemon.bpffs().entries());
    assert_eq!(
        without_clsact(network_configuration(bed.lab.host())),
        before
    );

    let nothing = daemon.detach().stdout;
    assert_eq!(nothing, "nothing was attached\n");

    // Off is not forgotten: the next start enforces again.
    daemon.restart();
    enforced(&bed);
}

#[test]
fn a_stopped_daemon_leaves_enforcement_and_detach_leaves_nothing() {
    require_root!();
    stopped_and_detached(tcx());
}

#[test]
fn a_stopped_daemon_leaves_enforcement_and_detach_leaves_nothing_with_clsact() {
    require_root!();
    stopped_and_detached(clsact());
}

#[test]
fn detach_refuses_while_a_daemon_would_attach_again() {
    require_root!();
    let bed = Bed::new();
    let daemon = start(&bed, tcx());
    let refused = daemon.cli(&["detach"]);
    assert_eq!(refused.status, Some(1), "{refused:#?}");
    assert!(
        refused.stderr.contains("hint: stop it first"),
        "{refused:#?}"
    );
    enforced(&bed);
}

#[test]
fn a_second_daemon_on_the_same_places_is_refused_and_changes_nothing() {
    require_root!();
    let bed = Bed::new();
    let daemon = start(&bed, tcx());
    let second = daemon.cli(&["run", "--no-docker", "--default-mode", "discover"]);
    assert_eq!(second.status, Some(1), "{second:#?}");
    let socket = daemon.socket();
    assert!(
        second.stderr.contains(&*socket.to_string_lossy()),
        "{second:#?}"
    );
    assert!(second.stderr.contains("hint: "), "{second:#?}");
    enforced(&bed);
    daemon.replace(&default_deny());
    bed.both_denied(&bed.web, &bed.api, TCP);
}

#[test]
fn two_daemons_in_two_namespaces_do_not_disturb_each_other() {
    require_root!();
    // The same names and addresses in both.
    let (one, two) = (Bed::new(), Bed::new());
    let mut first = start(&one, tcx());
    let second = start(&two, tcx());
    enforced(&one);
    enforced(&two);
    let shared = |bed: &Bed| Objects::attached(&bed.lab, &[&bed.web, &bed.api, &bed.peer]);
    assert!((&shared(&one).maps & &shared(&two).maps).is_empty());

    let in_force = second.in_force();
    let dropped = second.packets("dropped", "");
    first.replace(&default_deny());
    one.both_denied(&one.web, &one.api, TCP);
    first.stop();
    first.detach();
    one.both_allowed(&one.peer, &one.api, TCP);
    assert_eq!(second.in_force(), in_force);
    assert_eq!(second.packets("dropped", ""), dropped);
    enforced(&two);
}
