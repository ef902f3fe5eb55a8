//! `make bench`: figures as a table and as JSON under `target/bench/`, each with its spread and
//! measured against a named alternative in the same run. The method is in `README.md` beside this.

mod empty;
mod endtoend;
mod programs;
mod sample;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use comfy_table::Table;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use serde::Serialize;

use endtoend::EndToEnd;
use sample::Figure;

/// Names of the parts, as arguments; without any, all are run.
const PROGRAMS: &str = "programs";
const END_TO_END: &str = "endtoend";
const PARTS: [&str; 2] = [PROGRAMS, END_TO_END];

#[derive(Clone, Serialize)]
struct Machine {
    kernel: String,
    cpu: String,
    cpus: usize,
}

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    machine: Machine,
    figures: Vec<Figure>,
}

#[derive(Serialize)]
struct EndToEndReport {
    #[serde(flatten)]
    machine: Machine,
    #[serde(flatten)]
    figures: EndToEnd,
}

fn main() -> Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if let Some(unknown) = wanted.iter().find(|name| !PARTS.contains(&name.as_str())) {
        bail!("no bench {unknown}; there are {}", PARTS.join(" and "));
    }
    let wants = |part: &str| wanted.is_empty() || wanted.iter().any(|name| name == part);
    let machine = Machine {
        kernel: read_line("/proc/sys/kernel/osrelease"),
        cpu: cpu_model(),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
    };
    println!(
        "kernel {}, {} x {}",
        machine.kernel, machine.cpus, machine.cpu
    );
    if wants(PROGRAMS) {
        let report = Report {
            machine: machine.clone(),
            figures: programs::run()?,
        };
        print_figures(&report.figures);
        write("dataplane.json", &report)?;
    }
    if wants(END_TO_END) {
        let quick = std::env::var_os("BENCH_QUICK").is_some_and(|value| value == "1");
        let report = EndToEndReport {
            machine,
            figures: endtoend::run(quick)?,
        };
        endtoend::print(&report.figures);
        write("endtoend.json", &report)?;
    }
    Ok(())
}

fn print_figures(figures: &[Figure]) {
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY);
    table.set_header(["case", "median", "quartiles", "unit", "samples"]);
    for figure in figures {
        table.add_row([
            figure.name.clone(),
            format!("{:.1}", figure.median),
            format!("{:.1} .. {:.1}", figure.quartiles[0], figure.quartiles[1]),
            figure.unit.to_owned(),
            figure.samples.to_string(),
        ]);
    }
    println!("{table}");
}

fn write(name: &str, report: &impl Serialize) -> Result<()> {
    let directory = Path::new("target/bench");
    fs::create_dir_all(directory).context("creating target/bench")?;
    let path = directory.join(name);
    fs::write(&path, serde_json::to_string_pretty(report)?).context("writing the report")?;
    println!("written to {}", path.display());
    Ok(())
}

fn read_line(path: &str) -> String {
    fs::read_to_string(path).map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

fn cpu_model() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    info.lines()
        .find_map(|line| {
            line.strip_prefix("model name")
                .and_then(|rest| rest.split(": ").nth(1))
        })
        .unwrap_or("unknown CPU")
        .to_owned()
}
