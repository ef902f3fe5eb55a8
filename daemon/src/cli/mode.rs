//! `mode`: what policy does, group by group.

use std::process::ExitCode;

use serde_json::json;

use super::args::{ModeCommand, ModeSetArgs, Output};
use super::client::Client;
use super::error::CliError;
use super::output;
use super::policy::report_change;
use crate::api::dto::{Change, ModeRequest, ModesInfo, mode_name};

pub(super) async fn mode(client: &Client, command: ModeCommand) -> Result<ExitCode, CliError> {
    match command {
        ModeCommand::Get { group, output } => get(client, group.as_deref(), output).await,
        ModeCommand::Set(args) => set(client, &args).await,
        ModeCommand::Confirm(output) => change(client, "/api/v1/modes/confirm", output).await,
        ModeCommand::Revert(output) => change(client, "/api/v1/modes/revert", output).await,
    }
}

async fn get(client: &Client, group: Option<&str>, format: Output) -> Result<ExitCode, CliError> {
    let mut modes: ModesInfo = client.get("/api/v1/modes").await?;
    if let Some(group) = group {
        modes.groups.retain(|entry| entry.group == group);
        if modes.groups.is_empty() {
            return Err(CliError::new(format!("there is no group `{group}`"))
                .hint("`portcullis groups` shows the names"));
        }
    }
    if !output::machine(format.format, &modes, &modes.groups)? {
        if group.is_none() {
            output::line(&format!("default: {}", mode_name::of(modes.default)))?;
        }
        if let Some(pending) = &modes.pending {
            output::line(&format!(
                "waiting for `mode confirm`: {} {}, taken back at {}",
                pending.group.as_deref().unwrap_or("all groups"),
                mode_name::of(pending.mode),
                super::show::time(pending.revert_at)
            ))?;
        }
        let rows = modes
            .groups
            .iter()
            .map(|entry| {
                let origin = if entry.explicit { "set" } else { "default" };
                vec![
                    entry.group.clone(),
                    mode_name::of(entry.mode).to_owned(),
                    origin.to_owned(),
                ]
            })
            .collect();
        output::write(&output::table(&["GROUP", "MODE", "FROM"], rows))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn set(client: &Client, args: &ModeSetArgs) -> Result<ExitCode, CliError> {
    let (group, mode) = args.target().map_err(|message| {
        CliError::usage(message).hint("`mode set GROUP protect`, or `mode set --all protect`")
    })?;
    let request = ModeRequest {
        group,
        mode,
        confirm_within_seconds: args.confirm_within.map(|within| within.as_secs().max(1)),
    };
    let change: Change = client.post("/api/v1/modes", &request).await?;
    if let Some(within) = args.confirm_within {
        output::note(&format!(
            "taken back after {} seconds unless `portcullis mode confirm` comes first",
            within.as_secs().max(1)
        ));
    }
    report_change(&change, args.output)
}

async fn change(client: &Client, path: &str, format: Output) -> Result<ExitCode, CliError> {
    let change: Change = client.post(path, &json!({})).await?;
    report_change(&change, format)
}
