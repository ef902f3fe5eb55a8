//! Policies from what was learned, and policies for other systems.

use axum::Json;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use flowgraph::aggregate::Edge;
use flowgraph::suggest::{self as learned, Options, PortEvidence, RuleEvidence, SuggestedPolicy};
use policy::export::{AnnotatedPolicy, to_yaml};
use policy::model::Estate;
use policy::netpol::PolicyType;
use policy::resolve::ResolvedPolicy;
use serde::Deserialize;

use super::dto::{SuggestedRule, SuggestionInfo};
use super::error::Params;
use super::{Api, ApiError};

/// Formats `export` can write.
const FORMATS: [&str; 1] = ["networkpolicy"];

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SuggestQuery {
    group: Option<String>,
    /// Also what policy denies and only monitor mode let pass.
    #[serde(default)]
    audited: bool,
}

pub(super) async fn suggest_policies(
    State(api): State<Api>,
    Params(query): Params<SuggestQuery>,
) -> Result<Json<SuggestionInfo>, ApiError> {
    Ok(Json(suggestion(&api, query).await?))
}

async fn suggestion(api: &Api, query: SuggestQuery) -> Result<SuggestionInfo, ApiError> {
    let state = api.controller.state();
    if let Some(group) = &query.group
        && !super::status::group_names(&state).contains(group)
    {
        return Err(ApiError::not_found(format!("there is no group `{group}`"))
            .hint("`groups` shows the names"));
    }
    let options = Options {
        group: query.group,
        learn_from_audit: query.audited,
        ..Options::default()
    };
    let edges = api.learning.edges().await.ok_or_else(ApiError::stopping)?;
    tokio::task::spawn_blocking(move || suggest(&edges, &state.estate, &options))
        .await
        .map_err(|error| ApiError::internal(error.to_string()))
}

/// Suggests policies that allow exactly what was seen.
#[must_use]
pub fn suggest(edges: &[Edge], estate: &Estate, options: &Options) -> SuggestionInfo {
    let suggestion = learned::suggest(edges, estate, options);
    let annotated: Vec<AnnotatedPolicy> = suggestion.policies.iter().map(annotate).collect();
    let mut left_out: Vec<String> = suggestion.warnings.clone();
    left_out.extend(
        suggestion
            .undecided
            .iter()
            .chain(&suggestion.skipped)
            .map(|left| format!("{}: {}", left.edge.key, left.explanation)),
    );
    left_out.extend(suggestion.silent.iter().map(|group| {
        format!("{group}: nothing was seen that a rule could be made of, so it has no policy")
    }));
    SuggestionInfo {
        yaml: to_yaml(&annotated),
        policies: suggestion.policies.iter().map(name).collect(),
        rules: suggestion.policies.iter().flat_map(rules).collect(),
        left_out,
    }
}

fn name(suggested: &SuggestedPolicy) -> String {
    let metadata = &suggested.policy.metadata;
    let namespace = metadata.namespace.as_deref().unwrap_or("default");
    format!("{namespace}/{}", metadata.name)
}

fn annotate(suggested: &SuggestedPolicy) -> AnnotatedPolicy {
    let comments = |direction: PolicyType, count: usize| {
        (0..count)
            .map(|index| {
                suggested
                    .evidence
                    .iter()
                    .filter(|evidence| evidence.direction == direction && evidence.index == index)
                    .flat_map(|evidence| {
                        evidence.ports.iter().map(|port| sentence(direction, port))
                    })
                    .collect()
            })
            .collect()
    };
    let spec = &suggested.policy.spec;
    AnnotatedPolicy {
        policy: suggested.policy.clone(),
        comments: vec![
            format!("Group {}, learned from its flows.", suggested.group),
            suggested.selector_reason.clone(),
        ],
        ingress_comments: comments(
            PolicyType::Ingress,
            spec.ingress.as_ref().map_or(0, Vec::len),
        ),
        egress_comments: comments(PolicyType::Egress, spec.egress.as_ref().map_or(0, Vec::len)),
    }
}

