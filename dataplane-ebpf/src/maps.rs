//! Every map: what it holds, how large and why, who writes and who reads.
//!
//! "Control" is the daemon. Capacities are defaults; the loader may change them before load.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_F_RDONLY_PROG},
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf},
};
use dataplane_common::{
    conntrack::{CtEntry, CtKey4, CtKey6},
    endpoint::EndpointConfig,
    event::EventKind,
    fragment::{FragmentKey, FragmentPorts},
    identity::{AddressKey, AddressValue, CidrKey},
    policy::{PolicyKey, PolicyMeta, PolicyValue},
    stats::{Counter, CpuState, PACKET_STATS_LEN},
};

/// Workload interfaces, by index. Control writes whole values; programs read.
/// 4,096 interfaces is far past what one host runs.
#[map(name = "endpoints")]
pub static ENDPOINTS: HashMap<u32, EndpointConfig> =
    HashMap::with_max_entries(4096, BPF_F_RDONLY_PROG);

/// One state word per endpoint slot, see `EndpointState`. Control writes single 64-bit stores
/// through a memory mapping; programs read. (The kernel refuses writable mappings of arrays that are
/// read-only for programs.)
#[map(name = "endpoint_states")]
pub static ENDPOINT_STATES: Array<u64> = Array::with_max_entries(4096, BPF_F_MMAPABLE);

/// Compiled policies by slot; slot 0 stays empty and drops. Twice the endpoints, so that every
/// endpoint can hold an old and a new policy during a change.
#[map(name = "policies")]
pub static POLICIES: Array<PolicyMeta> = Array::with_max_entries(8192, BPF_F_RDONLY_PROG);

/// Entries of compiled policies. Control fills a slot before any endpoint points to it. 262,144
/// holds two full copies of a 100,000-entry estate.
#[map(name = "policy_entries")]
pub static POLICY_ENTRIES: HashMap<PolicyKey, PolicyValue> =
    HashMap::with_max_entries(262_144, BPF_F_RDONLY_PROG | BPF_F_NO_PREALLOC);

/// Exact address -> identity and owner. Control writes; programs read on the slow path.
#[map(name = "ids")]
pub static IDS: HashMap<AddressKey, AddressValue> =
    HashMap::with_max_entries(262_144, BPF_F_RDONLY_PROG | BPF_F_NO_PREALLOC);

/// Longest prefix -> identity, consulted when `ids` has no answer.
#[map(name = "cidrs")]
pub static CIDRS: LpmTrie<CidrKey, u32> = LpmTrie::with_max_entries(131_072, BPF_F_RDONLY_PROG);

/// IPv4 flows. Programs write; control reads, and deletes what is dead. LRU: a flood evicts the
/// idlest flows, whose next packet is judged by policy again.
#[map(name = "ct4")]
pub static CT4: LruHashMap<CtKey4, CtEntry> = LruHashMap::with_max_entries(524_288, 0);

/// IPv6 flows, as above.
#[map(name = "ct6")]
pub static CT6: LruHashMap<CtKey6, CtEntry> = LruHashMap::with_max_entries(262_144, 0);

/// Ports of fragmented datagrams in flight. Programs write and read.
#[map(name = "fragments")]
pub static FRAGMENTS: LruHashMap<FragmentKey, FragmentPorts> =
    LruHashMap::with_max_entries(8192, 0);

/// Packets and bytes by verdict, direction and reason, but for what `cpu_state` counts. Programs
/// write; control reads.
#[map(name = "packet_stats")]
pub static PACKET_STATS: PerCpuArray<Counter> = PerCpuArray::with_max_entries(PACKET_STATS_LEN, 0);

/// Events that found the ring full, by kind. Programs write; control reads.
#[map(name = "lost_events")]
pub static LOST_EVENTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(EventKind::SLOTS, 0);

/// Flow events. Programs write; the daemon's reader task is the only consumer.
#[map(name = "events")]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(4 << 20, 0);

/// Counters of passing packets, and the packet at hand. Programs write; control reads the counters.
#[map(name = "cpu_state")]
pub static CPU_STATE: PerCpuArray<CpuState> = PerCpuArray::with_max_entries(1, 0);
