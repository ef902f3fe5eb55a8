//! What there is: status, workloads, groups, counters, findings, history.

use std::collections::{BTreeMap, BTreeSet};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use flowgraph::aggregate::{Edge, PeerKey};
use policy::resolve::resolve;
use serde::Deserialize;

use super::dto::{
    CountersInfo, DoctorInfo, GroupInfo, HistoryEntry, PacketCounter, Status, Usage, WorkloadInfo,
    mode_name,
};
use super::error::Params;
use super::{Api, ApiError};
use crate::controller::ControlState;
use crate::preflight::{self, Finding};
use crate::workload::model::{Problem, Source, WorkloadState};

pub(super) async fn readyz(State(api): State<Api>) -> impl IntoResponse {
    if *api.ready.borrow() {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "starting\n")
    }
}

pub(super) async fn status(State(api): State<Api>) -> Result<Json<Status>, ApiError> {
    let state = api.controller.state();
    let counters = api.controller.counters().await?;
    let edges = api.learning.edges().await.ok_or_else(ApiError::stopping)?;
    let mut groups: BTreeMap<String, usize> = BTreeMap::new();
    for group in group_names(&state) {
        *groups
            .entry(mode_name::of(state.modes.of(&group)).to_owned())
            .or_default() += 1;
    }
    Ok(Json(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ready: *api.ready.borrow(),
        started: api.started,
        generation: state.generation,
        default_mode: state.modes.default,
        unselected: state.unselected,
        workloads: state.estate.workloads.len(),
        enforced: workload_infos(&state)
            .iter()
            .filter(|workload| workload.enforced)
            .count(),
        groups,
        policies: state.policies.len(),
        policy_entries: Usage {
            used: state.policy_entries.0,
            max: state.policy_entries.1,
        },
        edges: edges.len(),
        records: api.hub.total(),
        lost_events: counters.lost_events,
        pending: super::modes::pending(&state),
        problems: problems(&api, &state),
    }))
}

fn problems(api: &Api, state: &ControlState) -> Vec<String> {
    let mut problems: Vec<String> = state
        .snapshot
        .problems
        .iter()
        .map(ToString::to_string)
        .collect();
    problems.extend(state.failures());
    problems.extend(api.estate.problem());
    problems
}

pub(super) async fn workloads(State(api): State<Api>) -> Json<Vec<WorkloadInfo>> {
    let mut workloads = workload_infos(&api.controller.state());
    workloads
        .sort_by(|left, right| (&left.namespace, &left.name).cmp(&(&right.namespace, &right.name)));
    Json(workloads)
}

fn workload_infos(state: &ControlState) -> Vec<WorkloadInfo> {
    let by_index = |index: usize| {
        state
            .endpoints
            .iter()
            .filter(move |endpoint| endpoint.workload == index)
    };
    state
        .snapshot
        .workloads
        .iter()
        .enumerate()
        .map(|(index, workload)| {
            let spec = &state.estate.workloads[index];
            let failure = by_index(index).find_map(|endpoint| endpoint.result.clone().err());
            let attached = by_index(index).count() > 0;
            let problem = failure.clone().or_else(|| match workload.state {
                WorkloadState::Absent => Some("its interface or namespace is gone".to_owned()),
                WorkloadState::Present if !attached => {
                    Some("it has no interface on this host".to_owned())
                }
                WorkloadState::Present => None,
            });
            WorkloadInfo {
                name: spec.name.clone(),
                namespace: spec.namespace.clone(),
                group: spec.group.clone(),
                labels: spec.labels.clone(),
                addresses: spec.addresses.clone(),
                interface: (!workload.interfaces.is_empty()).then(|| {
                    let names: Vec<_> = workload
                        .interfaces
                        .iter()
                        .map(|interface| interface.name.as_str())
                        .collect();
                    names.join(",")
                }),
                source: Some(
                    match workload.source {
                        Source::Inventory => "inventory",
                        Source::Docker => "docker",
                        Source::Netns => "netns",
                    }
                    .to_owned(),
                ),
                identity: state
                    .compiled
                    .workloads
                    .get(index)
                    .map_or(0, |compiled| compiled.identity),
                mode: state.modes.of(&spec.group),
                enforced: attached && failure.is_none(),
                problem,
            }
        })
        .collect()
}

/// Groups that exist or have a mode of their own.
pub(super) fn group_names(state: &ControlState) -> BTreeSet<String> {
    state
        .estate
        .workloads
        .iter()
        .map(|workload| workload.group.clone())
        .chain(state.modes.groups.keys().cloned())
        .collect()
}

