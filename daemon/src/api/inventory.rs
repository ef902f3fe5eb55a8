//! The static inventory.

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;

use super::dto::{Change, Document, InventoryRequest, InventoryText};
use super::error::Body;
use super::{Api, ApiError, From};
use crate::controller::Caller;
use crate::store::{GenerationRow, StoredInventory};
use crate::workload::inventory::Inventory;
use crate::workload::registry::RegistryError;

pub(super) async fn show(State(api): State<Api>) -> Result<Json<InventoryText>, ApiError> {
    let stored = api
        .store
        .inventory()
        .await
        .map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(Json(InventoryText {
        document: stored.map(|stored| Document {
            source: stored.source,
            text: stored.text,
        }),
    }))
}

/// Replaces the inventory and answers when the kernel enforces it. If a later step fails, the former
/// inventory is put back.
pub(super) async fn apply(
    State(api): State<Api>,
    From(caller): From,
    Body(request): Body<InventoryRequest>,
) -> Result<Json<Change>, ApiError> {
    // A client that goes away must not leave the steps below half done.
    let task = tokio::spawn(async move { replace(&api, request.document, caller).await });
    task.await
        .map_err(|error| ApiError::internal(error.to_string()))?
        .map(Json)
}

async fn replace(api: &Api, document: Document, caller: Caller) -> Result<Change, ApiError> {
    let inventory = parse(&document.text, &document.source)?;
    let _one_at_a_time = api.inventory_lock.lock().await;
    let before = api
        .store
        .inventory()
        .await
        .map_err(|error| ApiError::internal(error.to_string()))?;
    let workloads_before = names(api);
    api.registry
        .replace_inventory(inventory)
        .await
        .map_err(registry_error)?;
    // The follower of the registry may have been faster than this request; what changed is told
    // from what was in force before and after.
    let mut result = api
        .estate
        .sync()
        .await
        .map(|change| {
            let after = names(api);
            Change {
                added: after.difference(&workloads_before).cloned().collect(),
                removed: workloads_before.difference(&after).cloned().collect(),
                ..change
            }
        })
        .map_err(ApiError::from);
    if let Ok(change) = &result {
        let history = GenerationRow {
            generation: change.generation,
            time: Timestamp::now(),
            uid: caller.uid,
            what: "inventory apply".to_owned(),
            detail: document.source.clone(),
        };
        let stored = StoredInventory {
            source: document.source,
            text: document.text,
        };
        if let Err(error) = api.store.save_inventory(stored, Some(history)).await {
            result = Err(ApiError::internal(format!(
                "the inventory could not be stored and was taken back: {error}"
            )));
        }
    }
    if result.is_err() {
        put_back(api, before).await;
    }
    result
}

/// Workloads in force, as `namespace/name`.
fn names(api: &Api) -> BTreeSet<String> {
    api.controller
        .state()
        .estate
        .workloads
        .iter()
        .map(|workload| format!("{}/{}", workload.namespace, workload.name))
        .collect()
}

async fn put_back(api: &Api, before: Option<StoredInventory>) {
    let former = match before {
        Some(stored) => Inventory::parse(&stored.text, &stored.source),
        None => Ok(Inventory::default()),
    };
    let outcome = match former {
        Ok(former) => api
            .registry
            .replace_inventory(former)
            .await
            .map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    let outcome = match outcome {
        Ok(_) => api.estate.sync().await.map_err(|error| error.to_string()),
        Err(error) => Err(error),
    };
    if let Err(error) = outcome {
        tracing::error!(%error, "the former inventory could not be put back");
    }
}

fn parse(text: &str, source: &str) -> Result<Inventory, ApiError> {
    Inventory::parse(text, source).map_err(|error| inventory_error(error.to_string()))
}

fn registry_error(error: RegistryError) -> ApiError {
    match error {
        RegistryError::Inventory(error) => inventory_error(error.to_string()),
        RegistryError::Netlink(error) => ApiError::internal(error.to_string()),
        RegistryError::Stopped => ApiError::stopping(),
    }
}

fn inventory_error(detail: String) -> ApiError {
    ApiError::bad_request("the inventory has a mistake")
        .details(vec![detail])
        .hint("nothing was changed; correct the inventory and repeat")
}
