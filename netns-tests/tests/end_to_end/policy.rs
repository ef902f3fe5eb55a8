//! Protect mode: what policy allows passes, nothing else does, and a command that has returned is in
//! force.

use netns_tests::bed::{
    ADMIN, Bed, Family, PATIENT, SILENCE, TCP, UDP, allow, allow_egress, allow_ingress,
    default_deny, ping, policy, tcp, udp,
};
use netns_tests::portcullis::{Daemon, Options};
use testbed::{Outcome, require_root};

#[test]
fn a_probe_sent_after_the_command_sees_allow_replace_and_delete() {
    require_root!();
    let bed = Bed::new();
    let daemon = Daemon::start(
        &bed.lab,
        Options::new().inventory(bed.inventory()).mode("protect"),
    );
    bed.both_denied(&bed.web, &bed.api, TCP);

    let mut generation = 0;
    let mut raised = |output: netns_tests::portcullis::Output| {
        let now = output
            .stdout
            .rsplit(' ')
            .next()
            .and_then(|word| word.trim().parse::<u64>().ok())
            .unwrap_or_else(|| panic!("no generation in {output:#?}"));
        assert!(now > generation, "{now} after {generation}");
        generation = now;
    };
    for _ in 0..3 {
        raised(daemon.apply(&(default_deny() + &allow("web", "api", TCP))));
        bed.both_allowed(&bed.web, &bed.api, TCP);
        bed.both_denied(&bed.web, &bed.api, ADMIN);
        bed.denied(Family::V4, &bed.api, &bed.web, TCP);

        raised(daemon.replace(&(default_deny() + &allow("web", "api", ADMIN))));
        bed.both_denied(&bed.web, &bed.api, TCP);
        bed.both_allowed(&bed.web, &bed.api, ADMIN);

        raised(daemon.ok(&["policy", "delete", "shop/api-ingress-web-9000"]));
        bed.both_denied(&bed.web, &bed.api, ADMIN);
    }
    let dropped = daemon.flow(&[
        "--verdict",
        "dropped",
        "--from",
        "shop/web",
        "--to",
        "shop/api",
        "--port",
        "9000/tcp",
        "--direction",
        "ingress",
    ]);
    assert_eq!(dropped["drop_reason"], "policy_default_deny", "{dropped}");
    assert_eq!(dropped["opener"], "certain", "{dropped}");
    assert!(daemon.packets("dropped", "policy_default_deny") > 0);
    assert_eq!(daemon.packets("audit", ""), 0);
}

#[test]
fn the_sources_egress_and_the_destinations_ingress_must_both_allow() {
    require_root!();
    let bed = Bed::new();
    let daemon = Daemon::start(
        &bed.lab,
        Options::new().inventory(bed.inventory()).mode("protect"),
    );
    for (half, judged_by) in [
        (allow_egress("web", "api", TCP), "ingress"),
        (allow_ingress("web", "api", TCP), "egress"),
    ] {
        daemon.replace(&(default_deny() + &half));
        bed.both_denied(&bed.web, &bed.api, TCP);
        let refused = daemon.flow(&[
            "--verdict",
            "dropped",
            "--from",
            "shop/web",
            "--to",
            "shop/api",
            "--port",
            "8080/tcp",
            "--direction",
            judged_by,
        ]);
        assert_eq!(refused["drop_reason"], "policy_default_deny", "{refused}");
        let generation = refused["generation"].clone();
        assert_eq!(generation, daemon.json(&["status"])["generation"]);
    }
    daemon.replace(&(default_deny() + &allow("web", "api", TCP)));
    bed.both_allowed(&bed.web, &bed.api, TCP);
    let passed = daemon.flow(&[
        "--verdict",
        "forwarded",
        "--from",
        "shop/web",
        "--to",
        "shop/api",
        "--direction",
        "ingress",
    ]);
    assert_eq!(
        passed["rule"]["policy"], "shop/api-ingress-web-8080",
        "{passed}"
    );
}

