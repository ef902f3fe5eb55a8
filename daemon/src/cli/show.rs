//! What there is: status, workloads, groups, counters, history, graph, inventory.

use std::path::Path;
use std::process::ExitCode;

use jiff::Timestamp;
use serde_json::Value;

use super::args::{GraphArgs, GraphFormat, Output};
use super::client::{Client, Query};
use super::error::CliError;
use super::output::{self, count};
use super::policy::report_change;
use crate::api::dto::{
    Change, CountersInfo, GroupInfo, HistoryEntry, InventoryRequest, InventoryText, Status,
    WorkloadInfo, mode_name,
};
use crate::documents;

pub(super) async fn status(client: &Client, format: Output) -> Result<(), CliError> {
    let status: Status = client.get("/api/v1/status").await?;
    if output::machine_one(format.format, &status)? {
        return Ok(());
    }
    let groups: Vec<String> = status
        .groups
        .iter()
        .map(|(mode, groups)| format!("{groups} {mode}"))
        .collect();
    let unselected = match status.unselected {
        ::policy::model::Unselected::Deny => "deny",
        ::policy::model::Unselected::Allow => "allow",
    };
    let since = time(status.started);
    let lines = [
        (
            "daemon",
            format!(
                "{} {}, since {since}",
                status.version,
                if status.ready { "ready" } else { "starting" }
            ),
        ),
        ("generation", status.generation.to_string()),
        (
            "workloads",
            format!("{} ({} enforced)", status.workloads, status.enforced),
        ),
        (
            "groups",
            if groups.is_empty() {
                "none".to_owned()
            } else {
                groups.join(", ")
            },
        ),
        (
            "modes",
            format!(
                "default {}, unselected {unselected}",
                mode_name::of(status.default_mode)
            ),
        ),
        (
            "policies",
            format!(
                "{} ({} of {} map entries)",
                status.policies,
                count(u64::from(status.policy_entries.used)),
                count(u64::from(status.policy_entries.max))
            ),
        ),
        (
            "flows",
            format!(
                "{} records, {} edges, {} events lost",
                count(status.records),
                count(status.edges as u64),
                count(status.lost_events)
            ),
        ),
    ];
    for (name, value) in lines {
        output::line(&format!("{name:<11} {value}"))?;
    }
    if let Some(pending) = &status.pending {
        output::line(&format!(
            "pending     {} {}, taken back at {} unless `mode confirm` comes first",
            pending.group.as_deref().unwrap_or("all groups"),
            mode_name::of(pending.mode),
            time(pending.revert_at)
        ))?;
    }
    for problem in &status.problems {
        output::line(&format!("problem     {problem}"))?;
    }
    Ok(())
}

pub(super) async fn workloads(client: &Client, format: Output) -> Result<(), CliError> {
    let workloads: Vec<WorkloadInfo> = client.get("/api/v1/workloads").await?;
    if output::machine(format.format, &workloads, &workloads)? {
        return Ok(());
    }
    let rows = workloads
        .iter()
        .map(|workload| {
            let addresses: Vec<String> =
                workload.addresses.iter().map(ToString::to_string).collect();
            vec![
                workload.namespace.clone(),
                workload.name.clone(),
                workload.group.clone(),
                mode_name::of(workload.mode).to_owned(),
                addresses.join(","),
                workload.interface.clone().unwrap_or_default(),
                workload.identity.to_string(),
                workload.source.clone().unwrap_or_default(),
                match &workload.problem {
                    None => "enforced".to_owned(),
                    Some(problem) => problem.clone(),
                },
            ]
        })
        .collect();
    output::write(&output::table(
        &[
            "NAMESPACE",
            "NAME",
            "GROUP",
            "MODE",
            "ADDRESSES",
            "INTERFACE",
            "IDENTITY",
            "SOURCE",
            "STATE",
        ],
        rows,
    ))
}

pub(super) async fn groups(client: &Client, format: Output) -> Result<(), CliError> {
    let groups: Vec<GroupInfo> = client.get("/api/v1/groups").await?;
    if output::machine(format.format, &groups, &groups)? {
        return Ok(());
    }
    let rows = groups
        .iter()
        .map(|group| {
            vec![
                group.group.clone(),
                mode_name::of(group.mode).to_owned(),
                group.workloads.len().to_string(),
                group.edges.to_string(),
                group.policies.join(","),
            ]
        })
        .collect();
    output::write(&output::table(
        &["GROUP", "MODE", "WORKLOADS", "EDGES", "POLICIES"],
        rows,
    ))
}

