//! Documents from files, directories and standard input.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::api::dto::Document;

/// Largest file that is read as a document.
const LARGEST: u64 = 16 << 20;

/// Reads every path: a file, `-` for standard input, or a directory, of which every `.yaml`, `.yml`
/// and `.json` file below it is read in the order of names. Hidden files are left out.
///
/// # Errors
/// A path that cannot be read, is too large or no text, or a directory without a document.
pub fn read(paths: &[PathBuf]) -> Result<Vec<Document>> {
    let mut documents = Vec::new();
    for path in paths {
        if path.as_os_str() != "-" && path.is_dir() {
            let found = read_directory(path)?;
            if found.is_empty() {
                bail!("{} holds no .yaml, .yml or .json file", path.display());
            }
            documents.extend(found);
        } else {
            documents.push(read_one(path)?);
        }
    }
    Ok(documents)
}

/// Reads a directory as [`read`] does; it may be empty.
///
/// # Errors
/// As [`read`].
pub fn read_directory(path: &Path) -> Result<Vec<Document>> {
    let mut files = BTreeSet::new();
    collect(path, &mut files)?;
    files.iter().map(|file| read_one(file)).collect()
}

/// Reads one file, or `-` for standard input.
///
/// # Errors
/// As [`read`].
pub fn read_one(path: &Path) -> Result<Document> {
    let source = path.display().to_string();
    let (source, bytes) = if source == "-" {
        ("<stdin>".to_owned(), limited(std::io::stdin().lock()))
    } else {
        let bytes = std::fs::File::open(path).and_then(limited);
        (source, bytes)
    };
    let bytes = bytes.with_context(|| format!("cannot read {source}"))?;
    let text = String::from_utf8(bytes).with_context(|| format!("{source} is no UTF-8 text"))?;
    Ok(Document { source, text })
}

fn limited(from: impl Read) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(LARGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST {
        return Err(std::io::Error::other(format!(
            "larger than {} MiB",
            LARGEST >> 20
        )));
    }
    Ok(bytes)
}

fn collect(directory: &Path, files: &mut BTreeSet<PathBuf>) -> Result<()> {
    let cannot = || format!("cannot read {}", directory.display());
    for entry in std::fs::read_dir(directory).with_context(cannot)? {
        let entry = entry.with_context(cannot)?;
        let path = entry.path();
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        if hidden {
            continue;
        }
        // Links to directories are not followed: they may lead in a circle.
        if entry.file_type().with_context(cannot)?.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| {
            extension == "yaml" || extension == "yml" || extension == "json"
        }) {
            files.insert(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_read_in_order_and_hidden_or_other_files_are_not() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        for (name, text) in [
            ("b.yaml", "b"),
            ("a.yml", "a"),
            ("sub/c.json", "c"),
            (".d.yaml", "d"),
            ("e.txt", "e"),
        ] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let texts: Vec<String> = read(&[dir.path().to_owned()])
            .unwrap()
            .into_iter()
            .map(|document| document.text)
            .collect();
        assert_eq!(texts, ["a", "b", "c"]);
    }

    #[test]
    fn errors_name_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let empty = read(&[dir.path().to_owned()]).unwrap_err();
        assert!(
            empty
                .to_string()
                .contains(&dir.path().display().to_string())
        );
        let missing = read(&["/nonexistent/x.yaml".into()]).unwrap_err();
        assert!(missing.to_string().contains("/nonexistent/x.yaml"));
        let binary = dir.path().join("x.yaml");
        std::fs::write(&binary, [0xff, 0xfe]).unwrap();
        assert!(read(&[binary]).unwrap_err().to_string().contains("UTF-8"));
    }
}
