//! Packet tables for what the differential test found: ways round a rule, and drops without one.
//!
//! Addresses as in the classifier's tables: `web` is .2, `api` .3, `db` .4, the host .1.

use dataplane_common::DropReason as Reason;
use dataplane_common::conntrack::flags;
use dataplane_common::event::EventKind as Kind;
use dataplane_common::stats::Verdict;
use netns_tests::frames::{self, ETHERNET_LEN, IPV4_LEN, end, icmp_error, tcp, udp};
use netns_tests::kernel::{Kernel, Observed, with_kernel};
use policy::model::Mode;
use testbed::require_root;

/// web may reach everything of db, and is reached by nobody but on 224.0.0.251 and port 80.
const POLICY: &str = r"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress, Egress]
  ingress:
  - ports: [{port: 80}, {port: 5353, protocol: UDP}]
  egress:
  - to: [{podSelector: {matchLabels: {app: db}}}]
  - to: [{ipBlock: {cidr: 'ff02::/16'}}]
";

/// web, api, db and the host in either family.
const FAMILIES: [[&str; 4]; 2] = [
    ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.1"],
    ["fd00::2", "fd00::3", "fd00::4", "fd00::1"],
];

#[track_caller]
fn assert_dropped(seen: &Observed, reason: Reason) {
    let found = (seen.passed, seen.verdict, seen.reason);
    assert_eq!(found, (false, Verdict::Dropped, Some(reason)));
}

#[track_caller]
fn assert_passes(seen: &Observed) {
    let found = (seen.passed, seen.verdict, seen.reason);
    assert_eq!(found, (true, Verdict::Forwarded, None));
}

fn protect(test: impl FnOnce(&mut Kernel) + Send) {
    require_root!();
    with_kernel(POLICY, Mode::Protect, test);
}

fn message(source: &str, destination: &str, kind: u8, hop_limit: u8) -> Vec<u8> {
    let [source, destination] = [source, destination].map(|a| a.parse().expect("an address"));
    frames::icmp_with_hop_limit(source, destination, hop_limit, kind, 0, [0; 4], &[0; 24])
}

#[test]
fn a_ping_with_identifier_0_opens_the_way_for_no_other_icmp() {
    protect(|kernel| {
        // Errors, redirects and router advertisements have no identifier, hence the flow of a ping
        // with identifier 0 was theirs as well.
        assert_passes(&kernel.egress(&frames::echo("10.0.0.2", "10.0.0.4", 0, false)));
        let foreign = tcp(end("10.0.0.4", 1), end("10.0.0.3", 2), "S");
        let error = icmp_error("10.0.0.2", 3, 3, &foreign);
        assert_dropped(&kernel.egress(&error), Reason::IcmpErrorUnrelated);
        let error = icmp_error(
            "10.0.0.4",
            3,
            3,
            &tcp(end("10.0.0.2", 1), end("10.0.0.4", 2), "S"),
        );
        assert_dropped(&kernel.ingress(&error), Reason::IcmpErrorUnrelated);
        let redirect = message("10.0.0.2", "10.0.0.4", 5, 64);
        assert_dropped(&kernel.egress(&redirect), Reason::RouterMessageFromWorkload);
        assert_passes(&kernel.egress(&frames::echo("fd00::2", "ff02::1", 0, false)));
        let advertisement = message("fd00::2", "ff02::1", 134, 255);
        assert_dropped(
            &kernel.egress(&advertisement),
            Reason::RouterMessageFromWorkload,
        );
        // Nor does a message of one side for the same of the other.
        assert_passes(&kernel.egress(&message("10.0.0.2", "10.0.0.4", 13, 64)));
        let timestamp = message("10.0.0.4", "10.0.0.2", 13, 64);
        assert_dropped(&kernel.ingress(&timestamp), Reason::PolicyDefaultDeny);
        assert_eq!(kernel.flows().len(), 3, "two pings and a timestamp");
    });
}

#[test]
fn icmp_of_the_other_ip_version_is_no_neighbour_discovery() {
    protect(|kernel| {
        for kind in [133, 135, 136, 128] {
            let mut frame = frames::raw("10.0.0.2", "192.0.2.1", 58, &[kind, 0, 0, 0, 0, 0, 0, 0]);
            frame[ETHERNET_LEN + 8] = 255;
            assert_dropped(&kernel.egress(&frame), Reason::MalformedHeader);
        }
        let frame = frames::raw("fd00::2", "fd00::4", 1, &[8, 0, 0, 0, 0, 0, 0, 0]);
        assert_dropped(&kernel.egress(&frame), Reason::MalformedHeader);
    });
}