pub(super) async fn groups(State(api): State<Api>) -> Result<Json<Vec<GroupInfo>>, ApiError> {
    let state = api.controller.state();
    let edges = api.learning.edges().await.ok_or_else(ApiError::stopping)?;
    let policies = resolve(&state.policies);
    let infos = group_names(&state)
        .into_iter()
        .map(|group| {
            let members: Vec<_> = state
                .estate
                .workloads
                .iter()
                .filter(|workload| workload.group == group)
                .collect();
            GroupInfo {
                mode: state.modes.of(&group),
                explicit: state.modes.groups.contains_key(&group),
                workloads: members
                    .iter()
                    .map(|workload| format!("{}/{}", workload.namespace, workload.name))
                    .collect(),
                edges: edges.iter().filter(|edge| touches(edge, &group)).count(),
                policies: policies
                    .iter()
                    .filter(|policy| {
                        members
                            .iter()
                            .any(|workload| policy.selects(&workload.namespace, &workload.labels))
                    })
                    .map(|policy| policy.reference.policy.clone())
                    .collect(),
                group,
            }
        })
        .collect();
    Ok(Json(infos))
}

fn touches(edge: &Edge, group: &str) -> bool {
    [&edge.key.source, &edge.key.destination]
        .into_iter()
        .any(|peer| matches!(peer, PeerKey::Group { name, .. } if name == group))
}

pub(super) async fn counters(State(api): State<Api>) -> Result<Json<CountersInfo>, ApiError> {
    let counters = api.controller.counters().await?;
    let packets = counters
        .packets
        .iter()
        .map(|row| PacketCounter {
            verdict: row.verdict.to_owned(),
            direction: row.direction.to_owned(),
            reason: row.reason.map(str::to_owned),
            packets: row.packets,
            bytes: row.bytes,
        })
        .collect();
    let entries = Usage {
        used: counters.policy_entries_used,
        max: counters.policy_entries_max,
    };
    Ok(Json(CountersInfo {
        packets,
        lost_events: counters
            .lost_by_kind
            .iter()
            .map(|&(kind, count)| (kind.to_owned(), count))
            .collect(),
        maps: [("policy_entries".to_owned(), entries)].into(),
        dropped_records: api.hub.lost_by_stage(),
    }))
}

pub(super) async fn doctor(State(api): State<Api>) -> Result<Json<DoctorInfo>, ApiError> {
    let places = api.places.clone();
    let mut findings = tokio::task::spawn_blocking(move || preflight::check(&places))
        .await
        .map_err(|error| ApiError::internal(error.to_string()))?;
    let state = api.controller.state();
    findings.retain(|finding| !is_known_better(finding, &state.snapshot.problems));
    findings.push(Finding::ok(
        preflight::SUBJECT_DAEMON,
        format!("running, generation {}", state.generation),
    ));
    findings.extend(state.snapshot.problems.iter().map(|problem| {
        Finding::warn(
            &problem.subject,
            problem.cause.clone(),
            problem.hint.clone(),
        )
    }));
    findings.extend(state.failures().into_iter().map(|failure| {
        Finding::warn(
            "enforcement",
            failure,
            "it is tried again every few seconds; nothing is enforced there meanwhile",
        )
    }));
    findings.extend(api.estate.problem().map(|problem| {
        Finding::warn(
            "enforcement",
            problem,
            "what was in force before stays; the change is tried again every few seconds",
        )
    }));
    let counters = api.controller.counters().await?;
    if counters.lost_events > 0 {
        findings.push(Finding::warn(
            "events",
            format!(
                "{} kernel events were lost since loading",
                counters.lost_events
            ),
            "verdicts are not affected; records and edges say where events are missing",
        ));
    }
    Ok(Json(DoctorInfo { findings }))
}

/// Whether the running daemon knows more about it than a look from outside: it is itself the one that
/// answers on the socket, and of what it watches it has findings of its own.
fn is_known_better(finding: &Finding, problems: &[Problem]) -> bool {
    finding.subject == preflight::SUBJECT_DAEMON
        || problems
            .iter()
            .any(|problem| problem.subject == finding.subject)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HistoryQuery {
    limit: Option<u32>,
}

pub(super) async fn history(
    State(api): State<Api>,
    Params(query): Params<HistoryQuery>,
) -> Result<Json<Vec<HistoryEntry>>, ApiError> {
    let rows = api
        .store
        .history(query.limit.unwrap_or(100))
        .await
        .map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(Json(
        rows.into_iter()
            .map(|row| HistoryEntry {
                generation: row.generation,
                time: row.time,
                uid: row.uid,
                what: row.what,
                detail: row.detail,
            })
            .collect(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_daemon_watches_itself_is_told_once() {
        let docker = Finding::warn("docker", "does not exist", "start it");
        let seen = [Problem::new("docker", "there is no socket", "start it")];
        assert!(is_known_better(&docker, &seen));
        assert!(!is_known_better(&docker, &[]));
        assert!(!is_known_better(&Finding::ok("kernel", "6.12"), &seen));
        let socket = Finding::fail(preflight::SUBJECT_DAEMON, "another daemon", "stop it");
        assert!(is_known_better(&socket, &[]));
    }
}
