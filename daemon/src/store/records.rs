//! Rows as values, and the statements that read and write them.

use std::collections::BTreeMap;

use jiff::Timestamp;
use policy::compile::Interner;
use policy::model::Mode;
use policy::parse::{PolicyDocument, PolicySet};
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::{Store, StoreError};
use crate::api::dto::mode_name;

/// The static inventory as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredInventory {
    /// File or other place it came from.
    pub source: String,
    /// The document.
    pub text: String,
}

/// Learned edges and what is needed to go on counting them, as JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredLearning {
    /// Edges by key.
    pub edges: Vec<(String, String)>,
    /// Everything else, if it was ever saved.
    pub rest: Option<String>,
}

/// One line of the history of generations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GenerationRow {
    /// Generation in force from this moment.
    pub generation: u32,
    /// When.
    pub time: Timestamp,
    /// User id of the caller; absent for changes the daemon made by itself.
    pub uid: Option<u32>,
    /// Command, e.g. `policy apply`.
    pub what: String,
    /// What it changed, in words.
    pub detail: String,
}

/// The state the controller restores at start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PersistedState {
    /// Every policy.
    pub policies: PolicySet,
    /// Modes set by hand.
    pub modes: PersistedModes,
    /// Numbers of identities and rules; absent in a new database.
    pub interner: Option<Interner>,
}

/// Modes set by hand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PersistedModes {
    /// Mode of all groups without one of their own.
    pub default: Option<Mode>,
    /// Mode by group.
    pub groups: BTreeMap<String, Mode>,
}

/// A change of the state: what is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateUpdate {
    /// Every policy.
    pub policies: Option<PolicySet>,
    /// Modes set by hand.
    pub modes: Option<PersistedModes>,
    /// Numbers of identities and rules.
    pub interner: Option<Interner>,
    /// A line for the history.
    pub history: Option<GenerationRow>,
}

fn mode_from_name(name: &str) -> Result<Mode, StoreError> {
    mode_name::parse(name).ok_or_else(|| StoreError::Value {
        what: "mode",
        detail: format!("`{name}` is no mode"),
    })
}

const DEFAULT_MODE: &str = "default_mode";
const INTERNER: &str = "interner";

fn read_policy(namespace: &str, name: &str, body: &str) -> Result<PolicyDocument, StoreError> {
    serde_json::from_str(body).map_err(|error| StoreError::Value {
        what: "policy",
        detail: format!("`{namespace}/{name}`: {error}"),
    })
}

fn setting(connection: &Connection, name: &str) -> Result<Option<String>, StoreError> {
    Ok(connection
        .query_row(
            "SELECT value FROM settings WHERE name = ?1",
            [name],
            |row| row.get(0),
        )
        .optional()?)
}

fn set_setting(
    transaction: &Transaction<'_>,
    name: &str,
    value: Option<&str>,
) -> Result<(), StoreError> {
    match value {
        Some(value) => transaction.execute(
            "INSERT INTO settings (name, value) VALUES (?1, ?2)
             ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            [name, value],
        )?,
        None => transaction.execute("DELETE FROM settings WHERE name = ?1", [name])?,
    };
    Ok(())
}

