//! Packet tables: what the BPF programs do with one packet, or with a few in a row.
//!
//! `web` (10.0.0.2, fd00::2) is the workload under test, `api` is .3, `db` is .4, the host is .1.

use dataplane_common::DropReason as Reason;
use dataplane_common::conntrack::flags;
use dataplane_common::event::EventKind as Kind;
use dataplane_common::stats::Verdict;
use netns_tests::frames::{self, ETHERNET_LEN, end, icmp_error, tcp, udp};
use netns_tests::kernel::{Kernel, with_configured_kernel, with_kernel};
use policy::model::Mode;
use testbed::require_root;

/// web accepts api on 80/tcp and 192.0.2.0/24 on 443/tcp; may reach db on 5432/tcp, anyone on
/// 53/udp, and ports 8000 to 8099 of api.
const POLICY: &str = r"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress, Egress]
  ingress:
  - from: [{podSelector: {matchLabels: {app: api}}}]
    ports: [{port: 80}]
  - from: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.128/25]}}, {ipBlock: {cidr: '2001:db8::/32'}}]
    ports: [{port: 443}]
  egress:
  - to: [{podSelector: {matchLabels: {app: db}}}]
    ports: [{port: 5432}]
  - ports: [{port: 53, protocol: UDP}]
  - to: [{podSelector: {matchLabels: {app: api}}}]
    ports: [{port: 8000, endPort: 8099}]
";

const NOTHING: &str = r"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {}
  policyTypes: [Ingress, Egress]
";

/// `web` in either family.
const FAMILIES: [(&str, &str, &str, &str, &str); 2] = [
    ("10.0.0.2", "10.0.0.3", "10.0.0.4", "192.0.2.10", "10.0.0.1"),
    ("fd00::2", "fd00::3", "fd00::4", "2001:db8::10", "fd00::1"),
];

fn assert_dropped(kernel: &mut Kernel, what: &str, egress: bool, frame: &[u8], reason: Reason) {
    let flows = kernel.flows().len();
    let seen = if egress {
        kernel.egress(frame)
    } else {
        kernel.ingress(frame)
    };
    assert_eq!(
        (seen.passed, seen.verdict, seen.reason),
        (false, Verdict::Dropped, Some(reason)),
        "{what}"
    );
    assert_eq!(
        kernel.flows().len(),
        flows,
        "{what}: a dropped packet leaves no state"
    );
}

fn assert_passes(kernel: &mut Kernel, what: &str, egress: bool, frame: &[u8]) {
    let seen = if egress {
        kernel.egress(frame)
    } else {
        kernel.ingress(frame)
    };
    assert_eq!(
        (seen.passed, seen.verdict, seen.reason),
        (true, Verdict::Forwarded, None),
        "{what}"
    );
}

#[test]
fn policy_decides_by_identity_port_and_direction() {
    require_root!();
    with_kernel(POLICY, Mode::Protect, |kernel| {
        for (web, api, db, world, _) in FAMILIES {
            let allowed: [(&str, bool, Vec<u8>); 8] = [
                (
                    "api to web:80",
                    false,
                    tcp(end(api, 4000), end(web, 80), "S"),
                ),
                (
                    "world block to web:443",
                    false,
                    tcp(end(world, 4001), end(web, 443), "S"),
                ),
                (
                    "web to db:5432",
                    true,
                    tcp(end(web, 4002), end(db, 5432), "S"),
                ),
                (
                    "dns to a workload",
                    true,
                    udp(end(web, 4003), end(db, 53), b"q"),
                ),
                (
                    "dns to the world",
                    true,
                    udp(end(web, 4004), end(world, 53), b"q"),
                ),
                (
                    "first port of the range",
                    true,
                    tcp(end(web, 4005), end(api, 8000), "S"),
                ),
                (
                    "middle of the range",
                    true,
                    tcp(end(web, 4006), end(api, 8050), "S"),
                ),
                (
                    "last port of the range",
                    true,
                    tcp(end(web, 4007), end(api, 8099), "S"),
                ),
            ];
            for (what, egress, frame) in &allowed {
                let seen = if *egress {
                    kernel.egress(frame)
                } else {
                    kernel.ingress(frame)
                };
                assert_eq!((seen.passed, seen.reason), (true, None), "{what} {web}");
                assert_eq!(seen.kinds(), [Kind::New], "{what} {web}");
                let rule = kernel.rule(seen.events[0].rule_id);
                assert_eq!(rule.as_deref(), Some("shop/web"), "{what} {web}");
            }
            let denied: [(&str, bool, Vec<u8>); 10] = [
                ("wrong port", false, tcp(end(api, 4100), end(web, 81), "S")),
                (
                    "wrong protocol",
                    false,
                    udp(end(api, 4101), end(web, 80), b"x"),
                ),
                ("wrong peer", false, tcp(end(db, 4102), end(web, 80), "S")),
                (
                    "world to a workload's port",
                    false,
                    tcp(end(world, 4103), end(web, 80), "S"),
                ),
                (
                    "wrong direction",
                    true,
                    tcp(end(web, 4104), end(api, 80), "S"),
                ),
                (
                    "database, wrong port",
                    true,
                    tcp(end(web, 4105), end(db, 5433), "S"),
                ),
                ("dns over tcp", true, tcp(end(web, 4106), end(db, 53), "S")),
                (
                    "before the range",
                    true,
                    tcp(end(web, 4107), end(api, 7999), "S"),
                ),
                (
                    "after the range",
                    true,
                    tcp(end(web, 4108), end(api, 8100), "S"),
                ),
                (
                    "to the world",
                    true,
                    tcp(end(web, 4109), end(world, 443), "S"),
                ),
            ];
            for (what, egress, frame) in &denied {
                assert_dropped(kernel, what, *egress, frame, Reason::PolicyDefaultDeny);
            }
        }
        // Excluded from the block.
        let frame = tcp(end("192.0.2.200", 4200), end("10.0.0.2", 443), "S");
        assert_dropped(
            kernel,
            "excepted address",
            false,
            &frame,
            Reason::PolicyDefaultDeny,
        );
    });
}

