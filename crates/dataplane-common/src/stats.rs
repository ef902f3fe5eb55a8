//! Counters of packets by outcome.

use crate::{Direction, assert_layout};

/// What was done with a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Verdict {
    /// Passed.
    Forwarded = 1,
    /// Dropped.
    Dropped = 2,
    /// Passed, but policy would have dropped it (monitor mode).
    Audit = 3,
    /// Steered to the userspace proxy.
    Redirected = 4,
}

impl Verdict {
    /// The verdict for a wire byte; `None` for an unknown one.
    #[must_use]
    pub const fn from_u8(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::Forwarded),
            2 => Some(Self::Dropped),
            3 => Some(Self::Audit),
            4 => Some(Self::Redirected),
            _ => None,
        }
    }

    /// The lower-case name used in every output.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Forwarded => "forwarded",
            Self::Dropped => "dropped",
            Self::Audit => "audit",
            Self::Redirected => "redirected",
        }
    }
}

/// Value of the per-CPU array `packet_stats`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
#[repr(C)]
pub struct Counter {
    /// Packets (GSO super-packets count as their segments).
    pub packets: u64,
    /// Bytes of layer 3.
    pub bytes: u64,
}
assert_layout!(Counter, size = 16, align = 8, { packets @ 0, bytes @ 8 });

/// Reasons per verdict and direction in `packet_stats`.
pub const REASONS: u32 = 64;
/// Length of `packet_stats`.
pub const PACKET_STATS_LEN: u32 = 5 * 2 * REASONS;

/// Index into `packet_stats`; `reason` is 0 or a [`crate::DropReason`] number.
#[must_use]
#[inline(always)]
pub const fn stats_index(verdict: Verdict, direction: Direction, reason: u8) -> u32 {
    let reason = reason as u32;
    let reason = if reason < REASONS {
        reason
    } else {
        REASONS - 1
    };
    (verdict as u32 * 2 + direction as u32) * REASONS + reason
}

/// Value of the one-element per-CPU array `cpu_state`: what a program needs on every packet, in one
/// lookup.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(C)]
pub struct CpuState {
    /// Packets of flows that pass without objection, by [`Direction`]: the part of `packet_stats`
    /// that every established packet would touch.
    pub forwarded: [Counter; 2],
    /// The same for flows that pass in monitor mode only.
    pub audited: [Counter; 2],
    /// The packet at hand; programs only.
    pub scratch: [u64; SCRATCH_WORDS],
}
assert_layout!(CpuState, size = 384, align = 8, { forwarded @ 0, audited @ 32, scratch @ 64 });

/// Words of [`CpuState::scratch`].
pub const SCRATCH_WORDS: usize = 40;
