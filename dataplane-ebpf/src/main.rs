//! The BPF dataplane: two TC programs on the host side of every workload's veth.
//!
//! `from_workload` runs at TC ingress of the host-side interface and sees what the workload sends;
//! `to_workload` runs at TC egress and sees what it is about to receive. Names and directions in
//! this program are always the workload's.
//!
//! Minimum kernel 6.1: `bpf_ktime_get_coarse_ns` (5.11), ring buffer (5.8), bounded loops (5.3).
//! TCX links need 6.6; below that the same programs attach through clsact.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
// The entry points' documentation is lost in the macro that exports them.
#![allow(missing_docs)]

mod addr;
mod conntrack;
mod control;
mod event;
mod fragment;
mod judge;
mod maps;
mod parse;
mod policy;
mod verdict;

use aya_ebpf::{bindings::TC_ACT_SHOT, macros::classifier, programs::TcContext};
use dataplane_common::{Direction, stats::Verdict};

/// Let the packet go on to the next program or the stack: `TCX_NEXT` and `TC_ACT_UNSPEC` are both
/// -1, so the value means the same at a TCX link and at clsact.
const NEXT: i32 = -1;

/// Egress hook of the workload.
#[classifier]
pub fn from_workload(ctx: TcContext) -> i32 {
    action(verdict::judge(&ctx, Direction::Egress))
}

/// Ingress hook of the workload.
#[classifier]
pub fn to_workload(ctx: TcContext) -> i32 {
    action(verdict::judge(&ctx, Direction::Ingress))
}

/// Every verdict and what happens to the packet.
#[inline(always)]
fn action(verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Forwarded | Verdict::Audit => NEXT,
        // Nothing redirects yet: no policy compiles to it. Until the proxy exists, a redirect
        // verdict is fail-closed.
        Verdict::Dropped | Verdict::Redirected => TC_ACT_SHOT as i32,
    }
}

/// License of the object, which the kernel asks for before it lends GPL-only helpers.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
pub static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Every path is proven not to panic: bounds checks return drop reasons.
    loop {}
}