#[test]
fn a_denied_packet_names_rule_peer_and_tuple_in_its_event() {
    require_root!();
    with_kernel(POLICY, Mode::Protect, |kernel| {
        let seen = kernel.egress(&tcp(end("10.0.0.2", 4000), end("10.0.0.4", 6379), "S"));
        assert_eq!(seen.kinds(), [Kind::Denied]);
        let event = seen.events[0];
        assert_eq!(kernel.rule(event.rule_id).as_deref(), Some("default"));
        assert_eq!(&event.local[12..], [10, 0, 0, 2]);
        assert_eq!(&event.remote[12..], [10, 0, 0, 4]);
        assert_eq!(u16::from_be(event.local_port_be), 4000);
        assert_eq!(u16::from_be(event.remote_port_be), 6379);
        assert_eq!((event.protocol, event.family, event.tcp_flags), (6, 4, 2));
        assert_eq!(event.verdict, Verdict::Dropped as u8);
        assert_eq!(event.reason, Reason::PolicyDefaultDeny as u8);
        assert_ne!(event.peer, event.identity);
        assert_ne!(event.time_ns, 0);
        assert_eq!((event.packets, event.bytes), ([1, 0], [40, 0]));
    });
}

#[test]
fn replies_pass_and_are_counted_on_their_side() {
    require_root!();
    with_kernel(POLICY, Mode::Protect, |kernel| {
        for (web, _, db, ..) in FAMILIES {
            let (web, db) = (end(web, 4000), end(db, 5432));
            let header = if web.ip.is_ipv4() { 40 } else { 60 };
            assert_eq!(kernel.egress(&tcp(web, db, "S")).kinds(), [Kind::New]);
            for (egress, flags) in [(false, "SA"), (true, "A"), (true, "PA"), (false, "A")] {
                let frame = if egress {
                    tcp(web, db, flags)
                } else {
                    tcp(db, web, flags)
                };
                let seen = if egress {
                    kernel.egress(&frame)
                } else {
                    kernel.ingress(&frame)
                };
                assert!(seen.passed, "{flags}");
                assert_eq!(seen.events.len(), 0, "established packets send nothing");
            }
            let flow = kernel
                .flows()
                .into_iter()
                .find(|flow| flow.local == web.ip)
                .expect("the flow is tracked");
            assert_eq!(flow.entry.packets, [3, 2]);
            assert_eq!(flow.entry.bytes, [3 * header, 2 * header]);
            assert_eq!(flow.entry.flags & flags::OPENER_LOCAL, flags::OPENER_LOCAL);
            assert_eq!((flow.local_port, flow.remote_port), (4000, 5432));
        }
    });
}

#[test]
fn a_reply_without_a_flow_is_judged_by_the_connection_it_would_belong_to() {
    require_root!();
    with_kernel(POLICY, Mode::Protect, |kernel| {
        for (web, api, db, ..) in FAMILIES {
            // C20: mid-flow segments of connections policy allows, in either direction.
            assert_passes(
                kernel,
                "ack to db",
                true,
                &tcp(end(web, 4000), end(db, 5432), "A"),
            );
            assert_passes(
                kernel,
                "ack from db",
                false,
                &tcp(end(db, 5432), end(web, 4001), "A"),
            );
            assert_passes(
                kernel,
                "ack to api",
                true,
                &tcp(end(web, 80), end(api, 4002), "A"),
            );
            // And of connections policy does not allow.
            let frame = tcp(end(web, 4003), end(db, 6379), "A");
            assert_dropped(kernel, "ack", true, &frame, Reason::PolicyDefaultDeny);
            let frame = tcp(end(db, 6379), end(web, 4004), "A");
            assert_dropped(kernel, "ack", false, &frame, Reason::PolicyDefaultDeny);
            // C24: a UDP reply nobody asked for.
            let frame = udp(end(db, 53), end(web, 4005), b"a");
            assert_dropped(
                kernel,
                "udp reply",
                false,
                &frame,
                Reason::PolicyDefaultDeny,
            );
        }
    });
}

#[test]
fn closing_sends_totals_once_and_frees_the_tuple() {
    require_root!();
    with_kernel(POLICY, Mode::Protect, |kernel| {
        let (web, db) = (end("10.0.0.2", 4000), end("10.0.0.4", 5432));
        kernel.egress(&tcp(web, db, "S"));
        kernel.ingress(&tcp(db, web, "SA"));
        kernel.egress(&tcp(web, db, "A"));
        assert!(
            kernel.egress(&tcp(web, db, "FA")).events.is_empty(),
            "half closed"
        );
        let seen = kernel.ingress(&tcp(db, web, "FA"));
        assert_eq!(seen.kinds(), [Kind::Closed]);
        assert_eq!(seen.events[0].packets, [3, 2]);
        assert!(
            kernel.egress(&tcp(web, db, "A")).events.is_empty(),
            "closed only once"
        );
        // C21: the same tuple opens again and starts from zero.
        assert_eq!(kernel.egress(&tcp(web, db, "S")).kinds(), [Kind::New]);
        assert_eq!(kernel.only_flow().entry.packets, [1, 0]);
        // C22: a reset closes at once.
        let seen = kernel.ingress(&tcp(db, web, "RA"));
        assert_eq!(seen.kinds(), [Kind::Closed]);
        assert_eq!(
            kernel.only_flow().entry.flags & flags::CLOSED,
            flags::CLOSED
        );
    });
}

