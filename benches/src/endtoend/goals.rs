//! What is aimed at, and whether the figures say so. An interval on both sides of a limit decides
//! nothing, and says that.

use serde::Serialize;

use super::bed::Topology;
use super::firewall::Firewall;
use super::paired::Ratio;
use super::report::{Row, Setting};
use super::work::Work;

/// CPU time of a small UDP packet over no firewall.
const UDP_AT_MOST: f64 = 1.06;
/// CPU time of a connection over no firewall.
const CONNECTION_AT_MOST: f64 = 1.07;
/// CPU time of a stream over no firewall: 0.97 of the throughput a CPU gives.
const STREAM_AT_MOST: f64 = 1.0 / 0.97;
/// Longest Ethernet frame of an MTU of 1500; a longer packet has not been segmented.
const FULL_FRAME: f64 = 1514.0;

/// A goal and what was measured.
#[derive(Debug, Serialize)]
pub struct Goal {
    /// What is compared with what.
    pub name: String,
    /// The limit.
    pub at_most: f64,
    /// The figure.
    pub measured: Ratio,
    /// Whether it is met.
    pub verdict: Verdict,
}

/// Whether a goal is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The whole interval is within the limit.
    Met,
    /// The whole interval is beyond the limit.
    Missed,
    /// The limit lies in the interval: more rounds or a quieter machine would tell.
    Undecided,
}

impl Verdict {
    /// Name in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Met => "yes",
            Self::Missed => "NO",
            Self::Undecided => "undecided",
        }
    }

    fn of(measured: &Ratio, at_most: f64) -> Self {
        if measured.high <= at_most {
            Self::Met
        } else if measured.low > at_most {
            Self::Missed
        } else {
            Self::Undecided
        }
    }
}

/// Judges every row of ours.
pub(super) fn judge(setting: &Setting) -> Vec<Goal> {
    let rows = |firewall| {
        setting
            .rows
            .iter()
            .filter(move |row| row.firewall == firewall)
    };
    let way = match setting.topology {
        Topology::Bridged => "bridged",
        Topology::Routed => "routed",
    };
    let mut goals = Vec::new();
    for ours in rows(Firewall::Portcullis) {
        let place = format!("{way}, {} rules", ours.rules);
        let mut add = |name: String, at_most: f64, measured: Ratio| {
            let verdict = Verdict::of(&measured, at_most);
            goals.push(Goal {
                name: format!("{name}, {place}"),
                at_most,
                measured,
                verdict,
            });
        };
        let over_none = |work: Work| ours.over_none[work as usize];
        let (udp, connection) = (Work::SmallUdp, Work::ConnectRequestResponse);
        add(
            "G6 UDP packet over none".to_owned(),
            UDP_AT_MOST,
            over_none(udp),
        );
        add(
            "G7 connection over none".to_owned(),
            CONNECTION_AT_MOST,
            over_none(connection),
        );
        add(
            "G8 stream over none".to_owned(),
            STREAM_AT_MOST,
            over_none(Work::Stream),
        );
        let unsegmented = FULL_FRAME / ours.stream_packet_bytes;
        add(
            "G8 full frame over a packet of the stream".to_owned(),
            1.0,
            Ratio {
                median: unsegmented,
                low: unsegmented,
                high: unsegmented,
            },
        );
        for firewall in [Firewall::NftSet, Firewall::NftBridge] {
            let same = |row: &&Row| row.rules == ours.rules;
            let Some(theirs) = rows(firewall).find(same) else {
                continue;
            };
            for (what, work) in [("G6 UDP packet", udp), ("G7 connection", connection)] {
                let index = work as usize;
                add(
                    format!("{what} over {}", firewall.name()),
                    1.0,
                    Ratio::paired(&ours.samples[index], &theirs.samples[index]),
                );
            }
        }
    }
    goals
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_inside_the_interval_decides_nothing() {
        let ratio = |low, high| Ratio {
            median: f64::midpoint(low, high),
            low,
            high,
        };
        assert_eq!(Verdict::of(&ratio(1.01, 1.05), 1.06), Verdict::Met);
        assert_eq!(Verdict::of(&ratio(1.05, 1.08), 1.06), Verdict::Undecided);
        assert_eq!(Verdict::of(&ratio(1.07, 1.08), 1.06), Verdict::Missed);
    }
}
