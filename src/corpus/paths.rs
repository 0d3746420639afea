//! Which files an input is made of: names and patterns from the command line.

use std::path::{Path, PathBuf};

use anyhow::{bail, Context, Result};
use glob::MatchOptions;

/// As in a shell: `*` stops at a slash, and does not match a leading dot.
const AS_IN_A_SHELL: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: true,
};

/// The files that `given` names, in the given order; those of a pattern (`part-*.txt`) by name, folders left out.
///
/// A name that exists is taken as it is, even with `*`, `?` or `[` in it. A file may be named twice. `-` (standard
/// input) is handed on as it is, and only alone.
///
/// # Errors
/// Nothing is given; `-` beside other inputs; a pattern that cannot be read or that no file matches.
pub fn paths(given: &[PathBuf]) -> Result<Vec<PathBuf>> {
    if given.is_empty() {
        bail!("no input: give a file, a pattern such as 'part-*.txt', or `-` for standard input");
    }
    if given.len() > 1 && given.iter().any(|path| path == Path::new("-")) {
        bail!("`-` (standard input) can only be the one input: keep it as a file, or leave the others out");
    }
    let mut files = Vec::new();
    for path in given {
        match path.to_str() {
            Some(pattern) if pattern.contains(['*', '?', '[']) && !path.exists() => files.extend(matches(pattern)?),
            _ => files.push(path.clone()),
        }
    }
    Ok(files)
}

/// The files that match a pattern, by name.
fn matches(pattern: &str) -> Result<Vec<PathBuf>> {
    let found = glob::glob_with(pattern, AS_IN_A_SHELL)
        .with_context(|| format!("{pattern}: no such file, and not a pattern that can be read"))?;
    let mut files = Vec::new();
    for path in found {
        let path = path.with_context(|| format!("{pattern}: cannot look for files"))?;
        if !path.is_dir() {
            files.push(path);
        }
    }
    if files.is_empty() {
        bail!("{pattern}: no file matches this pattern");
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn patterns_are_replaced_by_files_in_order() {
        let dir = tempfile::TempDir::new().unwrap();
        for name in ["b.txt", "a.txt", "c[1].txt", ".hidden.txt", "part-2", "part-10"] {
            fs::write(dir.path().join(name), "x\n").unwrap();
        }
        fs::create_dir_all(dir.path().join("deep.txt/er")).unwrap();
        fs::write(dir.path().join("deep.txt/er/d.txt"), "x\n").unwrap();
        let found = |given: &[&str]| -> Vec<String> {
            let given: Vec<PathBuf> = given.iter().map(|name| dir.path().join(name)).collect();
            let show = |p: PathBuf| p.strip_prefix(dir.path()).unwrap().display().to_string();
            paths(&given).unwrap().into_iter().map(show).collect()
        };
        assert_eq!(
            found(&["*.txt"]),
            ["a.txt", "b.txt", "c[1].txt"],
            "no folder, nothing hidden"
        );
        assert_eq!(
            found(&["part-*", "b.txt", "?.txt"]),
            ["part-10", "part-2", "b.txt", "a.txt", "b.txt"]
        );
        assert_eq!(found(&["c[1].txt"]), ["c[1].txt"], "a name that exists is no pattern");
        assert_eq!(found(&["[ab].txt"]), ["a.txt", "b.txt"]);
        assert_eq!(found(&["**/d.txt"]), ["deep.txt/er/d.txt"]);
        assert_eq!(
            found(&["absent.txt"]),
            ["absent.txt"],
            "the scan says that it is missing"
        );
        assert_eq!(found(&["deep.txt"]), ["deep.txt"], "the scan says that it is a folder");
    }

    #[test]
    fn what_names_no_input_is_refused() {
        let refused = |given: &[&str]| -> String {
            let given: Vec<PathBuf> = given.iter().map(PathBuf::from).collect();
            paths(&given).unwrap_err().to_string()
        };
        assert!(refused(&[]).contains("no input"));
        assert!(refused(&["-", "a.txt"]).contains("`-`"));
        assert!(refused(&["no-such-folder/*.txt"]).contains("no file matches"));
        assert!(refused(&["a[.txt"]).contains("a[.txt"));
        assert_eq!(paths(&[PathBuf::from("-")]).unwrap(), [PathBuf::from("-")]);
    }
}
