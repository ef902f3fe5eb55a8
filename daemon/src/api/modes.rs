//! Modes of groups.

use std::time::Duration;

use axum::Json;
use axum::extract::State;

use super::dto::{Change, GroupMode, ModeRequest, ModesInfo, PendingMode};
use super::error::Body;
use super::{Api, ApiError, From};
use crate::controller::{ControlState, ModeChange};

/// Longest time to confirm.
const LONGEST_CONFIRM: Duration = Duration::from_secs(24 * 3600);

pub(super) async fn get_modes(State(api): State<Api>) -> Json<ModesInfo> {
    let state = api.controller.state();
    let groups = super::status::group_names(&state)
        .into_iter()
        .map(|group| GroupMode {
            mode: state.modes.of(&group),
            explicit: state.modes.groups.contains_key(&group),
            group,
        })
        .collect();
    Json(ModesInfo {
        default: state.modes.default,
        groups,
        pending: pending(&state),
    })
}

pub(super) fn pending(state: &ControlState) -> Option<PendingMode> {
    state.pending.as_ref().map(|pending| PendingMode {
        group: pending.group.clone(),
        mode: pending.mode,
        revert_at: pending.revert_at,
    })
}

pub(super) async fn set_mode(
    State(api): State<Api>,
    From(caller): From,
    Body(request): Body<ModeRequest>,
) -> Result<Json<Change>, ApiError> {
    let confirm_within = request.confirm_within_seconds.map(Duration::from_secs);
    if confirm_within.is_some_and(|within| within.is_zero() || within > LONGEST_CONFIRM) {
        return Err(ApiError::bad_request(
            "confirm_within_seconds must be from 1 to 86400",
        ));
    }
    let change = ModeChange {
        group: request.group,
        mode: request.mode,
        confirm_within,
    };
    Ok(Json(api.controller.set_mode(change, caller).await?))
}

pub(super) async fn confirm(
    State(api): State<Api>,
    From(caller): From,
) -> Result<Json<Change>, ApiError> {
    Ok(Json(api.controller.confirm_mode(caller).await?))
}

pub(super) async fn revert(
    State(api): State<Api>,
    From(caller): From,
) -> Result<Json<Change>, ApiError> {
    Ok(Json(api.controller.revert_mode(caller).await?))
}
