//! NetworkPolicy's less simple words, each with the packets that tell them from a misreading.

use netns_tests::bed::{
    ADMIN, Bed, Family, Inventory, PATIENT, SILENCE, TCP, World, default_deny, policy, tcp,
};
use netns_tests::portcullis::{Daemon, Options};
use testbed::{Outcome, require_root};

fn protect(bed: &Bed) -> Daemon {
    Daemon::start(
        &bed.lab,
        Options::new().inventory(bed.inventory()).mode("protect"),
    )
}

/// Everything in `shop` may open everything, so that only the other direction decides.
fn open_egress() -> String {
    policy(
        "shop",
        "open-egress",
        "podSelector: {}\npolicyTypes: [Egress]\negress: [{}]",
    )
}

#[test]
fn an_ip_block_covers_the_world_but_for_its_exceptions() {
    require_root!();
    let bed = Bed::new();
    let world = World::new(&bed.lab);
    let daemon = protect(&bed);
    let blocks = "- ipBlock: {cidr: 203.0.113.0/24, except: [203.0.113.10/32]}\n  \
                  - ipBlock: {cidr: \"2001:db8::/32\", except: [\"2001:db8::a/128\"]}";
    daemon.replace(
        &(default_deny()
            + &policy(
                "shop",
                "world",
                &format!(
                    "podSelector: {{matchLabels: {{app: web}}}}\npolicyTypes: [Ingress, Egress]\n\
                     egress:\n- to:\n  {blocks}\n  ports: [{{port: {TCP}}}]\n\
                     ingress:\n- from:\n  {blocks}\n  ports: [{{port: {TCP}}}]"
                ),
            )),
    );
    let [v4, except_v4, v6, except_v6] = World::ADDRESSES;
    for (inside, except) in [(v4, except_v4), (v6, except_v6)] {
        assert_eq!(world.tcp(&bed.web, inside, PATIENT), Outcome::Replied);
        assert_eq!(world.tcp(&bed.web, except, SILENCE), Outcome::TimedOut);
        assert_eq!(world.tcp(&bed.api, inside, SILENCE), Outcome::TimedOut);
    }
    // From the world, whose first addresses are inside the blocks.
    for family in Family::BOTH {
        let answered = tcp(family, world.netns(), &bed.web, TCP, PATIENT);
        assert_eq!(answered, Outcome::Replied);
        for (to, port) in [(&bed.web, ADMIN), (&bed.api, TCP)] {
            let silent = tcp(family, world.netns(), to, port, SILENCE);
            assert_eq!(silent, Outcome::TimedOut);
        }
    }
    let refused = daemon.flow(&[
        "--verdict",
        "dropped",
        "--from",
        "shop/web",
        "--ip",
        except_v4,
    ]);
    assert!(
        refused["destination"].get("workload").is_none(),
        "{refused}"
    );
}

#[test]
fn an_ip_block_covers_workloads_at_their_addresses_too() {
    require_root!();
    let bed = Bed::new();
    let daemon = protect(&bed);
    daemon.replace(
        &(open_egress()
            + &policy(
                "shop",
                "by-address",
                &format!(
                    "podSelector: {{matchLabels: {{app: api}}}}\ningress:\n- from:\n  \
                     - ipBlock: {{cidr: 10.61.0.0/24, except: [10.61.0.12/32]}}\n  \
                     - ipBlock: {{cidr: \"fd61::/64\", except: [\"fd61::c/128\"]}}\n  \
                     ports: [{{port: {TCP}}}]"
                ),
            )
            + &policy(
                "lab",
                "open-egress",
                "podSelector: {}\npolicyTypes: [Egress]\negress: [{}]",
            )),
    );
    bed.both_allowed(&bed.web, &bed.api, TCP);
    bed.both_denied(&bed.web, &bed.api, ADMIN);
    bed.both_denied(&bed.peer, &bed.api, TCP);
    let refused = daemon.flow(&[
        "--verdict",
        "dropped",
        "--from",
        "lab/peer",
        "--to",
        "shop/api",
    ]);
    assert_eq!(refused["direction"], "ingress", "{refused}");
}

