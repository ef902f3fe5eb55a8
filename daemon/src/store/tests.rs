use std::os::unix::fs::PermissionsExt;

use jiff::Timestamp;
use policy::compile::Interner;
use policy::model::Mode;
use policy::parse::PolicySet;

use super::*;

const POLICIES: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: api, namespace: shop}
spec:
  # a comment stays
  podSelector: {matchLabels: {app: api}}
  policyTypes: [Ingress]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {}
  policyTypes: [Ingress, Egress]
";

fn state() -> PersistedState {
    PersistedState {
        policies: policy::parse::parse_documents("shop.yaml", POLICIES)
            .unwrap()
            .policies
            .into_iter()
            .collect(),
        modes: PersistedModes {
            default: Some(Mode::Monitor),
            groups: [("shop/web".to_owned(), Mode::Protect)].into(),
        },
        interner: Some(Interner::new()),
    }
}

fn update(state: PersistedState, generation: u32) -> StateUpdate {
    StateUpdate {
        policies: Some(state.policies),
        modes: Some(state.modes),
        interner: state.interner,
        history: Some(history(generation)),
    }
}

fn history(generation: u32) -> GenerationRow {
    GenerationRow {
        generation,
        time: Timestamp::from_second(1_700_000_000).unwrap(),
        uid: Some(1000),
        what: "policy apply".into(),
        detail: "2 added".into(),
    }
}

#[tokio::test]
async fn state_inventory_edges_and_history_survive_a_reopen() {
    let dir = tempfile::tempdir().unwrap();
    let learning = |edges: &[(&str, &str)], rest: Option<&str>| StoredLearning {
        edges: edges
            .iter()
            .map(|&(key, body)| (key.to_owned(), body.to_owned()))
            .collect(),
        rest: rest.map(str::to_owned),
    };
    let inventory = StoredInventory {
        source: "shop.yaml".into(),
        text: "kind: Inventory\n".into(),
    };
    {
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.load_state().unwrap(), PersistedState::default());
        assert_eq!(store.inventory().await.unwrap(), None);
        store.save_state(update(state(), 7)).unwrap();
        store.save_inventory(inventory.clone(), None).await.unwrap();
        store
            .save_learning(learning(&[("a", "1"), ("b", "2")], Some("r")), vec![])
            .await
            .unwrap();
        store
            .save_learning(learning(&[("b", "5")], None), vec!["a".into()])
            .await
            .unwrap();
    }
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.load_state().unwrap(), state());
    assert_eq!(store.inventory().await.unwrap(), Some(inventory));
    assert_eq!(
        store.learning().await.unwrap(),
        learning(&[("b", "5")], Some("r"))
    );
    assert_eq!(store.history(10).await.unwrap(), vec![history(7)]);
}

#[test]
fn each_part_is_replaced_as_a_whole_and_absent_parts_stay() {
    let store = Store::in_memory().unwrap();
    store.save_state(update(state(), 1)).unwrap();
    store
        .save_state(StateUpdate {
            modes: Some(PersistedModes::default()),
            ..StateUpdate::default()
        })
        .unwrap();
    let expected = PersistedState {
        modes: PersistedModes::default(),
        ..state()
    };
    assert_eq!(store.load_state().unwrap(), expected);
    store
        .save_state(StateUpdate {
            policies: Some(PolicySet::new()),
            ..StateUpdate::default()
        })
        .unwrap();
    assert!(store.load_state().unwrap().policies.is_empty());
}

#[test]
fn a_failed_write_changes_nothing() {
    let store = Store::in_memory().unwrap();
    store.save_state(update(state(), 1)).unwrap();
    // The history line comes last; without its table everything before it must be undone.
    store
        .call(|connection| {
            connection.execute_batch("ALTER TABLE generations RENAME TO elsewhere")?;
            Ok(())
        })
        .unwrap();
    let error = store
        .save_state(update(PersistedState::default(), 2))
        .unwrap_err();
    assert!(matches!(error, StoreError::Sql(_)), "{error}");
    assert_eq!(store.load_state().unwrap(), state());
}

#[test]
fn a_policy_that_cannot_be_read_is_named() {
    let store = Store::in_memory().unwrap();
    store.save_state(update(state(), 1)).unwrap();
    store
        .call(|connection| {
            connection.execute("UPDATE policies SET body = '{}' WHERE name = 'web'", [])?;
            Ok(())
        })
        .unwrap();
    let error = store.load_state().unwrap_err();
    assert!(error.to_string().contains("shop/web"), "{error}");
}

#[test]
fn files_are_private() {
    let dir = tempfile::tempdir().unwrap();
    let state_dir = dir.path().join("state");
    let store = Store::open(&state_dir).unwrap();
    store.save_state(update(state(), 1)).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&state_dir), 0o700);
    for entry in std::fs::read_dir(&state_dir).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
}

#[test]
fn a_second_daemon_is_refused_and_the_first_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let first = Store::open(dir.path()).unwrap();
    let error = Store::open(dir.path()).unwrap_err();
    assert!(matches!(error, StoreError::Busy { .. }), "{error}");
    first.save_state(update(state(), 1)).unwrap();
    drop(first);
    assert_eq!(
        Store::open(dir.path()).unwrap().load_state().unwrap(),
        state()
    );
}

#[test]
fn damage_a_newer_schema_and_a_foreign_file_are_named_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);

    let garbage = vec![0x5a_u8; 8192];
    std::fs::write(&path, &garbage).unwrap();
    let error = Store::open(dir.path()).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains("move it away"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), garbage);
    std::fs::remove_file(&path).unwrap();

    drop(Store::open(dir.path()).unwrap());
    Connection::open(&path)
        .unwrap()
        .pragma_update(None, "user_version", SCHEMA_VERSION + 1)
        .unwrap();
    let error = Store::open(dir.path()).unwrap_err();
    assert!(
        matches!(error, StoreError::Newer { found, known, .. } if found == known + 1),
        "{error}"
    );
    std::fs::remove_file(&path).unwrap();

    Connection::open(&path)
        .unwrap()
        .execute_batch("CREATE TABLE somebody_elses (x)")
        .unwrap();
    let error = Store::open(dir.path()).unwrap_err();
    assert!(matches!(error, StoreError::Foreign { .. }), "{error}");
}

#[test]
fn a_page_destroyed_in_the_middle_is_found_at_open() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    {
        let store = Store::open(dir.path()).unwrap();
        let mut big = state();
        let mut text = POLICIES.to_owned();
        text.push_str(&"# padding\n".repeat(10_000));
        big.policies = policy::parse::parse_documents("big.yaml", &text)
            .unwrap()
            .policies
            .into_iter()
            .collect();
        store.save_state(update(big, 1)).unwrap();
    }
    let mut bytes = std::fs::read(&path).unwrap();
    for byte in &mut bytes[4096..8192] {
        *byte = 0xff;
    }
    std::fs::write(&path, bytes).unwrap();
    let error = Store::open(dir.path()).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
}

#[test]
fn an_unwritable_state_dir_names_the_file() {
    let error = Store::open(Path::new("/proc/portcullis-state")).unwrap_err();
    assert!(matches!(error, StoreError::Open { .. }), "{error}");
    assert!(error.to_string().contains("/proc/portcullis-state"));
}
