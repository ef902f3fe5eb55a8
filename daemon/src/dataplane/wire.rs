//! The bridge between [`dataplane_common`]'s types and aya's `Pod` bound.

use aya::Pod;
use dataplane_common::{
    conntrack::{CtEntry, CtKey4, CtKey6},
    endpoint::EndpointConfig,
    event::FlowEvent,
    identity::{AddressKey, AddressValue, CidrKey},
    policy::{PolicyKey, PolicyMeta, PolicyValue},
    stats::{Counter, CpuState},
};

/// A wire type as a map key or value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(super) struct Wire<T>(pub(super) T);

/// Types of `dataplane-common`: `#[repr(C)]`, integers and byte arrays only, no implicit padding.
pub(super) trait WireLayout: Copy + 'static {}

macro_rules! wire_layouts {
    ($($type:ty),* $(,)?) => { $(impl WireLayout for $type {})* };
}
wire_layouts!(
    AddressKey,
    AddressValue,
    CidrKey,
    Counter,
    CpuState,
    CtEntry,
    CtKey4,
    CtKey6,
    EndpointConfig,
    FlowEvent,
    PolicyKey,
    PolicyMeta,
    PolicyValue,
);

// SAFETY: `WireLayout` types are plain bytes by the layout asserts of `dataplane-common`, any bit
// pattern is valid for them, and `Wire` is transparent.
unsafe impl<T: WireLayout> Pod for Wire<T> {}

/// Reads an event from ring-buffer bytes; `None` if the length is not that of an event.
pub(super) fn event_from_bytes(bytes: &[u8]) -> Option<FlowEvent> {
    if bytes.len() != size_of::<FlowEvent>() {
        return None;
    }
    // SAFETY: the length matches, any bit pattern is a valid `FlowEvent`, and the read is
    // unaligned.
    Some(unsafe { bytes.as_ptr().cast::<FlowEvent>().read_unaligned() })
}
