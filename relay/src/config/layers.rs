//! Where a configuration comes from: files in order, then the environment, then `--set`.

use std::path::{Path, PathBuf};

use super::tree::{Node, Origin};
use super::{Invalid, TOP_LEVEL};

/// The prefix of environment variables that override the files.
const PREFIX: &str = "OUTBOX_";

/// Between the segments of a path in a variable's name.
const SEPARATOR: &str = "__";

/// At the end of a variable's name: the value stands in the file that the variable names.
const FILE_SUFFIX: &str = "_FILE";

/// What a configuration is read from.
#[derive(Debug, Clone, Default)]
pub struct Layers {
    /// Files, or directories of `*.toml` files in the order of their names.
    pub files: Vec<PathBuf>,
    /// Environment variables.
    pub environment: Vec<(String, String)>,
    /// `a.b=c` from `--set`.
    pub arguments: Vec<String>,
}

impl Layers {
    /// Reads and merges the layers; later ones win.
    ///
    /// # Errors
    /// A file cannot be read or is no TOML, or an argument has no `=`.
    pub fn read(&self) -> Result<Node, Invalid> {
        let mut root = Node::empty(Origin::Default);
        for path in &self.files {
            for file in expand(path)? {
                let shown = file.display().to_string();
                let text = std::fs::read_to_string(&file).map_err(|error| unreadable(&shown, &error))?;
                let layer = Node::parse(&shown, &text)?;
                if matches!(root.origin, Origin::Default) {
                    root.origin = layer.origin.clone();
                }
                root.merge(layer);
            }
        }
        for (name, value) in &self.environment {
            if let Some(path) = variable_path(name) {
                set_variable(&mut root, name, &path, value);
            }
        }
        for argument in &self.arguments {
            let (path, value) = argument.split_once('=').ok_or_else(|| Invalid {
                origin: None,
                message: format!(
                    "--set {argument} has no value; write it as --set source.orders.batch_size=100"
                ),
            })?;
            let segments: Vec<String> = path.trim().split('.').map(str::to_owned).collect();
            if segments.iter().any(String::is_empty) {
                return Err(Invalid {
                    origin: None,
                    message: format!(
                        "--set {path}: the path has an empty part; write it as source.orders.batch_size"
                    ),
                });
            }
            let origin = Origin::Argument(path.trim().into());
            root.set(&segments, Node::text(origin, value.trim()));
        }
        Ok(root)
    }
}

/// The path a variable stands for. Only names with `__`, or of a key at the top, are ours: the rest of
/// `OUTBOX_…` belongs to others.
fn variable_path(name: &str) -> Option<Vec<String>> {
    let path = name.strip_prefix(PREFIX)?;
    let segments: Vec<String> = path.split(SEPARATOR).map(str::to_owned).collect();
    if segments.iter().any(String::is_empty) {
        return None;
    }
    let plain_key = TOP_LEVEL
        .iter()
        .any(|key| key.eq_ignore_ascii_case(path) && *key != "config_version");
    (segments.len() > 1 || plain_key).then_some(segments)
}

fn set_variable(root: &mut Node, name: &str, path: &[String], value: &str) {
    let origin = Origin::Environment(name.into());
    if let Some((last, front)) = path.split_last()
        && let Some(stem) = last.strip_suffix(FILE_SUFFIX)
        && !stem.is_empty()
    {
        let mut path = front.to_vec();
        path.push(stem.to_owned());
        let mut reference = Node::empty(origin.clone());
        reference.set(&["file".to_owned()], Node::text(origin, value));
        root.set(&path, reference);
        return;
    }
    root.set(path, Node::text(origin, value));
}

fn expand(path: &Path) -> Result<Vec<PathBuf>, Invalid> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let shown = path.display().to_string();
    let entries = std::fs::read_dir(path).map_err(|error| unreadable(&shown, &error))?;
    let mut files = Vec::new();
    for entry in entries {
        let file = entry.map_err(|error| unreadable(&shown, &error))?.path();
        if file.extension().is_some_and(|extension| extension == "toml") {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(Invalid {
            origin: None,
            message: format!("the directory {shown} holds no *.toml file; name another with --config"),
        });
    }
    Ok(files)
}

fn unreadable(path: &str, error: &std::io::Error) -> Invalid {
    let remedy = if error.kind() == std::io::ErrorKind::NotFound {
        "name the right file with --config, or write one with `outbox-relay config init`"
    } else {
        "make it readable for this user, or name another with --config"
    };
    Invalid {
        origin: None,
        message: format!("the file {path} cannot be read ({error}); {remedy}"),
    }
}
