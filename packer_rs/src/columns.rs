//! Columns of an index as the engine sees them: slices in memory that somebody else owns and keeps alive (a
//! memory-mapped Arrow file, or vectors in tests). In: chunks of equal length but the last. Out: a value by row, in
//! constant time.

use std::any::Any;
use std::sync::Arc;

use crate::error::{Error, Kind, Result};

/// Whatever keeps a column's memory alive.
pub type Owner = Arc<dyn Any + Send + Sync>;

/// One contiguous piece of a column.
pub struct Chunk<T> {
    start: *const T,
    len: usize,
    _owner: Owner,
}

// SAFETY: a chunk is a shared, read-only slice of plain values, and its owner may be dropped on any thread.
unsafe impl<T: Sync> Send for Chunk<T> {}
// SAFETY: as above; nothing is ever written through it.
unsafe impl<T: Sync> Sync for Chunk<T> {}

impl<T> Chunk<T> {
    /// A chunk over foreign memory.
    ///
    /// # Safety
    /// `start` must be aligned and valid for `len` values for as long as `owner` lives, and never written meanwhile.
    pub unsafe fn from_raw(start: *const T, len: usize, owner: Owner) -> Self {
        Self { start, len, _owner: owner }
    }

    /// The values.
    pub fn as_slice(&self) -> &[T] {
        if self.len == 0 {
            return &[];
        }
        // SAFETY: promised by whoever called `from_raw`.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

/// A column of fixed-width values.
pub struct Column<T> {
    chunks: Vec<Chunk<T>>,
    chunk_rows: usize,
    rows: usize,
}

impl<T: Copy + Send + Sync + 'static> Column<T> {
    /// A column over chunks that all have as many rows as the first, but the last, which may have fewer.
    pub fn new(name: &str, chunks: Vec<Chunk<T>>) -> Result<Self> {
        let chunk_rows = chunks.first().map_or(1, |c| c.len.max(1));
        let rows = chunks.iter().map(|c| c.len).sum();
        let full = chunks.len().saturating_sub(1);
        if chunks.iter().take(full).any(|c| c.len != chunk_rows) || chunks.last().is_some_and(|c| c.len > chunk_rows) {
            return Err(Error::new(
                Kind::Index,
                format!("index column '{name}' has record batches of unequal size; write the index again"),
            ));
        }
        Ok(Self { chunks, chunk_rows, rows })
    }

    /// A column that owns its values.
    pub fn from_vec(values: Vec<T>) -> Self {
        let owner: Arc<Vec<T>> = Arc::new(values);
        let (start, rows) = (owner.as_ptr(), owner.len());
        // SAFETY: the vector is behind the `Arc` that the chunk holds, and is never changed.
        let chunk = unsafe { Chunk::from_raw(start, rows, owner) };
        Self { chunks: vec![chunk], chunk_rows: rows.max(1), rows }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// The value of `row`, which must be below `len`.
    #[inline]
    pub fn get(&self, row: usize) -> T {
        if self.chunks.len() == 1 {
            return self.chunks[0].as_slice()[row];
        }
        self.chunks[row / self.chunk_rows].as_slice()[row % self.chunk_rows]
    }

    /// The pieces, in order.
    pub fn chunks(&self) -> impl Iterator<Item = &[T]> {
        self.chunks.iter().map(Chunk::as_slice)
    }
}

/// A column of lists: per chunk, n + 1 offsets into its values (Arrow's `large_list`, and `large_utf8` with bytes for
/// values).
pub struct ListColumn<T> {
    chunks: Vec<(Chunk<i64>, Chunk<T>)>,
    chunk_rows: usize,
    rows: usize,
}

/// A column of strings.
pub type StringColumn = ListColumn<u8>;

impl<T: Send + Sync + 'static> ListColumn<T> {
    /// A column over (offsets, values) chunks of equal size but the last.
    pub fn new(name: &str, chunks: Vec<(Chunk<i64>, Chunk<T>)>) -> Result<Self> {
        let rows_of = |c: &(Chunk<i64>, Chunk<T>)| c.0.len.saturating_sub(1);
        let chunk_rows = chunks.first().map_or(1, |c| rows_of(c).max(1));
        let rows = chunks.iter().map(rows_of).sum();
        let full = chunks.len().saturating_sub(1);
        let unequal = chunks.iter().take(full).any(|c| rows_of(c) != chunk_rows)
            || chunks.last().is_some_and(|c| rows_of(c) > chunk_rows);
        let broken = chunks.iter().any(|(offsets, values)| {
            let offsets = offsets.as_slice();
            offsets.first().is_some_and(|&o| o < 0) || offsets.last().is_some_and(|&o| o > values.len as i64)
        });
        if unequal || broken {
            return Err(Error::new(Kind::Index, format!("index column '{name}' is damaged; write the index again")));
        }
        Ok(Self { chunks, chunk_rows, rows })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// The list of `row`, which must be below `len`; empty where the column's own offsets make no sense.
    pub fn list(&self, row: usize) -> &[T] {
        let (offsets, values) = &self.chunks[row / self.chunk_rows];
        let at = row % self.chunk_rows;
        let (from, to) = (offsets.as_slice()[at] as usize, offsets.as_slice()[at + 1] as usize);
        values.as_slice().get(from..to).unwrap_or(&[])
    }
}

impl StringColumn {
    /// A column that owns its values.
    pub fn from_strings<S: AsRef<str>>(values: &[S]) -> Self {
        let mut offsets = vec![0i64];
        let mut bytes = Vec::new();
        for value in values {
            bytes.extend_from_slice(value.as_ref().as_bytes());
            offsets.push(bytes.len() as i64);
        }
        let (offsets, bytes) = (Arc::new(offsets), Arc::new(bytes));
        // SAFETY: both vectors are behind the `Arc`s that the chunks hold, and are never changed.
        let chunk = unsafe {
            (
                Chunk::from_raw(offsets.as_ptr(), offsets.len(), offsets.clone()),
                Chunk::from_raw(bytes.as_ptr(), bytes.len(), bytes.clone()),
            )
        };
        Self { chunks: vec![chunk], chunk_rows: values.len().max(1), rows: values.len() }
    }

    /// The string of `row`, which must be below `len`; empty where it is damaged.
    pub fn get(&self, row: usize) -> &str {
        std::str::from_utf8(self.list(row)).unwrap_or("")
    }
}

/// The caption tokens of one index, as its tokenizer gave them.
pub enum Captions {
    /// No caption at all.
    None,
    /// Captions whose tokens are their UTF-8 bytes, then this end mark.
    Bytes(StringColumn, i32),
    /// Token ids, and the end mark that each caption closes with; −1 where the tokenizer has none.
    Ids(ListColumn<i32>, i32),
}

impl Captions {
    /// Number of rows; 0 without captions.
    pub fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Bytes(texts, _) => texts.len(),
            Self::Ids(ids, _) => ids.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens of `row`'s caption; 0 where it has none.
    pub fn count(&self, row: usize) -> usize {
        match self {
            Self::None => 0,
            Self::Bytes(texts, _) => texts.list(row).len() + usize::from(!texts.list(row).is_empty()),
            Self::Ids(ids, _) => ids.list(row).len(),
        }
    }

    /// Writes `row`'s caption, cut to the length of `out` (at most `count`); a cut one keeps its end mark.
    pub fn write(&self, row: usize, out: &mut [i32]) {
        let cut = out.len() < self.count(row);
        let end = match self {
            Self::None => return,
            Self::Bytes(texts, end) => {
                // The last token of a whole caption is the mark, which `zip` leaves as it is.
                out.fill(*end);
                for (to, &byte) in out.iter_mut().zip(texts.list(row)) {
                    *to = i32::from(byte);
                }
                *end
            }
            Self::Ids(ids, end) => {
                for (to, &id) in out.iter_mut().zip(ids.list(row)) {
                    *to = id;
                }
                *end
            }
        };
        if let (true, true, Some(last)) = (cut, end >= 0, out.last_mut()) {
            *last = end;
        }
    }
}

/// The boxes of the images of one index.
pub struct Boxes {
    /// x0, y0, x1, y1 of each, in pixels of the oriented image, as annotated: they may reach beyond it.
    pub corners: ListColumn<[f32; 4]>,
    /// Their classes.
    pub labels: ListColumn<i32>,
    /// 1 where it holds a crowd, 2 where it is difficult, 4 where the picture cuts the object.
    pub flags: ListColumn<u8>,
    /// What they are called where they were annotated.
    pub ids: ListColumn<i64>,
    /// Their areas in pixels, of the mask where there is one.
    pub areas: ListColumn<f32>,
}

impl Boxes {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.corners.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Boxes of `row`; 0 where its columns contradict each other.
    pub fn count(&self, row: usize) -> usize {
        let n = self.corners.list(row).len();
        let others = [self.labels.list(row).len(), self.flags.list(row).len(), self.ids.list(row).len()];
        if others == [n; 3] && self.areas.list(row).len() == n { n } else { 0 }
    }
}

/// Lists of byte strings: per chunk, where each row's strings begin, where each string's bytes do, and the bytes (Arrow's
/// `large_list` of `large_binary`).
pub struct BytesColumn {
    chunks: Vec<(Chunk<i64>, Chunk<i64>, Chunk<u8>)>,
    chunk_rows: usize,
    rows: usize,
}

impl BytesColumn {
    /// A column over chunks of equal size but the last.
    pub fn new(name: &str, chunks: Vec<(Chunk<i64>, Chunk<i64>, Chunk<u8>)>) -> Result<Self> {
        let rows_of = |c: &(Chunk<i64>, Chunk<i64>, Chunk<u8>)| c.0.len.saturating_sub(1);
        let chunk_rows = chunks.first().map_or(1, |c| rows_of(c).max(1));
        let full = chunks.len().saturating_sub(1);
        if chunks.iter().take(full).any(|c| rows_of(c) != chunk_rows) || chunks.iter().any(|c| rows_of(c) > chunk_rows)
        {
            return Err(Error::new(Kind::Index, format!("index column '{name}' is damaged; write the index again")));
        }
        let rows = chunks.iter().map(rows_of).sum();
        Ok(Self { chunks, chunk_rows, rows })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// The `i`-th string of `row`; None where there is none, or the column's own offsets make no sense.
    pub fn get(&self, row: usize, i: usize) -> Option<&[u8]> {
        let (lists, strings, bytes) = &self.chunks[row / self.chunk_rows];
        let lists = &lists.as_slice()[row % self.chunk_rows..][..2];
        let at = usize::try_from(lists[0]).ok()?.checked_add(i).filter(|&at| (at as i64) < lists[1])?;
        let ends = strings.as_slice().get(at..at.checked_add(2)?)?;
        bytes.as_slice().get(usize::try_from(ends[0]).ok()?..usize::try_from(ends[1]).ok()?)
    }
}

/// The columns of one index that planning reads.
pub struct Sizes {
    /// The index, for messages.
    pub path: String,
    /// Width after orientation, in pixels.
    pub width: Column<i32>,
    /// Height after orientation, in pixels.
    pub height: Column<i32>,
    /// Caption tokens; empty without captions.
    pub caption_tokens: Column<i32>,
    /// Boxes; empty without any.
    pub box_count: Column<i32>,
}

impl Sizes {
    /// (height, width), caption tokens and boxes of `row`, which must be below `len` of each.
    ///
    /// # Errors
    /// What no image has. Looked at here, value by value, since looking through a large index beforehand takes minutes.
    #[inline]
    pub fn of(&self, row: usize) -> Result<((i32, i32), u32, u32)> {
        let (height, width) = (self.height.get(row), self.width.get(row));
        let tokens = if self.caption_tokens.is_empty() { 0 } else { self.caption_tokens.get(row) };
        let boxes = if self.box_count.is_empty() { 0 } else { self.box_count.get(row) };
        if height < 1 || width < 1 || tokens < 0 || boxes < 0 {
            return Err(self.damaged(row, height, width, tokens, boxes));
        }
        Ok(((height, width), tokens as u32, boxes as u32))
    }

    #[cold]
    fn damaged(&self, row: usize, height: i32, width: i32, tokens: i32, boxes: i32) -> Error {
        let captions = if tokens < 0 { format!(" and {tokens} caption tokens") } else { String::new() };
        let boxes = if boxes < 0 { format!(" and {boxes} boxes") } else { String::new() };
        Error::new(
            Kind::Index,
            format!(
                "'{}' is damaged: row {row} is {width} × {height} pixels{captions}{boxes}; build it again",
                self.path
            ),
        )
    }
}

/// The columns of one index that rendering reads, besides `Sizes`.
pub struct Locations {
    /// For each row, which of `shards`.
    pub shard: Column<i32>,
    /// Folder (its path ends in `/`) or container file.
    pub shards: Vec<String>,
    /// Path within the folder, or the member's name.
    pub name: StringColumn,
    /// First byte in the container; 0 for a file in a folder.
    pub offset: Column<i64>,
    /// Bytes.
    pub length: Column<i64>,
    /// Bytes of the container when it was indexed; 0 in a folder, empty where the index does not say.
    pub container_length: Column<i64>,
    /// `fetch::check` of the member when it was indexed; 0 in a folder, empty where the index does not say.
    pub check: Column<u32>,
    /// EXIF orientation, 1 to 8.
    pub orientation: Column<u8>,
    /// `label_width` labels a row, row by row; −1 where unlabelled. Empty without labels.
    pub labels: Column<i64>,
    /// K.
    pub label_width: usize,
}
