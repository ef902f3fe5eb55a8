//! Policies: list, show, change, check.

use axum::Json;
use axum::extract::{Path, State};
use policy::netpol::PolicyType;
use policy::parse::{PolicyDocument, PolicyName, parse_files};
use policy::resolve::{ResolvedPolicy, effective_policy_types};

use super::dto::{
    Change, CheckResult, DeleteRequest, Document, PolicyInfo, PolicyRequest, PolicyText,
};
use super::error::Body;
use super::{Api, ApiError, From};
use crate::controller::{ControlState, PolicyEdit};

pub(super) async fn list(State(api): State<Api>) -> Json<Vec<PolicyInfo>> {
    let state = api.controller.state();
    Json(
        state
            .policies
            .iter()
            .map(|document| info(document, &state))
            .collect(),
    )
}

pub(super) async fn show(
    State(api): State<Api>,
    Path((namespace, name)): Path<(String, String)>,
) -> Result<Json<PolicyText>, ApiError> {
    let state = api.controller.state();
    let name = PolicyName { namespace, name };
    let document = state.policies.get(&name).ok_or_else(|| {
        ApiError::not_found(format!("there is no policy `{name}`"))
            .hint("`policy list` shows the names")
    })?;
    Ok(Json(PolicyText {
        info: info(document, &state),
        text: document.text().to_owned(),
    }))
}

fn info(document: &PolicyDocument, state: &ControlState) -> PolicyInfo {
    let spec = &document.policy().spec;
    let resolved = ResolvedPolicy::new(document);
    PolicyInfo {
        namespace: document.name().namespace.clone(),
        name: document.name().name.clone(),
        types: effective_policy_types(spec)
            .into_iter()
            .map(|policy_type| {
                match policy_type {
                    PolicyType::Ingress => "Ingress",
                    PolicyType::Egress => "Egress",
                }
                .to_owned()
            })
            .collect(),
        rules: spec.ingress.as_ref().map_or(0, Vec::len) + spec.egress.as_ref().map_or(0, Vec::len),
        selects: state
            .estate
            .workloads
            .iter()
            .filter(|workload| resolved.selects(&workload.namespace, &workload.labels))
            .map(|workload| format!("{}/{}", workload.namespace, workload.name))
            .collect(),
        source: Some(document.source().to_owned()),
        line: document.line(),
    }
}

pub(super) async fn apply(
    State(api): State<Api>,
    From(caller): From,
    Body(request): Body<PolicyRequest>,
) -> Result<Json<Change>, ApiError> {
    let edit = PolicyEdit::Apply(request.documents);
    Ok(Json(api.controller.edit_policies(edit, caller).await?))
}

pub(super) async fn replace(
    State(api): State<Api>,
    From(caller): From,
    Body(request): Body<PolicyRequest>,
) -> Result<Json<Change>, ApiError> {
    let edit = PolicyEdit::Replace(request.documents);
    Ok(Json(api.controller.edit_policies(edit, caller).await?))
}

pub(super) async fn delete(
    State(api): State<Api>,
    From(caller): From,
    Body(request): Body<DeleteRequest>,
) -> Result<Json<Change>, ApiError> {
    if request.names.is_empty() && request.documents.is_empty() {
        return Err(ApiError::bad_request("nothing to delete was named")
            .hint("send `names` or `documents`"));
    }
    let names = request.names.iter().map(|name| PolicyName::parse(name));
    let edit = PolicyEdit::Delete(names.collect(), request.documents);
    Ok(Json(api.controller.edit_policies(edit, caller).await?))
}

pub(super) async fn check(Body(request): Body<PolicyRequest>) -> Json<CheckResult> {
    Json(check_documents(&request.documents))
}

/// Checks documents without applying them.
#[must_use]
pub fn check_documents(documents: &[Document]) -> CheckResult {
    let files = documents
        .iter()
        .map(|document| (document.source.as_str(), document.text.as_str()));
    match parse_files(files) {
        Ok(parsed) => CheckResult {
            policies: parsed
                .policies
                .iter()
                .map(|document| document.name().to_string())
                .collect(),
            errors: Vec::new(),
            warnings: parsed.warnings.iter().map(ToString::to_string).collect(),
        },
        Err(errors) => CheckResult {
            errors: errors.0.iter().map(ToString::to_string).collect(),
            ..CheckResult::default()
        },
    }
}
