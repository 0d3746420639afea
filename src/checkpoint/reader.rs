//! A model folder, opened: names, shapes, and tensors read one at a time.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{anyhow, bail, ensure, Context, Result};
use half::{bf16, f16};

use super::fingerprint;
use super::folder::{self, Shard};
use super::header::{Dtype, TensorInfo};
use super::tensor::{StoredDtype, TensorData};

/// Bytes asked for at once: large enough for a parallel file system, and all that a read needs beside its result.
const BLOCK: usize = 4 << 20;

/// An opened model folder. Only headers are in memory; files stay open, and reads may come from several threads.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    source: PathBuf,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, TensorInfo>,
    bytes_read: AtomicU64,
}

impl Checkpoint {
    /// Opens `model.safetensors`, or `model.safetensors.index.json` with its shards, in `dir`.
    ///
    /// # Errors
    /// If there is no such checkpoint, or any of its files is torn, missing, not safetensors, or at odds with the
    /// index or with its own header. No weight is read.
    pub fn open(dir: &Path) -> Result<Checkpoint> {
        let folder::Contents {
            source,
            shards,
            tensors,
        } = folder::open(dir)?;
        Ok(Checkpoint {
            dir: dir.to_path_buf(),
            source,
            shards,
            tensors,
            bytes_read: AtomicU64::new(0),
        })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Type, shape and size of a tensor; `None` if it isn't there.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// The file that holds a tensor or, if it isn't there, the file that ought to list it.
    pub fn file_of(&self, name: &str) -> &Path {
        self.tensors
            .get(name)
            .map_or(&self.source, |info| &self.shards[info.shard].path)
    }

    /// Makes sure that a tensor is there, of a float type and of the given shape.
    ///
    /// # Errors
    /// Names the file, the tensor, what was found and what was expected.
    pub fn expect(&self, name: &str, shape: &[usize]) -> Result<()> {
        let (info, _) = self.float(name)?;
        ensure!(
            info.shape == shape,
            "{}: tensor `{name}` has shape {:?}, but config.json calls for {shape:?}; weights and config.json are not \
             of one model: download both again",
            self.file_of(name).display(),
            info.shape
        );
        Ok(())
    }

    /// Reads one tensor as stored: exactly its bytes, nothing around them.
    ///
    /// # Errors
    /// If it isn't there, isn't of a float type, can't be read, or holds a NaN (named by its element).
    pub fn read(&self, name: &str) -> Result<TensorData> {
        let (info, dtype) = self.float(name)?;
        Ok(match dtype {
            StoredDtype::F32 => TensorData::F32(self.elements(name, info, f32::from_le_bytes, f32::is_nan)?),
            StoredDtype::Bf16 => TensorData::Bf16(self.elements(name, info, bf16::from_le_bytes, bf16::is_nan)?),
            StoredDtype::F16 => TensorData::F16(self.elements(name, info, f16::from_le_bytes, f16::is_nan)?),
        })
    }

    /// Like [`read`](Self::read), but in single precision, without holding the stored form beside it.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let (info, dtype) = self.float(name)?;
        match dtype {
            StoredDtype::F32 => self.elements(name, info, f32::from_le_bytes, f32::is_nan),
            StoredDtype::Bf16 => self.elements(name, info, |b| bf16::from_le_bytes(b).to_f32(), f32::is_nan),
            StoredDtype::F16 => self.elements(name, info, |b| f16::from_le_bytes(b).to_f32(), f32::is_nan),
        }
    }

    /// The float type that takes most of the bytes (float32 if no tensor is of a float type).
    pub fn stored_dtype(&self) -> StoredDtype {
        let bytes_of = |dtype: StoredDtype| -> u64 {
            self.tensors
                .values()
                .filter(|info| info.dtype == Dtype::Float(dtype))
                .map(|info| info.bytes)
                .sum()
        };
        let mut most = (StoredDtype::F32, bytes_of(StoredDtype::F32));
        for dtype in [StoredDtype::Bf16, StoredDtype::F16] {
            if bytes_of(dtype) > most.1 {
                most = (dtype, bytes_of(dtype));
            }
        }
        most.0
    }

    /// Bytes of all tensors together, as stored.
    pub fn total_bytes(&self) -> u64 {
        self.tensors.values().map(|info| info.bytes).sum()
    }

    /// A fingerprint of the model, in hexadecimal: SHA-256 over configs, tokenizer, index, every file's name, size and
    /// header, and blocks sampled from its weights. Not over every byte: hundreds of gigabytes would take minutes.
    ///
    /// # Errors
    /// If a file can't be read.
    pub fn sha256(&self) -> Result<String> {
        fingerprint::sha256(&self.dir, &self.shards)
    }

    /// Bytes of tensors read so far (headers and [`sha256`](Self::sha256) not counted).
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }

    /// A tensor that can be computed with.
    fn float(&self, name: &str) -> Result<(&TensorInfo, StoredDtype)> {
        let file = self.file_of(name).display();
        let Some(info) = self.tensors.get(name) else {
            bail!("{file}: tensor `{name}` is missing; the checkpoint is incomplete, or of another model");
        };
        match &info.dtype {
            Dtype::Float(dtype) => Ok((info, *dtype)),
            Dtype::Other(found) => bail!(
                "{file}: tensor `{name}` is of type {found}, but weights must be float32, bfloat16 or float16; \
                 take the checkpoint's unquantised form"
            ),
        }
    }

    /// Reads and decodes a tensor block by block, looking for NaN while the block is in the cache.
    fn elements<const WIDTH: usize, T: Copy>(
        &self,
        name: &str,
        info: &TensorInfo,
        decode: impl Fn([u8; WIDTH]) -> T,
        is_nan: impl Fn(T) -> bool,
    ) -> Result<Vec<T>> {
        let shard = &self.shards[info.shard];
        let context = || format!("{}: reading tensor `{name}`", shard.path.display());
        let mut values = Vec::new();
        values
            .try_reserve_exact(info.bytes as usize / WIDTH)
            .with_context(context)?;
        let mut block = vec![0; BLOCK.min(info.bytes as usize)];
        let (mut at, end) = (info.start, info.start + info.bytes);
        while at < end {
            let bytes = &mut block[..(end - at).min(BLOCK as u64) as usize];
            shard.file.read_exact_at(bytes, at).with_context(context)?;
            at += bytes.len() as u64;
            self.bytes_read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            let first = values.len();
            values.extend(bytes.chunks_exact(WIDTH).map(|chunk| {
                let mut element = [0; WIDTH];
                element.copy_from_slice(chunk);
                decode(element)
            }));
            // All elements are looked at before any is judged: that loop is vectorised, a search is not.
            if values[first..]
                .iter()
                .fold(false, |found, &value| found | is_nan(value))
            {
                let element = values.iter().position(|&value| is_nan(value)).unwrap_or(first);
                return Err(anyhow!(
                    "{}: NaN in tensor `{name}` at element {element} of shape {:?}: the checkpoint is damaged; \
                     download it again",
                    shard.path.display(),
                    info.shape
                ));
            }
        }
        Ok(values)
    }
}