#[test]
fn udp_is_judged_by_protocol_and_icmp_has_no_rule_to_pass_by() {
    require_root!();
    let bed = Bed::new();
    let daemon = Daemon::start(
        &bed.lab,
        Options::new().inventory(bed.inventory()).mode("protect"),
    );
    let udp_rule = |direction: &str, field: &str, app: &str, from: &str| {
        policy(
            "shop",
            &format!("udp-{app}"),
            &format!(
                "podSelector: {{matchLabels: {{app: {app}}}}}\npolicyTypes: [{direction}]\n\
                 {}:\n- {field}:\n  - podSelector: {{matchLabels: {{app: {from}}}}}\n  ports:\n  \
                 - {{protocol: UDP, port: {UDP}}}",
                direction.to_lowercase()
            ),
        )
    };
    daemon.replace(
        &(default_deny()
            + &udp_rule("Egress", "to", "web", "api")
            + &udp_rule("Ingress", "from", "api", "web")),
    );
    for family in Family::BOTH {
        let (web, api) = (family.of(&bed.web), family.of(&bed.api));
        assert_eq!(
            udp(family, &bed.web, &bed.api, UDP, PATIENT),
            Outcome::Replied
        );
        let (to_api, to_web) = (bed.reached(web, api), bed.reached(api, web));
        assert_eq!(
            udp(family, &bed.api, &bed.web, UDP, SILENCE),
            Outcome::TimedOut
        );
        assert_eq!(
            tcp(family, &bed.web, &bed.api, UDP, SILENCE),
            Outcome::TimedOut
        );
        assert_eq!(ping(family, &bed.web, &bed.api, SILENCE), Outcome::TimedOut);
        assert_eq!(
            (bed.reached(web, api), bed.reached(api, web)),
            (to_api, to_web)
        );
    }
    for protocol in ["icmp", "icmpv6"] {
        let refused = daemon.flow(&["--verdict", "dropped", "--protocol", protocol]);
        assert_eq!(refused["source"]["workload"], "web", "{refused}");
        assert_eq!(refused["drop_reason"], "policy_default_deny", "{refused}");
    }

    daemon.replace(&udp_rule("Ingress", "from", "api", "web"));
    for family in Family::BOTH {
        let answered = udp(family, &bed.web, &bed.api, UDP, SILENCE);
        assert_eq!(
            answered,
            Outcome::TimedOut,
            "egress of web is unselected, so denied"
        );
    }
}

#[test]
fn unselected_workloads_are_denied_by_default_and_open_on_request() {
    require_root!();
    let bed = Bed::new();
    let open = Daemon::start(
        &bed.lab,
        Options::new()
            .inventory(bed.inventory())
            .mode("protect")
            .argument("--unselected")
            .argument("allow"),
    );
    bed.both_allowed(&bed.peer, &bed.api, TCP);
    bed.both_allowed(&bed.web, &bed.api, TCP);
    for family in Family::BOTH {
        assert_eq!(ping(family, &bed.web, &bed.api, PATIENT), Outcome::Replied);
    }
    open.apply(&allow_ingress("web", "api", TCP));
    bed.both_denied(&bed.peer, &bed.api, TCP);
    bed.both_denied(&bed.web, &bed.api, ADMIN);
    bed.both_allowed(&bed.web, &bed.api, TCP);
    bed.both_allowed(&bed.api, &bed.peer, TCP);
    bed.both_allowed(&bed.peer, &bed.web, TCP);
    drop(open);

    // The same policies, with the default of zero trust.
    let closed = Daemon::start(
        &bed.lab,
        Options::new().inventory(bed.inventory()).mode("protect"),
    );
    bed.denied(Family::V4, &bed.peer, &bed.web, TCP);
    closed.apply(&allow_ingress("web", "api", TCP));
    bed.denied(Family::V4, &bed.web, &bed.api, TCP);
    closed.apply(&allow_egress("web", "api", TCP));
    bed.both_allowed(&bed.web, &bed.api, TCP);
    bed.both_denied(&bed.peer, &bed.web, TCP);
}

#[test]
fn an_explanation_says_what_the_kernel_does() {
    require_root!();
    let bed = Bed::new();
    let daemon = Daemon::start(
        &bed.lab,
        Options::new().inventory(bed.inventory()).mode("protect"),
    );
    daemon.replace(&(default_deny() + &allow("web", "api", TCP)));
    let explain = |from: &str, to: &str, port: &str| {
        daemon.json(&[
            "policy", "explain", "--from", from, "--to", to, "--port", port,
        ])
    };
    let allowed = explain("shop/web", "shop/api", "8080/tcp");
    assert_eq!(allowed["verdict"], "forwarded", "{allowed:#}");
    bed.both_allowed(&bed.web, &bed.api, TCP);
    let named = explain("shop/web", "shop/api", "http");
    assert_eq!(named["verdict"], "forwarded", "{named:#}");
    let denied = explain("lab/peer", "shop/api", "8080/tcp");
    assert_eq!(denied["verdict"], "dropped", "{denied:#}");
    bed.both_denied(&bed.peer, &bed.api, TCP);
}
