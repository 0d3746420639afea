//! Which safetensors files make up a model folder, and whether each is one.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

use anyhow::{bail, ensure, Context, Result};
use serde_json::Value;

use super::fields::read_json;
use super::header::{self, TensorInfo, MAX_HEADER};

/// The single-file checkpoint.
const SINGLE: &str = "model.safetensors";
/// The index of a sharded one.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// One safetensors file, open for reading.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) path: PathBuf,
    pub(super) file: File,
    /// Bytes of the whole file when it was opened.
    pub(super) len: u64,
    /// When it had last been written to by then.
    modified: SystemTime,
    /// Bytes before the first tensor: the length and the JSON.
    pub(super) data_start: u64,
}

impl Shard {
    /// Makes sure that the file is the one that was opened: a job reads experts for as long as it runs, and headers that no
    /// longer belong to the bytes would have it compute with anything. (A file put in its place is another one: what is
    /// open stays as it was.)
    ///
    /// # Errors
    /// When it has been written to since.
    pub(super) fn is_unchanged(&self) -> Result<()> {
        let context = || self.path.display().to_string();
        let now = self.file.metadata().with_context(context)?;
        ensure!(
            now.len() == self.len,
            "{}: the file was changed while the job was running: it had {} bytes and has {}; put it back as it was and run \
             the same command again",
            self.path.display(),
            self.len,
            now.len()
        );
        ensure!(
            now.modified().with_context(context)? == self.modified,
            "{}: the file was changed while the job was running: it has been written to; put it back as it was and run the \
             same command again",
            self.path.display()
        );
        Ok(())
    }
}

/// What a folder holds: its files, and where each tensor lies.
pub(super) struct Contents {
    /// The file that says what there is: the index, or the only safetensors file.
    pub(super) source: PathBuf,
    pub(super) shards: Vec<Shard>,
    pub(super) tensors: BTreeMap<String, TensorInfo>,
}

/// Finds and checks the folder's safetensors files, reading their headers only.
pub(super) fn open(dir: &Path) -> Result<Contents> {
    let kind = std::fs::metadata(dir).with_context(|| {
        format!(
            "{}: there is no such model folder; --model takes a folder downloaded from the hub",
            dir.display()
        )
    })?;
    ensure!(
        kind.is_dir(),
        "{}: this is a file, but a folder is needed: the one that holds config.json and {SINGLE}",
        dir.display()
    );
    // Where both are there the single file wins, as in Hugging Face's loader.
    if dir.join(SINGLE).symlink_metadata().is_ok() {
        let source = dir.join(SINGLE);
        let (shard, tensors) = open_shard(&source)?;
        ensure!(
            !tensors.is_empty(),
            "{}: the file holds no tensor; download it again",
            source.display()
        );
        return Ok(Contents {
            source,
            shards: vec![shard],
            tensors: tensors.into_iter().collect(),
        });
    }
    if dir.join(INDEX).symlink_metadata().is_ok() {
        return open_sharded(dir);
    }
    bail!(
        "{}: neither {SINGLE} nor {INDEX} is there{}",
        dir.display(),
        what_else(dir)
    );
}

/// What a folder without safetensors holds instead, as the end of a sentence.
fn what_else(dir: &Path) -> &'static str {
    let has = |name: &str| dir.join(name).exists();
    if has("pytorch_model.bin") || has("pytorch_model.bin.index.json") {
        ", only pytorch_model.bin: convert it (load it with transformers, then save_pretrained(DIR, \
         safe_serialization=True))"
    } else if has("config.json") {
        ": the weights are missing, download the rest of the folder"
    } else {
        ": this is no Hugging Face model folder"
    }
}

/// Opens all shards that the index names and compares them with it.
fn open_sharded(dir: &Path) -> Result<Contents> {
    let source = dir.join(INDEX);
    let placed = placed(&read_json(dir, INDEX)?).with_context(|| source.display().to_string())?;
    let mut files: Vec<&str> = placed.values().map(String::as_str).collect();
    files.sort_unstable();
    files.dedup();
    let missing: Vec<&str> = files.iter().copied().filter(|file| !dir.join(file).exists()).collect();
    if !missing.is_empty() {
        let orphan = placed
            .iter()
            .find(|(_, file)| *file == missing[0])
            .map_or("", |(name, _)| name);
        bail!(
            "{}: {} of {} shards are missing: {} (with tensor `{orphan}`, for one); download them",
            source.display(),
            missing.len(),
            files.len(),
            missing.join(", ")
        );
    }
    let mut shards = Vec::with_capacity(files.len());
    let mut tensors = BTreeMap::<String, TensorInfo>::new();
    for (shard, file) in files.iter().enumerate() {
        let (opened, listed) = open_shard(&dir.join(file))?;
        for (name, info) in listed {
            if let Some(other) = tensors.get(&name) {
                bail!(
                    "{}: tensor `{name}` is also in {}: the shards are not of one checkpoint; download them again",
                    opened.path.display(),
                    files[other.shard]
                );
            }
            tensors.insert(name, TensorInfo { shard, ..info });
        }
        shards.push(opened);
    }
    for (name, file) in &placed {
        let found = tensors.get(name).map(|info| files[info.shard]);
        ensure!(
            found == Some(file),
            "{}: tensor `{name}` is not in this shard, where {INDEX} places it, but {}; the shards are not of one \
             checkpoint: download them again",
            dir.join(file).display(),
            found.map_or("in none".to_string(), |other| format!("in {other}"))
        );
    }
    Ok(Contents {
        source,
        shards,
        tensors,
    })
}

