//! YAML as a tree whose every node knows its line and column.
//!
//! Typed deserialization stops at the first error and cannot name two mistakes in one file, so
//! policy documents are read in two steps: text to tree here, tree to types in `document.rs`.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{DuplicateKeyPolicy, RenderOptions, Spanned, UserMessageFormatter};

/// Largest accepted input in bytes. etcd refuses objects above 1.5 MiB; a file may hold many.
pub(crate) const MAX_TEXT_BYTES: usize = 16 << 20;
/// Deepest nesting. A NetworkPolicy needs 10 levels, inside a List 12.
const MAX_DEPTH: usize = 32;
/// Most nodes of one input, aliases counted as often as they are used.
const MAX_NODES: usize = 2_000_000;
/// Most `*alias` uses and `<<` merges of one input.
const MAX_ALIASES: usize = 1_000;

/// Most events that aliases may multiply out to.
const MAX_REPLAYED_EVENTS: usize = 50_000;

/// A place in a file, both from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub(crate) line: u32,
    pub(crate) column: u32,
}

impl From<serde_saphyr::Location> for Position {
    fn from(location: serde_saphyr::Location) -> Self {
        let clamp = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        Self {
            line: clamp(location.line()),
            column: clamp(location.column()),
        }
    }
}

/// A value and where it is used (for an alias: the place of the `*alias`).
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) at: Position,
    pub(crate) value: Value,
}

/// What a node holds.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Int(i64),
    /// A number that is no `i64`; only its existence matters, as no field takes one.
    Number,
    String(String),
    Seq(Vec<Node>),
    /// Entries in file order, duplicates kept.
    Map(Vec<(Key, Node)>),
}

/// A mapping key.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub(crate) at: Position,
    pub(crate) name: String,
}

impl Value {
    /// What the value is, for messages.
    pub(crate) const fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "a boolean",
            Self::Int(_) | Self::Number => "a number",
            Self::String(_) => "a string",
            Self::Seq(_) => "a list",
            Self::Map(_) => "a mapping",
        }
    }
}

/// Text that is no YAML, or too much of it.
#[derive(Clone, Debug)]
pub(crate) struct SyntaxError {
    pub(crate) at: Position,
    pub(crate) message: String,
}

/// Reads every non-empty document of `text`.
pub(crate) fn read(text: &str) -> Result<Vec<Node>, SyntaxError> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(SyntaxError {
            at: Position { line: 1, column: 1 },
            message: format!(
                "the file has {} bytes and the limit is {MAX_TEXT_BYTES}; split it",
                text.len()
            ),
        });
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_events: 2 * MAX_NODES,
            max_aliases: MAX_ALIASES,
            max_anchors: MAX_ALIASES,
            max_merge_keys: MAX_ALIASES,
            max_documents: 100_000,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_REPLAYED_EVENTS,
        },
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        emit_comments: false,
        with_snippet: false,
    };
    let documents: Vec<Spanned<Value>> = serde_saphyr::from_multiple_with_options(text, options)
        .map_err(|error| SyntaxError {
            at: error
                .location()
                .map_or(Position { line: 1, column: 1 }, Position::from),
            message: syntax_message(&error),
        })?;
    Ok(documents.into_iter().map(Node::from).collect())
}

/// The reader's message without the position, which the caller puts in front.
fn syntax_message(error: &serde_saphyr::Error) -> String {
    let mut options = RenderOptions::new(&UserMessageFormatter);
    options.snippets = serde_saphyr::SnippetMode::Off;
    let text = error.without_snippet().render_with_options(options);
    let text = text.trim_end();
    let position = error
        .location()
        .map(|location| format!(" at line {}, column {}", location.line(), location.column()));
    match position {
        Some(position) => text.replace(&position, ""),
        None => text.to_owned(),
    }
}

impl From<Spanned<Value>> for Node {
    fn from(spanned: Spanned<Value>) -> Self {
        Self {
            at: spanned.referenced.into(),
            value: spanned.value,
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Int(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(i64::try_from(value).map_or(Value::Number, Value::Int))
    }

    fn visit_i128<E: de::Error>(self, _: i128) -> Result<Value, E> {
        Ok(Value::Number)
    }

    fn visit_u128<E: de::Error>(self, _: u128) -> Result<Value, E> {
        Ok(Value::Number)
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Value, E> {
        Ok(Value::Number)
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E: de::Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_bytes<E: de::Error>(self, value: &[u8]) -> Result<Value, E> {
        Ok(Value::String(String::from_utf8_lossy(value).into_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = seq.next_element::<Spanned<Value>>()? {
            nodes.push(Node::from(node));
        }
        Ok(Value::Seq(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<Spanned<Value>>()? {
            let at = Position::from(key.referenced);
            // As JSON would write the key: only scalars can be one.
            let name = match key.value {
                Value::String(name) => name,
                Value::Int(number) => number.to_string(),
                Value::Bool(value) => value.to_string(),
                Value::Null => "null".to_owned(),
                // No field has this name, so the reader refuses it with its place.
                Value::Number | Value::Seq(_) | Value::Map(_) => "(no string)".to_owned(),
            };
            let value = map.next_value::<Spanned<Value>>()?;
            entries.push((Key { at, name }, Node::from(value)));
        }
        Ok(Value::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(node: &Node) -> &[(Key, Node)] {
        match &node.value {
            Value::Map(entries) => entries,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_node_has_its_place() {
        let documents = read("# c\na:\n  - b: 1\n    c: [x, {y: 2}]\n---\n\nz: null\n").unwrap();
        assert_eq!(documents.len(), 2);
        assert_eq!(documents[0].at, Position { line: 2, column: 1 });
        let (key, list) = &map(&documents[0])[0];
        assert_eq!(key.at, Position { line: 2, column: 1 });
        let Value::Seq(items) = &list.value else {
            panic!("{list:?}")
        };
        assert_eq!(items[0].at, Position { line: 3, column: 5 });
        let (key, inner) = &map(&items[0])[1];
        assert_eq!((key.at.line, key.at.column), (4, 5));
        let Value::Seq(inner) = &inner.value else {
            panic!("{inner:?}")
        };
        assert_eq!(
            inner[1].at,
            Position {
                line: 4,
                column: 12
            }
        );
        assert_eq!(map(&documents[1])[0].0.at.line, 7);
    }

    #[test]
    fn duplicate_keys_are_kept_for_the_reader_to_refuse() {
        let documents = read("a: 1\na: 2\n").unwrap();
        assert_eq!(map(&documents[0]).len(), 2);
    }

    #[test]
    fn an_alias_bomb_is_refused() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..9 {
            let alias = format!("*a{}, ", level - 1).repeat(10);
            text.push_str(&format!("a{level}: &a{level} [{alias}]\n"));
        }
        let error = read(&text).unwrap_err();
        assert!(error.at.line > 0, "{error:?}");
    }

    #[test]
    fn deep_nesting_is_refused() {
        let text = format!("{}{}", "[".repeat(5_000), "]".repeat(5_000));
        assert!(read(&text).is_err());
    }

    #[test]
    fn a_syntax_error_has_a_place_and_no_second_copy_of_it() {
        let error = read("a:\n  - b\n c: [\n").unwrap_err();
        assert!(error.at.line >= 2, "{error:?}");
        assert!(!error.message.contains("line"), "{error:?}");
    }
}
