//! Samples as ratios with intervals, as JSON and as tables.

use anyhow::Result;
use comfy_table::Table;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use serde::Serialize;

use super::bed::{Bed, Topology};
use super::firewall::Firewall;
use super::goals::Goal;
use super::paired::{Ratio, median};
use super::work::Work;

/// Everything measured end to end.
#[derive(Debug, Serialize)]
pub struct EndToEnd {
    /// CPU both ends ran on.
    pub cpu: usize,
    /// One entry per topology.
    pub settings: Vec<Setting>,
    /// What was aimed at, and whether it was met.
    pub goals: Vec<Goal>,
}

/// The figures of a topology.
#[derive(Debug, Serialize)]
pub struct Setting {
    /// How packets got from workload to workload.
    pub topology: Topology,
    /// Samples per variant and work.
    pub rounds: usize,
    /// "No firewall": CPU time and error, by work.
    pub base: Vec<Base>,
    /// The firewalls.
    pub rows: Vec<Row>,
    /// Firewalls this machine could not run.
    pub skipped: Vec<Skipped>,
}

/// "No firewall".
#[derive(Debug, Serialize)]
pub struct Base {
    /// What was done.
    pub work: Work,
    /// What a unit is.
    pub unit: &'static str,
    /// Median CPU time of a unit.
    pub ns_per_unit: f64,
    /// How far from 1 the interval of equal things reaches: each copy over the others' median.
    pub error: f64,
}

/// A firewall with so many rules.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Which one.
    pub firewall: Firewall,
    /// Number of rules.
    pub rules: u32,
    /// CPU time over "no firewall" in the same round, by work.
    pub over_none: Vec<Ratio>,
    /// Mean length in bytes of received packets of a stream.
    pub stream_packet_bytes: f64,
    /// CPU nanoseconds per unit, by work and round.
    pub samples: [Vec<f64>; Work::ALL.len()],
}

/// A firewall this machine could not run.
#[derive(Debug, Serialize)]
pub struct Skipped {
    /// Which one.
    pub firewall: Firewall,
    /// With how many rules.
    pub rules: u32,
    /// Why.
    pub reason: String,
}

impl Setting {
    /// Works the samples out.
    pub(super) fn of(topology: Topology, beds: &mut [Bed], skipped: Vec<Skipped>) -> Result<Self> {
        let copies: Vec<&Bed> = beds
            .iter()
            .filter(|bed| bed.variant.firewall == Firewall::None)
            .collect();
        let rounds = copies[0].samples[0].len();
        // Per work and round, the median of the copies.
        let bases = Work::ALL.map(|work| {
            let all: Vec<&[f64]> = copies
                .iter()
                .map(|bed| bed.samples[work as usize].as_slice())
                .collect();
            per_round(&all)
        });
        let base = Work::ALL
            .into_iter()
            .map(|work| {
                let column = |bed: &Bed| bed.samples[work as usize].clone();
                let error = (0..copies.len()).map(|copy| {
                    let others: Vec<Vec<f64>> = copies
                        .iter()
                        .enumerate()
                        .filter(|(index, _)| *index != copy)
                        .map(|(_, bed)| column(bed))
                        .collect();
                    let others: Vec<&[f64]> = others.iter().map(Vec::as_slice).collect();
                    Ratio::paired(&column(copies[copy]), &per_round(&others)).error()
                });
                Base {
                    work,
                    unit: work.unit(),
                    ns_per_unit: median(&bases[work as usize]),
                    error: error.fold(0.0, f64::max),
                }
            })
            .collect();
        let rows = beds
            .iter_mut()
            .filter(|bed| bed.variant.firewall != Firewall::None)
            .map(|bed| {
                Ok(Row {
                    firewall: bed.variant.firewall,
                    rules: bed.variant.rules,
                    over_none: Work::ALL
                        .map(|work| {
                            Ratio::paired(&bed.samples[work as usize], &bases[work as usize])
                        })
                        .to_vec(),
                    stream_packet_bytes: bed.mean_stream_packet()?,
                    samples: bed.samples.clone(),
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            topology,
            rounds,
            base,
            rows,
            skipped,
        })
    }
}

/// The median of several columns, round by round.
fn per_round(columns: &[&[f64]]) -> Vec<f64> {
    (0..columns[0].len())
        .map(|round| {
            median(
                &columns
                    .iter()
                    .map(|column| column[round])
                    .collect::<Vec<_>>(),
            )
        })
        .collect()
}

/// Prints the tables.
pub fn print(report: &EndToEnd) {
    for setting in &report.settings {
        let mut table = Table::new();
        table.load_style(UTF8_BORDERS_ONLY);
        let mut header = vec!["firewall".to_owned(), "rules".to_owned()];
        header.extend(Work::ALL.map(|work| work.name().to_owned()));
        header.push("stream packet".to_owned());
        table.set_header(header);
        let mut none = vec!["none".to_owned(), String::new()];
        none.extend(
            setting
                .base
                .iter()
                .map(|base| format!("{:.2} us/{}", base.ns_per_unit / 1e3, base.unit)),
        );
        table.add_row(none);
        let mut error = vec!["none over none (error)".to_owned(), String::new()];
        error.extend(
            setting
                .base
                .iter()
                .map(|base| format!("± {:.3}", base.error)),
        );
        table.add_row(error);
        for row in &setting.rows {
            let mut cells = vec![row.firewall.name().to_owned(), row.rules.to_string()];
            cells.extend(row.over_none.iter().map(ratio));
            cells.push(format!("{:.0} B", row.stream_packet_bytes));
            table.add_row(cells);
        }
        let way = match setting.topology {
            Topology::Bridged => "veth, bridge, veth",
            Topology::Routed => "veth, routing, veth",
        };
        println!(
            "end to end over {way}: CPU time over no firewall, median of {} rounds (95 % interval)",
            setting.rounds
        );
        println!("{table}");
        for skipped in &setting.skipped {
            let name = skipped.firewall.name();
            println!(
                "not measured: {name}, {} rules: {}",
                skipped.rules, skipped.reason
            );
        }
    }
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY);
    table.set_header(["goal", "at most", "measured", "met"]);
    for goal in &report.goals {
        table.add_row([
            goal.name.clone(),
            format!("{:.3}", goal.at_most),
            ratio(&goal.measured),
            goal.verdict.name().to_owned(),
        ]);
    }
    println!("{table}");
}

fn ratio(ratio: &Ratio) -> String {
    let Ratio { median, low, high } = ratio;
    format!("{median:.3} ({low:.3} .. {high:.3})")
}
