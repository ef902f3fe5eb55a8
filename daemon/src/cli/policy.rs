//! `policy`: documents in, verdicts and documents out.

use std::path::PathBuf;
use std::process::ExitCode;

use super::args::{ExplainArgs, ExportArgs, Files, Output, PolicyCommand, SuggestFormat};
use super::client::{Client, Query, encode};
use super::error::{CliError, exit};
use super::output;
use crate::api::check_documents;
use crate::api::dto::{
    Change, DeleteRequest, Document, Explanation, PolicyInfo, PolicyRequest, PolicyText,
    SuggestionInfo, mode_name,
};
use crate::documents;

pub(super) async fn policy(client: &Client, command: PolicyCommand) -> Result<ExitCode, CliError> {
    match command {
        PolicyCommand::Apply { files, output } => {
            change(client, "/api/v1/policies/apply", &files, output).await
        }
        PolicyCommand::Replace { files, output } => {
            change(client, "/api/v1/policies/replace", &files, output).await
        }
        PolicyCommand::Delete {
            names,
            files,
            output,
        } => {
            let request = DeleteRequest {
                names,
                documents: read(&files)?,
            };
            let change: Change = client.post("/api/v1/policies/delete", &request).await?;
            report_change(&change, output)
        }
        PolicyCommand::List(output) => list(client, output).await,
        PolicyCommand::Show { name } => show(client, &name).await,
        PolicyCommand::Check { files, output } => check(&files, output),
        PolicyCommand::Explain(args) => explain(client, &args).await,
        PolicyCommand::Suggest {
            group,
            include_audited,
            output,
        } => suggest(client, group, include_audited, output).await,
        PolicyCommand::Export(args) => export(client, &args).await,
    }
}

fn read(files: &[PathBuf]) -> Result<Vec<Document>, CliError> {
    Ok(documents::read(files)?)
}

async fn change(
    client: &Client,
    path: &str,
    files: &Files,
    format: Output,
) -> Result<ExitCode, CliError> {
    let request = PolicyRequest {
        documents: read(&files.files)?,
    };
    let change: Change = client.post(path, &request).await?;
    report_change(&change, format)
}

/// Prints what a change did. Exit code 4 if it is not in force everywhere.
pub(super) fn report_change(change: &Change, format: Output) -> Result<ExitCode, CliError> {
    for warning in &change.warnings {
        output::note(&format!("warning: {warning}"));
    }
    if !output::machine_one(format.format, change)? {
        for (word, names) in [
            ("added", &change.added),
            ("changed", &change.changed),
            ("removed", &change.removed),
            ("unchanged", &change.unchanged),
        ] {
            for name in names {
                output::line(&format!("{word} {name}"))?;
            }
        }
        output::line(&format!("in force: generation {}", change.generation))?;
    }
    if change.failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    Err(CliError {
        code: exit::PARTIAL,
        ..CliError::new("the change is not enforced everywhere")
            .details(change.failed.clone())
            .hint("it is tried again every few seconds; see `portcullis status`")
    })
}