#[test]
fn a_named_port_is_resolved_on_each_destination() {
    require_root!();
    let bed = Bed::new();
    let daemon = Daemon::start(
        &bed.lab,
        Options::new()
            .inventory(
                Inventory::new()
                    .workload(&bed.web, "shop", &[("app", "web")])
                    .port("http", ADMIN)
                    .workload(&bed.api, "shop", &[("app", "api")])
                    .port("http", TCP)
                    .workload(&bed.peer, "shop", &[("app", "peer")]),
            )
            .mode("protect"),
    );
    daemon.replace(&policy(
        "shop",
        "http",
        "podSelector: {}\npolicyTypes: [Ingress, Egress]\n\
         ingress:\n- ports: [{port: http}]\negress:\n- ports: [{port: http}]",
    ));
    bed.both_allowed(&bed.web, &bed.api, TCP);
    bed.both_denied(&bed.web, &bed.api, ADMIN);
    bed.both_allowed(&bed.api, &bed.web, ADMIN);
    bed.both_denied(&bed.api, &bed.web, TCP);
    // Without a port of that name a workload opens nothing.
    bed.both_denied(&bed.web, &bed.peer, TCP);
    bed.both_denied(&bed.web, &bed.peer, ADMIN);
}

#[test]
fn a_port_range_includes_both_its_ends_and_nothing_else() {
    require_root!();
    let bed = Bed::new();
    let daemon = protect(&bed);
    daemon.replace(
        &(open_egress()
            + &policy(
                "shop",
                "range",
                &format!(
                    "podSelector: {{matchLabels: {{app: api}}}}\ningress:\n\
                     - ports: [{{protocol: TCP, port: {TCP}, endPort: {ADMIN}}}]"
                ),
            )),
    );
    for family in Family::BOTH {
        for (port, expected) in [
            (TCP - 1, Outcome::TimedOut),
            (TCP, Outcome::Replied),
            // Nobody listens between the ends; that the refusal comes shows that it passes.
            (TCP + 1, Outcome::Refused),
            (ADMIN - 1, Outcome::Refused),
            (ADMIN, Outcome::Replied),
            (ADMIN + 1, Outcome::TimedOut),
        ] {
            let timeout = match expected {
                Outcome::TimedOut => SILENCE,
                _ => PATIENT,
            };
            let outcome = tcp(family, &bed.web, &bed.api, port, timeout);
            assert_eq!(outcome, expected, "port {port} over {family:?}");
        }
    }
}

#[test]
fn namespaces_are_selected_by_their_labels_of_the_moment() {
    require_root!();
    let bed = Bed::new();
    let daemon = protect(&bed);
    let from_team_b = policy(
        "shop",
        "team-b",
        &format!(
            "podSelector: {{matchLabels: {{app: api}}}}\ningress:\n- from:\n  \
             - namespaceSelector: {{matchLabels: {{team: b}}}}\n    \
             podSelector: {{matchLabels: {{app: peer}}}}\n  ports: [{{port: {TCP}}}]"
        ),
    );
    let open = policy(
        "lab",
        "open-egress",
        "podSelector: {}\npolicyTypes: [Egress]\negress: [{}]",
    );
    daemon.replace(&(open_egress() + &open + &from_team_b));
    bed.both_allowed(&bed.peer, &bed.api, TCP);
    bed.both_denied(&bed.web, &bed.api, TCP);
    bed.both_denied(&bed.peer, &bed.api, ADMIN);

    let inventory = |team: &str, app: &str| {
        Inventory::new()
            .namespace("lab", &[("team", team)])
            .workload(&bed.web, "shop", &[("app", "web")])
            .workload(&bed.api, "shop", &[("app", "api")])
            .workload(&bed.peer, "lab", &[("app", app)])
            .text()
    };
    // The labels of the namespace and of the workload must both fit.
    for (team, app, fits) in [
        ("c", "peer", false),
        ("b", "other", false),
        ("b", "peer", true),
    ] {
        daemon.inventory(&inventory(team, app));
        if fits {
            bed.both_allowed(&bed.peer, &bed.api, TCP);
        } else {
            bed.both_denied(&bed.peer, &bed.api, TCP);
        }
    }
}
