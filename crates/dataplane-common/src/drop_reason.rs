//! Why a packet was dropped (or, in monitor mode, would have been).

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal, $text:literal;)+) => {
        /// A drop reason. Numbers are part of the wire format and are never reused.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum DropReason {
            $($(#[doc = $doc])+ $name = $number,)+
        }

        impl DropReason {
            /// Every reason, in order of its number.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The reason for a wire byte; `None` for 0 (not dropped) and for unknown numbers.
            #[must_use]
            pub const fn from_u8(value: u8) -> Option<Self> {
                match value {
                    $($number => Some(Self::$name),)+
                    _ => None,
                }
            }

            /// The stable name used in flow records, metrics and the CLI.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }
        }
    };
}

drop_reasons! {
    /// An explicit deny rule matched.
    PolicyDeny = 1, "policy_deny";
    /// Nothing allows the flow.
    PolicyDefaultDeny = 2, "policy_default_deny";
    /// The flow was allowed once; the policy in force no longer allows it.
    PolicyRevoked = 3, "policy_revoked";
    /// The source address does not belong to the workload.
    SourceSpoofed = 4, "source_spoofed";
    /// A header ends before its length says, or the packet does.
    Truncated = 5, "truncated";
    /// A version, length or offset field contradicts the packet.
    MalformedHeader = 6, "malformed_header";
    /// An EtherType that is neither IPv4, IPv6, ARP nor VLAN.
    UnknownEtherType = 7, "unknown_ethertype";
    /// More IPv6 extension headers than the parser follows, or one it does not know.
    Ipv6ExtensionHeaders = 8, "ipv6_extension_headers";
    /// A later fragment whose first fragment was not seen.
    FragmentWithoutFirst = 9, "fragment_without_first";
    /// A first fragment too small to hold the layer 4 header (RFC 1858).
    FragmentTooSmall = 10, "fragment_too_small";
    /// An ICMP error about a flow that this workload does not have.
    IcmpErrorUnrelated = 11, "icmp_error_unrelated";
    /// A neighbour-discovery message only routers send (router advertisement, redirect).
    RouterMessageFromWorkload = 12, "router_message_from_workload";
    /// The interface carries the program but no endpoint is configured for it.
    NoEndpoint = 13, "no_endpoint";
    /// The endpoint's compiled policy is missing or incomplete.
    NoPolicy = 14, "no_policy";
    /// The conntrack map refused a new entry.
    ConntrackFull = 15, "conntrack_full";
    /// A TCP flag combination no stack sends (SYN with FIN or RST, no flags).
    TcpFlagsInvalid = 16, "tcp_flags_invalid";
    /// An address that can never be a source (multicast, loopback, v4-mapped on the wire).
    MartianAddress = 17, "martian_address";
    /// More than two VLAN tags, or a tag cut short.
    VlanUnsupported = 18, "vlan_unsupported";
    /// A frame for another workload, flooded by the bridge to this one's port.
    NotForWorkload = 19, "not_for_workload";
    /// The opposite end opens a connection over an existing one, and policy does not allow that.
    ReverseOpen = 20, "reverse_open";
}