#[test]
fn an_icmp_error_carries_nothing_to_a_third_party() {
    protect(|kernel| {
        for [web, api, db, _] in FAMILIES {
            let kind = if web.contains('.') { 3 } else { 1 };
            let incoming = tcp(end(db, 4000), end(web, 80), "S");
            assert_passes(&kernel.ingress(&incoming));
            assert_passes(&kernel.egress(&icmp_error(web, kind, 3, &incoming)));
            let flows = kernel.flows();
            // Its inner packet is of a flow of ours, but it goes to the world or to api.
            for other in [
                api,
                if kind == 3 {
                    "192.0.2.1"
                } else {
                    "2001:db8::1"
                },
            ] {
                let mut stray = icmp_error(web, kind, 3, &incoming);
                let to = icmp_error(web, kind, 3, &tcp(end(other, 1), end(web, 2), "S"));
                let destination = if kind == 3 { 30..34 } else { 38..54 };
                stray[destination.clone()].copy_from_slice(&to[destination]);
                assert_dropped(&kernel.egress(&stray), Reason::IcmpErrorUnrelated);
            }
            // Nor does it come from somebody else.
            let spoofed = icmp_error(api, kind, 3, &incoming);
            assert_dropped(&kernel.egress(&spoofed), Reason::SourceSpoofed);
            assert_eq!(kernel.flows(), flows, "errors touch no flow");
        }
    });
}

#[test]
fn what_was_received_for_nobody_is_not_sent_from() {
    protect(|kernel| {
        // Multicast and flooded frames make entries with an address that is not the workload's.
        for (address, reason) in [
            ("224.0.0.251", Reason::MartianAddress),
            ("10.0.0.99", Reason::SourceSpoofed),
        ] {
            let (group, sender) = (end(address, 5353), end("10.0.0.4", 5353));
            assert_passes(&kernel.ingress(&udp(sender, group, b"query")));
            assert_passes(&kernel.ingress(&udp(sender, group, b"query")));
            assert_dropped(&kernel.egress(&udp(group, sender, b"answer")), reason);
            // The state is known, the packet plain: neither makes the source right.
            assert_dropped(&kernel.egress(&udp(group, sender, b"answer")), reason);
        }
    });
}

#[test]
fn addresses_of_no_host_are_martians_in_both_directions() {
    protect(|kernel| {
        for (source, web) in [
            ("127.0.0.1", "10.0.0.2"),
            ("127.255.0.9", "10.0.0.2"),
            ("224.0.0.1", "10.0.0.2"),
            ("255.255.255.255", "10.0.0.2"),
            ("::1", "fd00::2"),
            ("ff02::1", "fd00::2"),
        ] {
            let db = if web.contains('.') {
                "10.0.0.4"
            } else {
                "fd00::4"
            };
            let frame = tcp(end(source, 4000), end(db, 5432), "S");
            assert_dropped(&kernel.egress(&frame), Reason::MartianAddress);
            let frame = tcp(end(source, 4000), end(web, 80), "S");
            assert_dropped(&kernel.ingress(&frame), Reason::MartianAddress);
        }
        // A workload that learns its addresses does not learn these.
        kernel.estate_mut().workloads[0].addresses.clear();
        kernel.apply().expect("applies");
        let seen = kernel.egress(&tcp(end("127.0.0.1", 4000), end("10.0.0.4", 5432), "S"));
        assert_dropped(&seen, Reason::MartianAddress);
        assert_eq!(seen.kinds(), [Kind::Denied]);
    });
}

#[test]
fn a_denied_opening_against_a_flow_names_its_opener_and_is_audited_in_monitor() {
    protect(|kernel| {
        for [web, api, ..] in FAMILIES {
            kernel.set_mode(Mode::Protect);
            kernel.apply().expect("applies");
            let (web, api) = (end(web, 80), end(api, 4000));
            assert_passes(&kernel.ingress(&tcp(api, web, "S")));
            let seen = kernel.egress(&tcp(web, api, "S"));
            assert_dropped(&seen, Reason::ReverseOpen);
            let event = seen.events[0];
            assert_eq!(event.ct_flags, flags::OPENER_LOCAL);
            assert_eq!(event.packets, [1, 0]);

            kernel.set_mode(Mode::Monitor);
            kernel.apply().expect("applies");
            let flows = kernel.flows();
            let seen = kernel.egress(&tcp(web, api, "S"));
            let found = (seen.passed, seen.verdict, seen.reason);
            assert_eq!(found, (true, Verdict::Audit, Some(Reason::ReverseOpen)));
            assert_eq!(seen.kinds(), [Kind::Denied]);
            assert_eq!(kernel.flows(), flows, "the flow itself is untouched");
        }
    });
}

