//! `flows`: records as lines.

use flowgraph::record::{FlowFilter, FlowRecord, Opener, Peer};
use jiff::Timestamp;

use super::args::{FlowsArgs, Format};
use super::client::{Client, Query};
use super::error::CliError;
use super::output;

pub(super) async fn flows(client: &Client, args: &FlowsArgs) -> Result<(), CliError> {
    let filters = args.filters();
    // The daemon checks as well; here a mistake is one of usage.
    FlowFilter::parse(filters.iter().copied(), Timestamp::now())
        .map_err(|error| CliError::usage(error.to_string()))?;
    let mut query = Query::new("/api/v1/flows")
        .with_some("follow", args.follow.then_some("true"))
        .with_some("last", args.last.map(|last| last.to_string()));
    for (name, value) in filters {
        query = query.with(name, value);
    }
    if args.follow {
        return follow(client, query.as_str(), args.format).await;
    }
    let records: Vec<FlowRecord> = client.get(query.as_str()).await?;
    if !output::machine(args.format, &records, &records)? {
        let mut text = String::new();
        for record in &records {
            text.push_str(&describe(record));
            text.push('\n');
        }
        output::write(&text)?;
    }
    Ok(())
}

async fn follow(client: &Client, path: &str, format: Format) -> Result<(), CliError> {
    client
        .lines(path, |line| match format {
            Format::Json | Format::Jsonl => output::line(line),
            Format::Table => output::line(&describe(&parse(line)?)),
            Format::Yaml => {
                output::write("---\n")?;
                output::machine_one(Format::Yaml, &parse(line)?)?;
                Ok(())
            }
        })
        .await
}

fn parse(line: &str) -> Result<FlowRecord, CliError> {
    serde_json::from_str(line).map_err(|error| {
        CliError::new(format!("the daemon sent an unknown record: {error}"))
            .hint("use the same version of the command and the daemon")
    })
}

/// One line for people: time, verdict, who, what, why.
fn describe(record: &FlowRecord) -> String {
    let arrow = match (record.opener, record.is_reply) {
        (Opener::Unknown, _) => "<>",
        (_, Some(true)) => "<-",
        (_, _) => "->",
    };
    let mut text = format!(
        "{} {:<10} {:<8} {} {arrow} {}",
        record.time.strftime("%Y-%m-%d %H:%M:%S%.3fZ"),
        record.verdict,
        record.event,
        describe_peer(&record.source),
        describe_peer(&record.destination),
    );
    if let Some(l4) = &record.l4 {
        text.push_str(&format!(" {}", l4.protocol));
        if let Some(icmp_type) = l4.icmp_type {
            text.push_str(&format!(" type {icmp_type}"));
        }
    }
    text.push_str(&format!(" {}", record.direction));
    if let Some(reason) = &record.drop_reason {
        text.push_str(&format!(" {reason}"));
    }
    if let Some(rule) = &record.rule {
        text.push_str(&format!(" rule {rule}"));
    }
    text.push_str(&format!(
        " {} {}",
        output::counted(record.packets, "packet"),
        output::counted(record.bytes, "byte")
    ));
    if record.observation.lost_events > 0 {
        text.push_str(&format!(
            " ({} events lost before)",
            record.observation.lost_events
        ));
    }
    text
}

fn describe_peer(peer: &Peer) -> String {
    let name = match (&peer.workload, &peer.namespace) {
        (Some(workload), Some(namespace)) => Some(format!("{namespace}/{workload}")),
        (Some(workload), None) => Some(workload.clone()),
        (None, _) if peer.is_host() => Some("host".to_owned()),
        (None, _) => None,
    };
    let address = peer.ip.map(|ip| match (ip, peer.port) {
        (std::net::IpAddr::V6(ip), Some(port)) => format!("[{ip}]:{port}"),
        (ip, Some(port)) => format!("{ip}:{port}"),
        (ip, None) => ip.to_string(),
    });
    match (name, address) {
        (Some(name), Some(address)) => format!("{name} ({address})"),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => "?".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_time_in_utc_direction_and_doubt() {
        let mut record = crate::flow::test_flow(8080);
        assert_eq!(
            describe(&record),
            "2026-01-01 00:00:00.000Z forwarded  new      shop/web (10.0.0.3:40000) -> shop/api \
             (10.0.0.2:8080) TCP egress 1 packet 60 bytes"
        );
        record.is_reply = Some(true);
        assert!(describe(&record).contains(" <- "));
        record.opener = Opener::Unknown;
        assert!(describe(&record).contains(" <> "));
    }
}