async fn list(client: &Client, format: Output) -> Result<ExitCode, CliError> {
    let policies: Vec<PolicyInfo> = client.get("/api/v1/policies").await?;
    if !output::machine(format.format, &policies, &policies)? {
        let rows = policies
            .iter()
            .map(|policy| {
                vec![
                    policy.namespace.clone(),
                    policy.name.clone(),
                    policy.types.join(","),
                    policy.rules.to_string(),
                    policy.selects.len().to_string(),
                    match &policy.source {
                        Some(source) => format!("{source}:{}", policy.line),
                        None => String::new(),
                    },
                ]
            })
            .collect();
        output::write(&output::table(
            &["NAMESPACE", "NAME", "TYPES", "RULES", "WORKLOADS", "SOURCE"],
            rows,
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn show(client: &Client, name: &str) -> Result<ExitCode, CliError> {
    let name = ::policy::parse::PolicyName::parse(name);
    let path = format!(
        "/api/v1/policies/{}/{}",
        encode(&name.namespace),
        encode(&name.name)
    );
    let policy: PolicyText = client.get(&path).await?;
    output::write(&policy.text)?;
    if !policy.text.ends_with('\n') {
        output::line("")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Checks documents without a daemon. Exit code 3 if there are mistakes.
pub(super) fn check(files: &Files, format: Output) -> Result<ExitCode, CliError> {
    let result = check_documents(&read(&files.files)?);
    if !output::machine_one(format.format, &result)? {
        for warning in &result.warnings {
            output::line(&format!("warning: {warning}"))?;
        }
        for error in &result.errors {
            output::line(&format!("error: {error}"))?;
        }
        match (result.errors.len(), result.policies.len()) {
            (0, 0) => output::line("no policy found")?,
            (0, 1) => output::line("1 policy is valid")?,
            (0, count) => output::line(&format!("{count} policies are valid"))?,
            (count, _) => output::line(&output::counted(count as u64, "mistake"))?,
        }
    }
    Ok(if result.errors.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(exit::DIFFERENCES)
    })
}

async fn explain(client: &Client, args: &ExplainArgs) -> Result<ExitCode, CliError> {
    let query = Query::new("/api/v1/policies/explain")
        .with("from", &args.from)
        .with("to", &args.to)
        .with("port", &args.port)
        .with_some("as_protect", args.as_protect.then_some("true"));
    let answer: Explanation = client.get(query.as_str()).await?;
    if output::machine(args.output.format, &answer, &answer.steps)? {
        return Ok(ExitCode::SUCCESS);
    }
    output::line(&format!(
        "{} -> {} {}: {}",
        answer.from, answer.to, answer.port, answer.verdict
    ))?;
    let rows = answer
        .steps
        .iter()
        .map(|step| {
            vec![
                step.direction.clone(),
                step.workload.clone(),
                format!("{} -> {}", step.source, step.destination),
                mode_name::of(step.mode).to_owned(),
                step.verdict.clone(),
                step.rule.to_string(),
            ]
        })
        .collect();
    output::write(&output::table(
        &[
            "DIRECTION",
            "JUDGED BY",
            "ADDRESSES",
            "MODE",
            "VERDICT",
            "RULE",
        ],
        rows,
    ))?;
    Ok(ExitCode::SUCCESS)
}

async fn suggest(
    client: &Client,
    group: Option<String>,
    include_audited: bool,
    format: SuggestFormat,
) -> Result<ExitCode, CliError> {
    let query = Query::new("/api/v1/policies/suggest")
        .with_some("group", group)
        .with_some("audited", include_audited.then_some("true"));
    let suggestion: SuggestionInfo = client.get(query.as_str()).await?;
    match format {
        SuggestFormat::Json => {
            output::machine_one(super::args::Format::Json, &suggestion)?;
            return Ok(ExitCode::SUCCESS);
        }
        SuggestFormat::Yaml => output::write(&suggestion.yaml)?,
        SuggestFormat::Table => {
            let rows = suggestion
                .rules
                .iter()
                .map(|rule| {
                    vec![
                        rule.policy.clone(),
                        rule.rule.clone(),
                        rule.evidence.clone(),
                    ]
                })
                .collect();
            output::write(&output::table(&["POLICY", "ALLOWS", "SEEN"], rows))?;
        }
    }
    for left_out in &suggestion.left_out {
        output::note(&format!("note: {left_out}"));
    }
    Ok(ExitCode::SUCCESS)
}

async fn export(client: &Client, args: &ExportArgs) -> Result<ExitCode, CliError> {
    let query = Query::new("/api/v1/policies/export")
        .with("format", &args.format)
        .with_some("group", args.group.as_ref())
        .with_some("learned", args.learned.then_some("true"));
    output::write(&client.get_text(query.as_str()).await?)?;
    Ok(ExitCode::SUCCESS)
}