#[test]
fn opening_against_the_direction_of_a_flow_asks_policy() {
    require_root!();
    with_kernel(POLICY, Mode::Protect, |kernel| {
        let (web, api) = (end("10.0.0.2", 80), end("10.0.0.3", 4000));
        kernel.ingress(&tcp(api, web, "S"));
        kernel.egress(&tcp(web, api, "SA"));
        kernel.ingress(&tcp(api, web, "A"));
        let before = kernel.only_flow();
        assert_dropped(
            kernel,
            "web opens to api",
            true,
            &tcp(web, api, "S"),
            Reason::ReverseOpen,
        );
        assert_eq!(kernel.only_flow(), before, "the flow itself is untouched");
        assert_passes(kernel, "and goes on", false, &tcp(api, web, "A"));
    });
}

#[test]
fn revoking_stops_both_directions_on_the_next_packet() {
    require_root!();
    with_kernel(POLICY, Mode::Protect, |kernel| {
        for (web, _, db, ..) in FAMILIES {
            kernel.set_policies(POLICY);
            kernel.apply().expect("applies");
            let (web, db) = (end(web, 4000), end(db, 5432));
            kernel.egress(&tcp(web, db, "S"));
            kernel.ingress(&tcp(db, web, "SA"));

            kernel.set_policies(NOTHING);
            kernel.apply().expect("applies");
            // C45: the reply first, so that it is not the forward packet that revokes.
            let seen = kernel.ingress(&tcp(db, web, "A"));
            assert_eq!(
                (seen.passed, seen.reason),
                (false, Some(Reason::PolicyRevoked))
            );
            assert_eq!(seen.kinds(), [Kind::Rejudged, Kind::Denied]);
            let seen = kernel.egress(&tcp(web, db, "A"));
            assert_eq!(
                (seen.passed, seen.reason),
                (false, Some(Reason::PolicyRevoked))
            );
            assert_eq!(seen.kinds(), [Kind::Denied]);

            // C46: widening takes effect on the next packet of the same flow.
            kernel.set_policies(POLICY);
            kernel.apply().expect("applies");
            let seen = kernel.ingress(&tcp(db, web, "A"));
            assert!(seen.passed);
            assert_eq!(seen.kinds(), [Kind::Rejudged]);
        }
    });
}

#[test]
fn modes_pass_audit_and_drop_the_same_packet() {
    require_root!();
    with_kernel(NOTHING, Mode::Discover, |kernel| {
        for (web, _, db, ..) in FAMILIES {
            let (web, db) = (end(web, 4000), end(db, 5432));
            kernel.set_mode(Mode::Discover);
            kernel.apply().expect("applies");
            let seen = kernel.egress(&tcp(web, db, "S"));
            assert_eq!((seen.verdict, seen.reason), (Verdict::Forwarded, None));
            assert_eq!(seen.events[0].rule_id, 0, "discover asks no rule");

            kernel.set_mode(Mode::Monitor);
            kernel.apply().expect("applies");
            let seen = kernel.egress(&tcp(web, db, "A"));
            assert_eq!((seen.passed, seen.verdict), (true, Verdict::Audit));
            assert_eq!(seen.kinds(), [Kind::Rejudged]);
            assert_eq!(seen.events[0].reason, Reason::PolicyDefaultDeny as u8);
            let seen = kernel.egress(&tcp(end("10.0.0.2", 4001), end("10.0.0.4", 99), "S"));
            assert_eq!(seen.verdict, Verdict::Audit);
            assert_eq!(seen.reason, Some(Reason::PolicyDefaultDeny));
            kernel.egress(&tcp(end("10.0.0.2", 4001), end("10.0.0.4", 99), "R"));

            kernel.set_mode(Mode::Protect);
            kernel.apply().expect("applies");
            let seen = kernel.egress(&tcp(web, db, "A"));
            assert_eq!(
                (seen.passed, seen.reason),
                (false, Some(Reason::PolicyRevoked))
            );
        }
    });
}

#[test]
fn host_reaches_its_workloads_and_is_not_reached_without_a_rule() {
    require_root!();
    with_kernel(POLICY, Mode::Protect, |kernel| {
        for (web, _, _, _, host) in FAMILIES {
            let seen = kernel.ingress(&tcp(end(host, 4000), end(web, 9999), "S"));
            assert!(seen.passed);
            let rule = kernel.rule(seen.events[0].rule_id);
            assert_eq!(rule.as_deref(), Some("builtin/host-ingress"));
            assert_passes(
                kernel,
                "reply",
                true,
                &tcp(end(web, 9999), end(host, 4000), "SA"),
            );
            let frame = tcp(end(web, 4001), end(host, 22), "S");
            assert_dropped(
                kernel,
                "web to host",
                true,
                &frame,
                Reason::PolicyDefaultDeny,
            );
        }
    });
}

#[test]
fn a_workload_reaches_itself() {
    require_root!();
    with_kernel(NOTHING, Mode::Protect, |kernel| {
        for (web, ..) in FAMILIES {
            // C29: a hairpin through a service address.
            assert_passes(
                kernel,
                "out",
                true,
                &tcp(end(web, 4000), end(web, 8080), "S"),
            );
            assert_passes(
                kernel,
                "in",
                false,
                &tcp(end(web, 4000), end(web, 8080), "S"),
            );
        }
    });
}

