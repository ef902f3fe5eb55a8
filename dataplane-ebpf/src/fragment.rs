//! Ports of fragmented datagrams: noted from the first fragment, recalled for the later ones.

use dataplane_common::{
    conntrack::tcp,
    fragment::{FragmentKey, FragmentPorts},
    proto,
};

use crate::{maps::FRAGMENTS, verdict::Flow};

#[inline(always)]
pub fn set_fragment_key(flow: &mut Flow) {
    flow.fragment_key = FragmentKey {
        endpoint: flow.endpoint,
        id: flow.packet.header.fragment_id,
        source: flow.packet.source.bytes(),
        destination: flow.packet.destination.bytes(),
        protocol: flow.packet.header.protocol,
        _pad: [0; 3],
    };
}

/// Notes the ports of a first fragment that passed.
#[inline(always)]
pub fn remember_fragment(flow: &mut Flow) {
    set_fragment_key(flow);
    let ports = FragmentPorts {
        source_port_be: flow.packet.header.source_port_be,
        destination_port_be: flow.packet.header.destination_port_be,
    };
    // A full map costs later fragments their verdict, never the reverse: LRU evicts, and a fragment
    // without its first is refused.
    let _ = FRAGMENTS.insert(&flow.fragment_key, ports, 0);
}

/// Fills in the ports of a later fragment; false when its first was not seen passing.
#[inline(always)]
pub fn recall_fragment(flow: &mut Flow) -> bool {
    set_fragment_key(flow);
    // SAFETY: copied at once.
    let Some(ports) = (unsafe { FRAGMENTS.get(&flow.fragment_key) }) else {
        return false;
    };
    flow.packet.header.source_port_be = ports.source_port_be;
    flow.packet.header.destination_port_be = ports.destination_port_be;
    if flow.packet.header.protocol == proto::TCP {
        flow.packet.header.tcp_flags = tcp::ACK;
    } else if matches!(flow.packet.header.protocol, proto::ICMP | proto::ICMPV6) {
        let [kind, code] = ports.destination_port_be.to_ne_bytes();
        flow.packet.header.icmp_type = kind;
        flow.packet.header.icmp_code = code;
    }
    true
}
