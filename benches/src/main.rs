//! `make bench`: figures as a table and as JSON under `target/bench/`, each with its spread and
//! measured against a named alternative in the same run. The method is in `README.md` beside this.

mod empty;
mod programs;
mod sample;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use comfy_table::Table;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use serde::Serialize;

use sample::Figure;

#[derive(Serialize)]
struct Report {
    kernel: String,
    cpu: String,
    cpus: usize,
    figures: Vec<Figure>,
}

fn main() -> Result<()> {
    let report = Report {
        kernel: read_line("/proc/sys/kernel/osrelease"),
        cpu: cpu_model(),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        figures: programs::run()?,
    };
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY);
    table.set_header(["case", "median", "quartiles", "unit", "samples"]);
    for figure in &report.figures {
        table.add_row([
            figure.name.clone(),
            format!("{:.1}", figure.median),
            format!("{:.1} .. {:.1}", figure.quartiles[0], figure.quartiles[1]),
            figure.unit.to_owned(),
            figure.samples.to_string(),
        ]);
    }
    println!("kernel {}, {} x {}", report.kernel, report.cpus, report.cpu);
    println!("{table}");
    let directory = Path::new("target/bench");
    fs::create_dir_all(directory).context("creating target/bench")?;
    let path = directory.join("dataplane.json");
    fs::write(&path, serde_json::to_string_pretty(&report)?).context("writing the report")?;
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