#[test]
fn sources_that_are_not_the_workload_are_dropped() {
    require_root!();
    with_kernel(POLICY, Mode::Protect, |kernel| {
        let cases = [
            (
                "another workload",
                "10.0.0.3",
                "10.0.0.4",
                Reason::SourceSpoofed,
            ),
            ("the host", "10.0.0.1", "10.0.0.4", Reason::SourceSpoofed),
            ("nobody", "10.9.9.9", "10.0.0.4", Reason::SourceSpoofed),
            ("unspecified", "0.0.0.0", "10.0.0.4", Reason::SourceSpoofed),
            ("multicast", "224.0.0.1", "10.0.0.4", Reason::MartianAddress),
            (
                "broadcast",
                "255.255.255.255",
                "10.0.0.4",
                Reason::MartianAddress,
            ),
            (
                "another workload v6",
                "fd00::3",
                "fd00::4",
                Reason::SourceSpoofed,
            ),
            ("nobody v6", "fd00::99", "fd00::4", Reason::SourceSpoofed),
            ("multicast v6", "ff02::1", "fd00::4", Reason::MartianAddress),
            (
                "mapped",
                "::ffff:10.0.0.2",
                "fd00::4",
                Reason::MartianAddress,
            ),
        ];
        for (what, source, destination, reason) in cases {
            let frame = tcp(end(source, 4000), end(destination, 5432), "S");
            assert_dropped(kernel, what, true, &frame, reason);
            // Not as if the other end had opened it.
            let event = kernel.egress(&frame).events[0];
            let opener = event.ct_flags & (flags::OPENER_LOCAL | flags::OPENER_UNSURE);
            assert_eq!(opener, flags::OPENER_LOCAL | flags::OPENER_UNSURE, "{what}");
        }
        // Discover only watches.
        kernel.set_mode(Mode::Discover);
        kernel.apply().expect("applies");
        let seen = kernel.egress(&tcp(end("10.9.9.9", 4000), end("10.0.0.4", 5432), "S"));
        assert_eq!(
            (seen.passed, seen.reason),
            (true, Some(Reason::SourceSpoofed))
        );
    });
}

#[test]
fn a_workload_without_known_addresses_reports_what_it_uses() {
    require_root!();
    with_kernel(POLICY, Mode::Discover, |kernel| {
        kernel.estate_mut().workloads[0].addresses.clear();
        kernel.apply().expect("applies");
        let seen = kernel.egress(&tcp(end("10.0.0.77", 4000), end("10.0.0.4", 5432), "S"));
        assert!(seen.passed);
        assert_eq!(seen.kinds(), [Kind::AddressSeen, Kind::New]);
        assert_eq!(&seen.events[0].local[12..], [10, 0, 0, 77]);
        // Somebody else's address is never learned.
        let seen = kernel.egress(&tcp(end("10.0.0.3", 4000), end("10.0.0.4", 5432), "S"));
        assert_eq!(seen.reason, Some(Reason::SourceSpoofed));
    });
}

#[test]
fn frames_flooded_to_the_wrong_port_are_dropped_without_noise() {
    require_root!();
    with_kernel(POLICY, Mode::Protect, |kernel| {
        let seen = kernel.ingress(&tcp(end("10.0.0.4", 4000), end("10.0.0.3", 80), "S"));
        assert_eq!(
            (seen.passed, seen.reason),
            (false, Some(Reason::NotForWorkload))
        );
        assert!(seen.events.is_empty());
    });
}

#[test]
fn address_resolution_is_never_filtered() {
    require_root!();
    with_kernel(NOTHING, Mode::Protect, |kernel| {
        let link_local = "fe80::1".parse().expect("an address");
        let all_nodes = "ff02::1".parse().expect("an address");
        let ndp = |kind, hop_limit| {
            frames::icmp_with_hop_limit(link_local, all_nodes, hop_limit, kind, 0, [0; 4], &[0; 16])
        };
        // C01, C02.
        assert_passes(kernel, "arp", true, &frames::ethernet(0x0806, &[0; 28]));
        assert_passes(kernel, "arp", false, &frames::ethernet(0x0806, &[0; 28]));
        for kind in [133, 135, 136] {
            assert_passes(kernel, "ndp", true, &ndp(kind, 255));
            assert_passes(kernel, "ndp", false, &ndp(kind, 255));
        }
        // Group membership: MLD, and IGMP, which a bridge with snooping sends to every port.
        assert_passes(kernel, "mld", true, &ndp(143, 1));
        assert_passes(
            kernel,
            "igmp",
            true,
            &frames::igmp("10.0.0.2", "224.0.0.22", 1),
        );
        assert_passes(
            kernel,
            "igmp",
            false,
            &frames::igmp("10.0.0.1", "224.0.0.22", 1),
        );
        let reason = Reason::PolicyDefaultDeny;
        for (what, frame) in [
            ("routed igmp", frames::igmp("10.0.0.2", "224.0.0.22", 64)),
            ("igmp to one host", frames::igmp("10.0.0.2", "10.0.0.3", 1)),
        ] {
            assert_dropped(kernel, what, true, &frame, reason);
        }
        assert_passes(kernel, "router advertisement", false, &ndp(134, 255));
        let reason = Reason::RouterMessageFromWorkload;
        assert_dropped(
            kernel,
            "advertisement from a workload",
            true,
            &ndp(134, 255),
            reason,
        );
        assert_dropped(
            kernel,
            "redirect from a workload",
            true,
            &ndp(137, 255),
            reason,
        );
        let redirect = frames::icmp(
            "10.0.0.2".parse().expect("an address"),
            "10.0.0.3".parse().expect("an address"),
            5,
            1,
            [10, 0, 0, 2],
            &[0; 28],
        );
        assert_dropped(kernel, "icmp redirect", true, &redirect, reason);
        // Not from this link: an ordinary packet, judged by policy.
        assert_dropped(
            kernel,
            "routed ndp",
            true,
            &ndp(135, 64),
            Reason::PolicyDefaultDeny,
        );
    });
}

