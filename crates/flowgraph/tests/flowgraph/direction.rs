use flowgraph::direction::{
    DecidedBy, Evidence, ListenerTable, OpenerDecision, Side, Sockets, decide,
};
use flowgraph::record::Opener;
use policy::model::Protocol;

const LOCAL: &str = "10.0.0.1";
const REMOTE: &str = "10.0.0.2";

/// What an end's network namespace holds.
#[derive(Clone, Copy, Debug)]
enum End {
    /// Sockets that cannot be read.
    Hidden,
    /// A listening or bound, unconnected socket at this address and the flow's port.
    Bound(&'static str),
    /// Other sockets only.
    Other,
}
use End::{Bound, Hidden, Other};

/// Name, protocol, the two ends with their ports, and what is expected.
type Case<T> = (&'static str, Protocol, (u16, End), (u16, End), T);

fn sockets(end: End, protocol: Protocol, port: u16) -> Option<Sockets> {
    let mut sockets = Sockets::default();
    sockets.insert(protocol, "0.0.0.0:9".parse().unwrap());
    match end {
        Hidden => return None,
        Bound(address) => {
            sockets.insert(
                protocol,
                std::net::SocketAddr::new(address.parse().unwrap(), port),
            );
        }
        Other => {}
    }
    Some(sockets)
}

const LOCAL_LISTENER: OpenerDecision = OpenerDecision::Local(DecidedBy::Listener);
const REMOTE_LISTENER: OpenerDecision = OpenerDecision::Remote(DecidedBy::Listener);
const UNKNOWN: OpenerDecision = OpenerDecision::Unknown;

#[test]
fn flows_that_began_unseen_are_decided_by_sockets_or_not_at_all() {
    let (tcp, udp, sctp) = (Protocol::TCP, Protocol::UDP, Protocol::SCTP);
    let any4 = Bound("0.0.0.0");
    // Name, protocol, local port and end, remote port and end, decision.
    let cases: &[Case<OpenerDecision>] = &[
        (
            "long-lived to a server",
            tcp,
            (40_000, Other),
            (5432, any4),
            LOCAL_LISTENER,
        ),
        (
            "long-lived from a client",
            tcp,
            (5432, any4),
            (40_000, Other),
            REMOTE_LISTENER,
        ),
        (
            "server on a high port, client on a low one",
            tcp,
            (600, Other),
            (50_000, any4),
            LOCAL_LISTENER,
        ),
        (
            "the smaller port is not the server",
            tcp,
            (80, Other),
            (40_000, Other),
            UNKNOWN,
        ),
        (
            "both listen (peer to peer)",
            tcp,
            (4001, any4),
            (4001, any4),
            UNKNOWN,
        ),
        (
            "neither listens any more",
            tcp,
            (40_000, Other),
            (5432, Other),
            UNKNOWN,
        ),
        (
            "outside server",
            tcp,
            (40_000, Other),
            (443, Hidden),
            UNKNOWN,
        ),
        (
            "outside client may be a peer",
            tcp,
            (8080, any4),
            (40_000, Hidden),
            UNKNOWN,
        ),
        (
            "nothing is known",
            tcp,
            (40_000, Hidden),
            (443, Hidden),
            UNKNOWN,
        ),
        (
            "listener on loopback only",
            tcp,
            (40_000, Other),
            (5432, Bound("127.0.0.1")),
            UNKNOWN,
        ),
        (
            "listener on the address itself",
            tcp,
            (40_000, Other),
            (5432, Bound(REMOTE)),
            LOCAL_LISTENER,
        ),
        (
            "dual-stack listener",
            tcp,
            (40_000, Other),
            (5432, Bound("::")),
            LOCAL_LISTENER,
        ),
        (
            "mapped listener",
            tcp,
            (40_000, Other),
            (5432, Bound("::ffff:10.0.0.2")),
            LOCAL_LISTENER,
        ),
        (
            "v6-only address does not serve v4",
            tcp,
            (40_000, Other),
            (5432, Bound("fd00::2")),
            UNKNOWN,
        ),
        (
            "sctp listens too",
            sctp,
            (40_000, Other),
            (3868, any4),
            LOCAL_LISTENER,
        ),
        (
            "udp server, connected client",
            udp,
            (40_000, Other),
            (53, any4),
            LOCAL_LISTENER,
        ),
        (
            "udp server, unconnected client",
            udp,
            (40_000, any4),
            (53, any4),
            LOCAL_LISTENER,
        ),
        (
            "udp seen from the server",
            udp,
            (53, any4),
            (40_000, any4),
            REMOTE_LISTENER,
        ),
        (
            "udp both fixed (ntp)",
            udp,
            (123, any4),
            (123, any4),
            UNKNOWN,
        ),
        (
            "udp both ephemeral",
            udp,
            (40_000, any4),
            (41_000, any4),
            UNKNOWN,
        ),
        (
            "udp server on an ephemeral port",
            udp,
            (40_000, Other),
            (51_820, any4),
            UNKNOWN,
        ),
        ("udp outside", udp, (40_000, Other), (53, Hidden), UNKNOWN),
        (
            "icmp has no listeners",
            Protocol::ICMP,
            (0, any4),
            (0, Other),
            UNKNOWN,
        ),
        ("gre has none", Protocol(47), (0, any4), (0, Other), UNKNOWN),
    ];
    for (name, protocol, (local_port, local), (remote_port, remote), expected) in cases {
        for first_sender in [Side::Local, Side::Remote] {
            let local_sockets = sockets(*local, *protocol, *local_port);
            let remote_sockets = sockets(*remote, *protocol, *remote_port);
            let evidence = Evidence {
                protocol: *protocol,
                local: (LOCAL.parse::<std::net::IpAddr>().unwrap(), *local_port).into(),
                remote: (REMOTE.parse::<std::net::IpAddr>().unwrap(), *remote_port).into(),
                first_sender,
                first_is_opener: false,
                icmp: None,
                local_sockets: local_sockets.as_ref(),
                remote_sockets: remote_sockets.as_ref(),
            };
            assert_eq!(
                decide(&evidence),
                *expected,
                "{name}, first packet from {first_sender:?}"
            );
        }
    }
}

#[test]
fn a_flow_seen_from_its_beginning_is_certain_unless_its_sockets_contradict() {
    let (tcp, udp) = (Protocol::TCP, Protocol::UDP);
    let any4 = Bound("0.0.0.0");
    // Name, protocol, sender port and end, receiver port and end, whether the sender is the opener.
    let cases: &[Case<bool>] = &[
        ("syn", tcp, (40_000, Other), (80, any4), true),
        (
            "syn to a closed port",
            tcp,
            (40_000, Other),
            (81, Other),
            true,
        ),
        (
            "syn from a listening port",
            tcp,
            (4001, any4),
            (4001, Hidden),
            true,
        ),
        (
            "syn to a high port",
            tcp,
            (40_000, Hidden),
            (60_000, Hidden),
            true,
        ),
        ("query", udp, (40_000, Other), (53, any4), true),
        (
            "query from an unconnected socket",
            udp,
            (40_000, any4),
            (53, any4),
            true,
        ),
        (
            "query to the outside",
            udp,
            (40_000, Other),
            (53, Hidden),
            true,
        ),
        (
            "unconnected query to the outside",
            udp,
            (40_000, any4),
            (53, Hidden),
            true,
        ),
        (
            "query from the outside",
            udp,
            (40_000, Hidden),
            (53, any4),
            true,
        ),
        ("resolver to resolver", udp, (53, any4), (53, any4), true),
        ("ntp to the outside", udp, (123, any4), (123, Hidden), true),
        (
            "nothing is known",
            udp,
            (40_000, Hidden),
            (53, Hidden),
            true,
        ),
        (
            "server's late word to its client",
            udp,
            (5060, any4),
            (40_000, any4),
            false,
        ),
        (
            "the same, connected client",
            udp,
            (5060, any4),
            (40_000, Other),
            false,
        ),
        (
            "the same, client outside",
            udp,
            (5060, any4),
            (40_000, Hidden),
            false,
        ),
        (
            "the same, server outside",
            udp,
            (5060, Hidden),
            (40_000, Other),
            false,
        ),
        (
            "tftp answers from a new port",
            udp,
            (45_000, Other),
            (40_000, any4),
            false,
        ),
        (
            "the same to the outside",
            udp,
            (45_000, Other),
            (50_000, Hidden),
            false,
        ),
        (
            "the receiver has closed",
            udp,
            (40_000, Other),
            (53, Other),
            false,
        ),
    ];
    for (name, protocol, (sender_port, sender), (receiver_port, receiver), certain) in cases {
        for first_sender in [Side::Local, Side::Remote] {
            let sender_sockets = sockets(*sender, *protocol, *sender_port);
            let receiver_sockets = sockets(*receiver, *protocol, *receiver_port);
            // Both ends use the wildcard, so the addresses may stay where they are.
            let ((local_port, local), (remote_port, remote)) = match first_sender {
                Side::Local => (
                    (sender_port, &sender_sockets),
                    (receiver_port, &receiver_sockets),
                ),
                Side::Remote => (
                    (receiver_port, &receiver_sockets),
                    (sender_port, &sender_sockets),
                ),
            };
            let evidence = Evidence {
                protocol: *protocol,
                local: (LOCAL.parse::<std::net::IpAddr>().unwrap(), *local_port).into(),
                remote: (REMOTE.parse::<std::net::IpAddr>().unwrap(), *remote_port).into(),
                first_sender,
                first_is_opener: true,
                icmp: None,
                local_sockets: local.as_ref(),
                remote_sockets: remote.as_ref(),
            };
            let decision = decide(&evidence);
            let expected = certain.then_some(first_sender);
            assert_eq!(decision.opener(), expected, "{name}, from {first_sender:?}");
            let certainty = if *certain {
                Opener::Certain
            } else {
                Opener::Unknown
            };
            assert_eq!(decision.certainty(), certainty, "{name}");
        }
    }
}

#[test]
fn an_echo_names_its_asker_whatever_was_seen_first() {
    for (protocol, icmp_type, sender, expected) in [
        (Protocol::ICMP, 8, Side::Local, Some(Side::Local)),
        (Protocol::ICMP, 0, Side::Local, Some(Side::Remote)),
        (Protocol::ICMPV6, 128, Side::Remote, Some(Side::Remote)),
        (Protocol::ICMPV6, 129, Side::Remote, Some(Side::Local)),
        (Protocol::ICMP, 13, Side::Local, None),
        (Protocol::TCP, 8, Side::Local, None),
    ] {
        let evidence = Evidence {
            protocol,
            local: (LOCAL.parse::<std::net::IpAddr>().unwrap(), 0).into(),
            remote: (REMOTE.parse::<std::net::IpAddr>().unwrap(), 0).into(),
            first_sender: Side::Local,
            first_is_opener: false,
            icmp: Some((sender, icmp_type)),
            local_sockets: None,
            remote_sockets: None,
        };
        assert_eq!(
            decide(&evidence).opener(),
            expected,
            "{protocol} type {icmp_type} from {sender:?}"
        );
    }
}

#[test]
fn a_workload_that_is_gone_is_unknown_and_not_without_listeners() {
    let mut table = ListenerTable::default();
    assert!(table.get("shop/web-1").is_none());
    let mut listening = Sockets::new(40_000..=50_000);
    listening.insert(Protocol::UDP, "0.0.0.0:39999".parse().unwrap());
    listening.insert(Protocol::UDP, "0.0.0.0:40000".parse().unwrap());
    table.set("shop/web-1", listening.clone());
    let read = table.get("shop/web-1").unwrap();
    assert!(read.serves(Protocol::UDP, "10.0.0.1:39999".parse().unwrap()));
    assert!(!read.serves(Protocol::UDP, "10.0.0.1:40000".parse().unwrap()));
    assert_eq!(read.iter().count(), 2);
    table.remove("shop/web-1");
    assert!(table.get("shop/web-1").is_none());
}