pub(super) async fn counters(client: &Client, format: Output) -> Result<(), CliError> {
    let counters: CountersInfo = client.get("/api/v1/counters").await?;
    if output::machine(format.format, &counters, &counters.packets)? {
        return Ok(());
    }
    let rows = counters
        .packets
        .iter()
        .map(|row| {
            vec![
                row.verdict.clone(),
                row.direction.clone(),
                row.reason.clone().unwrap_or_default(),
                count(row.packets),
                count(row.bytes),
            ]
        })
        .collect();
    output::write(&output::table(
        &["VERDICT", "DIRECTION", "REASON", "PACKETS", "BYTES"],
        rows,
    ))?;
    for (kind, lost) in counters.lost_events.iter().filter(|(_, lost)| **lost > 0) {
        output::line(&format!("lost {kind} events: {}", count(*lost)))?;
    }
    for (stage, lost) in counters
        .dropped_records
        .iter()
        .filter(|(_, lost)| **lost > 0)
    {
        output::line(&format!("records lost at {stage}: {}", count(*lost)))?;
    }
    for (map, usage) in &counters.maps {
        output::line(&format!(
            "map {map}: {} of {} entries",
            count(u64::from(usage.used)),
            count(u64::from(usage.max))
        ))?;
    }
    Ok(())
}

pub(super) async fn history(client: &Client, limit: u32, format: Output) -> Result<(), CliError> {
    let query = Query::new("/api/v1/history").with("limit", limit.to_string());
    let history: Vec<HistoryEntry> = client.get(query.as_str()).await?;
    if output::machine(format.format, &history, &history)? {
        return Ok(());
    }
    let rows = history
        .iter()
        .map(|entry| {
            vec![
                entry.generation.to_string(),
                time(entry.time),
                entry
                    .uid
                    .map_or_else(|| "daemon".to_owned(), |uid| format!("uid {uid}")),
                entry.what.clone(),
                entry.detail.clone(),
            ]
        })
        .collect();
    output::write(&output::table(
        &["GENERATION", "TIME", "WHO", "WHAT", "DETAIL"],
        rows,
    ))
}

/// A moment to the second, in UTC.
pub(super) fn time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

pub(super) async fn graph(client: &Client, args: GraphArgs) -> Result<(), CliError> {
    if args.format != GraphFormat::Table {
        let query = Query::new("/api/v1/graph").with("format", args.format.as_str());
        let mut text = client.get_text(query.as_str()).await?;
        if !text.ends_with('\n') {
            text.push('\n');
        }
        return output::write(&text);
    }
    let document: Value = client.get("/api/v1/graph").await?;
    output::write(&graph_table(&document))
}

/// The edges of a graph document, one a line.
fn graph_table(document: &Value) -> String {
    let list = |name: &str| document[name].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let nodes = list("nodes");
    let label = |id: &Value| {
        nodes
            .iter()
            .find(|node| node["id"] == *id)
            .map(|node| text(&node["label"]))
            .unwrap_or_default()
    };
    let seconds = |value: &Value| {
        value
            .as_str()
            .and_then(|text| text.parse::<Timestamp>().ok())
            .map(time)
            .unwrap_or_default()
    };
    let number = |value: &Value| count(value.as_u64().unwrap_or_default());
    let rows = list("edges")
        .iter()
        .map(|edge| {
            let bytes = &edge["traffic"]["bytes"];
            vec![
                label(&edge["from"]),
                label(&edge["to"]),
                text(&edge["label"]),
                number(&edge["connections"]),
                number(&edge["egress"]["dropped"]),
                number(&edge["ingress"]["dropped"]),
                format!("{}/{}", number(&bytes[0]), number(&bytes[1])),
                seconds(&edge["first_seen"]),
                seconds(&edge["last_seen"]),
                text(&edge["suspicion"]),
            ]
        })
        .collect();
    output::table(
        &[
            "FROM",
            "TO",
            "SERVICE",
            "CONNECTIONS",
            "DROPPED OUT",
            "DROPPED IN",
            "BYTES",
            "FIRST SEEN",
            "LAST SEEN",
            "NOTE",
        ],
        rows,
    )
}

pub(super) async fn inventory_apply(
    client: &Client,
    file: &Path,
    format: Output,
) -> Result<ExitCode, CliError> {
    let request = InventoryRequest {
        document: documents::read_one(file)?,
    };
    let change: Change = client.post("/api/v1/inventory/apply", &request).await?;
    report_change(&change, format)
}

pub(super) async fn inventory_show(client: &Client) -> Result<(), CliError> {
    let inventory: InventoryText = client.get("/api/v1/inventory").await?;
    match inventory.document {
        Some(document) => output::write(&document.text),
        None => {
            output::note("no inventory was applied");
            Ok(())
        }
    }
}