#[test]
fn address_configuration_is_never_filtered() {
    require_root!();
    with_kernel(NOTHING, Mode::Protect, |kernel| {
        // C03.
        let discover = udp(end("0.0.0.0", 68), end("255.255.255.255", 67), &[0; 240]);
        assert_passes(kernel, "dhcp discover", true, &discover);
        let offer = udp(end("10.0.0.1", 67), end("10.0.0.2", 68), &[0; 240]);
        assert_passes(kernel, "dhcp offer", false, &offer);
        let solicit = udp(end("fe80::2", 546), end("ff02::1:2", 547), &[0; 40]);
        assert_passes(kernel, "dhcpv6 solicit", true, &solicit);
        // A workload that plays DHCP server, or tunnels through the ports, is not let out.
        let offer = udp(end("10.0.0.2", 67), end("10.0.0.3", 68), &[0; 240]);
        assert_dropped(
            kernel,
            "rogue offer",
            true,
            &offer,
            Reason::PolicyDefaultDeny,
        );
        let unicast = udp(end("10.0.0.2", 68), end("192.0.2.1", 67), b"data");
        assert_dropped(kernel, "tunnel", true, &unicast, Reason::PolicyDefaultDeny);
    });
}

#[test]
fn frames_that_are_not_ip_are_dropped_in_protect_only() {
    require_root!();
    with_kernel(POLICY, Mode::Protect, |kernel| {
        // C05.
        for ethertype in [0x88cc, 0x8847, 0x88e5, 0x0842] {
            let frame = frames::ethernet(ethertype, &[0; 50]);
            assert_dropped(kernel, "ethertype", true, &frame, Reason::UnknownEtherType);
        }
        for mode in [Mode::Discover, Mode::Monitor] {
            kernel.set_mode(mode);
            kernel.apply().expect("applies");
            let seen = kernel.egress(&frames::ethernet(0x88cc, &[0; 50]));
            assert_eq!(
                (seen.passed, seen.reason),
                (true, Some(Reason::UnknownEtherType))
            );
        }
    });
}

#[test]
fn vlan_tags_hide_nothing() {
    require_root!();
    with_kernel(POLICY, Mode::Protect, |kernel| {
        // C04.
        let allowed = tcp(end("10.0.0.2", 4000), end("10.0.0.4", 5432), "S");
        let denied = tcp(end("10.0.0.2", 4000), end("10.0.0.4", 22), "S");
        let tag = |frame: &[u8]| frames::tagged(frame, 0x8100, 7);
        let double = |frame: &[u8]| frames::tagged(&tag(frame), 0x88a8, 8);
        assert_passes(kernel, "one tag", true, &tag(&allowed));
        assert_dropped(
            kernel,
            "one tag",
            true,
            &tag(&denied),
            Reason::PolicyDefaultDeny,
        );
        assert_passes(kernel, "two tags", true, &double(&allowed));
        assert_dropped(
            kernel,
            "two tags",
            true,
            &double(&denied),
            Reason::PolicyDefaultDeny,
        );
        let triple = frames::tagged(&double(&allowed), 0x8100, 9);
        assert_dropped(kernel, "three tags", true, &triple, Reason::VlanUnsupported);
    });
}

#[test]
fn options_and_extension_headers_hide_nothing() {
    require_root!();
    with_kernel(POLICY, Mode::Protect, |kernel| {
        // C10.
        let v4 = |port| tcp(end("10.0.0.2", 4000), end("10.0.0.4", port), "S");
        for words in [1_usize, 5, 10] {
            let options = vec![1; words * 4];
            let frame = frames::with_ipv4_options(&v4(5432), &options);
            assert_passes(kernel, "options", true, &frame);
            let frame = frames::with_ipv4_options(&v4(22), &options);
            assert_dropped(kernel, "options", true, &frame, Reason::PolicyDefaultDeny);
        }
        // C14.
        let v6 = |port| tcp(end("fd00::2", 4000), end("fd00::4", port), "S");
        let padding = frames::padding_extension;
        let authentication = (51, vec![1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1]);
        let chains: [(&str, Vec<_>); 6] = [
            ("hop-by-hop", vec![padding(0)]),
            ("destination options", vec![padding(60)]),
            ("routing", vec![padding(43)]),
            ("authentication", vec![authentication]),
            (
                "atomic fragment",
                vec![frames::fragment_extension(0, false, 7)],
            ),
            (
                "six headers",
                vec![
                    padding(0),
                    padding(60),
                    padding(43),
                    padding(60),
                    padding(60),
                    padding(60),
                ],
            ),
        ];
        for (what, chain) in &chains {
            let frame = frames::with_ipv6_extensions(&v6(5432), chain);
            assert_passes(kernel, what, true, &frame);
            let frame = frames::with_ipv6_extensions(&v6(22), chain);
            assert_dropped(kernel, what, true, &frame, Reason::PolicyDefaultDeny);
        }
        let seven = vec![padding(60); 7];
        let frame = frames::with_ipv6_extensions(&v6(5432), &seven);
        assert_dropped(
            kernel,
            "seven headers",
            true,
            &frame,
            Reason::Ipv6ExtensionHeaders,
        );
        let long = (60, [vec![255], vec![0; 254]].concat());
        let frame = frames::with_ipv6_extensions(&v6(5432), &[long]);
        assert_dropped(
            kernel,
            "a header longer than the packet",
            true,
            &frame,
            Reason::Truncated,
        );
    });
}