/// The index's map from tensor to shard, every shard a path inside the folder.
fn placed(index: &Value) -> Result<BTreeMap<String, String>> {
    let Some(map) = index.get("weight_map").and_then(Value::as_object) else {
        bail!("`weight_map` (tensor name to shard file) is missing; download the index again");
    };
    ensure!(
        !map.is_empty(),
        "`weight_map` names no tensor; download the index again"
    );
    let mut placed = BTreeMap::new();
    for (name, file) in map {
        let Some(file) = file.as_str() else {
            bail!("tensor `{name}`: the shard is {file}, expected a file name");
        };
        let inside = Path::new(file)
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        ensure!(
            inside && !file.is_empty(),
            "tensor `{name}`: shard {file:?} lies outside the model folder; only plain file names are accepted"
        );
        placed.insert(name.clone(), file.to_string());
    }
    Ok(placed)
}

/// Opens one safetensors file and reads its header.
fn open_shard(path: &Path) -> Result<(Shard, Vec<(String, TensorInfo)>)> {
    let context = || path.display().to_string();
    // Looked at before opening: opening a pipe would wait for a writer.
    let kind = std::fs::metadata(path).with_context(context)?;
    ensure!(
        kind.is_file(),
        "{}: this is not a file; a safetensors file is needed",
        path.display()
    );
    let file = File::open(path).with_context(context)?;
    let kind = file.metadata().with_context(context)?;
    let (len, modified) = (kind.len(), kind.modified().with_context(context)?);
    let json = read_header(&file, len).with_context(context)?;
    let data_start = 8 + json.len() as u64;
    let tensors = header::parse(&json, len - data_start).with_context(context)?;
    Ok((
        Shard {
            path: path.to_path_buf(),
            file,
            len,
            modified,
            data_start,
        },
        tensors,
    ))
}

/// The JSON of the header; no more is allocated than the file is long.
fn read_header(file: &File, len: u64) -> Result<Vec<u8>> {
    let mut start = vec![0; len.min(256) as usize];
    file.read_exact_at(&mut start, 0).context("reading its first bytes")?;
    let length = start.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes));
    let Some(length) = length.filter(|&length| length <= MAX_HEADER && length <= len - 8) else {
        bail!(refusal(&start, length, len));
    };
    let mut json = vec![0; length as usize];
    file.read_exact_at(&mut json, 8)
        .context("reading the safetensors header")?;
    Ok(json)
}

/// Why a file with this start, claimed header length and real length can't be one of safetensors.
fn refusal(start: &[u8], header: Option<u64>, len: u64) -> String {
    match (foreign_format(start), header) {
        (Some(foreign), _) => foreign.to_string(),
        (None, None) => format!("the file has {len} bytes, too few for a safetensors file; download it again"),
        (None, Some(header)) if header > MAX_HEADER => format!(
            "this is not a safetensors file: it would have a header of {header} bytes, and at most {MAX_HEADER} are \
             allowed; download it again"
        ),
        (None, Some(header)) => format!(
            "the file is torn: it has {len} bytes, but its header alone takes {}; download it again",
            header + 8
        ),
    }
}

/// What a file is that isn't what its name says, with the cure; `None` if nothing is recognised.
pub(super) fn foreign_format(start: &[u8]) -> Option<&'static str> {
    let text = start.trim_ascii_start();
    let opens_with = |word: &[u8]| {
        text.get(..word.len())
            .is_some_and(|found| found.eq_ignore_ascii_case(word))
    };
    if start.starts_with(b"version https://git-lfs") {
        Some("this is a git-LFS pointer, not the file itself; run `git lfs pull` in the model folder")
    } else if opens_with(b"<!doctype") || opens_with(b"<html") {
        Some("this is a web page saved in place of the file (an error or login page); download the file again")
    } else if start.starts_with(b"PK\x03\x04") || start.starts_with(b"\x80\x02\x8a\x0a") {
        Some("this is a PyTorch pickle, not a safetensors file; convert it with transformers' save_pretrained")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_files_are_told_by_their_first_bytes() {
        let told = |start: &[u8]| foreign_format(start).unwrap_or("");
        assert!(told(b"version https://git-lfs.github.com/spec/v1\noid sha256:0").contains("git lfs pull"));
        assert!(told(b"\n  <!DOCTYPE html><title>404").contains("web page"));
        assert!(told(b"<html>").contains("web page"));
        assert!(told(b"PK\x03\x04archive/data.pkl").contains("pickle"));
        assert_eq!(foreign_format(b"\x40\0\0\0\0\0\0\0{\"a\":"), None);
        assert_eq!(foreign_format(b""), None);
    }

    #[test]
    fn an_index_stays_inside_its_folder() {
        let of = |file: Value| placed(&serde_json::json!({"weight_map": {"a.weight": file}}));
        assert_eq!(
            of("model-1.safetensors".into()).unwrap()["a.weight"],
            "model-1.safetensors"
        );
        assert!(of("part/model-1.safetensors".into()).is_ok());
        for outside in [
            "../a.safetensors",
            "x/../../a.safetensors",
            "/etc/passwd",
            "./a",
            "..",
            "",
        ] {
            let error = format!("{:#}", of(outside.into()).unwrap_err());
            assert!(
                error.contains("`a.weight`") && error.contains("outside the model folder"),
                "{error}"
            );
        }
        assert!(of(7.into()).is_err());
        assert!(placed(&serde_json::json!({"weight_map": {}})).is_err());
        assert!(placed(&serde_json::json!([])).is_err());
    }
}