impl Store {
    /// Reads policies, modes and settings.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn load_state(&self) -> Result<PersistedState, StoreError> {
        self.call(|connection| {
            let mut policies = PolicySet::new();
            let mut statement = connection.prepare("SELECT namespace, name, body FROM policies")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let (namespace, name): (String, String) = (row.get(0)?, row.get(1)?);
                let body: String = row.get(2)?;
                policies.insert(read_policy(&namespace, &name, &body)?);
            }
            let mut groups = BTreeMap::new();
            let mut statement = connection.prepare("SELECT group_name, mode FROM modes")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let name: String = row.get(1)?;
                groups.insert(row.get(0)?, mode_from_name(&name)?);
            }
            let interner = setting(connection, INTERNER)?
                .map(|body| serde_json::from_str(&body))
                .transpose()
                .map_err(|error| StoreError::Value {
                    what: "table of identities and rules",
                    detail: error.to_string(),
                })?;
            let default = setting(connection, DEFAULT_MODE)?
                .map(|name| mode_from_name(&name))
                .transpose()?;
            Ok(PersistedState {
                policies,
                modes: PersistedModes { default, groups },
                interner,
            })
        })
    }

    /// Writes the parts of a change, all or nothing.
    ///
    /// # Errors
    /// [`StoreError`]; nothing was changed then.
    pub fn save_state(&self, update: StateUpdate) -> Result<(), StoreError> {
        self.call(move |connection| {
            let transaction = connection.transaction()?;
            if let Some(policies) = &update.policies {
                write_policies(&transaction, policies)?;
            }
            if let Some(modes) = &update.modes {
                write_modes(&transaction, modes)?;
            }
            if let Some(interner) = &update.interner {
                let body = serde_json::to_string(interner).map_err(|error| StoreError::Value {
                    what: "table of identities and rules",
                    detail: error.to_string(),
                })?;
                set_setting(&transaction, INTERNER, Some(&body))?;
            }
            if let Some(history) = &update.history {
                insert_generation(&transaction, history)?;
            }
            transaction.commit()?;
            Ok(())
        })
    }

    /// The latest lines of the history, newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn history(&self, limit: u32) -> Result<Vec<GenerationRow>, StoreError> {
        self.call_async(move |connection| {
            let mut statement = connection.prepare(
                "SELECT generation, time, uid, what, detail FROM generations ORDER BY id DESC LIMIT ?1",
            )?;
            let mut rows = statement.query([limit])?;
            let mut history = Vec::new();
            while let Some(row) = rows.next()? {
                let time: String = row.get(1)?;
                history.push(GenerationRow {
                    generation: row.get(0)?,
                    time: time.parse().map_err(|error: jiff::Error| StoreError::Value {
                        what: "time of a generation",
                        detail: error.to_string(),
                    })?,
                    uid: row.get(2)?,
                    what: row.get(3)?,
                    detail: row.get(4)?,
                });
            }
            Ok(history)
        })
        .await
    }

    /// The static inventory, if one was applied.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn inventory(&self) -> Result<Option<StoredInventory>, StoreError> {
        self.call_async(|connection| {
            Ok(connection
                .query_row(
                    "SELECT source, text FROM inventory WHERE id = 1",
                    [],
                    |row| {
                        Ok(StoredInventory {
                            source: row.get(0)?,
                            text: row.get(1)?,
                        })
                    },
                )
                .optional()?)
        })
        .await
    }

    /// Replaces the static inventory and adds a line to the history, in one transaction.
    ///
    /// # Errors
    /// [`StoreError`]; nothing was changed then.
    pub async fn save_inventory(
        &self,
        inventory: StoredInventory,
        history: Option<GenerationRow>,
    ) -> Result<(), StoreError> {
        self.call_async(move |connection| {
            let transaction = connection.transaction()?;
            transaction.execute(
                "INSERT INTO inventory (id, source, text) VALUES (1, ?1, ?2)
                 ON CONFLICT (id) DO UPDATE SET source = excluded.source, text = excluded.text",
                [inventory.source, inventory.text],
            )?;
            if let Some(history) = &history {
                insert_generation(&transaction, history)?;
            }
            transaction.commit()?;
            Ok(())
        })
        .await
    }

    /// What was learned.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn learning(&self) -> Result<StoredLearning, StoreError> {
        self.call_async(|connection| {
            let edges = connection
                .prepare("SELECT key, body FROM edges ORDER BY key")?
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect::<Result<_, _>>()?;
            let rest = connection
                .query_row("SELECT body FROM learning WHERE id = 1", [], |row| {
                    row.get(0)
                })
                .optional()?;
            Ok(StoredLearning { edges, rest })
        })
        .await
    }

    /// Writes changed edges, removes those under `removed` and replaces the rest, in one
    /// transaction: edges and the flows already counted in them must not come apart.
    ///
    /// # Errors
    /// [`StoreError`]; nothing was changed then.
    pub async fn save_learning(
        &self,
        changed: StoredLearning,
        removed: Vec<String>,
    ) -> Result<(), StoreError> {
        self.call_async(move |connection| {
            let transaction = connection.transaction()?;
            {
                let mut upsert = transaction.prepare_cached(
                    "INSERT INTO edges (key, body) VALUES (?1, ?2)
                     ON CONFLICT (key) DO UPDATE SET body = excluded.body",
                )?;
                for (key, body) in &changed.edges {
                    upsert.execute([key, body])?;
                }
                let mut delete = transaction.prepare_cached("DELETE FROM edges WHERE key = ?1")?;
                for key in &removed {
                    delete.execute([key])?;
                }
            }
            if let Some(rest) = &changed.rest {
                transaction.execute(
                    "INSERT INTO learning (id, body) VALUES (1, ?1)
                     ON CONFLICT (id) DO UPDATE SET body = excluded.body",
                    [rest],
                )?;
            }
            transaction.commit()?;
            Ok(())
        })
        .await
    }
}

fn write_policies(transaction: &Transaction<'_>, policies: &PolicySet) -> Result<(), StoreError> {
    transaction.execute("DELETE FROM policies", [])?;
    let mut insert = transaction
        .prepare_cached("INSERT INTO policies (namespace, name, body) VALUES (?1, ?2, ?3)")?;
    for document in policies.iter() {
        let name = document.name();
        let body = serde_json::to_string(document).map_err(|error| StoreError::Value {
            what: "policy",
            detail: format!("`{name}`: {error}"),
        })?;
        insert.execute(params![name.namespace, name.name, body])?;
    }
    Ok(())
}

fn write_modes(transaction: &Transaction<'_>, modes: &PersistedModes) -> Result<(), StoreError> {
    transaction.execute("DELETE FROM modes", [])?;
    for (group, mode) in &modes.groups {
        transaction.execute(
            "INSERT INTO modes (group_name, mode) VALUES (?1, ?2)",
            params![group, mode_name::of(*mode)],
        )?;
    }
    set_setting(transaction, DEFAULT_MODE, modes.default.map(mode_name::of))
}

fn insert_generation(
    transaction: &Transaction<'_>,
    history: &GenerationRow,
) -> Result<(), StoreError> {
    transaction.execute(
        "INSERT INTO generations (generation, time, uid, what, detail) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![
            history.generation,
            history.time.to_string(),
            history.uid,
            history.what,
            history.detail
        ],
    )?;
    // The history is for people; a chatty estate must not grow it without bound.
    transaction.execute(
        "DELETE FROM generations WHERE id <= (SELECT max(id) FROM generations) - 10000",
        [],
    )?;
    Ok(())
}