#[test]
fn every_cut_of_every_header_is_refused() {
    require_root!();
    with_kernel(POLICY, Mode::Protect, |kernel| {
        // C11: cut the frame, and separately correct the length field so that only the layer 4
        // header is short.
        for (web, _, db, ..) in FAMILIES {
            let v4 = web.contains('.');
            let frame = tcp(end(web, 4000), end(db, 5432), "S");
            // BPF_PROG_TEST_RUN itself refuses frames without a whole IP header.
            let shortest = ETHERNET_LEN
                + if v4 {
                    frames::IPV4_LEN
                } else {
                    frames::IPV6_LEN
                };
            for len in shortest..frame.len() {
                let seen = kernel.egress(&frame[..len]);
                assert_eq!(
                    (seen.passed, seen.reason),
                    (false, Some(Reason::Truncated)),
                    "{len}"
                );
            }
            let ip_len = if v4 {
                frames::IPV4_LEN
            } else {
                frames::IPV6_LEN
            };
            for len in ETHERNET_LEN + ip_len..frame.len() {
                let mut cut = frame[..len].to_vec();
                let (at, value) = if v4 {
                    (2, len - ETHERNET_LEN)
                } else {
                    (4, len - ETHERNET_LEN - ip_len)
                };
                cut[ETHERNET_LEN + at..ETHERNET_LEN + at + 2]
                    .copy_from_slice(&(value as u16).to_be_bytes());
                let seen = kernel.egress(&cut);
                assert_eq!(
                    (seen.passed, seen.reason),
                    (false, Some(Reason::Truncated)),
                    "{len}"
                );
            }
        }
        assert!(kernel.flows().is_empty());
    });
}

#[test]
fn contradicting_headers_are_refused() {
    require_root!();
    with_kernel(POLICY, Mode::Protect, |kernel| {
        // C12.
        let edit = |at: usize, value: u8| {
            let mut frame = tcp(end("10.0.0.2", 4000), end("10.0.0.4", 5432), "S");
            frame[ETHERNET_LEN + at] = value;
            frame
        };
        assert_dropped(
            kernel,
            "version 6",
            true,
            &edit(0, 0x65),
            Reason::MalformedHeader,
        );
        assert_dropped(
            kernel,
            "ihl 4",
            true,
            &edit(0, 0x44),
            Reason::MalformedHeader,
        );
        assert_dropped(
            kernel,
            "total length",
            true,
            &edit(2, 0xff),
            Reason::Truncated,
        );
        let mut frame = tcp(end("fd00::2", 4000), end("fd00::4", 5432), "S");
        frame[ETHERNET_LEN] = 0x45;
        assert_dropped(
            kernel,
            "version 4 in IPv6",
            true,
            &frame,
            Reason::MalformedHeader,
        );
        for flags in ["SF", "SR", "SFA", "", "F", "PU"] {
            let frame = tcp(end("10.0.0.2", 4000), end("10.0.0.4", 5432), flags);
            assert_dropped(kernel, flags, true, &frame, Reason::TcpFlagsInvalid);
        }
        // C31: port 0 is a port like any other.
        let frame = tcp(end("10.0.0.2", 4000), end("10.0.0.4", 0), "S");
        assert_dropped(kernel, "port 0", true, &frame, Reason::PolicyDefaultDeny);
    });
}

#[test]
fn fragments_follow_their_first() {
    require_root!();
    with_kernel(POLICY, Mode::Protect, |kernel| {
        // C13.
        let whole = udp(end("10.0.0.2", 4000), end("192.0.2.1", 53), &[7; 64]);
        let fragment = |id, offset, len, more| frames::ipv4_fragment(&whole, id, offset, len, more);
        let lone = fragment(1, 4, 16, false);
        assert_dropped(
            kernel,
            "no first",
            true,
            &lone,
            Reason::FragmentWithoutFirst,
        );
        let seen = kernel.egress(&fragment(1, 0, 32, true));
        assert!(seen.passed, "first");
        assert_passes(kernel, "middle", true, &fragment(1, 4, 16, true));
        assert_passes(kernel, "last", true, &fragment(1, 6, 16, false));
        let other = fragment(2, 4, 16, false);
        assert_dropped(
            kernel,
            "other datagram",
            true,
            &other,
            Reason::FragmentWithoutFirst,
        );
        // Another datagram of the same, now established, flow.
        assert!(kernel.egress(&fragment(3, 0, 32, true)).passed);
        assert_passes(kernel, "established", true, &fragment(3, 4, 16, false));
        // A refused first admits nothing.
        let denied = udp(end("10.0.0.2", 4000), end("10.0.0.4", 99), &[7; 64]);
        let first = frames::ipv4_fragment(&denied, 9, 0, 32, true);
        assert_dropped(
            kernel,
            "denied first",
            true,
            &first,
            Reason::PolicyDefaultDeny,
        );
        let later = frames::ipv4_fragment(&denied, 9, 4, 16, false);
        assert_dropped(
            kernel,
            "its later",
            true,
            &later,
            Reason::FragmentWithoutFirst,
        );
        // RFC 1858, RFC 3128.
        let segment = tcp(end("10.0.0.2", 4000), end("10.0.0.4", 5432), "S");
        let tiny = frames::ipv4_fragment(&segment, 10, 0, 8, true);
        assert_dropped(kernel, "tiny first", true, &tiny, Reason::FragmentTooSmall);
        let overwriting = frames::ipv4_fragment(&segment, 10, 1, 8, false);
        assert_dropped(
            kernel,
            "offset 1",
            true,
            &overwriting,
            Reason::FragmentTooSmall,
        );
        // IPv6.
        let v6 = udp(end("fd00::2", 4000), end("fd00::4", 53), &[7; 64]);
        let piece = |offset, more| {
            frames::with_ipv6_extensions(&v6, &[frames::fragment_extension(offset, more, 77)])
        };
        let later = piece(4, false);
        assert_dropped(
            kernel,
            "v6 no first",
            true,
            &later,
            Reason::FragmentWithoutFirst,
        );
        assert!(kernel.egress(&piece(0, true)).passed, "v6 first");
        assert_passes(kernel, "v6 later", true, &later);
    });
}