fn rules(suggested: &SuggestedPolicy) -> Vec<SuggestedRule> {
    let policy = name(suggested);
    let rule = |evidence: &RuleEvidence, port: &PortEvidence| SuggestedRule {
        policy: policy.clone(),
        rule: allowed(evidence.direction, port),
        evidence: seen(port),
    };
    suggested
        .evidence
        .iter()
        .flat_map(|evidence| evidence.ports.iter().map(|port| rule(evidence, port)))
        .collect()
}

fn sentence(direction: PolicyType, port: &PortEvidence) -> String {
    format!("{}: {}", allowed(direction, port), seen(port))
}

fn allowed(direction: PolicyType, port: &PortEvidence) -> String {
    let preposition = match direction {
        PolicyType::Ingress => "from",
        PolicyType::Egress => "to",
    };
    format!(
        "{}/{} {preposition} {}",
        port.port, port.protocol, port.peer
    )
}

/// What was seen; a rule without any connection of its own says only why it is there.
fn seen(port: &PortEvidence) -> String {
    if let (0, Some(note)) = (port.connections, &port.note) {
        return note.clone();
    }
    let plural = |count: u64, one: &str| {
        let s = if count == 1 { "" } else { "s" };
        format!("{count} {one}{s}")
    };
    let mut text = format!(
        "{} on {}, first {}, last {}",
        plural(port.connections, "connection"),
        plural(port.days as u64, "day"),
        port.first_seen.strftime("%Y-%m-%d %H:%M:%SZ"),
        port.last_seen.strftime("%Y-%m-%d %H:%M:%SZ"),
    );
    if port.openers.inferred > 0 {
        text.push_str(&format!(
            ", direction of {} told by listening sockets",
            port.openers.inferred
        ));
    }
    if port.lost_events > 0 {
        text.push_str(&format!(
            ", {} lost meanwhile",
            plural(port.lost_events, "event")
        ));
    }
    if let Some(note) = &port.note {
        text.push_str("; ");
        text.push_str(note);
    }
    text
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ExportQuery {
    format: Option<String>,
    group: Option<String>,
    #[serde(default)]
    learned: bool,
}

pub(super) async fn export(
    State(api): State<Api>,
    Params(query): Params<ExportQuery>,
) -> Result<Response, ApiError> {
    let format = query.format.as_deref().unwrap_or(FORMATS[0]);
    if !FORMATS.contains(&format) {
        return Err(
            ApiError::bad_request(format!("the format `{format}` is not supported yet"))
                .hint(format!("supported: {}", FORMATS.join(", "))),
        );
    }
    let yaml = if query.learned {
        let query = SuggestQuery {
            group: query.group,
            ..SuggestQuery::default()
        };
        suggestion(&api, query).await?.yaml
    } else {
        in_force(&api, query.group.as_deref())?
    };
    Ok(([(CONTENT_TYPE, "application/yaml")], yaml).into_response())
}

fn in_force(api: &Api, group: Option<&str>) -> Result<String, ApiError> {
    let state = api.controller.state();
    if let Some(group) = group
        && !super::status::group_names(&state).contains(group)
    {
        return Err(ApiError::not_found(format!("there is no group `{group}`"))
            .hint("`groups` shows the names"));
    }
    let concerns = |resolved: &ResolvedPolicy| {
        group.is_none_or(|group| {
            state.estate.workloads.iter().any(|workload| {
                workload.group == group && resolved.selects(&workload.namespace, &workload.labels)
            })
        })
    };
    let policies: Vec<AnnotatedPolicy> = state
        .policies
        .iter()
        .filter(|document| concerns(&ResolvedPolicy::new(document)))
        .map(|document| document.policy().clone().into())
        .collect();
    Ok(to_yaml(&policies))
}
