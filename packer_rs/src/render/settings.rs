//! `[render]` as the engine reads it: the canonical JSON of `navit_loader.config.RenderConfig`, which has checked it.

use serde::Deserialize;

use crate::error::{Error, Kind, Result};
use crate::pixels::picture::Depth;
use crate::pixels::taps::Filter;

/// How planned slots become pixels; the fields are those of `RenderConfig`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenderSettings {
    /// Decoding threads; 0 means one per core that this process may use.
    pub threads: usize,
    /// Threads that read ahead.
    pub fetch_threads: usize,
    /// Batches rendered ahead; the loader's affair.
    pub prefetch: usize,
    /// Bound of batch and file buffers, in MiB.
    pub memory_mb: usize,
    /// Resampling filter.
    pub filter: Filter,
    /// Decode JPEG at a smaller DCT scale where the target allows.
    pub dct_scaling: bool,
    /// RGB under transparent pixels.
    pub background: [u8; 3],
    /// Images that claim more pixels are not decoded.
    pub max_pixels: u64,
    /// What is white in samples of 16 bits.
    pub depth: DepthSetting,
    /// What becomes of colour profiles other than sRGB.
    pub profiles: Profiles,
    /// What becomes of JPEG files that are damaged, but of which nothing is missing.
    pub damaged: Damaged,
    /// Attempts after a passing fault; None for as many as a minute allows.
    pub retries: Option<u32>,
    /// Path of the ledger; empty for none.
    pub ledger: String,
    /// Share of failures that stops rendering.
    pub failure_limit: f64,
    /// Folder in which remote data is kept; empty for none.
    pub cache_dir: String,
    /// Bytes that it may hold, in 10⁹.
    pub cache_gb: f64,
}

/// `depth`, as Python has it: `full`, `largest`, or a number of bits.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct DepthSetting(pub Depth);

impl TryFrom<String> for DepthSetting {
    type Error = String;

    fn try_from(word: String) -> std::result::Result<Self, String> {
        match (word.as_str(), word.parse()) {
            ("full", _) => Ok(Self(Depth::Full)),
            ("largest", _) => Ok(Self(Depth::Largest)),
            (_, Ok(bits @ 9..=15)) => Ok(Self(Depth::Bits(bits))),
            _ => Err(format!("depth = '{word}' is none of full, largest, 9 to 15")),
        }
    }
}

/// `profiles`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Profiles {
    /// They are counted.
    Ignore,
    /// They are applied.
    Convert,
}

/// `damaged`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Damaged {
    /// They are masked.
    Mask,
    /// They are rendered as others show them.
    Keep,
}

impl RenderSettings {
    /// From `RenderConfig.to_json()`.
    pub fn from_json(json: &str) -> Result<Self> {
        serde_json::from_str(json).map_err(|e| Error::new(Kind::Render, format!("[render]: {e}")))
    }

    /// Decoding threads in numbers.
    pub fn decoders(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            n => n,
        }
    }

    /// The bound in bytes.
    pub fn memory(&self) -> usize {
        self.memory_mb.saturating_mul(1 << 20)
    }

    /// What parts of containers may take of it, where a source holds any: enough for a window of block order, and for
    /// the next one where that is on its way from a `remote` source.
    pub fn memory_for_parts(&self, remote: bool) -> usize {
        self.memory() / if remote { 2 } else { 4 }
    }
}