#[test]
fn icmp_errors_belong_to_a_flow() {
    require_root!();
    with_kernel(POLICY, Mode::Protect, |kernel| {
        for (web, _, db, world, host) in FAMILIES {
            let v4 = web.contains('.');
            let outgoing = tcp(end(web, 4000), end(db, 5432), "S");
            let (unreachable, too_big) = if v4 {
                ((3, 3), (3, 4))
            } else {
                ((1, 4), (2, 0))
            };
            // C26: about nothing we sent.
            let early = icmp_error(host, unreachable.0, unreachable.1, &outgoing);
            assert_dropped(kernel, "early", false, &early, Reason::IcmpErrorUnrelated);
            kernel.egress(&outgoing);
            assert_passes(kernel, "unreachable", false, &early);
            // C27, from a router nobody has heard of.
            let frame = icmp_error(world, too_big.0, too_big.1, &outgoing);
            assert_passes(kernel, "packet too big", false, &frame);
            let foreign = tcp(end(web, 4000), end(db, 9999), "S");
            let frame = icmp_error(host, unreachable.0, unreachable.1, &foreign);
            assert_dropped(
                kernel,
                "foreign inner",
                false,
                &frame,
                Reason::IcmpErrorUnrelated,
            );
            let nested = icmp_error(host, unreachable.0, unreachable.1, &early);
            let seen = kernel.egress(&nested);
            assert!(!seen.passed, "an error about an error");
            // What the workload itself reports about a flow it accepted.
            let (api, web_end) = (
                end(if v4 { "10.0.0.3" } else { "fd00::3" }, 4001),
                end(web, 80),
            );
            let incoming = tcp(api, web_end, "S");
            kernel.ingress(&incoming);
            let frame = icmp_error(web, unreachable.0, unreachable.1, &incoming);
            assert_passes(kernel, "from the workload", true, &frame);
        }
    });
}

#[test]
fn ping_is_a_flow_of_its_own() {
    require_root!();
    let allow_all = r"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress, Egress]
  egress: [{to: [{podSelector: {matchLabels: {app: db}}}]}]
";
    with_kernel(allow_all, Mode::Protect, |kernel| {
        for (web, api, db, ..) in FAMILIES {
            assert_passes(kernel, "request", true, &frames::echo(web, db, 7, false));
            assert_passes(kernel, "reply", false, &frames::echo(db, web, 7, true));
            // C25.
            let frame = frames::echo(db, web, 8, false);
            assert_dropped(
                kernel,
                "request from db",
                false,
                &frame,
                Reason::PolicyDefaultDeny,
            );
            let frame = frames::echo(web, api, 7, false);
            assert_dropped(
                kernel,
                "request to api",
                true,
                &frame,
                Reason::PolicyDefaultDeny,
            );
        }
    });
}

#[test]
fn other_protocols_need_a_rule_for_everything() {
    require_root!();
    let rules = r"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress, Egress]
  egress:
  - to: [{podSelector: {matchLabels: {app: db}}}]
  - to: [{podSelector: {matchLabels: {app: api}}}]
    ports: [{protocol: TCP}, {protocol: UDP}, {protocol: SCTP, port: 3868}]
";
    with_kernel(rules, Mode::Protect, |kernel| {
        // C28.
        for protocol in [2_u8, 4, 41, 47, 50, 89, 132] {
            let payload = [0x0f, 0x1c, 0x0f, 0x1d, 0, 0, 0, 0, 0, 0, 0, 0];
            let frame = frames::raw("10.0.0.2", "10.0.0.4", protocol, &payload);
            assert_passes(kernel, "to db", true, &frame);
            let frame = frames::raw("10.0.0.2", "10.0.0.3", protocol, &payload);
            assert_dropped(kernel, "to api", true, &frame, Reason::PolicyDefaultDeny);
        }
        let sctp = frames::raw(
            "10.0.0.2",
            "10.0.0.3",
            132,
            &[0x0f, 0xa0, 0x0f, 0x1c, 0, 0, 0, 0],
        );
        assert_passes(kernel, "sctp to its port", true, &sctp);
    });
}