#[test]
fn what_the_ip_header_does_not_claim_is_no_header() {
    protect(|kernel| {
        // The length field covers the IP header and 8 bytes; the TCP flags lie in the padding.
        let mut frame = tcp(end("10.0.0.2", 4000), end("10.0.0.4", 5432), "S");
        for claimed in [0_u16, 20, 28, 39] {
            frame[ETHERNET_LEN + 2..ETHERNET_LEN + 4].copy_from_slice(&claimed.to_be_bytes());
            assert_dropped(&kernel.egress(&frame), Reason::Truncated);
        }
        let mut frame = tcp(end("fd00::2", 4000), end("fd00::4", 5432), "S");
        for claimed in [0_u16, 8, 19] {
            frame[ETHERNET_LEN + 4..ETHERNET_LEN + 6].copy_from_slice(&claimed.to_be_bytes());
            let seen = kernel.egress(&frame);
            assert_dropped(&seen, Reason::Truncated);
            assert_eq!(
                seen.events[0].family, 6,
                "the addresses are known all the same"
            );
        }
        // An extension header that ends past the packet hides behind a protocol without ports.
        let frame = frames::raw("fd00::2", "fd00::4", 47, &[]);
        let mut frame = frames::with_ipv6_extensions(&frame, &[frames::padding_extension(60)]);
        assert_passes(&kernel.egress(&frame));
        frame[ETHERNET_LEN + 41] = 1;
        assert_dropped(&kernel.egress(&frame), Reason::Truncated);
        // Padding that Ethernet asks for changes nothing.
        let mut frame = tcp(end("10.0.0.2", 4001), end("10.0.0.4", 5432), "S");
        frame.resize(60, 0);
        assert_passes(&kernel.egress(&frame));
    });
}

#[test]
fn headers_out_of_reach_have_their_own_reason() {
    protect(|kernel| {
        let frame = tcp(end("fd00::2", 4000), end("fd00::4", 5432), "S");
        let mut body = vec![0; 7 + 63 * 8];
        body[0] = 63;
        let long = frames::with_ipv6_extensions(&frame, &[(60, body)]);
        assert_dropped(&kernel.egress(&long), Reason::Ipv6ExtensionHeaders);
        // Two tags of any kind are read, a third or half a one is not.
        let frame = tcp(end("10.0.0.2", 4000), end("10.0.0.4", 5432), "S");
        for (inner, outer) in [(0x8100, 0x8100), (0x88a8, 0x8100), (0x8100, 0x88a8)] {
            let tagged = frames::tagged(&frames::tagged(&frame, inner, 7), outer, 8);
            assert!(kernel.egress(&tagged).passed, "{inner:x} in {outer:x}");
            let seen = kernel.egress(&tagged[..ETHERNET_LEN + 6]);
            assert_dropped(&seen, Reason::VlanUnsupported);
        }
    });
}

#[test]
fn an_overwriting_fragment_is_reported_with_its_addresses() {
    protect(|kernel| {
        let segment = tcp(end("10.0.0.2", 4000), end("10.0.0.4", 5432), "S");
        let seen = kernel.egress(&frames::ipv4_fragment(&segment, 10, 1, 8, false));
        assert_dropped(&seen, Reason::FragmentTooSmall);
        let event = seen.events[0];
        assert_eq!((event.family, event.protocol), (4, 6));
        assert_eq!(&event.local[12..], [10, 0, 0, 2]);
        assert_eq!(&event.remote[12..], [10, 0, 0, 4]);
    });
}

#[test]
fn fragments_of_address_configuration_and_ping_follow_their_first() {
    protect(|kernel| {
        let offer = udp(end("10.0.0.1", 67), end("10.0.0.2", 68), &[0; 64]);
        assert_passes(&kernel.ingress(&frames::ipv4_fragment(&offer, 5, 0, 32, true)));
        assert_passes(&kernel.ingress(&frames::ipv4_fragment(&offer, 5, 4, 16, false)));
        // A later fragment of a request is one of a request also when the flow is judged again.
        let ping = frames::icmp(
            "10.0.0.2".parse().expect("an address"),
            "10.0.0.4".parse().expect("an address"),
            8,
            0,
            [0, 7, 0, 1],
            &[0; 64],
        );
        assert_passes(&kernel.egress(&frames::ipv4_fragment(&ping, 6, 0, 32, true)));
        kernel.set_policies(&format!("\n{POLICY}"));
        kernel.apply().expect("applies");
        let seen = kernel.egress(&frames::ipv4_fragment(&ping, 6, 4, 16, false));
        assert_passes(&seen);
        assert_eq!(
            seen.kinds(),
            [Kind::Rejudged],
            "another line, so another rule"
        );
        assert_eq!(u16::from_be(seen.events[0].remote_port_be), 0x0800);
        assert_eq!(u16::from_be(seen.events[0].local_port_be), 7);
    });
}

#[test]
fn an_error_about_udp_lite_finds_its_flow() {
    protect(|kernel| {
        for [web, _, db, host] in FAMILIES {
            let kind = if web.contains('.') { 3 } else { 1 };
            let frame = frames::raw(web, db, 136, &[0x0f, 0xa0, 0, 53, 0, 8, 0, 0]);
            assert_passes(&kernel.egress(&frame));
            assert_passes(&kernel.ingress(&icmp_error(host, kind, 3, &frame)));
        }
        // IPv4 has no echo of type 128.
        let ping = frames::echo("10.0.0.2", "10.0.0.4", 9, false);
        assert_passes(&kernel.egress(&ping));
        let mut error = icmp_error("10.0.0.1", 3, 3, &ping);
        assert_passes(&kernel.ingress(&error));
        error[ETHERNET_LEN + IPV4_LEN + 8 + IPV4_LEN] = 128;
        assert_dropped(&kernel.ingress(&error), Reason::IcmpErrorUnrelated);
    });
}
