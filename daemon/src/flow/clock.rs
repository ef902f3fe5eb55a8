//! Kernel time to wall time.
//!
//! The kernel stamps events with `CLOCK_MONOTONIC`. The offset to the wall clock is sampled again
//! and again, so that records follow steps of the wall clock and the drift NTP corrects.

use jiff::{SignedDuration, Timestamp};
use nix::time::{ClockId, clock_gettime};

/// Longest time between reading the clock and reading an entry, in milliseconds.
const YOUNGER_MS: u32 = 60_000;

/// Offset between the monotonic and the wall clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Wall time minus monotonic time.
    offset: SignedDuration,
}

impl Clock {
    /// Samples both clocks.
    #[must_use]
    pub fn sample() -> Self {
        let wall = Timestamp::now();
        Self::with_offset(wall, monotonic_ns())
    }

    /// The clock on which `wall` and `monotonic_ns` are the same moment.
    #[must_use]
    pub fn with_offset(wall: Timestamp, monotonic_ns: u64) -> Self {
        Self {
            offset: wall.as_duration() - nanoseconds(monotonic_ns),
        }
    }

    /// Wall time of a kernel time stamp. Times outside the representable range are clamped.
    #[must_use]
    pub fn wall(&self, monotonic_ns: u64) -> Timestamp {
        Timestamp::from_duration(self.offset.saturating_add(nanoseconds(monotonic_ns)))
            .unwrap_or(Timestamp::UNIX_EPOCH)
    }

    /// Wall time of a time stamp in monotonic milliseconds modulo 2^32, as conntrack keeps it: the
    /// latest such moment that is not after `now_ns`. An entry may be younger than `now_ns`, which is
    /// read before the entries are; a moment up to [`YOUNGER_MS`] after it is taken for `now_ns`.
    #[must_use]
    pub fn wall_of_ms(&self, wrapped_ms: u32, now_ns: u64) -> Timestamp {
        let now_ms = now_ns / 1_000_000;
        let age_ms = match (now_ms as u32).wrapping_sub(wrapped_ms) {
            age_ms if age_ms >= YOUNGER_MS.wrapping_neg() => 0,
            age_ms => age_ms,
        };
        self.wall(now_ms.saturating_sub(u64::from(age_ms)) * 1_000_000)
    }
}

fn nanoseconds(ns: u64) -> SignedDuration {
    SignedDuration::from_nanos(i64::try_from(ns).unwrap_or(i64::MAX))
}

/// Now, on the kernel's monotonic clock.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)
        .expect("CLOCK_MONOTONIC exists on every Linux kernel");
    (now.tv_sec() as u64)
        .saturating_mul(1_000_000_000)
        .saturating_add(now.tv_nsec() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_offset() {
        let wall = Timestamp::from_second(1_700_000_000).unwrap();
        let clock = Clock::with_offset(wall, 5_000_000_000);
        assert_eq!(clock.wall(5_000_000_000), wall);
        assert_eq!(
            clock.wall(6_500_000_000).as_millisecond(),
            1_700_000_001_500
        );
        assert_eq!(clock.wall(0).as_second(), 1_699_999_995);
    }

    #[test]
    fn wrapped_milliseconds_are_the_latest_moment_not_after_now() {
        let wall = Timestamp::from_second(1_700_000_000).unwrap();
        let now_ms: u64 = (1 << 32) + 10;
        let clock = Clock::with_offset(wall, now_ms * 1_000_000);
        let ago = |wrapped| {
            1_700_000_000_000
                - clock
                    .wall_of_ms(wrapped, now_ms * 1_000_000)
                    .as_millisecond()
        };
        assert_eq!(ago(10), 0);
        assert_eq!(ago(0), 10);
        assert_eq!(ago(u32::MAX), 11);
        // Made after the clock was read, not 49 days ago.
        assert_eq!(ago(11), 0);
        assert_eq!(ago(60_010), 0);
        assert_eq!(ago(60_011), i64::from(u32::MAX) + 1 - 60_001);
    }

    #[test]
    fn the_sampled_clock_is_now() {
        let clock = Clock::sample();
        let difference = Timestamp::now().duration_since(clock.wall(monotonic_ns()));
        assert!(
            difference.abs() < SignedDuration::from_secs(5),
            "{difference:?}"
        );
    }
}