#[test]
fn directions_seen_soon_after_attaching_are_marked_unsure() {
    require_root!();
    with_kernel(POLICY, Mode::Discover, |kernel| {
        let (web, db) = (end("10.0.0.2", 53), end("10.0.0.4", 4000));
        kernel.ingress(&udp(db, web, b"x"));
        assert_eq!(
            kernel.only_flow().entry.flags & flags::OPENER_UNSURE,
            0,
            "long attached"
        );
    });
    with_configured_kernel(
        POLICY,
        Mode::Discover,
        |_| {},
        |kernel| {
            // A fresh endpoint: detach it first, then attach with a window.
            kernel.unsure_for = std::time::Duration::from_secs(600);
            kernel.reattach();
            let (web, db) = (end("10.0.0.2", 4000), end("10.0.0.4", 53));
            let seen = kernel.ingress(&udp(db, web, b"reply of an older flow"));
            assert_eq!(
                seen.events[0].ct_flags & flags::OPENER_UNSURE,
                flags::OPENER_UNSURE
            );
            let seen = kernel.egress(&tcp(web, db, "S"));
            assert_eq!(
                seen.events[0].ct_flags,
                flags::OPENER_LOCAL,
                "a SYN is always certain"
            );
            let seen = kernel.ingress(&tcp(end("10.0.0.4", 80), end("10.0.0.2", 4001), "A"));
            assert_eq!(
                seen.events[0].ct_flags & flags::OPENER_UNSURE,
                flags::OPENER_UNSURE
            );
            let seen = kernel.ingress(&tcp(end("10.0.0.4", 80), end("10.0.0.2", 4002), "SA"));
            assert_eq!(
                seen.events[0].ct_flags,
                flags::OPENER_LOCAL,
                "only responders send SYN ACK"
            );
        },
    );
}

#[test]
fn a_successor_adopts_policy_flows_and_counters() {
    require_root!();
    with_kernel(POLICY, Mode::Protect, |kernel| {
        let (web, db) = (end("10.0.0.2", 4000), end("10.0.0.4", 5432));
        kernel.egress(&tcp(web, db, "S"));
        let before = kernel.only_flow();
        let generation = kernel.apply().expect("applies").generation;
        kernel.reopen();
        assert_eq!(kernel.only_flow(), before, "conntrack survives");
        let applied = kernel.apply().expect("applies");
        assert!(applied.generation > generation, "generations never go back");
        assert!(
            kernel.ingress(&tcp(db, web, "SA")).passed,
            "the flow goes on"
        );
        assert_eq!(kernel.only_flow().entry.packets, [1, 1]);
        let frame = tcp(web, end("10.0.0.4", 22), "S");
        assert_dropped(
            kernel,
            "still enforced",
            true,
            &frame,
            Reason::PolicyDefaultDeny,
        );
    });
}

#[test]
fn a_policy_that_does_not_fit_changes_nothing() {
    require_root!();
    let many: String = (0..200)
        .map(|port| format!("    - {{port: {}}}\n", 1000 + port))
        .collect();
    let large = format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: web, namespace: shop}}\nspec:\n  podSelector: {{matchLabels: {{app: web}}}}\n  policyTypes: [Ingress, Egress]\n  egress:\n  - to: [{{podSelector: {{matchLabels: {{app: db}}}}}}]\n    ports:\n{many}"
    );
    with_configured_kernel(
        POLICY,
        Mode::Protect,
        |config| config.policy_entries = Some(64),
        |kernel| {
            let before = kernel.apply().expect("the small policy fits");
            kernel.set_policies(&large);
            let error = kernel.apply().expect_err("200 entries do not fit into 64");
            let text = error.to_string();
            assert!(
                text.contains("policy_entries") && text.contains("needs 202"),
                "{text}"
            );
            // C49: the old policy is whole.
            assert_passes(
                kernel,
                "old",
                true,
                &tcp(end("10.0.0.2", 1), end("10.0.0.4", 5432), "S"),
            );
            let frame = tcp(end("10.0.0.2", 2), end("10.0.0.4", 1000), "S");
            assert_dropped(kernel, "new", true, &frame, Reason::PolicyDefaultDeny);
            kernel.set_policies(POLICY);
            let after = kernel.apply().expect("the small policy still fits");
            assert_eq!(after.entries_used, before.entries_used, "nothing leaked");
        },
    );
}

#[test]
fn lost_events_are_counted_exactly_and_change_no_verdict() {
    require_root!();
    with_kernel(NOTHING, Mode::Protect, |kernel| {
        // C64: 4 MiB of ring hold fewer than 40,000 events of 120 bytes and their headers.
        let frame = tcp(end("10.0.0.2", 4000), end("10.0.0.4", 22), "S");
        let sent = 40_000_u32;
        let (passed, _) = kernel
            .dataplane
            .test_run(dataplane_common::Direction::Egress, &frame, sent)
            .expect("the kernel takes the frame");
        assert!(!passed);
        let counters = kernel.dataplane.counters().expect("counters are readable");
        let delivered = kernel.drain_events() as u64;
        assert!(counters.lost_events > 0, "the ring was overrun");
        assert_eq!(
            delivered + counters.lost_events,
            u64::from(sent),
            "every event is accounted for"
        );
        assert_eq!(
            counters.packets_for(Reason::PolicyDefaultDeny),
            u64::from(sent)
        );
        assert_eq!(counters.packets_with(Verdict::Forwarded), 0);
    });
}

#[test]
fn an_interface_without_configuration_drops() {
    require_root!();
    with_kernel(POLICY, Mode::Discover, |kernel| {
        kernel.remove_endpoint();
        let seen = kernel.egress(&tcp(end("10.0.0.2", 4000), end("10.0.0.4", 5432), "S"));
        assert_eq!(
            (seen.passed, seen.reason),
            (false, Some(Reason::NoEndpoint))
        );
    });
}
